"""Every reason for which an update is refused, by name."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from parametrium.errors import FederationError
from parametrium.training.update import Update, check_update

MODEL = {"shared": torch.zeros(2, 3), "ct": torch.zeros(4), "pet": torch.zeros(())}


def good() -> Update:
    return Update(
        site="alpha",
        round=2,
        tensors={"shared": torch.ones(2, 3), "ct": torch.full((4,), -2.0)},
        contributions={"shared": 8, "ct": 5},
        steps={"shared": 4, "ct": 3},
        samples=8,
        scalars={"train/seconds": 1.0},
    )


def with_tensor(name: str, value: torch.Tensor) -> Update:
    return replace(good(), tensors=good().tensors | {name: value})


def with_count(name: str, value: int) -> Update:
    return replace(good(), contributions=good().contributions | {name: value})


def without_tensor(name: str) -> Update:
    return replace(good(), tensors={key: value for key, value in good().tensors.items() if key != name})


def test_a_good_update_passes() -> None:
    check_update(good(), MODEL, round_number=2)
    check_update(good(), MODEL, round_number=2, max_norm=good().norm)


def test_a_scalar_tensor_passes() -> None:
    update = replace(good(), tensors={"pet": torch.tensor(1.0)}, contributions={"pet": 8}, steps={"pet": 1})
    check_update(update, MODEL, round_number=2)


@pytest.mark.parametrize(
    ("update", "reason"),
    [
        (lambda: replace(good(), round=1), "the update is for round 1, round 2 is open"),
        (lambda: replace(good(), round=3), "the update is for round 3, round 2 is open"),
        (lambda: replace(good(), tensors={}, contributions={}), "the update is empty"),
        (lambda: replace(good(), samples=0), "the update is empty"),
        (lambda: replace(good(), samples=-1), "the update is empty"),
        (lambda: with_tensor("evil", torch.ones(1)), "1 tensors are not in the model"),
        (lambda: without_tensor("ct"), "1 declared tensors are missing, 0 tensors have no contribution"),
        (
            lambda: with_tensor("pet", torch.tensor(1.0)),
            "0 declared tensors are missing, 1 tensors have no contribution",
        ),
        (lambda: with_tensor("shared", torch.ones(3, 2)), r"shared must be \[2, 3\], got \[3, 2\]"),
        (lambda: with_tensor("ct", torch.ones(1)), r"ct must be \[4\], got \[1\]"),
        (lambda: with_tensor("ct", torch.ones(4, dtype=torch.float64)), "ct must be float32, got float64"),
        (lambda: with_tensor("ct", torch.ones(4, dtype=torch.bfloat16)), "ct must be float32, got bfloat16"),
        (lambda: with_tensor("ct", torch.ones(4, dtype=torch.int64)), "ct must be float32, got int64"),
        (lambda: with_tensor("ct", torch.tensor([0, 0, math.nan, 0])), "ct is not finite"),
        (lambda: with_tensor("ct", torch.tensor([0, -math.inf, 0, 0])), "ct is not finite"),
        (lambda: with_count("ct", 0), "ct has contribution 0, at least 1 is needed"),
        (lambda: with_count("ct", -3), "ct has contribution -3, at least 1 is needed"),
        (lambda: with_count("ct", 9), "ct counts 9 samples of 8"),
        (lambda: with_tensor("ct", torch.full((4,), 100.0)), r"its norm 200 is above the limit 10"),
        (lambda: replace(good(), samples=2**53 + 1), "it counts more than 9007199254740992 samples"),
        (lambda: replace(good(), steps={"shared": 4}), "0 tensors with steps are missing, 1 tensors have no steps"),
        (
            lambda: replace(good(), steps=good().steps | {"pet": 1}),
            "1 tensors with steps are missing, 0 tensors have no steps",
        ),
        (lambda: replace(good(), steps=good().steps | {"ct": 0}), "ct has 0 steps, at least 1 is needed"),
    ],
)
def test_a_bad_update_is_refused_with_site_and_reason(update: Callable[[], Update], reason: str) -> None:
    with pytest.raises(FederationError, match=f"^PM501 alpha: {reason}$"):
        check_update(update(), MODEL, round_number=2, max_norm=10.0)


@pytest.mark.parametrize("value", [True, 3.0, 2.5, math.nan, math.inf, None, "/scans/secret", [3]])
@pytest.mark.parametrize("what", ["round", "samples", "contributions", "steps"])
def test_a_count_that_is_not_an_integer_is_refused_without_repeating_it(what: str, value: Any) -> None:
    changed = {**getattr(good(), what), "ct": value} if what in ("contributions", "steps") else value
    with pytest.raises(
        FederationError, match=r"^PM501 alpha: round, samples, contributions and steps must be integers$"
    ):
        check_update(replace(good(), **{what: changed}), MODEL, round_number=2)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 10**400, True, None, "/scans/secret"])
def test_a_scalar_that_is_not_a_finite_number_is_refused_without_its_name(value: Any) -> None:
    update = replace(good(), scalars={"train/seconds": 1.0, "train/samples": 8, "patient-7": value})
    with pytest.raises(FederationError, match=r"^PM501 alpha: 1 scalars are not finite numbers$"):
        check_update(update, MODEL, round_number=2)


def idle(**changes: Any) -> Update:
    return replace(good(), tensors={}, contributions={}, steps={}, samples=0, **changes)


def test_a_site_that_found_nothing_to_train_on_may_say_so() -> None:
    assert idle().idle
    assert not good().idle
    check_update(idle(), MODEL, round_number=2, max_norm=10.0)


@pytest.mark.parametrize(
    ("update", "reason"),
    [
        (idle(round=1), "the update is for round 1, round 2 is open"),
        (idle(scalars={"train/seconds": math.nan}), "1 scalars are not finite numbers"),
        (replace(idle(), samples=3), "the update is empty"),
        (replace(idle(), contributions={"ct": 3}), "the update is empty"),
        (replace(idle(), steps={"ct": 3}), "the update is empty"),
    ],
)
def test_idle_is_who_sends_nothing_at_all_for_the_open_round(update: Update, reason: str) -> None:
    with pytest.raises(FederationError, match=f"^PM501 alpha: {reason}$"):
        check_update(update, MODEL, round_number=2)


def test_without_a_limit_any_finite_norm_passes() -> None:
    check_update(with_tensor("ct", torch.full((4,), 3e38)), MODEL, round_number=2)


@given(st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=4, max_size=4))
def test_the_norm_is_that_of_all_tensors_in_double_precision(values: list[float]) -> None:
    update = with_tensor("ct", torch.tensor(values, dtype=torch.float32))
    assert update.norm == pytest.approx(math.sqrt(6 + math.fsum(v * v for v in values)), rel=1e-12)


@given(st.sampled_from(["shared", "ct"]), st.integers(0, 23), st.sampled_from([math.nan, math.inf, -math.inf]))
def test_no_single_bad_number_passes(name: str, place: int, value: float) -> None:
    tensor: Any = good().tensors[name].clone()
    tensor.view(-1)[place % tensor.numel()] = value
    with pytest.raises(FederationError, match=f"{name} is not finite"):
        check_update(with_tensor(name, tensor), MODEL, round_number=2)
