"""The index of a source: every file found, nothing outside followed, keys read once and within bounds."""

import os
import shutil
import struct
import zlib
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pydicom
import pytest
from dicom_files import save, uid, volume, write_series
from filelock import FileLock
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ImplicitVRLittleEndian

from parametrium.cohort.dicom.index import ENDED, Index, left_out
from parametrium.cohort.dicom.keys import Keys, read_keys
from parametrium.cohort.dicom.quiet import quiet
from parametrium.cohort.dicom.store import private_store
from parametrium.cohort.dicom.walk import ARCHIVE, LINK, SPECIAL, walk
from parametrium.cohort.problem import Reason
from parametrium.cohort.workers import Workers
from parametrium.errors import CohortError


class Look:
    """What one run over a source saw."""

    def __init__(self, source: Path, secret: Path, *, jobs: int = 1, patient_folders: bool = False) -> None:
        self.steps: list[tuple[int, int]] = []
        with private_store(secret) as store, Workers(jobs) as workers:
            index = Index(store, source, patient_folders=patient_folders)
            index.update(workers, lambda done, total: self.steps.append((done, total)))
            self.series = list(index.series())
            self.paths = {series.uid: index.paths(series) for series in self.series}
            self.left_out = {
                (reason, rule): count
                for reason, rule, count in left_out(store, index.number, patient_folders=patient_folders)
            }

    @property
    def read(self) -> int:
        return self.steps[-1][1]


def _source(folder: Path) -> Path:
    """Two patients, three series, names that say nothing, any nesting."""
    write_series(folder / "x" / "y" / "z", volume(seed=1), patient="PAT1", series="a", shuffle=1)
    write_series(folder, volume((7, 6, 4), seed=2), patient="PAT1", series="b", modality="MR", SeriesNumber=7)
    write_series(folder / "x", volume((7, 6, 3), seed=3), patient="PAT2", series="c", IssuerOfPatientID="H\xf4pital")
    return folder


def test_files_are_grouped_whatever_their_folders(tmp_path: Path) -> None:
    look = Look(_source(tmp_path / "source"), tmp_path / "secret")
    told = [(s.subject, s.uid, s.modality, s.files, s.number, s.study_date, s.kind) for s in look.series]
    assert sorted(told) == sorted(
        [
            ("PAT1", uid("PAT1", "1", "a"), "CT", 5, 0, "2020-02-29", "image"),
            ("PAT1", uid("PAT1", "1", "b"), "MR", 4, 7, "2020-02-29", "image"),
            ("PAT2^^^H\xf4pital", uid("PAT2", "1", "c"), "CT", 3, 0, "2020-02-29", "image"),
        ]
    )
    assert look.left_out == {}
    for series in look.series:
        assert series.pixel_bytes == series.files * 7 * 6 * 2
        for path in look.paths[series.uid]:
            assert pydicom.dcmread(path).SeriesInstanceUID == series.uid


class Killed(Workers):
    """Kills the process that is given a certain file, whatever else it was given with it."""

    def _give(self, index: int, function: Callable[..., Any], task: tuple[Any, ...]) -> None:
        for worker in self._idle:  # a fresh process takes long to start: it is dead before it reads
            worker.end()
        super()._give(index, function, task)
        if any(path.name == "deadly" for path in task[0]):
            self._busy[-1].process.kill()


def test_a_file_that_kills_its_process_takes_no_other_with_it_and_is_tried_again(tmp_path: Path) -> None:
    source = _source(tmp_path / "source")
    alone = Look(source, tmp_path / "other-secret").series
    (source / "deadly").write_bytes(b"\0" * 128 + b"DICM")
    with private_store(tmp_path / "secret") as store, Killed(1) as workers:
        index = Index(store, source)
        index.update(workers, lambda done, total: None)
        found = list(index.series())
        lost = list(left_out(store, index.number, patient_folders=False))
    assert [(s.uid, s.files) for s in found] == [(s.uid, s.files) for s in alone]
    assert lost == [(Reason.FAILED, ENDED, 1)]
    again = Look(source, tmp_path / "secret")
    assert again.read == 1
    assert (Reason.FAILED, ENDED) not in again.left_out


def test_a_second_run_reads_only_what_is_new_or_changed(tmp_path: Path) -> None:
    source, secret = _source(tmp_path / "source"), tmp_path / "secret"
    first = Look(source, secret)
    assert (first.read, first.steps[0]) == (12, (0, 12))
    assert all(earlier <= later for (earlier, _), (later, _) in pairwise(first.steps))
    second = Look(source, secret)
    assert (second.read, second.series) == (0, first.series)
    changed = first.paths[uid("PAT1", "1", "b")][0]
    os.utime(changed, ns=(1, 1))
    write_series(source / "new", volume((7, 6, 2)), patient="PAT3")
    third = Look(source, secret)
    assert third.read == 3
    digests = {series.uid: series.digest for series in first.series}
    different = {series.uid for series in third.series if digests.get(series.uid) != series.digest}
    assert different == {uid("PAT1", "1", "b"), uid("PAT3", "1", "1")}
    changed.unlink()
    assert {s.uid: s.files for s in Look(source, secret).series}[uid("PAT1", "1", "b")] == 3


