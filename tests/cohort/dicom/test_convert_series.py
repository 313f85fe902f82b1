"""One DICOM series to NIfTI: every voxel lands where a dumb computation puts it, and every file is accounted for."""

import gzip
import logging
import struct
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
from dicom_files import ras_affine, rotation, straight, uid, volume, write_enhanced, write_series
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)
from scipy import ndimage

from parametrium.cohort.dicom.convert import convert_series
from parametrium.cohort.dicom.facts import SIDECAR, Choice, Converted, Facts, LeftOut
from parametrium.cohort.problem import Reason
from parametrium.data.lattice import resample

Stage = Callable[[list[Path]], list[Converted | LeftOut]]


def take_all(facts: Facts) -> Choice:
    return Choice({"PT": "PET"}.get(facts.modality, facts.modality), "facts: test")


def run(files: list[Path], staging: Path, choose: Callable[[Facts], Choice] = take_all) -> list[Converted | LeftOut]:
    """Converts and checks what is always true."""
    staging.mkdir(exist_ok=True)
    results = convert_series(files, choose, staging)
    assert sum(result.files for result in results) == len(files)
    written = {result.file for result in results if isinstance(result, Converted)}
    assert set(staging.iterdir()) == written
    for result in results:
        if isinstance(result, Converted):
            assert set(result.sidecar) <= set(SIDECAR)
            assert all(isinstance(value, bool | float | int | list) for value in result.sidecar.values())
            np.testing.assert_allclose(nibabel.load(result.file).affine, result.grid.affine, atol=1e-4)
    return results


def taken(results: list[Converted | LeftOut]) -> list[Converted]:
    return [result for result in results if isinstance(result, Converted)]


def reasons(results: list[Converted | LeftOut]) -> dict[Reason, int]:
    return {result.reason: result.files for result in results if isinstance(result, LeftOut)}


def assert_same_voxels(path: Path, stored: NDArray[np.generic], affine: NDArray[np.float64], atol: float = 0.0) -> None:
    """Both volumes hold the same value at the same place; their axes may run differently."""
    image = nibabel.load(path)
    to_source = np.linalg.inv(affine) @ image.affine
    indices = np.stack(np.meshgrid(*map(np.arange, image.shape), indexing="ij"), -1).reshape(-1, 3)
    places = indices @ to_source[:3, :3].T + to_source[:3, 3]
    source = np.rint(places).astype(int)
    assert np.abs(places - source).max() < 1e-2
    assert len(np.unique(source, axis=0)) == stored.size == image.get_fdata().size
    np.testing.assert_allclose(image.get_fdata().reshape(-1), stored[tuple(source.T)], rtol=1e-6, atol=atol)


@settings(max_examples=12)
@given(seed=st.integers(0, 10_000), flip=st.booleans(), shuffle=st.integers(0, 100))
def test_any_orientation_in_any_order_of_files(
    tmp_path_factory: pytest.TempPathFactory, seed: int, flip: bool, shuffle: int
) -> None:
    folder = tmp_path_factory.mktemp("series")
    steps = straight((0.7, 1.3, 2.5), rotation(seed))
    steps[:, 2] *= -1 if flip else 1  # slices sent from the far end
    stored = volume(seed=seed)
    origin = tuple(np.random.default_rng(seed).uniform(-300, 300, 3))
    files = write_series(folder / "in", stored, steps=steps, origin=origin, shuffle=shuffle)
    (result,) = taken(run(files, folder / "out"))
    assert_same_voxels(result.file, stored, ras_affine(steps, origin))
    assert np.linalg.det(result.grid.affine[:3, :3]) > 0  # right-handed in the patient, however it was sent


PLANES = {
    "axial": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    "coronal": [[1, 0, 0], [0, 0, -1], [0, 1, 0]],
    "sagittal": [[0, 1, 0], [0, 0, -1], [-1, 0, 0]],
    "feet first": [[-1, 0, 0], [0, 1, 0], [0, 0, -1]],
    "prone": [[-1, 0, 0], [0, -1, 0], [0, 0, 1]],
    "decubitus": [[0, 1, 0], [-1, 0, 0], [0, 0, 1]],
}


