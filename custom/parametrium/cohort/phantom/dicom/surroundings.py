"""What comes with the volumes in every export and is none: localisers, screenshots, dose, reports, leftovers."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import (
    CTImageStorage,
    MediaStorageDirectoryStorage,
    MRImageStorage,
    RTDoseStorage,
    SecondaryCaptureImageStorage,
    XRayRadiationDoseSRStorage,
)

from parametrium.cohort.phantom.dicom.header import Visit, begin, decimal, decimals, save, set_pixels
from parametrium.cohort.phantom.dicom.identity import Person, plant_overlay
from parametrium.cohort.phantom.dicom.series import Scan, code
from parametrium.cohort.problem import Reason

_SIZE = 96
"""Rows and columns of pictures whose content does not matter."""


def localiser(scan: Scan, number: int) -> list[Dataset]:
    """The scout of a CT (one projection from the front) or of an MR (three planes at right angles)."""
    return _scout(scan, number) if scan.device.modality == "CT" else _three_planes(scan, number)


def _scout(scan: Scan, number: int) -> list[Dataset]:
    image = begin(scan.visit, CTImageStorage, "CT", scan.modality, "localiser", number=number, minutes=-3)
    image.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    image.SeriesDescription = "Topogramm 0.6 T20f"
    image.KVP = "120"
    image.Manufacturer = scan.device.facts["Manufacturer"]
    image.PatientPosition = scan.position
    image.FrameOfReferenceUID = scan.visit.uid("frame", scan.frame)
    _place(image, scan, np.array([[1, 0, 0], [0, 0, -1]]))
    image.RescaleIntercept, image.RescaleSlope = "-1024", "1"
    set_pixels(image, np.clip(_picture(scan, 1) + 1024, 0, 4095).astype(np.uint16), 12)
    return [image]


def _three_planes(scan: Scan, number: int) -> list[Dataset]:
    images = []
    for index, (axis, directions) in enumerate(
        ((2, [[1, 0, 0], [0, 1, 0]]), (0, [[0, 1, 0], [0, 0, -1]]), (1, [[1, 0, 0], [0, 0, -1]]))
    ):
        image = begin(scan.visit, MRImageStorage, "MR", scan.modality, "localiser", number=number, minutes=35)
        image.SOPInstanceUID = scan.visit.uid("instance", scan.modality, "localiser", index)
        image.InstanceNumber = index + 1
        image.ImageType = ["ORIGINAL", "PRIMARY", "M", "ND"]
        image.SeriesDescription = image.ProtocolName = "localizer"
        image.Manufacturer = scan.device.facts["Manufacturer"]
        image.ScanningSequence, image.SequenceVariant, image.MRAcquisitionType = "GR", "SP", "2D"
        image.SequenceName = "*fl2d1"
        image.RepetitionTime, image.EchoTime, image.FlipAngle = "7.8", "3.69", "20"
        image.MagneticFieldStrength = "1.5"
        image.PatientPosition = scan.position
        image.FrameOfReferenceUID = scan.visit.uid("frame", scan.frame)
        _place(image, scan, np.array(directions))
        set_pixels(image, np.clip(_picture(scan, axis), 0, 65535).astype(np.uint16), 16)
        images.append(image)
    return images


def _picture(scan: Scan, axis: int) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """A projection, nothing that anybody should measure in."""
    flat = scan.values.mean(axis).astype(np.float64)
    rows, columns = (np.linspace(0, size - 1, _SIZE).astype(int) for size in flat.T.shape)
    return np.asarray(flat.T[np.ix_(rows[::-1], columns)])


def _place(image: Dataset, scan: Scan, directions: np.ndarray[tuple[int, int], np.dtype[np.int64]]) -> None:
    centre = scan.affine @ [*((np.array(scan.values.shape) - 1) / 2), 1]
    position = np.diag([-1, -1, 1]) @ centre[:3] - directions.sum(0) * (_SIZE - 1) * 2.0
    image.ImageOrientationPatient = decimals(directions.ravel().astype(float))
    image.ImagePositionPatient = decimals(position)
    image.PixelSpacing = ["4", "4"]
    image.SliceThickness = "8"


def screenshot(visit: Visit, number: int, *, burned_in: bool) -> Dataset:
    """A secondary capture with an overlay, and with or without the name burned into the picture."""
    name = ("screenshot", burned_in)
    image = begin(visit, SecondaryCaptureImageStorage, "OT", *name, number=number, minutes=140)
    image.ConversionType = "WSD"
    image.ImageType = ["DERIVED", "SECONDARY"]
    image.SeriesDescription = "Screen Save"
    if burned_in:
        image.BurnedInAnnotation = "YES"
    picture = np.zeros((_SIZE, _SIZE, 3), dtype=np.uint8)
    picture[8:14, 8:80:3] = 255
    image.SamplesPerPixel, image.PhotometricInterpretation, image.PlanarConfiguration = 3, "RGB", 0
    image.Rows, image.Columns = _SIZE, _SIZE
    image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 8, 8, 7, 0
    image.PixelData = picture.tobytes()
    image["PixelData"].VR = "OB"
    plant_overlay(image, visit.person)
    return image


def dose_report(visit: Visit, number: int) -> Dataset:
    """A structured report of the radiation dose, as small as one can be (PS3.16 TID 10011)."""
    report = begin(visit, XRayRadiationDoseSRStorage, "SR", "report", number=number, minutes=20)
    report.SeriesDescription = "Dose Report"
    report.ValueType, report.ContinuityOfContent = "CONTAINER", "SEPARATE"
    report.ConceptNameCodeSequence = [code("113701", "DCM", "X-Ray Radiation Dose Report")]
    report.CompletionFlag, report.VerificationFlag = "COMPLETE", "UNVERIFIED"
    told = Dataset()
    told.RelationshipType, told.ValueType = "HAS OBS CONTEXT", "PNAME"
    told.ConceptNameCodeSequence = [code("121008", "DCM", "Person Observer Name")]
    told.PersonName = visit.person.texts["PatientName"]
    report.ContentSequence = [told]
    return report


def dose_grid(scan: Scan, number: int) -> Dataset:
    """A planned dose: an image of several frames, but not of the patient (PS3.3 A.18.3)."""
    dose = begin(scan.visit, RTDoseStorage, "RTDOSE", "dose", number=number, minutes=150)
    dose.SeriesDescription = "Plan dose"
    dose.Manufacturer = "Phantom Planning"
    dose.FrameOfReferenceUID = scan.visit.uid("frame", scan.frame)
    dose.DoseUnits, dose.DoseType, dose.DoseSummationType, dose.DoseGridScaling = "GY", "PHYSICAL", "PLAN", "0.001"
    dose.ImageOrientationPatient, dose.PixelSpacing = decimals((1.0, 0, 0, 0, 1, 0)), ["30", "30"]
    dose.ImagePositionPatient = decimals(np.diag([-1, -1, 1]) @ scan.affine[:3, 3])
    dose.GridFrameOffsetVector = [decimal(20.0 * plane) for plane in range(8)]
    dose.FrameIncrementPointer = 0x3004000C
    grid = 40_000 * np.exp(-(((np.indices((8, 10, 12)).T - [3.5, 4.5, 5.5]).T / 3.0) ** 2).sum(0))
    set_pixels(dose, grid.astype(np.uint16), 16)
    return dose


def leave_strays(folder: Path, person: Person, visit: Visit) -> Iterator[tuple[Path, Reason]]:
    """A DICOMDIR without records and a text: files of a medium that are no objects; yields what each is."""
    directory = Dataset()
    directory.SOPClassUID = MediaStorageDirectoryStorage
    directory.SOPInstanceUID = visit.uid("directory")
    directory.FileSetID = "PHANTOM"
    directory.OffsetOfTheFirstDirectoryRecordOfTheRootDirectoryEntity = 0
    directory.OffsetOfTheLastDirectoryRecordOfTheRootDirectoryEntity = 0
    directory.FileSetConsistencyFlag = 0
    directory.DirectoryRecordSequence = []
    save(directory, folder / "DICOMDIR")
    yield folder / "DICOMDIR", Reason.NOT_AN_IMAGE
    text = folder / "README.TXT"
    text.write_text(f"Images of {person.texts['PatientName']}\n", encoding="utf-8")
    yield text, Reason.NOT_DICOM
