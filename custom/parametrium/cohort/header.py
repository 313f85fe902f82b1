"""What a header alone says against a volume."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from parametrium.cohort.problem import Reason
from parametrium.cohort.volume_file import MAXIMUM_VOXELS, VolumeFileError, is_present, open_geometry

__all__ = ["MAXIMUM_EXTENT_MM", "MAXIMUM_VOXELS", "geometry_problem", "header_problem"]

MAXIMUM_EXTENT_MM = 3000.0
"""A longer field of view is a unit mistake (micrometres read as millimetres), not a patient."""


def header_problem(path: Path) -> Reason | None:
    """What the header of a volume file alone says against it; None when nothing does."""
    if not is_present(path):
        return Reason.MISSING_FILE
    try:
        geometry = open_geometry(path)
    except VolumeFileError as error:
        return error.reason
    return geometry_problem(geometry.shape, geometry.affine)


def geometry_problem(shape: Sequence[int], affine: NDArray[np.float64]) -> Reason | None:
    """What shape and affine [4, 4] (voxel to RAS+ millimetres) say against a volume."""
    if len(shape) < 3 or any(extent != 1 for extent in shape[3:]):
        return Reason.NOT_3D
    if min(shape[:3]) < 2:
        return Reason.ONE_SLICE
    if math.prod(shape) > MAXIMUM_VOXELS:
        return Reason.TOO_LARGE
    axes = affine[:3, :3]
    steps = np.linalg.norm(axes, axis=0)
    if not np.isfinite(affine).all() or steps.min() < 1e-6 or abs(np.linalg.det(axes / steps)) < 1e-3:
        return Reason.AFFINE_SINGULAR
    extent = steps * np.asarray(shape[:3])
    if extent.max() > MAXIMUM_EXTENT_MM or np.abs(affine[:3, 3]).max() > 10 * MAXIMUM_EXTENT_MM:
        return Reason.IMPLAUSIBLE_GEOMETRY
    return None
