"""Windows of the patch grid: where attention is local (ViTDet, Li et al. 2022, section 3; METHODS 2.2 and 8.2).

The grid is cut along each axis into windows of at most ``EDGE`` patches, as even as the axis allows: 12 is 4 + 4 + 4,
and 6 is 3 + 3 and not 4 + 2, so that few slots of the dense windows stay empty.

B volumes, L patches of the grid, K tokens, W windows, S slots of a window, C channels.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

Grid = tuple[int, int, int]

EDGE = 4
"""Patches along a full window's edge."""


def window_numbers(grid: Grid) -> Tensor:
    """[L] the window of each patch, in row-major order of the patches and of the windows."""
    along = [torch.arange(extent) * math.ceil(extent / EDGE) // extent for extent in grid]
    counts = [math.ceil(extent / EDGE) for extent in grid]
    d, h, w = torch.meshgrid(*along, indexing="ij")
    return ((d * counts[1] + h) * counts[2] + w).flatten()


class Windows(NamedTuple):
    """How a batch's tokens are laid out window by window.

    Attributes:
        slot: [B, K] place of each token among the W * S slots.
        occupied: [B, W * S] True where a slot holds a token; None where all do.
        number: W.
        size: S, the tokens of the fullest window.
    """

    slot: Tensor
    occupied: Tensor | None
    number: int
    size: int

    def to(self, device: torch.device) -> "Windows":
        """The same layout on another device."""
        occupied = None if self.occupied is None else self.occupied.to(device, non_blocking=True)
        return self._replace(slot=self.slot.to(device, non_blocking=True), occupied=occupied)

    def arrange(self, tokens: Tensor) -> Tensor:
        """[B, K, C] -> [B, W * S, C], zero in empty slots."""
        out = tokens.new_zeros(len(tokens), self.number * self.size, tokens.shape[-1])
        return out.scatter(1, self.slot[..., None].expand_as(tokens), tokens)

    def restore(self, slots: Tensor) -> Tensor:
        """[B, W * S, C] -> [B, K, C], the inverse of ``arrange``."""
        return slots.gather(1, self.slot[..., None].expand(-1, -1, slots.shape[-1]))


def windows_of(index: Tensor, grid: Grid) -> Windows | None:
    """The windows of some patches; None where the grid is one window, in which local attention is global.

    Args:
        index: [B, K] patch indices, each at most once a row. Of the CPU: the layout's sizes are read from it.
        grid: patches along D, H, W.
    """
    numbers = window_numbers(grid)
    count = int(numbers[-1]) + 1
    if count == 1:
        return None
    own = numbers.to(index.device)[index]
    held = torch.zeros(len(index), count, dtype=torch.long, device=index.device)
    held.scatter_add_(1, own, torch.ones_like(own))
    order = own.argsort(dim=1, stable=True)
    before = held.cumsum(1) - held
    ranks = torch.arange(index.shape[1], device=index.device) - before.gather(1, own.gather(1, order))
    rank = torch.empty_like(own).scatter_(1, order, ranks)
    size = int(held.max())
    slot = own * size + rank
    if bool((held == size).all()):
        return Windows(slot, None, count, size)
    occupied = torch.zeros(len(index), count * size, dtype=torch.bool, device=index.device)
    return Windows(slot, occupied.scatter_(1, slot, True), count, size)