@pytest.mark.parametrize("name", PLANES)
def test_a_patient_keeps_her_left_side(tmp_path: Path, name: str) -> None:
    steps = np.array(PLANES[name], dtype=float).T @ np.diag([1.0, 1.5, 4.0])
    stored = volume()
    files = write_series(tmp_path / "in", stored, steps=steps, origin=(10.0, 20.0, 30.0), shuffle=1)
    (result,) = taken(run(files, tmp_path / "out"))
    assert_same_voxels(result.file, stored, ras_affine(steps, (10.0, 20.0, 30.0)))
    # Said once more without a matrix: the voxel farthest to the left in LPS is the one farthest to the left in RAS.
    marked = np.zeros_like(stored)
    ijk = np.stack(np.meshgrid(*map(np.arange, stored.shape), indexing="ij"), -1)
    lps = ijk @ steps.T + (10.0, 20.0, 30.0)
    marked[np.unravel_index(np.argmax(lps[..., 0]), stored.shape)] = 1000
    files = write_series(tmp_path / "marked", marked, steps=steps, origin=(10.0, 20.0, 30.0))
    image = nibabel.load(taken(run(files, tmp_path / "out2"))[0].file)
    place = np.argwhere(image.get_fdata() == 1000)[0]
    assert (image.affine @ [*place, 1.0])[0] == pytest.approx(-lps[..., 0].max(), abs=1e-3)


@pytest.mark.parametrize(
    "syntax",
    [
        *(ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian),
        *(RLELossless, JPEGLSLossless, JPEG2000Lossless),
    ],
    ids=lambda syntax: syntax.name,
)
def test_transfer_syntaxes(tmp_path: Path, syntax: str) -> None:
    stored = volume((40, 36, 3), low=-900)
    files = write_series(tmp_path / "in", stored, syntax=syntax)
    (result,) = taken(run(files, tmp_path / "out"))
    assert_same_voxels(result.file, stored, ras_affine(straight(), (-100.0, -80.0, 40.0)))


@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i4"])
@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian], ids=lambda syntax: syntax.name)
def test_stored_types(tmp_path: Path, dtype: str, syntax: str) -> None:
    stored = volume((7, 5, 3), low=0, high=120).astype(dtype)  # an odd number of voxels a plane
    files = write_series(tmp_path / "in", stored, modality="MR", syntax=syntax)
    (result,) = taken(run(files, tmp_path / "out"))
    assert_same_voxels(result.file, stored, ras_affine(straight(), (-100.0, -80.0, 40.0)))


def test_a_gantry_tilt_is_written_as_the_leaning_axis_it_is(tmp_path: Path) -> None:
    steps = straight((1.0, 1.0, 3.0))
    steps[1, 2] = 1.2  # each slice lies further back
    stored = volume()
    files = write_series(tmp_path / "in", stored, steps=steps)
    (result,) = taken(run(files, tmp_path / "out"))
    assert_same_voxels(result.file, stored, ras_affine(steps, (-100.0, -80.0, 40.0)))
    header = nibabel.load(result.file).header
    assert (int(header["sform_code"]), int(header["qform_code"])) == (1, 0)  # no rotation holds it


def test_a_leaning_axis_is_resampled_exactly(tmp_path: Path) -> None:
    """Linear interpolation keeps a linear function of place, whatever the axes: what is prepared shows no tilt."""
    steps = straight((2.0, 2.0, 3.0))
    steps[1, 2] = 1.2
    origin = np.array([-10.0, -12.0, 5.0])
    indices = np.stack(np.meshgrid(*map(np.arange, (12, 12, 10)), indexing="ij"), -1)
    lps = indices @ steps.T + origin
    stored = np.rint((lps @ (3.0, 5.0, 7.0)) * 10).astype(np.int16)
    files = write_series(tmp_path / "in", stored, steps=steps, origin=origin, modality="MR")
    image = nibabel.load(taken(run(files, tmp_path / "out"))[0].file)
    found = resample(image.get_fdata(dtype=np.float32), image.affine, (2.5, 2.5, 2.5))
    lattice = np.stack(np.meshgrid(*map(np.arange, found.image.shape), indexing="ij"), -1) + found.offset
    expected = lattice * 2.5 @ (-30.0, -50.0, 70.0)  # right and anterior are minus LPS
    inside = ndimage.binary_erosion(found.seen, iterations=2)
    assert inside.sum() > 100
    np.testing.assert_allclose(found.image[inside], expected[inside], atol=1.0)


