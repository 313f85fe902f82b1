"""The phantom as DICOM: the same anatomy however it is laid out, headers that tell the truth, and nothing by chance."""

import itertools
from collections import Counter, defaultdict
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.path import Path as Polygon
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from typer.testing import CliRunner

from parametrium.cli import app
from parametrium.cohort.phantom import write_phantom
from parametrium.cohort.phantom.dicom import Exported, write_phantom_dicom
from parametrium.cohort.phantom.dicom.archive import turned
from parametrium.cohort.phantom.dicom.device import site_device, site_devices
from parametrium.cohort.phantom.dicom.header import TRANSFER_SYNTAXES, Visit, decimal, save
from parametrium.cohort.phantom.dicom.identity import invent_person
from parametrium.cohort.phantom.dicom.layout import lay_out, machine_axes
from parametrium.cohort.phantom.dicom.multiframe import multiframe
from parametrium.cohort.phantom.dicom.series import Scan, image_series
from parametrium.cohort.phantom.dicom.structures import outlines
from parametrium.cohort.phantom.tissue import MODALITIES
from parametrium.cohort.problem import Reason
from parametrium.errors import Code, CohortError

LEFT, RIGHT, BACK, FRONT, HEAD, FEET = np.vstack([np.eye(3), -np.eye(3)])[[0, 3, 1, 4, 2, 5]]
POSITIONS = {
    # what lies to the right of one who faces the gantry, what is down, what goes in first
    "HFS": (LEFT, BACK, HEAD),
    "HFP": (RIGHT, FRONT, HEAD),
    "HFDR": (BACK, RIGHT, HEAD),
    "HFDL": (FRONT, LEFT, HEAD),
    "FFS": (RIGHT, BACK, FEET),
    "FFP": (LEFT, FRONT, FEET),
    "FFDR": (FRONT, RIGHT, FEET),
    "FFDL": (BACK, LEFT, FEET),
}
ORIENTATIONS = ("axial", "sagittal", "coronal")
VISIT = Visit(invent_person(1, "north", 0, None), (1, "north", 0, 0), 0, 0)


def grid(turn: tuple[float, float, float] = (0, 0, 0), flips: tuple[int, int, int] = (1, 1, 1)) -> NDArray[np.float64]:
    affine = np.diag([3.0 * flips[0], 2.5 * flips[1], 4.0 * flips[2], 1.0])
    affine[:3, 3] = (-31, 12, 55)
    return turned(turn) @ affine


def numbered(shape: tuple[int, int, int] = (5, 6, 7)) -> NDArray[np.int64]:
    """Every voxel's value is its own number."""
    return np.arange(np.prod(shape)).reshape(shape)


def scan(modality: str = "CT", *, which: int = 0, **changes: object) -> Scan:
    rng = np.random.default_rng(3)
    top = {"CT": 1500, "CBCT": 1500, "PET": 9}.get(modality, 2500)
    low = -1000 if "CT" in modality else 0
    values = rng.uniform(low, top, (36, 34, 33)).astype(np.float32)
    given: dict[str, object] = {
        "visit": VISIT,
        "modality": modality,
        "values": values,
        "affine": grid(),
        "frame": "f",
        "device": site_device("north", modality, which),
    }
    return Scan(**{**given, **changes})  # type: ignore[arg-type]


def written(folder: Path, images: list[Dataset], syntax: str = "explicit") -> list[Path]:
    paths = [folder / f"{index}" for index in range(len(images))]
    for image, path in zip(images, paths, strict=True):
        save(image, path, syntax)
    return paths


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def headers(folder: Path) -> list[Dataset]:
    paths = [
        path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in ("DICOMDIR", "README.TXT")
    ]
    return [pydicom.dcmread(path) for path in paths]


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Exported]]:
    folder = tmp_path_factory.mktemp("export") / "pacs"
    told = write_phantom_dicom(folder, patients=1, modalities=["CT", "T2", "PET"], seed=1, studies=2, jobs=1)
    return folder, told


# ---------------------------------------------------------------------------------------------------- how planes lie


