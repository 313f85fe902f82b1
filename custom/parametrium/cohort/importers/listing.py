"""What a source of volume files holds, before anything is named or written: each importer reads its form into this.

Names here are the source's own and may identify a patient; they end in the site's private table and nowhere else.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path

from parametrium.cohort.problem import Reason

_STRUCTURE = re.compile(r"[^A-Za-z0-9.-]+")
_LONGEST_STRUCTURE = 40


@dataclass(frozen=True)
class Scan:
    """One volume of a source.

    Attributes:
        subject: the source's name of the patient.
        study: our name of the visit, never the source's, which may be a date.
        name: what the source calls the modality.
        path: absolute.
        day: days since the patient's first study.
        split: train, test, or empty where the source does not decide.
    """

    subject: str
    study: str
    name: str
    path: Path
    day: int = 0
    split: str = ""


@dataclass(frozen=True)
class Segmentation:
    """One mask or label map of a source; ``structure`` is written as it is."""

    subject: str
    study: str
    structure: str
    path: Path


@dataclass(frozen=True)
class LeftOut:
    """One file, row or folder that was not taken; ``subject`` and ``name`` are empty where they are not known."""

    subject: str
    name: str
    reason: Reason


@dataclass
class Listing:
    """A source while it is read, in its own order, so that nothing depends on the secret.

    Attributes:
        scans: volumes to take.
        masks: segmentations to take where a volume of the study lies on their grid.
        clinical: cells by column, by subject.
        left_out: what is not taken, and why.
        warnings: sentences with a remedy that name no patient and no file.
    """

    scans: list[Scan] = field(default_factory=list)
    masks: list[Segmentation] = field(default_factory=list)
    clinical: dict[str, dict[str, str]] = field(default_factory=dict)
    left_out: list[LeftOut] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def leave_out(self, subject: str, name: str, reason: Reason) -> None:
        """Notes one thing that is not taken."""
        self.left_out.append(LeftOut(subject, name, reason))


def entries_of(folder: Path) -> list[Path]:
    """What lies in a folder, by name, without the hidden; nothing where it is absent or may not be read."""
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError:
        return []


def structure_name(text: str) -> str:
    """A source's name of a structure as a safe word: letters, digits, dots, hyphens, and underscores for the rest."""
    return _STRUCTURE.sub("_", text).strip("_.-")[:_LONGEST_STRUCTURE] or "mask"
