"""Importing an nnU-Net v2 data set."""

import gzip
import json
import re
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st

from cohort_files import ct, grid_affine, save
from hostile_names import MARK, NAMES, can_be_file, nothing_told
from parametrium.cohort.importers.folders import ImportReport
from parametrium.cohort.importers.nnunet import import_nnunet
from parametrium.cohort.manifest import Reason, read_cohort
from parametrium.config import VOCABULARY
from parametrium.errors import CohortError

DOCUMENT: dict[str, Any] = {
    "channel_names": {"0": "T2", "1": "ADC"},
    "labels": {"background": 0, "whole gland": [1, 2], "lesion <1>": 2},
    "numTraining": 2,
    "file_ending": ".nii.gz",
}


def _source(folder: Path, cases: tuple[str, ...] = ("a_1", "b"), **changes: Any) -> Path:
    """Two training cases and a test case of two channels."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dataset.json").write_text(json.dumps(DOCUMENT | changes))
    for part, names in (("Tr", cases), ("Ts", ("c",))):
        for name in names:
            for channel in range(2):
                save(folder / f"images{part}" / f"{name}_{channel:04d}.nii.gz", ct(seed=channel))
            if part == "Tr":
                save(folder / "labelsTr" / f"{name}.nii.gz", np.ones(ct().shape, np.uint8))
    return folder


def _import(source: Path, cohort: Path, **options: Any) -> ImportReport:
    return import_nnunet(source, cohort, secret=cohort.parent / "secret", vocabulary=VOCABULARY, **options)


def test_a_data_set_is_a_readable_cohort(tmp_path: Path) -> None:
    source = _source(tmp_path / "source")
    report = _import(source, tmp_path / "cohort")
    cohort = read_cohort(tmp_path / "cohort", VOCABULARY)
    assert report.summary() == {"patients": 3, "T2": 3, "ADC": 3, "masks": 2}
    assert (cohort.problems, report.warnings) == ((), ())
    assert [patient.split for patient in cohort.patients] == ["train", "train", "test"]
    assert {volume.frame for volume in cohort.volumes} == {"grid1"}
    assert {(volume.study, volume.day) for volume in cohort.volumes} == {("s1", 0)}
    assert [mask.structure for patient in cohort.patients for mask in patient.masks] == [
        "1+2=whole_gland;2=lesion_1"
    ] * 2
    assert cohort.volumes[1].path == source / "imagesTr" / "a_1_0001.nii.gz"


@pytest.mark.parametrize("copy", [False, True])
def test_a_second_import_writes_the_same_bytes(tmp_path: Path, copy: bool) -> None:
    source = _source(tmp_path / "source")
    contents = []
    for _ in range(2):
        _import(source / "dataset.json", tmp_path / "cohort", copy=copy)
        files = sorted(path for path in tmp_path.rglob("*") if path.is_file() and source not in path.parents)
        contents.append({path: path.read_bytes() for path in files})
    assert contents[0] == contents[1]


def test_copies_are_the_same_voxels_without_the_sources_words(tmp_path: Path) -> None:
    source = _source(tmp_path / "source", (MARK,))
    original = source / "imagesTr" / f"{MARK}_0000.nii.gz"
    image = nibabel.Nifti1Image(np.arange(24 * 22 * 20, dtype=np.int16).reshape(24, 22, 20), grid_affine())
    image.header.set_slope_inter(0.5, -7.0)
    image.header["descrip"] = MARK.encode()
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", MARK.encode()))
    nibabel.save(image, original)
    _import(source, tmp_path / "cohort", copy=True)
    cohort = read_cohort(tmp_path / "cohort", VOCABULARY)
    patient = next(patient for patient in cohort.patients if patient.split == "train")
    base = tmp_path / "cohort" / "images" / patient.name / "s1"
    assert cohort.problems == ()
    assert [volume.path for volume in patient.volumes] == [base / "T2.nii.gz", base / "ADC.nii.gz"]
    assert [mask.path for mask in patient.masks] == [base / "masks" / "01.nii.gz"]
    copied = nibabel.load(base / "T2.nii.gz")
    assert copied.get_data_dtype() == np.int16
    np.testing.assert_array_equal(copied.get_fdata(), nibabel.load(original).get_fdata())
    np.testing.assert_array_equal(copied.affine, image.affine)
    for path in filter(Path.is_file, tmp_path.joinpath("cohort").rglob("*")):
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        assert MARK.encode() not in content + path.name.encode()


def test_a_volume_that_cannot_be_copied_is_left_out(tmp_path: Path) -> None:
    source = _source(tmp_path / "source")
    path = source / "imagesTr" / "b_0001.nii.gz"
    path.write_bytes(path.read_bytes()[:-4000])
    report = _import(source, tmp_path / "cohort", copy=True)
    assert [(problem.modality, problem.reason) for problem in report.problems] == [("ADC", Reason.UNREADABLE)]
    assert read_cohort(tmp_path / "cohort", VOCABULARY).problems == ()


@pytest.mark.parametrize("ending", [".nrrd", ".mha", ".nii"])
def test_other_file_endings_are_read(tmp_path: Path, ending: str) -> None:
    (tmp_path / "source" / "imagesTr").mkdir(parents=True)
    document = DOCUMENT | {"file_ending": ending, "channel_names": {"0": "CT"}}
    (tmp_path / "source" / "dataset.json").write_text(json.dumps(document))
    sitk.WriteImage(sitk.GetImageFromArray(ct()), str(tmp_path / "source" / "imagesTr" / f"x_0000{ending}"))
    assert _import(tmp_path / "source", tmp_path / "cohort").volumes == {"CT": 1}
    assert read_cohort(tmp_path / "cohort", VOCABULARY).problems == ()


def test_channels_are_named_by_name_or_number(tmp_path: Path) -> None:
    source = _source(tmp_path / "source", channel_names={"0": "zscore", "1": "noNorm"})
    with pytest.raises(CohortError, match=r"noNorm, zscore.*--rename noNorm=MODALITY"):
        _import(source, tmp_path / "cohort")
    assert _import(source, tmp_path / "cohort", rename={"zscore": "T2"}, drop=["1"]).volumes == {"T2": 3}
    assert _import(source, tmp_path / "cohort", rename={"0": "T2", "1": "DWI"}).volumes == {"T2": 3, "DWI": 3}


def test_two_channels_of_one_name_are_told_apart_by_number(tmp_path: Path) -> None:
    source = _source(tmp_path / "source", channel_names={"0": "zscore", "1": "zscore"})
    with pytest.raises(CohortError, match="channels 0, 1 share a name"):
        _import(source, tmp_path / "cohort")
    assert _import(source, tmp_path / "cohort", rename={"0": "T2", "1": "DWI"}).volumes == {"T2": 3, "DWI": 3}


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"channel_names": None}, "version 2"),
        ({"channel_names": {"zero": "T2"}}, "version 2"),
        ({"file_ending": ".png"}, "file_ending"),
        ({"file_ending": ["/etc"]}, "file_ending"),
        ({"channel_names": {"0": MARK + " 1956-02-01"}}, "a name that no modality has"),
        ({"channel_names": {"0": ["T2"]}}, "a name that no modality has"),
    ],
)
def test_a_damaged_description_is_refused(tmp_path: Path, changes: dict[str, Any], match: str) -> None:
    source = _source(tmp_path / "source", **changes)
    with pytest.raises(CohortError, match=match) as caught:
        _import(source, tmp_path / "cohort")
    assert MARK not in str(caught.value)
    assert not (tmp_path / "cohort").exists()


def test_what_does_not_fit_is_reported(tmp_path: Path) -> None:
    source = _source(tmp_path / "source")
    (source / "imagesTr" / "a_1_0001.nii.gz").unlink()
    (source / "labelsTr" / "b.nii.gz").unlink()
    save(source / "labelsTr" / "z.nii.gz", ct())
    save(source / "imagesTr" / "b_0007.nii.gz", ct())
    (source / "imagesTr" / "notes.txt").write_text("x")
    save(source / "imagesTs" / "c_0001.nii.gz", ct(), grid_affine(origin=(5.0, 0.0, 0.0)))
    report = _import(source, tmp_path / "cohort")
    counts = {key: value for key, value in report.summary().items() if key.startswith("left out")}
    assert counts == {
        "left out: bad_row": 2,
        "left out: missing_file": 2,
        "left out: structures_without_image": 1,
    }
    assert "1 patients have volumes on different grids" in report.warnings[0]


@settings(max_examples=25)
@given(word=st.text(max_size=60))
def test_names_of_structures_become_safe_words(tmp_path_factory: pytest.TempPathFactory, word: str) -> None:
    folder = tmp_path_factory.mktemp("s")
    _import(_source(folder / "source", labels={word: 1}), folder / "cohort")
    masks = read_cohort(folder / "cohort", VOCABULARY).patients[0].masks
    assert re.fullmatch(r"1=[A-Za-z0-9][A-Za-z0-9_.-]{0,39}", masks[0].structure)


@settings(max_examples=25)
@given(name=NAMES.filter(can_be_file), word=NAMES)
def test_hostile_names_leave_nothing_behind(tmp_path_factory: pytest.TempPathFactory, name: str, word: str) -> None:
    folder = tmp_path_factory.mktemp("n")
    source = _source(
        folder / "source", (name,), channel_names={"0": "T2", "1": word}, labels={"tumour": word}, name=word
    )
    with nothing_told(folder, folder / "cohort", folder / "secret") as note:
        note(_import(source, folder / "cohort", drop=["1"], copy=True))
    with nothing_told(folder, folder / "other", folder / "secret"):
        _import(source, folder / "other", copy=True)
