"""Parametrium: federated multi-modal pretraining of a 3D vision transformer on scans that stay in their hospitals."""

__version__ = "0.1.0"
