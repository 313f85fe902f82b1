"""Contours to voxels: the centre decides, by the even-odd rule, in whatever order and direction they were drawn."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from parametrium.cohort.dicom import contours as contours_module
from parametrium.cohort.dicom.contours import rasterise_contours
from parametrium.cohort.problem import Reason
from structure_files import ellipse

SHAPE = (20, 18, 12)
Points = NDArray[np.float64]


def rasterised(outlines: list[Points], shape: tuple[int, int, int] = SHAPE) -> NDArray[np.uint8]:
    mask = rasterise_contours(outlines, shape, (1.0, 1.0, 1.0))
    assert not isinstance(mask, Reason), mask
    assert mask.dtype == np.uint8
    assert mask.shape == shape
    return mask


def by_ray(outlines: list[Points], shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Voxel by voxel, edge by edge: how often a ray to the right meets an outline of this very plane."""
    mask = np.zeros(shape, dtype=np.uint8)
    for i, j, k in np.ndindex(shape):
        met = 0
        for outline in outlines:
            if outline[0, 2] != k:
                continue
            for (x0, y0, _), (x1, y1, _) in zip(outline, [*outline[1:], outline[0]], strict=True):
                if (y0 > j) != (y1 > j) and i < x0 + (j - y0) / (y1 - y0) * (x1 - x0):
                    met += 1
        mask[i, j, k] = met % 2
    return mask


