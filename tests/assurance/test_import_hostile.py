"""Whatever lies in a folder of DICOM: the import ends, in bounded memory, and every file is accounted for."""

import csv
import json
import os
import shutil
import sqlite3
import sys
import zlib
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pydicom
import pytest
from pydicom.data import get_testdata_files
from pydicom.dataset import Dataset

from parametrium.cohort.phantom.dicom import write_phantom_dicom
from structure_files import many_contours

PARAMETRIUM = str(Path(sys.executable).with_name("parametrium"))
LONGEST_S = 120
MOST_BYTES = 600_000_000
"""Of the command and of each of its workers, as seen every 50 ms; their own modules take a quarter of it."""

NOTHING_TO_IMPORT = 3


@dataclass
class Ended:
    code: int
    answer: dict[str, Any]
    peak: int
    errors: str


def imported(source: Path, cohort: Path) -> Ended:
    """The command as a process, watched until it ends."""
    command = [PARAMETRIUM, "cohort", "import", str(source), str(cohort), "--as", "dicom", "--no-register", "--json"]
    said, peak = cohort.with_name(f"{cohort.name}-said"), 0
    with said.open("wb") as out, said.with_suffix(".err").open("wb") as err:
        process = psutil.Popen(command, stdout=out, stderr=err, env={**os.environ, "OMP_NUM_THREADS": "1"})
        for _ in range(LONGEST_S * 20):
            peak = max([peak, *map(_resident, [process, *_family(process)])])
            try:
                process.wait(0.05)
                break
            except psutil.TimeoutExpired:
                continue
        else:
            process.kill()
    text = said.read_text()
    errors = said.with_suffix(".err").read_text()
    assert "Traceback" not in errors, errors
    return Ended(process.wait(), json.loads(text) if text.strip() else {}, peak, errors)


