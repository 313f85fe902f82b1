"""Segmentations come back as they were written, whatever was left out of the file and however the image is stored."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as Items
from pydicom.sr.codedict import codes
from pydicom.uid import ExplicitVRLittleEndian, RLELossless

from parametrium.cohort.dicom import elements
from parametrium.cohort.dicom.facts import Grid, LeftOut
from parametrium.cohort.dicom.segmentations import Segmentation, rasterise, read_segmentation
from parametrium.cohort.problem import Reason
from structure_files import SENTINEL, image_series, oblique_grid, straight_grid

Mask = NDArray[np.uint8]


def described(number: int, label: str) -> hd.seg.SegmentDescription:
    return hd.seg.SegmentDescription(
        segment_number=number,
        segment_label=label,
        segmented_property_category=codes.SCT.Tissue,
        segmented_property_type=codes.SCT.Tissue,
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.MANUAL,
    )


def written(path: Path, grid: Grid, segments: Sequence[Mask], labels: Sequence[str], kind: str, **more: Any) -> Path:
    """A SEG by highdicom on the slices of the grid; each segment is [I, J, K]."""
    planes = np.stack([np.transpose(segment, (2, 1, 0)) for segment in segments], axis=-1)  # [K, J, I, S]
    if kind == "LABELMAP":
        planes = (planes * np.arange(1, len(segments) + 1)).max(axis=-1).astype(np.uint8)
    dataset = hd.seg.Segmentation(
        source_images=image_series(grid),
        pixel_array=planes,
        segmentation_type=kind,
        segment_descriptions=[described(number, label) for number, label in enumerate(labels, 1)],
        series_instance_uid=hd.UID(),
        series_number=1,
        sop_instance_uid=hd.UID(),
        instance_number=1,
        manufacturer=SENTINEL,
        manufacturer_model_name=SENTINEL,
        software_versions="1",
        device_serial_number="1",
        **{"transfer_syntax_uid": ExplicitVRLittleEndian, **more},
    )
    dataset.save_as(path)
    return path


def read(path: Path) -> Segmentation:
    found = read_segmentation(path)
    assert isinstance(found, Segmentation), found
    return found


def masks(path: Path, grid: Grid) -> dict[str, Mask | Reason]:
    return dict(rasterise(read(path), grid))


def blobs(grid: Grid, seed: int, share: float = 0.2) -> Mask:
    """Random voxels, none on some slices."""
    rng = np.random.default_rng(seed)
    mask = rng.random(grid.shape) < share
    mask[:, :, rng.permutation(grid.shape[2])[: grid.shape[2] // 3]] = False
    return mask.astype(np.uint8)


def reversed_slices(grid: Grid) -> Grid:
    affine = grid.affine.copy()
    affine[:3, 3] += affine[:3, 2] * (grid.shape[2] - 1)
    affine[:3, 2] *= -1
    return Grid(grid.shape, affine)


@settings(max_examples=10)
@given(seed=st.integers(0, 2**32 - 1))
def test_a_mask_comes_back_bit_for_bit_on_any_grid_in_either_order(
    seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    grid = oblique_grid(seed, shape=(13, 11, 7))  # a frame is no whole number of bytes
    mask = blobs(grid, seed)
    path = written(tmp_path_factory.mktemp("seg") / "f", grid, [mask], ["Bladder"], "BINARY")
    assert dcmread(path).NumberOfFrames == mask.any(axis=(0, 1)).sum()
    np.testing.assert_array_equal(masks(path, grid)["bladder"], mask)
    turned = masks(path, reversed_slices(grid))["bladder"]
    assert isinstance(turned, np.ndarray)
    np.testing.assert_array_equal(turned[:, :, ::-1], mask)


@pytest.mark.parametrize(
    ("kind", "syntax"),
    [("BINARY", ExplicitVRLittleEndian), ("LABELMAP", ExplicitVRLittleEndian), ("LABELMAP", RLELossless)],
)
def test_several_segments(tmp_path: Path, kind: str, syntax: str) -> None:
    grid = oblique_grid(1, shape=(16, 10, 8))
    labels = np.random.default_rng(1).integers(0, 4, grid.shape) * blobs(grid, 1, 0.7)
    segments = [(labels == number).astype(np.uint8) for number in (1, 2, 3)]
    path = written(tmp_path / "f", grid, segments, ["Rectum", SENTINEL, "GTV"], kind, transfer_syntax_uid=syntax)
    found = masks(path, grid)
    assert list(found) == ["rectum", "structure02", "gtv"]
    for mask, segment in zip(found.values(), segments, strict=True):
        np.testing.assert_array_equal(mask, segment)


def test_overlapping_segments_keep_their_overlap(tmp_path: Path) -> None:
    grid = oblique_grid(2, shape=(9, 10, 8))
    segments = [blobs(grid, 1, 0.5), blobs(grid, 2, 0.5)]
    found = masks(written(tmp_path / "f", grid, segments, ["CTV", "PTV"], "BINARY"), grid)
    np.testing.assert_array_equal(found["ctv"], segments[0])
    np.testing.assert_array_equal(found["ptv"], segments[1])


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, RLELossless])
def test_half_of_a_fraction_is_inside(tmp_path: Path, syntax: str) -> None:
    grid = oblique_grid(3, shape=(9, 10, 8))
    share = np.random.default_rng(0).random(grid.shape).astype(np.float32)
    path = written(
        *(tmp_path / "f", grid, [share], ["Uterus"], "FRACTIONAL"), max_fractional_value=200, transfer_syntax_uid=syntax
    )
    np.testing.assert_array_equal(masks(path, grid)["uterus"], np.round(share * 200) >= 100)


def by_hand(mask: Mask, own: Grid, grid: Grid) -> Mask:
    """Voxel by voxel: where the centre falls, in the other grid."""
    matrix = np.linalg.inv(own.affine) @ grid.affine
    result = np.zeros(grid.shape, dtype=np.uint8)
    for index in np.ndindex(grid.shape):
        place = np.round(matrix[:3, :3] @ index + matrix[:3, 3]).astype(int)
        if (place >= 0).all() and (place < own.shape).all():
            result[index] = mask[tuple(place)]
    return result


@settings(max_examples=12)
@given(seed=st.integers(0, 2**32 - 1), aligned=st.booleans())
def test_another_grid_takes_the_nearest_voxel(
    seed: int, aligned: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    rng = np.random.default_rng(seed)
    own = oblique_grid(seed, shape=(10, 9, 8), spacing=(2.1, 2.7, 3.3))
    other = oblique_grid(seed if aligned else seed + 1, shape=(15, 14, 12), spacing=rng.uniform(1, 4, 3))
    affine = other.affine.copy()
    middle = own.affine @ [4.5, 4.0, 3.5, 1.0]
    affine[:3, 3] += middle[:3] - (other.affine @ [7.1, 6.6, 5.7, 1.0])[:3]
    grid = Grid(other.shape, affine)
    mask = blobs(own, seed, 0.4)
    path = written(tmp_path_factory.mktemp("seg") / "f", own, [mask], ["Tumor"], "BINARY")
    expected = by_hand(mask, own, grid)
    found = masks(path, grid)["tumour"]
    # Headers hold nine digits: a centre within a thousandth of a voxel of a border may fall on either side.
    assert np.count_nonzero(np.asarray(found) != expected) <= 2
    assert expected.any()


def test_frames_midway_between_image_planes_are_used_once(tmp_path: Path) -> None:
    own = straight_grid((6, 6, 8))
    mask = blobs(own, 4, 0.5)
    affine = own.affine.copy()
    affine[2, 3] = 0.5
    found = masks(written(tmp_path / "f", own, [mask], ["Sigmoid"], "BINARY"), Grid(own.shape, affine))["sigmoid"]
    np.testing.assert_array_equal(found, mask)


def test_a_segment_on_another_part_of_the_patient_is_empty_here(tmp_path: Path) -> None:
    own = straight_grid((6, 6, 8))
    affine = own.affine.copy()
    affine[0, 3] = 100
    path = written(tmp_path / "f", own, [blobs(own, 4)], ["Sigmoid"], "BINARY")
    assert masks(path, Grid(own.shape, affine)) == {"sigmoid": Reason.EMPTY_STRUCTURE}


def test_the_references_of_a_file_are_found(tmp_path: Path) -> None:
    grid = straight_grid((6, 5, 4))
    images = image_series(grid)
    found = read(written(tmp_path / "f", grid, [np.ones(grid.shape, np.uint8)], ["Heart"], "BINARY"))
    assert found.references.frame_of_reference == images[0].FrameOfReferenceUID
    assert found.references.series == {images[0].SeriesInstanceUID}
    assert found.references.instances == {image.SOPInstanceUID for image in images}
    assert found.identity.patient == SENTINEL


def without_frame_places(dataset: Dataset) -> None:
    for frame in dataset.PerFrameFunctionalGroupsSequence:
        del frame.PlanePositionSequence


def without_image(dataset: Dataset) -> None:
    del dataset.FrameOfReferenceUID
    del dataset.ReferencedSeriesSequence
    for frame in dataset.PerFrameFunctionalGroupsSequence:
        del frame.DerivationImageSequence


def without_segments(dataset: Dataset) -> None:
    dataset.SegmentSequence = Items()


def of_another_class(dataset: Dataset) -> None:
    dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.2"


def of_unknown_kind(dataset: Dataset) -> None:
    dataset.SegmentationType = "SURFACE"


def changed(path: Path, change: Callable[[Dataset], None]) -> Path:
    grid = straight_grid((6, 5, 4))
    dataset = dcmread(written(path, grid, [np.ones(grid.shape, np.uint8)], ["Heart"], "BINARY"))
    change(dataset)
    dataset.save_as(path)
    return path


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (without_frame_places, Reason.NO_GEOMETRY),
        (without_image, Reason.STRUCTURES_WITHOUT_IMAGE),
        (without_segments, Reason.EMPTY_STRUCTURE),
        (of_another_class, Reason.NOT_AN_IMAGE),
        (of_unknown_kind, Reason.UNREADABLE),
    ],
)
def test_a_file_of_no_use_is_left_out(
    tmp_path: Path, change: Callable[[Dataset], None], reason: Reason, capfd: pytest.CaptureFixture[str]
) -> None:
    found = read_segmentation(changed(tmp_path / "f", change))
    assert isinstance(found, LeftOut)
    assert found.reason is reason
    assert capfd.readouterr() == ("", "")


def turned_frame(dataset: Dataset) -> None:
    position = dataset.PerFrameFunctionalGroupsSequence[2].PlanePositionSequence[0]
    position.ImagePositionPatient = [7.5, 0, 2]


def without_pixels(dataset: Dataset) -> None:
    dataset.PixelData = dataset.PixelData[:2]


def giant(dataset: Dataset) -> None:
    dataset.Rows = dataset.Columns = 65535


@pytest.mark.parametrize(
    ("change", "reason"),
    [(turned_frame, Reason.NO_GEOMETRY), (without_pixels, Reason.UNDECODABLE), (giant, Reason.TOO_LARGE)],
)
def test_frames_that_cannot_be_put_together_are_told(
    tmp_path: Path, change: Callable[[Dataset], None], reason: Reason, capfd: pytest.CaptureFixture[str]
) -> None:
    assert masks(changed(tmp_path / "f", change), straight_grid((6, 5, 4))) == {"heart": reason}
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("undefined", [False, True])
def test_the_work_allowed_grows_with_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undefined: bool) -> None:
    grid = straight_grid((64, 60, 30))
    path = written(tmp_path / "f", grid, [blobs(grid, seed) for seed in (1, 2)], ["Bladder", "Rectum"], "BINARY")
    if undefined:
        dataset = dcmread(path)
        _without_lengths(dataset)
        dataset.save_as(path)
    expected = masks(path, grid)
    monkeypatch.setattr(elements, "_MAXIMUM_READS", 50)
    monkeypatch.setattr(elements, "_MAXIMUM_BYTES", 5_000)
    monkeypatch.setattr(elements, "_BYTES_A_READ", 5)  # frames of this size hold few pixels
    for name, mask in masks(path, grid).items():
        np.testing.assert_array_equal(mask, expected[name])


def _without_lengths(dataset: Dataset) -> None:
    for element in dataset:
        if element.VR == "SQ":
            element.is_undefined_length = True
            for part in element.value:
                part.is_undefined_length_sequence_item = True
                _without_lengths(part)


def test_a_described_segment_without_frames_is_empty(tmp_path: Path) -> None:
    grid = straight_grid((6, 5, 4))
    segments = [np.ones(grid.shape, np.uint8), np.zeros(grid.shape, np.uint8)]
    found = masks(written(tmp_path / "f", grid, segments, ["Heart", "Aorta"], "BINARY"), grid)
    assert found["aorta"] is Reason.EMPTY_STRUCTURE
    assert np.asarray(found["heart"]).all()


@settings(max_examples=40)
@given(damage=st.data())
def test_damaged_files_are_read_or_refused(damage: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    grid = straight_grid((6, 5, 4))
    path = written(tmp_path_factory.mktemp("seg") / "f", grid, [np.ones(grid.shape, np.uint8)], ["Heart"], "BINARY")
    content = bytearray(path.read_bytes())
    for share in damage.draw(st.lists(st.floats(0, 1, exclude_max=True), max_size=6)):
        content[int(share * len(content))] ^= 1 << damage.draw(st.integers(0, 7))
    path.write_bytes(bytes(content[: round(damage.draw(st.floats(0, 1)) * len(content))]))
    found = read_segmentation(path)
    if isinstance(found, Segmentation):
        for _, mask in rasterise(found, grid):
            assert isinstance(mask, Reason) or mask.shape == grid.shape