@pytest.mark.parametrize("position", POSITIONS)
def test_the_machine_sees_the_patient_as_the_standard_describes_her_position(position: str) -> None:
    assert np.array_equal(machine_axes(position).T, POSITIONS[position])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("orientation", "position", "row", "column"),
    [
        ("axial", "HFS", LEFT, BACK),
        ("sagittal", "HFS", BACK, FEET),
        ("coronal", "HFS", LEFT, FEET),
        ("axial", "HFP", RIGHT, FRONT),
        ("axial", "FFS", RIGHT, BACK),
        ("axial", "HFDR", BACK, RIGHT),
        ("coronal", "FFS", RIGHT, HEAD),
        ("sagittal", "FFP", FRONT, HEAD),
    ],
)
def test_rows_and_columns_are_what_a_radiographer_expects(
    orientation: str, position: str, row: NDArray[np.float64], column: NDArray[np.float64]
) -> None:
    for flips in itertools.product((1, -1), repeat=3):
        planes = lay_out(numbered(), grid(flips=flips), orientation, position)  # type: ignore[arg-type]
        assert np.array_equal(planes.row, row)
        assert np.array_equal(planes.column, column)


@given(
    orientation=st.sampled_from(ORIENTATIONS),
    position=st.sampled_from(sorted(POSITIONS)),
    turn=st.tuples(*[st.floats(-180, 180)] * 3),
    flips=st.tuples(*[st.sampled_from([1, -1])] * 3),
    backwards=st.booleans(),
)
def test_every_voxel_stays_where_it_is_in_the_patient(
    orientation: str,
    position: str,
    turn: tuple[float, float, float],
    flips: tuple[int, int, int],
    backwards: bool,
) -> None:
    values, affine = numbered(), grid(turn, flips)
    planes = lay_out(values, affine, orientation, position, backwards=backwards)  # type: ignore[arg-type]
    assert sorted(planes.values.ravel()) == sorted(values.ravel())
    assert abs(planes.row @ planes.column) < 1e-9
    for (n, r, c), value in np.ndenumerate(planes.values):
        # Equation C.7.6.2.1-1: the column index goes along the row.
        lps = planes.positions[n] + c * planes.spacing[1] * planes.row + r * planes.spacing[0] * planes.column
        there = np.unravel_index(value, values.shape)
        assert np.allclose(np.diag([-1, -1, 1]) @ lps, affine[:3, :3] @ there + affine[:3, 3], atol=1e-9)
    along = np.cross(planes.row, planes.column) @ (planes.positions[1] - planes.positions[0])
    assert (along < 0) == backwards
    assert abs(along) == pytest.approx(planes.step)


def test_a_feet_first_patient_keeps_her_left_side(tmp_path: Path) -> None:
    values = np.full((8, 7, 6), -1000.0, dtype=np.float32)
    values[6, 1, 4] = 500  # x grows to the right and y to the front in RAS+
    for position in POSITIONS:
        image = image_series(scan(values=values, affine=grid(), position=position), 1)
        bright = [(i, np.argwhere(a > 1024)) for i, a in enumerate(map(pixels, image)) if (a > 1024).any()]
        (n, ((r, c),)) = bright[0]
        row, column = np.reshape(image[n].ImageOrientationPatient, (2, 3)).astype(float)
        spacing = [float(value) for value in image[n].PixelSpacing]
        place = np.array(image[n].ImagePositionPatient, dtype=float) + c * spacing[1] * row + r * spacing[0] * column
        assert np.allclose(place, [-(-31 + 18), -(12 + 2.5), 55 + 16])


def pixels(image: Dataset) -> NDArray[np.uint16]:
    return np.frombuffer(image.PixelData, "<u2").reshape(image.Rows, image.Columns)


# --------------------------------------------------------------------------------------------- voxels, read by others


