"""Structure sets: right where they lie, silent about what somebody typed, and never more than a reason when broken."""

import re
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as Items

from parametrium.cohort.dicom import elements
from parametrium.cohort.dicom.facts import Grid, LeftOut
from parametrium.cohort.dicom.structure_names import VOCABULARY, vocabulary_word
from parametrium.cohort.dicom.structures import StructureSet, rasterise, read_structures
from parametrium.cohort.problem import Reason
from structure_files import (
    SENTINEL,
    ellipse,
    image_series,
    many_contours,
    oblique_grid,
    straight_grid,
    structure_set,
    to_patient,
)

Points = NDArray[np.float64]


def read(path: Path) -> StructureSet:
    found = read_structures(path)
    assert isinstance(found, StructureSet), found
    return found


def masks(path: Path, grid: Grid) -> dict[str, NDArray[np.uint8] | Reason]:
    return dict(rasterise(read(path), grid))


def dice(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    return 2 * float((a & b).sum()) / (int(a.sum()) + int(b.sum()))


def places_mm(grid: Grid) -> NDArray[np.float64]:
    """[I, J, K, 3] of each voxel's centre along the grid's own axes, from its first voxel."""
    return np.moveaxis(np.indices(grid.shape), 0, -1) * np.linalg.norm(grid.affine[:3, :3], axis=0)


def rings(grid: Grid, radii_at: Callable[[float], list[tuple[float, float]]], centre: Points) -> list[Points]:
    """Outlines of a body on every slice of the grid, in patient coordinates; radii in mm by height in mm."""
    spacing = np.linalg.norm(grid.affine[:3, :3], axis=0)
    return [
        to_patient(grid, ellipse(centre[:2] / spacing[:2], radii / spacing[:2], float(k)))
        for k in range(grid.shape[2])
        for radii in radii_at(k * spacing[2] - centre[2])
        if min(radii) > 0
    ]


@settings(max_examples=12)
@given(seed=st.integers(0, 2**32 - 1))
def test_an_ellipsoid_on_any_grid_has_its_volume_and_its_place(
    seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    grid = oblique_grid(seed)
    spacing = np.linalg.norm(grid.affine[:3, :3], axis=0)
    rng = np.random.default_rng(seed)
    radii, centre = rng.uniform(12, 17, 3), spacing * np.asarray(grid.shape) / 2 + rng.uniform(-1, 1, 3)

    def ellipses(height: float) -> list[tuple[float, float]]:
        share = max(0.0, 1 - (height / radii[2]) ** 2) ** 0.5
        return [(radii[0] * share, radii[1] * share)]

    path = structure_set(tmp_path_factory.mktemp("rt") / "f", [("Bladder", rings(grid, ellipses, centre))], frame="1.9")
    mask = masks(path, grid)["bladder"]
    inside = (((places_mm(grid) - centre) / radii) ** 2).sum(axis=-1) < 1
    assert isinstance(mask, np.ndarray)
    assert dice(mask > 0, inside) > 0.995
    assert mask.sum() * spacing.prod() == pytest.approx(4 / 3 * np.pi * radii.prod(), rel=0.03)


@settings(max_examples=12)
@given(seed=st.integers(0, 2**32 - 1))
def test_a_torus_keeps_its_hole(seed: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    grid = oblique_grid(seed)
    spacing = np.linalg.norm(grid.affine[:3, :3], axis=0)
    centre, wide, thick = spacing * (np.asarray(grid.shape) - 1) / 2 + 0.11, 14.0, 7.0

    def annuli(height: float) -> list[tuple[float, float]]:
        half = max(0.0, thick**2 - height**2) ** 0.5
        return [(wide + half, wide + half), (wide - half, wide - half)] if half else []

    path = structure_set(tmp_path_factory.mktemp("rt") / "f", [("Sigma", rings(grid, annuli, centre))])
    mask = masks(path, grid)["sigmoid"]
    place = places_mm(grid) - centre
    inside = (np.hypot(place[..., 0], place[..., 1]) - wide) ** 2 + place[..., 2] ** 2 < thick**2
    assert isinstance(mask, np.ndarray)
    assert dice(mask > 0, inside) > 0.99
    assert mask.sum() * spacing.prod() == pytest.approx(2 * np.pi**2 * wide * thick**2, rel=0.05)


def test_the_stored_order_of_slices_only_turns_the_mask(tmp_path: Path) -> None:
    grid = oblique_grid(3)
    turned = grid.affine.copy()
    turned[:3, 3] += turned[:3, 2] * (grid.shape[2] - 1)
    turned[:3, 2] *= -1
    outlines = [to_patient(grid, ellipse((11.3, 9.7), (3 + k / 3, 4.2), float(k))) for k in range(3, 12)]
    path = structure_set(tmp_path / "f", [("Uterus", outlines)])
    forth, back = masks(path, grid)["uterus"], masks(path, Grid(grid.shape, turned))["uterus"]
    assert isinstance(forth, np.ndarray)
    assert isinstance(back, np.ndarray)
    np.testing.assert_array_equal(forth, back[:, :, ::-1])


def outlines_of(grid: Grid, first: int = 3, last: int = 8) -> list[Points]:
    return [to_patient(grid, ellipse((9, 8), (5, 4), float(k))) for k in range(first, last)]


def test_the_references_of_a_file_are_found(tmp_path: Path) -> None:
    found = read(structure_set(tmp_path / "f", [("GTV", outlines_of(straight_grid()))], frame="1.9"))
    assert found.references.frame_of_reference == "1.9"
    assert found.references.series == {"1.2.3.4"}
    assert found.references.instances == {"1.2.3.4.5"}
    assert found.identity.patient == SENTINEL
    assert [structure.number for structure in found.structures] == [1]


def test_slices_are_found_in_the_contours_where_the_file_lists_none(tmp_path: Path) -> None:
    def move(dataset: Dataset) -> None:
        series = (
            dataset.ReferencedFrameOfReferenceSequence[0].RTReferencedStudySequence[0].RTReferencedSeriesSequence[0]
        )
        dataset.ROIContourSequence[0].ContourSequence[1].ContourImageSequence = series.ContourImageSequence
        del series.ContourImageSequence

    found = read(structure_set(tmp_path / "f", [("GTV", outlines_of(straight_grid()))], change=move))
    assert found.references.instances == {"1.2.3.4.5"}


def test_names_are_words_of_the_vocabulary_or_numbers(tmp_path: Path) -> None:
    grid = straight_grid()
    typed = [SENTINEL, "Harnblase", "bladder", "GTV_Mass_CT", "PTV-Bladder", "Jane Doe 1950", "x", "Femoral_Head_R"]
    kinds = ["", "", "", "", "", "EXTERNAL", "PTV", "ORGAN"]
    path = structure_set(tmp_path / "f", [(name, outlines_of(grid)) for name in typed], types=kinds)
    expected = ["structure01", "bladder", "bladder_2", "gtv", "structure05", "body", "ptv", "femoral_head_right"]
    assert list(masks(path, grid)) == expected


@pytest.mark.parametrize(
    ("label", "word"),
    [
        ("HR-CTV", "hrctv"),
        ("HRCTV1", "hrctv"),
        ("CTV_HR", "hrctv"),
        ("PTV45", "ptv"),
        ("GTVn", "gtv_nodes"),
        ("GTV-T cervix", "gtv"),
        ("GTV_Edema", "edema"),
        ("Tumeur", "tumour"),
        ("RParotid", "parotid_right"),
        ("Parotis li", "parotid_left"),
        ("FemoralHead_L", "femoral_head_left"),
        ("Femurkopf rechts", "femoral_head_right"),
        ("Tête fémorale gauche", "femoral_head_left"),
        ("Rückenmark", "cord"),
        ("SpinalCord", "cord"),
        ("Moelle épinière", "cord"),
        ("Bone_Marrow", "bone_marrow"),
        ("Dünndarm", "bowel"),
        ("BowelBag", "bowel"),
        ("Cœur", "heart"),
        ("Lungs", "lung"),
        ("Poumon droit", "lung_right"),
        ("Äußenkontur", "body"),
        ("BODY", "body"),
        ("Gebärmutter", "uterus"),
        ("Vessie", "bladder"),
        ("Bladder wall", None),
        ("Blase PRV", None),
        ("bladder+rectum", None),
        ("record", None),
        ("Ms Bladderstone", None),
        ("", None),
        ("Ω" * 5000, None),
    ],
)
def test_words_of_labels(label: str, word: str | None) -> None:
    assert vocabulary_word(label) == word
    assert word is None or word in VOCABULARY


@given(st.text(max_size=60))
def test_no_label_brings_a_word_that_is_not_ours(label: str) -> None:
    word = vocabulary_word(label)
    assert word is None or word in VOCABULARY


def test_the_vocabulary_fits_a_file_name() -> None:
    assert all(re.fullmatch(r"[a-z]+(_[a-z]+)*", word) for word in VOCABULARY)
    assert len(set(VOCABULARY)) == len(VOCABULARY)


def test_points_and_open_lines_make_no_mask(tmp_path: Path) -> None:
    grid = straight_grid()
    outlines = outlines_of(grid)
    kinds = ["CLOSED_PLANAR", "OPEN_PLANAR", "POINT", "OPEN_NONPLANAR", "CLOSEDPLANAR_XOR"]
    mask = masks(structure_set(tmp_path / "f", [("GTV", outlines)], kinds=kinds), grid)["gtv"]
    assert np.asarray(mask).any(axis=(0, 1)).nonzero()[0].tolist() == [3, 7]
    lines = structure_set(tmp_path / "g", [("GTV", outlines)], kinds=["OPEN_PLANAR"] * 5)
    assert masks(lines, grid) == {"gtv": Reason.EMPTY_STRUCTURE}


def broken(text: str) -> Callable[[Dataset], None]:
    """Puts another text into one contour's data, which pydicom would not write on its own."""

    def change(dataset: Dataset) -> None:
        contour = dataset.ROIContourSequence[0].ContourSequence[2]
        del contour.ContourData
        contour.add_new(0x30060050, "LO", text.split("\\"))
        contour[0x30060050].VR = "LO"

    return change


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("1\\2\\nan\\4\\5\\6\\7\\8\\9", Reason.NOT_FINITE),
        ("1\\2\\1e999\\4\\5\\6\\7\\8\\9", Reason.NOT_FINITE),
        ("1\\2\\3\\4\\5\\6\\7\\8", Reason.UNREADABLE),
        ("1\\2\\x\\4\\5\\6\\7\\8\\9", Reason.UNREADABLE),
        ("1\\2\\\\4\\5\\6\\7\\8\\9", Reason.UNREADABLE),
        ("1\\2\\3\\4\\5\\6\\7\\8\\900000", Reason.IMPLAUSIBLE_GEOMETRY),
    ],
)
def test_a_broken_contour_refuses_its_structure_and_no_other(tmp_path: Path, text: str, reason: Reason) -> None:
    grid = straight_grid()
    both = [("GTV", outlines_of(grid)), ("CTV", outlines_of(grid))]
    found = masks(structure_set(tmp_path / "f", both, change=broken(text)), grid)
    assert found["gtv"] is reason
    assert np.asarray(found["ctv"]).any()


def test_an_empty_structure_and_one_of_another_image_are_told(tmp_path: Path) -> None:
    grid = straight_grid()

    def change(dataset: Dataset) -> None:
        dataset.StructureSetROISequence[1].ReferencedFrameOfReferenceUID = "9.9"

    three = [("GTV", outlines_of(grid)), ("CTV", outlines_of(grid)), ("PTV", []), ("Rectum", outlines_of(grid))]
    found = masks(structure_set(tmp_path / "f", three, change=change), grid)
    assert found["ctv"] is Reason.STRUCTURES_WITHOUT_IMAGE
    assert found["ptv"] is Reason.EMPTY_STRUCTURE


def without_image(dataset: Dataset) -> None:
    del dataset.ReferencedFrameOfReferenceSequence
    del dataset.StructureSetROISequence[0].ReferencedFrameOfReferenceUID


def without_structures(dataset: Dataset) -> None:
    dataset.StructureSetROISequence = Items()


def of_another_class(dataset: Dataset) -> None:
    dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.2"


def with_too_many(dataset: Dataset) -> None:
    dataset.StructureSetROISequence = Items([dataset.StructureSetROISequence[0]] * 2001)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (without_image, Reason.STRUCTURES_WITHOUT_IMAGE),
        (without_structures, Reason.EMPTY_STRUCTURE),
        (of_another_class, Reason.NOT_AN_IMAGE),
        (with_too_many, Reason.TOO_LARGE),
    ],
)
def test_a_file_of_no_use_is_left_out(
    tmp_path: Path, change: Callable[[Dataset], None], reason: Reason, capfd: pytest.CaptureFixture[str]
) -> None:
    found = read_structures(structure_set(tmp_path / "f", [("GTV", outlines_of(straight_grid()))], change=change))
    assert isinstance(found, LeftOut)
    assert found.reason is reason
    assert capfd.readouterr() == ("", "")


