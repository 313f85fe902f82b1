"""What one site gives to one round, and the checks that it must pass before it is aggregated."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from parametrium.errors import Code, FederationError

MAXIMUM_SAMPLES = 2**53
"""float64, in which updates are weighed, counts exactly up to here; a larger number would stop the server."""


@dataclass(frozen=True)
class Update:
    """One site's part in one round; nothing at all where the round's objectives found nothing to train on there.

    Attributes:
        site: name of the site.
        round: counted from 0.
        tensors: float32 differences (after - before) of exactly the tensors that were trained.
        contributions: for each of them n_kp, the samples whose loss had a gradient path to it (METHODS 5.2).
        steps: for each of them, the optimiser steps that moved it.
        samples: n_k, all samples of the round.
        scalars: numbers for the logs, by public name.
    """

    site: str
    round: int
    tensors: dict[str, Tensor]
    contributions: dict[str, int]
    steps: dict[str, int]
    samples: int
    scalars: dict[str, float]

    @property
    def idle(self) -> bool:
        """Whether the site had nothing to train on, and says so: no tensors, no counts, no samples."""
        return not (self.tensors or self.contributions or self.steps or self.samples)

    @property
    def norm(self) -> float:
        """L2 norm of all differences, in float64."""
        return math.sqrt(sum(float(t.double().square().sum()) for t in self.tensors.values()))


def nothing(site: str, number: int) -> Update:
    """The idle update of a site."""
    return Update(site, number, tensors={}, contributions={}, steps={}, samples=0, scalars={})


def check_update(
    update: Update, model: Mapping[str, Tensor], *, round_number: int, max_norm: float | None = None
) -> None:
    """Refuses an update that must not reach the aggregate; one that is idle passes, and has nothing to aggregate.

    Args:
        update: as received.
        model: the global model of the round, by tensor name.
        round_number: the round that is open.
        max_norm: largest permitted L2 norm; None permits any finite one.

    Raises:
        FederationError: PM501, naming the site and the reason.
    """

    def refuse(reason: str) -> FederationError:
        return FederationError(Code.UPDATE_REJECTED, f"{update.site}: {reason}")

    counts = [update.round, update.samples, *update.contributions.values(), *update.steps.values()]
    if not all(type(count) is int for count in counts):  # nor bool, which Python takes for an int
        raise refuse("round, samples, contributions and steps must be integers")
    if update.round != round_number:
        raise refuse(f"the update is for round {update.round}, round {round_number} is open")
    broken = sum(not _is_finite_number(value) for value in update.scalars.values())
    if broken:
        raise refuse(f"{broken} scalars are not finite numbers")
    if update.idle:
        return
    if not update.tensors or update.samples <= 0:
        raise refuse("the update is empty")
    if update.samples > MAXIMUM_SAMPLES:
        raise refuse(f"it counts more than {MAXIMUM_SAMPLES} samples")
    unknown = len(update.tensors.keys() - model.keys())
    if unknown:
        raise refuse(f"{unknown} tensors are not in the model")
    if update.tensors.keys() != update.contributions.keys():
        missing = len(update.contributions.keys() - update.tensors.keys())
        uncounted = len(update.tensors.keys() - update.contributions.keys())
        raise refuse(f"{missing} declared tensors are missing, {uncounted} tensors have no contribution")
    if update.tensors.keys() != update.steps.keys():
        missing = len(update.steps.keys() - update.tensors.keys())
        uncounted = len(update.tensors.keys() - update.steps.keys())
        raise refuse(f"{missing} tensors with steps are missing, {uncounted} tensors have no steps")
    for name, tensor in sorted(update.tensors.items()):
        if tensor.shape != model[name].shape:
            raise refuse(f"{name} must be {list(model[name].shape)}, got {list(tensor.shape)}")
        if tensor.dtype != torch.float32:
            raise refuse(f"{name} must be float32, got {str(tensor.dtype).removeprefix('torch.')}")
        if not torch.isfinite(tensor).all():
            raise refuse(f"{name} is not finite")
        if update.contributions[name] <= 0:
            raise refuse(f"{name} has contribution {update.contributions[name]}, at least 1 is needed")
        if update.contributions[name] > update.samples:
            raise refuse(f"{name} counts {update.contributions[name]} samples of {update.samples}")
        if update.steps[name] <= 0:
            raise refuse(f"{name} has {update.steps[name]} steps, at least 1 is needed")
    norm = update.norm
    if max_norm is not None and norm > max_norm:
        raise refuse(f"its norm {norm:.4g} is above the limit {max_norm:.4g}")


def _is_finite_number(value: object) -> bool:
    try:
        return type(value) in (int, float) and math.isfinite(cast(float, value))
    except OverflowError:  # an int beyond every float
        return False
