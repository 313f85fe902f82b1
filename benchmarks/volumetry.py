"""The tumour's clinical variables from a few masks: the volume that a network expects, beside what the clinic noted.

Some patients' masks say where to look, and then every network is asked the same thing: how much of the volume is
tumour, the sum over voxels of its probability. That is compared with clinical rows of patients it has never seen.
Pooled features of random crops cannot answer: most crops do not show the tumour.

N crops, L patches, S structures, C channels.
"""

import itertools
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr
from token_probe import Crops, in_parts, layers_of
from torch import Tensor, nn
from torch.nn import functional as F

from parametrium.clinical.schema import encode
from parametrium.config import JobConfig
from parametrium.data.cache import PreparedPatient
from parametrium.evaluation.segmentation import FineTuning, window_logits
from parametrium.model.encoder import Encoder
from parametrium.model.patch_embed import patch_grid, patchify

DECAYS = (1e-2, 1e-3, 1e-4, 1e-5)
"""Weight decays of the logistic regression; the patients with masks choose among them."""
FOLDS = 5


class FrozenReader(nn.Module):
    """One linear map from frozen tokens (or the patches' own voxels) to structures, as a network that segments.

    Args:
        encoder: stays as it is; None: the patches' voxels.
        crops: of the patients with masks, one patient's after the other's.
        each: crops of a patient.
        modality: index in the job's modalities.
        job: patch, spacing.
    """

    def __init__(self, encoder: Encoder | None, crops: Crops, each: int, modality: int, job: JobConfig) -> None:
        super().__init__()
        self.encoder, self.modality, self.job = encoder, modality, job
        images, shares = crops
        known = in_parts(self.features, images)
        self.mean, self.deviation = known.mean(0), known.std(0) + 1e-3
        wanted = torch.cat([1 - shares.sum(-1, keepdim=True), shares], dim=-1).flatten(0, 1)
        patient = torch.arange(len(images)).div(each, rounding_mode="floor").repeat_interleave(shares.shape[1])
        self.weight, self.bias = chosen_map((known - self.mean) / self.deviation, wanted, patient % FOLDS)

    def features(self, images: Tensor) -> Tensor:
        """[N, D, H, W] -> [N, L, C]."""
        if self.encoder is None:
            return patchify(images, self.job.model.patch)
        return layers_of(self.encoder, images, self.modality, self.job)

    def forward(self, image: Tensor) -> Tensor:
        """[N, 1, D, H, W] -> logits [N, S + 1, D, H, W], the same all over a patch."""
        volumes = image[:, 0]
        logits = (self.features(volumes).float() - self.mean) / self.deviation @ self.weight + self.bias
        grid = patch_grid(volumes, self.job.model.patch)
        return F.interpolate(logits.transpose(1, 2).unflatten(2, grid), size=volumes.shape[1:], mode="nearest")


def chosen_map(known: Tensor, wanted: Tensor, fold: Tensor) -> tuple[Tensor, Tensor]:
    """Logistic regression to shares with the decay that predicts left-out patients best.

    Args:
        known: [N L, C] standardised features.
        wanted: [N L, S + 1] shares, background first.
        fold: [N L] which part of the patients a patch is of.
    """
    errors = []
    for decay in DECAYS:
        error = 0.0
        for left in fold.unique():
            weight, bias = logistic_map(known[fold != left], wanted[fold != left], decay)
            error += float(cross_entropy(known[fold == left] @ weight + bias, wanted[fold == left]))
        errors.append(error)
    return logistic_map(known, wanted, DECAYS[int(np.argmin(errors))])


def logistic_map(known: Tensor, wanted: Tensor, decay: float) -> tuple[Tensor, Tensor]:
    """Weights [C, S + 1] and bias [S + 1] of multinomial logistic regression to shares."""
    weight = torch.zeros(known.shape[1], wanted.shape[1], requires_grad=True)
    bias = wanted.mean(0).clamp(1e-6).log().requires_grad_()
    optimiser = torch.optim.LBFGS([weight, bias], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = cross_entropy(known @ weight + bias, wanted) + decay * weight.square().sum()
        loss.backward()
        return loss

    optimiser.step(closure)
    return weight.detach(), bias.detach()


def cross_entropy(logits: Tensor, wanted: Tensor) -> Tensor:
    """Mean over patches, to shares instead of classes."""
    return -(wanted * logits.log_softmax(-1)).sum(-1).mean()


@torch.no_grad()
def expected_volumes(
    network: nn.Module, images: Sequence[NDArray[np.float32]], structure: int, how: FineTuning
) -> list[float]:
    """Voxels that are expected to be of a structure (its number from 0), for each image."""
    network.eval()
    logits = (window_logits(network, image, how) for image in images)
    return [float(given.softmax(0)[structure + 1].sum()) for given in logits]


def noted(
    patients: Sequence[PreparedPatient], expected: Sequence[float], job: JobConfig, variables: Sequence[str]
) -> dict[str, float]:
    """Spearman correlation of expected volumes with each clinical variable, over the patients that have it."""
    kinds = [variable for variable in job.clinical if variable.name in variables]
    rows = encode([patient.clinical for patient in patients], kinds)
    scores = {}
    for column, kind in enumerate(kinds):
        known = rows.observed[:, column]
        given = list(itertools.compress(expected, known))
        scores[kind.name] = float(spearmanr(given, rows.values[known, column]).statistic)
    return scores
