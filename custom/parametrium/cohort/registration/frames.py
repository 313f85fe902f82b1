"""Which frame is brought onto which, and by which two volumes.

A frame is a group of a patient's volumes that are aligned already; it moves as one. First, within each study, the other
frames are brought onto the study's reference; then the studies' references, with all that joined them, onto the
patient's, in the order of their days. So the volumes of one visit, which objectives compare voxel by voxel, are never
farther apart than one registration, and they stay together where the step over the days is refused.

Where the first pair of volumes is refused, others are tried: the target's other volumes, then frames of the same study
that had their turn already, then the patient's reference. Nothing is brought onto a frame that is still to be moved by
itself, so there are no circles.

A reference is the frame with a CT, then the one with most modalities, then the earliest: a planning CT has the largest
field of view, no distortion, and is what treatment refers to.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from parametrium.cohort.manifest import Volume

_RANK = {
    "CT": 0,
    **dict.fromkeys(("T2", "T1", "T1c", "FLAIR"), 1),
    **dict.fromkeys(("CBCT", "DCE"), 2),
    **dict.fromkeys(("ADC", "DWI"), 3),
    "PET": 4,
}
"""How sharply a modality tells where the patient is; a modality that a job declares stands in the middle."""
MOST_PARTNERS = 3
"""Volumes that a frame is tried with: each more is one more chance to fit by chance, and takes seconds."""

_MAGNETIC = frozenset(("T2", "T1", "T1c", "FLAIR", "DCE", "ADC", "DWI"))


@dataclass(frozen=True)
class Frame:
    """Volumes of a patient that are aligned to each other, in table order; at least one."""

    volumes: tuple[Volume, ...]

    @property
    def name(self) -> str:
        """As in the tables."""
        return self.volumes[0].frame

    @property
    def first(self) -> Volume:
        """The earliest volume; its study is the frame's."""
        return min(self.volumes, key=lambda volume: volume.day)

    @property
    def lead(self) -> Volume:
        """The volume that speaks for the frame when it is moved."""
        return min(self.volumes, key=lambda volume: _rank(volume.modality))


def frames_of(volumes: Sequence[Volume]) -> list[Frame]:
    """The frames of one patient's volumes, in table order."""
    held: dict[str, list[Volume]] = {}
    for volume in volumes:
        held.setdefault(volume.frame, []).append(volume)
    return [Frame(tuple(own)) for own in held.values()]


def reference_of(frames: Sequence[Frame]) -> Frame:
    """The frame that the others are brought onto; the first of equals."""
    return min(frames, key=_precedence)


def patient_reference(frames: Sequence[Frame]) -> Frame:
    """The reference of all studies; it never moves."""
    studies: dict[str, list[Frame]] = {}
    for frame in frames:
        studies.setdefault(frame.first.study, []).append(frame)
    return reference_of([reference_of(own) for own in studies.values()])


def within_studies(frames: Sequence[Frame]) -> Iterator[tuple[str, str]]:
    """Names of frames to move and of their study's reference, the sharpest modality first, study by study."""
    studies: dict[str, list[Frame]] = {}
    for frame in sorted(frames, key=lambda frame: frame.first.day):
        studies.setdefault(frame.first.study, []).append(frame)
    for own in studies.values():
        reference = reference_of(own)
        others = [frame for frame in own if frame is not reference]
        for frame in sorted(others, key=lambda frame: _rank(frame.lead.modality)):
            yield frame.name, reference.name


def across_studies(frames: Sequence[Frame]) -> Iterator[tuple[str, str]]:
    """Names of the studies' references to move and of the patient's reference, by day."""
    studies: dict[str, list[Frame]] = {}
    for frame in frames:
        studies.setdefault(frame.first.study, []).append(frame)
    references = [reference_of(own) for own in studies.values()]
    target = patient_reference(frames)
    for frame in sorted(references, key=lambda frame: frame.first.day):
        if frame is not target:
            yield frame.name, target.name


def partners(frames: Sequence[Frame], moving: Volume, target: str, handled: Collection[str] = ()) -> list[Volume]:
    """Volumes to register another to, in the order in which they are tried, ``MOST_PARTNERS`` at the most.

    The first is the target's that fits best: sharp, alike, of the same visit. Others follow by the same measure; among
    them no PET, which is too blurred for a second opinion on anything but PET.

    Args:
        frames: of the patient.
        moving: leads the frame that is moved.
        target: name of the frame that it is to join.
        handled: names of frames that had their turn.
    """
    first, *own = sorted(_named(frames, target).volumes, key=lambda volume: _distance(moving, volume))
    last = patient_reference(frames).name
    others = [
        volume
        for frame in frames
        if frame.name not in (moving.frame, target)
        and (frame.name == last or (frame.name in handled and frame.first.study == moving.study))
        for volume in frame.volumes
    ]
    others = sorted([*own, *others], key=lambda volume: (volume.frame == last != target, *_distance(moving, volume)))
    sharp = [volume for volume in others if volume.modality == moving.modality or _rank(volume.modality) < _RANK["PET"]]
    return [first, *sharp][:MOST_PARTNERS]


def _named(frames: Sequence[Frame], name: str) -> Frame:
    return next(frame for frame in frames if frame.name == name)


def _precedence(frame: Frame) -> tuple[bool, int, int]:
    modalities = {volume.modality for volume in frame.volumes}
    return "CT" not in modalities, -len(modalities), frame.first.day


def _rank(modality: str) -> int:
    return _RANK.get(modality, 2)


def _distance(moving: Volume, volume: Volume) -> tuple[int, int]:
    alike = 2 if moving.modality == volume.modality else int({moving.modality, volume.modality} <= _MAGNETIC)
    return _rank(volume.modality) - alike + (moving.study != volume.study), _rank(volume.modality)
