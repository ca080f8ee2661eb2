"""`flowpilot dev`: servers, roles and a worker that follows the files, as one supervised whole."""
