"""Messages: what arrives is what was sent, bit for bit; what is malformed is refused by site and part."""

import contextlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from nvflare.apis.shareable import Shareable, make_reply
from nvflare.apis.utils.decomposers import flare_decomposers
from nvflare.app_common.decomposers import numpy_decomposers
from nvflare.fuel.utils import fobs

from parametrium.errors import Code, FederationError, TrainingError
from parametrium.federation.payload import (
    error_message,
    read_scalars,
    read_task,
    read_update,
    scalars_message,
    task_message,
    update_message,
)
from parametrium.training.update import Update, check_update


@pytest.fixture(scope="module", autouse=True)
def _codec() -> None:
    flare_decomposers.register()
    numpy_decomposers.register()


def sent(message: Shareable) -> Shareable:
    """What arrives at the other end of FLARE's wire."""
    received = fobs.loads(fobs.dumps(message))
    assert isinstance(received, Shareable)
    return received


def update(**changes: Any) -> Update:
    facts: dict[str, Any] = {
        "site": "north",
        "round": 3,
        "tensors": {"a": torch.randn(3, 4), "b": torch.randn(()), "c": torch.zeros(0, 2)},
        "contributions": {"a": 5, "b": 6, "c": 7},
        "steps": {"a": 1, "b": 2, "c": 2},
        "samples": 9,
        "scalars": {"train/samples": 9.0},
    }
    return Update(**{**facts, **changes})


def test_an_update_arrives_as_it_was() -> None:
    given_ = update()
    received = read_update(sent(update_message(given_)), "north")
    assert (received.round, received.samples) == (3, 9)
    assert (received.contributions, received.steps, received.scalars) == (
        given_.contributions,
        given_.steps,
        given_.scalars,
    )
    assert received.tensors.keys() == given_.tensors.keys()
    for name, tensor in given_.tensors.items():
        assert received.tensors[name].dtype == torch.float32
        assert received.tensors[name].shape == tensor.shape
        assert received.tensors[name].equal(tensor)


@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=40))
def test_every_bit_pattern_of_float32_arrives(bits: list[int]) -> None:
    tensor = torch.from_numpy(np.array(bits, dtype=np.uint32).view(np.float32).copy())
    received = read_update(sent(update_message(update(tensors={"a": tensor}))), "north").tensors["a"]
    assert np.array_equal(received.numpy().view(np.uint32), np.array(bits, dtype=np.uint32))


def test_a_strided_tensor_arrives() -> None:
    tensor = torch.arange(12.0).view(3, 4).T
    received = read_update(sent(update_message(update(tensors={"a": tensor}))), "north")
    assert received.tensors["a"].equal(tensor)


def test_the_site_is_who_flare_says_not_who_the_message_says() -> None:
    message = update_message(update(site="east"))
    message["DXO"]["meta"]["parametrium"]["site"] = "east"
    assert read_update(sent(message), "north").site == "north"


def test_a_task_arrives_with_the_model() -> None:
    model = {"a": torch.randn(2, 2)}
    number, final, received = read_task(sent(task_message(4, model, final=True)))
    assert (number, final) == (4, True)
    assert received["a"].equal(model["a"])
    assert read_task(sent(task_message(0))) == (0, False, {})


def test_scalars_arrive() -> None:
    assert read_scalars(sent(scalars_message({"site/patients": 4.0})), "north") == {"site/patients": 4.0}


