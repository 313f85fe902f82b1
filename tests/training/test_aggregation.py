"""Aggregation against exact fractions, and its invariants (METHODS 5.2, 9.9)."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from parametrium.model.modality import SHARED, Owner
from parametrium.training.aggregation import Rule, aggregate, templates_of_few
from parametrium.training.update import Update

NAMES = ("shared", "ct", "pet", "nobody")

numbers = st.floats(-1e3, 1e3, width=32)
vectors = st.lists(numbers, min_size=3, max_size=3)
rates = st.sampled_from([1.0, 0.5, 0.7])
rules = st.sampled_from(["per_tensor", "whole_model"])


def update_of(site: str, tensors: dict[str, list[float]], contributions: dict[str, int], samples: int) -> Update:
    values = {name: torch.tensor(vector, dtype=torch.float32) for name, vector in tensors.items()}
    return Update(site, 0, values, contributions, dict.fromkeys(contributions, 1), samples, {})


@st.composite
def updates(draw: st.DrawFn) -> list[Update]:
    found = []
    for site in draw(st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=5, unique=True)):
        names = draw(st.lists(st.sampled_from(NAMES[:3]), min_size=1, unique=True))
        samples = draw(st.integers(1, 1000))
        counts = {name: draw(st.integers(1, samples)) for name in names}
        found.append(update_of(site, {name: draw(vectors) for name in names}, counts, samples))
    return found


def model_of(draw: list[list[float]]) -> dict[str, Tensor]:
    return {name: torch.tensor(vector, dtype=torch.float32) for name, vector in zip(NAMES, draw, strict=True)}


models = st.lists(vectors, min_size=4, max_size=4).map(model_of)


def exactly(model: dict[str, Tensor], given_: list[Update], rule: Rule, rate: float) -> dict[str, list[float]]:
    """The definition in rational numbers, rounded once at the end."""
    result = {}
    for name, tensor in model.items():
        owners = [update for update in given_ if name in update.tensors]
        result[name] = []
        for place in range(3):
            value = Fraction(float(tensor[place]))
            if owners:
                if rule == "per_tensor":
                    weight = sum(update.contributions[name] for update in owners)
                    moved = sum(u.contributions[name] * Fraction(float(u.tensors[name][place])) for u in owners)
                else:
                    weight = sum(update.samples for update in given_)
                    moved = sum(u.samples * Fraction(float(u.tensors[name][place])) for u in owners)
                value += Fraction(rate) * moved / weight
            result[name].append(float(value))
    return result


@given(models, updates(), rules, rates)
def test_aggregation_equals_exact_fractions(
    model: dict[str, Tensor], given_: list[Update], rule: Rule, rate: float
) -> None:
    found = aggregate(model, given_, rule=rule, server_learning_rate=rate)
    for name, values in exactly(model, given_, rule, rate).items():
        # Sums in double precision, rounded once to float32.
        np.testing.assert_allclose(found[name].double().numpy(), values, rtol=6e-8, atol=1e-9)
        assert found[name].dtype == torch.float32


@given(models, updates(), rules, rates, st.randoms(use_true_random=False))
def test_the_order_of_arrival_does_not_change_a_bit(
    model: dict[str, Tensor], given_: list[Update], rule: Rule, rate: float, random: object
) -> None:
    shuffled = list(given_)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    first = aggregate(model, given_, rule=rule, server_learning_rate=rate)
    second = aggregate(dict(reversed(model.items())), shuffled, rule=rule, server_learning_rate=rate)
    assert all(torch.equal(first[name], second[name]) for name in model)


@given(models, updates(), rules)
def test_what_nobody_trained_is_the_same_object(model: dict[str, Tensor], given_: list[Update], rule: Rule) -> None:
    before = {name: tensor.clone() for name, tensor in model.items()}
    after = aggregate(model, given_, rule=rule)
    trained = {name for update in given_ for name in update.tensors}
    assert after.keys() == model.keys()
    for name in model:
        assert (after[name] is model[name]) == (name not in trained)
        assert torch.equal(model[name], before[name]), "the model that went in is not changed"


def test_disjoint_modalities_share_the_middle_and_keep_their_own() -> None:
    model = {name: torch.tensor([1.0, 2.0, 3.0]) for name in NAMES}
    alpha = update_of("alpha", {"shared": [3, 0, 0], "ct": [1, 1, 1]}, {"shared": 30, "ct": 30}, 30)
    beta = update_of("beta", {"shared": [0, 6, 0], "pet": [-1, 0, 2]}, {"shared": 10, "pet": 7}, 10)
    after = aggregate(model, [beta, alpha])
    assert after["shared"].tolist() == [1 + 3 * 30 / 40, 2 + 6 * 10 / 40, 3]
    assert after["ct"].tolist() == [2, 3, 4], "the owner's difference, undiluted"
    assert after["pet"].tolist() == [0, 2, 5]
    assert after["nobody"] is model["nobody"]


def test_the_whole_model_rule_dilutes_a_rare_modality() -> None:
    model = {name: torch.zeros(3) for name in NAMES}
    alpha = update_of("alpha", {"shared": [4, 4, 4], "ct": [4, 4, 4]}, {"shared": 30, "ct": 1}, 30)
    beta = update_of("beta", {"shared": [0, 0, 0]}, {"shared": 10}, 10)
    after = aggregate(model, [alpha, beta], rule="whole_model")
    assert after["ct"].tolist() == [3, 3, 3]
    assert after["shared"].tolist() == [3, 3, 3]
    assert aggregate(model, [alpha, beta])["ct"].tolist() == [4, 4, 4]


@given(models, updates(), rules, st.integers(1, 4))
def test_a_template_that_few_sites_trained_stays_and_nothing_else_changes(
    model: dict[str, Tensor], given_: list[Update], rule: Rule, minimum: int
) -> None:
    owners = dict.fromkeys(NAMES, SHARED) | {"ct": Owner("fill", "CT"), "pet": Owner("embed", "PET")}
    after = aggregate(model, given_, rule=rule, keep=templates_of_few(given_, owners, minimum))
    freely = aggregate(model, given_, rule=rule)
    many = sum("ct" in update.tensors for update in given_) >= minimum
    for name in NAMES:
        assert torch.equal(after[name], freely[name] if name != "ct" or many else model["ct"])
    assert templates_of_few(given_, owners, 1) == set()


@given(models, vectors, st.integers(1, 10**6))
def test_one_site_alone_moves_the_model_by_its_own_difference(
    model: dict[str, Tensor], difference: list[float], samples: int
) -> None:
    alone = update_of("alpha", {"shared": difference}, {"shared": samples}, samples)
    for rule in ("per_tensor", "whole_model"):
        after = aggregate(model, [alone], rule=rule)  # type: ignore[arg-type]
        expected = model["shared"].double() + alone.tensors["shared"].double()
        assert torch.allclose(after["shared"].double(), expected, rtol=6e-8, atol=1e-12)


@given(models, vectors, st.integers(1, 500), st.integers(1, 5))
def test_equal_sites_count_as_one(model: dict[str, Tensor], difference: list[float], samples: int, sites: int) -> None:
    every = [update_of(f"s{n}", {"shared": difference}, {"shared": samples}, samples) for n in range(sites)]
    assert torch.allclose(
        aggregate(model, every)["shared"], aggregate(model, every[:1])["shared"], rtol=1e-6, atol=1e-9
    )


def test_small_differences_of_many_sites_are_not_lost_in_float32() -> None:
    model = {"shared": torch.zeros(3)}
    large = update_of("a", {"shared": [1e8, 0, 0]}, {"shared": 1}, 1)
    opposite = update_of("z", {"shared": [-1e8, 0, 0]}, {"shared": 1}, 1)
    small = [update_of(f"m{n}", {"shared": [1, 0, 0]}, {"shared": 1}, 1) for n in range(8)]
    after = aggregate(model, [large, *small, opposite])
    assert float(after["shared"][0]) == pytest.approx(0.8, abs=1e-6)


def test_without_updates_the_model_stays() -> None:
    model = {name: torch.ones(3) for name in NAMES}
    assert all(tensor is model[name] for name, tensor in aggregate(model, []).items())
