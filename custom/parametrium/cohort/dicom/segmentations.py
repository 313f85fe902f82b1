"""DICOM segmentations (SEG, PS3.3 A.51) as masks on the grid of an image: binary, fractional and label map.

A frame may lie anywhere: it need not have the image's orientation, spacing or order, and frames without a segment's
voxel may be missing. Each voxel of the image takes the nearest voxel of the segmentation, if its centre falls into one.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from parametrium.cohort.dicom.elements import Elements
from parametrium.cohort.dicom.facts import Grid, Identity, LeftOut, Slice
from parametrium.cohort.dicom.frame_stack import SAME_PLACE_MM, FrameStack, height_of, is_above, put_on_grid
from parametrium.cohort.dicom.frames import ENHANCED_TAGS, frame_planes
from parametrium.cohort.dicom.header import Instance
from parametrium.cohort.dicom.planes import PLANE_TAGS
from parametrium.cohort.dicom.quiet import quiet
from parametrium.cohort.dicom.references import References, RefusedError, read_referring
from parametrium.cohort.dicom.segment_frames import FrameFile, frame_file
from parametrium.cohort.dicom.structure_names import safe_names
from parametrium.cohort.problem import Reason

SEGMENTATION_CLASSES = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
"""Segmentation Storage and Label Map Segmentation Storage."""

_TAGS = (
    *("SegmentationType", "SegmentSequence", "MaximumFractionalValue", "ReferencedSeriesSequence"),
    *ENHANCED_TAGS,
    *PLANE_TAGS,
)

_MOST_SEGMENTS = 2_000
_MOST_VOXELS = 2**30  # of the frames that are looked at together: 1 GiB
_THRESHOLD = 0.5  # of a fractional segmentation: as probability or as occupancy, more inside than outside


@dataclass(frozen=True, slots=True)
class Segment:
    """One segment: its number in the file, a word that may be written, and which frames hold it, from 0."""

    number: int
    name: str
    frames: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Segmentation:
    """One SEG file.

    Attributes:
        path: the file.
        identity: whose it is; never written.
        references: which image it was made of.
        kind: BINARY, FRACTIONAL or LABELMAP.
        threshold: stored value from which on a voxel is inside; not for a label map.
        planes: where each frame lies.
        spacing_mm: between neighbouring frames; None where a single one does not tell.
        segments: in the file's order.
    """

    path: Path
    identity: Identity
    references: References
    kind: str
    threshold: float
    planes: tuple[Slice, ...]
    spacing_mm: float | None
    segments: tuple[Segment, ...]


def read_segmentation(path: Path) -> Segmentation | LeftOut:
    """Reads a segmentation's header; a file that cannot be used becomes ``LeftOut`` with its reason.

    Args:
        path: any file.
    """
    return read_referring(path, SEGMENTATION_CLASSES, _TAGS, _segmentation)


def rasterise(segmentation: Segmentation, grid: Grid) -> Iterator[tuple[str, NDArray[np.uint8] | Reason]]:
    """One mask a segment, made when it is asked for.

    Args:
        segmentation: as read; its file is read again.
        grid: of the image.

    Yields:
        Name, and [I, J, K] of 0 and 1 or the reason why this segment has none.
    """
    with ExitStack() as held:
        try:
            with quiet():
                source = held.enter_context(frame_file(segmentation.path, segmentation.planes[0].shape))
        except Exception:  # as in _stack
            yield from ((segment.name, Reason.UNDECODABLE) for segment in segmentation.segments)
            return
        labels: FrameStack | Reason | None = None
        for segment in segmentation.segments:
            if segmentation.kind == "LABELMAP":
                if labels is None:  # every frame holds every segment: decoded once, not once a segment
                    labels = _stack(segmentation, segment, source)
                stack = labels if isinstance(labels, Reason) else labels.only(segment.number)
            else:
                stack = _stack(segmentation, segment, source)
            yield segment.name, stack if isinstance(stack, Reason) else put_on_grid(stack, grid)


def _segmentation(instance: Instance, elements: Elements) -> Segmentation:
    kind = elements.word("SegmentationType")
    described = [segment for segment in elements.items("SegmentSequence") if segment.integer("SegmentNumber")]
    if kind not in ("BINARY", "FRACTIONAL", "LABELMAP"):
        raise RefusedError(Reason.UNREADABLE)
    if not described:
        raise RefusedError(Reason.EMPTY_STRUCTURE)
    if len(described) > _MOST_SEGMENTS:
        raise RefusedError(Reason.TOO_LARGE)
    references = _references(instance.identity, elements)
    if not references:
        raise RefusedError(Reason.STRUCTURES_WITHOUT_IMAGE)
    located = frame_planes(instance.path, instance.identity.instance, instance.facts, elements)
    planes = tuple(plane for plane, _ in located)
    if not planes:
        raise RefusedError(Reason.NO_GEOMETRY)
    fraction = _THRESHOLD * (elements.number("MaximumFractionalValue") or 255.0)
    return Segmentation(
        path=instance.path,
        identity=instance.identity,
        references=references,
        kind=kind,
        threshold=fraction if kind == "FRACTIONAL" else 1.0,
        planes=planes,
        spacing_mm=_spacing(planes, elements),
        segments=_segments(kind, described, elements, len(planes)),
    )


def _segments(kind: str, described: Sequence[Elements], elements: Elements, count: int) -> tuple[Segment, ...]:
    """Segments with their frames; background, number 0 of a label map, is none."""
    names = safe_names([_texts(segment) for segment in described])
    numbers = [segment.integer("SegmentNumber") or 0 for segment in described]
    if kind == "LABELMAP":
        every = tuple(range(count))
        return tuple(Segment(number, name, every) for number, name in zip(numbers, names, strict=True))
    shared = _shown(elements.item("SharedFunctionalGroupsSequence"))
    held: dict[int | None, list[int]] = {}
    for place, frame in enumerate(elements.items("PerFrameFunctionalGroupsSequence") or [None]):
        held.setdefault(_shown(frame) or shared, []).append(place)
    return tuple(
        Segment(number, name, tuple(held.get(number, ()))) for number, name in zip(numbers, names, strict=True)
    )


def _shown(groups: Elements | None) -> int | None:
    """Number of the segment that a frame shows."""
    item = groups.item("SegmentIdentificationSequence") if groups else None
    return item.integer("ReferencedSegmentNumber") if item else None


def _texts(segment: Elements) -> Sequence[str]:
    """Label, and the meaning of the property type with its laterality."""
    kind = segment.item("SegmentedPropertyTypeCodeSequence")
    if kind is None:
        return (segment.text("SegmentLabel"),)
    modifier = kind.item("SegmentedPropertyTypeModifierCodeSequence")
    return segment.text(
        "SegmentLabel"
    ), f"{kind.text('CodeMeaning')} {modifier.text('CodeMeaning') if modifier else ''}"


def _references(identity: Identity, elements: Elements) -> References:
    listed = elements.items("ReferencedSeriesSequence")
    series = {item.text("SeriesInstanceUID") for item in listed} - {""}
    instances = {
        image.text("ReferencedSOPInstanceUID") for item in listed for image in item.items("ReferencedInstanceSequence")
    } - {""}
    if not instances:
        groups = chain(
            elements.items("SharedFunctionalGroupsSequence"), elements.items("PerFrameFunctionalGroupsSequence")
        )
        sources = (
            source
            for group in groups
            for item in group.items("DerivationImageSequence")
            for source in item.items("SourceImageSequence")
        )
        instances = {source.text("ReferencedSOPInstanceUID") for source in sources} - {""}
    return References(identity.frame_of_reference, frozenset(series), frozenset(instances))


def _spacing(planes: Sequence[Slice], elements: Elements) -> float | None:
    """Millimetres between frames: as told, else the least that two are apart, else their thickness.

    Frames may be missing, so the distance of neighbours in the file is no measure; and thickness is no distance.
    """
    groups = [
        *elements.items("SharedFunctionalGroupsSequence")[:1],
        *elements.items("PerFrameFunctionalGroupsSequence")[:1],
    ]
    measures = [item for group in groups if (item := group.item("PixelMeasuresSequence"))]
    told = next((number for item in measures if (number := item.number("SpacingBetweenSlices"))), 0.0)
    if told > 0:
        return told
    gaps = np.diff(np.sort([height_of(plane, planes[0]) for plane in planes]))
    gaps = gaps[gaps > SAME_PLACE_MM]
    if len(gaps):
        return float(gaps.min())
    thickness = next((number for item in measures if (number := item.number("SliceThickness"))), 0.0)
    return thickness if thickness > 0 else None


def _stack(segmentation: Segmentation, segment: Segment, source: FrameFile) -> FrameStack | Reason:
    """The segment's frames, decoded; frames at one place are united."""
    if not segment.frames:
        return Reason.EMPTY_STRUCTURE
    first = segmentation.planes[0]
    if not all(is_above(segmentation.planes[frame], first) for frame in segment.frames):
        return Reason.NO_GEOMETRY
    if len(segment.frames) * first.shape[0] * first.shape[1] > _MOST_VOXELS:
        return Reason.TOO_LARGE
    heights = {frame: height_of(segmentation.planes[frame], first) for frame in segment.frames}
    positions: list[float] = []
    levels: dict[int, int] = {}
    for frame in sorted(heights, key=heights.__getitem__):
        if not positions or heights[frame] - positions[-1] > SAME_PLACE_MM:
            positions.append(heights[frame])
        levels[frame] = len(positions) - 1
    try:
        voxels = _decoded(segmentation, source, levels, (len(positions), *first.shape))
    except MemoryError:
        return Reason.TOO_LARGE
    except Exception:  # decoders raise nearly anything for damaged data; each means the same here
        return Reason.UNDECODABLE
    return FrameStack(voxels, np.asarray(positions), first, segmentation.spacing_mm)


def _decoded(
    segmentation: Segmentation, source: FrameFile, levels: dict[int, int], shape: tuple[int, int, int]
) -> NDArray[np.uint8 | np.uint16]:
    """[F, R, C] of labels, or of 1 where a voxel is inside; ``levels`` says where each frame goes."""
    labels = segmentation.kind == "LABELMAP"
    voxels = np.zeros(shape, dtype=np.uint16 if labels else np.uint8)
    with quiet():
        for frame, stored in source.stored(levels):
            level = voxels[levels[frame]]
            np.maximum(level, stored if labels else stored >= segmentation.threshold, out=level, casting="unsafe")
    return voxels
