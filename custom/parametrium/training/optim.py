"""Muon for the blocks' matrices, AdamW for all else; the learning rate as a pure function of the global step.

METHODS 8.4 gives AdamW for everything. With it an encoder learns too slowly to be of use after the steps that a
hospital can afford (docs/transfer.md): its gradients are of low rank, and most directions of a matrix hardly move. Muon
(Jordan, 2024; ``torch.optim.Muon``) moves all of them equally, by making the step orthogonal.
"""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from parametrium.config import OptimiserConfig
from parametrium.model.attention import Block
from parametrium.model.template import Template

TEMPLATE_RATE = 10.0
"""Learning rate of templates over that of everything else (METHODS 8.4): a voxel is trained by a few crops only."""


class Optimiser:
    """Several optimisers of torch behind one list of groups and one state, each with parameters of its own.

    Args:
        parts: at least one; their states become one.

    Attributes:
        param_groups: of all parts, in their order.
        state: slots by parameter, of all parts.
    """

    def __init__(self, parts: Sequence[torch.optim.Optimizer]) -> None:
        self.parts = parts
        self.param_groups = [group for part in parts for group in part.param_groups]
        self.state = parts[0].state
        for part in parts[1:]:
            part.state = self.state

    def zero_grad(self) -> None:
        """Takes the gradients away: a parameter without one is not moved, nor decayed, by the next step."""
        for part in self.parts:
            part.zero_grad(set_to_none=True)

    def step(self) -> None:
        """Moves every parameter that has a gradient."""
        for part in self.parts:
            part.step()


def parameter_groups(named: Iterable[tuple[str, nn.Parameter]], weight_decay: float) -> list[dict[str, object]]:
    """Matrices of linear layers and kernels of convolutions decay; vectors, tokens and scalars do not.

    Tokens are stored as [E, C]; they are recognised by their name's last part, which only layers call "weight".
    """
    decay: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, parameter in named:
        is_matrix = parameter.ndim >= 2 and name.endswith(".weight")
        (decay if is_matrix else rest).append(parameter)
    return [{"params": decay, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}]


def block_matrices(model: nn.Module) -> list[Tensor]:
    """Matrices of the linear layers inside of transformer blocks: what Muon is for, both ends of each being hidden."""
    blocks = (module for module in model.modules() if isinstance(module, Block))
    return [layer.weight for block in blocks for layer in block.modules() if isinstance(layer, nn.Linear)]


def build_optimiser(model: nn.Module, config: OptimiserConfig) -> Optimiser:
    """Optimiser of all parameters; one without a gradient in a step is not moved, nor decayed, by that step.

    Each group has a ``factor`` of the learning rate, see ``set_learning_rate``; templates have a group of their own,
    and so have the blocks' matrices where ``config.matrix_learning_rate`` is set.
    """
    templates = [module.values for module in model.modules() if isinstance(module, Template)]
    matrices = [] if config.matrix_learning_rate is None else block_matrices(model)
    apart = {id(values) for values in (*templates, *matrices)}
    others = ((name, parameter) for name, parameter in model.named_parameters() if id(parameter) not in apart)
    groups = [group | {"factor": 1.0} for group in parameter_groups(others, config.weight_decay)]
    if templates:
        groups.append({"params": templates, "weight_decay": 0.0, "factor": TEMPLATE_RATE})
    parts: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, betas=config.betas, fused=True)]
    if matrices and config.matrix_learning_rate is not None:
        factor = config.matrix_learning_rate / config.learning_rate
        # "original": a step's largest singular value follows the rate alone, so that one rate serves every width.
        group = {"params": matrices, "weight_decay": config.weight_decay, "factor": factor}
        parts.append(torch.optim.Muon([group], adjust_lr_fn="original"))
    optimiser = Optimiser(parts)
    set_learning_rate(optimiser, config.learning_rate)
    return optimiser


def set_learning_rate(optimiser: Optimiser, rate: float) -> None:
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
