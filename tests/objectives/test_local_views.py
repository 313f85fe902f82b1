"""Small crops out of large ones: against slices, where the body is, and each with its own jitter."""

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from parametrium.objectives.local_views import body_voxels, cut, draw_corners, jittered, local_extent

seeds = st.integers(0, 2**20)
extents = st.tuples(*[st.integers(1, 6)] * 3)
LARGE = (6, 8, 7)


def random(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def corners_in(extent: tuple[int, int, int], shape: tuple[int, ...], seed: int) -> Tensor:
    generator = random(seed)
    axes = [torch.randint(0, n - e + 1, shape, generator=generator) for n, e in zip(LARGE, extent, strict=True)]
    return torch.stack(axes, dim=-1)


def slice_of(volume: Tensor, corner: list[int], extent: tuple[int, int, int]) -> Tensor:
    (a, b, c), (d, h, w) = corner, extent
    return volume[a : a + d, b : b + h, c : c + w]


@given(seeds, extents)
def test_a_cut_is_a_slice(seed: int, extent: tuple[int, int, int]) -> None:
    volumes = torch.randn(3, *LARGE, generator=random(seed))
    source, corners = torch.tensor([2, 0, 0, 1]), corners_in(extent, (4,), seed)
    found = cut(volumes, source, corners, extent)
    for n in range(4):
        assert torch.equal(found[n], slice_of(volumes[source[n]], corners[n].tolist(), extent))


@given(seeds, extents)
def test_body_voxels_are_counted_as_by_looking(seed: int, extent: tuple[int, int, int]) -> None:
    body = torch.rand(2, *LARGE, generator=random(seed)) < 0.4
    source, corners = torch.tensor([1, 0, 1]), corners_in(extent, (3, 5), seed)
    found = body_voxels(body, source, corners, extent)
    for n in range(3):
        for t in range(5):
            assert int(found[n, t]) == int(slice_of(body[source[n]], corners[n, t].tolist(), extent).sum())


@settings(max_examples=40)
@given(seeds, extents)
def test_small_crops_lie_inside_the_large_ones(seed: int, extent: tuple[int, int, int]) -> None:
    body = torch.rand(2, *LARGE, generator=random(seed)) < 0.4
    corners = draw_corners(body, torch.tensor([0, 1, 1]), extent, random(seed))
    assert (corners >= 0).all()
    assert (corners + torch.tensor(extent) <= torch.tensor(LARGE)).all()
    again = draw_corners(body, torch.tensor([0, 1, 1]), extent, random(seed))
    assert torch.equal(corners, again)


def test_small_crops_reach_every_place_and_prefer_the_body() -> None:
    everywhere = torch.ones(1, 4, 4, 4, dtype=torch.bool)
    source = torch.zeros(400, dtype=torch.long)
    corners = draw_corners(everywhere, source, (2, 2, 2), random(0))
    assert set(map(tuple, corners.tolist())) == set(product(range(3), repeat=3))
    half = everywhere.clone()
    half[:, :2] = False
    shown = body_voxels(half, source, draw_corners(half, source, (2, 2, 2), random(0))[:, None], (2, 2, 2))
    # One place in three along the first axis shows only body; 8 tries miss it once in 26.
    assert (shown == 8).float().mean() > 0.9


@given(st.tuples(*[st.integers(1, 100)] * 3), st.floats(0.001, 1))
def test_a_small_crop_has_its_share_of_every_edge(crop: tuple[int, int, int], edge: float) -> None:
    for large, small in zip(crop, local_extent(crop, edge), strict=True):
        assert 1 <= small <= large
        assert abs(small - edge * large) <= 0.5 or small == 1


def test_each_crop_is_jittered_by_itself_and_shifted_in_the_body_only() -> None:
    images = torch.ones(5, 2, 2, 2)
    body = torch.zeros(5, 2, 2, 2, dtype=torch.bool)
    body[:, 0] = True
    found = jittered(images, body, 0.1, random(1))
    scale, shifted = found[:, 1, 0, 0], found[:, 0, 0, 0]
    assert len(set(scale.tolist())) == len(set(shifted.tolist())) == 5
    assert (abs(scale - 1) <= 0.1).all()
    assert (abs(shifted - scale) <= 0.1 + 1e-6).all()
    assert not torch.allclose(shifted, scale)
    assert torch.equal(jittered(images, body, 0.0, random(1)), images)


@pytest.mark.parametrize("extent", [LARGE, (6, 1, 7)])
def test_a_small_crop_may_be_as_large_as_the_large_one(extent: tuple[int, int, int]) -> None:
    corners = draw_corners(torch.ones(1, *LARGE, dtype=torch.bool), torch.tensor([0]), extent, random(0))
    assert all(low == 0 for low, n, e in zip(corners[0].tolist(), LARGE, extent, strict=True) if n == e)