def test_what_is_no_dicom_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"no DICOM at all" * 40)
    assert isinstance(read_structures(tmp_path / "f"), LeftOut)
    assert isinstance(read_structures(tmp_path / "absent"), LeftOut)
    assert isinstance(read_structures(tmp_path), LeftOut)


@pytest.mark.parametrize("undefined", [False, True])
def test_a_file_cut_anywhere_never_gives_a_part_of_a_structure(tmp_path: Path, undefined: bool) -> None:
    def change(dataset: Dataset) -> None:
        dataset["ROIContourSequence"].is_undefined_length = undefined
        dataset.ROIContourSequence[0]["ContourSequence"].is_undefined_length = undefined

    content = structure_set(tmp_path / "f", [("GTV", outlines_of(straight_grid()))], change=change).read_bytes()
    drawn = set()
    for end in range(0, len(content), 131):
        (tmp_path / "cut").write_bytes(content[:end])
        found = read_structures(tmp_path / "cut")
        if isinstance(found, StructureSet):
            drawn |= {len(structure.contours) for structure in found.structures}
    assert drawn <= {0, 5}


@settings(max_examples=60)
@given(damage=st.data())
def test_damaged_files_are_read_or_refused(damage: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    grid = straight_grid()
    path = structure_set(tmp_path_factory.mktemp("rt") / "f", [("GTV", outlines_of(grid, 3, 5))])
    content = bytearray(path.read_bytes())
    for place in damage.draw(st.lists(st.integers(0, len(content) - 1), max_size=6)):
        content[place] ^= 1 << damage.draw(st.integers(0, 7))
    path.write_bytes(bytes(content[: damage.draw(st.integers(0, len(content)))]))
    found = read_structures(path)
    if isinstance(found, StructureSet):
        for name, mask in rasterise(found, grid):
            assert re.fullmatch(r"structure\d\d|gtv", name)
            assert isinstance(mask, Reason) or mask.shape == grid.shape


def test_sequences_without_end_and_contours_without_number_take_bounded_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(elements, "_MAXIMUM_READS", 20_000)
    path = structure_set(tmp_path / "f", [("GTV", [])])
    content = path.read_bytes()
    # Sequences of undefined length (PS3.5 7.5), each in the other; and empty contours.
    nested = b"\x06\x30\x39\x00SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff" * 10_000
    place = content.index(b"\x06\x30\x39\x00SQ")
    (tmp_path / "deep").write_bytes(content[:place] + nested)
    empty = b"\xfe\xff\x00\xe0\0\0\0\0" * 30_000
    number = b"\x06\x30\x84\x00IS\x02\x001 "
    contours = b"\x06\x30\x40\x00SQ\0\0" + len(empty).to_bytes(4, "little") + empty + number
    item = b"\xfe\xff\x00\xe0" + len(contours).to_bytes(4, "little") + contours
    wide = b"\x06\x30\x39\x00SQ\0\0" + len(item).to_bytes(4, "little") + item
    (tmp_path / "wide").write_bytes(content[:place] + wide)
    assert isinstance(read_structures(tmp_path / "deep"), LeftOut)
    found = read_structures(tmp_path / "wide")
    assert isinstance(found, LeftOut)
    assert found.reason is Reason.TOO_LARGE


@pytest.mark.parametrize("undefined", [False, True])
def test_the_work_allowed_grows_with_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undefined: bool) -> None:
    """Twenty times what an image's header may take."""
    grid = straight_grid()
    outlines = [to_patient(grid, ellipse((9, 9), (7, 6), float(k), corners=90)) for k in range(12)]
    path = many_contours(tmp_path / "f", outlines, 20, undefined=undefined)
    monkeypatch.setattr(elements, "_MAXIMUM_READS", 500)
    monkeypatch.setattr(elements, "_MAXIMUM_BYTES", path.stat().st_size // 20)
    found = read(path)
    assert [len(structure.contours) for structure in found.structures] == [12] * 20
    np.testing.assert_allclose(found.structures[19].contours[3], outlines[3], atol=1e-3)
    monkeypatch.setattr(elements, "_MOST_READS_OF_CONTENT", 500)
    refused = read_structures(path)
    assert isinstance(refused, LeftOut)
    assert refused.reason is Reason.TOO_LARGE


def test_the_work_allowed_is_bounded() -> None:
    budgets = [elements.Budget(size) for size in (0, 10**6, 10**8, 10**12)]
    assert [budget.reads for budget in budgets] == [1_000_000, 1_000_000, 3_000_000, 3_000_000]
    assert [budget.bytes for budget in budgets] == [2**27, 2**27, 5 * 10**8, 2**31]


@pytest.mark.parametrize("undefined", [False, True])
@pytest.mark.parametrize("limit", [0, 1, 2, 3])
def test_a_spent_budget_has_one_reason_wherever_it_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undefined: bool, limit: int
) -> None:
    """pydicom makes other errors of what its stream raises while it reads a tag."""
    outlines = [np.array([[0.0, 0, 0], [1, 0, 0], [0, 1, 0]])] * 40
    path = many_contours(tmp_path / "f", outlines, 4, undefined=undefined)
    for reads in range(400 + limit, 800, 4):
        monkeypatch.setattr(elements, "_MAXIMUM_READS", reads)
        monkeypatch.setattr(elements, "_MOST_READS_OF_CONTENT", reads)
        refused = read_structures(path)
        assert isinstance(refused, LeftOut)
        assert refused.reason is Reason.TOO_LARGE


