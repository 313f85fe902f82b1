"""Where a plane lies and what sets it apart, from a classic file's elements or from a frame's functional groups."""

import math
from dataclasses import dataclass
from pathlib import Path

from parametrium.cohort.dicom.elements import Elements, Tag, private_tags
from parametrium.cohort.dicom.facts import Facts, Slice, Vector

PLANE_TAGS: tuple[Tag, ...] = (
    *("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "Rows", "Columns", "SliceThickness"),
    *("RescaleIntercept", "RescaleSlope", "InstanceNumber", "AcquisitionNumber", "TemporalPositionIdentifier"),
    *("TriggerTime", "AcquisitionTime", "ContentTime", "DiffusionBValue", "DiffusionDirectionality"),
    *private_tags(0x0019, 0x0C),
    *private_tags(0x0043, 0x39),
    *private_tags(0x2001, 0x03),
)

_COSINE_TOLERANCE = 0.01  # how far a direction may be from unit length, and two from a right angle
_GE_OFFSET = 1e9  # GE adds it to b-values of some versions


@dataclass(frozen=True, slots=True)
class Traits:
    """What sets a plane apart from others at its place; None where absent.

    Attributes:
        image_type: of the file, or of the frame.
        b_value: s/mm2.
        isotropic: whether the diffusion weighting is the mean over directions.
        echo_time_ms: of this plane's echo.
        inversion_time_ms: of inversion recovery.
        flip_angle_deg: of the excitation.
        repetition_time_ms: of the sequence.
        temporal: number of the time point.
        trigger_ms: time after the heart's R wave.
        acquisition: number of the acquisition.
        time_s: of the acquisition or else content, in the day.
        number: Instance Number.
        thickness_mm: Slice Thickness.
    """

    image_type: tuple[str, ...] = ()
    b_value: float | None = None
    isotropic: bool = False
    echo_time_ms: float | None = None
    inversion_time_ms: float | None = None
    flip_angle_deg: float | None = None
    repetition_time_ms: float | None = None
    temporal: int | None = None
    trigger_ms: float | None = None
    acquisition: int | None = None
    time_s: float | None = None
    number: int = 0
    thickness_mm: float | None = None


def file_plane(path: Path, instance: str, facts: Facts, elements: Elements) -> tuple[Slice, Traits] | None:
    """The plane of a classic file; None where it has no place in the patient."""
    plane = plane_at(
        path,
        0,
        instance,
        shape=image_shape(elements),
        position=elements.numbers("ImagePositionPatient"),
        orientation=elements.numbers("ImageOrientationPatient"),
        spacing=elements.numbers("PixelSpacing"),
        slope=elements.number("RescaleSlope"),
        intercept=elements.number("RescaleIntercept"),
    )
    if plane is None:
        return None
    hour = elements.time("AcquisitionTime") or elements.time("ContentTime")
    traits = Traits(
        image_type=facts.image_type,
        b_value=facts.b_value,
        isotropic=elements.word("DiffusionDirectionality") == "ISOTROPIC",
        echo_time_ms=facts.echo_time_ms,
        inversion_time_ms=facts.inversion_time_ms,
        flip_angle_deg=facts.flip_angle_deg,
        repetition_time_ms=facts.repetition_time_ms,
        temporal=elements.integer("TemporalPositionIdentifier"),
        trigger_ms=elements.number("TriggerTime"),
        acquisition=elements.integer("AcquisitionNumber"),
        time_s=None if hour is None else hour.hour * 3600 + hour.minute * 60 + hour.second + hour.microsecond / 1e6,
        number=elements.integer("InstanceNumber") or 0,
        thickness_mm=elements.number("SliceThickness"),
    )
    return plane, traits


def image_shape(elements: Elements) -> tuple[int, int] | None:
    """Rows and columns; None where either is missing."""
    rows, columns = elements.integer("Rows"), elements.integer("Columns")
    return (rows, columns) if rows and columns and rows > 0 and columns > 0 else None


def plane_at(
    path: Path,
    frame: int,
    instance: str,
    *,
    shape: tuple[int, int] | None,
    position: tuple[float, ...],
    orientation: tuple[float, ...],
    spacing: tuple[float, ...],
    slope: float | None,
    intercept: float | None,
) -> Slice | None:
    """A plane where its geometry is complete and sound (PS3.3 C.7.6.2); None else."""
    if shape is None or len(position) != 3 or len(orientation) != 6 or len(spacing) != 2 or min(spacing) <= 0:
        return None
    row, column = orientation[:3], orientation[3:]
    lengths = math.hypot(*row), math.hypot(*column)
    if max(abs(length - 1) for length in lengths) > _COSINE_TOLERANCE:
        return None
    if abs(sum(a * b for a, b in zip(row, column, strict=True))) > _COSINE_TOLERANCE:
        return None
    return Slice(
        path=path,
        frame=frame,
        instance=instance,
        position=_vector(position),
        row=_vector(tuple(part / lengths[0] for part in row)),
        column=_vector(tuple(part / lengths[1] for part in column)),
        spacing=(spacing[0], spacing[1]),
        shape=shape,
        slope=1.0 if slope is None or slope == 0 else slope,
        intercept=intercept or 0.0,
    )


def b_value(elements: Elements) -> float | None:
    """b-value in s/mm2: the standard's, else Siemens', GE's or Philips' own."""
    standard = elements.number("DiffusionBValue")
    if standard is not None:
        return standard
    siemens = elements.private_numbers(0x0019, "SIEMENS MR HEADER", 0x0C)
    if siemens:
        return siemens[0]
    ge = elements.private_numbers(0x0043, "GEMS_PARM_01", 0x39)
    if ge:
        return ge[0] % 100_000 if ge[0] >= _GE_OFFSET else ge[0]
    philips = elements.private_numbers(0x2001, "Philips Imaging DD 001", 0x03)
    return philips[0] if philips else None


def _vector(values: tuple[float, ...]) -> Vector:
    x, y, z = values
    return (x, y, z)
