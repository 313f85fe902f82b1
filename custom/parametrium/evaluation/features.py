"""Frozen features of patients, and two controls that know nothing of anatomy.

N crops, C channels.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from parametrium.config import JobConfig
from parametrium.data.batch import Batch
from parametrium.data.cache import PreparedPatient
from parametrium.evaluation.crops import volume_crops
from parametrium.objectives.contrastive import SoftContrastive
from parametrium.objectives.registry import PretrainingModel

Vector = NDArray[np.float32]
Features = dict[tuple[int, str], Vector]
"""(patient, modality) to one vector."""

Extractor = Callable[[Batch], torch.Tensor]
"""[N crops] to [N, C]."""

RELATIVE_FLOOR = 0.1
"""Smallest deviation that a channel is divided by, as a share of the channels' root mean square."""

COARSE = 6
"""Controls see a crop as so many blocks along each axis (PROOF: 6^3)."""


def encoder_features(model: PretrainingModel, job: JobConfig) -> Extractor:
    """Pooled patch tokens of the whole crop; no mask, no head."""
    device = next(model.parameters()).device

    def extract(batch: Batch) -> torch.Tensor:
        moved = batch.to(device)
        return model.encoder.encode(moved.images, moved.modality, job.preparation.spacing_mm).pooled.float().cpu()

    return extract


@torch.no_grad()
def compared_features(model: PretrainingModel, features: Features) -> Features:
    """Standardised features in the space where the model compares patients: behind the contrastive objective's head.

    A model that was never asked to compare patients has no such head; its features stay as they are.
    """
    if SoftContrastive.kind not in model.objectives:
        return features
    head = model.objective(SoftContrastive.kind)
    device = next(model.parameters()).device
    project = cast(SoftContrastive, head).project
    return {key: project(torch.from_numpy(v)[None].to(device))[0].cpu().numpy() for key, v in features.items()}


def body_mask_features(batch: Batch) -> torch.Tensor:
    """Where the body is, as coarse blocks: what the field of view alone gives away."""
    return F.adaptive_avg_pool3d(batch.body.float(), COARSE).flatten(1)


def voxel_features(batch: Batch) -> torch.Tensor:
    """Downsampled intensities."""
    return F.adaptive_avg_pool3d(batch.images, COARSE).flatten(1)


@torch.no_grad()
def patient_features(
    patients: Sequence[PreparedPatient], extractors: Mapping[str, Extractor], job: JobConfig, site: str, purpose: str
) -> dict[str, Features]:
    """One vector a patient and modality: the mean over its random crops.

    Several volumes of one modality (studies over a treatment) are averaged.

    Returns:
        By extractor name.
    """
    collected: dict[str, dict[tuple[int, str], list[Vector]]] = {name: {} for name in extractors}
    for item in volume_crops(patients, job, site, purpose, inner=True):
        for name, extract in extractors.items():
            vector = extract(item.batch).mean(0).numpy()
            collected[name].setdefault((item.patient, item.modality), []).append(vector)
    return {
        name: {key: np.mean(vectors, axis=0, dtype=np.float32) for key, vectors in by_key.items()}
        for name, by_key in collected.items()
    }


def standardised(features: Features, reference: Features) -> Features:
    """Features centred and scaled by the reference patients' mean and deviation in the same modality.

    Pooled tokens of an untrained network have cosine 1 with each other; the difference between patients is what counts.
    """
    result: Features = {}
    for modality in {m for _, m in features}:
        rows = [vector for (_, m), vector in reference.items() if m == modality]
        mean = np.mean(rows, axis=0) if rows else np.float32(0)
        deviation = np.std(rows, axis=0) if len(rows) > 1 else np.float32(1)
        # A channel that hardly differs between patients holds noise; it must not be blown up to the others' size.
        floor = RELATIVE_FLOOR * np.sqrt(np.mean(np.square(deviation))) + 1e-6
        for key, vector in features.items():
            if key[1] == modality:
                result[key] = ((vector - mean) / np.maximum(deviation, floor)).astype(np.float32)
    return result
