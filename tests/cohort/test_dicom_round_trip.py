"""What a scanner writes in any way that the standard allows comes back as the volume that it took."""

import csv
import itertools
import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from parametrium.cohort.dicom import segmentations, structures
from parametrium.cohort.dicom.choice import choose as choose_modality
from parametrium.cohort.dicom.convert import convert_series
from parametrium.cohort.dicom.facts import Choice, Converted, Facts, Grid, LeftOut
from parametrium.cohort.dicom.header import read_instance
from parametrium.cohort.dicom.stack import split_stacks
from parametrium.cohort.importers.dicom import import_dicom
from parametrium.cohort.phantom import write_phantom
from parametrium.cohort.phantom.dicom import Exported, write_phantom_dicom
from parametrium.cohort.phantom.dicom.archive import turned
from parametrium.cohort.phantom.dicom.device import site_device, site_devices
from parametrium.cohort.phantom.dicom.header import TRANSFER_SYNTAXES, Visit, save
from parametrium.cohort.phantom.dicom.identity import invent_person
from parametrium.cohort.phantom.dicom.multiframe import can_be_multiframe, multiframe
from parametrium.cohort.phantom.dicom.series import Scan, image_series, planes_of
from parametrium.cohort.phantom.dicom.structures import segmentation, structure_set
from parametrium.cohort.problem import Reason
from parametrium.config import VOCABULARY

ORIENTATIONS = ("axial", "sagittal", "coronal")
POSITIONS = ("HFS", "FFS", "HFP", "FFP", "HFDR", "HFDL", "FFDR", "FFDL")
DEVICES = [(modality, which) for modality in ("CT", "CBCT", "T1", "T2", "ADC", "PET") for which in range(3)]
DEVICES = [(modality, which) for modality, which in DEVICES if which < site_devices(modality)]
TOLERANCE = {"CT": 0.5, "CBCT": 0.5, "T1": 0.5, "T2": 0.5, "ADC": 1.0, "PET": 0.0}
"""Rounding to whole units; PET is held to 0.2 % instead."""


def blob(modality: str, shape: tuple[int, int, int], seed: int) -> NDArray[np.float32]:
    """A volume without any symmetry, in the range of its modality."""
    rng = np.random.default_rng(seed)
    low, high = {"CT": (-1000, 1800), "CBCT": (-1000, 1800), "PET": (0.05, 12), "ADC": (300, 2800)}.get(
        modality, (0, 2500)
    )
    return rng.uniform(low, high, shape).astype(np.float32)


def visit(seed: int) -> Visit:
    return Visit(invent_person(seed, "north", 0, None), (seed, "north", 0, 0), 0, 0)


def converted(scan: Scan, folder: Path, syntax: str, enhanced: bool) -> list[Converted | LeftOut]:
    images = image_series(scan, 1)
    if enhanced and can_be_multiframe(images):
        images = [multiframe(images, scan.visit)]
    order = np.random.default_rng(0).permutation(len(images))
    paths = [folder / f"{index}" for index in order]
    for index, path in zip(order, paths, strict=True):
        save(images[index], path, syntax)
    (folder / "staging").mkdir()

    def choose(facts: Facts) -> Choice:
        return Choice(scan.modality, "test")

    return convert_series(paths, choose, folder / "staging")


