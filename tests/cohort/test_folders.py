"""Importing a folder per patient."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings

from cohort_files import ct, grid_affine, save, write_rows
from hostile_names import NAMES, nothing_told
from parametrium.cohort.importers.folders import ImportReport, import_folders
from parametrium.cohort.manifest import Reason, read_cohort
from parametrium.config import VOCABULARY
from parametrium.errors import CohortError

SUBJECT = {"site": "a", "split": "train", "modalities": "CT;T1", "mask": "seg.nii.gz", "labels": "1=GTV"}


def _source(folder: Path, *changes: dict[str, str], name: str = "source") -> Path:
    """A source of one subject for each mapping of changed cells."""
    rows = []
    for index, change in enumerate(changes):
        cells = {"subject": f"SUBJ_{index}"} | SUBJECT | {"label_name": "grade(1=G2,2=G3)", "label": "2"} | change
        rows.append(cells)
        for modality in cells["modalities"].split(";"):
            save(folder / name / cells["subject"] / f"{modality}.nii.gz", ct(seed=index))
        save(folder / name / cells["subject"] / "seg.nii.gz", np.ones(ct().shape, np.uint8))
    write_rows(folder / name / "subjects.csv", rows)
    return folder / name


def _import(source: Path, cohort: Path, **options: Any) -> ImportReport:
    return import_folders(source, cohort, secret=cohort.parent / "secret", vocabulary=VOCABULARY, **options)


def test_an_import_is_a_readable_cohort_without_subject_names(tmp_path: Path) -> None:
    source = _source(tmp_path, {}, {"split": "test", "label": "1"})
    report = _import(source, tmp_path / "cohort")
    cohort = read_cohort(tmp_path / "cohort", VOCABULARY)
    assert report.summary() == {"patients": 2, "CT": 2, "T1": 2, "masks": 2}
    assert (cohort.problems, report.problems, report.warnings) == ((), (), ())
    assert [patient.split for patient in cohort.patients] == ["train", "test"]
    assert [dict(patient.clinical) for patient in cohort.patients] == [{"grade": "G3"}, {"grade": "G2"}]
    assert [mask.structure for patient in cohort.patients for mask in patient.masks] == ["1=GTV"] * 2
    assert {volume.frame for volume in cohort.volumes} == {"grid1"}
    assert not any("SUBJ" in patient.name for patient in cohort.patients)
    assert cohort.volumes[0].path == source / "SUBJ_0" / "CT.nii.gz"


def test_a_second_import_changes_nothing_and_another_secret_only_names(tmp_path: Path) -> None:
    source = _source(tmp_path, {}, {}, {})
    _import(source, tmp_path / "a" / "cohort")
    before = {path.name: path.read_bytes() for path in (tmp_path / "a" / "cohort").iterdir()}
    _import(source, tmp_path / "a" / "cohort")
    assert {path.name: path.read_bytes() for path in (tmp_path / "a" / "cohort").iterdir()} == before
    _import(source, tmp_path / "b" / "cohort")
    first, second = (read_cohort(tmp_path / x / "cohort", VOCABULARY) for x in "ab")
    assert [volume.path for volume in first.volumes] == [volume.path for volume in second.volumes]
    assert {p.name for p in first.patients}.isdisjoint(p.name for p in second.patients)


def test_only_the_wanted_site_is_taken(tmp_path: Path) -> None:
    source = _source(tmp_path, {}, {"site": "b"}, {"site": "b"})
    assert _import(source, tmp_path / "cohort", site="b").summary()["patients"] == 2
    with pytest.raises(CohortError, match="PM204"):
        _import(source, tmp_path / "cohort", site="c")


def test_a_modality_outside_the_vocabulary_is_refused_by_name(tmp_path: Path) -> None:
    source = _source(tmp_path, {"modalities": "CT;DOSE"})
    with pytest.raises(CohortError, match=r"DOSE.*--drop DOSE.*--rename DOSE=") as caught:
        _import(source, tmp_path / "cohort")
    assert "SUBJ" not in str(caught.value)
    assert not (tmp_path / "cohort").exists()
    assert _import(source, tmp_path / "cohort", drop=["DOSE"]).volumes == {"CT": 1}
    assert _import(source, tmp_path / "cohort", rename={"DOSE": "RTDOSE"}).volumes == {"CT": 1, "RTDOSE": 1}
    with pytest.raises(CohortError, match="renamed to a letter"):
        _import(source, tmp_path / "cohort", rename={"DOSE": "../x"})


def test_a_name_that_cannot_be_a_modality_is_not_repeated(tmp_path: Path) -> None:
    source = _source(tmp_path, {"modalities": "CT;SENTINEL_1956-02-01"})
    with pytest.raises(CohortError, match="PM204") as caught:
        _import(source, tmp_path / "cohort")
    assert "SENTINEL" not in str(caught.value)


def test_rescaling_reaches_the_table_and_a_shifted_ct_is_noticed(tmp_path: Path) -> None:
    source = _source(tmp_path, {"modalities": "CT"})
    save(source / "SUBJ_0" / "CT.nii.gz", np.where(ct() > -500, ct() + 1000, 0))
    report = _import(source, tmp_path / "cohort")
    assert any("--rescale CT=1,-1000" in warning for warning in report.warnings)
    report = _import(source, tmp_path / "cohort", rescale={"CT": (1.0, -1000.0)})
    assert report.warnings == ()
    volume = read_cohort(tmp_path / "cohort", ["CT"]).volumes[0]
    assert (volume.slope, volume.intercept) == (1.0, -1000.0)
    assert "no such modality" in _import(source, tmp_path / "cohort", rescale={"PET": (1.0, 0.0)}).warnings[0]


def test_volumes_on_different_grids_are_not_taken_as_registered(tmp_path: Path) -> None:
    source = _source(tmp_path, {})
    save(source / "SUBJ_0" / "T1.nii.gz", ct(), grid_affine(origin=(1.0, 0.0, 0.0)))
    report = _import(source, tmp_path / "cohort")
    cohort = read_cohort(tmp_path / "cohort", VOCABULARY)
    assert [volume.frame for volume in cohort.volumes] == ["grid1", "grid2"]
    assert cohort.patients[0].masks[0].frame == "grid1"
    assert "different grids" in report.warnings[0]


def test_what_does_not_fit_is_reported_by_pseudonym(tmp_path: Path) -> None:
    source = _source(tmp_path, {}, {"split": "validation"}, {"subject": "SUBJ_0"}, {"mask": "absent.nii.gz"})
    (source / "SUBJ_3" / "T1.nii.gz").unlink()
    (source / "SUBJ_9").mkdir()
    rows = (source / "subjects.csv").read_text().splitlines()
    (source / "subjects.csv").write_text("\n".join([*rows, rows[1].replace("SUBJ_0", "SUBJ_7"), "ragged"]) + "\n")
    report = _import(source, tmp_path / "cohort")
    counts = {key: value for key, value in report.summary().items() if key.startswith("left out")}
    assert counts == {
        f"left out: {reason.value}": number
        for reason, number in [
            (Reason.BAD_ROW, 2),
            (Reason.DUPLICATE, 1),
            (Reason.MISSING_FILE, 2),
            (Reason.MISSING_FOLDER, 1),
            (Reason.FOLDER_WITHOUT_ROW, 1),
        ]
    }
    assert not any("SUBJ" in problem.patient for problem in report.problems)
    assert report.patients == 2


def test_modalities_come_from_the_files_where_the_table_lists_none(tmp_path: Path) -> None:
    source = _source(tmp_path, {})
    write_rows(source / "subjects.csv", [{"subject": "SUBJ_0", "mask": "seg.nii.gz"}])
    report = _import(source, tmp_path / "cohort")
    assert report.summary() == {"patients": 1, "CT": 1, "T1": 1, "masks": 1}


def test_a_source_without_a_volume_is_refused(tmp_path: Path) -> None:
    source = _source(tmp_path, {"modalities": "CT"})
    with pytest.raises(CohortError, match="no volume to import"):
        _import(source, tmp_path / "cohort", drop=["CT"])


@pytest.mark.parametrize("suffix", [".mha", ".nrrd", ".nii"])
def test_other_volume_files_and_copies_are_taken(tmp_path: Path, suffix: str) -> None:
    source = _source(tmp_path, {})
    (source / "SUBJ_0" / "T1.nii.gz").unlink()
    sitk.WriteImage(sitk.GetImageFromArray(ct()), str(source / "SUBJ_0" / f"T1{suffix}"))
    report = _import(source, tmp_path / "cohort", copy=True)
    assert report.summary() == {"patients": 1, "CT": 1, "T1": 1, "masks": 1}
    cohort = read_cohort(tmp_path / "cohort", VOCABULARY)
    assert cohort.problems == ()
    assert all((tmp_path / "cohort") in volume.path.parents for volume in cohort.volumes)


@settings(max_examples=40)
@given(name=NAMES.filter(lambda name: "\udcff" not in name))  # a table is UTF-8
def test_hostile_names_leave_nothing_behind(tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    folder = tmp_path_factory.mktemp("f")
    source = _source(folder, {})
    good = {"subject": "SUBJ_0", "modalities": "CT"}
    rows = [good, {"subject": name}, good | {"modalities": name}, good | {"mask": name}, good | {"split": name}]
    for index, hostile in enumerate(rows[1:]):
        write_rows(source / "subjects.csv", [hostile, good], ["subject", "modalities", "mask", "split"])
        for options in ({"copy": True}, {"drop": [name.strip()]}):
            with nothing_told(folder, folder / f"cohort{index}", folder / "secret") as note:
                note(_import(source, folder / f"cohort{index}", **options))


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("name", "options", "patients"),
    [
        ("glioma", {"site": "ht"}, None),
        ("sarcoma", {"site": "mcgill"}, 45),
        ("headneck", {"drop": ["DOSE"], "rescale": {"CT": (1.0, -1000.0)}}, 35),
    ],
)
def test_real_cohorts(
    tmp_path: Path, real_data: Path, name: str, options: dict[str, Any], patients: int | None
) -> None:
    report = _import(real_data / "cohorts" / name, tmp_path / "cohort", **options)
    cohort = read_cohort(tmp_path / "cohort", VOCABULARY)
    assert (report.problems, report.warnings) == ((), ())
    assert report.patients == len(cohort.patients) == (patients or report.patients)
    assert {problem.reason for problem in cohort.problems} <= {Reason.NO_CLINICAL_ROW}
    assert {patient.split for patient in cohort.patients} == {"train", "test"}


@pytest.mark.realdata
def test_the_dose_of_the_head_and_neck_cohort_is_refused_by_name(tmp_path: Path, real_data: Path) -> None:
    with pytest.raises(CohortError, match="DOSE"):
        _import(real_data / "cohorts" / "headneck", tmp_path / "cohort")
    report = _import(real_data / "cohorts" / "headneck", tmp_path / "cohort", drop=["DOSE"])
    assert any("--rescale CT=1,-1000" in warning for warning in report.warnings)
