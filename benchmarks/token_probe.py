"""What single patch tokens hold: how well frozen tokens tell which patches are mostly one structure.

N crops, L patches, S structures, C channels.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from sklearn.metrics import average_precision_score
from torch import Tensor, nn

from parametrium.config import JobConfig
from parametrium.evaluation.segmentation import Labelled, labelled_crop
from parametrium.model.encoder import Encoder
from parametrium.model.patch_embed import patchify

Scores = dict[str, dict[str, float]]
"""Arm to measure to score."""

RIDGE = 0.03
"""Of the ridge regression, on standardised features."""

Crops = tuple[Tensor, Tensor]
"""[N, D, H, W] images, and [N, L, S] the share of every patch that is of each structure."""


def crops_of(
    rng: np.random.Generator, samples: Sequence[Labelled], job: JobConfig, each: int, structures: int
) -> Crops:
    """So many random crops of each sample."""
    drawn = [labelled_crop(rng, sample, job.crop) for sample in samples for _ in range(each)]
    images, labels = (torch.from_numpy(np.stack(part)) for part in zip(*drawn, strict=True))
    patches = patchify(labels.float(), job.model.patch)
    return images, torch.stack([(patches == n + 1).float().mean(-1) for n in range(structures)], dim=-1)


def layers_of(encoder: Encoder, images: Tensor, modality: int, job: JobConfig) -> Tensor:
    """[N, L, 3 C] tokens before, amid and after the blocks, side by side."""
    kind, depth = torch.full((len(images),), modality), encoder.shape.depth
    begin = encoder.tokens(images, kind, job.preparation.spacing_mm)
    return torch.cat(encoder.intermediate(begin, (0, depth // 2, depth)), dim=-1)


def token_probe(
    encoders: Mapping[str, Encoder | None],
    segmenters: Mapping[str, nn.Module],
    crops: tuple[Crops, Crops],
    modality: int,
    job: JobConfig,
    structures: Sequence[str],
) -> Scores:
    """Average precision of patches that are mostly one structure.

    Args:
        encoders: their frozen tokens, read by one ridge regression on the first crops; None: the patches' own voxels.
        segmenters: networks that give a voxel's structure; their mean probability in a patch needs no ridge.
        crops: of the patients with masks, and of those that are tested.
        modality: index in the job's modalities.
        job: patch, spacing.
        structures: S names.
    """
    (images, shares), (unseen, true) = crops
    wanted, found = shares.flatten(0, 1), (true.flatten(0, 1) > 0.5).numpy()
    results: Scores = {}
    for name, encoder in encoders.items():

        def features(few: Tensor, encoder: Encoder | None = encoder) -> Tensor:
            return patchify(few, job.model.patch) if encoder is None else layers_of(encoder, few, modality, job)

        ranked = ridge(in_parts(features, images), wanted, in_parts(features, unseen))
        results[name] = precision(ranked, found, structures)
    for name, network in segmenters.items():

        def probabilities(few: Tensor, network: nn.Module = network) -> Tensor:
            by_structure = network(few[:, None]).softmax(1)[:, 1:].unbind(1)
            return torch.stack([patchify(map_, job.model.patch).mean(-1) for map_ in by_structure], dim=-1)

        results[name] = precision(in_parts(probabilities, unseen), found, structures)
    return results


@torch.no_grad()
def in_parts(function: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """[N L, ...] what a function gives for crops [N, D, H, W], a few at a time."""
    return torch.cat([function(few).flatten(0, 1) for few in images.split(8)])


def ridge(known: Tensor, wanted: Tensor, asked: Tensor) -> Tensor:
    """What a ridge regression from features to shares says of other features, both standardised by the first."""
    mean, deviation = known.mean(0), known.std(0) + 1e-3
    known, asked = (known - mean) / deviation, (asked - mean) / deviation
    gram = known.T @ known / len(known) + RIDGE * torch.eye(known.shape[1])
    return asked @ torch.linalg.solve(gram, known.T @ (wanted - wanted.mean(0)) / len(known))


def precision(ranked: Tensor, found: np.ndarray, structures: Sequence[str]) -> dict[str, float]:
    """Average precision by structure, and their mean."""
    scores = {
        name: float(average_precision_score(found[:, n], ranked[:, n].numpy())) for n, name in enumerate(structures)
    }
    return scores | {"mean": statistics.mean(scores.values())}
