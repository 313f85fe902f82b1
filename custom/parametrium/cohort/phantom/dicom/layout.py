"""How a scanner lays a volume out in planes: rows, columns, order and patient coordinates.

Patient coordinates belong to the patient: x grows to her left, y to her back, z to her head, however she lies (DICOM
PS3.3 C.7.6.2.1.1). Patient Position (C.7.3.1.1.2) says how these axes lie in the machine, so a machine that draws its
rows from left to right and its columns downwards, towards the floor, lays the same patient out in other patient
directions when she lies otherwise. CT and PET do that here; MR lays its planes out by the patient, head up.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Orientation = Literal["axial", "sagittal", "coronal"]
Position = Literal["HFS", "FFS", "HFP", "FFP", "HFDR", "HFDL", "FFDR", "FFDL"]

_AXIS: dict[Orientation, int] = {"sagittal": 0, "coronal": 1, "axial": 2}
_DOWN = {"S": (0, 1, 0), "P": (0, -1, 0), "DR": (-1, 0, 0), "DL": (1, 0, 0)}
"""The patient's side that is down: back, front, right or left, in LPS."""
_LPS = np.diag([-1.0, -1.0, 1.0])


@dataclass(frozen=True)
class Planes:
    """A volume as planes in the order of acquisition.

    Attributes:
        values: [N, R, C]: planes, rows, columns.
        positions: [N, 3] centre of each plane's first voxel, LPS mm.
        row: [3] unit vector along which the column index grows, LPS.
        column: [3] unit vector along which the row index grows, LPS.
        spacing: mm between rows, between columns.
        step: mm between planes.
    """

    values: NDArray[Any]
    positions: NDArray[np.float64]
    row: NDArray[np.float64]
    column: NDArray[np.float64]
    spacing: tuple[float, float]
    step: float


def machine_axes(position: Position) -> NDArray[np.float64]:
    """[3, 3] columns in LPS: to the right of one who faces the gantry, down, into the gantry.

    Args:
        position: Patient Position, C.7.3.1.1.2: head or feet first (HF, FF), then supine, prone or the side that is
            down (S, P, DR, DL).
    """
    into = np.array([0, 0, 1 if position.startswith("HF") else -1])
    down = np.array(_DOWN[position[2:]])
    return np.column_stack([np.cross(down, into), down, into]).astype(np.float64)


def lay_out(
    values: NDArray[Any],
    affine: NDArray[np.float64],
    orientation: Orientation,
    position: Position = "HFS",
    *,
    backwards: bool = False,
) -> Planes:
    """Cuts a volume into planes as a scanner would.

    Planes that the bore passes through have rows to the right and columns down, in the machine. Planes that lie along
    the bore have columns out of it, and rows down where they stand and to the right where they lie.

    Args:
        values: [I, J, K].
        affine: [4, 4] voxel to RAS+ mm; any orthogonal directions.
        orientation: of the planes, in the patient: across the voxel axis that is closest to z, x or y.
        position: how she lies; "HFS" also for a machine that goes by the patient.
        backwards: the planes follow each other against their normal instead of along it.
    """
    axes = _LPS @ affine[:3, :3]
    lengths = np.linalg.norm(axes, axis=0)
    in_machine = machine_axes(position).T @ (axes / lengths)
    across = int(np.argmax(np.abs(axes[_AXIS[orientation]] / lengths)))
    along_row, along_column = _in_plane(in_machine, across)
    flips = {along_row: _flipped(in_machine, along_row), along_column: _flipped(in_machine, along_column)}
    directions = axes / lengths * [-1 if flips.get(axis, False) else 1 for axis in range(3)]
    row, column = directions[:, along_row], directions[:, along_column]
    flips[across] = bool(np.cross(row, column) @ axes[:, across] < 0) != backwards
    first = np.array([size - 1 if flips[axis] else 0 for axis, size in enumerate(values.shape)])
    origin = _LPS @ (affine[:3, :3] @ first + affine[:3, 3])
    stepping = axes[:, across] * (-1 if flips[across] else 1)
    turned = np.flip(values, tuple(axis for axis, flipped in flips.items() if flipped))
    return Planes(
        values=np.ascontiguousarray(turned.transpose(across, along_column, along_row)),
        positions=origin + np.arange(values.shape[across])[:, None] * stepping,
        row=row,
        column=column,
        spacing=(float(lengths[along_column]), float(lengths[along_row])),
        step=float(lengths[across]),
    )


def _in_plane(in_machine: NDArray[np.float64], across: int) -> tuple[int, int]:
    """Voxel axes of rows and columns: columns leave the bore where they can, else they go down."""
    one, other = (axis for axis in range(3) if axis != across)
    weight = np.abs(in_machine)
    upright = 2 if max(weight[2, one], weight[2, other]) > np.sqrt(0.5) else 1
    return (other, one) if weight[upright, one] > weight[upright, other] else (one, other)


def _flipped(in_machine: NDArray[np.float64], axis: int) -> bool:
    """Whether a voxel axis runs to the left, up or into the bore, against what an image's row or column does."""
    main = int(np.argmax(np.abs(in_machine[:, axis])))
    return bool((in_machine[main, axis] < 0) != (main == 2))