def spoiled(change: Callable[[dict[str, Any], dict[str, Any]], None]) -> Shareable:
    message = update_message(update())
    change(message["DXO"]["data"], message["DXO"]["meta"]["parametrium"])
    return sent(message)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda data, facts: facts.pop("round"), "the answer lacks round"),
        (lambda data, facts: facts.pop("contributions"), "the answer lacks contributions"),
        (lambda data, facts: facts.pop("steps"), "the answer lacks steps"),
        (lambda data, facts: facts.pop("samples"), "the answer lacks samples"),
        (lambda data, facts: facts.pop("scalars"), "the answer lacks scalars"),
        (lambda data, facts: data.pop("arrays"), "form of a message"),
        (lambda data, facts: data.update(arrays=[1]), "form of a message"),
        (lambda data, facts: data.update(arrays={1: np.zeros(2)}), "form of a message"),
        (lambda data, facts: data["arrays"].update(a=[1.0, 2.0]), "tensors is not"),
        (lambda data, facts: data["arrays"].update(a="text"), "tensors is not"),
        (lambda data, facts: data["arrays"].update(a=np.array(["text"])), "tensors is not"),
        (lambda data, facts: facts.update(round="3"), "round is not"),
        (lambda data, facts: facts.update(round=True), "round is not"),
        (lambda data, facts: facts.update(round=None), "round is not"),
        (lambda data, facts: facts.update(samples=float("nan")), "samples is not"),
        (lambda data, facts: facts.update(samples=float("inf")), "samples is not"),
        (lambda data, facts: facts.update(samples=8.5), "samples is not"),
        (lambda data, facts: facts.update(contributions=[5, 6, 7]), "contributions is not"),
        (lambda data, facts: facts.update(contributions={"a": 0.5}), "contributions is not"),
        (lambda data, facts: facts.update(steps={"a": float("nan")}), "steps is not"),
        (lambda data, facts: facts.update(scalars=3.0), "scalars is not"),
    ],
)
def test_a_malformed_update_is_refused_by_site_and_part(
    change: Callable[[dict[str, Any], dict[str, Any]], None], reason: str
) -> None:
    with pytest.raises(FederationError, match=reason) as caught:
        read_update(spoiled(change), "north")
    assert caught.value.code is Code.UPDATE_REJECTED
    assert caught.value.message.startswith("north: ")


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.binary(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=6,
    ),
    st.sampled_from(["DXO", "data", "arrays", "meta", "parametrium", "round", "contributions", "scalars"]),
)
def test_whatever_stands_in_a_message_it_is_refused_or_read(junk: Any, place: str) -> None:
    """Assurance S4: never another error than ours, with which the workflow goes on without this site."""
    message = update_message(update())
    dxo = message["DXO"]
    holders = {"DXO": message, "data": dxo, "arrays": dxo["data"], "meta": dxo, "parametrium": dxo["meta"]}
    holders.get(place, dxo["meta"]["parametrium"])[place] = junk
    for read in (read_update, read_scalars):
        with contextlib.suppress(FederationError):
            read(message, "north")


def test_a_message_that_is_none_of_ours_is_refused() -> None:
    with pytest.raises(FederationError, match="north: the answer has not the form of a message"):
        read_update(make_reply("EXECUTION_EXCEPTION"), "north")


def test_silence_is_told() -> None:
    with pytest.raises(FederationError, match="north: no answer came in time"):
        read_update(None, "north")


def test_a_nan_in_a_tensor_is_refused_by_the_check_that_follows() -> None:
    broken = update(tensors={"a": torch.tensor([1.0, float("nan")])}, contributions={"a": 2}, steps={"a": 1})
    received = read_update(sent(update_message(broken)), "north")
    with pytest.raises(FederationError, match="north: a is not finite"):
        check_update(received, {"a": torch.zeros(2)}, round_number=3)


def test_our_own_error_tells_its_text_a_foreign_one_its_class_only() -> None:
    ours = error_message(TrainingError(Code.TRAINING_NOT_FINITE, "public", site_detail="/scans/secret"))
    foreign = error_message(ValueError("/scans/secret"))
    with pytest.raises(FederationError, match=r"north: PM402 public$"):
        read_update(sent(ours), "north")
    with pytest.raises(FederationError, match=r"north: PM901 .* \(ValueError\)$"):
        read_scalars(sent(foreign), "north")


def test_a_long_error_text_is_cut_to_one_short_line() -> None:
    message = error_message(TrainingError(Code.MODEL_SHAPE, "a\nb " * 500))
    with pytest.raises(FederationError) as caught:
        read_update(sent(message), "north")
    assert len(caught.value.message) < 600
    assert "\n" not in caught.value.message
