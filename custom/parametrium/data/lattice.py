"""The lattice that all prepared volumes of a site share, and resampling onto it.

Lattice voxel (i, j, k) sits at world (i * sx, j * sy, k * sz) millimetres, RAS+. A prepared volume is a box of the
lattice, so two volumes of one frame are aligned by integer arithmetic, however their scanners laid their grids.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation
from numpy.typing import NDArray
from scipy import ndimage

Triple = tuple[int, int, int]
Spacing = tuple[float, float, float]

_TOLERANCE = 1e-3  # of a voxel: headers hold float32, and a grid that fits exactly must not lose its last plane
_FWHM = 2 * math.sqrt(2 * math.log(2))  # full width at half maximum of a Gaussian of unit sigma


class Resampled(NamedTuple):
    """A box of the lattice.

    Attributes:
        image: [D, H, W] float32 along right, anterior, superior.
        seen: [D, H, W] True inside the source's field of view.
        offset: lattice index of the first voxel.
    """

    image: NDArray[np.float32]
    seen: NDArray[np.bool_]
    offset: Triple


def lattice_box(shape: tuple[int, ...], affine: NDArray[np.float64], spacing: Spacing) -> tuple[Triple, Triple]:
    """First lattice index and extent of the smallest box that holds every lattice point a volume sees.

    Args:
        shape: voxels of the source.
        affine: [4, 4] voxel to RAS+ millimetres.
        spacing: millimetres of the lattice.

    Returns:
        Index and extent; an extent is 0 or negative where the volume is too thin to hold a lattice point.
    """
    corners = np.stack(np.meshgrid(*[(-0.5, n - 0.5) for n in shape], indexing="ij"), axis=-1).reshape(-1, 3)
    points = (corners @ affine[:3, :3].T + affine[:3, 3]) / np.asarray(spacing)
    low = np.ceil(points.min(axis=0) - _TOLERANCE).astype(int)
    high = np.floor(points.max(axis=0) + _TOLERANCE).astype(int)
    i, j, k = (int(value) for value in low)
    d, h, w = (int(value) for value in high - low + 1)
    return (i, j, k), (d, h, w)


def overlap(
    first: Sequence[int], size: Sequence[int], other: Sequence[int], other_size: Sequence[int]
) -> tuple[tuple[slice, ...], tuple[slice, ...]] | None:
    """What two boxes of the lattice share, as slices of either; None where they share nothing.

    Args:
        first: lattice index of the first box's first voxel.
        size: its voxels.
        other: of the second box.
        other_size: likewise.
    """
    start = [max(a, b) for a, b in zip(first, other, strict=True)]
    stop = [min(a + n, b + m) for a, n, b, m in zip(first, size, other, other_size, strict=True)]
    if any(a >= b for a, b in zip(start, stop, strict=True)):
        return None
    here, there = (
        tuple(slice(a - o, b - o) for a, b, o in zip(start, stop, origin, strict=True)) for origin in (first, other)
    )
    return here, there


def cut(values: NDArray[Any], offset: Sequence[int], low: Sequence[int], extent: Sequence[int]) -> NDArray[Any]:
    """A box of an array on the lattice, with zeros where it reaches beyond the array.

    Args:
        values: [D, H, W].
        offset: lattice index of its first voxel.
        low: of the box's first voxel.
        extent: voxels of the box.

    Returns:
        An array of that extent, in the values' own type.
    """
    found = np.zeros(tuple(extent), dtype=values.dtype)
    shared = overlap(low, extent, offset, values.shape)
    if shared is not None:
        here, there = shared
        found[here] = values[there]
    return found


def resample(image: NDArray[np.float32], affine: NDArray[np.float64], spacing: Spacing) -> Resampled:
    """Linear interpolation onto the lattice, smoothed before where the lattice is coarser than the source.

    A voxel sees half its own size around its centre; lattice points farther out are not seen and hold 0. The Gaussian
    brings the source's resolution to the lattice's (Cardoso et al. 2015): variance (ratio^2 - 1) / (8 ln 2).

    Args:
        image: [I, J, K] in the source's own order.
        affine: [4, 4] voxel to RAS+ millimetres, invertible, of any orientation.
        spacing: millimetres of the lattice along right, anterior, superior.
    """
    orientation = io_orientation(affine)
    affine = affine @ inv_ornt_aff(orientation, image.shape)
    image = apply_orientation(image, orientation)
    offset, extent = lattice_box(image.shape, affine, spacing)
    inverse = np.linalg.inv(affine)
    step = inverse[:3, :3] * np.asarray(spacing)  # source voxels for one lattice step, [source axis, lattice axis]
    start = step @ np.asarray(offset) + inverse[:3, 3]
    ratio = np.linalg.norm(step, axis=1)
    sigma = np.sqrt(np.maximum(ratio**2 - 1, 0)) / _FWHM
    if sigma.max() > 0.1:
        image = ndimage.gaussian_filter(image, sigma.tolist(), mode="nearest", truncate=3.0)
    oblique = step - np.diag(np.diag(step))
    # A diagonal given as a vector takes a separable path in scipy, several times faster, for the usual axial scan.
    straight = np.abs(oblique).max() * max(extent) < _TOLERANCE
    step = np.diag(np.diag(step)) if straight else step
    matrix = np.diag(step) if straight else step
    result = np.empty(extent, dtype=np.float32)
    ndimage.affine_transform(image, matrix, start, output_shape=extent, output=result, order=1, mode="nearest")
    seen = _seen(image.shape, step, start, extent)
    result[~seen] = 0.0
    return Resampled(result, seen, offset)


def _seen(
    shape: tuple[int, ...], step: NDArray[np.float64], start: NDArray[np.float64], extent: Triple
) -> NDArray[np.bool_]:
    """Which lattice points fall into a source voxel, [D, H, W]."""
    grid = np.ogrid[: extent[0], : extent[1], : extent[2]]
    seen = np.ones(extent, dtype=bool)
    for axis, size in enumerate(shape):
        # Without the zero terms the position along an axis of a straight volume stays a vector.
        position = sum((s * g for s, g in zip(step[axis], grid, strict=True) if s != 0.0), start[axis])
        seen &= (position >= -0.5 - _TOLERANCE) & (position <= size - 0.5 + _TOLERANCE)
    return seen