def test_monochrome1_only_says_how_to_show(tmp_path: Path) -> None:
    stored = volume()
    files = write_series(tmp_path / "in", stored, PhotometricInterpretation="MONOCHROME1")
    (result,) = taken(run(files, tmp_path / "out"))
    assert_same_voxels(result.file, stored, ras_affine(straight(), (-100.0, -80.0, 40.0)))


@pytest.mark.parametrize("change", [{"PhotometricInterpretation": "RGB"}, {"SamplesPerPixel": 3}, {"BitsStored": 17}])
def test_colour_and_nonsense_are_refused(tmp_path: Path, change: dict[str, object]) -> None:
    results = run(write_series(tmp_path / "in", volume(), **change), tmp_path / "out")
    assert reasons(results) == {Reason.UNDECODABLE: 5}


def test_a_straight_volume_has_both_forms(tmp_path: Path) -> None:
    files = write_series(tmp_path / "in", volume(), steps=straight(turn=rotation(3)))
    image = nibabel.load(taken(run(files, tmp_path / "out"))[0].file)
    assert int(image.header["qform_code"]) == 1
    np.testing.assert_allclose(image.get_qform(), image.get_sform(), atol=1e-4)


def test_files_sent_twice_count_as_duplicates(tmp_path: Path) -> None:
    stored = volume()
    files = write_series(tmp_path / "a", stored) + write_series(tmp_path / "b", stored)[:2]
    again = write_series(tmp_path / "c", stored, edit=lambda ds, k: setattr(ds, "SOPInstanceUID", uid("new", str(k))))
    results = run(files + again[:1], tmp_path / "out")
    assert_same_voxels(taken(results)[0].file, stored, ras_affine(straight(), (-100.0, -80.0, 40.0)))
    assert sum(result.files for result in results if isinstance(result, LeftOut)) == 3
    assert set(reasons(results)) == {Reason.DUPLICATE}


@pytest.mark.parametrize(
    ("missing", "reason"), [({2}, Reason.MISSING_SLICES), ({1, 3}, Reason.MISSING_SLICES), ({0}, None), ({8}, None)]
)
def test_a_missing_slice(tmp_path: Path, missing: set[int], reason: Reason | None) -> None:
    stored = volume((5, 5, 9))
    files = [file for k, file in enumerate(write_series(tmp_path / "in", stored)) if k not in missing]
    results = run(files, tmp_path / "out")
    assert reasons(results) == ({reason: len(files)} if reason else {})


@pytest.mark.parametrize(("shift", "kept"), [(0.04, True), (0.3, False)])
def test_irregular_slices(tmp_path: Path, shift: float, kept: bool) -> None:
    def move(dataset: Dataset, k: int) -> None:
        if k == 2:
            x, y, z = dataset.ImagePositionPatient
            dataset.ImagePositionPatient = [x, y, f"{z + shift:.6f}"]

    results = run(write_series(tmp_path / "in", volume(), edit=move), tmp_path / "out")
    assert reasons(results) == ({} if kept else {Reason.IRREGULAR_SLICES: 5})


def test_positions_written_to_a_tenth_of_a_millimetre_are_regular(tmp_path: Path) -> None:
    def round_off(dataset: Dataset, _k: int) -> None:
        dataset.ImagePositionPatient = [f"{x:.1f}" for x in dataset.ImagePositionPatient]

    files = write_series(tmp_path / "in", volume((5, 5, 40)), steps=straight((1, 1, 3.27)), edit=round_off)
    assert len(taken(run(files, tmp_path / "out"))) == 1


def test_one_slice_is_no_volume(tmp_path: Path) -> None:
    results = run(write_series(tmp_path / "in", volume((5, 5, 1))), tmp_path / "out")
    assert reasons(results) == {Reason.ONE_SLICE: 1}


