"""A trainer that trains honestly and then spoils what it reports, by site and round, as a plan says.

The plan: {"faults": {"<site>": {"<round>": "<fault>"}}, "sentinel": "<text>", "record": "<folder>"}. What a site hands
over is recorded there, for tests that recompute what the server made of it.
"""

import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from parametrium.site import trainer
from parametrium.training.update import Update


def with_nan(update: Update, name: str) -> Update:
    spoiled = update.tensors[name].clone()
    spoiled.view(-1)[0] = float("nan")
    return replace(update, tensors={**update.tensors, name: spoiled})


def without_declared(update: Update, name: str) -> Update:
    return replace(update, tensors={key: tensor for key, tensor in update.tensors.items() if key != name})


def with_wrong_shape(update: Update, name: str) -> Update:
    return replace(update, tensors={**update.tensors, name: torch.zeros(3, 5, 7)})


SPOILED: dict[str, Callable[[Update, str], Update]] = {
    "nan": with_nan,
    "missing_key": without_declared,
    "wrong_shape": with_wrong_shape,
}


def install(plan: dict[str, Any]) -> None:
    """Replaces the trainer's ``train_round``."""
    honest = trainer.train_round

    def train_round(state: Any, loader: Any, job: Any, site: str, number: int) -> Update:
        fault = plan["faults"].get(site, {}).get(str(number), "")
        if fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if fault == "raise":
            raise ValueError(f"cannot read /scans/{plan['sentinel']}/CT.nii.gz of {plan['sentinel']}")
        update = honest(state, loader, job, site, number)
        record(Path(plan["record"]) / f"{site}-{number}", update)
        if fault == "scalar_name":
            return replace(update, scalars={**update.scalars, f"/scans/{plan['sentinel']}": 1.0})
        return SPOILED[fault](update, max(update.tensors)) if fault else update

    trainer.train_round = train_round


def record(path: Path, update: Update) -> None:
    save_file(update.tensors, path.with_suffix(".safetensors"))
    path.with_suffix(".json").write_text(json.dumps(update.contributions))
