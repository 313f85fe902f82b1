"""What a NIfTI header alone says against a volume."""

import math
from collections.abc import Sequence
from pathlib import Path

import nibabel
import numpy as np
from numpy.typing import NDArray

from parametrium.cohort.problem import Reason

MAXIMUM_VOXELS = 2**30
"""A larger array (4 GiB as float32) is not a scan of one patient but a damaged header."""
MAXIMUM_EXTENT_MM = 3000.0
"""A longer field of view is a unit mistake (micrometres read as millimetres), not a patient."""


def header_problem(path: Path) -> Reason | None:
    """What a NIfTI header alone says against a volume; None when nothing does."""
    if not path.is_file():
        return Reason.MISSING_FILE
    try:
        image = nibabel.load(path)
        if not isinstance(image, nibabel.Nifti1Image) or image.get_data_dtype().kind not in "iuf":
            return Reason.UNREADABLE
        return geometry_problem(image.shape, np.asarray(image.affine, dtype=np.float64))
    except Exception:  # a damaged header makes nibabel raise nearly anything; each means the same here
        return Reason.UNREADABLE


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
