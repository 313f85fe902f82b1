"""Copies of one object in a series: the whole one is used, whatever the order, and every file is accounted for."""

import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from dicom_files import straight, uid, volume, write_enhanced, write_series
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from parametrium.cohort.dicom import voxels
from parametrium.cohort.dicom.convert import convert_series
from parametrium.cohort.dicom.facts import Choice, Converted, Facts, LeftOut
from parametrium.cohort.dicom.pixel_layout import holds_all_pixels
from parametrium.cohort.problem import Reason

SYNTAXES = [
    ExplicitVRLittleEndian,
    DeflatedExplicitVRLittleEndian,
    RLELossless,
    JPEGLSLossless,
    JPEG2000Lossless,
]


def take_all(facts: Facts) -> Choice:
    return Choice(facts.modality, "facts: test")


def convert(files: list[Path], staging: Path) -> list[Converted | LeftOut]:
    staging.mkdir(exist_ok=True)
    results = convert_series(files, take_all, staging)
    assert sum(result.files for result in results) == len(files)
    return results


def left(results: list[Converted | LeftOut]) -> dict[Reason, int]:
    counts: dict[Reason, int] = {}
    for result in results:
        if isinstance(result, LeftOut):
            counts[result.reason] = counts.get(result.reason, 0) + result.files
    return counts


def values(results: list[Converted | LeftOut]) -> list[Any]:
    return [nibabel.load(result.file).get_fdata() for result in results if isinstance(result, Converted)]


def copy(file: Path, folder: Path, *, cut: float | None = None, damage: bool = False) -> Path:
    """The file once more: as it is, cut off at a share of its pixel data, or with their middle overwritten."""
    folder.mkdir(exist_ok=True)
    data = bytearray(file.read_bytes())
    start = len(data) if "PixelData" not in dcmread(file) else data.rindex(b"\xe0\x7f\x10\x00")
    if cut is not None:
        data = data[: start + int(cut * (len(data) - start))]
    if damage:
        middle = start + (len(data) - start) // 2
        data[middle - 40 : middle + 40] = b"\xff" * 80
    (folder / file.name).write_bytes(data)
    return folder / file.name


@pytest.mark.parametrize("damaged_first", [True, False])
@pytest.mark.parametrize("syntax", SYNTAXES)
def test_the_whole_copy_of_a_slice_wins_over_one_that_was_cut_off(
    tmp_path: Path, syntax: str, damaged_first: bool
) -> None:
    stored = volume((32, 32, 5))
    files = write_series(tmp_path / "in", stored, syntax=syntax)
    if syntax == DeflatedExplicitVRLittleEndian:
        bad = [tmp_path / "bad"]
        bad[0].write_bytes(files[2].read_bytes()[:-100])
    else:
        bad = [copy(file, tmp_path / "bad", cut=0.6) for file in files[1:4]]
    results = convert(bad + files if damaged_first else files + bad, tmp_path / "out")
    np.testing.assert_array_equal(values(results)[0], values(convert(files, tmp_path / "clean"))[0])
    assert left(results) == {Reason.DUPLICATE: len(bad)}


@settings(max_examples=30)
@given(share=st.floats(0.0, 0.999), slice_=st.integers(0, 4))
def test_a_copy_cut_anywhere_costs_nothing(tmp_path_factory: pytest.TempPathFactory, share: float, slice_: int) -> None:
    folder = tmp_path_factory.mktemp("series")
    stored = volume()
    files = write_series(folder / "in", stored)
    data = files[slice_].read_bytes()
    bad = folder / "a"
    bad.write_bytes(data[: int(share * len(data))])
    results = convert([bad, *files], folder / "out")
    assert [array.shape for array in values(results)] == [stored.shape]
    assert sum(left(results).values()) == 1
    assert Reason.UNDECODABLE not in left(results)


