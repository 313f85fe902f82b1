"""Importing a MONAI datalist."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cohort_files import ct, save
from hostile_names import MARK, NAMES, nothing_told
from parametrium.cohort.importers.datalist import import_datalist
from parametrium.cohort.importers.folders import ImportReport
from parametrium.cohort.manifest import Reason, read_cohort
from parametrium.config import VOCABULARY
from parametrium.errors import CohortError


def _source(folder: Path, **lists: Any) -> Path:
    """A datalist, with a volume at every path that it names below the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "list.json").write_text(json.dumps(lists))
    for name in ("a", "b", "c", "d"):
        save(folder / "images" / f"{name}.nii.gz", ct())
        save(folder / "labels" / f"{name}.nii.gz", np.ones(ct().shape, np.uint8))
    return folder


def _import(source: Path, cohort: Path, **options: Any) -> ImportReport:
    return import_datalist(source, cohort, secret=cohort.parent / "secret", vocabulary=VOCABULARY, **options)


def _image(name: str) -> str:
    return f"images/{name}.nii.gz"


def test_a_datalist_is_a_readable_cohort(tmp_path: Path) -> None:
    source = _source(
        tmp_path / "source",
        training=[{"image": _image("a"), "label": "./labels/a.nii.gz"}, {"image": [_image("b"), _image("c")]}],
        testing=["./" + _image("d")],
        modality={"0": "MRI"},
    )
    rename = {"image": "T2", "0": "T1", "1": "T1c"}
    report = _import(source, tmp_path / "cohort", rename=rename)
    assert _import(source / "list.json", tmp_path / "again" / "cohort", rename=rename).summary() == report.summary()
    cohort = read_cohort(tmp_path / "cohort", VOCABULARY)
    assert report.summary() == {"patients": 3, "T2": 2, "T1": 1, "T1c": 1, "masks": 1}
    assert cohort.problems == report.problems == ()
    assert sorted(patient.split or "" for patient in cohort.patients) == ["test", "train", "train"]
    assert "--patient-key" in report.warnings[0]
    held_out = next(patient for patient in cohort.patients if patient.split == "test")
    assert held_out.volumes[0].path == source / "images" / "d.nii.gz"


def test_modalities_may_be_keys_of_the_image_or_of_the_entry(tmp_path: Path) -> None:
    source = _source(
        tmp_path / "source",
        training=[
            {"image": {"CT": _image("a"), "t2": _image("b")}, "label": 1},
            {"image": _image("c"), "PET": _image("d")},
        ],
    )
    report = _import(source, tmp_path / "cohort", rename={"t2": "T2", "image": "CT"})
    assert report.summary() == {"patients": 2, "CT": 2, "T2": 1, "PET": 1, "masks": 0}
    with pytest.raises(CohortError, match=r"not a modality: t2; .*--rename t2=MODALITY"):
        _import(source, tmp_path / "cohort", rename={"image": "CT"})


def test_a_key_that_is_not_mapped_is_refused_by_name(tmp_path: Path) -> None:
    source = _source(tmp_path / "source", training=[{"image": [_image("a"), _image("b")]}])
    with pytest.raises(CohortError, match=r"not a modality: 0, 1; .*--rename 0=MODALITY"):
        _import(source, tmp_path / "cohort")
    assert _import(source, tmp_path / "cohort", rename={"0": "CT"}, drop=["1"]).volumes == {"CT": 1}


def test_validation_and_a_fold_are_held_out(tmp_path: Path) -> None:
    source = _source(
        tmp_path / "source",
        training=[{"image": _image("a"), "fold": 0}, {"image": _image("b"), "fold": 1}, {"image": _image("d")}],
        validation=[{"image": _image("c")}, {"image": "./" + _image("d")}],
    )
    report = _import(source, tmp_path / "cohort", rename={"image": "CT"}, fold=1)
    cohort = read_cohort(tmp_path / "cohort", VOCABULARY)
    splits = {patient.volumes[0].path.name[0]: patient.split for patient in cohort.patients}
    assert splits == {"a": "train", "b": "test", "c": "test", "d": "test"}
    assert [problem.reason for problem in report.problems] == [Reason.DUPLICATE]


