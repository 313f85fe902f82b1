"""Faces taken out of head scans by a program of the site's own choice; see ``docs/deidentification.md``."""
