"""Which patches are shown and which blocks are predicted: several small blocks, one large context (I-JEPA).

The multi-block scheme of Assran et al. 2023 (section 3 and appendix A), with one axis more. Sizes are drawn once for
the batch, so that all rows have as many tokens; places are drawn for every row.

B rows, L patches of the grid, K context patches, N blocks of a row, V patches of a block.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from parametrium.model.windows import Grid

ASPECT = (0.75, 1.5)
"""Range of the ratios between a block's edges."""

LEFT = 0.25
"""Blocks take at most the rest of the crop: something must be there to predict from."""


class BlockMasks(NamedTuple):
    """Patch indices, on the CPU.

    Attributes:
        context: [B, K] what the encoder sees, ascending.
        blocks: [B, N, V] what is predicted; blocks may overlap each other, never the context.
    """

    context: Tensor
    blocks: Tensor


def draw_block_masks(
    batch: int,
    grid: Grid,
    targets: int,
    target_scale: tuple[float, float],
    context_scale: tuple[float, float],
    generator: torch.Generator,
) -> BlockMasks | None:
    """Draws contexts and blocks; None where the grid is too small for any block.

    Args:
        batch: rows B.
        grid: patches along D, H, W; L in all.
        targets: blocks of a row, at most.
        target_scale: range of a block's share of the patches.
        context_scale: range of the context block's share.
        generator: CPU generator.
    """
    total = math.prod(grid)
    extent = _extent(grid, target_scale, ASPECT, generator)
    number = min(targets, int((1 - LEFT) * total / math.prod(extent)))
    if number == 0:
        return None
    blocks = _blocks(batch, number, grid, extent, generator)
    free = torch.ones(batch, total, dtype=torch.bool).scatter_(1, blocks.flatten(1), False)
    around = _blocks(batch, 1, grid, _extent(grid, context_scale, (1.0, 1.0), generator), generator)
    inside = torch.zeros(batch, total, dtype=torch.bool).scatter_(1, around.flatten(1), True)
    shown = torch.where((free & inside).any(1, keepdim=True), free & inside, free)
    fewest = int(shown.sum(1).min())
    scores = torch.rand(batch, total, generator=generator).masked_fill(~shown, -1.0)
    context = scores.topk(fewest, dim=1).indices.sort(dim=1).values
    return BlockMasks(context, blocks)


def _extent(grid: Grid, scale: tuple[float, float], aspect: tuple[float, float], generator: torch.Generator) -> Grid:
    """Edges, in patches, of a block that takes about a share of the grid drawn from ``scale``."""
    share, *stretch = torch.rand(4, generator=generator, dtype=torch.float64).tolist()
    edge = (scale[0] + share * (scale[1] - scale[0])) ** (1 / 3)
    low, high = (math.log(bound) for bound in aspect)
    logs = [low + part * (high - low) for part in stretch]
    mean = sum(logs) / 3  # stretched axes must not make the block larger
    d, h, w = (
        min(max(round(whole * edge * math.exp(log - mean)), 1), whole) for whole, log in zip(grid, logs, strict=True)
    )
    return d, h, w


def _blocks(batch: int, number: int, grid: Grid, extent: Grid, generator: torch.Generator) -> Tensor:
    """[B, N, V] patch indices of blocks of one size at places drawn evenly."""
    free = torch.tensor(grid) - torch.tensor(extent) + 1
    low = (torch.rand(batch, number, 3, generator=generator, dtype=torch.float64) * free).long()
    inner = torch.stack(torch.meshgrid(*(torch.arange(n) for n in extent), indexing="ij"), dim=-1).reshape(-1, 3)
    place = low[:, :, None] + inner
    index: Tensor = (place[..., 0] * grid[1] + place[..., 1]) * grid[2] + place[..., 2]
    return index