def test_the_number_of_processes_changes_nothing(tmp_path: Path) -> None:
    source = _source(tmp_path / "source")
    for number in range(40):
        write_series(source / str(number), volume((4, 4, 2)), patient=f"P{number}")
    assert Look(source, tmp_path / "a", jobs=1).series == Look(source, tmp_path / "b", jobs=3).series


def test_an_interrupted_run_is_continued(tmp_path: Path) -> None:
    source, secret = tmp_path / "source", tmp_path / "secret"
    for number in range(80):
        write_series(source, volume((4, 4, 2)), patient=f"P{number}", series=str(number))

    def interrupt(done: int, _total: int) -> None:
        if done:
            raise KeyboardInterrupt

    with private_store(secret) as store, Workers(1) as workers, pytest.raises(KeyboardInterrupt):
        Index(store, source).update(workers, interrupt)
    look = Look(source, secret)
    assert 0 < look.read < 160
    assert sum(series.files for series in look.series) == 160


def test_every_file_is_accounted_for_and_nothing_outside_is_read(tmp_path: Path) -> None:
    source = _source(tmp_path / "source")
    inside = next(source.rglob("b_*"))
    write_series(tmp_path / "outside", volume(), patient="OUTSIDE")
    (source / "link").symlink_to(tmp_path / "outside", target_is_directory=True)
    (source / "file").symlink_to(next((tmp_path / "outside").iterdir()))
    (source / "again").symlink_to(inside)
    (source / "loop").symlink_to(source)
    os.mkfifo(source / "pipe")
    (source / "export.ZIP").write_bytes(b"PK\3\4")
    (source / "README.txt").write_text("no image")
    (source / "empty").touch()
    (source / "cut").write_bytes(inside.read_bytes()[:300])
    save(_directory(inside), source / "DICOMDIR")
    shutil.copy(inside, os.fsdecode(os.fsencode(source) + b"/\xff\xfe name"))
    write_series(source / "nobody", volume((7, 6, 2)), patient="", series="n")
    look = Look(source, tmp_path / "secret")
    assert look.left_out == {
        (Reason.UNREADABLE, LINK): 2,
        (Reason.NOT_DICOM, SPECIAL): 1,
        (Reason.NOT_DICOM, ARCHIVE): 1,
        (Reason.NOT_DICOM, ""): 2,
        (Reason.UNREADABLE, ""): 1,
        (Reason.NOT_AN_IMAGE, ""): 1,
        (Reason.NO_PATIENT, ""): 2,
    }
    files = sum(not entry.is_dir() for entry in source.rglob("*") if not entry.is_symlink())
    assert sum(s.files for s in look.series) + sum(look.left_out.values()) == files + 2  # two links lead out
    assert {s.subject for s in look.series} == {"PAT1", "PAT2^^^H\xf4pital"}


def _directory(file: Path) -> pydicom.Dataset:
    directory = pydicom.dcmread(file)
    directory.SOPClassUID = "1.2.840.10008.1.3.10"
    return directory


def test_a_missing_patient_id_may_be_taken_from_the_folder(tmp_path: Path) -> None:
    source = tmp_path / "source"
    write_series(source / "Mrs A" / "deep" / "er", volume((7, 6, 2)), patient="", series="s")
    write_series(source / "Mrs B", volume((7, 6, 3)), patient="", series="s")
    write_series(source, volume((7, 6, 4)), patient="", series="s")
    write_series(source / "folder", volume((7, 6, 2)), patient="PAT1")
    named = Look(source, tmp_path / "secret", patient_folders=True)
    assert [(s.subject, s.files) for s in named.series] == [("Mrs A", 2), ("Mrs B", 3), ("PAT1", 2)]
    assert named.left_out == {(Reason.NO_PATIENT, ""): 4}
    assert Look(source, tmp_path / "secret").left_out == {(Reason.NO_PATIENT, ""): 9}


