"""DICOM as it comes out of a PACS: which files are image volumes for us, and how they become NIfTI."""
