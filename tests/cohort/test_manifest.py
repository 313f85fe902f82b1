"""Reading a cohort: everything reported, nothing fatal but an unreadable or empty table."""

import gzip
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cohort_files import COLUMNS, ct, grid_affine, row, save, small_cohort, write_rows
from parametrium.cohort.header import geometry_problem, header_problem
from parametrium.cohort.manifest import Cohort, Problem, Reason, read_cohort
from parametrium.cohort.rigid import IDENTITY
from parametrium.errors import CohortError


def _read_with(folder: Path, *rows: dict[str, str]) -> Cohort:
    """A cohort of one good patient and the given rows."""
    good = row("good", save(folder / "good.nii.gz", ct()))
    columns = list(dict.fromkeys([*COLUMNS, *[name for extra in rows for name in extra]]))
    write_rows(folder / "cohort.csv", [good, *rows], columns)
    return read_cohort(folder, ["CT", "T1"])


def test_a_good_cohort_in_table_order(tmp_path: Path) -> None:
    cohort = read_cohort(small_cohort(tmp_path), ["CT"])
    assert [patient.name for patient in cohort.patients] == ["p0", "p1", "p2"]
    assert cohort.problems == ()
    assert all(volume.path.is_absolute() for volume in cohort.volumes)
    assert cohort.patients[0].clinical == {}


def test_all_columns_reach_the_volume(tmp_path: Path) -> None:
    path = save(tmp_path / "x.nii", ct())
    cells = {"split": "test", "slope": "2.5", "intercept": "-1000", "day": "-3", "modality": "T1"}
    patient = _read_with(tmp_path, row("p", f"../{tmp_path.name}/x.nii", **cells)).patients[1]
    volume = patient.volumes[0]
    assert (patient.split, volume.slope, volume.intercept, volume.day) == ("test", 2.5, -1000.0, -3)
    assert (volume.modality, volume.path, volume.study, volume.frame) == ("T1", path, "s1", "f1")


@pytest.mark.parametrize(
    ("reason", "changes"),
    [
        (Reason.MISSING_FILE, {"path": "absent.nii.gz"}),
        (Reason.MISSING_FILE, {"path": "."}),
        (Reason.UNKNOWN_MODALITY, {"modality": "DOSE"}),
        (Reason.UNKNOWN_MODALITY, {"modality": "PET"}),
        (Reason.BAD_ROW, {"day": "monday"}),
        (Reason.BAD_ROW, {"frame": ""}),
        (Reason.BAD_ROW, {"slope": "0"}),
        (Reason.BAD_ROW, {"slope": "nan"}),
        (Reason.BAD_ROW, {"intercept": "x"}),
        (Reason.BAD_ROW, {"split": "validation"}),
        (Reason.BAD_ROW, {"moved": "1 0 0 5"}),
        (Reason.BAD_ROW, {"moved": "-1 0 0 0 0 1 0 0 0 0 1 0"}),
        (Reason.BAD_ROW, {"moved": "1 0 0 nan 0 1 0 0 0 0 1 0"}),
        (Reason.DUPLICATE, {"path": "good.nii.gz"}),
        (Reason.DUPLICATE, {"path": "sub/../good.nii.gz", "modality": "T1"}),
    ],
)
def test_a_bad_row_is_left_out_and_reported(tmp_path: Path, reason: Reason, changes: dict[str, str]) -> None:
    path = save(tmp_path / "other.nii.gz", ct())
    bad = row("bad", path) | changes
    cohort = _read_with(tmp_path, bad)
    assert cohort.problems == (Problem("bad", bad["modality"], reason),)
    assert [patient.name for patient in cohort.patients] == ["good"]


