"""Which patients are alike: Gower similarity over mixed clinical variables (METHODS 3.2).

All scales come from the job's schema: they are public constants, the same at every site.
P patients, F variables.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from parametrium.config import ClinicalVariable, ContinuousVariable, FigoVariable, NominalVariable, OrdinalVariable


class Similarity(NamedTuple):
    """Similarity of patients.

    Attributes:
        gower: [P, P] in [0, 1], symmetric; shrunk towards the schema's mean where variables are missing.
        coverage: [P, P] weight of the variables that both patients have, in [0, 1]; 0 means nothing is known.
    """

    gower: Tensor
    coverage: Tensor


def gower(values: Tensor, observed: Tensor, variables: Sequence[ClinicalVariable]) -> Similarity:
    """S~ = c S + (1 - c) S-, with S the Gower similarity over what both patients have and c its coverage.

    A value that both lack does not make two patients similar.

    Args:
        values: [P, F] from ``schema.encode``.
        observed: [P, F] bool.
        variables: the schema, F entries.
    """
    count = len(values)
    if not variables:
        zero = values.new_zeros(count, count)
        return Similarity(zero, zero)
    weights = values.new_tensor([variable.weight for variable in variables])
    parts = torch.stack([_pairwise(values[:, f], v) for f, v in enumerate(variables)], dim=-1)
    both = (observed[:, None] & observed[None]).to(values.dtype) * weights
    known = both.sum(-1)
    coverage = known / weights.sum().clamp(min=1e-12)
    similarity = (both * parts).sum(-1) / known.clamp(min=1e-12)
    return Similarity(coverage * similarity + (1 - coverage) * expected_similarity(variables), coverage)


def expected_similarity(variables: Sequence[ClinicalVariable]) -> float:
    """S-: mean similarity of two patients drawn uniformly over the schema's bounds and levels; 0 without weights."""
    total = sum(variable.weight for variable in variables)
    return sum(variable.weight * _expected(variable) for variable in variables) / total if total else 0.0


def _pairwise(x: Tensor, variable: ClinicalVariable) -> Tensor:
    """[P] -> [P, P] similarity in one variable."""
    difference = x[:, None] - x[None]
    match variable:
        case ContinuousVariable():
            return torch.exp(-(difference**2) / (2 * variable.sigma**2))
        case OrdinalVariable() | FigoVariable():
            return 1 - difference.abs() / (len(variable.levels) - 1)
        case NominalVariable():
            return (difference == 0).to(x.dtype)


def _expected(variable: ClinicalVariable) -> float:
    match variable:
        case NominalVariable():
            return 1 / len(variable.levels)
        case OrdinalVariable() | FigoVariable():
            k = len(variable.levels)
            return 1 - (k + 1) / (3 * k)
        case ContinuousVariable():
            low, high = variable.lower, variable.upper
            if variable.log:
                low, high = math.log1p(low), math.log1p(high)
            # The difference of two uniform values has a triangular density over [0, span].
            span = high - low
            t = (np.arange(1000) + 0.5) / 1000 * span
            return float(np.mean(2 * (1 - t / span) * np.exp(-(t**2) / (2 * variable.sigma**2))))
