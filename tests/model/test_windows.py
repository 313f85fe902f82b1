"""Window attention: dense windows, tokens that see their window only, and all tokens in global blocks."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from parametrium.model.attention import Attention, WindowAttention
from parametrium.model.encoder import Encoder, Tokens
from parametrium.model.masking import draw_mask
from parametrium.model.position import grid_positions
from parametrium.model.presets import PRESETS, Architecture
from parametrium.model.windows import EDGE, Grid, Windows, window_numbers, windows_of

SHAPE = replace(PRESETS["tiny"], patch=2, width=24, depth=3, heads=2, global_every=3)
MM = (1.0, 1.0, 1.0)


def encoder_of(shape: Architecture = SHAPE) -> Encoder:
    torch.manual_seed(0)
    return Encoder(("CT", "T1"), shape).eval()


def every(grid: Grid, rows: int = 1) -> torch.Tensor:
    return torch.arange(grid[0] * grid[1] * grid[2]).expand(rows, -1)


@given(st.tuples(st.integers(1, 13), st.integers(1, 13), st.integers(1, 13)))
def test_windows_are_even_boxes_of_at_most_the_edge(grid: Grid) -> None:
    numbers = window_numbers(grid).reshape(grid)
    for number in range(int(numbers.max()) + 1):
        place = (numbers == number).nonzero()
        extent = place.max(0).values - place.min(0).values + 1
        assert int(extent.prod()) == len(place)  # a box
        for axis, size in enumerate(extent.tolist()):
            assert size in {grid[axis] // -(-grid[axis] // EDGE), -(-grid[axis] // -(-grid[axis] // EDGE))}
            assert size <= EDGE


@given(st.tuples(st.integers(1, 9), st.integers(3, 9), st.integers(5, 6)), st.floats(0, 0.9), st.integers(0, 99))
def test_tokens_come_back_from_their_windows(grid: Grid, ratio: float, seed: int) -> None:
    visible, _ = draw_mask(2, grid, ratio, torch.Generator().manual_seed(seed))
    visible = visible[:, torch.randperm(visible.shape[1])]
    windows = windows_of(visible, grid)
    assert windows is not None
    tokens = torch.randn(*visible.shape, 3)
    slots = windows.arrange(tokens)
    assert torch.equal(windows.restore(slots), tokens)
    numbers = window_numbers(grid)
    assert torch.equal(windows.slot // windows.size, numbers[visible])
    if windows.occupied is not None:
        assert int(windows.occupied.sum()) == visible.numel()
        assert not slots[~windows.occupied].any()


def test_a_stratified_mask_leaves_no_slot_empty() -> None:
    visible, _ = draw_mask(3, (12, 12, 12), 0.75, torch.Generator().manual_seed(0))
    windows = windows_of(visible, (12, 12, 12))
    assert windows is not None
    assert windows.occupied is None
    assert (windows.number, windows.size) == (27, 16)


def test_one_window_is_no_window() -> None:
    assert windows_of(every((4, 3, 2)), (4, 3, 2)) is None


def by_hand(attention: WindowAttention, x: torch.Tensor, index: list[int], grid: Grid) -> torch.Tensor:
    """One row's window attention as the formula has it: window by window, extras averaged; x is extras, tokens."""
    numbers, extras = window_numbers(grid)[torch.tensor(index)], attention.extras
    held = sorted(set(numbers.tolist()))
    whole = Attention(attention.query.in_features, attention.heads).double()
    whole.load_state_dict(attention.state_dict())
    out = torch.zeros_like(x)
    for window in held:
        own = [*range(extras), *((numbers == window).nonzero().squeeze(1) + extras).tolist()]
        mixed = whole(x[None, own])[0]
        out[:extras] += mixed[:extras] / len(held)
        out[own[extras:]] = mixed[extras:]
    return out


@pytest.mark.parametrize("grid", [(8, 4, 4), (5, 6, 3), (9, 1, 2)])
def test_window_attention_is_attention_window_by_window(grid: Grid) -> None:
    torch.manual_seed(1)
    attention = WindowAttention(24, 2, extras=3).double()
    index = torch.stack([torch.randperm(grid[0] * grid[1] * grid[2])[:7] for _ in range(2)])  # some windows empty
    windows = windows_of(index, grid)
    assert windows is not None
    x = torch.randn(2, 10, 24, dtype=torch.float64)
    arranged = torch.cat([x[:, :3], windows.arrange(x[:, 3:])], 1)
    found = attention(arranged, windows=windows)
    tokens = torch.cat([found[:, :3], windows.restore(found[:, 3:])], 1)
    for row in range(2):
        assert torch.allclose(tokens[row], by_hand(attention, x[row], index[row].tolist(), grid), atol=1e-12)


