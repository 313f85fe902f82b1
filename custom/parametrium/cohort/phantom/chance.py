"""Random streams named by what they decide, so that one decision never shifts another.

A stream depends only on its name: the same patient comes out whatever the order, the number of processes or the
modalities that were asked for.
"""

import hashlib

import numpy as np


def stream(*name: object) -> np.random.Generator:
    """Generator of one named decision.

    Args:
        name: for example the cohort's seed, the site, the patient's index and what is decided.
    """
    text = "\x1f".join(str(part) for part in name)
    return np.random.default_rng(int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "big"))


def between(rng: np.random.Generator, lower: float, upper: float) -> float:
    """Uniform number in [lower, upper)."""
    return float(rng.uniform(lower, upper))


def around(rng: np.random.Generator, mean: float, deviation: float, limit: float = 2.0) -> float:
    """Normal number, at most ``limit`` standard deviations from its mean: no monsters."""
    return mean + deviation * float(np.clip(rng.standard_normal(), -limit, limit))


def happens(rng: np.random.Generator, probability: float) -> bool:
    """True with a probability in [0, 1]."""
    return bool(rng.random() < probability)


def logistic(value: float) -> float:
    """Probability in (0, 1) of a log-odds."""
    return float(1.0 / (1.0 + np.exp(-value)))
