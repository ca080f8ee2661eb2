"""`python -m examples.demo`: the patient onboarding under load, with processes killed on the way."""