def dice(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    return 2 * float((a & b).sum()) / (int(a.sum()) + int(b.sum()))


def rectangle(low: tuple[float, float], high: tuple[float, float], k: float) -> Points:
    (u0, v0), (u1, v1) = low, high
    return np.array([(u0, v0, k), (u1, v0, k), (u1, v1, k), (u0, v1, k)], dtype=float)


corner = st.tuples(st.floats(-4, 14), st.floats(-4, 14))


@settings(max_examples=60)
@given(st.lists(st.lists(corner, min_size=3, max_size=9), min_size=1, max_size=4))
def test_tangled_polygons_are_filled_as_by_rays(drawn: list[list[tuple[float, float]]]) -> None:
    aside = np.array([3e-5, 5e-5, 0.0])  # no corner is level with a centre, and none lies on a diagonal of centres
    outlines = [np.round([(*point, 1.0) for point in polygon], 4) + aside for polygon in drawn]
    kept = {outline.tobytes(): outline for outline in outlines}
    expected = by_ray(list(kept.values()), (10, 10, 3))
    result = rasterise_contours(outlines, (10, 10, 3), (1.0, 1.0, 1.0))
    np.testing.assert_array_equal(np.zeros_like(expected) if isinstance(result, Reason) else result, expected)


def test_a_centre_on_the_edge_belongs_to_the_higher_side_so_that_neighbours_share_nothing() -> None:
    left = rasterised([rectangle((2, 3), (7, 8), 4)])
    right = rasterised([rectangle((7, 3), (12, 8), 4)])
    both = rasterised([rectangle((2, 3), (12, 8), 4)])
    np.testing.assert_array_equal(left + right, both)
    assert np.argwhere(left).min(axis=0).tolist() == [2, 3, 4]
    assert np.argwhere(left).max(axis=0).tolist() == [6, 7, 4]


def test_half_a_voxel_decides() -> None:
    assert rasterised([rectangle((2.51, 2.51), (5.49, 5.49), 0)]).sum() == 9
    assert rasterised([rectangle((1.99, 1.99), (5.01, 5.01), 0)]).sum() == 16


def test_a_hole_an_island_in_it_and_a_hole_in_that() -> None:
    rings = [rectangle((size, size), (17 - size, 17 - size), 5) for size in (0.5, 2.5, 4.5, 6.5)]
    mask = rasterised(rings)[:, :, 5]
    assert mask.sum() == 16**2 - 12**2 + 8**2 - 4**2
    assert mask[8, 8] == 0
    assert mask[5, 8] == 1


def test_a_key_hole_contour_is_a_ring() -> None:
    outer = [(1.5, 1.5), (1.5, 12.5), (12.5, 12.5), (12.5, 1.5), (1.5, 1.5)]
    inner = [(4.5, 4.5), (9.5, 4.5), (9.5, 9.5), (4.5, 9.5), (4.5, 4.5)]
    keyhole = np.array([(*point, 3.0) for point in (*outer, *inner)])
    expected = rasterised([rectangle((1.5, 1.5), (12.5, 12.5), 3), rectangle((4.5, 4.5), (9.5, 9.5), 3)])
    np.testing.assert_array_equal(rasterised([keyhole]), expected)


@given(st.randoms(use_true_random=False))
def test_neither_order_nor_direction_nor_first_corner_matters(random: object) -> None:
    rng = np.random.default_rng(random.getrandbits(32))  # type: ignore[attr-defined]
    outlines = [
        ellipse(rng.uniform(5, 12, 2), rng.uniform(1, 6, 2), float(k), corners=31) for k in range(9) for _ in range(2)
    ]
    drawn = [np.roll(outline[:: rng.choice([-1, 1])], rng.integers(31), axis=0) for outline in outlines]
    shuffled = [drawn[place] for place in rng.permutation(len(drawn))]
    np.testing.assert_array_equal(rasterised(shuffled), rasterised(outlines))


def test_a_contour_that_stands_twice_counts_once() -> None:
    outline = ellipse((8, 8), (5, 4), 6.0)
    np.testing.assert_array_equal(rasterised([outline, outline.copy()]), rasterised([outline]))


@pytest.mark.parametrize("shift", [-0.49, -0.2, 0.3, 0.5])
def test_contours_between_image_planes_go_to_the_nearest(shift: float) -> None:
    outlines = [ellipse((8, 8), (2 + k / 2, 3), float(k)) for k in range(2, 9)]
    moved = [outline + np.array([0, 0, shift]) for outline in outlines]
    np.testing.assert_array_equal(rasterised(moved), rasterised(outlines))


def test_contours_denser_than_the_image_give_each_plane_its_nearest() -> None:
    outlines = [ellipse((8, 8), (2 + z / 2, 3), z) for z in np.arange(2, 8.01, 0.4)]
    expected = [
        ellipse((8, 8), (2 + z / 2, 3), k) for k, z in ((k, 2 + 0.4 * round((k - 2) / 0.4)) for k in range(2, 9))
    ]
    np.testing.assert_array_equal(rasterised(outlines), rasterised(expected[:7]))


def ball(planes: np.ndarray, middle: float = 6.0, radius: float = 5.3) -> list[Points]:
    heights = [(float(k), radius**2 - (k - middle) ** 2) for k in planes]
    return [ellipse((9, 8), (height**0.5, height**0.5), k) for k, height in heights if height > 0]


@pytest.mark.parametrize("step", [2.0, 1.3, 3.0])
def test_undrawn_planes_between_regularly_drawn_ones_are_filled(step: float) -> None:
    drawn = np.arange(1.0, 11.01, step)
    every, some = rasterised(ball(np.arange(12))), rasterised(ball(drawn))
    first, last = np.ceil(drawn[0] - 0.5), np.ceil(drawn[drawn <= 11][-1] - 0.5)
    every[:, :, : int(first)] = every[:, :, int(last) + 1 :] = 0
    unfilled = every * np.isin(np.arange(12), np.ceil(drawn - 0.5))
    assert dice(every, some) > (0.96 if step < 3 else 0.93)
    assert dice(every, some) > dice(every, unfilled) + 0.05
    assert some.any(axis=(0, 1)).sum() == last - first + 1


def test_one_wider_gap_is_meant() -> None:
    outlines = ball(np.array([2, 3, 4, 6, 7, 8]))
    assert rasterised(outlines).any(axis=(0, 1)).nonzero()[0].tolist() == [2, 3, 4, 6, 7, 8]


def test_two_lesions_stay_two() -> None:
    outlines = ball(np.array([1, 2, 3]), 2.0, 2.0) + ball(np.array([7, 8, 9]), 8.0, 2.0)
    assert rasterised(outlines).any(axis=(0, 1)).nonzero()[0].tolist() == [1, 2, 3, 7, 8, 9]


def test_planes_far_apart_are_not_guessed() -> None:
    mask = rasterise_contours(ball(np.array([2, 5, 8])), SHAPE, (1.0, 1.0, 5.0))
    assert np.asarray(mask).any(axis=(0, 1)).nonzero()[0].tolist() == [2, 5, 8]


@pytest.mark.parametrize("axis", [0, 1])
def test_contours_drawn_on_sagittal_or_coronal_planes_give_the_same_body(axis: int) -> None:
    radii, centre = np.array([6.2, 5.1, 4.3]), np.array([9.1, 8.2, 5.3])
    others = [place for place in range(3) if place != axis]
    outlines = []
    for position in range(SHAPE[axis]):
        share = 1 - ((position - centre[axis]) / radii[axis]) ** 2
        if share > 0:
            outlines.append(ellipse(centre[others], radii[others] * share**0.5, float(position), axis))
    place = np.indices(SHAPE).reshape(3, -1).T
    expected = ((((place - centre) / radii) ** 2).sum(axis=1) < 1).reshape(SHAPE)
    assert dice(rasterised(outlines), expected.astype(np.uint8)) > 0.99


def test_contours_oblique_to_the_image_are_refused() -> None:
    tilted = ellipse((8, 8), (5, 5), 5.0)
    tilted[:, 2] += 0.5 * (tilted[:, 0] - 8)
    tilted[:, 1] += 0.7 * (tilted[:, 0] - 8)
    assert rasterise_contours([tilted], SHAPE, (1, 1, 1)) is Reason.IMPLAUSIBLE_GEOMETRY


def test_contours_beyond_the_image_are_cut() -> None:
    mask = rasterised([rectangle((-50, -50), (50, 50), float(k)) for k in range(-20, 40)])
    assert mask.all()
    outside = [rectangle((30, 30), (50, 50), 3.0)]
    assert rasterise_contours(outside, SHAPE, (1, 1, 1)) is Reason.EMPTY_STRUCTURE


def test_tangles_without_end_are_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    tangle = np.insert(rng.uniform(-1, 17, (5000, 2)), 2, 3.0, axis=1)
    assert rasterise_contours([tangle], SHAPE, (1, 1, 1)) is not Reason.TOO_LARGE
    monkeypatch.setattr(contours_module, "_MOST_CROSSINGS", 10_000)
    assert rasterise_contours([tangle], SHAPE, (1, 1, 1)) is Reason.TOO_LARGE


def test_many_crossings_are_counted_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    tangle = np.insert(rng.uniform(-1, 17, (400, 2)), 2, 3.0, axis=1)
    whole = rasterised([tangle])
    monkeypatch.setattr(contours_module, "_CROSSINGS_AT_ONCE", 37)
    np.testing.assert_array_equal(rasterised([tangle]), whole)
