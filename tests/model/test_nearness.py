"""Near tokens look at each other more: the same scores as with a bias, in windows, and in bf16."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from parametrium.model.attention import Attention, Nearness, WindowAttention, nearness
from parametrium.model.encoder import Encoder
from parametrium.model.masking import draw_mask
from parametrium.model.position import grid_positions
from parametrium.model.presets import PRESETS
from parametrium.model.windows import windows_of

MM = (3.0, 3.0, 3.0)
SHAPE = replace(PRESETS["tiny"], patch=2, width=24, depth=3, heads=2, global_every=3)
EXTRAS = 2


def bias_of(centres: torch.Tensor, extras: int, heads: int, reach: float) -> torch.Tensor:
    """[B, N, X + L, X + L] pair by pair: -d^2 / (2 (reach 2^head)^2) between patches, 0 with an extra."""
    rows, count = len(centres), centres.shape[1]
    bias = torch.zeros(rows, heads, extras + count, extras + count, dtype=torch.float64)
    for row in range(rows):
        for head in range(heads):
            for a in range(count):
                for b in range(count):
                    square = float(((centres[row, a] - centres[row, b]).double() ** 2).sum())
                    bias[row, head, extras + a, extras + b] = -square / (2 * (reach * 2**head) ** 2)
    return bias


def places(seed: int = 0, count: int = 9) -> torch.Tensor:
    """[2, count, 3] millimetres that bf16 can hold as multiples of the reach of 16 mm."""
    return 4.0 * torch.randint(-15, 16, (2, count, 3), generator=torch.Generator().manual_seed(seed)).float()


def product(near: Nearness) -> torch.Tensor:
    return near.query @ near.key.transpose(-1, -2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_channels_multiply_to_the_distance(dtype: torch.dtype) -> None:
    near = nearness(places(), EXTRAS, 3, 16.0)
    rounded = Nearness(*(part.to(dtype).float() for part in near))
    assert torch.allclose(product(rounded).double(), bias_of(places(), EXTRAS, 3, 16.0), atol=1e-3)


def test_any_place_is_off_by_little() -> None:
    centres = torch.rand(2, 7, 3, generator=torch.Generator().manual_seed(0)) * 128 - 64
    off = product(nearness(centres, 0, 3, 16.0)).double() - bias_of(centres, 0, 3, 16.0)
    assert off.abs().max() < 0.2
    assert product(nearness(centres, 0, 3, 16.0)).diagonal(dim1=-2, dim2=-1).abs().max() < 1e-4


def test_attention_with_nearness_is_attention_with_that_bias() -> None:
    torch.manual_seed(0)
    attention, x, centres = Attention(24, 2), torch.randn(2, 11, 24), places()
    near = nearness(centres, EXTRAS, 2, 16.0)
    bias = bias_of(centres, EXTRAS, 2, 16.0).float()
    assert torch.allclose(attention(x, near=near), attention(x, bias=bias), atol=1e-5)
    weights = attention.weights(x, near=near)
    assert torch.allclose(weights.sum(-1), torch.ones(2, 1, 11), atol=1e-5)
    assert not torch.allclose(weights, attention.weights(x), atol=1e-3)


def test_windows_have_the_same_nearness_within_them() -> None:
    torch.manual_seed(1)
    grid, attention = (8, 4, 1), WindowAttention(24, 2, EXTRAS)
    index = torch.stack([torch.randperm(32)[:9] for _ in range(2)])
    windows = windows_of(index, grid)
    assert windows is not None
    centres = grid_positions((8, 4, 1), 1, (16.0, 16.0, 16.0))[index]
    x = torch.randn(2, EXTRAS + 9, 24)
    arranged = torch.cat([x[:, :EXTRAS], windows.arrange(x[:, EXTRAS:])], 1)
    near = nearness(windows.arrange(centres), EXTRAS, 2, 16.0)
    found = attention(arranged, windows=windows, near=near)
    tokens = windows.restore(found[:, EXTRAS:])
    whole = Attention(24, 2)
    whole.load_state_dict(attention.state_dict())
    for row in range(2):
        for left in (True, False):
            own = [n for n in range(9) if (int(index[row, n]) < 16) == left]
            if not own:
                continue
            bias = bias_of(centres[row : row + 1, own], EXTRAS, 2, 16.0).float()
            alone = whole(torch.cat([x[row, :EXTRAS], x[row, EXTRAS:][own]])[None], bias=bias)
            assert torch.allclose(tokens[row, own], alone[0, EXTRAS:], atol=1e-5)


def test_the_encoder_passes_on_where_visible_patches_lie() -> None:
    torch.manual_seed(0)
    encoder = Encoder(("CT",), SHAPE).eval()
    volume, modality = torch.randn(2, 12, 10, 8), torch.tensor([0, 0])
    visible, _ = draw_mask(2, (6, 5, 4), 0.5, torch.Generator().manual_seed(0))
    begin = encoder.tokens(volume, modality, MM, visible)
    assert torch.equal(begin.centres_mm, grid_positions((12, 10, 8), 2, MM)[visible])
    assert torch.equal(encoder(*begin).patches, encoder.encode(volume, modality, MM, visible).patches)
    assert not torch.allclose(encoder(begin.tokens, begin.windows).patches, encoder(*begin).patches, atol=1e-4)
    assert torch.allclose(encoder.watched(*begin)[0].patches, encoder(*begin).patches, atol=1e-6)


def test_without_a_reach_distance_does_not_count() -> None:
    torch.manual_seed(0)
    encoder = Encoder(("CT",), replace(SHAPE, reach_mm=None)).eval()
    begin = encoder.tokens(torch.randn(1, 12, 10, 8), torch.tensor([0]), MM)
    assert torch.equal(encoder(begin.tokens, begin.windows).patches, encoder(*begin).patches)


def test_the_first_head_looks_at_its_neighbours() -> None:
    """Equal queries and keys: only the distance decides; half of the first head's attention lies within 16 mm."""
    grid = grid_positions((9, 9, 9), 1, (8.0, 8.0, 8.0))
    shares = product(nearness(grid[None], 0, 3, 16.0))[0].softmax(-1)
    centre = len(grid) // 2
    distance = (grid - grid[centre]).norm(dim=1)
    mean = [float((shares[head, centre] * distance).sum()) for head in range(3)]
    assert mean[0] < mean[1] < mean[2]
    assert float(shares[0, centre][distance <= 24.5].sum()) == pytest.approx(
        float(F.softmax(-(distance**2) / 512, 0)[distance <= 24.5].sum()), abs=0.02
    )
