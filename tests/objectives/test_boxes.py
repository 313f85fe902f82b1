"""Boxes against voxel counting and loops; degenerate ones; where they are drawn (METHODS 2.1)."""

import itertools
from collections.abc import Sequence

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from parametrium.objectives.boxes import (
    MOST,
    as_fractions,
    best_constant_box,
    body_shares,
    box_loss,
    cut,
    draw_extents,
    draw_places,
    extent_range,
    generalised_iou,
    iou,
)

SIDE = 8

lattice_box = st.tuples(*[st.tuples(st.integers(0, SIDE), st.integers(0, SIDE)).map(sorted) for _ in range(3)])
seeds = st.integers(0, 2**20)
number = st.floats(0, 1)
any_box = st.tuples(number, number, number, number, number, number)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def boxes_of(*boxes: Sequence[float]) -> Tensor:
    return torch.tensor(boxes, dtype=torch.float64)


def from_edges(edges: Sequence[Sequence[int]]) -> Tensor:
    low, high = (torch.tensor([axis[side] for axis in edges], dtype=torch.float64) for side in (0, 1))
    return torch.cat([(low + high) / 2, high - low])[None] / SIDE


def voxels(edges: Sequence[Sequence[int]]) -> set[tuple[int, ...]]:
    return set(itertools.product(*(range(*axis) for axis in edges)))


@given(lattice_box, lattice_box)
def test_agreement_equals_the_counting_of_voxels(a: list[list[int]], b: list[list[int]]) -> None:
    both, either = len(voxels(a) & voxels(b)), len(voxels(a) | voxels(b))
    around = len(voxels([[min(x[0], y[0]), max(x[1], y[1])] for x, y in zip(a, b, strict=True)]))
    expected = both / either if either else 0.0
    assert float(iou(from_edges(a), from_edges(b))) == pytest.approx(expected, abs=1e-9)
    less = (around - either) / around if around else 0.0
    assert float(generalised_iou(from_edges(a), from_edges(b))) == pytest.approx(expected - less, abs=1e-9)


def loss_by_loop(predicted: list[float], true: list[float]) -> float:
    both, around, own, other = 1.0, 1.0, 1.0, 1.0
    for axis in range(3):
        low_a, high_a = (predicted[axis] + sign * predicted[axis + 3] / 2 for sign in (-1, 1))
        low_b, high_b = (true[axis] + sign * true[axis + 3] / 2 for sign in (-1, 1))
        both *= max(min(high_a, high_b) - max(low_a, low_b), 0.0)
        around *= max(high_a, high_b) - min(low_a, low_b)
        own, other = own * predicted[axis + 3], other * true[axis + 3]
    either = own + other - both
    distance = sum(abs(p - t) for p, t in zip(predicted, true, strict=True)) / 6
    return distance + 1 - (both / either - (around - either) / around)


@given(seeds)
def test_the_loss_equals_a_loop_over_axes(seed: int) -> None:
    predicted, true = torch.rand(2, 5, 6, generator=seeded(seed), dtype=torch.float64) * 0.9 + 0.05
    expected = [loss_by_loop(p, t) for p, t in zip(predicted.tolist(), true.tolist(), strict=True)]
    assert box_loss(predicted, true).tolist() == pytest.approx(expected, abs=1e-9)


@given(any_box, any_box)
@example((0.0, 0.25, 0.0, 0.0, 0.0, 0.0), (0.0, 0.25, 0.0, 1.0, 9.497330605872071e-14, 1.0))  # thinner than rounding
def test_agreement_is_symmetric_and_bounded(a: tuple[float, ...], b: tuple[float, ...]) -> None:
    one, two = boxes_of(a), boxes_of(b)
    found = float(generalised_iou(one, two))
    assert found == pytest.approx(float(generalised_iou(two, one)), abs=1e-6)
    assert -1 <= found <= float(iou(one, two)) + 1e-6 <= 1 + 2e-6


def test_only_the_same_box_agrees_fully() -> None:
    box = boxes_of([0.4, 0.5, 0.6, 0.2, 0.3, 0.25])
    assert float(generalised_iou(box, box)) == pytest.approx(1)
    assert float(box_loss(box, box)) == pytest.approx(0, abs=1e-9)
    assert float(box_loss(box + 0.01, box)) > 0.01


def test_boxes_that_do_not_touch_are_drawn_towards_each_other() -> None:
    predicted = boxes_of([0.2, 0.2, 0.2, 0.1, 0.1, 0.1]).requires_grad_()
    true = boxes_of([0.8, 0.8, 0.8, 0.1, 0.1, 0.1])
    assert float(iou(predicted.detach(), true)) == 0
    (-generalised_iou(predicted, true)).sum().backward()
    assert predicted.grad is not None
    assert (predicted.grad[0, :3] < 0).all()


