"""What travels between the server and a site: one FLARE message a task, tensors as arrays, the rest plain values.

Arrays go through FLARE's own array codec: float32 arrives bit for bit, and nothing is unpickled on either side.
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np
import torch
from nvflare.apis.dxo import DXO, DataKind, from_shareable
from nvflare.apis.shareable import Shareable
from torch import Tensor

from parametrium.errors import Code, FederationError, public_text
from parametrium.training.update import Update

OPEN, TRAIN, EVALUATE = "open", "train", "evaluate"
TASKS = (OPEN, TRAIN, EVALUATE)

T = TypeVar("T")


def task_message(round_number: int, model: Mapping[str, Tensor] | None = None, final: bool = False) -> Shareable:
    """What the server sends: the round, and the global model where the task needs it."""
    arrays = {name: tensor.numpy() for name, tensor in (model or {}).items()}
    return _message(DataKind.WEIGHTS, arrays, {"round": round_number, "final": final})


def read_task(message: Shareable) -> tuple[int, bool, dict[str, Tensor]]:
    """Round, whether it is the final evaluation, and the global model."""
    arrays, facts = _read(message)
    return _count(facts["round"]), bool(facts["final"]), _tensors(arrays)


def update_message(update: Update) -> Shareable:
    """What a site answers to a training task. The site's name is not part of it: FLARE's certificate tells it."""
    arrays = {name: tensor.numpy() for name, tensor in update.tensors.items()}
    facts = {
        "round": update.round,
        "contributions": update.contributions,
        "steps": update.steps,
        "samples": update.samples,
        "scalars": update.scalars,
    }
    return _message(DataKind.WEIGHT_DIFF, arrays, facts)


def scalars_message(scalars: Mapping[str, float]) -> Shareable:
    """What a site answers to opening and to an evaluation."""
    return _message(DataKind.ANALYTIC, {}, {"scalars": dict(scalars)})


def error_message(error: BaseException) -> Shareable:
    """What a site answers when a task failed: public text only."""
    return _message(DataKind.ANALYTIC, {}, {"error": public_text(error)})


def read_update(message: Shareable | None, site: str) -> Update:
    """A site's update.

    Args:
        message: as received; None when nothing came.
        site: name by FLARE's certificate.

    Raises:
        FederationError: PM501, naming the site, when it reports an error or a part of the message is missing or of
            another type than an update's. What the numbers are is for ``check_update`` and ``check_scalars``.
    """
    arrays, facts = _answer(message, site)
    return Update(
        site=site,
        round=_part(site, facts, "round", _count),
        tensors=_part(site, {"tensors": arrays}, "tensors", _tensors),
        contributions=_part(site, facts, "contributions", _counts),
        steps=_part(site, facts, "steps", _counts),
        samples=_part(site, facts, "samples", _count),
        scalars=_part(site, facts, "scalars", _dict),
    )


def read_scalars(message: Shareable | None, site: str) -> dict[str, object]:
    """A site's scalars; raises as ``read_update``."""
    _, facts = _answer(message, site)
    return _part(site, facts, "scalars", _dict)


def _message(kind: str, arrays: Mapping[str, Any], facts: Mapping[str, Any]) -> Shareable:
    # FLARE treats a DXO without data as invalid, so an empty set of arrays still has its dictionary.
    return DXO(kind, data={"arrays": dict(arrays)}, meta={"parametrium": dict(facts)}).to_shareable()


def _read(message: Shareable) -> tuple[dict[str, Any], dict[str, Any]]:
    dxo = from_shareable(message)
    return _dict(dxo.data["arrays"]), _dict(dxo.meta["parametrium"])


def _answer(message: Shareable | None, site: str) -> tuple[dict[str, Any], dict[str, Any]]:
    if message is None:
        raise FederationError(Code.UPDATE_REJECTED, f"{site}: no answer came in time")
    try:
        arrays, facts = _read(message)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FederationError(Code.UPDATE_REJECTED, f"{site}: the answer has not the form of a message") from error
    if "error" in facts:
        raise FederationError(Code.UPDATE_REJECTED, f"{site}: {_coded(facts['error'])}")
    return arrays, facts


def _coded(text: object) -> str:
    """A site's error text as the server keeps it: one line of bounded length."""
    return " ".join(str(text).split())[:500]


def _part(site: str, facts: Mapping[str, Any], name: str, read: Callable[[Any], T]) -> T:
    """One part of a message, by the name that this module gave it: it is safe to tell which one was wrong."""
    if name not in facts:
        raise FederationError(Code.UPDATE_REJECTED, f"{site}: the answer lacks {name}")
    try:
        return read(facts[name])
    except (TypeError, ValueError) as error:
        raise FederationError(Code.UPDATE_REJECTED, f"{site}: {name} is not of the type of an update's") from error


def _count(value: object) -> int:
    if type(value) is not int:  # not bool, and no float that would be rounded in silence
        raise TypeError
    return value


def _dict(value: object) -> dict[str, Any]:
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise TypeError
    return dict(value)


def _counts(value: object) -> dict[str, int]:
    return {name: _count(number) for name, number in _dict(value).items()}


def _tensors(value: object) -> dict[str, Tensor]:
    return {name: _tensor(array) for name, array in _dict(value).items()}


def _tensor(array: object) -> Tensor:
    if not isinstance(array, np.ndarray | np.generic):
        raise TypeError
    return torch.from_numpy(np.array(array, copy=True, order="C"))
