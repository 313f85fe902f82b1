"""The 3D vision transformer."""
