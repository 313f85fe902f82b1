"""One feature of a patient from those of any number of volumes: modalities, studies, time points.

Attention pooling with one learned query (Lee et al. 2019, Set Transformer, section 3.2, with the features themselves as
values). A modality that a patient lacks is simply not among the volumes.

P patients, N volumes of the patient who has most, C channels, K channels of keys, T channels of the code of days.
"""

import math

import torch
from torch import Tensor, nn

BANDS = 8
"""Wavelengths of the code of days."""

SHORTEST_DAYS, LONGEST_DAYS = 4.0, 4000.0
"""From a fraction of a course of treatment to a follow-up of ten years."""


def days_code(days: Tensor) -> Tensor:
    """[...] days -> [..., T] sine and cosine at log-spaced wavelengths, fixed; nothing is learned of a date."""
    steps = torch.linspace(0, 1, BANDS, device=days.device)
    wavelengths = SHORTEST_DAYS * (LONGEST_DAYS / SHORTEST_DAYS) ** steps
    phases = 2 * math.pi * days.float()[..., None] / wavelengths
    return torch.cat([phases.sin(), phases.cos()], dim=-1)


class StudyPooler(nn.Module):
    """Weighted mean of a patient's volumes; the weights depend on their features, modalities and days.

    The query begins at zero: until something is learned, the pooled feature is the plain mean.

    Args:
        width: channels C of a volume's feature; features should have mean 0 and deviation 1 over patients.
        modalities: how many modalities there are to tell apart; 0: volumes are not told apart by modality.
        days: whether the day of a volume counts.
        keys: K.
    """

    def __init__(self, width: int, modalities: int = 0, *, days: bool = False, keys: int = 16) -> None:
        super().__init__()
        self.key = nn.Linear(width, keys)
        self.modality_key = nn.Embedding(modalities, keys) if modalities else None
        self.days_key = nn.Linear(2 * BANDS, keys, bias=False) if days else None
        self.query = nn.Parameter(torch.zeros(keys))

    def weights(
        self, features: Tensor, present: Tensor, modality: Tensor | None = None, days: Tensor | None = None
    ) -> Tensor:
        """[P, N] what each volume counts: 0 where none is; rows sum to 1, to 0 for a patient without a volume.

        Args:
            features: [P, N, C].
            present: [P, N] True where there is a volume.
            modality: [P, N] index; where not given, modalities are not told apart.
            days: [P, N] days since the patient's own reference date; where not given, days do not count.
        """
        keys = self.key(features.masked_fill(~present[..., None], 0.0))  # what stands there may not be finite
        if self.modality_key is not None and modality is not None:
            keys = keys + self.modality_key(modality)
        if self.days_key is not None and days is not None:
            keys = keys + self.days_key(days_code(days).to(keys.dtype))
        scores: Tensor = keys @ self.query / len(self.query) ** 0.5
        weights = scores.masked_fill(~present, -torch.inf).softmax(1)
        return weights.masked_fill(~present, 0.0)  # a row of minus infinity alone has no softmax

    def forward(
        self, features: Tensor, present: Tensor, modality: Tensor | None = None, days: Tensor | None = None
    ) -> Tensor:
        """[P, N, C] -> [P, C]; zero for a patient without a volume. Arguments as in ``weights``."""
        weights = self.weights(features, present, modality, days)
        pooled: Tensor = torch.einsum("pn,pnc->pc", weights, features.masked_fill(~present[..., None], 0.0))
        return pooled