@pytest.mark.parametrize("syntax", TRANSFER_SYNTAXES)
def test_every_transfer_syntax_gives_the_same_voxels(tmp_path: Path, syntax: str) -> None:
    plain = [pixels(image) for image in image_series(scan(), 1)]
    for path, expected in zip(written(tmp_path, image_series(scan(), 1), syntax), plain, strict=True):
        read = pydicom.dcmread(path)
        assert read.file_meta.TransferSyntaxUID == TRANSFER_SYNTAXES[syntax]
        assert np.array_equal(read.pixel_array, expected)


@pytest.mark.parametrize("turn", [(0, 0, 0), (12, -9, 20)])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_simpleitk_reads_the_volume_that_was_written(
    tmp_path: Path, orientation: str, turn: tuple[float, float, float]
) -> None:
    original = scan(orientation=orientation, affine=grid(turn), position="FFP")
    written(tmp_path, image_series(original, 1))
    names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(tmp_path))
    volume = sitk.ReadImage(names)
    values = sitk.GetArrayFromImage(volume).transpose(2, 1, 0)
    for index in np.ndindex(*values.shape):
        if sum(index) % 97 == 0:
            lps = volume.TransformIndexToPhysicalPoint(index)
            there = np.linalg.inv(original.affine) @ [-lps[0], -lps[1], lps[2], 1]
            nearest = np.rint(there).astype(int)
            assert np.allclose(there, nearest, atol=1e-4)
            assert values[index] == np.rint(original.values[tuple(nearest[:3])])


@pytest.mark.parametrize("modality", ["CT", "CBCT", "T1", "T2", "ADC"])
def test_highdicom_reads_the_same_volume_from_an_enhanced_file(tmp_path: Path, modality: str) -> None:
    original = scan(modality, orientation="coronal", affine=grid((5, 4, 3)))
    save(multiframe(image_series(original, 1), VISIT), tmp_path / "one", "jpeg-ls")
    volume = highdicom.imread(tmp_path / "one").get_volume()
    to_ras = np.diag([-1, -1, 1, 1]) @ volume.affine
    there = np.linalg.inv(original.affine) @ to_ras
    assert np.allclose(there, np.rint(there), atol=1e-4)
    for index in itertools.product((0, 5, 20), repeat=3):
        place = np.rint(there @ (*index, 1)).astype(int)[:3]
        assert volume.array[index] == pytest.approx(np.rint(original.values[tuple(place)]), abs=0.51)


# ------------------------------------------------------------------------------------------- headers tell the truth


@pytest.mark.parametrize("which", range(site_devices("PET")))
def test_uptake_follows_from_weight_dose_and_decay_to_the_start_of_the_scan(which: int) -> None:
    original = scan("PET", which=which)
    images = image_series(original, 1)
    seconds = [_seconds(image.AcquisitionTime) for image in images]
    start = min(seconds)
    assert len(set(seconds)) == 2  # two bed positions, corrected to the start of the first
    assert (_seconds(images[0].SeriesTime) > start + 3600) == original.device.late
    tracer = images[0].RadiopharmaceuticalInformationSequence[0]
    waited = start - _seconds(tracer.RadiopharmaceuticalStartTime)
    left = float(tracer.RadionuclideTotalDose) * 0.5 ** (waited / float(tracer.RadionuclideHalfLife))
    suv = [pixels(i) * float(i.RescaleSlope) * 1000 * float(i.PatientWeight) / left for i in images]
    planes = lay_out(original.values, original.affine, "axial").values
    found = np.stack(suv)
    found = found if np.allclose(found[0], planes[0], rtol=0.01) else found[::-1]
    assert np.allclose(found, planes, rtol=1e-3, atol=1e-3)
    assert len({str(image.RescaleSlope) for image in images}) > len(images) // 2
    assert {(i.Units, i.DecayCorrection, i.Modality) for i in images} == {("BQML", "START", "PT")}


def _seconds(clock: str) -> float:
    return 3600 * int(clock[:2]) + 60 * int(clock[2:4]) + float(clock[4:])


