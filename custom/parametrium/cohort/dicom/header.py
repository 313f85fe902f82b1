"""A DICOM file's header as an ``Instance``: whose it is, what it is, and where its planes lie.

Only the elements listed here are read; pixel data are not touched. A value that breaks the standard counts as absent.
Classic files hold one plane, enhanced ones (PS3.3 C.7.6.16) one a frame, Siemens mosaics one a tile.
"""

import stat
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from parametrium.cohort.dicom.elements import BudgetSpentError, Elements, Tag, private_tags
from parametrium.cohort.dicom.facts import Facts, Identity, LeftOut, Slice
from parametrium.cohort.dicom.frames import ENHANCED_TAGS, frame_planes
from parametrium.cohort.dicom.mosaic import MOSAIC_TAGS, is_mosaic, mosaic_planes
from parametrium.cohort.dicom.part10 import NotDicomError, opened
from parametrium.cohort.dicom.planes import PLANE_TAGS, Traits, b_value, file_plane
from parametrium.cohort.dicom.quiet import quiet
from parametrium.cohort.problem import Reason

_NO_PLANES = ("SEG", "RTDOSE", "RTSTRUCT", "RTPLAN", "RTRECORD", "SR", "PR", "KO", "REG", "DOC", "OT")
_DATES = ("StudyDate", "SeriesDate", "AcquisitionDate", "ContentDate")  # the first that is there
_ALLOWED: tuple[Tag, ...] = (
    *("SOPClassUID", "SOPInstanceUID", "PatientID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"),
    *_DATES,
    *("Modality", "ImageType", "SeriesDescription", "ProtocolName", "BodyPartExamined", "BurnedInAnnotation"),
    *("Manufacturer", "ManufacturerModelName", "MagneticFieldStrength", "KVP", "AcquisitionType"),
    *("SequenceName", "PulseSequenceName", "ScanningSequence", "SequenceVariant", "EchoPulseSequence"),
    *("EchoPlanarPulseSequence", "Spoiling", "SteadyStatePulseSequence"),
    *("RepetitionTime", "EchoTime", "InversionTime", "FlipAngle", "SliceThickness"),
    *("ContrastBolusAgent", "ContrastBolusAgentSequence", "ContrastBolusUsageSequence"),
    *("Units", "SUVType", "RescaleType", "RealWorldValueMappingSequence", "ModalityLUTSequence"),
    *("PatientWeight", "RadiopharmaceuticalInformationSequence", "DecayCorrection", "CorrectedImage"),
    *("SeriesTime", "AcquisitionTime", "AcquisitionDateTime", "FrameReferenceTime", "ActualFrameDuration"),
    *private_tags(0x7053, 0x00, 0x09),
    *private_tags(0x0009, 0x0D),
)
_TAGS: frozenset[Tag] = frozenset((*_ALLOWED, *PLANE_TAGS, *ENHANCED_TAGS, *MOSAIC_TAGS))
"""Every element of a header that is looked at; identifiers among them only to group files by."""


@dataclass(frozen=True, slots=True)
class Uptake:
    """What the header says of the tracer; None where absent.

    Attributes:
        weight_kg: Patient's Weight.
        dose_bq: Radionuclide Total Dose.
        half_life_s: Radionuclide Half Life.
        injected: Radiopharmaceutical Start DateTime, or its time on the day of the acquisition.
        series: Series Date and Time.
        acquired: Acquisition Date and Time of this file.
        frame_reference_s: Frame Reference Time, of the mean count rate after ``scan start``.
        frame_s: Actual Frame Duration.
        scan_start: GE's own time to which decay was corrected.
        decay_correction: START, ADMIN or NONE, upper case.
        corrected: Corrected Image, e.g. ATTN, DECY.
        suv_factor: Philips' SUVbw for one stored count.
        activity_factor: Philips' Bq/ml for one stored count.
    """

    weight_kg: float | None = None
    dose_bq: float | None = None
    half_life_s: float | None = None
    injected: datetime | None = None
    series: datetime | None = None
    acquired: datetime | None = None
    frame_reference_s: float | None = None
    frame_s: float | None = None
    scan_start: datetime | None = None
    decay_correction: str = ""
    corrected: tuple[str, ...] = ()
    suv_factor: float | None = None
    activity_factor: float | None = None


