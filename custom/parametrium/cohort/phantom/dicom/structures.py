"""Outlines of organs: as a planning system exports them (RTSTRUCT), and as masks (SEG)."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

import contourpy
import highdicom
import numpy as np
from numpy.typing import NDArray
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code as Concept
from pydicom.tag import Tag
from pydicom.uid import RTStructureSetStorage

from parametrium.cohort.phantom.dicom.header import Visit, begin, clock
from parametrium.cohort.phantom.dicom.identity import plant_identity
from parametrium.cohort.phantom.dicom.layout import Planes

_MINUTES = 130.0
_CONTOUR_DATA = Tag(0x30060050)
_INTERPRETED = {"body": "EXTERNAL", "tumour": "GTV", "nodes": "GTV"}


def structure_set(visit: Visit, images: Sequence[Dataset], masks: Mapping[str, Planes], *, number: int) -> Dataset:
    """An RTSTRUCT with one closed planar contour a piece and plane (PS3.3 C.8.8.6).

    A hole is joined to its piece by a channel of no width, as planning systems do: contours that overlap have no
    agreed meaning.

    Args:
        visit: the study.
        images: of the series that was outlined: one a plane, or one for all.
        masks: by structure, on the planes of that series.
        number: of the series.
    """
    first = images[0]
    whole = begin(visit, RTStructureSetStorage, "RTSTRUCT", "structures", number=number, minutes=_MINUTES)
    whole.SeriesDescription = "Structures"
    whole.Manufacturer = "Phantom Planning"
    whole.StructureSetLabel = whole.StructureSetName = "PELVIS"
    whole.StructureSetDate, whole.StructureSetTime = whole.SeriesDate, whole.SeriesTime
    whole.FrameOfReferenceUID = first.FrameOfReferenceUID
    whole.ReferencedFrameOfReferenceSequence = [_referenced(visit, images)]
    whole.StructureSetROISequence, whole.ROIContourSequence, whole.RTROIObservationsSequence = [], [], []
    for roi, (structure, planes) in enumerate(masks.items(), start=1):
        whole.StructureSetROISequence.append(
            _item(
                ROINumber=roi,
                ReferencedFrameOfReferenceUID=first.FrameOfReferenceUID,
                ROIName=structure,
                ROIGenerationAlgorithm="MANUAL",
            )
        )
        contours = list(_contours(planes, images))
        whole.ROIContourSequence.append(
            _item(ReferencedROINumber=roi, ROIDisplayColor=[255, 40 * roi % 256, 0], ContourSequence=contours)
        )
        whole.RTROIObservationsSequence.append(
            _item(
                ObservationNumber=roi,
                ReferencedROINumber=roi,
                RTROIInterpretedType=_INTERPRETED.get(structure, "ORGAN"),
                ROIInterpreter="",
            )
        )
    return whole


def _referenced(visit: Visit, images: Sequence[Dataset]) -> Dataset:
    """Which frame of reference, study, series and images were outlined."""
    listed = [_item(ReferencedSOPClassUID=i.SOPClassUID, ReferencedSOPInstanceUID=i.SOPInstanceUID) for i in images]
    series = _item(SeriesInstanceUID=images[0].SeriesInstanceUID, ContourImageSequence=listed)
    study = _item(
        ReferencedSOPClassUID="1.2.840.10008.3.1.2.3.1",
        ReferencedSOPInstanceUID=visit.uid("study"),
        RTReferencedSeriesSequence=[series],
    )
    return _item(FrameOfReferenceUID=images[0].FrameOfReferenceUID, RTReferencedStudySequence=[study])


def _contours(planes: Planes, images: Sequence[Dataset]) -> Iterator[Dataset]:
    for index, plane in enumerate(planes.values):
        for outline in outlines(plane):
            rows, columns = outline[:, 1:] * planes.spacing[0], outline[:, :1] * planes.spacing[1]
            points = planes.positions[index] + columns * planes.row + rows * planes.column
            image = images[index if len(images) > 1 else 0]
            source = _item(ReferencedSOPClassUID=image.SOPClassUID, ReferencedSOPInstanceUID=image.SOPInstanceUID)
            if len(images) == 1:
                source.ReferencedFrameNumber = index + 1
            contour = _item(
                ContourImageSequence=[source],
                ContourGeometricType="CLOSED_PLANAR",
                NumberOfContourPoints=len(points),
            )
            contour[_CONTOUR_DATA] = _encoded(points)
            contour.set_original_encoding(is_implicit_vr=False, is_little_endian=True, character_encoding="iso8859")
            yield contour


def _encoded(points: NDArray[np.float64]) -> RawDataElement:
    """Coordinates as they will be in the file: a hundred thousand numbers take the library seconds to check."""
    text = "\\".join(f"{value:.3f}" for value in points.ravel().tolist()).encode("ascii")
    text += b" " * (len(text) % 2)
    return RawDataElement(_CONTOUR_DATA, "DS", len(text), text, 0, False, True)


def outlines(mask: NDArray[np.bool_]) -> Iterator[NDArray[np.float64]]:
    """The pieces of a mask [R, C] as polygons [n, 2] of (column, row), half a pixel outside of the centres within.

    Holes are part of their polygon, so that a point is inside by the even-odd rule as by the winding rule.
    """
    if not mask.any():
        return
    padded = np.pad(mask, 1).astype(np.float32)
    # Half a pixel outside is where a linear interpolation between the centres crosses one half.
    generator = contourpy.contour_generator(z=padded, fill_type=contourpy.FillType.OuterOffset)
    for points, offsets in zip(*generator.filled(0.5, 2.0), strict=True):
        if points is None or offsets is None:
            continue
        rings = [points[start : stop - 1] for start, stop in pairwise(offsets.astype(int).tolist())]
        polygon = rings[0]
        for hole in rings[1:]:
            polygon = _joined(polygon, hole)
        yield polygon - 1.0


def _joined(polygon: NDArray[np.float64], hole: NDArray[np.float64]) -> NDArray[np.float64]:
    """A polygon with a channel to a hole, in and back the same way, between their closest points."""
    gaps = ((polygon[:, None] - hole[None]) ** 2).sum(-1)
    near, far = np.unravel_index(int(np.argmin(gaps)), gaps.shape)
    around = np.concatenate([hole[far:], hole[: far + 1]])
    return np.concatenate([polygon[: near + 1], around, polygon[near:]])


def segmentation(visit: Visit, images: Sequence[Dataset], masks: Mapping[str, Planes], *, number: int) -> Dataset:
    """A binary SEG with one segment a structure (PS3.3 A.51), as research tools export it; arguments as above."""
    described = [
        highdicom.seg.SegmentDescription(
            segment_number=segment,
            segment_label=structure,
            segmented_property_category=Concept("123037004", "SCT", "Anatomical Structure"),
            segmented_property_type=Concept("91723000", "SCT", "Anatomical structure"),
            algorithm_type="MANUAL",
        )
        for segment, structure in enumerate(masks, start=1)
    ]
    pixels = np.stack([planes.values for planes in masks.values()], axis=-1).astype(np.uint8)
    whole = highdicom.seg.Segmentation(
        source_images=images,
        pixel_array=pixels,
        segmentation_type="BINARY",
        segment_descriptions=described,
        series_instance_uid=visit.uid("series", "segmentation"),
        series_number=number,
        sop_instance_uid=visit.uid("instance", "segmentation"),
        instance_number=1,
        manufacturer="Phantom Research",
        manufacturer_model_name="Phantom",
        software_versions="1",
        device_serial_number="1",
    )
    _make_reproducible(whole, visit)
    plant_identity(whole, visit.person)
    return whole


def _make_reproducible(whole: Dataset, visit: Visit) -> None:
    """Replaces what the library takes from the clock and from chance."""
    del whole.ContributingEquipmentSequence  # holds the time of writing
    dimension = visit.uid("dimension", "segmentation")
    for item in (*whole.DimensionOrganizationSequence, *whole.DimensionIndexSequence):
        item.DimensionOrganizationUID = dimension
    whole.ContentDate = whole.SeriesDate = whole.InstanceCreationDate = f"{visit.date:%Y%m%d}"
    whole.ContentTime = whole.SeriesTime = whole.InstanceCreationTime = clock(visit.at(_MINUTES))


def _item(**values: object) -> Dataset:
    item = Dataset()
    for name, value in values.items():
        setattr(item, name, value)
    return item
