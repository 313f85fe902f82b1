"""What a check found, before it is put into words and tables."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from parametrium.cohort.manifest import Cohort
from parametrium.cohort.problem import Problem
from parametrium.config import JobConfig
from parametrium.report.quality.measure import Measured
from parametrium.report.quality.pairs import Pair
from parametrium.report.quality.survey import Surveyed
from parametrium.report.quality.suspicion import Suspicion
from parametrium.report.quality.words import shown

KINDS = {
    "mislabelled": "name that does not fit",
    "duplicate": "duplicate",
    "outlier": "outlier",
    "misaligned": "not aligned",
}
REMEDIES = {
    "mislabelled": "open it; where the name is wrong, correct it: for DICOM by a series rule, otherwise in cohort.csv",
    "duplicate": "see which one is right, and take the other out of the source or of cohort.csv",
    "outlier": "open it; a rare but true scan stays, a wrong unit or a cut-off scan goes",
    "misaligned": "open both; where they do not fit, give one a frame of its own in cohort.csv",
}
"""What a site does about each kind."""
PLURALS = KINDS | {"mislabelled": "names that do not fit", "duplicate": "duplicates", "outlier": "outliers"}


@dataclass(frozen=True)
class Side:
    """A table beside the cohort's: its columns and rows, and whether some of it could not be read."""

    columns: tuple[str, ...] = ()
    rows: tuple[Mapping[str, str], ...] = ()
    unreadable: bool = False


@dataclass(frozen=True)
class Findings:
    """What a check found, before it is put into words.

    Attributes:
        cohort: as its tables say.
        surveyed: its volumes with usable headers, measured.
        problems: what was left out.
        suspicions: what looks wrong.
        pairs: registered volumes, worst overlap first.
        imported: the import's own problems.csv.
        registration: the registration's own table.
        job: whose modalities and clinical schema count; None for the vocabulary.
        name: of the cohort's folder.
    """

    cohort: Cohort
    surveyed: Sequence[Surveyed]
    problems: list[Problem]
    suspicions: list[Suspicion]
    pairs: Sequence[Pair]
    imported: Side = field(default_factory=Side)
    registration: Side = field(default_factory=Side)
    job: JobConfig | None = None
    name: str = ""

    @cached_property
    def measured(self) -> dict[int, Measured]:
        """The volumes that could be measured, by place in the survey."""
        return {n: item.found for n, item in enumerate(self.surveyed) if isinstance(item.found, Measured)}

    @cached_property
    def volumes(self) -> dict[str, int]:
        """How many of them, by modality, in the order of their first appearance."""
        return dict(Counter(self.surveyed[n].volume.modality for n in self.measured))

    @cached_property
    def flags(self) -> dict[int, list[str]]:
        """What is suspected of each volume, by place in the survey."""
        flags: dict[int, list[str]] = {}
        for suspicion in self.suspicions:
            for n in (suspicion.volume, *suspicion.others):
                flags.setdefault(n, []).append(KINDS[suspicion.kind])
        return flags

    @cached_property
    def ordinals(self) -> dict[int, int]:
        """Which volume it is, from 1, among those of one patient, study and modality; only where there are several."""
        groups: dict[tuple[str, str, str], list[int]] = {}
        for n, item in enumerate(self.surveyed):
            groups.setdefault((item.volume.patient, item.volume.study, item.volume.modality), []).append(n)
        return {n: at for group in groups.values() if len(group) > 1 for at, n in enumerate(group, 1)}

    def named(self, n: int) -> dict[str, str]:
        """Place, patient, study and modality of a volume, as the page shows them."""
        volume = self.surveyed[n].volume
        names = {"patient": shown(volume.patient), "study": shown(volume.study), "modality": shown(volume.modality)}
        if n in self.ordinals:
            names["modality"] += f" ({self.ordinals[n]})"
        return {"n": str(n), **names}
