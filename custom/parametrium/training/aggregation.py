"""How updates become the next global model (METHODS 5.2).

The server and ``parametrium train`` both go through here: one site alone in a federation therefore equals local
training bit for bit.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from parametrium.training.update import Update

Rule = Literal["per_tensor", "whole_model"]


def aggregate(
    model: Mapping[str, Tensor],
    updates: Sequence[Update],
    *,
    rule: Rule = "per_tensor",
    server_learning_rate: float = 1.0,
) -> dict[str, Tensor]:
    """theta_p + eta sum_k n_kp delta_kp / sum_k n_kp, in float64, over sites in the order of their names.

    Args:
        model: the round's global model; not changed.
        updates: checked updates, in any order.
        rule: ``per_tensor`` weighs by n_kp; ``whole_model`` is plain FedAvg: n_k on every tensor, a tensor that a site
            did not train counts as an unchanged one.
        server_learning_rate: eta.

    Returns:
        The next model; a tensor that nobody trained is the same object as before.
    """
    ordered = sorted(updates, key=lambda update: update.site)
    return {
        name: _next(name, tensor, ordered, rule, server_learning_rate) if _trained(name, ordered) else tensor
        for name, tensor in model.items()
    }


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