def test_a_global_block_does_not_see_empty_slots() -> None:
    torch.manual_seed(1)
    attention, grid = Attention(24, 2), (5, 4, 4)
    index = torch.randperm(80)[None, :9]
    windows = windows_of(index, grid)
    assert windows is not None
    assert windows.occupied is not None
    x = torch.randn(1, 11, 24)
    found = attention(torch.cat([x[:, :2], windows.arrange(x[:, 2:])], 1), windows=windows)
    tokens = torch.cat([found[:, :2], windows.restore(found[:, 2:])], 1)
    assert torch.allclose(tokens, attention(x), atol=1e-6)


def influence(encoder: Encoder, blocks: int) -> torch.Tensor:
    """[8, 8] whether the patch of a row changes the output of a column's patch, on a line of two windows."""
    shape = replace(encoder.shape, depth=blocks)
    grid, index = (8, 1, 1), every((8, 1, 1))
    part = Encoder(("CT", "T1"), shape).double().eval()
    part.load_state_dict({k: v for k, v in encoder.state_dict().items() if k in part.state_dict()})
    part.blocks = encoder.double().blocks[:blocks]
    tokens = torch.randn(1, 8, shape.width, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    still = part(tokens, windows_of(index, grid)).patches
    changed = []
    for patch in range(8):
        other = tokens.clone()
        other[0, patch] *= torch.linspace(0, 2, shape.width)
        changed.append((part(other, windows_of(index, grid)).patches - still).abs().amax(-1)[0] > 1e-12)
    return torch.stack(changed)


def test_a_token_outside_the_window_matters_in_global_blocks_only() -> None:
    """Guards the published inversion of the flag (METHODS 2.2)."""
    encoder = encoder_of()
    window = torch.arange(8) // 4
    assert torch.equal(influence(encoder, 1), window[:, None] == window[None])
    assert influence(encoder, 3).all()
    assert [type(block.attention) for block in encoder.blocks] == [WindowAttention, WindowAttention, Attention]


@pytest.mark.parametrize("name", ["tiny", "small", "base"])
def test_the_last_block_and_every_few_are_global(name: str) -> None:
    with torch.device("meta"):
        encoder = Encoder(("CT",), PRESETS[name])
    looks_at_all = [not isinstance(block.attention, WindowAttention) for block in encoder.blocks]
    every_few = PRESETS[name].global_every
    assert looks_at_all[-1]
    assert looks_at_all == [(n + 1) % every_few == 0 or n == len(looks_at_all) - 1 for n in range(len(looks_at_all))]
    assert sum(looks_at_all) < len(looks_at_all)


def test_extras_carry_news_between_windows_after_one_block() -> None:
    encoder = encoder_of()
    tokens, index = torch.randn(1, 8, 24), every((8, 1, 1))
    windows = windows_of(index, (8, 1, 1))
    other = tokens.clone()
    other[0, 0] *= torch.linspace(0, 2, 24)
    two = Encoder(("CT", "T1"), replace(SHAPE, depth=2)).eval()
    two.blocks = encoder.blocks[:2]
    assert (two(tokens, windows).patches[0, 7] - two(other, windows).patches[0, 7]).abs().max() > 1e-7


def test_within_one_window_the_encoder_is_a_plain_transformer() -> None:
    encoder = encoder_of()
    tokens, index = torch.randn(2, 64, 24), every((4, 4, 4), 2)
    forced = Windows(index.clone(), None, 1, 64)
    plain, windowed = encoder(tokens), encoder(tokens, forced)
    assert torch.allclose(plain.patches, windowed.patches, atol=1e-6)
    assert torch.allclose(plain.cls, windowed.cls, atol=1e-6)


def test_the_order_of_visible_patches_does_not_matter() -> None:
    encoder, grid = encoder_of(), (6, 5, 4)
    index, _ = draw_mask(2, grid, 0.5, torch.Generator().manual_seed(0))
    tokens, order = torch.randn(*index.shape, 24), torch.randperm(index.shape[1])
    straight = encoder(tokens, windows_of(index, grid))
    shuffled = encoder(tokens[:, order], windows_of(index[:, order], grid))
    assert torch.allclose(shuffled.patches, straight.patches[:, order], atol=1e-6)
    assert torch.allclose(shuffled.cls, straight.cls, atol=1e-6)


@pytest.mark.parametrize("extent", [(17, 8, 8), (9, 11, 5), (24, 18, 20)])
def test_a_crop_of_any_size_is_encoded_whole(extent: tuple[int, int, int]) -> None:
    encoder = encoder_of()
    volume = torch.randn(1, *extent)
    patches = encoder.encode(volume, torch.tensor([0]), MM).patches
    assert patches.shape[1] == -(-extent[0] // 2) * -(-extent[1] // 2) * -(-extent[2] // 2)
    last = volume.clone()
    last[0, -1, -1, -1] += 5.0  # the last voxel is seen, not cut
    assert not torch.equal(encoder.encode(last, torch.tensor([0]), MM).patches, patches)


def test_attention_maps_sum_to_one_and_say_where_they_are_local() -> None:
    encoder, grid = encoder_of(), (6, 5, 4)
    index, _ = draw_mask(2, grid, 0.5, torch.Generator().manual_seed(0))
    windows = windows_of(index, grid)
    assert windows is not None
    maps = encoder.watched(torch.randn(*index.shape, 24), windows)[1]
    assert [one.local for one in maps] == [True, True, False]
    for one in maps:
        sums = one.weights.sum(-1)
        assert torch.allclose(sums, torch.ones_like(sums), atol=1e-5)
    if windows.occupied is not None:
        empty = torch.cat([torch.zeros(2, encoder.extras, dtype=torch.bool), ~windows.occupied], 1)
        assert not maps[-1].weights[:, 0].transpose(1, 2)[empty].any()


def arranged(grid: Grid, ratio: float) -> tuple[torch.Tensor, Windows | None, torch.Tensor]:
    """Tokens of two crops with their windows and where they lie, so that near ones look at each other more."""
    index, _ = draw_mask(2, grid, ratio, torch.Generator().manual_seed(0))
    tokens = torch.randn(*index.shape, 24, generator=torch.Generator().manual_seed(1))
    return tokens, windows_of(index, grid), grid_positions([2 * n for n in grid], 2, MM)[index]


def test_activation_checkpointing_gives_the_same_gradients() -> None:
    shape = replace(SHAPE, drop_path=0.3)
    gradients = []
    for again in (False, True):
        encoder = encoder_of(shape).train()
        encoder.activation_checkpointing = again
        torch.manual_seed(7)
        encoder(*arranged((8, 2, 1), 0.0)).patches.square().sum().backward()
        gradients.append([p.grad for p in encoder.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(gradients[1]) > 10
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_activation_checkpointing_also_spares_memory_where_single_blocks_are_read() -> None:
    kept, gradients = [], []
    for again in (False, True):
        encoder = encoder_of().train()
        encoder.activation_checkpointing = again
        sizes: dict[int, int] = {}

        def keep(tensor: torch.Tensor, sizes: dict[int, int] = sizes) -> torch.Tensor:
            sizes[tensor.data_ptr()] = tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            layers = encoder.intermediate(Tokens(*arranged((8, 4, 4), 0.0)), (1, 3))
        torch.stack(layers).square().sum().backward()
        kept.append(sum(sizes.values()))
        gradients.append([p.grad for p in encoder.parameters() if p.grad is not None])
    assert kept[1] < 0.5 * kept[0]
    assert len(gradients[0]) == len(gradients[1]) > 10
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_the_encoder_compiles_into_one_graph() -> None:
    encoder, begin = encoder_of(), arranged((8, 4, 4), 0.5)
    compiled = torch.compile(encoder, backend="aot_eager", fullgraph=True)
    assert torch.allclose(compiled(*begin).patches, encoder(*begin).patches, atol=1e-5)


def test_bf16_stays_near_fp32() -> None:
    encoder, begin = encoder_of(), arranged((8, 4, 4), 0.0)
    exact = encoder(*begin).patches
    with torch.autocast("cpu", torch.bfloat16):
        rough = encoder(*begin).patches
    assert torch.isfinite(rough).all()
    assert (rough.float() - exact).abs().mean() < 0.05 * exact.abs().mean()
