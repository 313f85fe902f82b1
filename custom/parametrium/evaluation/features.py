"""Frozen features of patients, and two controls that know nothing of anatomy.

N crops, C channels.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from parametrium.config import JobConfig
from parametrium.data.batch import Batch
from parametrium.data.cache import PreparedPatient
from parametrium.evaluation.crops import volume_crops
from parametrium.objectives.contrastive import SoftContrastive
from parametrium.objectives.filling import encode_templates
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


class VolumeFeature(NamedTuple):
    """What one volume looks like.

    Attributes:
        patient: index in the sequence of patients.
        modality: its modality.
        day: days since the patient's own reference date.
        vector: [C].
    """

    patient: int
    modality: str
    day: int
    vector: Vector


@torch.no_grad()
def volume_features(
    patients: Sequence[PreparedPatient], extractors: Mapping[str, Extractor], job: JobConfig, site: str, purpose: str
) -> dict[str, list[VolumeFeature]]:
    """One vector a volume, the mean over its random crops, by extractor name."""
    found: dict[str, list[VolumeFeature]] = {name: [] for name in extractors}
    for item in volume_crops(patients, job, site, purpose, inner=True):
        for name, extract in extractors.items():
            vector = extract(item.batch).mean(0).numpy()
            found[name].append(VolumeFeature(item.patient, item.modality, item.day, vector))
    return found


@torch.no_grad()
def template_features(
    patients: Sequence[PreparedPatient], model: PretrainingModel, job: JobConfig, site: str, purpose: str
) -> list[VolumeFeature]:
    """For every modality that a patient lacks, one vector of its template in the place of the first volume's crops."""
    device, modalities = next(model.parameters()).device, job.modalities
    lacking = [[m for m in modalities if all(m != v.modality for v in patient.volumes)] for patient in patients]
    # Crops are read for the volumes that are asked for: of a patient who has everything, none.
    asked = [replace(p, volumes=p.volumes[: bool(lacks)]) for p, lacks in zip(patients, lacking, strict=True)]
    found: list[VolumeFeature] = []
    for item in volume_crops(asked, job, site, purpose, inner=True):
        batch = item.batch.to(device)
        for name in lacking[item.patient]:
            modality = torch.full_like(batch.modality, modalities.index(name))
            place = modality, batch.corner, batch.box, job.crop
            pooled = encode_templates(model.encoder, *place, job.preparation.spacing_mm).pooled
            found.append(VolumeFeature(item.patient, name, item.day, pooled.float().mean(0).cpu().numpy()))
    return found


def patient_means(volumes: Sequence[VolumeFeature]) -> Features:
    """One vector a patient and modality; several volumes of one modality (studies over a treatment) are averaged."""
    collected: dict[tuple[int, str], list[Vector]] = {}
    for volume in volumes:
        collected.setdefault((volume.patient, volume.modality), []).append(volume.vector)
    return {key: np.mean(vectors, axis=0, dtype=np.float32) for key, vectors in collected.items()}


def patient_features(
    patients: Sequence[PreparedPatient], extractors: Mapping[str, Extractor], job: JobConfig, site: str, purpose: str
) -> dict[str, Features]:
    """``patient_means`` of ``volume_features``, by extractor name."""
    found = volume_features(patients, extractors, job, site, purpose)
    return {name: patient_means(volumes) for name, volumes in found.items()}


def standardised(features: Features, reference: Features) -> Features:
    """Features centred and scaled by the reference patients' mean and deviation in the same modality.

    Pooled tokens of an untrained network have cosine 1 with each other; the difference between patients is what counts.
    """
    scales = _scales(reference)
    return {key: _scaled(vector, scales.get(key[1])) for key, vector in features.items()}


def standardised_volumes(volumes: Sequence[VolumeFeature], reference: Features) -> list[VolumeFeature]:
    """The same for each volume by itself."""
    scales = _scales(reference)
    return [volume._replace(vector=_scaled(volume.vector, scales.get(volume.modality))) for volume in volumes]


def _scales(reference: Features) -> dict[str, tuple[Vector, Vector]]:
    """Mean and divisor of each modality that the reference patients have."""
    scales = {}
    for modality in {m for _, m in reference}:
        rows = [vector for (_, m), vector in reference.items() if m == modality]
        deviation = np.std(rows, axis=0) if len(rows) > 1 else np.ones_like(rows[0])
        # A channel that hardly differs between patients holds noise; it must not be blown up to the others' size.
        floor = RELATIVE_FLOOR * np.sqrt(np.mean(np.square(deviation))) + 1e-6
        scales[modality] = np.mean(rows, axis=0), np.maximum(deviation, floor)
    return scales


def _scaled(vector: Vector, scale: tuple[Vector, Vector] | None) -> Vector:
    return vector if scale is None else ((vector - scale[0]) / scale[1]).astype(np.float32)
