"""The mean anatomy of patients in the coordinates of templates, to see what a template has learned.

I J K voxels of a template.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from parametrium.data.cache import PreparedPatient, PreparedVolume
from parametrium.data.lattice import Spacing
from parametrium.model.windows import Grid

SEEN = 0.5
"""A cell counts for a volume when at least this share of it is body, and for a mean when it counts for this share."""


class MeanAnatomy(NamedTuple):
    """What patients of one modality have in common.

    Attributes:
        image: [I, J, K] mean prepared intensity over the patients that have body there; 0 where none has.
        body: [I, J, K] bool, at least half of the patients have body there.
        patients: how many.
    """

    image: Tensor
    body: Tensor
    patients: int


def in_box(volume: PreparedVolume, grid: Grid) -> tuple[Tensor, Tensor]:
    """A volume averaged into the cells that divide its body's box evenly.

    Returns:
        [I, J, K] mean intensity and share of body of each cell.
    """
    low, high = volume.box
    extent = (high[0] - low[0], high[1] - low[1], high[2] - low[2])
    image, body = volume.read(low, extent)
    both = torch.stack([torch.from_numpy(image), torch.from_numpy(body).float()])
    cells = F.adaptive_avg_pool3d(both[None], grid)[0]
    return cells[0], cells[1]


def mean_anatomy(patients: Sequence[PreparedPatient], modality: str, grid: Grid) -> MeanAnatomy:
    """Mean over the first volume of that modality of each patient that has one; holds one volume at a time."""
    total, seen, number = torch.zeros(grid), torch.zeros(grid), 0
    for patient in patients:
        volume = next((v for v in patient.volumes if v.modality == modality), None)
        if volume is None:
            continue
        image, share = in_box(volume, grid)
        total += image * (share >= SEEN)
        seen += share >= SEEN
        number += 1
    return MeanAnatomy(total / seen.clamp(min=1), seen >= max(SEEN * number, 1), number)


def agreement(template: Tensor, anatomy: MeanAnatomy) -> float:
    """Pearson correlation with the mean anatomy over the cells that are body; nan where either is constant."""
    pair = torch.stack([template[anatomy.body], anatomy.image[anatomy.body]]).double()
    return float(torch.corrcoef(pair)[0, 1])


def mean_cell_mm(patients: Sequence[PreparedPatient], modality: str, grid: Grid, spacing_mm: Spacing) -> Spacing:
    """Mean edges of a template's cells in millimetres; the voxel's own where no patient has the modality."""
    sizes = [
        [(b - a) * mm / n for a, b, mm, n in zip(*volume.box, spacing_mm, grid, strict=True)]
        for patient in patients
        for volume in patient.volumes
        if volume.modality == modality
    ]
    if not sizes:
        return spacing_mm
    i, j, k = torch.tensor(sizes).mean(0).tolist()
    return i, j, k
