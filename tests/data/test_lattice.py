"""The lattice: world coordinates decide, whatever order and angle a volume is stored in."""

from itertools import permutations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nibabel.orientations import apply_orientation, inv_ornt_aff
from scipy.spatial.transform import Rotation

from cohort_files import grid_affine
from parametrium.data.lattice import cut, lattice_box, resample

SHAPE = (14, 12, 10)
ANGLE = st.floats(-60, 60)
SPACINGS = st.tuples(*[st.floats(0.8, 4.0)] * 3)
ORIGINS = st.tuples(*[st.floats(-300, 300)] * 3)


def _rotated(angles: tuple[float, ...], spacing: tuple[float, ...], origin: tuple[float, ...]) -> np.ndarray:
    affine = grid_affine(spacing, origin)
    affine[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() @ affine[:3, :3]
    return affine


def _trilinear(image: np.ndarray, point: np.ndarray) -> float:
    """One value by the definition; positions beyond the outermost voxel centres take the nearest."""
    point = np.clip(point, 0, np.asarray(image.shape) - 1)
    low = np.minimum(point.astype(int), np.asarray(image.shape) - 2)
    part = point - low
    return float(
        sum(
            image[tuple(low + corner)] * np.prod(np.where(corner, part, 1 - part))
            for corner in np.array(list(product((0, 1), repeat=3)))
        )
    )


def test_all_48_storage_orders_give_the_same_box() -> None:
    image = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    affine = grid_affine((2.0, 2.5, 4.0), (-13.0, 7.0, 101.0))
    expected = resample(image, affine, (3.0, 3.0, 3.0))
    assert expected.seen.any()
    for order, flips in product(permutations(range(3)), product((1, -1), repeat=3)):
        orientation = np.array(list(zip(order, flips, strict=True)))
        stored = apply_orientation(image, orientation)
        result = resample(stored, affine @ inv_ornt_aff(orientation, SHAPE), (3.0, 3.0, 3.0))
        assert result.offset == expected.offset
        np.testing.assert_array_equal(result.seen, expected.seen)
        np.testing.assert_allclose(result.image, expected.image, atol=1e-5)


def test_a_grid_that_lies_on_the_lattice_is_copied() -> None:
    image = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    result = resample(image, grid_affine((3.0, 3.0, 3.0), (-30.0, 6.0, 300.0)), (3.0, 3.0, 3.0))
    assert result.offset == (-10, 2, 100)
    assert result.seen.all()
    np.testing.assert_array_equal(result.image, image)


@settings(max_examples=40, deadline=None)
@given(angles=st.tuples(ANGLE, ANGLE, ANGLE), spacing=SPACINGS, origin=ORIGINS, seed=st.integers(0, 99))
def test_oblique_volumes_against_a_dumb_interpolation(
    angles: tuple[float, ...], spacing: tuple[float, ...], origin: tuple[float, ...], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    image = rng.normal(size=SHAPE).astype(np.float32)
    affine = _rotated(angles, spacing, origin)
    fine = min(spacing) * 0.9  # finer than the source in any direction: nothing is smoothed
    result = resample(image, affine, (fine, fine, fine))
    inverse = np.linalg.inv(affine)
    for index in rng.integers(0, result.image.shape, (25, 3)):
        position = inverse[:3, :3] @ ((index + result.offset) * fine) + inverse[:3, 3]
        margin = np.min([position + 0.5, np.asarray(SHAPE) - 0.5 - position])
        if abs(margin) < 0.01:
            continue
        assert result.seen[tuple(index)] == (margin > 0)
        expected = _trilinear(image, position) if margin > 0 else 0.0
        assert abs(result.image[tuple(index)] - expected) < 1e-3


@settings(max_examples=15, deadline=None)
@given(angles=st.tuples(ANGLE, ANGLE, ANGLE), spacing=SPACINGS, origin=ORIGINS, coarse=st.floats(1.5, 6.0))
def test_a_ramp_in_the_world_stays_that_ramp(
    angles: tuple[float, ...], spacing: tuple[float, ...], origin: tuple[float, ...], coarse: float
) -> None:
    """Holds for any angle and also where the lattice is coarser and the volume smoothed, away from its rim."""
    shape = (32, 32, 32)
    affine = _rotated(angles, spacing, origin)
    slope = np.array([0.7, -0.4, 0.2])
    world = np.einsum("ij,j...->i...", affine[:3, :3], np.indices(shape)) + affine[:3, 3].reshape(3, 1, 1, 1)
    image = np.tensordot(slope, world, 1).astype(np.float32)
    result = resample(image, affine, (coarse, coarse, coarse))
    points = (np.indices(result.image.shape).reshape(3, -1).T + result.offset) * coarse
    inverse = np.linalg.inv(affine)
    inner = np.abs(points @ inverse[:3, :3].T + inverse[:3, 3] - 15.5).max(axis=1) < 15.5 - 3 * coarse / min(spacing)
    np.testing.assert_allclose(result.image.ravel()[inner], points[inner] @ slope, atol=0.02)


def test_detail_finer_than_the_lattice_is_averaged_not_aliased() -> None:
    image = (np.indices((48, 48, 48)).sum(axis=0) % 2).astype(np.float32)
    result = resample(image, grid_affine((1.0, 1.0, 1.0)), (4.0, 4.0, 4.0))
    np.testing.assert_allclose(result.image[2:-2, 2:-2, 2:-2], 0.5, atol=0.01)


def test_a_volume_between_two_lattice_planes_has_no_box() -> None:
    _, extent = lattice_box((10, 10, 2), grid_affine((3.0, 3.0, 0.2), (0.0, 0.0, 1.0)), (3.0, 3.0, 3.0))
    assert extent[2] < 1


@pytest.mark.parametrize("low", [(0, 0, 0), (2, -1, 4), (-9, 0, 0), (5, 6, 7)])
def test_a_box_is_cut_out_as_voxel_by_voxel_with_zeros_beyond(low: tuple[int, int, int]) -> None:
    values, offset, extent = np.arange(1, 61, dtype=np.uint8).reshape(3, 4, 5), (1, 2, 3), (4, 6, 3)
    found = cut(values, offset, low, extent)
    assert (found.shape, found.dtype) == (extent, values.dtype)
    for place in np.ndindex(extent):
        inner = tuple(p + a - o for p, a, o in zip(place, low, offset, strict=True))
        inside = all(0 <= i < n for i, n in zip(inner, values.shape, strict=True))
        assert found[place] == (values[inner] if inside else 0)
