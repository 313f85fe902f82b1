"""Objects that were made of an image and refer to it: structure sets and segmentations."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from parametrium.cohort.dicom.elements import BudgetSpentError, Elements, Tag
from parametrium.cohort.dicom.facts import LeftOut
from parametrium.cohort.dicom.header import Instance, read_instance
from parametrium.cohort.dicom.part10 import opened
from parametrium.cohort.dicom.quiet import quiet
from parametrium.cohort.problem import Reason

_Read = TypeVar("_Read")


@dataclass(frozen=True, slots=True)
class References:
    """Which image an object was made of; UIDs, empty where not told. Never written.

    Attributes:
        frame_of_reference: Frame of Reference UID.
        series: Series Instance UIDs.
        instances: SOP Instance UIDs of the slices.
    """

    frame_of_reference: str
    series: frozenset[str]
    instances: frozenset[str]

    def __bool__(self) -> bool:
        return bool(self.frame_of_reference or self.series or self.instances)


class RefusedError(Exception):
    """Something that no mask can be made of."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason.value)
        self.reason = reason


def read_referring(
    path: Path, classes: Collection[str], tags: Collection[Tag], parse: Callable[[Instance, Elements], _Read]
) -> _Read | LeftOut:
    """What ``parse`` makes of a file; a file that cannot be used becomes ``LeftOut``, whatever it holds.

    Args:
        path: any file.
        classes: SOP Class UIDs that are read.
        tags: elements that ``parse`` looks at.
        parse: may raise ``RefusedError``.
    """
    instance = read_instance(path, content=True)
    if isinstance(instance, LeftOut):
        return instance
    if instance.facts.sop_class not in classes:
        return LeftOut(instance.identity, Reason.NOT_AN_IMAGE)
    try:
        with quiet(), opened(path, tags, content=True) as file:
            return parse(instance, file.elements)
    except RefusedError as error:
        return LeftOut(instance.identity, error.reason)
    except (BudgetSpentError, MemoryError):
        return LeftOut(instance.identity, Reason.TOO_LARGE)
    except Exception:  # a damaged file makes pydicom raise nearly anything; each means the same here
        return LeftOut(instance.identity, Reason.UNREADABLE)