@pytest.mark.parametrize(
    ("reason", "shape", "affine"),
    [
        (Reason.NOT_3D, (8, 8, 8, 2), grid_affine()),
        (Reason.NOT_3D, (8, 8), grid_affine()),
        (Reason.ONE_SLICE, (8, 8, 1), grid_affine()),
        (Reason.AFFINE_SINGULAR, (8, 8, 8), np.diag([1.0, 0.0, 1.0, 1.0])),
        (Reason.AFFINE_SINGULAR, (8, 8, 8), np.diag([1.0, np.nan, 1.0, 1.0])),
        (Reason.IMPLAUSIBLE_GEOMETRY, (8, 8, 8), grid_affine((1000.0, 1.0, 1.0))),
        (Reason.TOO_LARGE, (2**11, 2**11, 2**11), grid_affine()),
        (None, (8, 8, 8, 1), grid_affine()),
        (None, (8, 8, 8), grid_affine((0.5, 3.0, 9.0), (-900.0, 10.0, 2000.0))),
    ],
)
def test_geometry(reason: Reason | None, shape: tuple[int, ...], affine: np.ndarray) -> None:
    assert geometry_problem(shape, affine) is reason


def test_headers_are_checked(tmp_path: Path) -> None:
    assert header_problem(save(tmp_path / "4d.nii.gz", np.ones((4, 4, 4, 2), np.float32))) is Reason.NOT_3D
    assert header_problem(save(tmp_path / "slice.nii.gz", np.ones((4, 4, 1), np.float32))) is Reason.ONE_SLICE
    assert header_problem(save(tmp_path / "complex.nii.gz", np.ones((4, 4, 4), np.complex64))) is Reason.UNREADABLE
    (tmp_path / "text.nii.gz").write_text("not a scan")
    assert header_problem(tmp_path / "text.nii.gz") is Reason.UNREADABLE
    (tmp_path / "empty.nii").touch()
    assert header_problem(tmp_path / "empty.nii") is Reason.UNREADABLE


@settings(max_examples=60)
@given(position=st.integers(0, 351), value=st.integers(0, 255))
def test_no_damaged_header_raises(tmp_path_factory: pytest.TempPathFactory, position: int, value: int) -> None:
    folder = tmp_path_factory.mktemp("h")
    content = bytearray(save(folder / "x.nii", np.ones((4, 4, 4), np.float32)).read_bytes())
    content[position] = value
    with gzip.open(folder / "y.nii.gz", "wb", compresslevel=1) as stream:
        stream.write(content)
    assert header_problem(folder / "y.nii.gz") in {None, *Reason}


