"""AdamW with correct parameter groups, and the learning rate as a pure function of the global step (METHODS 8.4)."""

import math
from collections.abc import Iterable

import torch
from torch import nn

from parametrium.config import OptimiserConfig
from parametrium.model.template import Template

TEMPLATE_RATE = 10.0
"""Learning rate of templates over that of everything else (METHODS 8.4): a voxel is trained by a few crops only."""


def parameter_groups(named: Iterable[tuple[str, nn.Parameter]], weight_decay: float) -> list[dict[str, object]]:
    """Matrices of linear layers decay; vectors, tokens and scalars do not.

    Tokens are stored as [E, C]; they are recognised by their name's last part, which only ``nn.Linear`` calls "weight".
    """
    decay: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, parameter in named:
        is_matrix = parameter.ndim >= 2 and name.endswith(".weight")
        (decay if is_matrix else rest).append(parameter)
    return [{"params": decay, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}]


def build_optimiser(model: nn.Module, config: OptimiserConfig) -> torch.optim.AdamW:
    """AdamW over all parameters; one without a gradient in a step is not moved, nor decayed, by that step.

    Each group has a ``factor`` of the learning rate, see ``set_learning_rate``; templates have a group of their own.
    """
    templates = [module.values for module in model.modules() if isinstance(module, Template)]
    apart = {id(values) for values in templates}
    others = ((name, parameter) for name, parameter in model.named_parameters() if id(parameter) not in apart)
    groups = [group | {"factor": 1.0} for group in parameter_groups(others, config.weight_decay)]
    if templates:
        groups.append({"params": templates, "weight_decay": 0.0, "factor": TEMPLATE_RATE})
    optimiser = torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, fused=True)
    set_learning_rate(optimiser, config.learning_rate)
    return optimiser


def set_learning_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """Gives every group the rate times its factor."""
    for group in optimiser.param_groups:
        group["lr"] = rate * group["factor"]


def learning_rate(step: int, total_steps: int, config: OptimiserConfig) -> float:
    """Linear warm-up, then cosine to the final fraction.

    Args:
        step: global step, 0 .. total_steps - 1; the same at every site, whatever its data. Beyond the run's end the
            rate stays at the final fraction.
        total_steps: steps of the whole run.
        config: peak, warm-up and final fraction.
    """
    warmup = config.warmup_fraction * total_steps
    if step < warmup:
        return config.learning_rate * (step + 1) / math.ceil(warmup)
    progress = min((step - warmup) / max(total_steps - warmup, 1), 1.0)
    cosine = (1 + math.cos(math.pi * progress)) / 2
    return config.learning_rate * (config.final_fraction + (1 - config.final_fraction) * cosine)
