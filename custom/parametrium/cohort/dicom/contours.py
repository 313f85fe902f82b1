"""Planar contours to voxels.

A voxel belongs to a structure when its centre lies inside the contours of its plane by the even-odd rule: a contour
inside another is a hole, and the channel of a key-hole contour has no width. A centre exactly on an edge belongs to
the side of higher index, so that two structures which share an edge share no voxel and leave none out.

Contours are drawn in planes that need not be the image's:

* Each drawn plane counts for the image plane nearest to it; where several do, the nearest of them is taken.
* Where somebody drew every second slice, or on thicker slices, the image planes between two drawn ones are filled by
  shape-based interpolation (Raya and Udupa 1990): the weighted mean of the signed distances to both outlines. This is
  done for a regular distance of drawn planes only. A single wider gap is a statement that nothing is there.
* Nothing is added beyond the first and the last drawn plane.
* A structure may be drawn on planes along any of the image's three axes, all its contours along the same.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from parametrium.cohort.problem import Reason

_FLAT = 0.25  # voxels that a contour may leave its plane by
_SAME_PLANE = 0.1  # voxels between contours that are drawn on one plane
_DECIMALS = 6  # of a voxel: an edge through a voxel's centre stays there after the change of coordinates
_IRREGULAR = 1.5  # times the usual distance of drawn planes: a wider gap is meant
_WIDEST_GAP_MM = 12.0  # every second slice of 6 mm; farther off, the shape between is a guess
_CROSSINGS_AT_ONCE = 2**21
_MOST_CROSSINGS = 2**27  # of edges and pixel rows in a structure: a hundred times what outlines of a body have

Points = NDArray[np.float64]


class TooManyCrossingsError(Exception):
    """The outlines are more tangled than any that was drawn."""


class _Drawn(NamedTuple):
    """The contours of one drawn plane: where it lies along the axis in voxels, and [N, 2] points of each contour."""

    position: float
    contours: list[Points]


def rasterise_contours(
    contours: Sequence[Points], shape: tuple[int, int, int], spacing: Sequence[float]
) -> NDArray[np.uint8] | Reason:
    """Voxels inside a structure's contours.

    Args:
        contours: [N, 3] voxel coordinates of the corners of each closed contour, centre of the first voxel at 0.
        shape: [I, J, K] of the image.
        spacing: millimetres between voxels along i, j, k.

    Returns:
        [I, J, K] of 0 and 1; or the reason why there is none.
    """
    axis = _axis(contours)
    if axis is None:
        return Reason.IMPLAUSIBLE_GEOMETRY
    mask = np.zeros(shape, dtype=np.uint8, order="F")
    planes = np.moveaxis(mask, axis, 0)  # a view: [plane, u, v]
    chosen = _chosen(_drawn(contours, axis), planes.shape[0])
    left = _MOST_CROSSINGS
    try:
        for number, drawn in chosen.items():
            left = _fill(planes[number], drawn.contours, left)
    except TooManyCrossingsError:
        return Reason.TOO_LARGE
    across = [step for place, step in enumerate(spacing) if place != axis]
    _fill_gaps(planes, {number: drawn.position for number, drawn in chosen.items()}, spacing[axis], across)
    return mask if mask.any() else Reason.EMPTY_STRUCTURE


def _axis(contours: Sequence[Points]) -> int | None:
    """The image axis that every contour's plane stands upright on; the slice axis where the contours leave a choice."""
    if not contours:
        return 2
    spread = np.max([np.ptp(contour, axis=0) for contour in contours], axis=0)
    flat = [axis for axis in (2, 1, 0) if spread[axis] <= _FLAT]
    return flat[0] if flat else None


def _drawn(contours: Sequence[Points], axis: int) -> list[_Drawn]:
    """Contours by plane, in the order of the planes; a contour that stands twice in its plane counts once."""
    positions = np.array([contour[:, axis].mean() for contour in contours])
    planes: list[_Drawn] = []
    seen: set[bytes] = set()
    for place in np.argsort(positions, kind="stable"):
        if not planes or positions[place] - planes[-1].position > _SAME_PLANE:
            planes.append(_Drawn(float(positions[place]), []))
            seen = set()
        outline = np.round(np.delete(contours[place], axis, axis=1), _DECIMALS)
        key = outline.tobytes()
        if key not in seen:
            seen.add(key)
            planes[-1].contours.append(outline)
    return planes


def _chosen(planes: Sequence[_Drawn], count: int) -> dict[int, _Drawn]:
    """For each image plane that a drawn plane is nearest to, the nearest drawn plane; the lower of two as near."""
    chosen: dict[int, _Drawn] = {}
    for drawn in planes:
        number = math.ceil(drawn.position - 0.5 - 1e-3)
        if not 0 <= number < count:
            continue
        other = chosen.get(number)
        if other is None or abs(drawn.position - number) < abs(other.position - number) - 1e-3:
            chosen[number] = drawn
    return chosen