def test_the_store_is_private_and_used_by_one_at_a_time(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    Look(_source(tmp_path / "source"), secret)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["secret.index.sqlite", "secret.lock", "source"]
    assert all(path.stat().st_mode & 0o077 == 0 for path in tmp_path.glob("secret.*"))
    with FileLock(tmp_path / "secret.lock"), pytest.raises(CohortError, match="another import"), private_store(secret):
        pass
    (tmp_path / "secret.index.sqlite").write_bytes(b"SENTINEL" * 1000)
    with pytest.raises(CohortError, match="PM204") as caught, private_store(secret):
        pass
    assert "SENTINEL" not in str(caught.value)


@pytest.mark.parametrize("source", ["absent", "file"])
def test_a_source_that_is_no_folder_is_refused(tmp_path: Path, source: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CohortError, match="PM204 the source is not a folder"):
        list(walk(tmp_path / source))


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian])
def test_every_transfer_syntax_gives_the_same_keys(tmp_path: Path, syntax: str) -> None:
    if syntax == DeflatedExplicitVRLittleEndian:
        for path in write_series(tmp_path / "other", volume()):
            _deflate(path)
    else:
        write_series(tmp_path / "other", volume(), syntax=syntax)
    write_series(tmp_path / "plain", volume())
    plain, other = ([read_keys(path) for path in sorted((tmp_path / x).iterdir())] for x in ("plain", "other"))
    assert plain == other
    assert all(isinstance(keys, Keys) for keys in plain)


def _deflate(path: Path) -> None:
    data = path.read_bytes()
    start = 144 + struct.unpack("<L", data[140:144])[0]
    meta = data[:start].replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.1.99")
    meta = meta[:140] + struct.pack("<L", len(meta) - 144) + meta[144:]
    at = meta.index(b"1.2.840.10008.1.2.1.99") - 2
    meta = meta[:at] + struct.pack("<H", 22) + meta[at + 2 :]
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    path.write_bytes(meta + packer.compress(data[start:]) + packer.flush())


def test_a_file_without_preamble_is_read_and_text_is_not(tmp_path: Path) -> None:
    (path, *_) = write_series(tmp_path, volume())
    expected = read_keys(path)
    path.write_bytes(path.read_bytes()[132:])
    assert read_keys(path) == expected
    path.write_bytes(b"\x08\x00 is how this text begins, and it goes on for a while, so that it could be " * 4)
    assert read_keys(path) is Reason.NOT_DICOM


def test_keys_agree_with_a_full_reading_of_pydicoms_own_files() -> None:
    keyed = 0
    for path in filter(Path.is_file, (Path(pydicom.__file__).parent / "data").rglob("*")):
        keys = read_keys(path)
        if isinstance(keys, Keys):
            with quiet():
                full = pydicom.dcmread(path, force=True)
                assert keys.series == str(full.SeriesInstanceUID)
                assert keys.study == str(full.get("StudyInstanceUID", ""))
                assert keys.instance == str(full.get("SOPInstanceUID", ""))
                assert keys.patient.partition("^^^")[0] == str(full.get("PatientID") or "").strip()
                assert keys.modality == str(full.get("Modality") or "")
            keyed += 1
    assert keyed > 100


def test_a_header_that_never_ends_is_read_to_a_bound(tmp_path: Path) -> None:
    (path, *_) = write_series(tmp_path, volume())
    data = path.read_bytes()
    head = 144 + struct.unpack("<L", data[140:144])[0]
    path.write_bytes(data[:head] + struct.pack("<HH2sHL", 9, 0x1001, b"UN", 0, 2**31 - 2))
    os.truncate(path, 2**33)  # takes no space on the disk
    assert read_keys(path) is Reason.UNREADABLE


def test_nested_items_and_a_deflated_bomb_end_soon(tmp_path: Path) -> None:
    (path, *_) = write_series(tmp_path, volume())
    data = path.read_bytes()
    head = 144 + struct.unpack("<L", data[140:144])[0]
    sequence = struct.pack("<HH2sHL", 8, 0x1140, b"SQ", 0, 2**32 - 1) + struct.pack("<HHL", 0xFFFE, 0xE000, 2**32 - 1)
    path.write_bytes(data[:head] + sequence * 50_000)
    assert read_keys(path) is Reason.UNREADABLE
    path.write_bytes(data[:head] + b"\0" * 2**24)
    _deflate(path)
    assert path.stat().st_size < 2**17
    assert read_keys(path) is Reason.UNREADABLE


@settings(max_examples=150)
@given(cut=st.integers(0, 900), flips=st.lists(st.tuples(st.integers(128, 899), st.integers(0, 7)), max_size=20))
def test_damaged_files_give_keys_or_a_reason(
    tmp_path_factory: pytest.TempPathFactory, cut: int, flips: list[tuple[int, int]]
) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    data = bytearray(write_series(folder / "source", volume((4, 4, 1)))[0].read_bytes())
    for place, bit in flips:
        data[place % len(data)] ^= 1 << bit
    path = folder / "damaged"
    path.write_bytes(data[: len(data) - cut % len(data)])
    assert isinstance(read_keys(path), Keys | Reason)
