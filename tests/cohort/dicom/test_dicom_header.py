"""One file's header: values by the standard or by the vendor, and nothing that a damaged file can do."""

import struct
import time
import tracemalloc
import zlib
from datetime import date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from dicom_files import item, volume, write_enhanced, write_series
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.data import get_testdata_files
from pydicom.dataset import Dataset
from pydicom.filewriter import dcmwrite
from pydicom.sequence import Sequence as Items
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, JPEG2000Lossless

from parametrium.cohort.dicom.convert import convert_series
from parametrium.cohort.dicom.elements import as_date, as_time
from parametrium.cohort.dicom.facts import Choice, Converted, LeftOut
from parametrium.cohort.dicom.header import Instance, read_instance
from parametrium.cohort.problem import Reason


def one(folder: Path, **elements: Any) -> Path:
    """A file of one MR plane."""
    return write_series(folder, volume((5, 4, 1)), modality="MR", **elements)[0]


def instance(path: Path) -> Instance:
    answer = read_instance(path)
    assert isinstance(answer, Instance)
    return answer


def test_identity_and_facts(tmp_path: Path) -> None:
    elements = {"ContrastBolusAgent": "Gadobutrol", "InversionTime": 150, "BurnedInAnnotation": "NO"}
    path = one(tmp_path, BodyPartExamined="HEAD", **elements)
    found = instance(path)
    dataset = pydicom.dcmread(path)
    assert found.identity.patient == "PAT1"
    assert found.identity.study_date == date(2020, 2, 29)
    assert found.identity.series == dataset.SeriesInstanceUID
    assert found.identity.instance == dataset.SOPInstanceUID
    facts = found.facts
    assert (facts.modality, facts.manufacturer, facts.body_part) == ("MR", "ACME", "HEAD")
    assert (facts.repetition_time_ms, facts.echo_time_ms, facts.inversion_time_ms) == (500.0, 10.0, 150.0)
    assert facts.contrast_agent
    assert not facts.burned_in
    assert facts.b_value is None
    assert facts.scanning_sequence == ("SE",)
    assert facts.image_type == ("ORIGINAL", "PRIMARY", "AXIAL")
    assert found.uptake is None
    assert not found.lookup


PRIVATE = [
    (0x0019, "SIEMENS MR HEADER", 0x0C, "IS", "800", 800.0),
    (0x0043, "GEMS_PARM_01", 0x39, "IS", [1_000_000_800, 8, 0, 0], 800.0),
    (0x0043, "GEMS_PARM_01", 0x39, "IS", [800, 8, 0, 0], 800.0),
    (0x2001, "Philips Imaging DD 001", 0x03, "FL", 800.0, 800.0),
    (0x0019, "SIEMENS MR HEADER", 0x0C, "UN", b"800 ", 800.0),
]


@pytest.mark.parametrize(("group", "creator", "element", "vr", "value", "expected"), PRIVATE)
@pytest.mark.parametrize("others", [0, 2])
def test_b_values_of_vendors_in_whichever_block(
    tmp_path: Path, group: int, creator: str, element: int, vr: str, value: Any, expected: float, others: int
) -> None:
    def edit(dataset: Dataset, _k: int) -> None:
        for number in range(others):
            dataset.private_block(group, f"OTHER {number}", create=True).add_new(element, "LO", "7")
        dataset.private_block(group, creator, create=True).add_new(element, vr, value)

    assert instance(one(tmp_path, edit=edit)).facts.b_value == expected


def test_the_standard_b_value_comes_before_the_vendors(tmp_path: Path) -> None:
    def edit(dataset: Dataset, _k: int) -> None:
        dataset.private_block(0x0019, "SIEMENS MR HEADER", create=True).add_new(0x0C, "IS", "1")

    assert instance(one(tmp_path, edit=edit, DiffusionBValue=600.0)).facts.b_value == 600.0


@pytest.mark.parametrize("value", ["nan", "inf", "1e999", "abc", "1\\2", ""])
def test_a_broken_number_is_no_number(tmp_path: Path, value: str) -> None:
    path = one(tmp_path, EchoTime="98765")
    path.write_bytes(path.read_bytes().replace(b"98765 ", value.encode().ljust(6)))
    expected = 1.0 if value == "1\\2" else None
    assert instance(path).facts.echo_time_ms == expected


@pytest.mark.parametrize(
    "orientation",
    [[1, 0, 0, 1, 0, 0], [0, 0, 0, 0, 1, 0], [2, 0, 0, 0, 2, 0], [1, 0, 0], ["nan", 0, 0, 0, 1, 0]],
)
def test_directions_that_are_none_give_no_place(tmp_path: Path, orientation: list[Any]) -> None:
    path = one(tmp_path)
    dataset = pydicom.dcmread(path)
    text = "\\".join(map(str, orientation))
    dataset.add_new(0x00200037, "DS", [0] * 6)
    dataset._dict[pydicom.tag.Tag(0x00200037)] = pydicom.dataelem.RawDataElement(
        pydicom.tag.Tag(0x00200037), "DS", len(text), text.encode() + b" " * (len(text) % 2), 0, False, True
    )
    dcmwrite(path, dataset)
    assert instance(path).slices == ()


