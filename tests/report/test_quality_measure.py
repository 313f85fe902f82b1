"""What is measured of a volume does not depend on how it was stored, and what the viewer gets holds no name."""

import base64
import gzip
import re
from io import BytesIO
from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.image import imread

from cohort_files import ct, grid_affine
from parametrium.report.quality.measure import (
    Measured,
    as_record,
    content_digest,
    from_record,
    measure,
)
from parametrium.report.quality.png import COLOURS, GREYS, encode_png
from parametrium.report.quality.reduced import (
    CELL,
    MOST_VOXELS,
    montage,
    on_grid,
    outline,
    read_viewer_file,
    reduce_volume,
    viewer_file,
)


def measured(voxels: np.ndarray, affine: np.ndarray, modality: str = "CT") -> Measured:
    found = measure(voxels, affine, reduce_volume(voxels, affine, modality), modality)
    assert isinstance(found, Measured)
    return found


@given(st.permutations([0, 1, 2]), st.lists(st.booleans(), min_size=3, max_size=3), st.integers(0, 5))
def test_the_same_voxels_have_one_digest_in_every_order(axes: list[int], flips: list[bool], seed: int) -> None:
    voxels = ct((7, 6, 5), seed)
    turned = np.transpose(voxels, axes)[tuple(slice(None, None, -1 if flip else 1) for flip in flips)]
    assert content_digest(turned.ravel(order="K")) == content_digest(voxels.ravel())
    changed = turned.copy()
    changed[1, 2, 3] += 1
    assert content_digest(changed.ravel()) != content_digest(voxels.ravel())


def test_a_digest_tells_multisets_apart_and_takes_minus_zero_for_zero() -> None:
    first, second = np.array([1, 1, 2], np.float32), np.array([1, 2, 2], np.float32)
    assert content_digest(first) != content_digest(second)
    assert content_digest(np.array([0.0, 1.0], np.float32)) == content_digest(np.array([-0.0, 1.0], np.float32))


def test_numbers_do_not_depend_on_the_order_in_which_a_file_keeps_its_axes() -> None:
    voxels, affine = ct((30, 26, 22)), grid_affine((2.0, 3.0, 4.0))
    straight = measured(voxels, affine)
    turned = measured(np.transpose(voxels, (2, 0, 1))[::-1], affine[:, [2, 0, 1, 3]] @ _flip(22))
    assert straight.shape == turned.shape == (30, 26, 22)
    assert straight.spacing_mm == pytest.approx(turned.spacing_mm)
    assert straight.extent_mm == pytest.approx((60, 78, 88))
    assert straight.content == turned.content
    assert straight.grid != turned.grid
    assert straight.whole == pytest.approx(turned.whole)
    assert straight.body_litres == pytest.approx(turned.body_litres, rel=0.01)
    assert straight.body == pytest.approx(turned.body, rel=0.02, abs=5)


def _flip(n: int) -> np.ndarray:
    flip = np.diag([-1.0, 1.0, 1.0, 1.0])
    flip[0, 3] = n - 1
    return flip


def test_a_known_body_has_its_volume_and_its_intensities() -> None:
    shape, spacing = (60, 60, 60), (4.0, 4.0, 4.0)
    axes = np.meshgrid(*[np.arange(n) - n / 2 + 0.5 for n in shape], indexing="ij")
    ball = sum(axis**2 for axis in axes) < 20**2
    voxels = np.where(ball, 40.0, -1000.0).astype(np.float32)
    found = measured(voxels, grid_affine(spacing))
    assert found.body_litres == pytest.approx(4 / 3 * np.pi * 0.8**3, rel=0.1)
    assert found.body[4] == pytest.approx(40, abs=1)
    assert found.integers == 1.0
    assert found.air == pytest.approx(np.mean(~ball), abs=0.02)
    assert sum(found.histogram) == pytest.approx(1.0)


def test_a_record_comes_back_from_json_as_it_was() -> None:
    found = measured(ct(), grid_affine())
    assert from_record({name: _plain(value) for name, value in as_record(found).items()}) == found
    with pytest.raises(KeyError):
        from_record({"shape": [1, 2, 3]})


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


