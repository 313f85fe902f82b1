"""A series as one enhanced multi-frame object, with what differs from frame to frame in functional groups."""

from collections.abc import Sequence

import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage, EnhancedCTImageStorage, EnhancedMRImageStorage, MRImageStorage

from parametrium.cohort.phantom.dicom.header import Visit, duplicate, set_pixels

_ENHANCED = {CTImageStorage: EnhancedCTImageStorage, MRImageStorage: EnhancedMRImageStorage}

_SHARED = {
    # sequence: the attributes of the classic image that go into it
    "PixelMeasuresSequence": ("PixelSpacing", "SliceThickness", "SpacingBetweenSlices"),
    "PlaneOrientationSequence": ("ImageOrientationPatient",),
    "PixelValueTransformationSequence": ("RescaleIntercept", "RescaleSlope", "RescaleType"),
    "MRTimingAndRelatedParametersSequence": ("RepetitionTime", "FlipAngle", "EchoTrainLength"),
    "CTXRayDetailsSequence": ("KVP", "DataCollectionDiameter"),
}
_GONE = (
    *(name for names in _SHARED.values() for name in names),
    *("ImagePositionPatient", "SliceLocation", "EchoTime", "ScanningSequence", "SequenceVariant", "SequenceName"),
    *("ScanOptions", "GantryDetectorTilt", "XRayTubeCurrent", "ExposureTime", "ConvolutionKernel"),
    *("RealWorldValueMappingSequence", "AcquisitionTime", "AcquisitionDate", "ContrastBolusAgent"),
)


def can_be_multiframe(images: Sequence[Dataset]) -> bool:
    """Whether there is an enhanced object for the series; PET stays as it is."""
    return images[0].SOPClassUID in _ENHANCED


def multiframe(images: Sequence[Dataset], visit: Visit) -> Dataset:
    """One enhanced MR or CT object (PS3.3 A.36, A.38) from the classic images of a series.

    Args:
        images: in order of acquisition; of one shape, slope and orientation.
        visit: gives the identifiers.
    """
    first = images[0]
    whole = duplicate(first)
    whole.SOPClassUID = _ENHANCED[first.SOPClassUID]
    whole.SOPInstanceUID = visit.uid("multiframe", first.SeriesInstanceUID)
    whole.AcquisitionDateTime = first.AcquisitionDate + first.AcquisitionTime
    whole.AcquisitionContrast = "DIFFUSION" if "DIFFUSION" in first.ImageType else "UNKNOWN"
    whole.ImageType = _frame_type(first)
    _add_sequence(whole, first)
    if "ContrastBolusAgent" in first:
        agent = Dataset()
        agent.ContrastBolusAgentNumber, agent.ContrastBolusAdministrationRouteSequence = 1, []
        whole.ContrastBolusAgentSequence = [agent]
    for name in _GONE:
        if name in whole:
            del whole[name]
    dimension = visit.uid("dimension", first.SeriesInstanceUID)
    whole.DimensionOrganizationSequence = [_item(DimensionOrganizationUID=dimension)]
    pointers = {"DimensionIndexPointer": 0x00209057, "FunctionalGroupPointer": 0x00209111}
    whole.DimensionIndexSequence = [_item(DimensionOrganizationUID=dimension, **pointers)]
    whole.SharedFunctionalGroupsSequence = [_shared(first)]
    whole.PerFrameFunctionalGroupsSequence = [_frame(image, index) for index, image in enumerate(images)]
    pixels = [np.frombuffer(image.PixelData, "<u2").reshape(image.Rows, image.Columns) for image in images]
    set_pixels(whole, np.stack(pixels), first.BitsStored)
    return whole


def _add_sequence(whole: Dataset, first: Dataset) -> None:
    """The pulse sequence, in the words of the enhanced object (PS3.3 C.8.13.4)."""
    if first.Modality == "MR":
        whole.PulseSequenceName = first.get("SequenceName", "TSE")
        whole.EchoPulseSequence = "SPIN" if first.ScanningSequence == "SE" else "GRADIENT"
        whole.EchoPlanarPulseSequence = "YES" if first.ScanningSequence == "EP" else "NO"
        whole.MultipleSpinEcho = "NO"
        whole.SteadyStatePulseSequence = "NONE"


def _frame_type(image: Dataset) -> list[str]:
    """Four words; the fourth says what a derived frame is (PS3.3 C.8.16.1)."""
    return [*image.ImageType[:2], "VOLUME", "ADC" if "ADC" in image.ImageType else "NONE"]


def _shared(image: Dataset) -> Dataset:
    groups = Dataset()
    for sequence, names in _SHARED.items():
        values = {name: image[name].value for name in names if name in image}
        if values:
            setattr(groups, sequence, [_item(**values)])
    if image.Modality == "MR":
        groups.MREchoSequence = [_item(EffectiveEchoTime=float(image.EchoTime))]
        groups.MRImageFrameTypeSequence = [_item(FrameType=_frame_type(image))]
    else:
        groups.CTImageFrameTypeSequence = [_item(FrameType=_frame_type(image))]
        # PS3.3 C.8.15.3.2.1: the table moves, or the tube turns about a table that stands.
        groups.CTAcquisitionTypeSequence = [_item(AcquisitionType="SPIRAL" if "ScanOptions" in image else "STATIONARY")]
    if "RealWorldValueMappingSequence" in image:
        groups.RealWorldValueMappingSequence = image.RealWorldValueMappingSequence
    return groups


def _frame(image: Dataset, index: int) -> Dataset:
    groups = Dataset()
    groups.FrameContentSequence = [
        _item(
            StackID="1",
            InStackPositionNumber=index + 1,
            DimensionIndexValues=[index + 1],
            FrameAcquisitionNumber=1,
            FrameAcquisitionDateTime=image.AcquisitionDate + image.AcquisitionTime,
        )
    ]
    groups.PlanePositionSequence = [_item(ImagePositionPatient=image.ImagePositionPatient)]
    return groups


def _item(**values: object) -> Dataset:
    item = Dataset()
    for name, value in values.items():
        setattr(item, name, value)
    return item
