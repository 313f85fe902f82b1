"""What every object of an export has: identifiers, dates, the patient, and its way to disk."""

import copy
import hashlib
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    UID,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from parametrium.cohort.phantom.dicom.identity import Person, plant_identity

TRANSFER_SYNTAXES: dict[str, UID] = {
    "explicit": ExplicitVRLittleEndian,
    "implicit": ImplicitVRLittleEndian,
    "big-endian": ExplicitVRBigEndian,
    "rle": RLELossless,
    "jpeg-ls": JPEGLSLossless,
    "jpeg-2000": JPEG2000Lossless,
}
"""How voxels are encoded; all without loss."""

_ENCODERS = {"rle": "pylibjpeg", "jpeg-ls": "pyjpegls", "jpeg-2000": "pylibjpeg"}
_MORNING = time(8, 30)


@dataclass(frozen=True)
class Visit:
    """One study of a patient.

    Attributes:
        person: whose.
        key: names the study among all: what its identifiers come from.
        number: of the study, from 0.
        day: days from the patient's first study.
    """

    person: Person
    key: tuple[object, ...]
    number: int
    day: int

    @property
    def date(self) -> date:
        """When she came."""
        return self.person.first_day + timedelta(days=self.day)

    def at(self, minutes: float) -> datetime:
        """A time on that day, minutes after its start."""
        return datetime.combine(self.date, _MORNING) + timedelta(minutes=minutes)

    def uid(self, *name: object) -> str:
        """An identifier within the study."""
        return make_uid(*self.key, *name)


def make_uid(*name: object) -> str:
    """A UID of the root 2.25 (PS3.5 B.2) that depends on its name only."""
    text = "\x1f".join(str(part) for part in name)
    return f"2.25.{int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), 'big')}"


def begin(visit: Visit, sop_class: str, modality: str, *series: object, number: int, minutes: float) -> Dataset:
    """A data set with the patient, study, series and general modules filled.

    Args:
        visit: the study.
        sop_class: SOP Class UID.
        modality: (0008,0060).
        series: names the series in the study.
        number: of the series.
        minutes: when it began, from the start of the visit.
    """
    dataset = Dataset()
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.SOPClassUID = sop_class
    dataset.SOPInstanceUID = visit.uid("instance", *series)
    dataset.Modality = modality
    dataset.StudyInstanceUID = visit.uid("study")
    dataset.SeriesInstanceUID = visit.uid("series", *series)
    dataset.StudyID = f"{visit.number + 1}"
    dataset.SeriesNumber = number
    dataset.InstanceNumber = 1
    dataset.StudyDate = dataset.SeriesDate = dataset.ContentDate = f"{visit.date:%Y%m%d}"
    dataset.InstanceCreationDate = dataset.StudyDate
    dataset.StudyTime = clock(visit.at(0))
    dataset.SeriesTime = dataset.ContentTime = dataset.InstanceCreationTime = clock(visit.at(minutes))
    dataset.StudyDescription = "Pelvis"
    dataset.PatientWeight = visit.person.weight_kg
    dataset.PatientSize = visit.person.height_m
    plant_identity(dataset, visit.person)
    return dataset


def duplicate(dataset: Dataset) -> Dataset:
    """A data set whose attributes can be set without changing the other's; what is inside sequences is shared."""
    other = Dataset({tag: copy.copy(element) for tag, element in dataset.items()})
    other.preamble = dataset.preamble
    return other


def clock(moment: datetime) -> str:
    """A time as DICOM writes it."""
    return f"{moment:%H%M%S}.000000"


def decimals(values: NDArray[np.float64] | tuple[float, ...]) -> list[str]:
    """Numbers as decimal strings of at most 16 characters (PS3.5 6.2, DS)."""
    return [decimal(float(value)) for value in values]


def decimal(value: float) -> str:
    """As exact as 16 characters can tell; no minus before a zero."""
    text = next(text for digits in range(16, 8, -1) if len(text := f"{value:.{digits}g}") <= 16)
    return "0" if float(text) == 0 else text


def set_pixels(dataset: Dataset, stored: NDArray[Any], bits: int) -> None:
    """The image pixel module of one grey plane [R, C] or many [N, R, C] of 16 bits."""
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.Rows, dataset.Columns = stored.shape[-2:]
    dataset.BitsAllocated = 16
    dataset.BitsStored, dataset.HighBit = bits, bits - 1
    dataset.PixelRepresentation = int(np.issubdtype(stored.dtype, np.signedinteger))
    if stored.ndim == 3:
        dataset.NumberOfFrames = len(stored)
    dataset.PixelData = stored.astype(stored.dtype.newbyteorder("<")).tobytes()
    dataset["PixelData"].VR = "OW"


def save(dataset: Dataset, path: Path, transfer_syntax: str = "explicit") -> None:
    """Writes a file as PS3.10 asks, the same bytes every time; the data set is used up.

    Args:
        dataset: with 16-bit voxels or none, unless the syntax is explicit.
        path: of the file; its folder is made.
        transfer_syntax: a word of TRANSFER_SYNTAXES.
    """
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    meta.TransferSyntaxUID = TRANSFER_SYNTAXES["explicit" if transfer_syntax in _ENCODERS else transfer_syntax]
    meta.ImplementationClassUID = make_uid("parametrium phantom")
    meta.ImplementationVersionName = "PHANTOM"
    dataset.file_meta = meta
    if transfer_syntax == "big-endian" and "PixelData" in dataset:
        dataset.PixelData = np.frombuffer(dataset.PixelData, "<u2").byteswap().tobytes()
    if transfer_syntax in _ENCODERS:
        dataset.compress(
            TRANSFER_SYNTAXES[transfer_syntax],
            encoding_plugin=_ENCODERS[transfer_syntax],
            generate_instance_uid=False,
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)
