"""What travels between the server and a site: one FLARE message a task, tensors as arrays, the rest plain values.

Arrays go through FLARE's own array codec: float32 arrives bit for bit, and nothing is unpickled on either side.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from nvflare.apis.dxo import DXO, DataKind, from_shareable
from nvflare.apis.shareable import Shareable
from torch import Tensor

from parametrium.errors import Code, FederationError, ParametriumError, public_text
from parametrium.training.update import Update

OPEN, TRAIN, EVALUATE = "open", "train", "evaluate"
TASKS = (OPEN, TRAIN, EVALUATE)


def task_message(round_number: int, model: Mapping[str, Tensor] | None = None, final: bool = False) -> Shareable:
    """What the server sends: the round, and the global model where the task needs it."""
    arrays = {name: tensor.numpy() for name, tensor in (model or {}).items()}
    return _message(DataKind.WEIGHTS, arrays, {"round": round_number, "final": final})


def read_task(message: Shareable) -> tuple[int, bool, dict[str, Tensor]]:
    """Round, whether it is the final evaluation, and the global model."""
    arrays, facts = _read(message)
    return int(facts["round"]), bool(facts["final"]), {name: _tensor(array) for name, array in arrays.items()}


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
        FederationError: PM501 when the site reports an error or the message does not have the form of an update.
    """
    arrays, facts = _answer(message, site)
    try:
        return Update(
            site=site,
            round=int(facts["round"]),
            tensors={str(name): _tensor(array) for name, array in arrays.items()},
            contributions={str(name): int(n) for name, n in facts["contributions"].items()},
            steps={str(name): int(n) for name, n in facts["steps"].items()},
            samples=int(facts["samples"]),
            scalars=dict(facts["scalars"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _malformed(site) from error


def read_scalars(message: Shareable | None, site: str) -> dict[str, object]:
    """A site's scalars; raises as ``read_update``."""
    _, facts = _answer(message, site)
    if not isinstance(facts.get("scalars"), dict):
        raise _malformed(site)
    return dict(facts["scalars"])


def _message(kind: str, arrays: Mapping[str, Any], facts: Mapping[str, Any]) -> Shareable:
    # FLARE treats a DXO without data as invalid, so an empty set of arrays still has its dictionary.
    return DXO(kind, data={"arrays": dict(arrays)}, meta={"parametrium": dict(facts)}).to_shareable()


def _read(message: Shareable) -> tuple[dict[str, Any], dict[str, Any]]:
    dxo = from_shareable(message)
    return dxo.data["arrays"], dxo.meta["parametrium"]


def _answer(message: Shareable | None, site: str) -> tuple[dict[str, Any], dict[str, Any]]:
    if message is None:
        raise FederationError(Code.UPDATE_REJECTED, f"{site}: no answer came in time")
    try:
        arrays, facts = _read(message)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _malformed(site) from error
    if "error" in facts:
        raise FederationError(Code.UPDATE_REJECTED, f"{site}: {_coded(facts['error'])}")
    return arrays, facts


def _coded(text: object) -> str:
    """A site's error text as the server keeps it: one line of bounded length."""
    return " ".join(str(text).split())[:500]


def _malformed(site: str) -> ParametriumError:
    return FederationError(Code.UPDATE_REJECTED, f"{site}: the answer does not have the form of an update")


def _tensor(array: Any) -> Tensor:
    return torch.from_numpy(np.array(array, copy=True, order="C"))
