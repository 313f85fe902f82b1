"""Parts that belong to one modality, and the registry of which tensor belongs to whom.

A tensor is shared, or belongs to a modality in one of three roles: it embeds that modality's voxels, decodes to them,
or fills a part of a crop with that modality's template. The federation counts and averages tensor by tensor with this
registry; nothing is guessed from names.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

Role = Literal["shared", "embed", "decode", "fill"]


class Owner(NamedTuple):
    """To which role and modality a tensor belongs; modality is None for shared tensors."""

    role: Role
    modality: str | None


SHARED = Owner("shared", None)


class ByModality(nn.Module):
    """One module a modality, applied to the rows of that modality.

    Args:
        role: what these modules do with their modality.
        modalities: the job's modalities; an index into it names a modality in batches.
        modules: one module each.
    """

    def __init__(self, role: Role, modalities: Sequence[str], modules: Sequence[nn.Module]) -> None:
        super().__init__()
        self.role = role
        self.modalities = tuple(modalities)
        self.of = nn.ModuleDict(dict(zip(modalities, modules, strict=True)))

    def forward(self, x: Tensor, modality: Tensor) -> Tensor:
        """Applies each row's own module.

        Args:
            x: [B, ...] rows.
            modality: [B] index of each row's modality.
        """
        present: list[int] = torch.unique(modality).tolist()
        if len(present) == 1:
            return cast(Tensor, self.of[self.modalities[present[0]]](x))
        parts, rows = [], []
        for index in present:
            row = (modality == index).nonzero().squeeze(1)
            rows.append(row)
            parts.append(self.of[self.modalities[index]](x[row]))
        return torch.cat(parts)[torch.cat(rows).argsort()]


class Token(nn.Module):
    """A learned vector that is added to every row; in a module, so that it can belong to a modality."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.vector = nn.Parameter(torch.randn(width) * 0.02)

    def forward(self, x: Tensor) -> Tensor:
        """[..., C] -> [..., C]."""
        return x + self.vector


def tensor_owners(model: nn.Module) -> dict[str, Owner]:
    """The owner of every parameter of a model, by parameter name."""
    owners = dict.fromkeys((name for name, _ in model.named_parameters()), SHARED)
    for path, module in model.named_modules():
        if isinstance(module, ByModality):
            for modality, part in module.of.items():
                for name, _ in part.named_parameters():
                    owners[f"{path}.of.{modality}.{name}"] = Owner(module.role, modality)
    return owners