def test_two_echoes_two_b_values_and_two_orientations_are_volumes_of_their_own(tmp_path: Path) -> None:
    kinds = [{"EchoTime": 10}, {"EchoTime": 80}, {"DiffusionBValue": 800.0}, {"steps": straight(turn=rotation(5))}]
    stored = [volume(seed=seed) for seed in range(4)]
    files = []
    for number, kind in enumerate(kinds):
        kind = {"EchoTime": 80, "DiffusionBValue": 0.0} | kind
        files += write_series(tmp_path / str(number), stored[number], modality="MR", first=1 + 100 * number, **kind)
    found = taken(run(files[::-1], tmp_path / "out"))
    keys = [(result.sidecar["echo_time_ms"], result.sidecar["b_value_s_mm2"]) for result in found]
    assert sorted(keys) == [(10.0, 0.0), (80.0, 0.0), (80.0, 0.0), (80.0, 800.0)]
    values = [nibabel.load(result.file).get_fdata() for result in found]
    for array in stored:
        assert sum(np.array_equal(np.sort(array, axis=None), np.sort(value, axis=None)) for value in values) == 1


def test_an_echo_time_that_drifts_from_slice_to_slice_splits_nothing(tmp_path: Path) -> None:
    def drift(dataset: Dataset, k: int) -> None:
        dataset.EchoTime = 10 + 0.01 * k

    files = write_series(tmp_path / "in", volume(), modality="MR", edit=drift)
    assert [result.files for result in taken(run(files, tmp_path / "out"))] == [5]


@pytest.mark.parametrize("agent", [False, True])
@pytest.mark.parametrize("told", ["TemporalPositionIdentifier", "TriggerTime", "AcquisitionNumber", None])
def test_of_a_time_series_one_point_is_taken(tmp_path: Path, told: str | None, agent: bool) -> None:
    stored = [volume(seed=seed) for seed in range(4)]
    files = []
    for point, array in enumerate(stored):
        elements = ({told: point + 1} if told else {}) | ({"ContrastBolusAgent": "Gd"} if agent else {})
        first = 1 + 100 * point
        files += write_series(tmp_path / str(point), array, modality="MR", first=first, shuffle=2, **elements)
    seen: list[int] = []

    def choose(facts: Facts) -> Choice:
        seen.append(facts.time_points)
        return take_all(facts)

    results = run(files, tmp_path / "out", choose)
    (result,) = taken(results)
    # Before the agent came nothing is enhanced, so a series with agent is shown by its middle.
    assert_same_voxels(result.file, stored[2 if agent else 0], ras_affine(straight(), (-100.0, -80.0, 40.0)))
    assert reasons(results) == {Reason.TIME_SERIES: 15}
    assert set(seen) == {4}


def test_a_dynamic_pet_has_no_uptake_value(tmp_path: Path) -> None:
    files = []
    for point in range(2):
        first = 1 + 100 * point
        files += write_series(tmp_path / str(point), volume(seed=point), modality="PT", first=first, Units="BQML")
    assert reasons(run(files, tmp_path / "out")) == {Reason.TIME_SERIES: 10}


def test_image_types_are_kept_apart(tmp_path: Path) -> None:
    files = []
    for number, part in enumerate(("M", "P", "WATER")):
        kind = {"ImageType": ["ORIGINAL", "PRIMARY", part]}
        files += write_series(tmp_path / part, volume(seed=number), modality="MR", first=1 + 10 * number, **kind)
    assert [result.files for result in taken(run(files, tmp_path / "out"))] == [5, 5, 5]


def test_an_enhanced_file_holds_several_volumes(tmp_path: Path) -> None:
    stored = np.stack([volume(seed=seed, low=0) for seed in range(3)])
    steps = straight(turn=rotation(8))

    def frame(group: Dataset, n: int, k: int) -> None:
        echo, diffusion, kind = Dataset(), Dataset(), Dataset()
        echo.EffectiveEchoTime = 60.0
        diffusion.DiffusionBValue = (0.0, 800.0, 800.0)[n]
        kind.FrameType = ["ORIGINAL", "PRIMARY", "DIFFUSION", "NONE"]
        kind.ComplexImageComponent = "PHASE" if n == 2 else "MAGNITUDE"
        line = Dataset()
        line.RescaleSlope, line.RescaleIntercept = 1 + n, k
        group.MREchoSequence, group.MRDiffusionSequence = Items([echo]), Items([diffusion])
        group.MRImageFrameTypeSequence, group.PixelValueTransformationSequence = Items([kind]), Items([line])

    order = [(n, k) for k in range(5) for n in range(3)]
    np.random.default_rng(0).shuffle(order)
    file = write_enhanced(tmp_path / "in", stored, steps=steps, order=order, frame=frame)
    results = run([file], tmp_path / "out")
    assert [result.files for result in results] == [1, 0, 0]
    expected = [stored[n] * (1 + n) + np.arange(5) for n in range(3)]
    for result in taken(results):
        assert result.sidecar["repetition_time_ms"] == 2500.0
        assert result.sidecar["flip_angle_deg"] == 80.0
        values = nibabel.load(result.file).get_fdata()
        (source,) = [array for array in expected if np.array_equal(np.sort(array, None), np.sort(values, None))]
        assert_same_voxels(result.file, source, ras_affine(steps, (-100.0, -80.0, 40.0)))


