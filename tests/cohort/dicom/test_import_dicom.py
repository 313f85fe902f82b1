"""Importing a folder of DICOM: names, days, frames and tables; again and again; whatever interrupts it."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import psutil
import pydicom
import pytest
from dicom_files import ras_affine, straight, uid, volume, write_series
from filelock import FileLock
from pydicom.dataset import Dataset

from parametrium.cohort.deidentify import pseudonym, site_secret
from parametrium.cohort.dicom.choice import choose
from parametrium.cohort.dicom.facts import SIDECAR, Choice, Facts, Grid
from parametrium.cohort.importers import dicom
from parametrium.cohort.importers.dicom import DicomReport, import_dicom
from parametrium.cohort.manifest import read_cohort
from parametrium.cohort.problem import Reason
from parametrium.cohort.table import read_table, write_table
from parametrium.config import VOCABULARY, SeriesRule
from parametrium.errors import CohortError
from structure_files import ellipse, structure_set, to_patient

PATIENCE_S = 120

Rows = list[dict[str, str]]


def fatal(facts: Facts, **settings: Any) -> Choice:
    """A choice that a series can be the end of."""
    if facts.description == "deadly":
        os.kill(os.getpid(), signal.SIGKILL)
    if facts.description == "broken":
        raise RuntimeError("SENTINEL")
    return choose(facts, **settings)


def endless(facts: Facts, **settings: Any) -> Choice:
    """A choice that never comes for one of the series."""
    if facts.description == "endless":
        signal.pause()
    return choose(facts, **settings)


class Counter:
    """Progress as a stage sees it."""

    def __init__(self) -> None:
        self.steps: dict[str, list[tuple[int, int]]] = {}

    @contextmanager
    def stage(self, title: str) -> Iterator[Callable[[int, int], None]]:
        yield lambda done, total: self.steps.setdefault(title, []).append((done, total))

    def converted(self) -> int:
        return self.steps["volumes"][-1][1]


def run(source: Path, cohort: Path, **options: Any) -> DicomReport:
    """Imports in this process unless ``jobs`` says otherwise."""
    return import_dicom(source, cohort, **{"secret": cohort.parent / "secret", "jobs": 0} | options)


def rows(cohort: Path, table: str = "cohort") -> Rows:
    return [dict(row) for row in read_table(cohort / f"{table}.csv", what="the table", required=()).rows]


def everything(cohort: Path) -> dict[str, bytes]:
    """Bytes of every file of a cohort but its random name."""
    files = (path for path in cohort.rglob("*") if path.is_file() and ".import" not in path.parts)
    return {str(path.relative_to(cohort)): path.read_bytes() for path in files}


def a_hospital(source: Path) -> Path:
    """Two patients: one with CT and PET in one frame and an MR of another, and two more visits; one with a CT."""
    one = {"patient": "PAT1"}
    write_series(source / "1", volume(seed=1), series="ct", **one)
    write_series(source / "1", volume((5, 5, 4), seed=2), series="ct2", **one)
    write_series(source / "2", volume((6, 6, 4), seed=3), series="mr", modality="MR", FrameOfReferenceUID="1.2", **one)
    write_series(source, volume(seed=4), study="2", series="later", StudyDate="20200310", **one)
    write_series(
        source, volume(seed=5), study="0", series="undated", StudyDate="", SeriesDate="", AcquisitionDate="", **one
    )
    write_series(source / "x", volume(seed=6), patient="PAT2", series="ct")
    (source / "readme.txt").write_text("no image")
    return source


def test_a_folder_becomes_a_readable_cohort(tmp_path: Path) -> None:
    cohort = tmp_path / "cohort"
    report = run(a_hospital(tmp_path / "source"), cohort)
    key = site_secret(tmp_path / "secret")
    one, two = pseudonym(key, "PAT1"), pseudonym(key, "PAT2")
    told = {(row["patient"], row["study"], row["day"], Path(row["path"]).name, row["frame"]) for row in rows(cohort)}
    assert told == {
        (one, "s1", "0", "CT.nii.gz", "s1-f1"),
        (one, "s1", "0", "CT_2.nii.gz", "s1-f1"),
        (one, "s1", "0", "T1.nii.gz", "s1-f2"),
        (one, "s2", "10", "CT.nii.gz", "s2-f1"),
        (one, "s3", "0", "CT.nii.gz", "s3-f1"),
        (two, "s1", "0", "CT.nii.gz", "s1-f1"),
    }
    folders = [Path(row["path"]).parent for row in rows(cohort)]
    assert folders == [Path("images", row["patient"], row["study"]) for row in rows(cohort)]
    assert report.summary() == {
        "patients": 2,
        "CT": 5,
        "T1": 1,
        "masks": 0,
        "files": 29,
        "files left out: not_dicom": 1,
    }
    assert report.warnings == ("1 studies have no date; their day is 0",)
    read = read_cohort(cohort, VOCABULARY)
    assert (len(read.volumes), read.problems) == (6, ())
    assert rows(cohort, "problems") == [
        {"patient": "", "modality": "", "reason": "not_dicom", "rule": "", "count": "1"}
    ]


def test_an_expression_without_end_is_told_by_the_number_of_its_series(tmp_path: Path) -> None:
    source = a_hospital(tmp_path / "source")
    write_series(source / "y", volume(seed=7), series="long", SeriesDescription="a" * 63 + "-")
    write_series(source / "z", volume(seed=8), series="lost", modality="MR", SeriesDescription="a" * 60, FlipAngle=5)
    rules = (SeriesRule(match="(a|a)+b", modality=None, over_facts=True),)
    report = run(source, tmp_path / "cohort", rules=rules, wanted=("CT",))
    (told,) = [text for text in report.warnings if "series_rules" in text]
    assert "too long on 2 series and counted as no match" in told
    every = rows(tmp_path / "cohort") + rows(tmp_path / "cohort", "problems")
    assert sum("series_rules[0] ran too long" in row["rule"] for row in every) == 2
    assert run(source, tmp_path / "cohort", rules=rules, wanted=("CT",)) == report  # also when nothing is converted


def test_a_sidecar_tells_numbers_by_the_list_and_nobody_else_may_read(tmp_path: Path) -> None:
    cohort = tmp_path / "cohort"
    run(a_hospital(tmp_path / "source"), cohort)
    sidecars = list(cohort.rglob("*.json"))
    assert len(sidecars) == 6
    for path in sidecars:
        values = json.loads(path.read_text())
        assert set(values) <= set(SIDECAR)
        assert all(isinstance(value, bool | int | float | list) for value in values.values())
    for path in (*cohort.rglob("*"), cohort, *tmp_path.glob("secret*")):
        assert path.stat().st_mode & 0o077 == 0, path


def test_nothing_that_identifies_survives(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "SENTINEL-source"
    texts = {
        **dict.fromkeys(("PatientName", "PatientComments", "StudyDescription", "SeriesDescription"), "SENTINEL"),
        **dict.fromkeys(("ProtocolName", "InstitutionName", "OperatorsName", "AccessionNumber"), "SENTINEL"),
        "Modality": "SENTINEL",
    }
    write_series(source / "SENTINEL", volume(), patient="../../SENTINEL", IssuerOfPatientID="SENTINEL<script>", **texts)
    write_series(source / "SENTINEL", volume(seed=1), patient="SENTINEL", StudyID="SENTINEL", PatientName="SENTINEL")
    (source / "SENTINEL.dcm").write_bytes(b"SENTINEL" * 99)
    report = run(source, tmp_path / "cohort")
    assert report.patients == 1
    for path, content in everything(tmp_path / "cohort").items():
        assert "SENTINEL" not in path
        plain = nibabel.load(tmp_path / "cohort" / path).header.binaryblock if path.endswith(".gz") else content
        assert b"SENTINEL" not in plain
        assert b"20200229" not in plain
    assert "SENTINEL" not in str(report)
    assert "SENTINEL" not in "".join(capfd.readouterr())


def test_a_second_run_does_nothing_and_writes_the_same_bytes(tmp_path: Path) -> None:
    source, cohort = a_hospital(tmp_path / "source"), tmp_path / "cohort"
    first, again = Counter(), Counter()
    report = run(source, cohort, progress=first.stage)
    before = everything(cohort)
    assert run(source, cohort, progress=again.stage) == report
    assert everything(cohort) == before
    assert (first.converted(), again.converted()) == (6, 0)
    assert first.steps["headers"][-1] == (29, 29)
    assert first.steps["volumes"] == [(done, 6) for done in range(7)]
    assert again.steps["headers"] == [(0, 0)]


def test_the_number_of_processes_changes_nothing(tmp_path: Path) -> None:
    source = a_hospital(tmp_path / "source")
    for name, jobs in (("a", 1), ("b", 3)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "secret").touch(0o600)
        (tmp_path / name / "secret").write_text("ab" * 32)
        run(source, tmp_path / name / "cohort", jobs=jobs)
    assert everything(tmp_path / "a" / "cohort") == everything(tmp_path / "b" / "cohort")


def test_only_what_is_new_is_added_and_what_is_there_keeps_its_name(tmp_path: Path) -> None:
    source, cohort = a_hospital(tmp_path / "source"), tmp_path / "cohort"
    run(source, cohort)
    before, names = everything(cohort), [row["path"] for row in rows(cohort)]
    export, counter = tmp_path / "second export", Counter()
    write_series(export, volume(seed=7), patient="PAT1", study="early", StudyDate="20200219")
    write_series(export, volume(seed=8), patient="PAT3", series="other")
    report = run(export, cohort, progress=counter.stage)
    assert (counter.converted(), report.patients) == (2, 3)
    assert {row["path"] for row in rows(cohort)} > set(names)
    after = everything(cohort)
    assert {path for path in before if before[path] != after[path]} == {"cohort.csv"}
    (early,) = (row for row in rows(cohort) if row["study"] == "s4")
    assert early["day"] == "-10"


def test_a_series_that_got_more_slices_replaces_its_volume_and_one_that_lost_some_does_not(tmp_path: Path) -> None:
    source, cohort = tmp_path / "source", tmp_path / "cohort"
    stored = volume((7, 6, 8))
    files = write_series(source, stored)
    kept = [file.rename(tmp_path / file.name) for file in files[5:]]
    run(source, cohort)
    (row,) = rows(cohort)
    assert nibabel.load(cohort / row["path"]).shape == (7, 6, 5)
    for file in kept:
        shutil.move(file, source)
    run(source, cohort)
    assert rows(cohort) == [row]
    assert nibabel.load(cohort / row["path"]).shape == (7, 6, 8)
    files[0].unlink()
    report = run(source, cohort)
    assert rows(cohort) == [row]
    assert nibabel.load(cohort / row["path"]).shape == (7, 6, 8)
    assert any("fewer files" in warning for warning in report.warnings)


def test_what_is_left_out_later_is_taken_back_after_the_tables(tmp_path: Path) -> None:
    source, cohort = a_hospital(tmp_path / "source"), tmp_path / "cohort"
    run(source, cohort)
    report = run(source, cohort, wanted=("CT",))
    assert report.volumes == {"CT": 5}
    assert not list(cohort.rglob("T1*"))
    assert report.left_out[Reason.MODALITY_NOT_WANTED] == 4
    run(source, cohort)
    assert len(list(cohort.rglob("T1.*"))) == 2


def test_a_deleted_volume_is_made_again(tmp_path: Path) -> None:
    source, cohort = a_hospital(tmp_path / "source"), tmp_path / "cohort"
    run(source, cohort)
    before = everything(cohort)
    shutil.rmtree(next((cohort / "images").iterdir()))
    run(source, cohort)
    assert everything(cohort) == before


def test_cells_that_others_wrote_stay_until_their_volume_changes(tmp_path: Path) -> None:
    source, cohort = a_hospital(tmp_path / "source"), tmp_path / "cohort"
    run(source, cohort)
    moved = "1 0 0 5 0 1 0 0 0 0 1 0"
    edited = rows(cohort)
    (mr,) = (row for row in edited if row["modality"] == "T1")
    mr.update(frame="s1-f1", moved=moved, split="test")
    write_table(cohort / "cohort.csv", (*edited[0], "split", "moved"), edited)
    write_series(tmp_path / "more", volume(), patient="PAT9")
    run(tmp_path / "more", cohort)
    kept = {row["path"]: row for row in rows(cohort)}
    assert kept[mr["path"]] == mr
    assert all(not row["moved"] and not row["split"] for path, row in kept.items() if path != mr["path"])
    for file in (source / "2").iterdir():
        os.utime(file, ns=(1, 1))
    run(source, cohort)
    (new,) = (row for row in rows(cohort) if row["modality"] == "T1")
    assert (new["frame"], new.get("moved", "")) == ("s1-f2", "")


def test_a_process_that_is_killed_costs_its_series_for_this_run_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, cohort = a_hospital(tmp_path / "source"), tmp_path / "cohort"
    write_series(source, volume(seed=7), patient="PAT3", series="d", SeriesDescription="deadly")
    write_series(source, volume(seed=8), patient="PAT4", series="b", SeriesDescription="broken")
    monkeypatch.setattr(dicom, "choose", fatal)
    report = run(source, cohort, jobs=2)
    assert report.volumes == {"CT": 5, "T1": 1}
    assert report.left_out[Reason.FAILED] == 10
    assert any("--jobs" in warning for warning in report.warnings)
    assert "SENTINEL" not in str(report)
    monkeypatch.undo()
    counter = Counter()
    assert run(source, cohort, progress=counter.stage).volumes == {"CT": 6, "T1": 1}
    assert counter.converted() == 1
    monkeypatch.setattr(dicom, "choose", fatal)
    for file in source.glob("d_*"):
        os.utime(file, ns=(1, 1))
    assert run(source, cohort, jobs=1).volumes == {"CT": 6, "T1": 1}  # what there was stays


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT])
def test_an_interrupted_import_shows_no_half_volume_and_is_continued(tmp_path: Path, end: signal.Signals) -> None:
    source = a_hospital(tmp_path / "source")
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "secret").touch(0o600)
        (tmp_path / name / "secret").write_text("ab" * 32)
    cohort = tmp_path / "b" / "cohort"
    write_series(source, volume(seed=7), patient="PAT1", study="9", StudyDate="20210101", SeriesDescription="endless")
    script = (
        "import sys\nfrom pathlib import Path\nimport test_import_dicom as t\n"
        "if __name__ == '__main__':\n"
        "    t.dicom.choose = t.endless\n"
        "    t.run(Path(sys.argv[1]), Path(sys.argv[2]), jobs=1)\n"
    )
    here = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    command = [sys.executable, "-c", script, str(source), str(cohort)]
    with subprocess.Popen(command, env=here, stderr=subprocess.DEVNULL, start_new_session=True) as process:
        while not list(cohort.glob("images/*/s2/CT.nii.gz")) and process.poll() is None:
            pass
        family = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(end)
        assert process.wait(PATIENCE_S) != 0
    assert psutil.wait_procs(family, timeout=PATIENCE_S)[1] == []
    assert not (cohort / "cohort.csv").exists()
    for path in cohort.glob("images/**/*.nii.gz"):
        assert np.asarray(nibabel.load(path).dataobj).size
        assert json.loads(path.with_name(path.name.replace(".nii.gz", ".json")).read_text())
    assert (cohort / ".import" / "staging").exists() == (end == signal.SIGKILL)
    counter = Counter()
    run(source, cohort, progress=counter.stage)
    assert counter.converted() < 7
    run(source, tmp_path / "a" / "cohort")
    assert everything(cohort) == everything(tmp_path / "a" / "cohort")
    assert [path.name for path in (cohort / ".import").iterdir() if path.is_dir()] == []


def test_a_full_disk_is_told_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage(2**40, 2**40, 10_000_000))
    with pytest.raises(CohortError, match=r"PM204 the import needs about 0\.3 GB and .* 0\.0 GB free"):
        run(a_hospital(tmp_path / "source"), tmp_path / "cohort")


def test_two_imports_into_one_cohort_do_not_meet(tmp_path: Path) -> None:
    source, cohort = a_hospital(tmp_path / "source"), tmp_path / "cohort"
    run(source, cohort)
    with (
        FileLock(cohort / ".import" / "lock"),
        pytest.raises(CohortError, match="PM204 another import into this cohort"),
    ):
        run(source, cohort)
    with FileLock(tmp_path / "secret.lock"), pytest.raises(CohortError, match="PM204 another import with this secret"):
        run(source, cohort)


def test_a_cohort_of_another_secret_or_another_maker_is_left_alone(tmp_path: Path) -> None:
    source = a_hospital(tmp_path / "source")
    run(source, tmp_path / "cohort")
    with pytest.raises(CohortError, match=r"PM204 .*another secret"):
        run(source, tmp_path / "cohort", secret=tmp_path / "other")
    made = tmp_path / "made"
    made.mkdir()
    (made / "cohort.csv").write_text("patient\n")
    with pytest.raises(CohortError, match=r"PM204 .*not made by an import of DICOM"):
        run(source, made)
    assert (made / "cohort.csv").read_text() == "patient\n"


def test_a_cohort_may_be_moved(tmp_path: Path) -> None:
    source, counter = a_hospital(tmp_path / "source"), Counter()
    run(source, tmp_path / "cohort")
    (tmp_path / "cohort").rename(tmp_path / "moved")
    run(source, tmp_path / "moved", progress=counter.stage)
    assert counter.converted() == 0


@pytest.mark.parametrize("inside", ["cohort", "secret"])
def test_what_is_written_must_not_lie_in_the_source(tmp_path: Path, inside: str) -> None:
    places = {"cohort": tmp_path / "cohort", "secret": tmp_path / "secret"}
    source = a_hospital(tmp_path / "source")
    places[inside] = source / "deep" / inside
    with pytest.raises(CohortError, match=r"PM204 .*outside the source"):
        run(source, **places)
    assert not (source / "deep").exists()


def test_a_source_that_is_not_there_leaves_no_trace(tmp_path: Path) -> None:
    with pytest.raises(CohortError, match="PM204 the source is not a folder"):
        run(tmp_path / "absent", tmp_path / "cohort")
    assert list(tmp_path.iterdir()) == []


def test_a_source_without_a_volume_is_refused_and_told(tmp_path: Path) -> None:
    write_series(tmp_path / "source", volume(), patient="")
    (tmp_path / "source" / "text").write_text("SENTINEL")
    with pytest.raises(CohortError, match=r"PM204 .*no volume to import; files: 5 no_patient, 1 not_dicom"):
        run(tmp_path / "source", tmp_path / "cohort")
    assert {row["reason"] for row in rows(tmp_path / "cohort", "problems")} == {"no_patient", "not_dicom"}
    report = run(_below(tmp_path / "source", "SENTINEL"), tmp_path / "cohort", patient_folders=True)
    assert report.volumes == {"CT": 1}
    assert "SENTINEL" not in (tmp_path / "cohort" / "cohort.csv").read_text()


def _below(source: Path, folder: str) -> Path:
    (source / folder).mkdir()
    for path in [path for path in source.iterdir() if path.is_file()]:
        path.rename(source / folder / path.name)
    return source


def test_the_key_table_undoes_every_pseudonym(tmp_path: Path) -> None:
    run(a_hospital(tmp_path / "source"), tmp_path / "cohort")
    table = read_table(tmp_path / "secret.patients.csv", what="the table", required=())
    known = {row["pseudonym"]: row["subject"] for row in table.rows}
    assert {known[row["patient"]] for row in rows(tmp_path / "cohort")} == {"PAT1", "PAT2"}
    assert uid("PAT1", "1") not in (tmp_path / "secret.patients.csv").read_text()


def structures(path: Path, patient: str) -> Path:
    """A cylinder on slices 1 to 4 of the default grid, in the frame of the patient's first study."""
    path.parent.mkdir(parents=True, exist_ok=True)
    grid = Grid((20, 20, 6), ras_affine(straight(), (-100.0, -80.0, 40.0)))
    outlines = [to_patient(grid, ellipse((10, 10), (6, 6), k)) for k in range(1, 5)]

    def of_patient(dataset: Dataset) -> None:
        dataset.PatientID = patient

    return structure_set(path, [("GTV SENTINEL", outlines)], frame=uid(patient, "1", "frame"), change=of_patient)


