"""One volume as the images of a series, one file a plane."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from parametrium.cohort.phantom.chance import stream
from parametrium.cohort.phantom.dicom.device import Device
from parametrium.cohort.phantom.dicom.header import Visit, begin, clock, decimal, decimals, duplicate, set_pixels
from parametrium.cohort.phantom.dicom.layout import Orientation, Planes, Position, lay_out

FDG_HALF_LIFE_S = 6586.2
"""Half-life of fluorine-18."""

_MINUTES = {"CT": 0.0, "PET": 6.0, "T1": 40.0, "T2": 46.0, "ADC": 53.0, "CBCT": 75.0}
"""When a series begins, from the start of the visit."""
_BED_MINUTES = 3.0
_BEDS = 2
_SECOND_RECONSTRUCTION_MINUTES = 95.0


@dataclass(frozen=True)
class Scan:
    """One volume to be written.

    Attributes:
        visit: when and of whom.
        modality: a word of MODALITIES.
        values: [I, J, K] HU, 10^-6 mm^2/s, SUV, or the scanner's own (MR).
        affine: [4, 4] voxel to RAS+ mm.
        frame: names the frame of reference in the study.
        device: that took it.
        orientation: of the planes.
        position: how the patient lies.
        contrast: with contrast agent.
    """

    visit: Visit
    modality: str
    values: NDArray[Any]
    affine: NDArray[np.float64]
    frame: str
    device: Device
    orientation: Orientation = "axial"
    position: Position = "HFS"
    contrast: bool = False


def planes_of(scan: Scan, values: NDArray[Any] | None = None) -> Planes:
    """A scan's planes in its order of acquisition, or those of another array on its grid."""
    backwards = bool(stream(*scan.visit.key, scan.modality, "backwards").random() < 0.5)
    position: Position = "HFS" if scan.device.by_patient else scan.position
    array = scan.values if values is None else values
    return lay_out(array, scan.affine, scan.orientation, position, backwards=backwards)


def image_series(scan: Scan, number: int) -> list[Dataset]:
    """The images of a series in their order of acquisition.

    Args:
        scan: the volume.
        number: of the series.
    """
    planes = planes_of(scan)
    first = _first_image(scan, number)
    stored, slopes, intercept, bits = _stored(scan, planes)
    images = []
    for index, plane in enumerate(stored):
        image = duplicate(first)
        image.SOPInstanceUID = scan.visit.uid("instance", scan.modality, index)
        image.InstanceNumber = index + 1
        _place(image, planes, index)
        if slopes[index] != 1 or intercept or scan.device.modality in ("CT", "PT"):
            image.RescaleIntercept, image.RescaleSlope = decimal(intercept), decimal(slopes[index])
        if scan.modality == "PET":
            bed = index * _BEDS // len(stored)
            image.ImageIndex = index + 1
            image.AcquisitionTime = clock(scan.visit.at(_MINUTES["PET"] + bed * _BED_MINUTES))
            image.FrameReferenceTime = decimal((bed + 0.5) * _BED_MINUTES * 60_000)
        set_pixels(image, plane, bits)
        images.append(image)
    return images


def _first_image(scan: Scan, number: int) -> Dataset:
    """What all images of a series have in common."""
    device, visit, minutes = scan.device, scan.visit, _MINUTES[scan.modality]
    late = _SECOND_RECONSTRUCTION_MINUTES if device.late else minutes
    image = begin(visit, device.sop_class, device.modality, scan.modality, number=number, minutes=late)
    for keyword, value in device.facts.items():
        if value != "":
            setattr(image, keyword, value)
    image.FrameOfReferenceUID = visit.uid("frame", scan.frame)
    image.PositionReferenceIndicator = ""
    image.SeriesDescription = image.ProtocolName = device.description
    image.BodyPartExamined = "PELVIS"
    image.PatientPosition = scan.position
    image.AcquisitionNumber = 1
    image.AcquisitionDate = image.SeriesDate
    image.AcquisitionTime = clock(visit.at(minutes))
    if scan.contrast:
        image.ContrastBolusAgent = "Iodine 300"
    if scan.modality == "PET":
        _add_tracer(image, scan)
    if device.unit:
        _add_unit(image, device)
    return image


