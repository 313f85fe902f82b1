"""Rigid transforms as the tables hold them: 12 numbers, blank separated, a row-major 3x4 matrix in RAS+ millimetres."""

import math
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Rigid: TypeAlias = tuple[float, ...]
"""12 numbers: three rows of a rotation's row and a shift."""

IDENTITY: Rigid = (1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0)

_TOLERANCE = 1e-4  # of a rotation's products: over a body of 500 mm it is 0.05 mm
_LONGEST_MM = 1e5  # no couch drives farther
_DECIMALS = 9  # a turn of 1e-9 moves a body that lies 3 m from the world's origin by 3 nm


def parse_rigid(cell: str) -> Rigid:
    """The transform of a table's cell; the identity for an empty one.

    Raises:
        ValueError: not 12 finite numbers, or not a rotation (orthonormal within 1e-4, determinant +1) and a shift of
            less than 100 m.
    """
    if not cell:
        return IDENTITY
    rigid = tuple(float(word) for word in cell.split())
    if len(rigid) != len(IDENTITY) or not all(abs(value) < _LONGEST_MM for value in rigid):
        raise ValueError("not 12 finite numbers of a sensible size")
    turn = np.reshape(rigid, (3, 4))[:, :3]
    if np.abs(turn @ turn.T - np.eye(3)).max() > _TOLERANCE or np.linalg.det(turn) < 0:
        raise ValueError("not a rotation")
    return rigid


def format_rigid(rigid: Rigid) -> str:
    """The cell of a transform; empty for the identity."""
    return "" if rigid == IDENTITY else " ".join(f"{value:.{_DECIMALS}f}".rstrip("0").rstrip(".") for value in rigid)


def rigid_of(matrix: NDArray[np.float64]) -> Rigid:
    """The numbers of a matrix [4, 4], rounded as a table holds them, so that writing and reading change nothing."""
    return tuple(round(float(value), _DECIMALS) + 0.0 for value in matrix[:3].ravel())


def matrix_of(rigid: Rigid) -> NDArray[np.float64]:
    """[4, 4] of a transform."""
    return np.vstack([np.reshape(rigid, (3, 4)), (0.0, 0.0, 0.0, 1.0)])


def composed(outer: Rigid, inner: Rigid) -> Rigid:
    """First ``inner``, then ``outer``."""
    return rigid_of(matrix_of(outer) @ matrix_of(inner))


def turn_degrees(matrix: NDArray[np.float64]) -> float:
    """Angle of a rigid matrix [4, 4] about whatever axis."""
    turn = matrix[:3, :3]
    # By sine and cosine: the cosine alone knows no angle below a thousandth of a degree.
    sine = np.linalg.norm((turn[2, 1] - turn[1, 2], turn[0, 2] - turn[2, 0], turn[1, 0] - turn[0, 1])) / 2
    return math.degrees(math.atan2(float(sine), (float(np.trace(turn)) - 1) / 2))