def test_a_structure_drawn_on_an_oblique_image_lies_where_its_slices_lie(tmp_path: Path) -> None:
    grid = oblique_grid(11)
    slices = image_series(grid)
    corners = [np.add(slices[5].ImagePositionPatient, offset) for offset in ((0, 0, 0),)]
    i, j = (np.asarray(slices[0].ImageOrientationPatient[part], float) for part in (slice(0, 3), slice(3, 6)))
    step_i, step_j = i * slices[0].PixelSpacing[1], j * slices[0].PixelSpacing[0]
    square = [corners[0] + a * step_i + b * step_j for a, b in ((3.5, 4.5), (9.5, 4.5), (9.5, 6.5), (3.5, 6.5))]
    mask = masks(structure_set(tmp_path / "f", [("Rectum", [np.array(square)])]), grid)["rectum"]
    expected = np.zeros(grid.shape, dtype=np.uint8)
    expected[4:10, 5:7, 5] = 1
    np.testing.assert_array_equal(mask, expected)


@pytest.mark.realdata
@pytest.mark.parametrize("subject", ["STS_001", "STS_009", "STS_019"])
@pytest.mark.parametrize("modality", ["CT", "PET", "MR_T1"])
def test_the_published_masks_come_out_of_the_published_contours(real_data: Path, subject: str, modality: str) -> None:
    reference = nibabel.load(real_data / "dicom" / "sarcoma_reference" / subject / f"{modality}_gtv.nii.gz")
    [path] = (real_data / "dicom" / "sarcoma" / subject / modality / "mask").iterdir()
    found = masks(path, Grid(reference.shape, reference.affine))
    np.testing.assert_array_equal(found["gtv"], np.asarray(reference.dataobj) > 0)
    images = (real_data / "dicom" / "sarcoma" / subject / modality / "image").iterdir()
    header = dcmread(next(images), specific_tags=["SeriesInstanceUID", "FrameOfReferenceUID"])
    references = read(path).references
    assert references.series == {header.SeriesInstanceUID}
    assert references.frame_of_reference == header.FrameOfReferenceUID
