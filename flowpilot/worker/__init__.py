"""Runs the steps: from a step message to the user's function, and to the answer, over the log ports."""
