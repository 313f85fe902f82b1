"""Have the features collapsed? Numbers that need no label.

N rows (crops or patients), C channels.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

_TINY = 1e-7
"""Added to the shares of the singular values, as the source does."""


def rankme(features: Tensor) -> float:
    """Exponential of the entropy of the singular values' shares (Garrido et al. 2023, eq. 1; METHODS 4.5).

    A smooth rank: 1 when all rows point the same way, min(N, C) when they fill the space evenly. Rows are not centred.

    Args:
        features: [N, C].
    """
    values = torch.linalg.svdvals(features.double())
    shares = values / values.sum().clamp(min=1e-300) + _TINY
    return float((-(shares * shares.log()).sum()).exp())


def spread(features: Tensor) -> float:
    """Mean deviation of a channel of unit vectors times sqrt(C): 0 when all rows are the same, at most 1.

    About 1 where directions are even in all channels (METHODS 4.5).

    Args:
        features: [N, C], N >= 1; normalised here.
    """
    unit = F.normalize(features.double(), dim=1)
    return float(unit.std(0, unbiased=False).mean() * features.shape[1] ** 0.5)


def alignment(one: Tensor, other: Tensor) -> float:
    """Mean squared distance of the unit vectors of a pair (Wang and Isola 2020, eq. 2): 0 is best, 2 is unrelated.

    Args:
        one: [N, C].
        other: [N, C], row n belongs to row n of ``one``.
    """
    return float((F.normalize(one.double(), dim=1) - F.normalize(other.double(), dim=1)).square().sum(1).mean())


def uniformity(features: Tensor) -> float:
    """Logarithm of the mean of exp(-2 squared distance) over all pairs of unit vectors (Wang and Isola 2020, eq. 3).

    0 when all rows are the same; about -4 when they are even on a sphere of many dimensions.

    Args:
        features: [N, C], N >= 2.
    """
    unit = F.normalize(features.double(), dim=1)
    squared = torch.pdist(unit).square()
    return float((-2 * squared).exp().mean().log())