@pytest.mark.parametrize("size", [[0.0, 0.0, 0.0], [0.0, 0.2, 0.2], [1e-30] * 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_box_without_volume_has_a_finite_loss_and_slope(size: list[float], dtype: torch.dtype) -> None:
    flat = torch.tensor([[0.5, 0.5, 0.5, *size]], dtype=dtype)
    full = torch.tensor([[0.4, 0.4, 0.4, 0.1, 0.2, 0.1]], dtype=dtype)
    for other in (full, flat):
        predicted = flat.clone().requires_grad_()
        loss = box_loss(predicted, other).sum()
        loss.backward()
        assert predicted.grad is not None
        assert torch.isfinite(loss)
        assert torch.isfinite(predicted.grad).all()


def test_the_gradient_is_that_of_the_loss() -> None:
    true = boxes_of([0.5, 0.5, 0.5, 0.3, 0.4, 0.2], [0.3, 0.6, 0.5, 0.2, 0.2, 0.2])
    near = (true + 0.05 * torch.rand(2, 6, generator=seeded(), dtype=torch.float64)).requires_grad_()
    far = boxes_of([0.1, 0.9, 0.12, 0.11, 0.1, 0.09], [0.9, 0.1, 0.87, 0.1, 0.13, 0.1]).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: box_loss(x, true), near)
    assert torch.autograd.gradcheck(lambda x: box_loss(x, true), far)


def test_half_precision_predictions_are_compared_in_float32() -> None:
    predicted = torch.full((1, 6), 0.3, dtype=torch.bfloat16)
    assert box_loss(predicted, torch.full((1, 6), 0.25)).dtype == torch.float32


crops = st.tuples(*[st.sampled_from([16, 24, 32, 48]) for _ in range(3)])


@given(crops, st.sampled_from([4, 8]), seeds)
def test_drawn_boxes_lie_inside_the_crop(crop: tuple[int, int, int], patch: int, seed: int) -> None:
    extents = draw_extents(20, crop, patch, (0.1, 0.4), 0.2, seeded(seed))
    places = draw_places(extents, crop, 5, seeded(seed))
    assert (extents >= 1).all()
    assert (extents <= torch.tensor(crop) * MOST).all()
    assert (places >= 0).all()
    assert (places + extents[:, None] <= torch.tensor(crop)).all()
    smallest, largest = extent_range(crop, patch, (0.1, 0.4))
    assert (extents >= (smallest * 0.8).floor()).all()
    assert (extents <= (largest * 1.2).ceil()).all()


def test_boxes_are_of_the_published_size_in_large_crops_and_hold_patches_in_small_ones() -> None:
    smallest, largest = extent_range((160,) * 3, 4, (0.1, 0.4))
    assert smallest.tolist() == pytest.approx([16] * 3)
    assert largest.tolist() == pytest.approx([64] * 3)
    assert [edge.tolist() for edge in extent_range((48,) * 3, 8, (0.1, 0.4))] == [[16.0] * 3, [24.0] * 3]


def test_every_place_and_many_sizes_are_drawn() -> None:
    extents = torch.tensor([[5, 6, 7]]).expand(2000, -1)
    places = draw_places(extents, (8, 8, 8), 1, seeded())[:, 0]
    assert {tuple(place) for place in places.tolist()} == set(itertools.product(range(4), range(3), range(2)))
    sizes = draw_extents(500, (48,) * 3, 8, (0.1, 0.4), 0.2, seeded())
    assert len({tuple(size) for size in sizes.tolist()}) > 300
    assert (sizes % 8 != 0).any(1).float().mean() > 0.9


@given(seeds)
def test_body_shares_and_cuts_equal_slices(seed: int) -> None:
    generator = seeded(seed)
    images = torch.rand(3, 9, 10, 11, generator=generator)
    body = images > 0.4
    extents = torch.randint(1, 6, (3, 3), generator=generator)
    places = draw_places(extents, (9, 10, 11), 4, generator)
    shares = body_shares(body, places, extents)
    for b in range(3):
        d, h, w = extents[b].tolist()
        for t in range(4):
            i, j, k = places[b, t].tolist()
            here = slice(i, i + d), slice(j, j + h), slice(k, k + w)
            assert float(shares[b, t]) == pytest.approx(float(body[b][here].float().mean()), abs=1e-6)
            assert torch.equal(cut(images[b, None], places[b, t, None], [d, h, w])[0], images[b][here])


def test_fractions_by_hand() -> None:
    found = as_fractions(torch.tensor([[0, 10, 20]]), torch.tensor([[8, 10, 12]]), (16, 20, 40))
    assert found.tolist() == [pytest.approx([0.25, 0.75, 0.65, 0.5, 0.5, 0.3])]


@pytest.mark.parametrize(("crop", "patch"), [(32, 8), (48, 8)])
def test_no_other_constant_box_is_better(crop: int, patch: int) -> None:
    best = best_constant_box((crop,) * 3, patch, (0.1, 0.4), 0.2)
    generator = seeded(7)
    extents = draw_extents(3000, (crop,) * 3, patch, (0.1, 0.4), 0.2, generator)
    drawn = as_fractions(draw_places(extents, (crop,) * 3, 1, generator)[:, 0], extents, (crop,) * 3)
    reached = float(iou(best.expand_as(drawn), drawn).mean())
    for centre, size in itertools.product((0.4, 0.5), (0.3, 0.5, 0.7, 0.9)):
        other = torch.tensor([centre] * 3 + [size] * 3).expand_as(drawn)
        assert float(iou(other, drawn).mean()) <= reached + 0.005