@pytest.mark.parametrize("which", range(3))
def test_an_adc_map_says_its_unit_or_has_numbers_that_need_none(which: int) -> None:
    original = scan("ADC", which=which)
    images = image_series(original, 1)
    slope = float(images[0].get("RescaleSlope", 1))
    mapping = images[0].get("RealWorldValueMappingSequence")
    unit = mapping[0].MeasurementUnitsCodeSequence[0].CodeValue if mapping else "um2/s"
    to_micrometres = {"um2/s": 1.0, "mm2/s": 1e6}[unit]
    total = sum(float((pixels(image) * slope * to_micrometres).sum()) for image in images)
    assert total / original.values.size == pytest.approx(original.values.mean(), abs=0.05)
    assert "ADC" in images[0].ImageType


def test_contrasts_have_the_times_that_make_them() -> None:
    for which in range(2):
        short, long = (image_series(scan(name, which=which), 1)[0] for name in ("T1", "T2"))
        assert float(short.RepetitionTime) < 1000 < 2000 < float(long.RepetitionTime)
        assert float(short.EchoTime) < 30 < 70 < float(long.EchoTime)
        assert "ContrastBolusAgent" not in short
    assert "ContrastBolusAgent" in image_series(scan("CT", contrast=True), 1)[0]
    makers = {image_series(scan("CBCT", which=which), 1)[0].Manufacturer for which in range(2)}
    assert makers == {"Varian Medical Systems", "ELEKTA"}


@given(value=st.floats(-1e4, 1e4))
def test_decimal_strings_are_short_and_close(value: float) -> None:
    assert len(decimal(value)) <= 16
    assert float(decimal(value)) == pytest.approx(value, rel=1e-8, abs=1e-30)


# ----------------------------------------------------------------------------------------------------------- outlines


