"""A hospital's archive in which a word stands in every attribute, name and file beside that could tell who it is."""

from collections.abc import Iterator
from datetime import date
from pathlib import Path

import pydicom
from pydicom.datadict import DicomDictionary
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.tag import Tag

from parametrium.cohort.phantom.dicom import write_phantom_dicom
from sentinel import SENTINEL

BIRTH = "19531119"
_TEXTS = ("AE", "LO", "LT", "PN", "SH", "ST", "UC", "UR", "UT")
_CODES = ("BodyPartExamined", "ViewPosition")
_DECISIVE = (  # the phantom's own truth, by which its volumes are known and measured
    *("PatientID", "IssuerOfPatientID", "OtherPatientIDs", "StudyDate", "SeriesDate", "AcquisitionDate", "ContentDate"),
    *("AcquisitionDateTime", "RadiopharmaceuticalStartDateTime", "Manufacturer", "ManufacturerModelName"),
)
_STRUCTURES = "RTSTRUCT"
_EVERY = 6  # files in which everything is planted; a slice tells as much as a series


def keywords(*representations: str) -> Iterator[tuple[int, str]]:
    """Every attribute of pydicom's dictionary that is of such a kind and belongs into a data set."""
    for tag, (representation, _, _, _, keyword) in DicomDictionary.items():
        if representation in representations and keyword and tag >> 16 not in (0x0000, 0x0002, 0xFFFE):
            yield tag, keyword


def write_archive(folder: Path) -> list[Path]:
    """Two patients with a CT, a PET and structures each; gives the DICOM files."""
    places = ("preamble", "private", "padding", "overlay", "path")
    texts = ("PatientName", "PatientID", "IssuerOfPatientID", "InstitutionName", "StationName", "DeviceSerialNumber")
    more = (
        "OtherPatientIDs",
        "AccessionNumber",
        "OperatorsName",
        "RequestedProcedureDescription",
        "PatientComments",
        "SeriesDescription",
    )
    identity = dict.fromkeys((*places, *texts, *more), f"{SENTINEL}{{n}}") | {"PatientBirthDate": BIRTH}
    modalities = ["CT", "PET"]
    write_phantom_dicom(
        folder, patients=2, modalities=modalities, seed=5, misregistration_mm=3, identity=identity, jobs=1
    )
    files = []
    for n, path in enumerate(sorted(path for path in folder.rglob("*") if path.is_file())):
        if path.name in ("DICOMDIR", "README.TXT"):
            continue
        dataset = pydicom.dcmread(path)
        if n % _EVERY == 0 or dataset.Modality == _STRUCTURES:
            plant(dataset)
            dataset.save_as(path)
            path = path.rename(path.with_name(f"{SENTINEL} {n}.dcm"))
        files.append(path)
    beside = files[0].parent
    (beside / f"{SENTINEL}.json").write_text(f'{{"PatientName": "{SENTINEL}"}}')
    (beside / "list.csv").write_text(f"name,born\n{SENTINEL},{BIRTH}\n")
    return files


def plant(dataset: Dataset) -> None:
    """Everywhere, also where a value of that kind does not belong, as real headers have it."""
    for tag, keyword in keywords(*_TEXTS):
        if keyword not in _DECISIVE:
            _set(dataset, tag, _of_kind(tag, SENTINEL))
    for tag, keyword in keywords("DA", "DT"):
        if keyword not in _DECISIVE:
            _set(dataset, tag, BIRTH)
    for keyword in _CODES:
        _set(dataset, Tag(keyword), SENTINEL)
    dataset.ReferencedPatientSequence = _nested(6)
    for structure in dataset.get("StructureSetROISequence", [])[1:3]:
        structure.ROIName = f"{SENTINEL} GTV"
        structure.ROIDescription = SENTINEL
    for number in (0x0011, 0x0029, 0x7FE1 - 0x2):
        block = dataset.private_block(number, f"{SENTINEL} PRIVATE", create=True)
        block.add_new(1, "LO", SENTINEL)
        block.add_new(2, "OB", SENTINEL.encode())
        block.add_new(3, "SQ", _nested(2))


def study_dates(files: list[Path]) -> set[date]:
    """Of all files."""
    read = (pydicom.dcmread(path, specific_tags=["StudyDate"], stop_before_pixels=True) for path in files)
    texts = {str(dataset.StudyDate) for dataset in read}
    return {date.fromisoformat(text) for text in texts}


def uids(files: list[Path]) -> set[str]:
    """Every UID that names a thing of the hospital's own."""
    tags = ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")
    read = (pydicom.dcmread(path, specific_tags=list(tags), stop_before_pixels=True) for path in files)
    return {str(dataset[tag].value) for dataset in read for tag in tags if tag in dataset}


def _of_kind(tag: int, text: str) -> str:
    return f"{text}^{text}" if DicomDictionary[tag][0] == "PN" else text


def _nested(depth: int) -> Sequence:
    item = Dataset()
    _set(item, Tag("PatientName"), SENTINEL)
    _set(item, Tag("PatientBirthDate"), BIRTH)
    _set(item, Tag("TextValue"), SENTINEL)
    if depth:
        item.ContentSequence = _nested(depth - 1)
    return Sequence([item])


def _set(dataset: Dataset, tag: int, text: str) -> None:
    dataset.add(DataElement(tag, DicomDictionary[tag][0], text, validation_mode=0))
