"""Planes of an enhanced multi-frame file: shared and per-frame functional groups (PS3.3 C.7.6.16)."""

from pathlib import Path

from parametrium.cohort.dicom.elements import Elements, Tag
from parametrium.cohort.dicom.facts import Facts, Slice
from parametrium.cohort.dicom.planes import Traits, image_shape, plane_at

ENHANCED_TAGS: tuple[Tag, ...] = (
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
    "NumberOfFrames",
)

_MAXIMUM_FRAMES = 100_000
_FRAME_TYPES = (
    "MRImageFrameTypeSequence",
    "CTImageFrameTypeSequence",
    "PETFrameTypeSequence",
    "TableCradleTiltAngle",
)  # MR, CT, PET, X-ray 3D Image Frame Type Sequence


class _Groups:
    """A frame's functional groups: its own, else the file's shared ones."""

    def __init__(self, frame: Elements | None, shared: Elements | None) -> None:
        self._sources = [source for source in (frame, shared) if source is not None]

    def group(self, tag: str) -> Elements | None:
        """The macro's item."""
        return next((item for source in self._sources if (item := source.item(tag)) is not None), None)

    def numbers(self, group: str, *tags: str) -> tuple[float, ...]:
        """Numbers of the first of ``tags`` that the macro holds."""
        item = self.group(group)
        return next((numbers for tag in tags if item and (numbers := item.numbers(tag))), ())

    def number(self, group: str, *tags: str) -> float | None:
        """The first of them."""
        numbers = self.numbers(group, *tags)
        return numbers[0] if numbers else None


def frame_planes(path: Path, instance: str, facts: Facts, elements: Elements) -> list[tuple[Slice, Traits]]:
    """One plane a frame, in the file's order; none where any frame has no place in the patient."""
    shared = elements.item("SharedFunctionalGroupsSequence")
    frames = elements.items("PerFrameFunctionalGroupsSequence")
    count = elements.integer("NumberOfFrames") or 1
    if not 0 < count <= _MAXIMUM_FRAMES or len(frames) not in (0, count) or (not frames and count > 1):
        return []
    shape = image_shape(elements)
    planes = []
    for number, frame in enumerate(frames or [None]):
        groups = _Groups(frame, shared)
        plane = plane_at(
            path,
            number,
            instance,
            shape=shape,
            position=groups.numbers("PlanePositionSequence", "ImagePositionPatient"),
            orientation=groups.numbers("PlaneOrientationSequence", "ImageOrientationPatient"),
            spacing=groups.numbers("PixelMeasuresSequence", "PixelSpacing"),
            slope=groups.number("PixelValueTransformationSequence", "RescaleSlope"),
            intercept=groups.number("PixelValueTransformationSequence", "RescaleIntercept"),
        )
        if plane is None:
            return []
        planes.append((plane, _traits(groups, facts, elements, number)))
    return planes


def _traits(groups: _Groups, facts: Facts, elements: Elements, number: int) -> Traits:
    diffusion = groups.group("MRDiffusionSequence")
    content = groups.group("FrameContentSequence")
    return Traits(
        image_type=_frame_type(groups) or facts.image_type,
        b_value=diffusion.number("DiffusionBValue") if diffusion else None,
        isotropic=diffusion is not None and diffusion.word("DiffusionDirectionality") == "ISOTROPIC",
        echo_time_ms=groups.number("MREchoSequence", "EffectiveEchoTime"),
        inversion_time_ms=groups.number("MRModifierSequence", "InversionTimes"),
        flip_angle_deg=groups.number("MRTimingAndRelatedParametersSequence", "FlipAngle"),
        repetition_time_ms=groups.number("MRTimingAndRelatedParametersSequence", "RepetitionTime"),
        temporal=content.integer("TemporalPositionIndex") if content else None,
        trigger_ms=groups.number("CardiacSynchronizationSequence", "NominalCardiacTriggerDelayTime"),
        acquisition=content.integer("FrameAcquisitionNumber") if content else None,
        time_s=None,
        number=(elements.integer("InstanceNumber") or 0) * _MAXIMUM_FRAMES + number,
        thickness_mm=groups.number("PixelMeasuresSequence", "SliceThickness"),
    )


def _frame_type(groups: _Groups) -> tuple[str, ...]:
    """Frame Type, with the words that tell magnitude from phase where its own do not (PS3.3 C.8.13.3.1)."""
    for tag in _FRAME_TYPES:
        item = groups.group(tag)
        if item is not None:
            component = item.word("ComplexImageComponent")
            words = item.words("FrameType")
            return words + ((component,) if component and component not in ("MAGNITUDE", "MIXED") else ())
    return ()
