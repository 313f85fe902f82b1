"""Retrieval against a loop with ties: planted features find all, constant ones score chance."""

from fractions import Fraction
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parametrium.evaluation.features import Features
from parametrium.evaluation.retrieval import recall_at, retrieval

matrices = st.integers(1, 5).flatmap(
    lambda n: st.lists(st.lists(st.sampled_from([-1.0, 0.0, 0.5, 1.0]), min_size=n, max_size=n), min_size=n, max_size=n)
)


def recall_by_permutations(scores: list[list[float]], k: int) -> float:
    """Breaks ties in every possible order and takes the mean."""
    count = len(scores)
    total = Fraction(0)
    for i, row in enumerate(scores):
        orders = [sorted(order, key=lambda j: -row[j]) for order in permutations(range(count))]
        total += Fraction(sum(i in order[:k] for order in orders), len(orders))
    return float(total / count)


@given(matrices, st.integers(1, 5))
def test_recall_is_the_mean_over_all_ways_to_break_ties(scores: list[list[float]], k: int) -> None:
    assert recall_at(np.array(scores, dtype=np.float32), k) == pytest.approx(recall_by_permutations(scores, k))


@given(st.integers(2, 30), st.integers(1, 5))
def test_constant_scores_are_chance(count: int, k: int) -> None:
    scores = np.full((count, count), 0.3, dtype=np.float32)
    assert recall_at(scores, k) == pytest.approx(min(k / count, 1))


@given(st.integers(2, 20), st.integers(0, 99))
def test_a_collapsed_feature_is_chance_whatever_its_numbers(count: int, seed: int) -> None:
    same = np.random.default_rng(seed).normal(size=96).astype(np.float32)
    found = retrieval({(patient, m): same for patient in range(count) for m in "AB"}, ("A", "B"))["A-B"]
    assert found["r1"] == pytest.approx(1 / count)
    assert found["r5"] == pytest.approx(min(5 / count, 1))


def test_scores_that_are_not_numbers_are_misses() -> None:
    scores = np.eye(4, dtype=np.float32)
    assert recall_at(np.full_like(scores, np.nan), 1) == 0
    scores[2] = np.nan
    assert recall_at(scores, 1) == 0.75


@given(st.integers(2, 12), st.integers(0, 1000))
def test_independent_scores_find_one_in_n_on_average(count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    found = [recall_at(rng.normal(size=(count, count)).astype(np.float32), 1) for _ in range(200)]
    # 200 x n trials of probability 1/n: five standard deviations.
    assert abs(np.mean(found) - 1 / count) < 5 * np.sqrt(1 / count / (200 * count))


def planted(count: int, modalities: tuple[str, ...], noise: float = 0.0) -> Features:
    rng = np.random.default_rng(0)
    people = rng.normal(size=(count, 16))
    return {
        (p, m): (people[p] + noise * rng.normal(size=16)).astype(np.float32) for p in range(count) for m in modalities
    }


def test_planted_features_find_every_patient_in_both_directions() -> None:
    found = retrieval(planted(12, ("CT", "T1", "PET"), noise=0.05), ("CT", "T1", "PET"))
    assert list(found) == ["CT-T1", "T1-CT", "CT-PET", "PET-CT", "T1-PET", "PET-T1"]
    for scores in found.values():
        assert scores == {"r1": 1.0, "r5": 1.0, "chance_r1": 1 / 12, "chance_r5": 5 / 12, "candidates": 12.0}


def test_the_length_of_a_vector_does_not_matter() -> None:
    features = planted(8, ("CT", "T1"), noise=1.0)
    scaled = {key: vector * (1 + key[0]) for key, vector in features.items()}
    for pair, scores in retrieval(features, ("CT", "T1")).items():
        assert retrieval(scaled, ("CT", "T1"))[pair] == pytest.approx(scores)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_constant_features_score_chance(value: float) -> None:
    features = {(p, m): np.full(16, value, dtype=np.float32) for p in range(9) for m in ("CT", "T1")}
    for scores in retrieval(features, ("CT", "T1")).values():
        assert scores["r1"] == pytest.approx(1 / 9)
        assert scores["r5"] == pytest.approx(5 / 9)


def test_only_patients_with_both_modalities_take_part() -> None:
    features = planted(6, ("CT", "T1"))
    del features[2, "CT"], features[4, "T1"]
    features[9, "PET"] = np.ones(16, dtype=np.float32)
    found = retrieval(features, ("CT", "T1", "PET"))
    assert set(found) == {"CT-T1", "T1-CT"}
    assert found["CT-T1"]["candidates"] == 4
    assert found["CT-T1"]["chance_r5"] == 1


def test_with_fewer_than_two_candidates_there_is_nothing_to_retrieve() -> None:
    assert retrieval(planted(1, ("CT", "T1")), ("CT", "T1")) == {}
    assert retrieval({}, ("CT", "T1")) == {}


def test_the_two_directions_differ() -> None:
    scores = np.array([[0.9, 0.1, 0.2], [0.8, 0.7, 0.1], [0.5, 0.6, 0.4]], dtype=np.float32)
    assert recall_at(scores, 1) == pytest.approx(1 / 3)
    assert recall_at(scores, 2) == pytest.approx(2 / 3)
    assert recall_at(scores.T, 1) == 1
