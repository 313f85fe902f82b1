"""The monitors on held-out patients: where the model looks and how its features spread, without a label.

N crops, C channels.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from itertools import combinations

import numpy as np
import torch
from torch import Tensor

from parametrium.config import JobConfig
from parametrium.data.cache import PreparedPatient
from parametrium.evaluation.crops import volume_crops
from parametrium.evaluation.features import Features, Vector, compared_features, standardised
from parametrium.monitor.attention import attention_numbers
from parametrium.monitor.collapse import alignment, rankme, spread, uniformity
from parametrium.monitor.rollout import watched_rollout
from parametrium.objectives.registry import PretrainingModel

FEWEST_PATIENTS = 4
"""Patients with two modalities below which alignment and uniformity are noise and are left out."""


@torch.no_grad()
def measure_monitors(
    model: PretrainingModel, held_out: Sequence[PreparedPatient], job: JobConfig, site: str
) -> dict[str, float]:
    """Attention and collapse numbers, of the same crops in every round.

    Args:
        model: in evaluation mode, on one device.
        held_out: patients that were never trained on.
        job: crop, seed, number of crops.
        site: name of the site.

    Returns:
        ``monitor/volumes``; ``monitor/attention/<number>``, see ``attention_numbers``, means over the crops of a volume
        and then over the volumes; ``monitor/features/rankme`` and ``/spread`` of the pooled features of all crops, and
        ``/alignment`` and ``/uniformity`` of a patient's modalities, see ``monitor.collapse``. What is not finite or
        has too little to stand on is left out.
    """
    if not job.evaluation.monitors:
        return {}
    numbers: defaultdict[str, list[float]] = defaultdict(list)
    pooled: list[Tensor] = []
    by_key: defaultdict[tuple[int, str], list[Vector]] = defaultdict(list)
    device = next(model.parameters()).device
    encoder, spacing = model.encoder, job.preparation.spacing_mm
    for item in volume_crops(held_out, job, site, "monitor"):
        batch = item.batch.to(device)
        found, tokens = watched_rollout(encoder, batch.images, batch.modality, spacing)
        for name, values in attention_numbers(found, batch.images, batch.body, encoder.shape.patch).items():
            numbers[name].append(float(values.nanmean()))
        crops = tokens.float().cpu()
        pooled.append(crops)
        by_key[item.patient, item.modality].append(crops.mean(0).numpy())
    if not pooled:
        return {}
    scalars = {f"monitor/attention/{name}": _mean(values) for name, values in numbers.items()}
    scalars["monitor/volumes"] = float(len(pooled))
    features = torch.cat(pooled)
    if bool(features.isfinite().all()):  # a singular value decomposition of anything else raises
        scalars |= {"monitor/features/rankme": rankme(features), "monitor/features/spread": spread(features)}
        vectors: Features = {key: np.mean(own, axis=0, dtype=np.float32) for key, own in by_key.items()}
        scalars |= {f"monitor/features/{name}": value for name, value in _pairs(model, vectors, job).items()}
    return {name: value for name, value in scalars.items() if math.isfinite(value)}


def _pairs(model: PretrainingModel, vectors: Features, job: JobConfig) -> dict[str, float]:
    """Alignment of a patient's modalities and uniformity, in the space where the model compares patients.

    Each modality is centred and scaled by the held-out patients themselves: otherwise the distance between modalities
    would hide that between patients.
    """
    modalities = [m for m in job.modalities if sum(key[1] == m for key in vectors) >= FEWEST_PATIENTS]
    kept = {key: vector for key, vector in vectors.items() if key[1] in modalities}
    patients = sorted({p for p, _ in kept})
    pairs = [(p, a, b) for p in patients for a, b in combinations(modalities, 2) if (p, a) in kept and (p, b) in kept]
    if len({p for p, _, _ in pairs}) < FEWEST_PATIENTS:
        return {}
    compared = {k: torch.from_numpy(v) for k, v in compared_features(model, standardised(kept, kept)).items()}
    one = torch.stack([compared[p, a] for p, a, _ in pairs])
    other = torch.stack([compared[p, b] for p, _, b in pairs])
    every = torch.stack([compared[key] for key in sorted(compared)])
    return {"alignment": alignment(one, other), "uniformity": uniformity(every)}


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if math.isfinite(value)]
    return sum(known) / len(known) if known else math.nan