def _family(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.Error:
        return []


def _resident(process: psutil.Process) -> int:
    try:
        return process.memory_info().rss
    except psutil.Error:
        return 0


def accounted(cohort: Path) -> tuple[int, int, int]:
    """Files found and taken, as the private index has them, and left out, as the cohort's own report has them."""
    with closing(sqlite3.connect(cohort.with_name(f"{cohort.name}.secret.index.sqlite"))) as store:
        (found,) = store.execute("SELECT count(*) FROM files").fetchone()
        (taken,) = store.execute("SELECT count(*) FROM instances").fetchone()
    with (cohort / "problems.csv").open() as table:
        left = sum(int(row["count"]) for row in csv.DictReader(table))
    return found, taken, left


def a_scan(folder: Path) -> list[Path]:
    """A CT of one patient, an image a file, from the feet to the head."""
    write_phantom_dicom(folder, patients=1, modalities=["CT"], seed=2, surroundings=False, structures=False, jobs=1)
    found = [path for path in folder.rglob("*") if path.is_file() and path.name not in ("DICOMDIR", "README.TXT")]
    return sorted(found, key=lambda path: float(pydicom.dcmread(path).ImagePositionPatient[2]))


def changed(source: Path, target: Path, **elements: object) -> Dataset:
    dataset = pydicom.dcmread(source)
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.save_as(target)
    return dataset


def deflated_bomb(source: Path) -> bytes:
    """A small file whose header unfolds to a gigabyte."""
    dataset = pydicom.dcmread(source)
    dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1.99"
    plain = pydicom.filebase.DicomBytesIO()
    pydicom.dcmwrite(plain, dataset, enforce_file_format=True)
    content = plain.getvalue()
    start = 144 + int.from_bytes(content[140:144], "little")
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    piece = b"\x09\x00\x10\x00LO\xfe\xff" + bytes(0xFFFE)
    return content[:start] + b"".join(packer.compress(piece * 100) for _ in range(160)) + packer.flush()


def deep(levels: int) -> bytes:
    """A sequence in a sequence, all of undefined length."""
    return (b"\x40\x00\x30\xa7SQ\0\0\xff\xff\xff\xff" + b"\xfe\xff\x00\xe0\xff\xff\xff\xff") * levels


def hostile(folder: Path, scan: list[Path], rng: np.random.Generator) -> None:
    """Everything that a hand or a chance can do to files, beside a scan that is well."""
    bad = folder / "bad"
    bad.mkdir()
    for n, path in enumerate(scan[:30]):
        for word, series in (("cut", "1.2.5"), ("flip", "1.2.6"), ("large", "1.2.7")):
            size = {"Rows": 65535, "Columns": 65535} if word == "large" else {}
            file = bad / f"{word}{n}"
            own = {"PatientID": word, "StudyInstanceUID": f"{series}.0", "SeriesInstanceUID": series}
            changed(path, file, **own, **size, SOPInstanceUID=f"{series}.{n + 1}")
            content = bytearray(file.read_bytes())
            at = int(rng.integers(len(content)))
            if word == "flip":
                content[at] ^= 1 << int(rng.integers(8))
            file.write_bytes(content[:at] if word == "cut" else content)
    whole = (bad / "flip0").read_bytes()
    for n, (rows, frames) in enumerate([(65535, 1), (65535, 2**31 - 1), (512, 10**9)]):
        uid = f"1.2.3.{n}"
        giant = {"Rows": rows, "Columns": rows, "NumberOfFrames": frames, "SOPInstanceUID": uid}
        changed(scan[0], bad / f"giant{n}", SeriesInstanceUID=uid, **giant)
    changed(scan[0], bad / "climber", PatientID="../../x", PatientName="<script>", SeriesInstanceUID="1.2.4")
    (bad / "bomb").write_bytes(deflated_bomb(scan[0]))
    head = whole[: whole.index(b"\x20\x00\x0d\x00UI")]
    for levels in (900, 20_000):
        (bad / f"deep{levels}").write_bytes(head + deep(levels))
    for name in (b"new\nline", b"<script>alert(1)</script>".replace(b"/", b"_"), b"n" * 255, b"\xff\xfe", b"-rf"):
        Path(os.fsdecode(os.fsencode(bad) + b"/" + name)).write_bytes(whole[:3000])
    os.mkfifo(bad / "pipe")
    (bad / "loop").symlink_to(bad)
    (bad / "self").symlink_to("self")
    (bad / "out").symlink_to("/etc/passwd")
    (bad / "DICOMDIR").write_bytes(Path(get_testdata_files("**/DICOMDIR")[0]).read_bytes())
    junk = folder / "junk"
    junk.mkdir()
    for n in range(2000):
        (junk / f"{n}").write_bytes(rng.bytes(int(rng.integers(0, 300))))


def test_hostile_files_cost_neither_the_scan_beside_them_nor_memory(tmp_path: Path) -> None:
    scan = a_scan(tmp_path / "pacs")
    (tmp_path / "clean.secret").touch(0o600)
    (tmp_path / "clean.secret").write_text("ab" * 32)
    shutil.copy(tmp_path / "clean.secret", tmp_path / "cohort.secret")
    assert imported(tmp_path / "pacs", tmp_path / "clean").code == 0
    hostile(tmp_path / "pacs", scan, np.random.default_rng(11))
    ended = imported(tmp_path / "pacs", tmp_path / "cohort")
    assert ended.code == 0, ended.errors
    assert ended.peak < MOST_BYTES
    found, taken, left = accounted(tmp_path / "cohort")
    names = [name for _, _, files in os.walk(tmp_path / "pacs") for name in files]
    assert found == len(names) - names.count("self")  # a link to itself is no file
    assert found == ended.answer["counts"]["files"]
    assert taken + left == found
    for path in (tmp_path / "clean" / "images").rglob("*"):
        same = tmp_path / "cohort" / path.relative_to(tmp_path / "clean")
        assert path.is_dir() or path.read_bytes() == same.read_bytes()
    assert all(path.name.startswith(("clean", "cohort", "pacs")) for path in tmp_path.iterdir())


def test_a_structure_set_of_fifty_megabytes_becomes_masks_in_bounded_memory(tmp_path: Path) -> None:
    scan = a_scan(tmp_path / "pacs")
    for path in scan:
        changed(path, path, FrameOfReferenceUID="1.2.3")
    image = pydicom.dcmread(scan[0])
    x, y, _ = map(float, image.ImagePositionPatient)
    angles = np.linspace(0, 2 * np.pi, 200, endpoint=False)
    circle = np.stack([x + 100 + 40 * np.cos(angles), y + 100 + 40 * np.sin(angles), 0 * angles], axis=1)
    heights = [pydicom.dcmread(path, stop_before_pixels=True).ImagePositionPatient[2] for path in scan]
    outlines = [circle + np.array([0, 0, float(height)]) for height in heights]
    count = 50_000_000 // (len(outlines) * 200 * 24)
    large = many_contours(tmp_path / "pacs" / "plan", outlines, count, undefined=False)
    dataset = pydicom.dcmread(large)
    for keyword in ("PatientID", "IssuerOfPatientID", "StudyInstanceUID"):
        if keyword in image:
            setattr(dataset, keyword, image[keyword].value)
    dataset.save_as(large)
    assert large.stat().st_size > 45_000_000
    ended = imported(tmp_path / "pacs", tmp_path / "cohort")
    assert ended.code == 0, ended.errors
    assert ended.answer["masks"] == count
    assert ended.peak < MOST_BYTES


@pytest.mark.parametrize("flips", [0, 1])
def test_every_file_of_pydicoms_own_is_read_or_refused_with_a_reason(tmp_path: Path, flips: int) -> None:
    names = sorted(path for path in get_testdata_files() if Path(path).is_file() and "__pycache__" not in path)
    assert len(names) > 150
    rng = np.random.default_rng(5)
    (tmp_path / "pacs").mkdir()
    for n, name in enumerate(names):
        content = bytearray(Path(name).read_bytes())
        for _ in range(flips if content else 0):
            content[rng.integers(len(content))] ^= 1 << int(rng.integers(8))
        (tmp_path / "pacs" / f"{n}").write_bytes(content)
    ended = imported(tmp_path / "pacs", tmp_path / "cohort")
    assert ended.code in (0, NOTHING_TO_IMPORT), ended.errors
    assert ended.peak < MOST_BYTES
    found, taken, left = accounted(tmp_path / "cohort")
    assert found == len(names)
    assert taken + left == found
