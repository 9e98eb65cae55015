"""Code shared by tests in several files: stand-ins, models, sessions. Fixtures stay in the folders' conftest.py."""
