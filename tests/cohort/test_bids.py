"""Importing a BIDS data set."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings

from cohort_files import ct, grid_affine, save
from hostile_names import NAMES, can_be_file, nothing_told
from parametrium.cohort.importers.bids import import_bids
from parametrium.cohort.importers.folders import ImportReport
from parametrium.cohort.manifest import Reason, read_cohort
from parametrium.config import VOCABULARY
from parametrium.errors import CohortError

SHIFTED = grid_affine(origin=(7.0, 0.0, 0.0))


def _put(source: Path, name: str, affine: np.ndarray | None = None, folder: str = "anat") -> Path:
    """A volume where BIDS wants it, from its name; under derivatives where ``folder`` says so."""
    words = name.split("_")
    place = source.joinpath(*[word for word in words if word.startswith(("sub-", "ses-"))], folder.rpartition("/")[2])
    if "/" in folder:
        place = source / folder.rpartition("/")[0] / place.relative_to(source)
    return save(place / f"{name}.nii.gz", ct(), affine)


def _import(source: Path, cohort: Path, **options: Any) -> ImportReport:
    return import_bids(source, cohort, secret=cohort.parent / "secret", vocabulary=VOCABULARY, **options)


def _volumes(cohort: Path) -> list[list[tuple[str, int, str, str]]]:
    return [
        [(volume.study, volume.day, volume.modality, volume.frame) for volume in patient.volumes]
        for patient in read_cohort(cohort, VOCABULARY).patients
    ]


def _reasons(report: ImportReport) -> dict[str, int]:
    return {key.removeprefix("left out: "): n for key, n in report.summary().items() if key.startswith("left out")}


def test_a_data_set_is_a_readable_cohort(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for name, folder in [("T1w", "anat"), ("T2w", "anat"), ("FLAIR", "anat"), ("pet", "pet"), ("ct", "ct")]:
        _put(source, f"sub-01_{name}", folder=folder)
    _put(source, "sub-01_ce-gad_T1w", SHIFTED)
    (source / "sub-01" / "anat" / "sub-01_T1w.json").write_text("{}")
    (source / "dataset_description.json").write_text("{}")
    report = _import(source, tmp_path / "cohort")
    assert report.summary() == {"patients": 1, "T1c": 1, "FLAIR": 1, "T1": 1, "T2": 1, "CT": 1, "PET": 1, "masks": 0}
    assert _volumes(tmp_path / "cohort") == [
        [
            ("s1", 0, "FLAIR", "grid1"),
            ("s1", 0, "T1", "grid1"),
            ("s1", 0, "T2", "grid1"),
            ("s1", 0, "T1c", "grid2"),
            ("s1", 0, "CT", "grid1"),
            ("s1", 0, "PET", "grid1"),
        ]
    ]
    assert "different grids" in report.warnings[0]


def test_all_runs_are_taken_and_parts_of_a_complex_image_are_not(tmp_path: Path) -> None:
    for entity in ("run-1", "run-2", "acq-fast", "part-phase", "part-mag"):
        _put(tmp_path / "source", f"sub-01_{entity}_T2w")
    report = _import(tmp_path / "source", tmp_path / "cohort", copy=True)
    assert (report.volumes, _reasons(report)) == ({"T2": 4}, {"derived": 1})
    names = sorted(path.name for path in (tmp_path / "cohort" / "images").rglob("*.nii.gz"))
    assert names == ["T2.nii.gz", "T2_2.nii.gz", "T2_3.nii.gz", "T2_4.nii.gz"]


def test_sessions_with_dates_become_days_and_never_frames_of_one_another(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for session in ("a", "b", "c"):
        _put(source, f"sub-01_ses-{session}_T1w")
    (source / "sub-01" / "sub-01_sessions.tsv").write_text(
        "session_id\tacq_time\nses-a\t1961-03-09T10:00:00\nb\t1961-02-27\nc\tn/a\n"
    )
    scans = source / "sub-01" / "ses-c" / "sub-01_ses-c_scans.tsv"
    scans.write_text("filename\tacq_time\nanat/sub-01_ses-c_T1w.nii.gz\t1961-03-01T08:00:00\n")
    report = _import(source, tmp_path / "cohort")
    assert report.warnings == ()
    assert _volumes(tmp_path / "cohort") == [
        [("s1", 0, "T1", "grid1"), ("s2", 2, "T1", "grid2"), ("s3", 10, "T1", "grid3")]
    ]
    paths = [volume.path.parent.parent.name for volume in read_cohort(tmp_path / "cohort", VOCABULARY).volumes]
    assert paths == ["ses-b", "ses-c", "ses-a"]
    text = "".join(path.read_text() for path in (tmp_path / "cohort").iterdir())
    assert "1961" not in text


def test_sessions_without_dates_are_numbered_and_that_is_told(tmp_path: Path) -> None:
    for session in ("2", "10", "1"):
        _put(tmp_path / "source", f"sub-01_ses-{session}_T1w")
    _put(tmp_path / "source", "sub-02_ses-x_T1w")
    (tmp_path / "source" / "sub-01" / "sub-01_sessions.tsv").write_text("session_id\tacq_time\n1\t1961-03-09\n")
    (tmp_path / "source" / "sub-02" / "sub-02_sessions.tsv").write_text('damaged "\n"')
    report = _import(tmp_path / "source", tmp_path / "cohort")
    paths = [volume.path.parent.parent.name for volume in read_cohort(tmp_path / "cohort", VOCABULARY).volumes]
    assert paths == ["ses-1", "ses-2", "ses-10", "ses-x"]
    assert [row[:2] for row in _volumes(tmp_path / "cohort")[0]] == [("s1", 0), ("s2", 1), ("s3", 2)]
    assert report.warnings[0].startswith("1 patients have several sessions without dates")
    assert _reasons(report) == {"bad_row": 1}


def test_of_the_participants_only_age_sex_and_named_columns_are_taken(tmp_path: Path) -> None:
    source = tmp_path / "source"
    ages = {"01": "34.5", "02": "89", "03": "89.5", "04": "n/a", "05": "SENTINEL", "06": "90+"}
    lines = ["participant_id\tAge\tsex\tname\tstage\tbirth_date"]
    for subject, age in ages.items():
        _put(source, f"sub-{subject}_T1w")
        lines.append(f"sub-{subject}\t{age}\tF\tSENTINEL\tIIB\t1956-02-01")
    lines += ["sub-09\t3\tM\tx\tI\t", "sub-01\t99\tM\tx\tI\t", "ragged"]
    (source / "participants.tsv").write_text("\n".join(lines) + "\n")
    report = _import(source, tmp_path / "cohort", clinical=["Stage"])
    clinical = [dict(patient.clinical) for patient in read_cohort(tmp_path / "cohort", VOCABULARY).patients]
    told = [{"age": age} if age else {} for age in ("34.5", "89", "90+", "", "", "90+")]
    assert clinical == [age | {"sex": "F", "stage": "IIB"} for age in told]
    assert "SENTINEL" not in (tmp_path / "cohort" / "clinical.csv").read_text()
    assert _reasons(report) == {"bad_row": 1, "clinical_row_without_patient": 1, "duplicate": 1}
    assert report.warnings[0].startswith("1 cells of participants.tsv")
    report = _import(source, tmp_path / "cohort", clinical=["birth_date"])
    assert "1956" not in (tmp_path / "cohort" / "clinical.csv").read_text()
    for column in ("grade", "participant_id"):
        with pytest.raises(CohortError, match=f"--clinical {column}") as caught:
            _import(source, tmp_path / "cohort", clinical=[column])
        assert "birth" not in str(caught.value)


def test_masks_are_taken_where_they_lie_on_a_volume(tmp_path: Path) -> None:
    source = tmp_path / "source"
    _put(source, "sub-01_ses-1_T1w")
    _put(source, "sub-01_ses-2_T1w", SHIFTED)
    _put(source, "sub-01_ses-1_label-GTV_mask", folder="derivatives/segment/anat")
    _put(source, "sub-01_ses-2_desc-organs_dseg", SHIFTED, folder="derivatives/segment/anat")
    _put(source, "sub-01_ses-2_desc-organs_mask", folder="derivatives/anat")  # on the other session's grid
    _put(source, "sub-01_ses-9_mask", folder="derivatives/segment/anat")
    _put(source, "sub-01_ses-1_desc-preproc_T1w", folder="derivatives/segment/anat")
    _put(source, "sub-01_ses-1_ADC", folder="derivatives/maps/dwi")
    report = _import(source, tmp_path / "cohort")
    masks = read_cohort(tmp_path / "cohort", VOCABULARY).patients[0].masks
    assert [(mask.study, mask.structure, mask.frame) for mask in masks] == [
        ("s1", "GTV", "grid1"),
        ("s2", "organs", "grid2"),
    ]
    assert _reasons(report) == {"derived": 2, "structures_without_image": 2}


def test_an_unknown_suffix_is_refused_by_name(tmp_path: Path) -> None:
    for name in ("sub-01_T2starw", "sub-01_ce-gad_T2w", "sub-01_T1w"):
        _put(tmp_path / "source", name)
    with pytest.raises(CohortError, match=r"not a modality: T2starw, T2wce; .*--drop T2starw"):
        _import(tmp_path / "source", tmp_path / "cohort")
    report = _import(
        tmp_path / "source", tmp_path / "cohort", drop=["T2starw"], rename={"T2wce": "T2", "T1w": "MPRAGE"}
    )
    assert report.volumes == {"MPRAGE": 1, "T2": 1}


def test_what_is_no_single_volume_is_left_out_with_its_reason(tmp_path: Path) -> None:
    source = tmp_path / "source"
    _put(source, "sub-01_T1w")
    save(source / "sub-01" / "dwi" / "sub-01_dwi.nii.gz", np.ones((4, 4, 4, 6), np.float32))
    save(source / "sub-01" / "dwi" / "sub-01_sbref.nii.gz", ct())
    save(source / "sub-01" / "func" / "sub-01_task-rest_bold.nii.gz", np.ones((4, 4, 4, 6), np.float32))
    save(source / "sub-01" / "anat" / "sub-02_T2w.nii.gz", ct())
    (source / "sub-01" / "anat" / "sub-01_T2w.nii.gz").symlink_to(tmp_path / "not fetched")
    (source / "sub-01" / "anat" / "sub-01_FLAIR.nii.gz").write_bytes(b"x")
    (source / "sub-bad label").mkdir()
    report = _import(source, tmp_path / "cohort")
    assert report.volumes == {"T1": 1}
    assert _reasons(report) == {
        "bad_row": 2,
        "missing_file": 1,
        "modality_not_wanted": 2,
        "not_3d": 1,
        "unreadable": 1,
    }
    assert {problem.modality for problem in report.problems if problem.reason is Reason.NOT_3D} == {"DWI"}


@pytest.mark.parametrize("copy", [False, True])
def test_a_second_import_writes_the_same_bytes_without_a_name(tmp_path: Path, copy: bool) -> None:
    source = tmp_path / "source"
    _put(source, "sub-SENTINEL_ses-19560201_T1w")
    (source / "participants.tsv").write_text("participant_id\tage\nsub-SENTINEL\t95\n")
    contents = []
    for _ in range(2):
        _import(source, tmp_path / "cohort", copy=copy)
        files = sorted(path for path in tmp_path.rglob("*") if path.is_file() and source not in path.parents)
        contents.append({path: path.read_bytes() for path in files})
    assert contents[0] == contents[1]
    if copy:
        cohort = [(path, content) for path, content in contents[0].items() if tmp_path / "cohort" in path.parents]
        assert len(cohort) == 3
        assert not any(b"SENTINEL" in content or "1956" in str(path) for path, content in cohort)


@settings(max_examples=40)
@given(name=NAMES, cell=NAMES)
def test_hostile_names_leave_nothing_behind(tmp_path_factory: pytest.TempPathFactory, name: str, cell: str) -> None:
    folder = tmp_path_factory.mktemp("b")
    source = folder / "source"
    _put(source, "sub-01_T1w")
    if can_be_file(name):
        for path in (f"sub-{name}/anat", f"sub-01/ses-{name}/anat", f"sub-01/{name}", "sub-01/anat", "derivatives"):
            save(source / path / f"{name}.nii.gz", ct((8, 8, 8)))
            save(source / path / f"sub-01_desc-{name}_mask.nii.gz", ct())
            save(source / path / f"sub-01_{name}.nii.gz", ct((8, 8, 8)))
    table = f"participant_id\tage\tsex\tnote\nsub-01\t{cell}\t{cell}\t{cell}\n{cell}\t1\tF\tx\n"
    (source / "participants.tsv").write_text(table, encoding="utf-8", errors="surrogatepass")
    suffix = name.rpartition("_")[2]
    with nothing_told(folder, folder / "cohort", folder / "secret") as note:
        note(_import(source, folder / "cohort", drop=[suffix, f"{suffix}ce"], copy=True, clinical=["note"]))
    with nothing_told(folder, folder / "other", folder / "secret") as note:
        note(_import(source, folder / "other"))