@pytest.mark.parametrize("syntax", [JPEGLSLossless, JPEG2000Lossless])
def test_where_the_first_copy_cannot_be_decoded_another_is(tmp_path: Path, syntax: str) -> None:
    files = write_series(tmp_path / "in", volume((32, 32, 4)), syntax=syntax)
    bad = copy(files[1], tmp_path / "bad", damage=True)
    data = bytearray(bad.read_bytes())
    start = data.rindex(b"\xff\x4f\xff\x51" if syntax == JPEG2000Lossless else b"\xff\xd8\xff")
    data[start + 4 : start + 60] = b"\0" * 56
    bad.write_bytes(data)
    assert holds_all_pixels(bad)
    assert left(convert([bad, files[0], *files[2:]], tmp_path / "alone")) == {Reason.UNDECODABLE: 4}
    results = convert([bad, *files], tmp_path / "out")
    np.testing.assert_array_equal(values(results)[0], values(convert(files, tmp_path / "clean"))[0])
    assert left(results) == {Reason.DUPLICATE: 1}


def test_frames_that_one_copy_lacks_come_from_the_other(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Both copies of a multi-frame file are damaged, each in another frame."""
    caplog.set_level(logging.DEBUG)
    stored = np.stack([volume((16, 12, 6), low=0)])
    file = write_enhanced(tmp_path / "in", stored, steps=straight(), order=[(0, k) for k in range(6)])
    dataset = dcmread(file)
    dataset.compress(RLELossless)
    dataset.save_as(file)
    data = file.read_bytes()
    marks = [place for place in range(len(data)) if data[place : place + 4] == b"\xfe\xff\x00\xe0"][-6:]
    copies = []
    for name, frame in (("a", 1), ("b", 4)):
        broken = bytearray(data)
        broken[marks[frame] + 8 : marks[frame] + 72] = b"\xff" * 64  # the frame's own header
        copies.append(tmp_path / name)
        copies[-1].write_bytes(broken)
    caplog.clear()
    assert left(convert(copies[:1], tmp_path / "one")) == {Reason.UNDECODABLE: 1}
    assert not caplog.records  # what a decoder says of a file is not for a log
    for number, files in enumerate((copies, copies[::-1])):
        results = convert(files, tmp_path / f"out{number}")
        np.testing.assert_array_equal(values(results)[0], values(convert([file], tmp_path / "clean"))[0])
        assert left(results) == {Reason.DUPLICATE: 1}


def test_copies_that_are_all_cut_off_are_undecodable_and_counted(tmp_path: Path) -> None:
    files = write_series(tmp_path / "in", volume())
    bad = [copy(files[2], tmp_path / name, cut=0.5) for name in ("a", "b")]
    results = convert([*bad, *files[:2], *files[3:]], tmp_path / "out")
    assert left(results) == {Reason.UNDECODABLE: 5, Reason.DUPLICATE: 1}


def test_a_copy_that_lies_elsewhere_does_not_stand_in(tmp_path: Path) -> None:
    """One UID and two places: which is right nobody can tell, so nothing is put where it may not belong."""
    files = write_series(tmp_path / "in", volume())
    other = tmp_path / "other"
    shutil.copy(files[2], other)
    dataset = dcmread(other)
    dataset.ImagePositionPatient = [0, 0, 0]
    dataset.save_as(other)
    damaged = write_series(tmp_path / "in", volume(), edit=lambda ds, k: k == 2 and setattr(ds, "HighBit", 99))
    results = convert([*damaged, other], tmp_path / "out")
    assert not values(results)


def test_no_file_is_decoded_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Path] = []
    frames = voxels._frames

    def counted(path: Path, *rest: Any) -> Iterator[Any]:
        opened.append(path)
        return frames(path, *rest)

    monkeypatch.setattr(voxels, "_frames", counted)
    files = write_series(tmp_path / "in", volume())
    bad = [copy(file, tmp_path / "bad", cut=0.5) for file in files]
    convert([*bad, *files], tmp_path / "out")
    assert sorted(opened) == sorted(files)


def test_files_under_other_names_in_another_order_give_the_same(tmp_path: Path) -> None:
    stored = volume((12, 12, 4))
    files = write_series(tmp_path / "in", stored)
    bad = [copy(files[k], tmp_path / f"bad{k}", cut=0.1 * (k + 1)) for k in range(4)]
    again = write_series(tmp_path / "again", stored, edit=lambda ds, k: setattr(ds, "SOPInstanceUID", uid("n", str(k))))
    everything = [*bad, *files, *again]
    first = values(convert(everything, tmp_path / "out"))
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(len(everything))
        results = convert([everything[n] for n in order], tmp_path / f"out{seed}")
        np.testing.assert_array_equal(values(results), first)
        assert left(results) == {Reason.DUPLICATE: 8}