def test_files_without_preamble_or_meta_information(tmp_path: Path) -> None:
    for syntax in ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", ExplicitVRBigEndian):
        path = one(tmp_path / syntax, syntax=syntax)
        expected = instance(path).slices[0].position
        data = path.read_bytes()
        path.write_bytes(data[132:])  # meta information, no preamble
        assert instance(path).slices[0].position == expected
        length = struct.unpack("<L", data[140:144])[0]
        path.write_bytes(data[144 + length :])  # neither
        assert instance(path).slices[0].position == expected


@pytest.mark.parametrize(
    "data", [b"", b"DICM", b"\x08\x00", b"x" * 1000, b"\0" * 128 + b"DICM", b"\x08\0\x05\0" + b"\xff" * 99]
)
def test_other_files_are_no_dicom(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "file").write_bytes(data)
    answer = read_instance(tmp_path / "file")
    assert isinstance(answer, LeftOut)
    assert answer.reason in (Reason.NOT_DICOM, Reason.UNREADABLE)


def test_absent_files_and_folders(tmp_path: Path) -> None:
    assert read_instance(tmp_path / "absent") == LeftOut(None, Reason.UNREADABLE)
    assert read_instance(tmp_path) == LeftOut(None, Reason.NOT_DICOM)


def test_a_structure_set_is_read_and_has_no_planes(tmp_path: Path) -> None:
    found = instance(one(tmp_path, Modality="RTSTRUCT"))
    assert (found.facts.modality, found.slices) == ("RTSTRUCT", ())


def test_frames_and_their_places(tmp_path: Path) -> None:
    def frame(group: Dataset, n: int, k: int) -> None:
        group.MREchoSequence = Items([item(EffectiveEchoTime=10.0 + n)])
        group.FrameContentSequence[0].TemporalPositionIndex = n + 1

    found = instance(write_enhanced(tmp_path / "e", np.stack([volume()] * 2), frame=frame))
    assert [plane.frame for plane in found.slices] == list(range(10))
    assert [traits.echo_time_ms for traits in found.traits] == [10.0] * 5 + [11.0] * 5
    assert [traits.temporal for traits in found.traits] == [1] * 5 + [2] * 5
    assert found.slices[3].position == pytest.approx((-100.0, -80.0, 49.0))


def test_fewer_functional_groups_than_frames_give_no_planes(tmp_path: Path) -> None:
    path = write_enhanced(tmp_path / "e", np.stack([volume()]), NumberOfFrames=7)
    assert instance(path).slices == ()


def test_dates_and_times() -> None:
    assert as_date("20240229") == as_date("2024.02.29") == date(2024, 2, 29)
    assert [as_date(text) for text in ("20230229", "2023", "", "abcdefgh")] == [None] * 4
    texts = ("101112.345678", "10:11:12", "1011", "10", "", "256199", "x")
    hours = [as_time(text) for text in texts]
    assert [hour.isoformat() if hour else None for hour in hours] == [
        *("10:11:12.345678", "10:11:12", "10:11:00", "10:00:00"),
        *(None, None, None),
    ]


def test_a_tracer_is_read(tmp_path: Path) -> None:
    def edit(dataset: Dataset, _k: int) -> None:
        tracer = {"RadionuclideTotalDose": "3.5e8", "RadiopharmaceuticalStartDateTime": "20200229091112.00+0100"}
        dataset.RadiopharmaceuticalInformationSequence = Items([item(**tracer)])

    path = write_series(tmp_path, volume((5, 4, 1)), modality="PT", edit=edit, PatientWeight="61.5")[0]
    uptake = instance(path).uptake
    assert uptake is not None
    assert (uptake.weight_kg, uptake.dose_bq, uptake.injected) == (61.5, 3.5e8, datetime(2020, 2, 29, 9, 11, 12))


# What a hostile file may do: cost a bounded time and memory, and become a reason.


def bounded(path: Path, staging: Path, megabytes: float, seconds: float = 30.0) -> list[Converted | LeftOut]:
    staging.mkdir()
    tracemalloc.start()
    started = time.monotonic()
    try:
        results = convert_series([path], lambda facts: Choice("MR", "facts: test"), staging)
        peak = tracemalloc.get_traced_memory()[1] / 2**20
    finally:
        tracemalloc.stop()
    assert time.monotonic() - started < seconds
    assert peak < megabytes
    assert sum(result.files for result in results) == 1
    return results


def nested(depth: int) -> bytes:
    """A sequence of undefined length in an item of undefined length, and so on."""
    sequence = struct.pack("<HH2sHL", 0x0008, 0x1140, b"SQ", 0, 0xFFFFFFFF)
    return (sequence + struct.pack("<HHL", 0xFFFE, 0xE000, 0xFFFFFFFF)) * depth


def with_extra(path: Path, extra: bytes) -> Path:
    """The extra bytes as the first elements after the meta information."""
    data = path.read_bytes()
    end = 144 + struct.unpack("<L", data[140:144])[0]
    path.write_bytes(data[:end] + extra + data[end:])
    return path