def test_everything_is_reported_at_once(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii.gz", np.ones((4, 4, 4, 2), np.float32))
    rows = [row("a", path), row("b", "absent"), row("c", "x", day=""), row("d", "x", modality="DOSE")]
    cohort = _read_with(tmp_path, *rows)
    assert {problem.patient: problem.reason for problem in cohort.problems} == {
        "a": Reason.NOT_3D,
        "b": Reason.MISSING_FILE,
        "c": Reason.BAD_ROW,
        "d": Reason.UNKNOWN_MODALITY,
    }


def test_a_ragged_line_is_reported(tmp_path: Path) -> None:
    small_cohort(tmp_path)
    with (tmp_path / "cohort.csv").open("a") as stream:
        stream.write("p9,s1\n")
    cohort = read_cohort(tmp_path, ["CT"])
    assert cohort.problems == (Problem("p9", "", Reason.BAD_ROW),)


def test_a_patient_in_two_splits_is_held_out(tmp_path: Path) -> None:
    rows = [row("p", save(tmp_path / f"{split}.nii.gz", ct()), split=split, study=split) for split in ("test", "train")]
    cohort = _read_with(tmp_path, *rows, row("q", save(tmp_path / "q.nii.gz", ct()), split="train"))
    assert cohort.problems == (Problem("p", "", Reason.CONFLICTING_SPLIT),)
    assert {patient.name: patient.split for patient in cohort.patients} == {"good": None, "p": "test", "q": "train"}


def test_clinical_rows(tmp_path: Path) -> None:
    small_cohort(tmp_path)
    text = "\ufeffPatient;Age;Stage\np0;51 ;\np1;60;IIB\np1;61;IIB\np7;70;IA\n"
    (tmp_path / "clinical.csv").write_text(text, encoding="utf-8")
    cohort = read_cohort(tmp_path, ["CT"])
    clinical = {patient.name: patient.clinical for patient in cohort.patients}
    assert clinical == {"p0": {"age": "51"}, "p1": {"age": "60", "stage": "IIB"}, "p2": {}}
    assert set(cohort.problems) == {
        Problem("p1", "", Reason.DUPLICATE),
        Problem("p7", "", Reason.CLINICAL_ROW_WITHOUT_PATIENT),
        Problem("p2", "", Reason.NO_CLINICAL_ROW),
    }


def test_masks(tmp_path: Path) -> None:
    small_cohort(tmp_path)
    good = save(tmp_path / "seg.nii.gz", np.ones((4, 4, 4), np.uint8))
    cells = {"patient": "p1", "study": "s1", "structure": "tumour", "path": good.name, "frame": "f1"}
    write_rows(tmp_path / "masks.csv", [cells, cells | {"path": "absent"}, cells | {"frame": ""}])
    cohort = read_cohort(tmp_path, ["CT"])
    assert [(mask.patient, mask.structure, mask.path) for mask in cohort.patients[1].masks] == [("p1", "tumour", good)]
    reasons = [problem.reason for problem in cohort.problems]
    assert sorted(reason.value for reason in reasons) == ["bad_row", "missing_file"]


def test_a_volume_knows_what_defacing_took_from_it(tmp_path: Path) -> None:
    small_cohort(tmp_path)
    for name in ("a", "b"):
        save(tmp_path / f"{name}.nii.gz", np.ones((24, 22, 20), np.uint8))
    cells = {"patient": "p1", "study": "s1", "structure": "defaced", "path": "a.nii.gz", "frame": "f1"}
    other = cells | {"structure": "brain", "path": "b.nii.gz", "volume": "v0.nii.gz"}
    write_rows(tmp_path / "masks.csv", [cells | {"volume": "x/../v1.nii.gz"}, other, cells | {"path": "absent"}])
    cohort = read_cohort(tmp_path, ["CT"])
    assert [volume.defaced for volume in cohort.volumes] == [None, tmp_path / "a.nii.gz", None]
    assert [mask.volume for mask in cohort.patients[1].masks] == [tmp_path / "v1.nii.gz", tmp_path / "v0.nii.gz"]
    write_rows(tmp_path / "masks.csv", [cells | {"volume": "v1.nii.gz", "path": "absent"}])
    assert read_cohort(tmp_path, ["CT"]).volumes[1].defaced == tmp_path / "absent"  # and is left out when prepared


def test_a_volume_and_a_mask_may_be_moved(tmp_path: Path) -> None:
    save(tmp_path / "seg.nii.gz", np.ones((4, 4, 4), np.uint8))
    cell = "0 -1 0 5 1 0 0 -2.5 0 0 1 0"
    cells = {"patient": "p", "study": "s1", "structure": "tumour", "path": "seg.nii.gz", "frame": "f1"}
    write_rows(tmp_path / "masks.csv", [cells | {"moved": cell}, cells | {"moved": "1 2 3"}])
    cohort = _read_with(tmp_path, row("p", save(tmp_path / "x.nii.gz", ct())) | {"moved": cell})
    good, moved = cohort.patients
    assert good.volumes[0].moved == IDENTITY
    assert moved.volumes[0].moved == moved.masks[0].moved == (0, -1, 0, 5, 1, 0, 0, -2.5, 0, 0, 1, 0)
    assert [(problem.patient, problem.reason) for problem in cohort.problems] == [("p", Reason.BAD_ROW)]


def test_no_usable_volume_is_an_error_of_counts(tmp_path: Path) -> None:
    write_rows(tmp_path / "cohort.csv", [row("SENTINEL", "SENTINEL.nii.gz"), row("SENTINEL2", "x.nii.gz")])
    with pytest.raises(CohortError, match=r"PM202 .*2 missing_file") as caught:
        read_cohort(tmp_path, ["CT"])
    assert "SENTINEL" not in str(caught.value)


def test_an_empty_table_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "cohort.csv").write_text(",".join(COLUMNS) + "\n")
    with pytest.raises(CohortError, match="PM202"):
        read_cohort(tmp_path, ["CT"])
