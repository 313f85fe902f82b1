"""Rollout as a vector equals the product of operator matrices that loops build, and keeps all of its mass."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from parametrium.model.encoder import AttentionMap, Encoder
from parametrium.model.presets import PRESETS
from parametrium.model.windows import Grid, Windows, window_numbers, windows_of
from parametrium.monitor.rollout import Start, rollout, rollout_of, watched_rollout

SHAPE = replace(PRESETS["tiny"], patch=2, width=24, depth=4, heads=2, global_every=2)
MM = (1.0, 1.0, 1.0)
EXTRAS = SHAPE.registers + 1
GRIDS = [(8, 4, 4), (5, 6, 3), (9, 1, 2), (3, 4, 2)]


def encoder_of(seed: int = 0) -> Encoder:
    """Random weights, large enough that attention is far from even."""
    torch.manual_seed(seed)
    encoder = Encoder(("CT", "T1"), SHAPE).double().eval()
    for parameter in encoder.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return encoder


def seen(grid: Grid, rows: int, share: float, seed: int) -> Tensor:
    """Some patches of each row, in any order: windows are ragged, and some are empty."""
    torch.manual_seed(seed)
    count = grid[0] * grid[1] * grid[2]
    return torch.stack([torch.randperm(count)[: max(1, round(share * count))] for _ in range(rows)])


def maps_of(index: Tensor, grid: Grid, seed: int = 0) -> tuple[list[AttentionMap], Windows | None]:
    encoder = encoder_of(seed)
    windows = windows_of(index, grid)
    tokens = torch.randn(*index.shape, SHAPE.width, dtype=torch.float64)
    return [exact(block) for block in encoder.watched(tokens, windows)[1]], windows


def exact(block: AttentionMap) -> AttentionMap:
    """The same with rows that sum to 1 in float64."""
    weights = block.weights.double()
    return AttentionMap(weights / weights.sum(-1, keepdim=True), block.local)


def operator(block: AttentionMap, row: int, index: list[int], grid: Grid, windows: Windows | None) -> Tensor:
    """[X + K, X + K] of one crop, entry by entry: what each token's output takes from each token."""
    count, weights = len(index), block.weights[row]
    slot = list(range(count)) if windows is None else windows.slot[row].tolist()
    matrix = torch.zeros(EXTRAS + count, EXTRAS + count, dtype=torch.float64)
    if not block.local:
        place = [*range(EXTRAS), *(EXTRAS + s for s in slot)]
        for a in range(EXTRAS + count):
            for b in range(EXTRAS + count):
                matrix[a, b] = weights[0, place[a], place[b]]
        return matrix
    assert windows is not None
    of = window_numbers(grid)[torch.tensor(index)].tolist()
    held = sorted(set(of))
    for p in range(count):
        own = weights[of[p], EXTRAS + slot[p] - of[p] * windows.size]
        for e in range(EXTRAS):
            matrix[EXTRAS + p, e] = own[e]
        for q in range(count):
            if of[q] == of[p]:
                matrix[EXTRAS + p, EXTRAS + q] = own[EXTRAS + slot[q] - of[q] * windows.size]
    for e in range(EXTRAS):
        for f in range(EXTRAS):
            matrix[e, f] = sum(weights[w, e, f] for w in held) / len(held)
        for q in range(count):
            matrix[e, EXTRAS + q] = weights[of[q], e, EXTRAS + slot[q] - of[q] * windows.size] / len(held)
    return matrix


def dense(
    maps: list[AttentionMap], row: int, index: list[int], grid: Grid, windows: Windows | None, start: Start
) -> Tensor:
    """The product of all blocks' matrices, and the row or the mean of the rows that is read."""
    product = torch.eye(EXTRAS + len(index), dtype=torch.float64)
    for block in maps:
        own = operator(block, row, index, grid, windows)
        assert torch.allclose(own.sum(1), torch.ones(len(own), dtype=torch.float64), atol=1e-12)
        product = (0.5 * own + 0.5 * torch.eye(len(own), dtype=torch.float64)) @ product
    return product[0] if start == "class_token" else product[EXTRAS:].mean(0)


@pytest.mark.parametrize("start", ["patches", "class_token"])
@pytest.mark.parametrize("share", [1.0, 0.3, 0.06])
@pytest.mark.parametrize("grid", GRIDS)
def test_the_vector_equals_the_product_of_the_blocks_matrices(grid: Grid, share: float, start: Start) -> None:
    index = seen(grid, 2, share, seed=3)
    maps, windows = maps_of(index, grid)
    assert {block.local for block in maps} == ({False} if windows is None else {True, False})
    found = rollout(maps, windows, EXTRAS, index.shape[1], start)
    for row in range(2):
        wanted = dense(maps, row, index[row].tolist(), grid, windows, start)
        assert torch.allclose(found.patches[row], wanted[EXTRAS:], atol=1e-14)
        assert found.class_token[row] == pytest.approx(wanted[0].item(), abs=1e-14)
        assert found.registers[row] == pytest.approx(wanted[1:EXTRAS].sum().item(), abs=1e-14)
    assert index.shape[1] < 3 or float(found.patches.std()) > 1e-4  # attention is far from even


