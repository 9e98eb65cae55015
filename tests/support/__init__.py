"""What tests of several files share: stand-ins, models, sessions. Fixtures stay in the folders' conftest.py."""