@given(seed=st.integers(0, 10**6), share=st.floats(0.05, 0.95))
def test_outlines_hold_exactly_the_centres_of_the_mask_holes_and_all(seed: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    mask = rng.random((9, 11)) < share
    mask |= np.pad(np.ones((3, 3), bool), ((1, 5), (1, 7)))
    mask[2, 2] = False
    rows, columns = np.indices(mask.shape)
    centres = np.column_stack([columns.ravel(), rows.ravel()]).astype(float)
    crossings = np.zeros(mask.size, dtype=int)
    for outline in outlines(mask):
        crossings += Polygon(outline).contains_points(centres + 1e-6)
    assert np.array_equal(crossings.reshape(mask.shape) % 2 == 1, mask)


def test_an_empty_plane_has_no_outline() -> None:
    assert list(outlines(np.zeros((4, 4), bool))) == []


def test_structures_refer_to_images_that_were_sent(export: tuple[Path, list[Exported]]) -> None:
    sent = headers(export[0])
    images = {image.SOPInstanceUID: image for image in sent if image.Modality == "CT"}
    sets = [image for image in sent if image.Modality == "RTSTRUCT"]
    assert len(sets) == 2
    for outlined in sets:
        names = {roi.ROIName for roi in outlined.StructureSetROISequence}
        assert {"body", "bladder", "rectum", "uterus", "tumour", "bones"} <= names
        for roi in outlined.ROIContourSequence:
            for contour in roi.ContourSequence[:: max(1, len(roi.ContourSequence) // 5)]:
                image = images[contour.ContourImageSequence[0].ReferencedSOPInstanceUID]
                assert image.FrameOfReferenceUID == outlined.FrameOfReferenceUID
                assert image.StudyInstanceUID == outlined.StudyInstanceUID
                points = np.reshape(np.array(contour.ContourData, dtype=float), (-1, 3))
                assert len(points) == contour.NumberOfContourPoints
                row, column = np.reshape(np.array(image.ImageOrientationPatient, dtype=float), (2, 3))
                away = (points - np.array(image.ImagePositionPatient, dtype=float)) @ np.cross(row, column)
                assert np.abs(away).max() < 2e-3


# ------------------------------------------------------------------------------------------------- the folder as such


def test_every_file_is_accounted_for_by_series(export: tuple[Path, list[Exported]]) -> None:
    folder, told = export
    found = Counter(image.SeriesInstanceUID for image in headers(folder))
    expected: Counter[str] = Counter()
    for series in told:
        if series.series:
            expected[series.series] += series.files
    assert found == expected
    assert sum(series.files for series in told) == len(files(folder))
    reasons = {series.content: series.reason for series in told}
    assert reasons["localiser"] is Reason.LOCALISER
    assert reasons["dose"] is Reason.DOSE
    assert reasons["CT"] is reasons["RTSTRUCT"] is None


def test_identifiers_are_valid_and_as_unique_as_they_must_be(export: tuple[Path, list[Exported]]) -> None:
    folder, told = export
    sent = headers(folder)
    for image in sent:
        for uid in (image.SOPInstanceUID, image.SeriesInstanceUID, image.StudyInstanceUID):
            assert uid.is_valid
            assert uid.startswith("2.25.")
    duplicates = sum(series.files for series in told if series.reason is Reason.DUPLICATE)
    assert len({image.SOPInstanceUID for image in sent}) == len(sent) - duplicates
    one_each = {(i.SeriesInstanceUID, i.StudyInstanceUID, i.Modality, i.PatientID) for i in sent}
    assert len(one_each) == len({image.SeriesInstanceUID for image in sent})


def test_studies_have_their_days_and_their_own_frames(export: tuple[Path, list[Exported]]) -> None:
    folder, told = export
    days, frames = defaultdict(set), defaultdict(set)
    for image in headers(folder):
        days[image.StudyInstanceUID].add(pydicom.valuerep.DA(image.StudyDate))
        if image.Modality in ("CT", "MR", "PT"):
            frames[image.StudyInstanceUID].add(image.FrameOfReferenceUID)
    first, second = sorted(min(day) for day in days.values())
    assert (second - first).days == 28 == max(series.day for series in told)
    assert [len(names) for names in frames.values()] == [1, 1]
    assert len(set.union(*frames.values())) == 2


def test_misregistered_volumes_have_frames_of_their_own(tmp_path: Path) -> None:
    write_phantom_dicom(
        tmp_path / "a", patients=1, modalities=["T2", "ADC"], seed=1, misregistration_mm=9, surroundings=False, jobs=1
    )
    frames = {(i.SeriesInstanceUID, i.FrameOfReferenceUID) for i in headers(tmp_path / "a") if i.Modality == "MR"}
    assert len(frames) == len({frame for _, frame in frames}) == 2


def test_the_same_seed_gives_the_same_bytes_whatever_the_number_of_processes(tmp_path: Path) -> None:
    for jobs in (1, 2):
        write_phantom_dicom(
            tmp_path / str(jobs), patients=2, modalities=["ADC"], seed=7, segmentations=True, enhanced=True, jobs=jobs
        )
    assert files(tmp_path / "1") == files(tmp_path / "2")


def test_the_volumes_are_those_of_the_phantom(export: tuple[Path, list[Exported]], tmp_path: Path) -> None:
    import nibabel

    write_phantom(tmp_path / "c", patients=1, modalities=["CT", "T2", "PET"], seed=1, studies=2, missing=0, jobs=1)
    series = {(told.study, told.content): told.series for told in export[1]}
    sent = headers(export[0])
    for study in ("s0", "s1"):
        image = nibabel.load(tmp_path / f"c/p000/{study}/CT.nii.gz")
        values, back = image.get_fdata(), np.linalg.inv(image.affine)
        for plane in sent:
            if plane.SeriesInstanceUID != series[study, "CT"] or plane.InstanceNumber % 9:
                continue
            row, column = np.reshape(np.array(plane.ImageOrientationPatient, dtype=float), (2, 3))
            corner = np.array(plane.ImagePositionPatient, dtype=float)
            stored = pixels(plane).astype(int)
            for r, c in itertools.product(range(0, plane.Rows, 11), range(0, plane.Columns, 13)):
                lps = corner + c * plane.PixelSpacing[1] * row + r * plane.PixelSpacing[0] * column
                i, j, k = np.rint((back @ [-lps[0], -lps[1], lps[2], 1])[:3]).astype(int)
                assert stored[r, c] - 1024 == values[i, j, k]


# ----------------------------------------------------------------------------------------------------------- identity


def test_what_is_to_be_planted_is_in_every_file_and_every_place(tmp_path: Path) -> None:
    planted = {
        "PatientName": "SENTINEL^NAME {n}",
        "PatientID": "SENTINEL-ID",
        "InstitutionName": "SENTINEL-HOSPITAL",
        "DeviceSerialNumber": "SENTINEL-SERIAL",
        "RequestedProcedureDescription": "SENTINEL-PROCEDURE",
        "preamble": "SENTINEL-PREAMBLE",
        "private": "SENTINEL-PRIVATE",
        "padding": "SENTINEL-PADDING",
        "overlay": "SENTINEL-OVERLAY",
        "path": "SENTINEL-PATH-{n}",
    }
    write_phantom_dicom(
        tmp_path / "p", patients=2, modalities=["CBCT"], seed=3, identity=planted, segmentations=True, jobs=1
    )
    everything = files(tmp_path / "p")
    for name, content in everything.items():
        if not name.endswith(("DICOMDIR", "README.TXT")):
            for word in ("NAME", "ID", "HOSPITAL", "SERIAL", "PROCEDURE", "PREAMBLE", "PRIVATE", "PADDING"):
                assert b"SENTINEL" in content
                assert f"SENTINEL{'^' if word == 'NAME' else '-'}{word}".encode() in content, word
    assert any(b"SENTINEL-OVERLAY" in content for content in everything.values())
    assert any("SENTINEL-PATH-1" in name for name in everything)
    sent = headers(tmp_path / "p")
    assert {str(image.PatientID) for image in sent} == {"SENTINEL-ID-0", "SENTINEL-ID-1"}
    assert {image.RequestAttributesSequence[0].PatientID for image in sent} == {"SENTINEL-ID-0", "SENTINEL-ID-1"}


def test_the_command_writes_the_same_export(tmp_path: Path) -> None:
    words = ["--patients", "1", "--modalities", "ADC", "--seed", "7", "--jobs", "1", "--as-dicom"]
    ended = CliRunner().invoke(app, ["cohort", "phantom", str(tmp_path / "a"), *words])
    assert ended.exit_code == 0
    write_phantom_dicom(tmp_path / "b", patients=1, modalities=["ADC"], seed=7, jobs=1)
    assert files(tmp_path / "a") == files(tmp_path / "b")


@pytest.mark.parametrize("name", ["Rows", "NoSuchKeyword", "PixelData"])
def test_only_texts_can_be_planted(tmp_path: Path, name: str) -> None:
    with pytest.raises(CohortError, match="keywords of DICOM text attributes") as caught:
        write_phantom_dicom(tmp_path / "p", patients=1, modalities=["CT"], seed=3, identity={name: "x"})
    assert caught.value.code is Code.COHORT_IMPORT
    assert not (tmp_path / "p").exists()


@pytest.mark.parametrize(
    "wrong",
    [
        {"patients": 0},
        {"studies": 10_000},
        {"jobs": 0},
        {"misregistration_mm": -1.0},
        {"incomplete": 1.5},
        {"orientation": "oblique"},
        {"position": "HFX"},
        {"transfer_syntax": "gif"},
        {"modalities": []},
    ],
)
def test_what_is_out_of_range_is_refused_by_name(tmp_path: Path, wrong: dict[str, object]) -> None:
    request: dict[str, object] = {"patients": 1, "modalities": MODALITIES, "seed": 1, **wrong}
    with pytest.raises(CohortError, match=next(iter(wrong))):
        write_phantom_dicom(tmp_path / "p", **request)  # type: ignore[arg-type]
    assert not (tmp_path / "p").exists()


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "precious").touch()
    with pytest.raises(CohortError, match="must be absent or empty") as caught:
        write_phantom_dicom(tmp_path, patients=1, modalities=["CT"], seed=1)
    assert str(tmp_path) not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]