@settings(max_examples=15)
@given(
    st.tuples(st.integers(1, 9), st.integers(3, 9), st.integers(5, 6)),
    st.floats(0.05, 1),
    st.integers(0, 99),
    st.sampled_from(["patches", "class_token"]),
)
def test_no_mass_is_lost(grid: Grid, share: float, seed: int, start: Start) -> None:
    index = seen(grid, 2, share, seed)
    maps, windows = maps_of(index, grid, seed)
    found = rollout(maps, windows, EXTRAS, index.shape[1], start)
    total = found.patches.sum(1) + found.class_token + found.registers
    assert torch.allclose(total, torch.ones(2, dtype=torch.float64), atol=1e-12)
    assert bool((found.patches >= 0).all())
    assert torch.allclose(found.map.sum(1), torch.ones(2, dtype=torch.float64), atol=1e-9)


def test_one_window_is_the_formula_of_the_paper() -> None:
    maps, windows = maps_of(seen((3, 4, 2), 1, 1.0, seed=1), (3, 4, 2))
    assert windows is None
    product = torch.eye(EXTRAS + 24, dtype=torch.float64)
    for block in maps:
        mixed = 0.5 * block.weights[0, 0] + 0.5 * torch.eye(EXTRAS + 24, dtype=torch.float64)
        product = (mixed / mixed.sum(1, keepdim=True)) @ product
    found = rollout(maps, None, EXTRAS, 24, "class_token")
    assert torch.allclose(found.patches[0], product[0, EXTRAS:], atol=1e-14)


@pytest.mark.parametrize("grid", [(8, 4, 4), (5, 6, 3)])
def test_attention_to_oneself_gives_the_start_back(grid: Grid) -> None:
    index = seen(grid, 2, 0.5, seed=2)
    windows = windows_of(index, grid)
    assert windows is not None
    size, slots = EXTRAS + windows.size, EXTRAS + windows.number * windows.size
    one = torch.eye(size, dtype=torch.float64).expand(2, windows.number, size, size)
    local, whole = AttentionMap(one, True), AttentionMap(torch.eye(slots).expand(2, 1, slots, slots), False)
    count = index.shape[1]
    found = rollout([local, local, whole, local, whole], windows, EXTRAS, count)
    assert torch.allclose(found.patches, torch.full((2, count), 1 / count, dtype=torch.float64), atol=1e-15)
    found = rollout([local, whole], windows, EXTRAS, count, "class_token")
    assert torch.allclose(found.class_token, torch.ones(2, dtype=torch.float64), atol=1e-15)
    assert not found.patches.any()


def test_crops_do_not_mix() -> None:
    grid = (5, 6, 3)
    index = seen(grid, 3, 0.4, seed=4)
    maps, windows = maps_of(index, grid)
    together = rollout(maps, windows, EXTRAS, index.shape[1])
    assert windows is not None
    for row in range(3):
        own = [AttentionMap(block.weights[row : row + 1], block.local) for block in maps]
        occupied = None if windows.occupied is None else windows.occupied[row : row + 1]
        alone = Windows(windows.slot[row : row + 1], occupied, windows.number, windows.size)
        found = rollout(own, alone, EXTRAS, index.shape[1])
        assert torch.allclose(found.patches[0], together.patches[row], atol=1e-12)


def test_the_map_lies_where_the_patches_lie() -> None:
    """All tokens look at one patch of the grid: the map is high there, whatever the order of the windows is."""
    grid = (8, 4, 6)
    encoder = encoder_of().float()
    volume = torch.randn(1, 16, 8, 12)
    tokens, windows, centres = encoder.tokens(volume, torch.tensor([0]), MM)
    assert windows is not None
    maps = encoder.watched(tokens, windows, centres)[1]
    target = (6 * 4 + 1) * 6 + 5
    slot = EXTRAS + int(windows.slot[0, target])
    for block in maps:
        if not block.local:
            block.weights.zero_()
            block.weights[..., slot] = 1
    found = rollout(maps, windows, EXTRAS, tokens.shape[1])
    assert int(found.patches[0].argmax()) == target
    assert tuple(int(n) for n in (found.patches[0].reshape(grid) == found.patches.max()).nonzero()[0]) == (6, 1, 5)


def test_crops_are_followed_in_any_number_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = encoder_of().float()
    volumes = torch.randn(5, 11, 8, 12)  # no multiple of the patch: a last plane of patches is filled up
    modality = torch.tensor([0, 1, 0, 1, 1])
    found = rollout_of(encoder, volumes, modality, MM)
    assert found.patches.shape == (5, 6 * 4 * 6)
    monkeypatch.setattr("parametrium.monitor.rollout._AT_ONCE", 1)
    singly = rollout_of(encoder, volumes, modality, MM)
    for one, other in zip(found, singly, strict=True):
        assert torch.allclose(one, other, atol=1e-6)


def test_one_pass_gives_the_rollout_and_the_features_of_an_ordinary_one() -> None:
    encoder = encoder_of().float().eval()
    volumes, modality = torch.randn(3, 11, 8, 12), torch.tensor([0, 1, 1])
    found, pooled = watched_rollout(encoder, volumes, modality, MM)
    assert torch.equal(found.patches, rollout_of(encoder, volumes, modality, MM).patches)
    assert torch.equal(pooled, encoder.encode(volumes, modality, MM).pooled)