@dataclass(frozen=True, slots=True)
class Instance:
    """One DICOM file.

    Attributes:
        path: the file.
        identity: whose and which; never written.
        facts: what modality and units are decided by.
        slices: its planes; empty for an object that is no image, and for an image without a place in the patient.
        traits: of each slice, what sets it apart from others at its place.
        thickness_mm: Slice Thickness.
        lookup: whether stored values become real ones through a table (Modality LUT Sequence) and not a line.
        uptake: of PET; None else.
    """

    path: Path
    identity: Identity
    facts: Facts
    slices: tuple[Slice, ...] = ()
    traits: tuple[Traits, ...] = ()
    thickness_mm: float | None = None
    lookup: bool = False
    uptake: Uptake | None = field(default=None)


def read_instance(path: Path, *, content: bool = False) -> Instance | LeftOut:
    """Reads a file's header; a file that cannot be used becomes ``LeftOut`` with its reason, whatever it holds.

    Args:
        path: any file.
        content: as ``opened`` takes it.
    """
    identity: Identity | None = None
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return LeftOut(None, Reason.NOT_DICOM)
        with quiet(), opened(path, _TAGS, content=content) as file:
            elements = file.elements
            identity = _identity(elements)
            if not identity.instance and not identity.series:
                return LeftOut(None, Reason.NOT_DICOM)
            return _instance(path, identity, elements)
    except NotDicomError:
        return LeftOut(None, Reason.NOT_DICOM)
    except BudgetSpentError:
        return LeftOut(identity, Reason.TOO_LARGE if content else Reason.UNREADABLE)
    except Exception:  # a damaged header makes pydicom raise nearly anything; each means the same here
        return LeftOut(identity, Reason.UNREADABLE)


def _instance(path: Path, identity: Identity, elements: Elements) -> Instance:
    facts = _facts(elements)
    planes = [] if facts.modality in _NO_PLANES else _planes(path, identity, facts, elements)
    return Instance(
        path=path,
        identity=identity,
        facts=facts,
        slices=tuple(plane for plane, _ in planes),
        traits=tuple(traits for _, traits in planes),
        thickness_mm=planes[0][1].thickness_mm if planes else None,
        lookup=bool(elements.items("ModalityLUTSequence")),
        uptake=_uptake(elements) if facts.modality == "PT" else None,
    )


def _planes(path: Path, identity: Identity, facts: Facts, elements: Elements) -> list[tuple[Slice, Traits]]:
    if "SharedFunctionalGroupsSequence" in elements or "PerFrameFunctionalGroupsSequence" in elements:
        return frame_planes(path, identity.instance, facts, elements)
    if (elements.integer("NumberOfFrames") or 1) != 1:
        return []  # frames without their own places
    plane = file_plane(path, identity.instance, facts, elements)
    if plane is None:
        return []
    if is_mosaic(facts, elements):
        return mosaic_planes(plane[0], plane[1], elements)
    return [plane]


def _identity(elements: Elements) -> Identity:
    dates = (elements.date(tag) for tag in _DATES)
    return Identity(
        patient=elements.text("PatientID"),
        study=elements.text("StudyInstanceUID"),
        series=elements.text("SeriesInstanceUID"),
        instance=elements.text("SOPInstanceUID"),
        frame_of_reference=elements.text("FrameOfReferenceUID"),
        study_date=next((day for day in dates if day is not None), None),
    )


