"""Files of a series that show the same thing twice, and which of them is used.

Archives hold copies: sent again, moved again, cut off when a transfer broke. Of the copies of one object the one whose
pixel data are all there is used, whatever the order of the files; where a frame of it cannot be decoded, another copy
that lies at the same place is tried.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path

from parametrium.cohort.dicom.header import Instance
from parametrium.cohort.dicom.part10 import opened
from parametrium.cohort.dicom.pixel_layout import holds_all_pixels
from parametrium.cohort.dicom.quiet import quiet


@dataclass(frozen=True)
class Distinct:
    """The instances of a series, each once.

    Attributes:
        once: by their UID the best copy of each, in the order in which they first came.
        copies: the others.
        spare: of a file in ``once`` the copies that may stand in for it, the best first.
    """

    once: list[Instance]
    copies: list[Instance]
    spare: Mapping[Path, tuple[Path, ...]]


def distinct(instances: Iterable[Instance]) -> Distinct:
    """Each SOP instance once. Only files that share their UID with another are looked at again."""
    by_uid: dict[object, list[Instance]] = {}
    for place, instance in enumerate(instances):
        by_uid.setdefault(instance.identity.instance or place, []).append(instance)
    once: list[Instance] = []
    copies: list[Instance] = []
    spare: dict[Path, tuple[Path, ...]] = {}
    for group in by_uid.values():
        best, *others = _best_first(group)
        once.append(best)
        copies.extend(others)
        alike = tuple(other.path for other in others if _planes(other) == _planes(best))
        if alike:
            spare[best.path] = alike
    return Distinct(once, copies, spare)


def _best_first(group: Sequence[Instance]) -> list[Instance]:
    """Those with a place in the patient first, among them those with all their pixel data; else as they came."""
    if len(group) == 1:
        return list(group)
    return sorted(group, key=lambda instance: (not instance.slices, not holds_all_pixels(instance.path)))


def _planes(instance: Instance) -> list[object]:
    """Where an instance's planes lie and how they are scaled, whatever its file is called."""
    return [replace(plane, path=Path()) for plane in instance.slices]


def distinct_pixels(instances: Sequence[Instance]) -> tuple[list[Instance], list[Instance]]:
    """Single planes that were sent twice under two UIDs: nothing tells them apart, and neither do their pixels."""
    keys = [_key(instance) for instance in instances]
    repeated = {key for key, count in Counter(keys).items() if count > 1}
    once: list[Instance] = []
    same: list[Instance] = []
    seen: set[object] = set()
    for instance, key in zip(instances, keys, strict=True):
        if len(instance.slices) == 1 and key in repeated:
            digest = _pixel_digest(instance.path)
            if digest is not None and (key, digest) in seen:
                same.append(instance)
                continue
            seen.add((key, digest))
        once.append(instance)
    return once, same


def _key(instance: Instance) -> object:
    first = instance.slices[0]
    return first.position, first.row, first.column, first.shape, instance.traits[0].image_type


def _pixel_digest(path: Path) -> bytes | None:
    try:
        with quiet(), opened(path, ()) as file:
            if file.pixels is None:
                return None
            file.stream.seek(file.pixels.offset)
            return blake2b(file.stream.read(file.pixels.length), digest_size=16).digest()
    except Exception:  # what is wrong with the file is said when it is decoded
        return None