def assert_the_same(scan: Scan, results: Sequence[Converted | LeftOut]) -> None:
    """Every voxel of the original is a voxel of the result, at the same place in the patient, with its value."""
    (result,) = results
    assert isinstance(result, Converted), result
    image = nibabel.load(result.file)
    values, affine = np.asarray(image.get_fdata()), image.affine
    assert np.linalg.det(affine) != 0
    there = np.linalg.inv(affine) @ scan.affine
    step = np.rint(there[:3, :3]).astype(int)
    assert np.allclose(there[:3, :3], step, atol=1e-4)
    assert sorted(np.abs(step).sum(0)) == sorted(np.abs(step).sum(1)) == [1, 1, 1]
    index = np.indices(scan.values.shape).reshape(3, -1)
    place = there[:3, :3] @ index + there[:3, 3:]
    assert np.abs(place - np.rint(place)).max() < 1e-2  # hundredths of a voxel: decimal strings are 16 characters
    found = values[tuple(np.rint(place).astype(int))].reshape(scan.values.shape)
    assert found.size == values.size == scan.values.size
    expected = scan.values.astype(np.float64)
    if scan.modality == "PET":
        assert np.allclose(found, expected, rtol=2e-3, atol=1e-3)
    else:
        assert np.abs(found - expected).max() <= TOLERANCE[scan.modality] + 1e-3
    if scan.modality in ("CT", "CBCT"):
        assert np.array_equal(found, np.rint(expected))


def scan_of(
    modality: str,
    which: int,
    shape: tuple[int, int, int],
    turn: tuple[float, float, float] = (0, 0, 0),
    *,
    flips: tuple[int, int, int] = (1, 1, 1),
    orientation: str = "axial",
    position: str = "HFS",
    seed: int = 1,
) -> Scan:
    affine = np.diag([3.1 * flips[0], 2.3 * flips[1], 4.7 * flips[2], 1.0])
    affine[:3, 3] = (-31.25, 12.5, -455.125)
    return Scan(
        visit=visit(seed),
        modality=modality,
        values=blob(modality, shape, seed),
        affine=turned(turn) @ affine,
        frame="f",
        device=site_device("north", modality, which),
        orientation=orientation,  # type: ignore[arg-type]
        position=position,  # type: ignore[arg-type]
    )


