"""Kernels for other patches, and the sizes of queries and keys."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from parametrium.model.attention import Attention
from parametrium.model.encoder import Encoder
from parametrium.model.presets import Architecture
from parametrium.training.warm_start.fitting import linear_resize, noise_volumes, resize_kernel, score_scales, spread

SHAPE = Architecture(4, width=24, depth=3, heads=2, decoder_width=24, decoder_depth=1, decoder_heads=2, layer_scale=1.0)


def resized(patches: torch.Tensor, to: int) -> torch.Tensor:
    """[N, D, H, W] to another edge, axis by axis, by the dumbest means."""
    matrices = [linear_resize(size, to) for size in patches.shape[1:]]
    return torch.einsum("nabc,ia,jb,kc->nijk", patches.double(), *matrices)


@given(st.integers(2, 6), st.integers(0, 6), st.integers(0, 100))
@settings(max_examples=25)
def test_a_kernel_for_larger_patches_gives_the_tokens_of_the_smaller_ones(size: int, more: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    kernel = torch.randn(5, 1, size, size, size, generator=generator)
    patches = torch.randn(7, size, size, size, generator=generator)
    small = torch.einsum("nabc,eabc->ne", patches, kernel[:, 0]).double()
    large = torch.einsum(
        "nabc,eabc->ne", resized(patches, size + more), resize_kernel(kernel, size + more)[:, 0].double()
    )
    assert torch.allclose(small, large, atol=1e-3)


def test_a_kernel_for_smaller_patches_is_the_least_squares_answer() -> None:
    generator = torch.Generator().manual_seed(0)
    kernel = torch.randn(1, 1, 6, 6, 6, generator=generator)
    patches = torch.randn(4000, 6, 6, 6, generator=generator)
    matrix = torch.einsum("ia,jb,kc->ijkabc", *[linear_resize(6, 3)] * 3).reshape(27, 216)
    exact = torch.linalg.lstsq(matrix.T, kernel.double().reshape(216, 1)).solution
    found = resize_kernel(kernel, 3).double().flatten()
    assert torch.allclose(found, exact[:, 0], atol=1e-5)
    true = patches.flatten(1).double() @ kernel.double().flatten()
    seen = resized(patches, 3).flatten(1)
    error = (seen @ found - true).square().mean()
    assert error < (seen @ (found * 1.1) - true).square().mean()
    assert error < (seen @ (found * 0.9) - true).square().mean()


def test_the_edges_of_a_kernel_may_differ() -> None:
    assert resize_kernel(torch.randn(5, 2, 8, 4, 2), 4).shape == (5, 2, 4, 4, 4)


def test_a_kernel_of_the_same_size_stays() -> None:
    kernel = torch.randn(5, 2, 4, 4, 4)
    assert torch.allclose(resize_kernel(kernel, 4), kernel, atol=1e-6)


@pytest.mark.parametrize(("size", "to"), [(8, 4), (4, 8), (5, 3), (16, 4)])
def test_interpolation_keeps_constants(size: int, to: int) -> None:
    assert torch.allclose(linear_resize(size, to).sum(1), torch.ones(to, dtype=torch.float64))


@torch.no_grad()
def test_measured_sizes_make_normalised_attention_near_to_plain_attention() -> None:
    """Against a loop over heads and tokens, and against factors beside the measured one."""
    torch.manual_seed(0)
    encoder = Encoder(["CT"], SHAPE).eval()
    volumes = noise_volumes(2, (12, 12, 12), seed=1)
    scales = score_scales(encoder, 3, volumes, (3.0, 3.0, 3.0))
    tokens = encoder.tokens(volumes, torch.zeros(2, dtype=torch.long), (3.0, 3.0, 3.0)).tokens
    x = torch.cat([encoder.extra_tokens.expand(2, -1, -1), tokens], 1)
    block = encoder.blocks[0]
    attention: Attention = block.attention  # type: ignore[assignment]
    h = block.attention_norm(x)  # type: ignore[operator]
    q, k, v = (F.linear(h, w, b) for w, b in zip(*_projections(attention), strict=True))
    product = sum(
        q[..., s].square().mean(-1).sqrt().mean() * k[..., s].square().mean(-1).sqrt().mean()
        for s in (slice(0, 12), slice(12, 24))
    )
    assert scales[0] ** 2 == pytest.approx(float(product) / 2, rel=1e-5)

    plain = torch.cat(
        [(q[..., s] @ k[..., s].mT / 12**0.5).softmax(-1) @ v[..., s] for s in (slice(0, 12), slice(12, 24))], -1
    )
    plain = attention.project(plain)

    def error(value: float) -> float:
        attention.query_norm.weight.fill_(value)
        attention.key_norm.weight.fill_(value)
        return float((Attention.forward(attention, h) - plain).norm())

    assert error(scales[0]) < min(error(1.0), error(2 * scales[0]), error(scales[0] / 2))


def _projections(attention: Attention) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    kv, kvb = attention.key_value.weight, attention.key_value.bias
    return [attention.query.weight, kv[:24], kv[24:]], [attention.query.bias, kvb[:24], kvb[24:]]


def test_noise_is_standardised_and_repeats() -> None:
    volumes = noise_volumes(3, (16, 24, 8), seed=2)
    assert torch.equal(volumes, noise_volumes(3, (16, 24, 8), seed=2))
    assert torch.allclose(volumes.flatten(1).mean(1), torch.zeros(3), atol=1e-5)
    assert torch.allclose(volumes.flatten(1).std(1), torch.ones(3), atol=1e-5)


def test_spread_leaves_the_mean_out() -> None:
    code = torch.tensor([[1.0, 5.0], [3.0, 5.0]])
    assert spread(code) == pytest.approx(0.5**0.5)
