"""What the pictures of a site's own model are drawn from: the model, the crops of held-out patients, their windows.

D H W voxels of a crop, K visible and Q masked patches.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import permutations
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from parametrium.config import JobConfig
from parametrium.data.batch import Batch
from parametrium.data.cache import PreparedPatient, PreparedVolume
from parametrium.data.crops import Corner, Crop
from parametrium.data.loader import read_batch
from parametrium.evaluation.features import Features, encoder_features, patient_features
from parametrium.model.masking import draw_mask
from parametrium.objectives.registry import PretrainingModel
from parametrium.report.planes import Image, Item, draw_items

SHOWN = 2
"""Patients of each modality that are shown."""

PAIRS = 6
"""Ordered pairs of modalities that are shown."""

MAPPED = 32
"""Patients whose features are compared, and in the mean beside the templates."""


@dataclass(frozen=True)
class Scene:
    """What is drawn: the model in evaluation mode, the job, the site's name, its held-out patients, finished rounds."""

    model: PretrainingModel
    job: JobConfig
    site: str
    patients: Sequence[PreparedPatient]
    rounds: int = 0

    @cached_property
    def features(self) -> Features:
        """Pooled features of the first ``MAPPED`` patients, for all pictures that compare them."""
        extractor = {"model": encoder_features(self.model, self.job)}
        return patient_features(self.patients[:MAPPED], extractor, self.job, self.site, "map")["model"]

    @property
    def patch(self) -> int:
        """Edge of a patch, voxels."""
        return self.model.encoder.shape.patch

    @property
    def grid(self) -> tuple[int, int, int]:
        """Patches of a crop along D, H, W."""
        d, h, w = self.job.crop
        return (d // self.patch, h // self.patch, w // self.patch)

    def batch(self, volumes: Sequence[PreparedVolume], *corners: Corner) -> Batch:
        """One crop of each volume, on the model's device: all at one place, or each at its own."""
        nothing = np.zeros((1, len(self.job.clinical)), dtype=np.float32)
        places = corners * len(volumes) if len(corners) == 1 else corners
        crops = [Crop(volume, 0, 0, corner) for volume, corner in zip(volumes, places, strict=True)]
        return read_batch(crops, self.job, (nothing, nothing > 0)).to(next(self.model.parameters()).device)

    def mask(self, ratio: float, unit: int = 1) -> tuple[Tensor, Tensor]:
        """Visible [1, K] and masked [1, Q], in every picture the same for a ratio and a unit."""
        return draw_mask(1, self.grid, ratio, torch.Generator().manual_seed(self.job.seed), unit)

    def examples(self) -> list[tuple[int, PreparedVolume]]:
        """Of each modality the first volumes of the first patients that have it, with the patient's index."""
        found = []
        for modality in self.job.modalities:
            own = [(p, v) for p, patient in enumerate(self.patients) if (v := _first(patient, modality))]
            found += own[:SHOWN]
        return found

    def named(self) -> list[tuple[str, int, PreparedVolume]]:
        """The examples with a name each, for instance ``CT-1``: modality, and number of the patient."""
        return [(f"{volume.modality}-{patient + 1}", patient, volume) for patient, volume in self.examples()]


def central_corner(volume: PreparedVolume, extent: Corner) -> Corner:
    """First voxel of the crop around the middle of the body, moved into the volume where that is larger."""
    corner = []
    for axis, centre in enumerate(volume.foreground().mean(0)):
        first, last = volume.offset[axis], volume.offset[axis] + volume.shape[axis] - extent[axis]
        wanted = round(float(centre)) - extent[axis] // 2
        corner.append(min(max(wanted, first), last) if last >= first else (first + last) // 2)
    return (corner[0], corner[1], corner[2])


def registered_pairs(scene: Scene) -> list[tuple[int, PreparedVolume, PreparedVolume]]:
    """For every ordered pair of modalities, the first patient that has both in one frame."""
    found = []
    for first, second in permutations(scene.job.modalities, 2):
        pairs = (
            (p, a, b)
            for p, patient in enumerate(scene.patients)
            for a in patient.volumes
            for b in patient.volumes
            if (a.modality, b.modality) == (first, second) and a.frame == b.frame
        )
        found += [pair for pair in [next(pairs, None)] if pair is not None]
    return found


def pairs_shown(scene: Scene) -> Iterator[tuple[int, PreparedVolume, PreparedVolume, Batch]]:
    """The first ``PAIRS`` registered pairs, each with the crops of both in the middle of the first one's body."""
    for patient, volume, other in registered_pairs(scene)[:PAIRS]:
        yield patient, volume, other, scene.batch([volume, other], central_corner(volume, scene.job.crop))


def _first(patient: PreparedPatient, modality: str) -> PreparedVolume | None:
    return next((volume for volume in patient.volumes if volume.modality == modality), None)


def window_of(batch: Batch, row: int) -> tuple[float, float]:
    """Intensities from the darkest to the brightest hundredth of the body, so that few bright voxels do not decide."""
    inside = batch.images[row][batch.body[row]]
    values = array_of(inside if len(inside) else batch.images[row].flatten())
    low, high = (float(x) for x in np.percentile(values, (1, 99)))
    return (low, high) if high > low else (low - 0.5, low + 0.5)


def drawn_items(path: Path, items: Sequence[Item], scene: Scene, beside: int) -> bool:
    """Draws items, so many beside each other; False where there are none."""
    if not items:
        return False
    draw_items(path, items, scene.job.preparation.spacing_mm, beside)
    return True


def array_of(values: Tensor) -> Image:
    """On the CPU, float32."""
    array: Image = values.detach().float().cpu().numpy()
    return array
