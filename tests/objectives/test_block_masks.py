"""Several small blocks and one large context: against sets of patches."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from parametrium.model.windows import Grid
from parametrium.objectives.block_masks import BlockMasks, draw_block_masks

TARGET, CONTEXT = (0.15, 0.2), (0.85, 1.0)

grids = st.tuples(*[st.integers(1, 7) for _ in range(3)])
seeds = st.integers(0, 2**20)


def draw(batch: int, grid: Grid, seed: int, targets: int = 4) -> BlockMasks | None:
    return draw_block_masks(batch, grid, targets, TARGET, CONTEXT, torch.Generator().manual_seed(seed))


@given(st.integers(1, 4), grids, seeds, st.integers(1, 6))
def test_context_and_blocks_share_no_patch_and_every_row_has_something_to_see(
    batch: int, grid: Grid, seed: int, targets: int
) -> None:
    masks = draw(batch, grid, seed, targets)
    if masks is None:
        assert math.prod(grid) == 1
        return
    assert 1 <= masks.blocks.shape[1] <= targets
    for context, blocks in zip(masks.context.tolist(), masks.blocks.tolist(), strict=True):
        hidden = {patch for block in blocks for patch in block}
        assert context == sorted(set(context)), "ascending, each once"
        assert context
        assert not hidden & set(context)
        assert hidden | set(context) <= set(range(math.prod(grid)))


@given(grids, seeds)
def test_a_block_is_a_cuboid_of_the_grid(grid: Grid, seed: int) -> None:
    masks = draw(2, grid, seed)
    if masks is None:
        return
    for block in masks.blocks.flatten(0, 1):
        places = torch.stack([block // (grid[1] * grid[2]), block // grid[2] % grid[1], block % grid[2]], dim=1)
        edges = places.amax(0) - places.amin(0) + 1
        assert len(set(block.tolist())) == len(block) == int(edges.prod())


def test_sizes_are_the_published_shares() -> None:
    found = [draw(4, (12, 12, 12), seed) for seed in range(60)]
    shares = [masks.blocks.shape[2] / 12**3 for masks in found if masks]
    assert 0.14 < sum(shares) / len(shares) < 0.21
    assert 0.09 < min(shares) < max(shares) < 0.28
    seen = [masks.context.shape[1] / 12**3 for masks in found if masks]
    assert 0.3 < sum(seen) / len(seen) < 0.6
    assert len({masks.blocks.shape[2] for masks in found if masks}) > 10


def test_rows_differ_and_the_generator_alone_decides() -> None:
    masks, again = draw(6, (6, 6, 6), 3), draw(6, (6, 6, 6), 3)
    assert masks is not None
    assert again is not None
    assert torch.equal(masks.context, again.context)
    assert torch.equal(masks.blocks, again.blocks)
    assert len({tuple(row) for row in masks.blocks.flatten(1).tolist()}) == 6


def test_every_place_is_hidden_at_some_time() -> None:
    counts = torch.zeros(4**3)
    for seed in range(100):
        masks = draw(4, (4, 4, 4), seed)
        assert masks is not None
        for row in masks.blocks:
            counts[row.unique()] += 1
    assert counts.min() > 40


@pytest.mark.parametrize(("grid", "blocks"), [((2, 2, 2), 4), ((1, 1, 2), 1), ((1, 1, 1), None)])
def test_small_grids_get_fewer_blocks(grid: Grid, blocks: int | None) -> None:
    for seed in range(20):
        masks = draw(2, grid, seed)
        assert (masks is None) if blocks is None else (masks is not None and masks.blocks.shape[1] <= blocks)
