"""The few header values by which files are grouped, read fast and within bounds."""

import io
import zlib
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path
from typing import Any

from pydicom.filereader import read_dataset, read_partial

from parametrium.cohort.dicom.quiet import quiet
from parametrium.cohort.problem import Reason

_FIRST_READ = 2**16  # holds the keys of nearly every file
_MOST_READ = 2**22  # no honest header has its keys later
_LARGEST_RATIO = 20  # of decoded to stored pixels, for the estimate of space

_PADDING = "\0 \t\r\n"
_DIRECTORY = "1.2.840.10008.1.3.10"  # DICOMDIR
_DEFLATED = b"1.2.840.10008.1.2.1.99"
_PREAMBLE = 128  # bytes, before the mark
_META_AT_MOST = 1024  # bytes in which the transfer syntax stands

_SOP_CLASS, _INSTANCE, _STUDY_DATE, _MODALITY = 0x00080016, 0x00080018, 0x00080020, 0x00080060
_OTHER_DATES = (0x00080021, 0x00080022, 0x00080023)  # of series, acquisition, content
_PATIENT, _ISSUER = 0x00100020, 0x00100021
_STUDY, _SERIES, _NUMBER, _FRAME_OF_REFERENCE = 0x0020000D, 0x0020000E, 0x00200011, 0x00200052
_SAMPLES, _FRAMES, _ROWS, _COLUMNS, _BITS = 0x00280002, 0x00280008, 0x00280010, 0x00280011, 0x00280100
_WANTED = [
    *(_SOP_CLASS, _INSTANCE, _STUDY_DATE, *_OTHER_DATES, _MODALITY, _PATIENT, _ISSUER),
    *(_STUDY, _SERIES, _NUMBER, _FRAME_OF_REFERENCE, _SAMPLES, _FRAMES, _ROWS, _COLUMNS, _BITS),
]


@dataclass(frozen=True, slots=True)
class Keys:
    """What a file is grouped and counted by; texts as in the header, empty where absent. Stays in the private index.

    Attributes:
        patient: Patient ID; with its issuer, where one is named, as HL7 writes both: ``ID^^^ISSUER``.
        study: Study Instance UID.
        series: Series Instance UID.
        instance: SOP Instance UID.
        sop_class: SOP Class UID.
        modality: (0008,0060).
        frame_of_reference: Frame of Reference UID.
        study_date: or else the date of series, acquisition or content; None where none is a date.
        number: Series Number; 0 where absent.
        pixel_bytes: of its voxels when decoded, an estimate.
    """

    patient: str
    study: str
    series: str
    instance: str
    sop_class: str
    modality: str
    frame_of_reference: str
    study_date: date | None
    number: int
    pixel_bytes: int


def read_keys(path: Path) -> Keys | Reason:
    """Keys of one file, or why it has none; reads 4 MiB at the most, and never a pixel on purpose."""
    try:
        with quiet(), path.open("rb") as stream:
            start = stream.read(_FIRST_READ)
            if not _looks_like_dicom(start):
                return Reason.NOT_DICOM
            header, complete = _parse(start)
            if not complete and len(start) == _FIRST_READ:
                header, complete = _parse(start + stream.read(_MOST_READ - _FIRST_READ))
            return _keys(header, stored=path.stat().st_size, marked=_has_mark(start))
    except Exception:  # a damaged header makes pydicom raise nearly anything; each means the same here
        return Reason.UNREADABLE


def _has_mark(start: bytes) -> bool:
    return start[_PREAMBLE : _PREAMBLE + 4] == b"DICM"


def _looks_like_dicom(start: bytes) -> bool:
    """The mark of part 10, or, as old archives write files, a first element of group 2 or 8 without preamble."""
    return _has_mark(start) or (len(start) >= _PREAMBLE and start[:2] in (b"\x02\x00", b"\x08\x00", b"\x00\x08"))


def _parse(data: bytes) -> tuple[Any, bool]:
    """Wanted elements, and whether all that may hold them has been seen."""
    complete = False

    def beyond(tag: int, _representation: object, _length: int) -> bool:
        nonlocal complete
        complete = tag.real > _BITS  # as a plain integer: pydicom's own comparison is ten times slower
        return complete

    try:
        if _DEFLATED in data[:_META_AT_MOST]:
            inflated = _inflate(data)
            return read_dataset(io.BytesIO(inflated), False, True, stop_when=beyond, specific_tags=_WANTED), complete
        return read_partial(io.BytesIO(data), stop_when=beyond, force=True, specific_tags=_WANTED), complete
    except Exception:
        if len(data) != _FIRST_READ:
            raise
        return None, False  # perhaps cut in the middle of a value: the longer read decides


def _inflate(data: bytes) -> bytes:
    """The data set behind the meta information, no more of it than is ever looked at (PS3.5 A.5)."""
    length = int.from_bytes(data[_PREAMBLE + 12 : _PREAMBLE + 16], "little")
    return zlib.decompressobj(-zlib.MAX_WBITS).decompress(data[_PREAMBLE + 16 + length :], _MOST_READ)


def _keys(header: Any, *, stored: int, marked: bool) -> Keys | Reason:
    meta = getattr(header, "file_meta", {})
    kind = _text(header, _SOP_CLASS) or _text(meta, 0x00020002)
    if kind == _DIRECTORY:
        return Reason.NOT_AN_IMAGE
    series = _text(header, _SERIES)
    if not kind or not series:
        return Reason.UNREADABLE if marked else Reason.NOT_DICOM
    patient, issuer = _encoded(header, _PATIENT), _encoded(header, _ISSUER)
    dates = (_date(_text(header, tag)) for tag in (_STUDY_DATE, *_OTHER_DATES))
    return Keys(
        patient=f"{patient}^^^{issuer}" if patient and issuer else patient,
        study=_text(header, _STUDY),
        series=series,
        instance=_text(header, _INSTANCE),
        sop_class=kind,
        modality=_text(header, _MODALITY).upper(),
        frame_of_reference=_text(header, _FRAME_OF_REFERENCE),
        study_date=next((day for day in dates if day), None),
        number=_whole(_text(header, _NUMBER), 0),
        pixel_bytes=min(_pixel_bytes(header), _LARGEST_RATIO * stored),
    )


def _text(header: Any, tag: int) -> str:
    """A plain ASCII value, from the raw bytes: pydicom's conversion takes longer than all the rest."""
    raw = header.get_item(tag) if tag in header else None
    value = None if raw is None else raw.value
    return (value.decode("ascii", "replace") if isinstance(value, bytes) else str(value or "")).strip(_PADDING)


def _encoded(header: Any, tag: int) -> str:
    """A value in the header's character set, as text that every encoding of ours can hold."""
    element = header.get(tag)
    value = "" if element is None or element.value is None else str(element.value)
    return value.encode("utf-8", "replace").decode().strip(_PADDING)


def _whole(text: str, default: int) -> int:
    try:
        return max(0, min(int(text), 2**31))
    except ValueError:
        return default


def _date(text: str) -> date | None:
    try:
        return datetime.strptime(text.replace(".", "")[:8], "%Y%m%d").date()
    except ValueError:
        return None


def _pixel_bytes(header: Any) -> int:
    rows, columns, samples, bits = (_whole(_encoded(header, tag), 0) for tag in (_ROWS, _COLUMNS, _SAMPLES, _BITS))
    return rows * columns * max(samples, 1) * ((bits + 7) // 8) * _whole(_text(header, _FRAMES), 1)
