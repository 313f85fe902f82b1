"""Masks split every row's patches exactly."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from parametrium.model.masking import random_mask, visible_count
from parametrium.model.patch_embed import gather, patchify, unpatchify


@given(st.integers(1, 5), st.integers(2, 64), st.floats(0.01, 0.99))
def test_visible_and_masked_are_a_partition(batch: int, patches: int, ratio: float) -> None:
    visible, masked = random_mask(batch, patches, ratio, torch.Generator().manual_seed(0))
    assert visible.shape[1] == visible_count(patches, ratio)
    assert visible.shape[1] >= 1
    assert masked.shape[1] >= 1
    both = torch.cat([visible, masked], dim=1).sort(dim=1).values
    assert torch.equal(both, torch.arange(patches).expand(batch, -1))


@pytest.mark.parametrize("ratio", [0.5, 0.75])
def test_the_ratio_is_exact_where_it_can_be(ratio: float) -> None:
    visible, _ = random_mask(2, 216, ratio, torch.Generator().manual_seed(1))
    assert visible.shape[1] == 216 * (1 - ratio)


def test_a_ratio_of_zero_keeps_all() -> None:
    visible, masked = random_mask(2, 8, 0.0, torch.Generator().manual_seed(1))
    assert visible.shape == (2, 8)
    assert masked.shape == (2, 0)


def test_patchify_round_trip_against_a_loop() -> None:
    volumes = torch.randn(2, 8, 12, 4)
    patches = patchify(volumes, 4)
    assert torch.equal(unpatchify(patches, (2, 3, 1), 4), volumes)
    expected = [volumes[1, i : i + 4, j : j + 4, 0:4].flatten() for i in (0, 4) for j in (0, 4, 8)]
    assert torch.equal(patches[1], torch.stack(expected))


def test_gather_takes_the_named_patches() -> None:
    tokens, index = torch.randn(2, 5, 3), torch.tensor([[4, 0], [1, 1]])
    assert torch.equal(gather(tokens, index)[0], tokens[0, [4, 0]])
    assert torch.equal(gather(tokens, index)[1], tokens[1, [1, 1]])