@given(
    device=st.sampled_from(DEVICES),
    orientation=st.sampled_from(ORIENTATIONS),
    position=st.sampled_from(POSITIONS),
    turn=st.one_of(st.just((0.0, 0.0, 0.0)), st.tuples(*[st.floats(-50, 50)] * 3)),
    flips=st.tuples(*[st.sampled_from([1, -1])] * 3),
    syntax=st.sampled_from([name for name in TRANSFER_SYNTAXES if name != "jpeg-2000"]),
    enhanced=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(max_examples=40)
def test_any_volume_comes_back_however_it_was_acquired(
    tmp_path_factory: pytest.TempPathFactory,
    device: tuple[str, int],
    orientation: str,
    position: str,
    turn: tuple[float, float, float],
    flips: tuple[int, int, int],
    syntax: str,
    enhanced: bool,
    seed: int,
) -> None:
    scan = scan_of(*device, (10, 9, 8), turn, flips=flips, orientation=orientation, position=position, seed=seed)
    assert_the_same(scan, converted(scan, tmp_path_factory.mktemp("series"), syntax, enhanced))


@pytest.mark.parametrize(("orientation", "position"), list(itertools.product(ORIENTATIONS, POSITIONS)))
def test_every_orientation_in_every_position_comes_back(tmp_path: Path, orientation: str, position: str) -> None:
    for modality in ("CT", "T2"):
        folder = tmp_path / modality
        folder.mkdir()
        scan = scan_of(modality, 0, (10, 9, 8), orientation=orientation, position=position)
        assert_the_same(scan, converted(scan, folder, "explicit", False))


@pytest.mark.parametrize("syntax", TRANSFER_SYNTAXES)
@pytest.mark.parametrize(("modality", "which"), DEVICES)
def test_every_device_comes_back_in_every_transfer_syntax(
    tmp_path: Path, modality: str, which: int, syntax: str
) -> None:
    # JPEG 2000's encoder halves a plane five times, so it takes no plane below 32 pixels.
    shape = (34, 33, 6) if syntax == "jpeg-2000" else (12, 11, 6)
    scan = scan_of(modality, which, shape, (3, -4, 5))
    assert_the_same(scan, converted(scan, tmp_path, syntax, False))


@pytest.mark.parametrize("syntax", TRANSFER_SYNTAXES)
@pytest.mark.parametrize("modality", ["CT", "T1", "ADC"])
def test_an_enhanced_file_comes_back_in_every_transfer_syntax(tmp_path: Path, modality: str, syntax: str) -> None:
    scan = scan_of(modality, 1, (34, 33, 6), orientation="coronal" if syntax != "jpeg-2000" else "axial")
    assert_the_same(scan, converted(scan, tmp_path, syntax, True))


# -------------------------------------------------------------------------------------------------------- structures


def pieces(shape: tuple[int, int, int], seed: int) -> dict[str, NDArray[np.bool_]]:
    """A thick ball with a cavity, and a flat slab that touches the edges of the volume."""
    rng = np.random.default_rng(seed)
    axes = np.indices(shape) - (np.array(shape)[:, None, None, None] - 1) / 2 + rng.uniform(-1, 1, (3, 1, 1, 1))
    far = np.sqrt(((axes / (np.array(shape)[:, None, None, None] / 2)) ** 2).sum(0))
    return {"bladder": (far < 0.9) & (far > 0.35), "rectum": (axes[0] > 1) & (axes[1] > -2)}


@given(
    orientation=st.sampled_from(ORIENTATIONS),
    position=st.sampled_from(POSITIONS),
    turn=st.one_of(st.just((0.0, 0.0, 0.0)), st.tuples(*[st.floats(-40, 40)] * 3)),
    enhanced=st.booleans(),
    kind=st.sampled_from(["RTSTRUCT", "SEG"]),
    seed=st.integers(0, 99),
)
@settings(max_examples=15)
def test_structures_come_back_on_the_grid_of_their_image(
    tmp_path_factory: pytest.TempPathFactory,
    orientation: str,
    position: str,
    turn: tuple[float, float, float],
    enhanced: bool,
    kind: str,
    seed: int,
) -> None:
    scan = scan_of("CT", 0, (16, 14, 12), turn, orientation=orientation, position=position, seed=seed)
    assert_structures_come_back(scan, tmp_path_factory.mktemp("structures"), kind, enhanced)


def test_a_segmentation_whose_frames_begin_within_a_byte_comes_back(tmp_path: Path) -> None:
    # One bit a voxel without padding (PS3.5 8.1.1): a frame of 14 x 13 voxels is 22 bytes and 6 bits.
    assert_structures_come_back(scan_of("CT", 0, (14, 13, 12)), tmp_path, "SEG", False)


def assert_structures_come_back(scan: Scan, folder: Path, kind: str, enhanced: bool) -> None:
    masks = pieces(scan.values.shape, 1)
    images = image_series(scan, 1)
    if enhanced:
        images = [multiframe(images, scan.visit)]
    make = structure_set if kind == "RTSTRUCT" else segmentation
    outlined = make(scan.visit, images, {name: planes_of(scan, mask) for name, mask in masks.items()}, number=2)
    save(outlined, folder / "m")
    (volume,) = converted(scan, folder, "explicit", enhanced)
    assert isinstance(volume, Converted)
    found = masks_of(folder / "m", kind, volume.grid)
    assert sorted(found) == sorted(masks)
    for name, mask in masks.items():
        got = found[name]
        assert not isinstance(got, Reason), got
        assert dice(mask, scan.affine, got > 0, volume.grid.affine) >= 0.97


def masks_of(path: Path, kind: str, grid: Grid) -> dict[str, NDArray[np.uint8] | Reason]:
    if kind == "RTSTRUCT":
        drawn = structures.read_structures(path)
        assert not isinstance(drawn, LeftOut)
        return dict(structures.rasterise(drawn, grid))
    segments = segmentations.read_segmentation(path)
    assert not isinstance(segments, LeftOut)
    return dict(segmentations.rasterise(segments, grid))


def dice(
    one: NDArray[np.bool_], of: NDArray[np.float64], other: NDArray[np.bool_], there: NDArray[np.float64]
) -> float:
    """Of two masks whose grids are the same but for the order of their axes."""
    back = np.linalg.inv(there) @ of
    index = np.indices(one.shape).reshape(3, -1)
    place = np.rint(back[:3, :3] @ index + back[:3, 3:]).astype(int)
    assert (place >= 0).all()
    moved = other[tuple(place)].reshape(one.shape)
    return float(2 * (one & moved).sum() / (one.sum() + other.sum()))


# ------------------------------------------------------------------------------------------------------ a whole export

MODALITIES = ("CT", "CBCT", "T1", "T2", "ADC", "PET")


@pytest.mark.parametrize("modality", MODALITIES)
@pytest.mark.parametrize("enhanced", [False, True])
def test_the_choice_knows_every_device_by_its_facts(tmp_path: Path, modality: str, enhanced: bool) -> None:
    for which in range(site_devices(modality)):
        scan = scan_of(modality, which, (8, 7, 4))
        images = image_series(scan, 1)
        if enhanced and can_be_multiframe(images):
            images = [multiframe(images, scan.visit)]
        save(images[0], tmp_path / f"{which}")
        instance = read_instance(tmp_path / f"{which}")
        assert not isinstance(instance, LeftOut)
        (stack,) = split_stacks([instance])
        choice = choose_modality(stack.facts, (), VOCABULARY)
        assert (choice.modality, choice.reason) == (modality, None), (which, choice)
        assert choice.rule.startswith("facts")


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


class Trip:
    """An export, the phantom's own volumes, and what the import made of the export."""

    def __init__(self, folder: Path, request: Mapping[str, Any], style: Mapping[str, Any]) -> None:
        write_phantom(folder / "original", **request, missing=0)
        self.told: list[Exported] = write_phantom_dicom(folder / "pacs", **request, **style)
        self.report = import_dicom(folder / "pacs", folder / "cohort", jobs=2, wanted=MODALITIES)
        self.original, self.cohort = folder / "original", folder / "cohort"
        pseudonyms = {row["subject"]: row["pseudonym"] for row in table(folder / "cohort.secret.patients.csv")}
        subjects = list(dict.fromkeys(series.patient for series in self.told))
        self.names = {f"p{index:03d}": pseudonyms[subject] for index, subject in enumerate(subjects)}
        self.turn = turned(style.get("turn_deg", (0.0, 0.0, 0.0)))


TRIPS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "one patient twice": (
        {"patients": 1, "modalities": ("CT", "PET", "ADC"), "studies": 2, "seed": 5, "site": "north", "jobs": 1},
        {"segmentations": True},
    ),
    "two askew on their faces, enhanced": (
        {"patients": 2, "modalities": ("CT", "CBCT", "T1", "T2"), "seed": 6, "site": "south", "jobs": 2},
        {
            "orientation": "coronal",
            "position": "FFP",
            "turn_deg": (6.0, -8.0, 11.0),
            "enhanced": True,
            "transfer_syntax": "jpeg-ls",
        },
    ),
}


