"""One round at one site: the same function serves the federation and ``parametrium train``."""

import time
from collections import Counter, defaultdict
from collections.abc import Mapping

import torch
from torch import Tensor

from parametrium.config import JobConfig
from parametrium.data.loader import CropLoader
from parametrium.errors import Code, TrainingError
from parametrium.training.step import TrainState, train_step
from parametrium.training.update import Update


def train_round(state: TrainState, loader: CropLoader, job: JobConfig, site: str, number: int) -> Update:
    """Trains ``job.local_steps`` steps and reports what changed.

    The round's steps are ``number * local_steps`` onwards, whatever was trained before: a site that missed rounds is at
    the same place of the schedule as the others.

    Args:
        state: model already holding the global weights; changed in place.
        loader: the site's training crops.
        job: the job.
        site: name of the site.
        number: round, counted from 0.

    Returns:
        Differences of the tensors that were trained, n_kp of each, and scalars by their public names; an idle update
        where no objective of these steps found anything to train on.

    Raises:
        TrainingError: PM402 when a loss or gradient is not finite.
    """
    started = time.monotonic()
    before = tensors_of(state)
    state.step = number * job.local_steps
    passed = 0 if state.last_round is None else (number - state.last_round) * job.local_steps
    for config in job.objectives:
        state.model.objective(config.kind).begin_round(state.model.encoder, passed)
    losses: defaultdict[str, list[float]] = defaultdict(list)
    contributions: Counter[str] = Counter()
    steps: Counter[str] = Counter()
    samples, norms = 0, []
    for batches in loader.steps(state.step, state.step + job.local_steps):
        report = train_step(state, batches, job, site)
        for kind, loss in report.losses.items():
            losses[f"train/loss/{kind}"].append(loss)
        for name, value in report.scalars.items():
            losses[f"train/{name}"].append(value)
        contributions += report.contributions
        steps.update(report.contributions.keys())
        samples += report.samples
        norms.append(report.gradient_norm)
    scalars = {name: sum(values) / len(values) for name, values in losses.items()}
    scalars["train/gradient_norm"] = sum(norms) / len(norms)
    scalars["train/learning_rate"] = state.optimiser.param_groups[0]["lr"]
    scalars["train/samples"] = float(samples)
    scalars["train/seconds"] = time.monotonic() - started
    after = tensors_of(state)
    state.last_round = number
    return Update(
        site=site,
        round=number,
        tensors={name: after[name] - before[name] for name in contributions},
        contributions=dict(contributions),
        steps=dict(steps),
        samples=samples,
        scalars=scalars,
    )


def evaluation_due(job: JobConfig, rounds: int) -> bool:
    """Whether to measure after so many finished rounds."""
    every = job.evaluation.every
    return rounds == job.rounds or (every > 0 and rounds % every == 0)


def tensors_of(state: TrainState) -> dict[str, Tensor]:
    """A copy of the model's tensors on the CPU, by name."""
    return {name: parameter.detach().to("cpu", copy=True) for name, parameter in state.model.named_parameters()}


def set_tensors(state: TrainState, tensors: Mapping[str, Tensor]) -> None:
    """Puts global weights into the model.

    Raises:
        TrainingError: PM401 when names or shapes are not the model's.
    """
    named = dict(state.model.named_parameters())
    if named.keys() != tensors.keys():
        raise TrainingError(
            Code.MODEL_SHAPE,
            f"the received model has {len(tensors)} tensors, this job's model {len(named)}, "
            f"{len(named.keys() & tensors.keys())} names agree",
        )
    for name, parameter in named.items():  # all before the first is copied: a refused model changes nothing
        if parameter.shape != tensors[name].shape:
            raise TrainingError(
                Code.MODEL_SHAPE,
                f"{name} must be {list(parameter.shape)}, received {list(tensors[name].shape)}",
            )
    with torch.no_grad():
        for name, parameter in named.items():
            parameter.copy_(tensors[name])