def _facts(elements: Elements) -> Facts:
    corrected = elements.words("CorrectedImage")
    return Facts(
        sop_class=elements.text("SOPClassUID"),
        modality=elements.word("Modality"),
        image_type=elements.words("ImageType"),
        description=elements.text("SeriesDescription"),
        protocol=elements.text("ProtocolName"),
        sequence_name=elements.word("SequenceName") or elements.word("PulseSequenceName"),
        scanning_sequence=elements.words("ScanningSequence") or _enhanced_sequence(elements),
        sequence_variant=elements.words("SequenceVariant") or _enhanced_variant(elements),
        repetition_time_ms=elements.number("RepetitionTime"),
        echo_time_ms=elements.number("EchoTime"),
        inversion_time_ms=elements.number("InversionTime"),
        flip_angle_deg=elements.number("FlipAngle"),
        b_value=b_value(elements),
        contrast_agent=_contrast_agent(elements),
        units=elements.word("Units") or _unit(elements),
        suv_type=elements.word("SUVType"),
        manufacturer=elements.word("Manufacturer"),
        model=elements.word("ManufacturerModelName"),
        burned_in=elements.word("BurnedInAnnotation") == "YES",
        field_strength_t=elements.number("MagneticFieldStrength"),
        tube_voltage_kv=elements.number("KVP"),
        acquisition_type=elements.word("AcquisitionType"),
        body_part=elements.word("BodyPartExamined"),
        attenuation_corrected="ATTN" in corrected if corrected else None,
    )


def _enhanced_sequence(elements: Elements) -> tuple[str, ...]:
    """Scanning Sequence in the words of classic MR, from those of Enhanced MR (PS3.3 C.8.13.4)."""
    echo = elements.word("EchoPulseSequence")
    words = {"SPIN": ("SE",), "GRADIENT": ("GR",), "BOTH": ("SE", "GR")}.get(echo, ())
    return words + (("EP",) if elements.word("EchoPlanarPulseSequence") == "YES" else ())


def _enhanced_variant(elements: Elements) -> tuple[str, ...]:
    """Sequence Variant likewise."""
    spoiled = elements.word("Spoiling") not in ("", "NONE")
    steady = elements.word("SteadyStatePulseSequence") not in ("", "NONE")
    return (("SP",) if spoiled else ()) + (("SS",) if steady else ())


def _contrast_agent(elements: Elements) -> bool:
    named = elements.word("ContrastBolusAgent") not in ("", "NONE", "NO", "N", "0", "NO CONTRAST", "WITHOUT")
    return (
        named
        or bool(elements.items("ContrastBolusAgentSequence"))
        or bool(elements.items("ContrastBolusUsageSequence"))
    )


def _unit(elements: Elements) -> str:
    """Unit of a map: from Real World Value Mapping (PS3.3 C.7.6.16.2.11), else Rescale Type."""
    mapping = elements.item("RealWorldValueMappingSequence")
    code = mapping.item("MeasurementUnitsCodeSequence") if mapping else None
    return (code.word("CodeValue") if code else "") or elements.word("RescaleType")


def _uptake(elements: Elements) -> Uptake:
    series = _at(elements, "SeriesDate", "SeriesTime")
    acquired = elements.moment("AcquisitionDateTime") or _at(elements, "AcquisitionDate", "AcquisitionTime")
    dose = elements.item("RadiopharmaceuticalInformationSequence")
    injected = None
    if dose is not None:
        injected, hour = dose.moment("RadiopharmaceuticalStartDateTime"), dose.time("RadiopharmaceuticalStartTime")
        day = acquired or series
        if injected is None and hour is not None and day is not None:
            injected = datetime.combine(day.date(), hour)
    milliseconds = elements.number("FrameReferenceTime"), elements.number("ActualFrameDuration")
    reference, duration = (None if value is None else value / 1000 for value in milliseconds)
    factors = elements.private_numbers(0x7053, "Philips PET Private Group", 0x00)
    activity = elements.private_numbers(0x7053, "Philips PET Private Group", 0x09)
    start = elements.private(0x0009, "GEMS_PETD_01", 0x0D)
    return Uptake(
        weight_kg=elements.number("PatientWeight"),
        dose_bq=dose.number("RadionuclideTotalDose") if dose else None,
        half_life_s=dose.number("RadionuclideHalfLife") if dose else None,
        injected=injected,
        series=series,
        acquired=acquired,
        frame_reference_s=reference,
        frame_s=duration,
        scan_start=elements.moment(start) if start else None,
        decay_correction=elements.word("DecayCorrection"),
        corrected=elements.words("CorrectedImage"),
        suv_factor=factors[0] if factors else None,
        activity_factor=activity[0] if activity else None,
    )


def _at(elements: Elements, day: str, hour: str) -> datetime | None:
    date, time = elements.date(day), elements.time(hour)
    return datetime.combine(date, time) if date and time else None