def _place(image: Dataset, planes: Planes, index: int) -> None:
    """The image plane module (PS3.3 C.7.6.2)."""
    image.ImageOrientationPatient = decimals(np.concatenate([planes.row, planes.column]))
    image.ImagePositionPatient = decimals(planes.positions[index])
    image.PixelSpacing = decimals(planes.spacing)
    image.SliceThickness = decimal(planes.step)
    normal = np.cross(planes.row, planes.column)
    image.SliceLocation = decimal(round(float(normal @ planes.positions[index]), 3))
    if image.Modality == "MR":
        image.SliceThickness = decimal(round(0.9 * planes.step, 4))  # with a gap between the slices
        image.SpacingBetweenSlices = decimal(planes.step)


def _stored(scan: Scan, planes: Planes) -> tuple[NDArray[np.uint16], list[float], float, int]:
    """Stored numbers [N, R, C], the slope of each plane, the intercept, and the bits that are used."""
    if scan.device.modality == "CT":
        hounsfield = np.clip(np.rint(planes.values), -1024, 3071)
        return (hounsfield + 1024).astype(np.uint16), [1.0] * len(hounsfield), -1024.0, 12
    if scan.modality == "PET":
        activity = planes.values * np.float64(1 / suv_factor(scan.visit))
        slopes = [float(decimal(max(float(plane.max()), 1e-3) / 32767)) for plane in activity]
        return np.rint(activity / np.array(slopes)[:, None, None]).astype(np.uint16), slopes, 0.0, 16
    slope = scan.device.slope
    step = slope * 1e6 if scan.device.unit == "mm2/s" else slope
    top = 65535
    return np.clip(np.rint(planes.values / step), 0, top).astype(np.uint16), [slope] * len(planes.values), 0.0, 16


def injection(visit: Visit) -> tuple[float, float]:
    """Injected activity in Bq, and minutes from the injection to the start of the PET."""
    rng = stream(*visit.key, "injection")
    return float(round(rng.uniform(230, 390)) * 1e6), float(round(rng.uniform(55, 75)))


def suv_factor(visit: Visit) -> float:
    """SUVbw of 1 Bq/ml: body weight over the activity that is left when the scan starts (decay correction START)."""
    dose, minutes = injection(visit)
    return visit.person.weight_kg * 1000 / (dose * 2 ** (-minutes * 60 / FDG_HALF_LIFE_S))


def _add_tracer(image: Dataset, scan: Scan) -> None:
    """The PET series and isotope modules (PS3.3 C.8.9.1, C.8.9.2)."""
    visit = scan.visit
    dose, minutes = injection(visit)
    injected = visit.at(_MINUTES["PET"] - minutes)
    tracer = Dataset()
    tracer.Radiopharmaceutical = "Fluorodeoxyglucose"
    tracer.RadiopharmaceuticalRoute = "IV"
    tracer.RadiopharmaceuticalStartTime = clock(injected)
    if not scan.device.late:
        tracer.RadiopharmaceuticalStartDateTime = f"{injected:%Y%m%d}{clock(injected)}"
    tracer.RadionuclideTotalDose = decimal(dose)
    tracer.RadionuclideHalfLife = decimal(FDG_HALF_LIFE_S)
    tracer.RadionuclidePositronFraction = "0.97"
    tracer.RadionuclideCodeSequence = [code("C-111A1", "SRT", "^18^Fluorine")]
    image.RadiopharmaceuticalInformationSequence = [tracer]
    image.NumberOfSlices = scan.values.shape[2]
    image.ActualFrameDuration = str(round(_BED_MINUTES * 60_000))
    image.DecayFactor = "1.01"


def _add_unit(image: Dataset, device: Device) -> None:
    """Tells an ADC map's unit by its real world value mapping (PS3.3 C.7.6.16.2.11)."""
    item = Dataset()
    item.RealWorldValueFirstValueMapped, item.RealWorldValueLastValueMapped = 0, 65535
    item["RealWorldValueFirstValueMapped"].VR = item["RealWorldValueLastValueMapped"].VR = "US"
    item.RealWorldValueIntercept, item.RealWorldValueSlope = 0.0, device.slope
    item.LUTExplanation = item.LUTLabel = "ADC"
    item.MeasurementUnitsCodeSequence = [code(device.unit, "UCUM", device.unit)]
    image.RealWorldValueMappingSequence = [item]


def code(value: str, scheme: str, meaning: str) -> Dataset:
    """An item of a code sequence (PS3.3 8.8)."""
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return item