def test_entries_of_one_patient_are_her_studies(tmp_path: Path) -> None:
    source = _source(
        tmp_path / "source",
        training=[
            {"image": _image(name), "id": patient} for name, patient in (("a", 7), ("b", "7"), ("c", 8), ("d", None))
        ],
    )
    report = _import(source, tmp_path / "cohort", rename={"image": "CT"}, patient="id")
    cohort = read_cohort(tmp_path / "cohort", VOCABULARY)
    visits = [[(volume.study, volume.day, volume.frame) for volume in patient.volumes] for patient in cohort.patients]
    assert visits == [[("s1", 0, "grid1"), ("s2", 1, "grid2")], [("s1", 0, "grid1")]]
    assert [problem.reason for problem in report.problems] == [Reason.BAD_ROW]
    assert "for want of dates" in report.warnings[0]
    with pytest.raises(CohortError, match="has the key subject"):
        _import(source, tmp_path / "cohort", rename={"image": "CT"}, patient="subject")


@pytest.mark.parametrize(
    "path", ["../outside.nii.gz", "images/../../outside.nii.gz", "a\0.nii.gz", "x.txt", "", 3, None, {}]
)
def test_a_relative_path_never_leaves_the_folder(tmp_path: Path, path: Any) -> None:
    save(tmp_path / "outside.nii.gz", ct())
    source = _source(tmp_path / "source", training=[{"image": [_image("a"), path], "label": "../outside.nii.gz"}])
    report = _import(source, tmp_path / "cohort", rename={"0": "CT", "1": "T1"})
    assert report.summary() == {"patients": 1, "CT": 1, "masks": 0, "left out: bad_row": 2}


def test_an_absolute_path_is_the_hospitals_own(tmp_path: Path) -> None:
    path = save(tmp_path / "archive" / "x.nii.gz", ct())
    source = _source(tmp_path / "source", training=[{"image": str(path)}, {"image": "/absent/y.nii.gz"}])
    report = _import(source, tmp_path / "cohort", rename={"image": "CT"})
    assert report.summary() == {"patients": 1, "CT": 1, "masks": 0, "left out: missing_file": 1}
    assert read_cohort(tmp_path / "cohort", VOCABULARY).volumes[0].path == path


@pytest.mark.parametrize("copy", [False, True])
def test_a_second_import_writes_the_same_bytes(tmp_path: Path, copy: bool) -> None:
    source = _source(tmp_path / "source", training=[{"image": _image("a"), "label": "labels/a.nii.gz"}])
    contents = []
    for _ in range(2):
        _import(source, tmp_path / "cohort", rename={"image": "CT"}, copy=copy)
        files = sorted(path for path in tmp_path.rglob("*") if path.is_file() and source not in path.parents)
        contents.append({path: path.read_bytes() for path in files})
    assert contents[0] == contents[1]
    assert read_cohort(tmp_path / "cohort", VOCABULARY).problems == ()


@pytest.mark.parametrize("content", ["", "{", "[]", "[" * 200_000])
def test_a_damaged_file_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / f"{MARK}.json").write_text(content)
    with pytest.raises(CohortError, match="PM201") as caught:
        _import(tmp_path / f"{MARK}.json", tmp_path / "cohort")
    assert MARK not in str(caught.value)


def test_a_folder_must_hold_one_datalist(tmp_path: Path) -> None:
    source = _source(tmp_path / "source", training=[{"image": _image("a")}])
    (source / "other.json").write_text((source / "list.json").read_text())
    with pytest.raises(CohortError, match="holds 2 datalists"):
        _import(source, tmp_path / "cohort")


_VALUES = st.none() | st.integers() | NAMES | NAMES.map("{}.nii.gz".format)


@settings(max_examples=60)
@given(
    entries=st.lists(
        st.none() | NAMES | st.dictionaries(NAMES | st.sampled_from(["image", "label", "id"]), _VALUES, max_size=3)
    ),
    images=st.lists(_VALUES, max_size=3) | st.dictionaries(NAMES, _VALUES, max_size=2),
    patient=NAMES,
)
def test_hostile_names_leave_nothing_behind(
    tmp_path_factory: pytest.TempPathFactory, entries: list[Any], images: Any, patient: str
) -> None:
    folder = tmp_path_factory.mktemp("d")
    good = {"image": [_image("a")], "id": patient}
    source = _source(folder / "source", training=[good, {"image": images, "id": patient, MARK: "x"}], test=entries)
    for options in ({"patient": "id"}, {}):
        with nothing_told(folder, folder / "cohort", folder / "secret") as note:
            rename = {"0": "CT", "1": "T1", "2": "T2", "image": "PET"}
            note(_import(source, folder / "cohort", rename=rename, copy=True, **options))
