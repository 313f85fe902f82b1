"""Parallel frames one above the other, and the nearest of their voxels for each voxel of a grid."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from parametrium.cohort.dicom.facts import Grid, Slice
from parametrium.cohort.problem import Reason

SAME_PLACE_MM = 1e-2
"""Frames closer than this lie at one place."""

_ASIDE_MM = 5e-2  # how far an upright stack's frames may be off each other sideways
_PARALLEL = 1e-4
_TIE = 1e-4  # voxels or mm: centres midway between two voxels of the stack all go to the lower one


@dataclass(frozen=True, slots=True, eq=False)
class FrameStack:
    """Frames of one segment.

    Attributes:
        voxels: [F, R, C], 0 outside of the segment.
        positions: [F] mm along the normal of ``plane``, ascending; 0 lies in it.
        plane: where row and column indices count from.
        spacing_mm: between neighbouring frames where none is missing; None takes the grid's own.
    """

    voxels: NDArray[np.uint8 | np.uint16]
    positions: NDArray[np.float64]
    plane: Slice
    spacing_mm: float | None

    def only(self, label: int) -> "FrameStack":
        """The stack of one label."""
        return FrameStack((self.voxels == label).view(np.uint8), self.positions, self.plane, self.spacing_mm)


def height_of(plane: Slice, first: Slice) -> float:
    """Millimetres from ``first`` along its normal."""
    return float(np.cross(first.row, first.column) @ np.subtract(plane.position, first.position))


def is_above(plane: Slice, first: Slice) -> bool:
    """Whether a frame has the size and directions of the first one and lies right above or below it."""
    turned = np.abs(np.subtract((plane.row, plane.column), (first.row, first.column))).max()
    aside = np.abs(np.array((first.row, first.column)) @ np.subtract(plane.position, first.position)).max()
    same_size = plane.shape == first.shape and np.allclose(plane.spacing, first.spacing, rtol=_PARALLEL, atol=0)
    return bool(same_size and turned < _PARALLEL and aside < _ASIDE_MM)


def put_on_grid(stack: FrameStack, grid: Grid) -> NDArray[np.uint8] | Reason:
    """[I, J, K] of 0 and 1 by the nearest voxel; the work is bounded by the box that the segment occupies."""
    box = _occupied(stack.voxels)
    if box is None:
        return Reason.EMPTY_STRUCTURE
    matrix, start = _grid_to_stack(stack.plane, grid)
    half = (stack.spacing_mm or float(np.abs(matrix[2]).max())) / 2
    low, high = _reached(stack.positions, box, half, matrix, start, grid.shape)
    mask = np.zeros(grid.shape, dtype=np.uint8, order="F")
    if all(first < last for first, last in zip(low, high, strict=True)):
        i, j = np.ogrid[low[0] : high[0], low[1] : high[1]]
        for k in range(low[2], high[2]):
            row, column, height = (_coordinate(matrix[axis], float(start[axis]), i, j, k) for axis in range(3))
            mask[low[0] : high[0], low[1] : high[1], k] = _nearest(stack, row, column, height, half)
    return mask if mask.any() else Reason.EMPTY_STRUCTURE


def _occupied(voxels: NDArray[np.uint8 | np.uint16]) -> list[tuple[int, int]] | None:
    """First and last occupied index along each axis."""
    lines = [np.any(voxels, axis=others) for others in ((1, 2), (0, 2), (0, 1))]
    if not lines[0].any():
        return None
    places = [np.flatnonzero(line) for line in lines]
    return [(int(place[0]), int(place[-1])) for place in places]


def _grid_to_stack(plane: Slice, grid: Grid) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """[3, 3] and [3]: from the grid's voxel to row, column and millimetres along the normal."""
    to_stack = np.array([plane.column, plane.row, np.cross(plane.row, plane.column)])
    to_stack /= np.array([[plane.spacing[0]], [plane.spacing[1]], [1.0]])
    to_lps = np.diag([-1.0, -1.0, 1.0])
    start = to_stack @ (to_lps @ grid.affine[:3, 3] - plane.position)
    return to_stack @ to_lps @ grid.affine[:3, :3], start


def _reached(
    positions: NDArray[np.float64],
    box: Sequence[tuple[int, int]],
    half: float,
    matrix: NDArray[np.float64],
    start: NDArray[np.float64],
    shape: Sequence[int],
) -> tuple[list[int], list[int]]:
    """First and one after the last index of the grid that can fall into the occupied box."""
    (bottom, top), rows, columns = box
    heights = (positions[bottom] - half, positions[top] + half)
    ends = ((rows[0] - 1, rows[1] + 1), (columns[0] - 1, columns[1] + 1), heights)
    corners = np.stack(np.meshgrid(*ends, indexing="ij"), axis=-1).reshape(-1, 3)
    voxels = np.linalg.solve(matrix, (corners - start).T)
    low = [max(0, math.floor(line.min() - _TIE)) for line in voxels]
    high = [min(size, math.ceil(line.max() + _TIE) + 1) for line, size in zip(voxels, shape, strict=True)]
    return low, high


def _coordinate(
    steps: NDArray[np.float64], start: float, i: NDArray[np.int_], j: NDArray[np.int_], k: int
) -> NDArray[np.float64]:
    """One coordinate of plane k of the grid, [I, J]; a single column or row where it depends on one index only."""
    value = np.full((1, 1), start + steps[2] * k)
    for step, index in ((steps[0], i), (steps[1], j)):
        if abs(step) * index.max() > _TIE / 10:
            value = value + step * index
    return value


def _nearest(
    stack: FrameStack,
    row: NDArray[np.float64],
    column: NDArray[np.float64],
    height: NDArray[np.float64],
    half: float,
) -> NDArray[np.bool_]:
    """Whether the nearest voxel of the stack is set; False where none is near."""
    _, rows, columns = stack.voxels.shape
    midway = (stack.positions[1:] + stack.positions[:-1]) / 2
    level = np.searchsorted(midway, height - _TIE)
    r, c = (np.ceil(value - 0.5 - _TIE).astype(int) for value in (row, column))
    distance = height - stack.positions[level]
    near = (distance > -half + _TIE) & (distance <= half + _TIE)
    seen = near & (r >= 0) & (r < rows) & (c >= 0) & (c < columns)
    found = stack.voxels[level, np.clip(r, 0, rows - 1), np.clip(c, 0, columns - 1)]
    return np.asarray((found != 0) & seen)