@pytest.fixture(scope="module", params=TRIPS)
def trip(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trip:
    return Trip(tmp_path_factory.mktemp("trip"), *TRIPS[request.param])


def by_visit(rows: list[dict[str, str]]) -> dict[tuple[str, str, str], dict[str, str]]:
    return {(row["patient"], row["day"], row["modality"]): row for row in rows}


def test_a_whole_export_comes_back_voxel_by_voxel(trip: Trip) -> None:
    original, found = by_visit(table(trip.original / "cohort.csv")), by_visit(table(trip.cohort / "cohort.csv"))
    assert {(trip.names[patient], day, modality) for patient, day, modality in original} == set(found)
    for (patient, day, modality), row in original.items():
        before = nibabel.load(trip.original / row["path"])
        after = nibabel.load(trip.cohort / found[trip.names[patient], day, modality]["path"])
        values, affine = before.get_fdata(), trip.turn @ before.affine
        back = np.linalg.inv(after.affine) @ affine
        index = np.indices(values.shape).reshape(3, -1)[:, ::17]
        place = back[:3, :3] @ index + back[:3, 3:]
        assert np.abs(place - np.rint(place)).max() < 0.01
        got = after.get_fdata()[tuple(np.rint(place).astype(int))]
        expected = values[tuple(index)]
        if modality == "PET":
            assert np.allclose(got, expected, rtol=2e-3, atol=2e-3)
        else:
            assert np.abs(got - expected).max() <= TOLERANCE[modality] + 1e-3
        if modality in ("CT", "CBCT"):
            assert np.array_equal(got, expected)


def test_frames_say_what_is_registered(trip: Trip) -> None:
    frames = defaultdict(set)
    for row in table(trip.cohort / "cohort.csv"):
        frames[row["patient"], row["study"]].add(row["frame"])
    assert {len(names) for names in frames.values()} == {1}
    assert len(frames) == 2


def test_masks_come_back_as_the_phantom_drew_them(trip: Trip) -> None:
    days = {(row["patient"], row["study"]): row["day"] for row in table(trip.original / "cohort.csv")}
    volumes = table(trip.cohort / "cohort.csv")
    found = defaultdict(list)
    for row in table(trip.cohort / "masks.csv"):
        day = next(v["day"] for v in volumes if (v["patient"], v["study"]) == (row["patient"], row["study"]))
        found[row["patient"], day, row["structure"]].append(row)
    expected = table(trip.original / "masks.csv")
    assert len(expected) >= 12
    for row in expected:
        before = nibabel.load(trip.original / row["path"])
        candidates = found[trip.names[row["patient"]], days[row["patient"], row["study"]], row["structure"]]
        images = [nibabel.load(trip.cohort / candidate["path"]) for candidate in candidates]
        same = [image for image in images if sorted(image.shape) == sorted(before.shape)]
        assert same, row["structure"]  # a SEG of another volume has another shape
        mask, affine = before.get_fdata() > 0, trip.turn @ before.affine
        assert dice(mask, affine, same[0].get_fdata() > 0, same[0].affine) >= 0.97


def test_a_segmentation_of_another_volume_shows_the_same_organ(trip: Trip) -> None:
    """One study's bladder was outlined on its CT and segmented on its ADC map."""
    seen = defaultdict(list)
    for row in table(trip.cohort / "masks.csv"):
        if row["structure"] == "bladder":
            mask = nibabel.load(trip.cohort / row["path"])
            inside = mask.get_fdata() > 0
            middle = mask.affine[:3, :3] @ np.argwhere(inside).mean(0) + mask.affine[:3, 3]
            seen[row["patient"], row["study"]].append((*middle, inside.sum() * abs(np.linalg.det(mask.affine[:3, :3]))))
    segmented = any(series.content == "SEG" for series in trip.told)
    for masks in seen.values():
        assert len(masks) == 1 + segmented
        (*middle, volume), (*other, size) = masks[0], masks[-1]
        assert np.linalg.norm(np.subtract(middle, other)) < 2
        assert size == pytest.approx(volume, rel=0.1)


def test_what_came_with_the_volumes_is_left_out_for_the_right_reason(trip: Trip) -> None:
    expected: Counter[Reason] = Counter()
    for series in trip.told:
        if series.reason is not None:
            expected[series.reason] += series.files
    assert dict(trip.report.left_out) == dict(expected)
    assert trip.report.files == sum(series.files for series in trip.told)


def test_sidecars_hold_the_facts_of_the_device(trip: Trip) -> None:
    for row in table(trip.cohort / "cohort.csv"):
        sidecar = json.loads((trip.cohort / row["path"].replace(".nii.gz", ".json")).read_text())
        if row["modality"] in ("T1", "T2"):
            assert (sidecar["repetition_time_ms"] < 1000) == (row["modality"] == "T1")
            assert sidecar["field_strength_t"] == 1.5
        if row["modality"] == "PET":
            assert 55 <= sidecar["minutes_after_injection"] <= 75
            assert sidecar["suv_factor"] > 0
        assert sidecar["derived"] == (row["modality"] == "ADC")
