"""An import with the site's defacing program: what reaches the cohort, and what never does."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import psutil
import pydicom
import pytest
from dicom_files import write_series

from defacers import TAKEN_MM, head, program
from parametrium.cohort.deidentify import pseudonym, site_secret
from parametrium.cohort.dicom.facts import SIDECAR, Grid
from parametrium.cohort.importers.dicom import DicomReport, import_dicom
from parametrium.cohort.manifest import read_cohort
from parametrium.cohort.problem import Reason
from parametrium.cohort.registration.register import register_cohort
from parametrium.cohort.table import read_table
from parametrium.config import VOCABULARY, DefacingConfig, PreparationConfig
from parametrium.data.prepare import prepare_cohort
from parametrium.errors import CohortError, ConfigError
from sentinel import SENTINEL, leaks
from structure_files import ellipse, structure_set, to_patient

PATIENCE_S = 120
STEPS = np.eye(3) * 4.0
ORIGIN = (-86.0, -102.0, -78.0)


def scan(folder: Path, **elements: Any) -> Path:
    """A CT of the head, and whatever else a header holds; axes of a file are left, posterior, superior."""
    write_series(folder / elements.get("patient", "PAT1"), head()[::-1, ::-1], steps=STEPS, origin=ORIGIN, **elements)
    return folder


def run(source: Path, cohort: Path, defacing: DefacingConfig | None, **options: Any) -> DicomReport:
    """Imports in this process unless ``jobs`` says otherwise."""
    return import_dicom(
        source, cohort, **{"secret": cohort.parent / "secret", "jobs": 0, "defacing": defacing} | options
    )


def rows(cohort: Path, table: str = "cohort") -> list[dict[str, str]]:
    return [dict(row) for row in read_table(cohort / f"{table}.csv", what="the table", required=()).rows]


def canonical(path: Path) -> np.ndarray:
    """Voxels along right, anterior, superior."""
    return np.asarray(nibabel.as_closest_canonical(nibabel.load(path)).dataobj)


def taken() -> np.ndarray:
    """What a good program takes from a head, along right, anterior, superior."""
    places = (np.arange(head().shape[1]) - (head().shape[1] - 1) / 2) * 4.0
    return np.broadcast_to((places > TAKEN_MM)[:, None], head().shape)


def sidecar(cohort: Path, row: dict[str, str]) -> dict[str, Any]:
    return dict(json.loads((cohort / row["path"].replace(".nii.gz", ".json")).read_text()))


def images(cohort: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (cohort / "images").rglob("*") if path.is_file()}


# ------------------------------------------------------------------------------------------------- what comes of a head


@pytest.mark.parametrize("jobs", [0, 1])
def test_a_head_reaches_the_cohort_without_its_face_and_a_pelvis_as_it_is(tmp_path: Path, jobs: int) -> None:
    source, cohort = tmp_path / "source", tmp_path / "cohort"
    scan(source, patient="PAT1", BodyPartExamined="HEAD")
    scan(source, patient="PAT2", BodyPartExamined="PELVIS")
    report = run(source, cohort, program(tmp_path, "zero"), jobs=jobs)
    assert (report.volumes, report.masks, report.left_out, report.warnings) == ({"CT": 2}, 1, {}, ())
    who = pseudonym(site_secret(tmp_path / "secret"), "PAT1")
    one, two = sorted(rows(cohort), key=lambda row: row["patient"] != who)
    np.testing.assert_array_equal(canonical(cohort / one["path"]), np.where(taken(), 0, head()))
    np.testing.assert_array_equal(canonical(cohort / two["path"]), head())
    assert [sidecar(cohort, row)["defaced"] for row in (one, two)] == [True, False]
    assert set(sidecar(cohort, one)) <= set(SIDECAR)
    (mask,) = rows(cohort, "masks")
    assert mask == {
        "patient": who,
        "study": "s1",
        "structure": "defaced",
        "path": f"images/{who}/s1/masks/CT_defaced.nii.gz",
        "frame": "s1-f1",
        "volume": one["path"],
    }
    assert canonical(cohort / mask["path"])[taken()].all()
    read = read_cohort(cohort, VOCABULARY)
    assert read.problems == ()
    assert {v.path: v.defaced for v in read.volumes} == {
        cohort / one["path"]: cohort / mask["path"],
        cohort / two["path"]: None,
    }
    assert list((cohort / ".import").rglob("*.nii*")) == []


def test_without_a_program_nothing_is_said_of_faces(tmp_path: Path) -> None:
    cohort = tmp_path / "cohort"
    run(scan(tmp_path / "source", BodyPartExamined="HEAD"), cohort, None)
    (row,) = rows(cohort)
    assert "defaced" not in sidecar(cohort, row)
    np.testing.assert_array_equal(canonical(cohort / row["path"]), head())
    assert not (cohort / "masks.csv").exists()


def test_what_was_taken_out_is_no_body_of_the_prepared_volume(tmp_path: Path) -> None:
    preparation = PreparationConfig(spacing_mm=(4.0, 4.0, 4.0))
    bodies = []
    for name, defacing in (("plain", None), ("defaced", program(tmp_path, "zero"))):
        cohort = tmp_path / name / "cohort"
        run(scan(tmp_path / "source", BodyPartExamined="HEAD"), cohort, defacing)
        prepared = prepare_cohort(read_cohort(cohort, VOCABULARY), preparation, tmp_path / name / "cache")
        assert prepared.problems == ()
        volume = prepared.patients[0].volumes[0]
        _, body = volume.read((-25, -30, -25), (60, 70, 60))
        bodies.append(body)
    plain, defaced = bodies
    assert (defaced & ~plain).sum() < plain.sum() / 200  # where the filled box meets a round head
    front = plain.any(axis=(0, 2)).nonzero()[0]
    edge = defaced.any(axis=(0, 2)).nonzero()[0]
    assert front[0] == edge[0]
    assert front[-1] - edge[-1] >= (96 - TAKEN_MM) // 4 - 2  # a nose ends at 96 mm
    behind = slice(None, edge[-1])
    assert (plain[:, behind] & ~defaced[:, behind]).mean() < 0.01


def drawn(folder: Path, scanned: Path) -> Path:
    """A structure set with the outline of the head and one within what a program takes."""
    folder.mkdir(exist_ok=True)
    steps = np.diag([-4.0, -4.0, 4.0, 1.0])
    steps[:3, 3] = -ORIGIN[0], -ORIGIN[1], ORIGIN[2]
    grid = Grid(head().shape, steps)
    outlines = [to_patient(grid, ellipse((22, 26), (17, 24), k)) for k in range(10, 30)]
    nose = [to_patient(grid, ellipse((22, 3), (3, 3), k)) for k in range(15, 20)]
    frame = str(pydicom.dcmread(next(scanned.rglob("1_*"))).FrameOfReferenceUID)
    structure_set(folder / "rt", [("External", outlines), ("PTV", nose)], frame=frame, change=_of_patient)
    return folder


def _of_patient(dataset: Any) -> None:
    dataset.PatientID = "PAT1"


def test_a_body_drawn_on_a_head_ends_where_its_face_was(tmp_path: Path) -> None:
    source, cohort = scan(tmp_path / "source", BodyPartExamined="HEAD"), tmp_path / "cohort"
    drawn(source, source)
    assert run(source, cohort, None).masks == 2
    before = {row["structure"]: row["path"] for row in rows(cohort, "masks")}
    assert canonical(cohort / before["body"])[taken()].any()
    report = run(source, cohort, program(tmp_path, "zero"))
    assert {row["structure"] for row in rows(cohort, "masks")} == {"body", "defaced"}
    assert report.masks == 2
    paths = {row["structure"]: row["path"] for row in rows(cohort, "masks")}
    assert not canonical(cohort / paths["body"])[taken()].any()
    assert canonical(cohort / paths["body"]).sum() > 1000
    named = {row["path"].rsplit("/", 1)[-1] for row in rows(cohort, "masks")}
    assert {path.name for path in cohort.rglob("masks/*")} == named


def test_a_body_that_was_drawn_on_a_face_goes_with_it_until_it_is_drawn_anew(tmp_path: Path) -> None:
    source, cohort = scan(tmp_path / "source", BodyPartExamined="HEAD"), tmp_path / "cohort"
    defacing = program(tmp_path, "zero")
    run(source, cohort, None)
    run(drawn(tmp_path / "other", source), cohort, None)
    assert {row["structure"] for row in rows(cohort, "masks")} == {"body", "ptv"}
    run(source, cohort, defacing)
    assert {row["structure"] for row in rows(cohort, "masks")} == {"defaced"}
    assert [path.name for path in cohort.rglob("masks/*")] == ["CT_defaced.nii.gz"]
    run(tmp_path / "other", cohort, defacing)
    assert {row["structure"] for row in rows(cohort, "masks")} == {"defaced", "body"}


def test_masks_follow_a_defaced_volume_in_registration(tmp_path: Path) -> None:
    source, cohort = tmp_path / "source", tmp_path / "cohort"
    scan(source, series="a", BodyPartExamined="HEAD", FrameOfReferenceUID="1.2.3")
    write_series(
        source,
        np.roll(head(), 2, axis=2)[::-1, ::-1],
        steps=STEPS,
        origin=ORIGIN,
        series="b",
        BodyPartExamined="HEAD",
        FrameOfReferenceUID="1.2.4",
    )
    defacing = program(tmp_path, "zero")
    run(source, cohort, defacing)
    register_cohort(cohort)
    volumes = {row["path"]: (row["frame"], row["moved"]) for row in rows(cohort)}
    masks = {row["volume"]: (row["frame"], row["moved"]) for row in rows(cohort, "masks")}
    assert masks == volumes
    run(source, cohort, defacing)
    assert {row["path"]: (row["frame"], row["moved"]) for row in rows(cohort)} == volumes


# ------------------------------------------------------------------------------------------------------ what never does


@pytest.mark.parametrize("name", ["fails", "hangs", "not finite"])
def test_a_head_that_could_not_be_defaced_is_left_out_and_counted(tmp_path: Path, name: str) -> None:
    source, cohort = tmp_path / "source", tmp_path / "cohort"
    scan(source, patient="PAT1", BodyPartExamined="HEAD")
    scan(source, patient="PAT2", BodyPartExamined="PELVIS")
    report = run(source, cohort, program(tmp_path, name).model_copy(update={"timeout_s": 1}))
    assert (report.volumes, report.masks) == ({"CT": 1}, 0)
    assert report.left_out == {Reason.DEFACING_FAILED: 40}
    assert sum(report.left_out.values()) + 40 == report.files
    (problem,) = rows(cohort, "problems")
    assert (problem["modality"], problem["reason"], problem["count"]) == ("CT", "defacing_failed", "40")
    assert problem["rule"].startswith("defacing: ")
    assert len(list(cohort.rglob("*.nii.gz"))) == 1


def test_a_program_that_was_mended_is_tried_again(tmp_path: Path) -> None:
    source, cohort = tmp_path / "source", tmp_path / "cohort"
    scan(source, patient="PAT1", BodyPartExamined="HEAD")
    scan(source, patient="PAT2", BodyPartExamined="PELVIS")
    bad, good = program(tmp_path, "fails"), program(tmp_path, "zero")
    assert run(source, cohort, bad).left_out
    shutil.copy(good.command[1], bad.command[1])
    report = run(source, cohort, bad)
    assert (report.volumes, report.left_out) == ({"CT": 2}, {})
    before = images(cohort)
    Path(bad.command[1]).unlink()  # nothing is left to do
    assert run(source, cohort, bad) == report
    assert images(cohort) == before


def test_another_setting_converts_again_and_a_face_of_an_earlier_import_goes(tmp_path: Path) -> None:
    source, cohort = tmp_path / "source", tmp_path / "cohort"
    scan(source, patient="PAT1", BodyPartExamined="HEAD")
    scan(source, patient="PAT2")
    run(source, cohort, None)
    assert len(rows(cohort)) == 2
    only_heads = program(tmp_path, "zero").model_copy(update={"when": "head"})
    run(source, cohort, only_heads)
    assert sorted(sidecar(cohort, row)["defaced"] for row in rows(cohort)) == [False, True]
    run(source, cohort, program(tmp_path, "zero"))
    assert [sidecar(cohort, row)["defaced"] for row in rows(cohort)] == [True, True]
    run(source, cohort, only_heads)
    assert len(rows(cohort, "masks")) == len(list(cohort.rglob("*_defaced.nii.gz"))) == 1
    with pytest.raises(CohortError, match=r"PM204 .*no volume to import; files: 80 defacing_failed"):
        run(source, cohort, program(tmp_path, "fails"))
    assert images(cohort) == {}


def test_defacing_cannot_be_forgotten(tmp_path: Path) -> None:
    source, cohort = scan(tmp_path / "source", BodyPartExamined="HEAD"), tmp_path / "cohort"
    run(source, cohort, program(tmp_path, "zero"))
    before = images(cohort)
    with pytest.raises(CohortError, match=r"PM204 .*--site-config"):
        run(source, cohort, None)
    assert images(cohort) == before


def test_faces_of_an_earlier_import_whose_source_is_elsewhere_are_told(tmp_path: Path) -> None:
    cohort, defacing = tmp_path / "cohort", program(tmp_path, "zero")
    run(scan(tmp_path / "one", patient="PAT1", BodyPartExamined="HEAD"), cohort, None)
    report = run(scan(tmp_path / "two", patient="PAT2", BodyPartExamined="PELVIS"), cohort, defacing)
    assert any(warning.startswith("1 volumes of earlier imports") for warning in report.warnings)
    assert run(tmp_path / "one", cohort, defacing).warnings == ()
    always = defacing.model_copy(update={"when": "always"})
    assert any(warning.startswith("1 volumes of earlier") for warning in run(tmp_path / "one", cohort, always).warnings)


def test_a_program_that_is_not_there_stops_the_import_before_it_begins(tmp_path: Path) -> None:
    source = scan(tmp_path / "source", BodyPartExamined="HEAD")
    with pytest.raises(ConfigError, match=r"PM103 site\.defacing\.command"):
        run(source, tmp_path / "cohort", DefacingConfig(command=("/absent", "{input}", "{output}")))


def test_nothing_that_identifies_reaches_the_program_or_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    told, private = tmp_path / "told", tmp_path / "private"
    told.mkdir()
    spy = (
        "import json, os, pathlib, shutil, sys\n"
        f"place = pathlib.Path({str(told)!r})\n"
        "shutil.copy(sys.argv[1], place)\n"
        "parent = pathlib.Path('/proc', str(os.getppid()))\n"
        "heard = [sys.argv, dict(os.environ), os.getcwd(), os.listdir()]\n"
        "heard += [(parent / name).read_bytes().decode() for name in ('cmdline', 'environ')]\n"
        "(place / 'heard').write_text(json.dumps(heard))\n"
        "print(heard)\nsys.exit(1)\n"
    )
    texts = ("PatientName", "PatientID", "PatientComments", "InstitutionName", "SeriesDescription", "ProtocolName")
    source = scan(tmp_path / SENTINEL, **dict.fromkeys(texts, SENTINEL), BodyPartExamined="HEAD")
    monkeypatch.setenv("PATIENT", SENTINEL)
    monkeypatch.setenv("PWD", str(source))
    defacing = program(tmp_path, "zero", before=spy)
    with pytest.raises(CohortError, match="PM204") as caught:
        run(source, tmp_path / "cohort", defacing, jobs=1, secret=private / "secret")
    assert (told / "heard").exists()
    assert (private / "secret.defacing.log").read_text().count("input.nii.gz") >= 1
    assert leaks(told, tmp_path / "cohort", private / "secret.defacing.log") == []
    assert SENTINEL not in str(caught.value) + caught.value.site_detail + "".join(capfd.readouterr())


# ---------------------------------------------------------------------------------------------------------- interrupted


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_import_leaves_no_process_and_no_face(tmp_path: Path, end: signal.Signals) -> None:
    source, cohort = scan(tmp_path / "source", BodyPartExamined="HEAD"), tmp_path / "cohort"
    marks = tmp_path / "pid", tmp_path / "child"
    before = (
        "import os, pathlib, subprocess, sys\n"
        f'sleeper = "import os, pathlib, time; pathlib.Path({str(marks[1])!r}).write_text(str(os.getpid())); "\n'
        "subprocess.Popen([sys.executable, '-c', sleeper + 'time.sleep(3600)'], start_new_session=True)\n"
        f"pathlib.Path({str(marks[0])!r}).write_text(str(os.getpid()))\n"
    )
    config = program(tmp_path, "hangs", before=before)
    script = (
        "import sys\nfrom pathlib import Path\nimport test_import_defacing as t\n"
        "if __name__ == '__main__':\n"
        "    t.run(Path(sys.argv[1]), Path(sys.argv[2]), t.DefacingConfig.model_validate_json(sys.argv[3]), jobs=1)\n"
    )
    here = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    command = [sys.executable, "-c", script, str(source), str(cohort), config.model_dump_json()]
    with subprocess.Popen(command, env=here, stderr=subprocess.DEVNULL, start_new_session=True) as process:
        while not all(mark.exists() and mark.read_text() for mark in marks) and process.poll() is None:
            time.sleep(0.005)
        family = psutil.Process(process.pid).children(recursive=True)
        assert {int(mark.read_text()) for mark in marks} <= {member.pid for member in family}
        process.send_signal(end)
        assert process.wait(PATIENCE_S) != 0
    assert psutil.wait_procs(family, timeout=PATIENCE_S)[1] == []
    assert not (cohort / "images").exists()
    shutil.copy(program(tmp_path, "zero").command[1], config.command[1])
    run(source, cohort, config)
    assert [path.name for path in (cohort / ".import").iterdir() if path.is_dir()] == []
    (row,) = rows(cohort)
    assert sidecar(cohort, row)["defaced"] is True