def _fill(plane: NDArray[np.uint8], contours: Sequence[Points], crossings: int) -> int:
    """Sets the pixels of [U, V] whose centres the contours enclose; returns what is left of ``crossings``."""
    points = np.concatenate(contours)
    low = np.clip(np.ceil(points.min(axis=0)), 0, plane.shape).astype(int)
    high = np.clip(np.ceil(points.max(axis=0)), 0, plane.shape).astype(int)
    width, height = high - low
    if width <= 0 or height <= 0:
        return crossings
    # One place more than pixels: an edge to the right of the last pixel turns none.
    turns = np.zeros(height * (width + 1), dtype=np.uint8)
    for rows, columns in _crossings(contours, low, high):
        crossings -= len(rows)
        if crossings < 0:
            raise TooManyCrossingsError
        turns ^= (np.bincount(rows * (width + 1) + columns, minlength=len(turns)) & 1).astype(np.uint8)
    inside = np.bitwise_xor.accumulate(turns.reshape(height, width + 1), axis=1)
    plane[low[0] : high[0], low[1] : high[1]] = inside[:, :-1].T
    return crossings


def _crossings(
    contours: Sequence[Points], low: NDArray[np.int_], high: NDArray[np.int_]
) -> Iterator[tuple[NDArray[np.int_], NDArray[np.int_]]]:
    """Where edges cross rows of pixel centres: row, and first column whose centre is not left of the edge."""
    starts = np.concatenate(contours)
    ends = np.concatenate([np.roll(contour, -1, axis=0) for contour in contours])
    # Every edge upwards: the same numbers come out whichever way round a contour was drawn.
    upwards = (starts[:, 1] <= ends[:, 1])[:, None]
    lower, upper = np.where(upwards, starts, ends), np.where(upwards, ends, starts)
    first = np.clip(np.ceil(lower[:, 1]), low[1], high[1]).astype(int)
    count = np.clip(np.ceil(upper[:, 1]), low[1], high[1]).astype(int) - first
    kept = np.flatnonzero(count > 0)
    lower, upper, first, count = lower[kept], upper[kept], first[kept], count[kept]
    total = np.cumsum(count)
    begin = 0
    while begin < len(count):
        spent = total[begin - 1] if begin else 0
        end = max(begin + 1, int(np.searchsorted(total, spent + _CROSSINGS_AT_ONCE, side="right")))
        part = slice(begin, end)
        edge = np.repeat(np.arange(begin, end), count[part])
        row = np.arange(len(edge)) - (total[edge] - count[edge] - spent) + first[edge]
        slope = (upper[edge, 0] - lower[edge, 0]) / (upper[edge, 1] - lower[edge, 1])
        column = np.ceil(np.round(lower[edge, 0] + (row - lower[edge, 1]) * slope, _DECIMALS))
        yield row - low[1], np.clip(column, low[0], high[0]).astype(int) - low[0]
        begin = end


def _fill_gaps(planes: NDArray[np.uint8], positions: dict[int, float], spacing: float, across: Sequence[float]) -> None:
    """Interpolates image planes between drawn ones where those lie at a regular distance above the image's own."""
    numbers = sorted(positions)
    gaps = np.diff([positions[number] for number in numbers])
    if len(gaps) < 2:
        return
    widest = min(_IRREGULAR * float(np.median(gaps)), _WIDEST_GAP_MM / spacing)
    for below, above, gap in zip(numbers, numbers[1:], gaps, strict=False):
        if above - below > 1 and gap <= widest:
            _interpolate(planes, below, above, positions, across)


def _interpolate(
    planes: NDArray[np.uint8], below: int, above: int, positions: dict[int, float], across: Sequence[float]
) -> None:
    united = np.argwhere(planes[below] | planes[above])
    if not len(united):
        return
    low, high = united.min(axis=0), united.max(axis=0) + 1
    box = (slice(low[0], high[0]), slice(low[1], high[1]))
    first, last = (_signed_distance(planes[number][box], across) for number in (below, above))
    for number in range(below + 1, above):
        share = (number - positions[below]) / (positions[above] - positions[below])
        planes[number][box] = (1 - share) * first + share * last > 0


def _signed_distance(outline: NDArray[np.uint8], across: Sequence[float]) -> NDArray[np.float64]:
    """Millimetres to the other side, positive inside; where there is no inside, farther off than the box is wide."""
    padded = np.pad(outline, 1)
    inside = ndimage.distance_transform_edt(padded, across)
    outside = ndimage.distance_transform_edt(1 - padded, across) if outline.any() else np.full(padded.shape, np.inf)
    signed: NDArray[np.float64] = (inside - outside)[1:-1, 1:-1]
    return signed