def test_structures_wait_for_their_image_and_follow_it(tmp_path: Path) -> None:
    source, cohort = tmp_path / "source", tmp_path / "cohort"
    structures(source / "rt", "PAT1")
    write_series(source / "b", volume(), patient="PAT2")
    report = run(source, cohort)
    assert (report.masks, report.left_out) == (0, {Reason.STRUCTURES_WITHOUT_IMAGE: 1})
    files = write_series(source / "a", volume((20, 20, 7)), patient="PAT1")
    last = files[-1].rename(tmp_path / "last")
    report = run(source, cohort)
    assert (report.masks, report.left_out) == (1, {})
    (row,) = rows(cohort, "masks")
    (image,) = (other for other in rows(cohort) if other["patient"] == row["patient"])
    assert (row["study"], row["structure"], row["frame"]) == ("s1", "gtv", "s1-f1")
    assert row["path"] == f"images/{row['patient']}/s1/masks/CT_01.nii.gz"
    mask, scan = nibabel.load(cohort / row["path"]), nibabel.load(cohort / image["path"])
    assert mask.shape == scan.shape == (20, 20, 6)
    assert np.array_equal(mask.affine, scan.affine)
    filled = np.asarray(mask.dataobj).sum(axis=(0, 1))
    assert filled.tolist() == pytest.approx([0, 113, 113, 113, 113, 0], abs=4)  # pi 6^2
    last.rename(files[-1])
    moved = "1 0 0 5 0 1 0 0 0 0 1 0"
    run(source, cohort)
    assert nibabel.load(cohort / row["path"]).shape == (20, 20, 7)
    edited = [other | {"moved": moved, "frame": "s1-f9"} for other in rows(cohort)]
    write_table(cohort / "cohort.csv", (*edited[0],), edited)
    run(source, cohort)
    assert rows(cohort, "masks") == [row | {"moved": moved, "frame": "s1-f9"}]


