"""Radiotherapy structure sets (RTSTRUCT, PS3.3 A.19) as masks on the grid of the image that they were drawn on.

Only closed planar contours make a mask; points, open lines and interpolated markers are no volume.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from parametrium.cohort.dicom.contours import Points, rasterise_contours
from parametrium.cohort.dicom.elements import Elements
from parametrium.cohort.dicom.facts import Grid, Identity, LeftOut
from parametrium.cohort.dicom.header import Instance
from parametrium.cohort.dicom.references import References, RefusedError, read_referring
from parametrium.cohort.dicom.structure_names import safe_names
from parametrium.cohort.problem import Reason

STRUCTURE_SET_CLASS = "1.2.840.10008.5.1.4.1.1.481.3"

_TAGS = (
    "StructureSetROISequence",
    "ROIContourSequence",
    "RTROIObservationsSequence",
    "ReferencedFrameOfReferenceSequence",
)
_CLOSED = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")
_MOST_STRUCTURES = 2_000
_MOST_POINTS = 20_000_000  # of all structures: 480 MB
_FARTHEST_MM = 10_000.0
_TO_RAS = np.diag([-1.0, -1.0, 1.0])


@dataclass(frozen=True, slots=True, eq=False)
class Structure:
    """One structure as it was drawn.

    Attributes:
        number: its number in the file.
        name: a word that may be written (``structure_names``).
        contours: [N, 3] corners of each closed contour, LPS mm.
        reason: why no mask can be made of it; None where one can.
    """

    number: int
    name: str
    contours: tuple[Points, ...] = ()
    reason: Reason | None = None


@dataclass(frozen=True, slots=True, eq=False)
class StructureSet:
    """One RTSTRUCT file: whose it is, which image it belongs to, and its structures in the file's order."""

    identity: Identity
    references: References
    structures: tuple[Structure, ...]


def read_structures(path: Path) -> StructureSet | LeftOut:
    """Reads a structure set; a file that cannot be used becomes ``LeftOut`` with its reason, whatever it holds.

    Args:
        path: any file.
    """
    return read_referring(path, (STRUCTURE_SET_CLASS,), _TAGS, _structure_set)


def rasterise(structure_set: StructureSet, grid: Grid) -> Iterator[tuple[str, NDArray[np.uint8] | Reason]]:
    """One mask a structure, made when it is asked for.

    Args:
        structure_set: as read.
        grid: of the image that the structures were drawn on.

    Yields:
        Name, and [I, J, K] of 0 and 1 or the reason why this structure has none.
    """
    to_voxel = np.linalg.inv(grid.affine)
    matrix, start = to_voxel[:3, :3] @ _TO_RAS, to_voxel[:3, 3]
    spacing = np.linalg.norm(grid.affine[:3, :3], axis=0)
    for structure in structure_set.structures:
        if structure.reason is not None:
            yield structure.name, structure.reason
            continue
        contours = [points @ matrix.T + start for points in structure.contours]
        yield structure.name, rasterise_contours(contours, grid.shape, spacing.tolist())


def _structure_set(instance: Instance, elements: Elements) -> StructureSet:
    rois = elements.items("StructureSetROISequence")
    if not rois:
        raise RefusedError(Reason.EMPTY_STRUCTURE)
    if len(rois) > _MOST_STRUCTURES:
        raise RefusedError(Reason.TOO_LARGE)
    drawn = {roi.integer("ReferencedROINumber"): roi for roi in elements.items("ROIContourSequence")}
    frame = _frame(rois, drawn, elements)
    observations = {roi.integer("ReferencedROINumber"): roi for roi in elements.items("RTROIObservationsSequence")}
    told = [observations.get(roi.integer("ROINumber")) for roi in rois]
    names = safe_names(
        [(roi.text("ROIName"), *_meanings(observed)) for roi, observed in zip(rois, told, strict=True)],
        [observed.word("RTROIInterpretedType") if observed else "" for observed in told],
    )
    references = _references(frame, elements, drawn.values())
    if not references:
        raise RefusedError(Reason.STRUCTURES_WITHOUT_IMAGE)
    structures = []
    points = _MOST_POINTS
    for roi, name in zip(rois, names, strict=True):
        number = roi.integer("ROINumber")
        if roi.text("ReferencedFrameOfReferenceUID") not in ("", frame):
            structure = Structure(number or 0, name, reason=Reason.STRUCTURES_WITHOUT_IMAGE)
        else:
            structure = _structure(number, name, drawn.get(number))
        points -= sum(len(contour) for contour in structure.contours)
        if points < 0:
            raise RefusedError(Reason.TOO_LARGE)
        structures.append(structure)
    return StructureSet(instance.identity, references, tuple(structures))