@pytest.mark.parametrize("shape", [(40, 40, 40), (2, 30, 30), (3, 3, 2), (200, 3, 9), (512, 512, 5)])
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.4, 0.4, 6.0), (5.0, 5.0, 0.5)])
def test_a_coarse_copy_is_bounded_and_can_be_drawn(
    shape: tuple[int, int, int], spacing: tuple[float, float, float]
) -> None:
    voxels = np.random.default_rng(0).normal(100, 30, shape).astype(np.float32)
    reduced = reduce_volume(voxels, grid_affine(spacing), "T2")
    assert 8 <= reduced.image.size <= 1.3 * MOST_VOXELS
    picture = montage(reduced)
    assert picture.shape[0] <= CELL
    assert picture.shape[1] <= 3 * (CELL + 8)
    assert picture.max() <= GREYS + 1


def test_a_montage_outlines_the_body_where_its_edge_is() -> None:
    reduced = reduce_volume(ct((40, 36, 32)), grid_affine((4.0, 4.0, 4.0)), "CT")
    picture = montage(reduced)
    assert (picture == GREYS).sum() > 200
    assert not (picture == GREYS + 1).any()
    mask = np.zeros((9, 9), bool)
    mask[2:7, 3:8] = True
    assert outline(mask).sum() == 16
    whole = np.ones((5, 5), bool)
    assert not outline(whole).any()


def test_a_picture_is_a_png_that_others_read() -> None:
    picture = np.arange(GREYS + len(COLOURS), dtype=np.uint8).reshape(6, -1)
    seen = imread(BytesIO(encode_png(picture)), format="png")[..., :3].reshape(-1, 3)
    assert np.allclose(seen[:GREYS, 0], (np.arange(GREYS) * 255 // (GREYS - 1)) / 255)
    assert (seen[:GREYS].min(1) == seen[:GREYS].max(1)).all()
    assert np.allclose(seen[GREYS:] * 255, COLOURS)


def test_the_viewers_file_holds_numbers_only_and_comes_back(tmp_path: Path) -> None:
    reduced = reduce_volume(ct((30, 28, 26)), grid_affine(origin=(7, -8, 9)), "CT")
    path = tmp_path / "v.js"
    path.write_bytes(viewer_file("0123456789abcdef01234567", reduced, b"picture"))
    text = path.read_text(encoding="ascii")
    found = re.fullmatch(r'parametriumVolume\("[0-9a-f]{24}",("[A-Za-z0-9+/=]*",){3}-?[\d.e+-]+,-?[\d.e+-]+\);\n', text)
    assert found
    back, picture = read_viewer_file(path)
    assert picture == b"picture"
    assert np.array_equal(back.body, reduced.body)
    assert np.array_equal(back.seen, reduced.seen)
    assert np.allclose(back.affine, reduced.affine)
    low, high = np.percentile(reduced.image[reduced.seen], (0.02, 99.98))
    assert np.abs(back.image - np.clip(reduced.image, low, high)).max() <= (high - low) / 1023
    for content in text.split('"')[3:7:2]:
        packed = base64.b64decode(content)
        assert packed[3:8] == b"\0\0\0\0\0"  # gzip: no name, no time
        header = nibabel.Nifti1Image.from_bytes(gzip.decompress(packed)).header
        assert all(not bytes(header[name]).strip(b"\0") for name in ("descrip", "aux_file", "intent_name", "db_name"))
        assert not header.extensions


@pytest.mark.parametrize("content", [b"", b"alert(1)", b'parametriumVolume("k","!","","",1,2);\n'])
def test_a_file_that_is_not_the_viewers_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "v.js"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="not a file of the viewer"):
        read_viewer_file(path)


def test_a_volume_on_anothers_grid_lies_where_it_lay() -> None:
    fixed = reduce_volume(ct((40, 36, 32)), grid_affine((4.0, 4.0, 4.0)), "CT")
    again = on_grid(fixed, fixed)
    assert np.allclose(again.image, fixed.image, atol=1e-3)
    assert np.array_equal(again.body, fixed.body)
    moved = reduce_volume(ct((40, 36, 32)), grid_affine((4.0, 4.0, 4.0), (28.0, 0.0, 0.0)), "CT")
    laid = on_grid(moved, fixed)
    assert np.array_equal(laid.body[8:], fixed.body[:-8])
    assert not laid.seen[:7].any()
