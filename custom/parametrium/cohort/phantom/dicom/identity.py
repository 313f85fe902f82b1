"""Whom the headers name: an invented person, or the texts that somebody wants to see planted.

A hospital's headers identify a patient in far more places than her name: the attributes of PS3.15 table E.1-1, the
preamble, private elements, sequences, overlays, padding and the names of files. All of them are filled here.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, timedelta

from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.tag import Tag

from parametrium.cohort.phantom.chance import stream
from parametrium.errors import Code, CohortError

PLACES = ("preamble", "private", "padding", "overlay", "path")
"""Places without a keyword that a text can be planted in; ``path`` is a folder's name."""

_TEXT_VRS = frozenset(["AE", "AS", "CS", "DA", "DT", "LO", "LT", "PN", "SH", "ST", "TM", "UC", "UR", "UT"])
_PRIVATE_GROUP = 0x0099
_FIRST_DAY = date(2019, 1, 7)


@dataclass(frozen=True)
class Person:
    """An invented patient.

    Attributes:
        number: of the patient, from 0.
        id: Patient ID.
        texts: what is planted, by DICOM keyword or by a word of PLACES.
        weight_kg: of the body.
        height_m: of the body.
        first_day: of her first study.
    """

    number: int
    id: str
    texts: Mapping[str, str]
    weight_kg: float
    height_m: float
    first_day: date


def invent_person(seed: int, site: str, index: int, identity: Mapping[str, str] | None) -> Person:
    """A person from the seed; ``identity`` replaces texts of hers, ``{n}`` in a text becomes her number.

    Raises:
        CohortError: PM204 a name is neither the keyword of a text attribute nor a word of PLACES.
    """
    rng = stream(seed, site, index, "person")
    number = f"{rng.integers(10**7, 10**8)}"
    weight, height = round(float(rng.uniform(48, 102)), 1), round(float(rng.uniform(1.52, 1.80)), 2)
    first_day = _FIRST_DAY + timedelta(days=int(rng.integers(0, 1200)))
    texts = _invented(index, number, first_day, int(rng.integers(25, 80) * 365))
    texts |= {name: text.replace("{n}", str(index)) for name, text in (identity or {}).items()}
    if identity and "PatientID" in identity and "{n}" not in identity["PatientID"]:
        texts["PatientID"] += f"-{index}"
    for name in texts:
        if name not in PLACES and (tag_for_keyword(name) is None or dictionary_VR(name) not in _TEXT_VRS):
            raise CohortError(
                Code.COHORT_IMPORT,
                "phantom: identity takes keywords of DICOM text attributes and " + " ".join(PLACES),
                site_detail=name,
            )
    return Person(index, texts["PatientID"], texts, weight, height, first_day)


def _invented(index: int, number: str, first_day: date, age_days: int) -> dict[str, str]:
    birth = first_day - timedelta(days=age_days)
    name = f"Phantom^Petra {index:04d}"
    return {
        "PatientName": name,
        "PatientID": f"PH{number}",
        "PatientBirthDate": f"{birth:%Y%m%d}",
        "PatientSex": "F",
        "PatientAge": f"{age_days // 365:03d}Y",
        "PatientAddress": f"{index} Phantom Street",
        "PatientTelephoneNumbers": f"+00 {number}",
        "PatientComments": f"{name} was drawn",
        "OtherPatientIDs": f"OLD{number}",
        "AccessionNumber": f"AC{number}",
        "InstitutionName": "Phantom General Hospital",
        "InstitutionAddress": "1 Phantom Square",
        "InstitutionalDepartmentName": "Radiology of the Phantom",
        "StationName": "PHANTOM01",
        "DeviceSerialNumber": f"SN{number}",
        "ReferringPhysicianName": "Referrer^Rita",
        "PerformingPhysicianName": "Performer^Paul",
        "OperatorsName": "Operator^Olga",
        "RequestedProcedureDescription": f"Pelvis of {name}",
        "ImageComments": f"Image of {name}",
        "preamble": name,
        "private": f"{name} {number}",
        "padding": name,
        "overlay": name,
        "path": f"PHANTOM_PETRA_{index:04d}",
    }


def plant_identity(dataset: Dataset, person: Person) -> None:
    """Writes a person's texts into a data set wherever a PACS would have them."""
    for name, text in person.texts.items():
        if name not in PLACES:
            _set(dataset, name, text)
    item = Dataset()
    for name in ("PatientID", "RequestedProcedureDescription", "AccessionNumber"):
        _set(item, name, person.texts[name])
    dataset.RequestAttributesSequence = [item]
    other = Dataset()
    _set(other, "PatientID", person.texts["OtherPatientIDs"])
    dataset.OtherPatientIDsSequence = [other]
    dataset.preamble = person.texts["preamble"].encode("ascii", "replace")[:128].ljust(128, b"\0")
    block = dataset.private_block(_PRIVATE_GROUP, "PHANTOM PACS", create=True)
    block.add_new(0x01, "LO", person.texts["private"])
    block.add_new(0x02, "UN", person.texts["private"].encode())
    dataset.DataSetTrailingPadding = _even(person.texts["padding"].encode())


def plant_overlay(dataset: Dataset, person: Person) -> None:
    """A graphic over the image, with a label that names the patient (PS3.3 C.9.2)."""
    rows, columns = dataset.Rows, dataset.Columns
    for element, vr, value in (
        (0x0010, "US", rows),
        (0x0011, "US", columns),
        (0x0040, "CS", "G"),
        (0x0050, "SS", [1, 1]),
        (0x0100, "US", 1),
        (0x0102, "US", 0),
        (0x1500, "LO", person.texts["overlay"]),
        (0x3000, "OW", bytes((rows * columns + 15) // 16 * 2)),
    ):
        dataset.add(DataElement(Tag(0x6000, element), vr, value))


def _set(dataset: Dataset, name: str, text: str) -> None:
    """Sets an attribute even where the text is too long or of the wrong kind, as real headers are."""
    tag = tag_for_keyword(name)
    dataset.add(DataElement(tag, dictionary_VR(name), text, validation_mode=0))


def _even(text: bytes) -> bytes:
    return text + b"\0" * (len(text) % 2)