def _structure(number: int | None, name: str, drawn: Elements | None) -> Structure:
    """One structure; a contour that cannot be read refuses it whole, as a mask without it would be wrong."""
    contours: list[Points] = []
    try:
        for item in drawn.items("ContourSequence") if drawn else ():
            if item.word("ContourGeometricType") in _CLOSED:
                points = _points(item.octets("ContourData"))
                if len(points) >= 3:
                    contours.append(points)
    except RefusedError as error:
        return Structure(number or 0, name, reason=error.reason)
    return Structure(number or 0, name, tuple(contours), None if contours else Reason.EMPTY_STRUCTURE)


def _points(data: bytes) -> Points:
    """[N, 3] of Contour Data, decimal text; read at once, since each number as an object of its own takes minutes."""
    text = data.strip(b"\0 \\")
    if not text:
        return np.empty((0, 3))
    try:
        numbers = np.fromstring(text.replace(b"\\", b" ").decode("latin-1"), dtype=np.float64, sep=" ")
    except (ValueError, DeprecationWarning) as error:
        raise RefusedError(Reason.UNREADABLE) from error
    if len(numbers) != text.count(b"\\") + 1 or len(numbers) % 3:
        raise RefusedError(Reason.UNREADABLE)
    if not np.isfinite(numbers).all():
        raise RefusedError(Reason.NOT_FINITE)
    if np.abs(numbers).max() > _FARTHEST_MM:
        raise RefusedError(Reason.IMPLAUSIBLE_GEOMETRY)
    return numbers.reshape(-1, 3)


def _frame(rois: Sequence[Elements], drawn: dict[int | None, Elements], elements: Elements) -> str:
    """The frame of reference that most drawn structures name, else the one that the file refers to."""
    named = Counter(roi.text("ReferencedFrameOfReferenceUID") for roi in rois if roi.integer("ROINumber") in drawn)
    del named[""]
    if named:
        return named.most_common(1)[0][0]
    referred = elements.item("ReferencedFrameOfReferenceSequence")
    return referred.text("FrameOfReferenceUID") if referred else ""


def _meanings(observed: Elements | None) -> Iterator[str]:
    """Meanings of an observation's codes: words of the standard, but compared with ours all the same."""
    for code in observed.items("RTROIIdentificationCodeSequence") if observed else ():
        yield code.text("CodeMeaning")


def _references(frame: str, elements: Elements, drawn: Iterable[Elements]) -> References:
    """Series and slices of the frame of reference; slices from the contours where the file lists none."""
    frames = elements.items("ReferencedFrameOfReferenceSequence")
    own = [item for item in frames if item.text("FrameOfReferenceUID") == frame] or frames
    listed = [
        series
        for item in own
        for study in item.items("RTReferencedStudySequence")
        for series in study.items("RTReferencedSeriesSequence")
    ]
    instances = {
        image.text("ReferencedSOPInstanceUID") for series in listed for image in series.items("ContourImageSequence")
    }
    if not instances - {""}:
        contours = (contour for roi in drawn for contour in roi.items("ContourSequence"))
        instances = {
            image.text("ReferencedSOPInstanceUID")
            for contour in contours
            for image in contour.items("ContourImageSequence")
        }
    series = {item.text("SeriesInstanceUID") for item in listed}
    return References(frame, frozenset(series - {""}), frozenset(instances - {""}))