def csa_header(**values: list[str]) -> bytes:
    """Siemens' own header, in its second form, as nibabel's csareader documents it."""
    data = b"SV10\4\3\2\1" + struct.pack("<2I", len(values), 77)
    for name, items in values.items():
        data += struct.pack("<64si4s3i", name.encode(), 0, b"FD", 4, len(items), 77)
        for text in items:
            data += struct.pack("<4i", len(text), len(text), 77, len(text)) + text.encode().ljust(
                -(-len(text) // 4) * 4
            )
    return data


@pytest.mark.parametrize("sign", [None, 1, -1])
def test_the_tiles_of_an_oblique_mosaic(tmp_path: Path, sign: int | None) -> None:
    """The tiles advance along Siemens' normal, which may be against row x column."""
    stored = volume((8, 6, 5), low=0)
    steps = straight((1.0, 1.5, 4.0), rotation(21))
    steps[:, 2] *= sign or 1
    origin = np.array([-30.0, 20.0, 50.0])
    picture = np.zeros((24, 18), dtype=np.int16)  # 3 x 3 tiles, [I, J]
    for k in range(5):
        picture[k % 3 * 8 : k % 3 * 8 + 8, k // 3 * 6 : k // 3 * 6 + 6] = stored[:, :, k]
    middle = origin + steps[:, 0] * 3.5 + steps[:, 1] * 2.5  # of the first tile, where the picture is centred
    corner = middle - steps[:, 0] * 11.5 - steps[:, 1] * 8.5

    def edit(dataset: Dataset, _k: int) -> None:
        dataset.private_block(0x0019, "SIEMENS MR HEADER", create=True).add_new(0x0A, "US", 5)
        if sign is not None:
            normal = [f"{x:.8f}" for x in steps[:, 2] / 4.0]
            block = dataset.private_block(0x0029, "SIEMENS CSA HEADER", create=True)
            block.add_new(0x10, "OB", csa_header(NumberOfImagesInMosaic=["5"], SliceNormalVector=normal))

    files = write_series(
        tmp_path / "in",
        picture[:, :, None],
        steps=steps,
        origin=corner,
        modality="MR",
        edit=edit,
        ImageType=["ORIGINAL", "PRIMARY", "M", "MOSAIC"],
        SpacingBetweenSlices="4.0",
    )
    (result,) = taken(run(files, tmp_path / "out"))
    assert_same_voxels(result.file, stored, ras_affine(steps, origin))


def test_what_the_choice_leaves_out_is_not_decoded(tmp_path: Path) -> None:
    files = write_series(tmp_path / "in", volume(), PixelData=b"\0\0")
    results = run(files, tmp_path / "out", lambda facts: Choice(None, "facts: no", Reason.LOCALISER))
    assert results == [LeftOut(results[0].identity, Reason.LOCALISER, "facts: no", 5)]
    assert reasons(run(files, tmp_path / "out")) == {Reason.UNDECODABLE: 5}


def test_objects_without_planes(tmp_path: Path) -> None:
    strip = {"edit": lambda dataset, _k: delattr(dataset, "ImagePositionPatient")}
    files = write_series(tmp_path / "a", volume((5, 5, 2)), **strip)
    files += write_series(tmp_path / "b", volume((5, 5, 1)), first=50, Modality="RTDOSE")
    (tmp_path / "text").write_text("no scan " * 100)
    results = run([*files, tmp_path / "text", tmp_path / "absent", tmp_path], tmp_path / "out")
    counts: dict[Reason, int] = {}
    for result in results:
        assert isinstance(result, LeftOut)
        counts[result.reason] = counts.get(result.reason, 0) + result.files
    assert counts == {Reason.NO_GEOMETRY: 2, Reason.DOSE: 1, Reason.NOT_DICOM: 2, Reason.UNREADABLE: 1}


def test_ct_below_air_is_cut_and_rescaled_to_hounsfield_units(tmp_path: Path) -> None:
    stored = volume((6, 6, 4), low=0, high=2000)
    stored[0, 0] = -2000
    line = {"RescaleSlope": "2", "RescaleIntercept": "-1024", "PixelPaddingValue": -2000}
    (result,) = taken(run(write_series(tmp_path / "in", stored, **line), tmp_path / "out"))
    image = nibabel.load(result.file)
    assert image.get_data_dtype() == np.int16
    assert result.sidecar["rescaled"] is True
    expected = np.maximum(stored.astype(float) * 2 - 1024, -1024)
    assert_same_voxels(result.file, expected, ras_affine(straight(), (-100.0, -80.0, 40.0)))


def test_pet_slices_have_slopes_of_their_own(tmp_path: Path) -> None:
    def slope(dataset: Dataset, k: int) -> None:
        dataset.RescaleSlope, dataset.RescaleIntercept = 0.1 + 0.05 * k, 0

    stored = volume(low=0)
    files = write_series(tmp_path / "in", stored, modality="PT", edit=slope, Units="GML", SUVType="BW")
    (result,) = taken(run(files, tmp_path / "out"))
    assert nibabel.load(result.file).get_data_dtype() == np.float32
    assert_same_voxels(result.file, stored * (0.1 + 0.05 * np.arange(5)), ras_affine(straight(), (-100, -80, 40)), 1e-4)


def test_unused_bits_do_not_reach_the_voxels(tmp_path: Path) -> None:
    stored = volume((6, 6, 3), low=-2000)
    dirty = np.where(np.indices(stored.shape).sum(0) % 2 == 0, stored & 0x0FFF, stored).astype(np.int16)
    files = write_series(tmp_path / "in", dirty, modality="MR", BitsStored=12, HighBit=11)
    (result,) = taken(run(files, tmp_path / "out"))
    assert_same_voxels(result.file, stored, ras_affine(straight(), (-100.0, -80.0, 40.0)))


def test_an_adc_map_is_brought_to_square_micrometres_a_second(tmp_path: Path) -> None:
    stored = volume(low=500, high=2500)
    for name, slope in (("micro", "1"), ("milli", "0.001"), ("si", "0.000001")):
        files = write_series(tmp_path / name, stored, modality="MR", RescaleSlope=slope, RescaleIntercept="0")
        (result,) = taken(run(files, tmp_path / f"{name}_out", lambda facts: Choice("ADC", "facts: test")))
        assert_same_voxels(result.file, stored, ras_affine(straight(), (-100.0, -80.0, 40.0)), atol=1e-2)
    files = write_series(tmp_path / "odd", stored, modality="MR", RescaleSlope="17", RescaleIntercept="0")
    results = run(files, tmp_path / "odd_out", lambda facts: Choice("ADC", "facts: test"))
    assert reasons(results) == {Reason.UNKNOWN_UNIT: 5}


def test_header_values_reach_neither_file_nor_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    word = "SENTINEL"
    bad = {"StudyDate": word, "PatientName": f"{word}^A", "SeriesDescription": word, "PatientWeight": "12.5"}
    files = write_series(tmp_path / "in", volume(), patient=word, **{k: v for k, v in bad.items() if k != "StudyDate"})
    for file in files:
        data = file.read_bytes().replace(b"20200229", word.encode())  # a date that is none
        file.write_bytes(data.replace(b"120", b"1?0"))
    results = run(files, tmp_path / "out")
    text = caplog.text + "".join(capfd.readouterr())
    assert word not in text
    for result in taken(results):
        data = result.file.read_bytes()
        assert word.encode() not in data
        assert word.encode() not in gzip.decompress(data)
        assert result.file.stat().st_mode & 0o777 == 0o600