def test_sequences_nested_without_end(tmp_path: Path) -> None:
    path = with_extra(one(tmp_path / "in"), nested(50_000))
    (result,) = bounded(path, tmp_path / "out", megabytes=100)
    assert isinstance(result, LeftOut)


@pytest.mark.parametrize("tag", [(0x0008, 0x1140), (0x5200, 0x9230)])  # skipped, and looked at
def test_more_empty_items_than_any_header_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tag: tuple[int, int]
) -> None:
    monkeypatch.setattr("parametrium.cohort.dicom.elements._MAXIMUM_READS", 20_000)
    items = struct.pack("<HHL", 0xFFFE, 0xE000, 0) * 1_000_000
    extra = b"".join(struct.pack("<HH2sHL", *tag, b"SQ", 0, size) + items for size in (len(items), 0xFFFFFFFF))
    path = with_extra(one(tmp_path / "in"), extra)
    (result,) = bounded(path, tmp_path / "out", megabytes=60)
    assert isinstance(result, LeftOut)
    assert result.reason == Reason.UNREADABLE


def test_a_length_of_four_gigabytes(tmp_path: Path) -> None:
    extra = struct.pack("<HH2sHL", 0x0008, 0x0008, b"UT", 0, 0xFFFFFFF0)
    bounded(with_extra(one(tmp_path / "in"), extra), tmp_path / "out", megabytes=200)


def test_a_deflated_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("parametrium.cohort.dicom.part10.MAXIMUM_INFLATED", 2**22)
    path = one(tmp_path / "in", syntax=DeflatedExplicitVRLittleEndian)
    data = path.read_bytes()
    end = 144 + struct.unpack("<L", data[140:144])[0]
    compressor = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    path.write_bytes(data[:end] + compressor.compress(b"\0" * 2**28) + compressor.flush())
    (result,) = bounded(path, tmp_path / "out", megabytes=50)
    assert result == LeftOut(None, Reason.UNREADABLE)


@pytest.mark.parametrize("change", [{"Rows": 65535, "Columns": 65535}, {"Rows": 65535}, {"BitsAllocated": 32}])
def test_dimensions_that_the_pixel_data_do_not_hold(tmp_path: Path, change: dict[str, int]) -> None:
    files = write_series(tmp_path / "in", volume((5, 4, 3)), **change)
    (tmp_path / "out").mkdir()
    tracemalloc.start()
    results = convert_series(files, lambda facts: Choice("CT", "facts: test"), tmp_path / "out")
    peak = tracemalloc.get_traced_memory()[1] / 2**20
    tracemalloc.stop()
    assert peak < 20
    ((reason, count),) = {(result.reason, result.files) for result in results if isinstance(result, LeftOut)}
    assert reason in (Reason.UNDECODABLE, Reason.TOO_LARGE, Reason.IMPLAUSIBLE_GEOMETRY)
    assert count == 3


def test_a_compressed_frame_that_claims_another_size_is_not_decoded(tmp_path: Path) -> None:
    files = write_series(tmp_path / "in", volume((40, 36, 3)), syntax=JPEG2000Lossless)
    for file in files:
        data = file.read_bytes()
        at = data.index(b"\xff\x4f\xff\x51") + 8  # SIZ: the picture's width and height
        file.write_bytes(data[:at] + struct.pack(">LL", 60_000, 60_000) + data[at + 8 :])
    (tmp_path / "out").mkdir()
    (result,) = convert_series(files, lambda facts: Choice("CT", "facts: test"), tmp_path / "out")
    assert isinstance(result, LeftOut)
    assert (result.reason, result.files) == (Reason.UNDECODABLE, 3)


@settings(max_examples=60)
@given(seed=st.integers(0, 2**32 - 1))
def test_truncated_and_flipped_files_never_raise(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    rng = np.random.default_rng(seed)
    folder = tmp_path_factory.mktemp("bad")
    files = write_series(folder / "in", volume((6, 5, 3), seed=seed % 7))
    files.append(write_enhanced(folder / "in" / "e", np.stack([volume((6, 5, 3))])))
    for file in files:
        data = bytearray(file.read_bytes())
        for place in rng.integers(0, len(data), rng.integers(0, 12)):
            data[place] ^= 1 << rng.integers(0, 8)
        file.write_bytes(data[: rng.integers(0, len(data))] if rng.random() < 0.3 else data)
    (folder / "out").mkdir()
    results = convert_series(files, lambda facts: Choice("MR", "facts: test"), folder / "out")
    assert sum(result.files for result in results) == len(files)


def test_every_test_file_of_pydicom_is_read_or_refused(tmp_path: Path) -> None:
    paths = [Path(path) for path in get_testdata_files() if Path(path).is_file()]
    assert len(paths) > 50
    kinds = {Instance: 0, LeftOut: 0}
    for number, path in enumerate(paths):
        kinds[type(read_instance(path))] += 1
        staging = tmp_path / str(number)
        staging.mkdir()
        results = convert_series([path], lambda facts: Choice("MR", "facts: test"), staging)
        assert sum(result.files for result in results) == 1
    assert all(kinds.values())
