"""Cross-modal retrieval of the same patient among held-out patients."""

from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parametrium.evaluation.features import Features


def retrieval(features: Features, modalities: tuple[str, ...]) -> dict[str, dict[str, float]]:
    """R@1 and R@5 by cosine similarity, for every ordered pair of modalities that two patients or more have both.

    Ties count as misses in proportion: a constant feature scores chance, not 1.

    Args:
        features: (patient, modality) to vector, standardised.
        modalities: the job's modalities.

    Returns:
        ``<query>-<candidate>`` to r1, r5, chance_r1, chance_r5 and candidates.
    """
    results = {}
    for first, second in combinations(modalities, 2):
        for query, candidate in ((first, second), (second, first)):
            both = sorted(p for p, m in features if m == query and (p, candidate) in features)
            if len(both) < 2:
                continue
            q = _unit(np.stack([features[p, query] for p in both]))
            c = _unit(np.stack([features[p, candidate] for p in both]))
            scores = q @ c.T
            n = len(both)
            results[f"{query}-{candidate}"] = {
                "r1": recall_at(scores, 1),
                "r5": recall_at(scores, 5),
                "chance_r1": 1 / n,
                "chance_r5": min(5 / n, 1.0),
                "candidates": float(n),
            }
    return results


def recall_at(scores: NDArray[np.floating[Any]], k: int) -> float:
    """Share of rows whose own column is among the k largest; within a tie, the expected share.

    Args:
        scores: [P, P], row i query i, column j candidate j; in double precision, or equal features are no ties.
        k: how many candidates are looked at.
    """
    own = np.diag(scores)[:, None]
    tied = (np.abs(scores - own) <= 1e-9).sum(1)
    better = len(scores) - tied - (scores < own - 1e-9).sum(1)  # a score that is not a number is never a hit
    return float(np.mean(np.clip((k - better) / np.maximum(tied, 1), 0, 1)))


def _unit(x: NDArray[np.float32]) -> NDArray[np.float64]:
    """Rows of length 1, in double precision: in single, products of equal rows differ by more than a tie allows."""
    rows = x.astype(np.float64)
    scaled: NDArray[np.float64] = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return scaled
