"""Masked reconstruction of held-out patients, beside two predictors that learned nothing.

B crops, L patches, Q masked, V voxels of a patch.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from parametrium.config import JobConfig
from parametrium.data.cache import PreparedPatient
from parametrium.evaluation.crops import volume_crops
from parametrium.model.masking import draw_mask
from parametrium.model.patch_embed import gather, patch_grid, patchify
from parametrium.objectives.reconstruction import MaskedReconstruction
from parametrium.objectives.registry import PretrainingModel
from parametrium.objectives.target import counting_patches, patch_errors, standardise


@torch.no_grad()
def reconstruction_errors(
    models: Mapping[str, PretrainingModel],
    held_out: Sequence[PreparedPatient],
    means: Mapping[str, float],
    job: JobConfig,
    site: str,
) -> dict[str, float]:
    """Mean squared error over masked patches in the body, on the scale of the job's target.

    Every predictor answers for the same crops, masks and patches: each model; ``modality_mean``, the training patients'
    mean intensity of that modality; ``neighbour_mean``, the mean of the visible patches around.

    Args:
        models: by name, in evaluation mode, on the CPU or one GPU.
        held_out: patients that were never trained on.
        means: modality to mean body intensity of the training patients.
        job: crop, seed, patch.
        site: name of the site.

    Returns:
        ``evaluation/reconstruction/<modality>/<predictor>`` and ``evaluation/reconstruction_volumes/<modality>``;
        empty where the job has no masked reconstruction.
    """
    if not any(config.kind == "masked_reconstruction" for config in job.objectives):
        return {}
    sums: defaultdict[str, float] = defaultdict(float)
    patches_seen: defaultdict[str, int] = defaultdict(int)
    volumes: defaultdict[str, int] = defaultdict(int)
    generator = torch.Generator().manual_seed(job.seed)
    for item in volume_crops(held_out, job, site, "reconstruction"):
        any_model = next(iter(models.values()))
        device = next(any_model.parameters()).device
        patch = any_model.encoder.shape.patch
        batch = item.batch.to(device)
        patches, body = patchify(batch.images, patch), patchify(batch.body, patch)
        grid, asked = patch_grid(batch.images, patch), _objective(any_model)
        visible, masked = draw_mask(len(patches), grid, asked.mask_ratio, generator, asked.mask_unit)
        hidden = masked.to(device)
        counting = counting_patches(gather(body, hidden))
        true = gather(patches, hidden)
        target = standardise(true, true, asked.target)
        trivial = {
            "modality_mean": torch.full_like(true, means[item.modality]),
            "neighbour_mean": neighbour_mean(patches, visible.to(device), hidden, grid)[..., None].expand_as(true),
        }
        errors = {name: patch_errors(standardise(guess, true, asked.target), target) for name, guess in trivial.items()}
        for name, model in models.items():
            predicted, _ = _objective(model).predict(model.encoder, batch.images, batch.modality, visible, masked)
            errors[name] = patch_errors(predicted, target)
        for name, error in errors.items():
            sums[f"evaluation/reconstruction/{item.modality}/{name}"] += float(error[counting].sum())
        patches_seen[item.modality] += int(counting.sum())
        volumes[item.modality] += 1
    scalars = {name: total / seen for name, total in sums.items() if (seen := patches_seen[name.split("/")[2]])}
    scalars |= {f"evaluation/reconstruction_volumes/{name}": float(n) for name, n in volumes.items()}
    return scalars


def neighbour_mean(patches: Tensor, visible: Tensor, masked: Tensor, grid: tuple[int, int, int]) -> Tensor:
    """Mean of the visible patches among the 26 neighbours; of all visible patches where none of them is.

    Args:
        patches: [B, L, V].
        visible: [B, K].
        masked: [B, Q].
        grid: patches along D, H, W.

    Returns:
        [B, Q].
    """
    means = patches.mean(-1)
    seen = torch.zeros_like(means).scatter_(1, visible, 1.0)
    kernel = torch.ones(1, 1, 3, 3, 3, device=patches.device)
    stacked = torch.stack([means * seen, seen]).flatten(0, 1).reshape(-1, 1, *grid)
    around = F.conv3d(stacked, kernel, padding=1).reshape(2, len(means), -1)
    total, number = around[0].gather(1, masked), around[1].gather(1, masked)
    overall = (means * seen).sum(1, keepdim=True) / seen.sum(1, keepdim=True)
    return torch.where(number > 0, total / number.clamp(min=1), overall.expand_as(total))


def modality_means(training: Sequence[PreparedPatient], job: JobConfig, site: str) -> dict[str, float]:
    """Mean body intensity of each of the job's modalities in crops of the training patients; 0 where there is none."""
    sums: defaultdict[str, float] = defaultdict(float)
    voxels: defaultdict[str, int] = defaultdict(int)
    for item in volume_crops(training, job, site, "means"):
        sums[item.modality] += float(item.batch.images[item.batch.body].double().sum())
        voxels[item.modality] += int(item.batch.body.sum())
    return {name: sums[name] / max(voxels[name], 1) for name in job.modalities}


def _objective(model: PretrainingModel) -> MaskedReconstruction:
    objective = model.objective("masked_reconstruction")
    if not isinstance(objective, MaskedReconstruction):
        raise TypeError("masked_reconstruction is registered with another class")
    return objective
