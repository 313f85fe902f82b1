"""Collapse numbers against second, dumber implementations and at their known ends."""

import math
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from parametrium.monitor.collapse import alignment, rankme, spread, uniformity


def drawn(seed: int, rows: int, channels: int) -> torch.Tensor:
    return torch.randn(rows, channels, generator=torch.Generator().manual_seed(seed))


def unit(row: list[float]) -> list[float]:
    length = math.sqrt(sum(x * x for x in row))
    return [x / length for x in row]


SIZES = (st.integers(0, 999), st.integers(2, 9), st.integers(2, 9))


@given(*SIZES)
def test_rankme_is_the_entropy_of_the_roots_of_the_gram_matrix(seed: int, rows: int, channels: int) -> None:
    features = drawn(seed, rows, channels)
    eigenvalues = np.linalg.eigvalsh(features.double().numpy().T @ features.double().numpy())
    values = [math.sqrt(max(x, 0.0)) for x in sorted(eigenvalues, reverse=True)[: min(rows, channels)]]
    entropy = -sum(p * math.log(p) for p in (v / sum(values) for v in values) if p > 1e-12)
    assert rankme(features) == pytest.approx(math.exp(entropy), rel=1e-4)


@given(*SIZES)
def test_spread_alignment_and_uniformity_equal_loops(seed: int, rows: int, channels: int) -> None:
    one, other = drawn(seed, rows, channels), drawn(seed + 1000, rows, channels)
    a, b = ([unit(row) for row in x.double().tolist()] for x in (one, other))
    deviations = []
    for c in range(channels):
        mean = sum(row[c] for row in a) / rows
        deviations.append(math.sqrt(sum((row[c] - mean) ** 2 for row in a) / rows))
    assert spread(one) == pytest.approx(sum(deviations) / channels * math.sqrt(channels), abs=1e-9)
    distances = [sum((x - y) ** 2 for x, y in zip(p, q, strict=True)) for p, q in zip(a, b, strict=True)]
    assert alignment(one, other) == pytest.approx(sum(distances) / rows, abs=1e-9)
    pairs = [math.exp(-2 * sum((x - y) ** 2 for x, y in zip(p, q, strict=True))) for p, q in combinations(a, 2)]
    assert uniformity(one) == pytest.approx(math.log(sum(pairs) / len(pairs)), abs=1e-9)


def test_collapsed_features_have_rank_one_and_no_spread() -> None:
    features = torch.ones(50, 16) * torch.arange(1, 17)
    assert rankme(features) == pytest.approx(1, abs=1e-3)
    assert spread(features) == pytest.approx(0, abs=1e-6)
    assert uniformity(features) == pytest.approx(0, abs=1e-6)
    assert alignment(features, features) == 0


def test_features_that_fill_the_space_have_full_rank_and_spread() -> None:
    features = drawn(0, 4000, 16)
    assert rankme(features) == pytest.approx(16, rel=0.01)
    assert spread(features) == pytest.approx(1, abs=0.01)
    assert rankme(torch.eye(8)) == pytest.approx(8, rel=1e-4)
    wide = drawn(0, 500, 256)
    assert uniformity(wide) == pytest.approx(-4, abs=0.1)
    assert alignment(wide, drawn(1, 500, 256)) == pytest.approx(2, abs=0.05)


def test_collapse_onto_a_plane_is_seen_by_the_rank() -> None:
    plane = drawn(0, 500, 2) @ drawn(1, 2, 64)
    assert rankme(plane) < 2.1
    assert rankme(drawn(0, 500, 64)) > 55


def test_size_and_order_do_not_matter() -> None:
    features = drawn(0, 20, 8)
    mixed = features.flip(0) * 7
    for number in (rankme, spread, uniformity):
        assert number(mixed) == pytest.approx(number(features), rel=1e-6)
