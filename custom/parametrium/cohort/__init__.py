"""A hospital's images and clinical rows."""
