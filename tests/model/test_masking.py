"""Masks split every row's patches exactly, and every window in the same share."""

from collections import Counter, defaultdict
from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from parametrium.model.masking import draw_mask, visible_count
from parametrium.model.patch_embed import gather, padded, patch_grid, patchify, unpatchify
from parametrium.model.windows import Grid, window_numbers

GRIDS = st.tuples(st.integers(1, 9), st.integers(1, 7), st.integers(2, 6))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@given(st.integers(1, 4), GRIDS, st.floats(0.01, 0.99), st.sampled_from([1, 2]))
def test_visible_and_masked_are_a_partition(batch: int, grid: Grid, ratio: float, unit: int) -> None:
    visible, masked = draw_mask(batch, grid, ratio, seeded(), unit)
    both = torch.cat([visible, masked], dim=1).sort(dim=1).values
    assert torch.equal(both, torch.arange(grid[0] * grid[1] * grid[2]).expand(batch, -1))
    assert torch.equal(visible, visible.sort(dim=1).values)


@given(st.integers(1, 3), GRIDS, st.floats(0.01, 0.99), st.sampled_from([1, 2]), st.integers(0, 99))
def test_every_window_shows_its_share(batch: int, grid: Grid, ratio: float, unit: int, seed: int) -> None:
    visible, _ = draw_mask(batch, grid, ratio, seeded(seed), unit)
    windows = window_numbers(grid).tolist()
    for row in visible.tolist():
        for window in set(windows):
            shown = sum(windows[patch] == window for patch in row)
            assert shown == visible_count(windows.count(window), ratio)


@pytest.mark.parametrize("ratio", [0.5, 0.75])
def test_the_ratio_is_exact_where_it_can_be(ratio: float) -> None:
    visible, _ = draw_mask(2, (12, 12, 12), ratio, seeded(1))
    assert visible.shape[1] == 12**3 * (1 - ratio)


def test_a_ratio_of_zero_keeps_all() -> None:
    visible, masked = draw_mask(2, (2, 2, 2), 0.0, seeded(1))
    assert visible.shape == (2, 8)
    assert masked.shape == (2, 0)


def test_rows_are_drawn_independently_and_every_patch_is_as_likely() -> None:
    visible, _ = draw_mask(4000, (5, 4, 4), 0.75, seeded(2))
    share = torch.bincount(visible.flatten(), minlength=80) / 4000
    expected = torch.tensor([visible_count(int(n), 0.75) / int(n) for n in torch.bincount(window_numbers((5, 4, 4)))])
    assert (share - expected[window_numbers((5, 4, 4))]).abs().max() < 0.04  # five standard errors


def test_cubes_are_masked_together() -> None:
    visible, _ = draw_mask(50, (8, 8, 8), 0.75, seeded(3), unit=2)
    shown = torch.zeros(50, 512).scatter_(1, visible, 1.0).reshape(50, 4, 2, 4, 2, 4, 2)
    of_a_cube = shown.sum((2, 4, 6))
    assert set(of_a_cube.unique().tolist()) == {0.0, 8.0}


@given(GRIDS, st.integers(0, 99))
def test_no_cube_lies_in_two_windows_and_a_window_splits_one_at_most(grid: Grid, seed: int) -> None:
    """Against a loop that counts cubes from where a window begins."""
    visible, _ = draw_mask(1, grid, 0.6, seeded(seed), unit=2)
    shown, cubes = set(visible[0].tolist()), defaultdict(set)
    axes = [[int(n) for n in window_numbers((extent, 1, 1))] for extent in grid]
    for patch, place in enumerate(product(*map(range, grid))):
        window = tuple(along[at] for along, at in zip(axes, place, strict=True))
        inside = tuple((at - along.index(along[at])) // 2 for along, at in zip(axes, place, strict=True))
        cubes[window, inside].add(patch)
    split = Counter(window for (window, _), patches in cubes.items() if patches & shown not in (set(), patches))
    assert max(split.values(), default=0) <= 1


def test_patchify_round_trip_against_a_loop() -> None:
    volumes = torch.randn(2, 8, 12, 4)
    patches = patchify(volumes, 4)
    assert torch.equal(unpatchify(patches, (2, 3, 1), 4), volumes)
    expected = [volumes[1, i : i + 4, j : j + 4, 0:4].flatten() for i in (0, 4) for j in (0, 4, 8)]
    assert torch.equal(patches[1], torch.stack(expected))


def test_padding_adds_zeros_at_the_end_only() -> None:
    volumes = torch.randn(2, 7, 8, 5)
    filled = padded(volumes, 4)
    assert filled.shape == (2, 8, 8, 8)
    assert patch_grid(volumes, 4) == (2, 2, 2)
    assert torch.equal(filled[:, :7, :, :5], volumes)
    assert filled.count_nonzero() == volumes.count_nonzero()
    assert padded(filled, 4) is filled


def test_padding_makes_as_many_patches_as_are_asked_for() -> None:
    volumes = torch.ones(1, 3, 4, 9)
    assert padded(volumes, 4, patches=2).shape == (1, 8, 8, 12)
    assert padded(volumes, 4, patches=2).sum() == volumes.sum()


def test_gather_takes_the_named_patches() -> None:
    tokens, index = torch.randn(2, 5, 3), torch.tensor([[4, 0], [1, 1]])
    assert torch.equal(gather(tokens, index)[0], tokens[0, [4, 0]])
    assert torch.equal(gather(tokens, index)[1], tokens[1, [1, 1]])