def test_masks_of_a_structure_set_that_changed_are_replaced(tmp_path: Path) -> None:
    source, cohort = tmp_path / "source", tmp_path / "cohort"
    write_series(source / "a", volume((20, 20, 6)), patient="PAT1")
    file = structures(source / "rt", "PAT1")
    run(source, cohort)
    before = everything(cohort)
    os.utime(file, ns=(1, 1))
    run(source, cohort)
    assert everything(cohort) == before
    file.write_bytes(file.read_bytes().replace(b"CLOSED_PLANAR ", b"OPEN_PLANAR   "))
    report = run(source, cohort)
    assert report.masks == 0
    assert rows(cohort, "masks") == []
    assert not list(cohort.rglob("CT_01*"))


def test_pydicoms_own_odd_files_are_all_accounted_for(tmp_path: Path) -> None:
    source = Path(pydicom.__file__).parent / "data"
    report = run(source, tmp_path / "cohort", jobs=2)
    assert report.files == sum(path.is_file() for path in source.rglob("*"))
    used = report.files - sum(report.left_out.values())
    assert 0 < used < 20
    assert Reason.FAILED not in report.left_out


@pytest.mark.realdata
def test_real_sarcoma_patients_with_their_masks(tmp_path: Path, real_data: Path) -> None:
    report = run(real_data / "dicom" / "sarcoma", tmp_path / "cohort", jobs=2)
    assert report.summary() == {"patients": 3, "CT": 3, "PET": 3, "T1": 3, "masks": 9, "files": 576}
    cohort = read_cohort(tmp_path / "cohort", VOCABULARY)
    assert cohort.problems == ()
    assert {mask.structure for patient in cohort.patients for mask in patient.masks} == {"gtv"}
    for patient in cohort.patients:
        assert {volume.frame for volume in patient.volumes} == {"s1-f1"}
        shapes = {volume.modality: nibabel.load(volume.path).shape for volume in patient.volumes}
        for mask in patient.masks:
            image = nibabel.load(mask.path)
            assert image.shape == shapes[mask.path.name.partition("_")[0]]
            assert set(np.unique(np.asarray(image.dataobj))) == {0, 1}


@pytest.mark.realdata
def test_of_all_real_dicom_every_file_is_accounted_for(tmp_path: Path, real_data: Path) -> None:
    source = real_data / "dicom"
    report = run(source, tmp_path / "cohort", jobs=2)
    assert report.files == sum(path.is_file() for path in source.rglob("*")) == 1250
    assert report.left_out[Reason.NOT_DICOM] == 61
    assert report.patients >= 4
    assert report.masks == 9
