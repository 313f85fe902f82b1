"""How updates become the next global model (METHODS 5.2).

The server and ``parametrium train`` both go through here: one site alone in a federation therefore equals local
training bit for bit, but for the templates that a federation keeps from the others.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from parametrium.model.modality import Owner
from parametrium.training.update import Update

Rule = Literal["per_tensor", "whole_model"]


def aggregate(
    model: Mapping[str, Tensor],
    updates: Sequence[Update],
    *,
    rule: Rule = "per_tensor",
    server_learning_rate: float = 1.0,
    keep: Collection[str] = (),
) -> dict[str, Tensor]:
    """theta_p + eta sum_k n_kp delta_kp / sum_k n_kp, in float64, over sites in the order of their names.

    Args:
        model: the round's global model; not changed.
        updates: checked updates, in any order.
        rule: ``per_tensor`` weighs by n_kp; ``whole_model`` is plain FedAvg: n_k on every tensor, a tensor that a site
            did not train counts as an unchanged one.
        server_learning_rate: eta.
        keep: tensors that stay as they are, whoever trained them; see ``templates_of_few``.

    Returns:
        The next model; a tensor that is kept or that nobody trained is the same object as before.
    """
    ordered = sorted(updates, key=lambda update: update.site)
    return {
        name: _next(name, tensor, ordered, rule, server_learning_rate)
        if name not in keep and _trained(name, ordered)
        else tensor
        for name, tensor in model.items()
    }


def templates_of_few(updates: Sequence[Update], owners: Mapping[str, Owner], minimum_sites: int) -> set[str]:
    """Templates, and their tokens, that fewer sites trained in this round: not to be aggregated (METHODS 8.5).

    Every site receives the next model: a template that one hospital alone shaped would show the others its patients.
    """
    sites = Counter(name for update in updates for name in update.tensors)
    return {name for name, count in sites.items() if owners[name].role == "fill" and count < minimum_sites}


def _trained(name: str, updates: Sequence[Update]) -> bool:
    return any(name in update.tensors for update in updates)


def _next(name: str, tensor: Tensor, updates: Sequence[Update], rule: Rule, rate: float) -> Tensor:
    total = torch.zeros_like(tensor, dtype=torch.float64)
    weight = 0
    for update in updates:
        if rule == "whole_model":
            weight += update.samples
        if name in update.tensors:
            samples = update.contributions[name] if rule == "per_tensor" else update.samples
            if rule == "per_tensor":
                weight += samples
            total += samples * update.tensors[name].to(tensor.device, torch.float64)
    return (tensor.double() + rate * total / weight).to(tensor.dtype)
