"""A cohort's volumes brought rigidly onto each other where that can be believed; see ``docs/registration.md``.

No file is changed and no voxel resampled: an accepted frame gets ``moved`` and its target's name in the tables, a
refused one keeps its own, and ``registration.csv`` says of both by which numbers.
"""

import os
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from parametrium.cohort.manifest import COHORT_COLUMNS, Volume, read_cohort
from parametrium.cohort.problem import Reason
from parametrium.cohort.registration.decisions import (
    Decision,
    Key,
    apply_to_tables,
    numbers_of,
    path_cell,
    read_decisions,
    superseded,
    write_decisions,
)
from parametrium.cohort.registration.frames import across_studies, frames_of, partners, within_studies
from parametrium.cohort.registration.scan import Scan, load_scan
from parametrium.cohort.registration.verdict import Judgement, Verdict, judge
from parametrium.cohort.rigid import IDENTITY, Rigid, composed, rigid_of
from parametrium.cohort.table import read_table
from parametrium.cohort.workers import Lost, Workers
from parametrium.errors import Code, CohortError

Progress = Callable[[int, int], None]

_SAVE_EVERY_S = 30.0  # what a crash may cost, against writing the tables once a patient
_LIMIT_S = 1800.0  # for a patient; a pair takes seconds


@dataclass(frozen=True)
class RegistrationReport:
    """What a run did.

    Attributes:
        decisions: of this run, by patient in table order; one a pair of volumes that was tried.
        skipped: frames that an earlier run refused and this one did not try.
        lost: patients whose process died; they are tried again by the next run.
    """

    decisions: tuple[Decision, ...]
    skipped: int
    lost: int

    def summary(self) -> dict[str, int]:
        """Frames by the verdict that was come to last, without any name of a patient."""
        last = {decision.key: decision.verdict.value for decision in self.decisions}
        counts = Counter(last.values())
        return dict(sorted(counts.items())) | {"skipped": self.skipped, "lost": self.lost}


def register_cohort(
    folder: Path, *, jobs: int = 1, progress: Progress | None = None, again: bool = False, seed: int = 0
) -> RegistrationReport:
    """Registers the frames of every patient; running it twice changes nothing.

    The result depends on the seed, not on ``jobs`` or interruptions. What is decided is on disk at least twice a
    minute, and a run that was stopped goes on from there.

    Args:
        folder: a cohort folder; its tables are rewritten in one step each.
        jobs: processes; each holds one volume in full resolution at a time.
        progress: called with patients done and patients in all.
        again: also try frames that an earlier run refused.
        seed: of the sampling.

    Raises:
        CohortError: PM201 a table cannot be read, PM202 no usable volume, PM204 a table cannot be written.
    """
    folder = Path(os.path.abspath(folder))  # noqa: PTH100 - as the manifest has it: links are not followed
    record = _Record(folder, read_decisions(folder))
    record.save()
    patients = _volumes(folder)
    refused = frozenset(decision.key for decision in record.known if decision.verdict is not Verdict.ACCEPTED)
    settled = frozenset() if again else refused
    tasks = [(folder, volumes, settled, seed) for volumes in patients.values() if len(frames_of(volumes)) > 1]
    report = progress or (lambda done, total: None)
    report(0, len(tasks))
    skipped = lost = 0
    try:
        with Workers(jobs, _LIMIT_S) as workers:
            for done, result in enumerate(workers.in_order(register_patient, tasks), start=1):
                if isinstance(result, Lost):
                    lost += 1
                else:
                    skipped += result.skipped
                    record.add(result.decisions)
                report(done, len(tasks))
    finally:
        record.save()
    return RegistrationReport(tuple(record.new), skipped, lost)


class _Record:
    """The decisions of earlier runs and of this one, on disk before they are lost."""

    def __init__(self, folder: Path, known: Sequence[Decision]) -> None:
        self.known = known
        self.new: list[Decision] = []
        self._folder = folder
        self._saved = time.monotonic()

    def add(self, decisions: Sequence[Decision]) -> None:
        """Takes a patient's decisions; writes where the last writing is long ago."""
        self.new.extend(decisions)
        if time.monotonic() - self._saved > _SAVE_EVERY_S:
            self.save()

    def save(self) -> None:
        """Writes the decisions, then the tables: where a table moved, its reason is known."""
        try:
            decisions = superseded(self.known, self.new)
            if self.new:
                write_decisions(self._folder, decisions)
            apply_to_tables(self._folder, decisions)
        except OSError as error:
            raise CohortError(
                Code.COHORT_IMPORT,
                f"the cohort's tables cannot be written; free space or the right to write ({type(error).__name__})",
                site_detail=f"{self._folder}: {error}",
            ) from error
        self._saved = time.monotonic()


def _volumes(folder: Path) -> dict[str, tuple[Volume, ...]]:
    """Usable volumes by patient, whatever their modality."""
    table = read_table(folder / "cohort.csv", what="the cohort table", required=COHORT_COLUMNS)
    cohort = read_cohort(folder, {row["modality"] for row in table.rows})
    return {patient.name: patient.volumes for patient in cohort.patients}


@dataclass(frozen=True)
class PatientResult:
    """One patient's decisions in their order, and how many frames were left as refused before."""

    decisions: tuple[Decision, ...]
    skipped: int


def register_patient(folder: Path, volumes: Sequence[Volume], settled: frozenset[Key], seed: int) -> PatientResult:
    """Registers one patient's frames; see ``frames`` for the order. Runs in a worker.

    Args:
        folder: the cohort folder.
        volumes: of one patient, in table order.
        settled: what is not to be tried.
        seed: of the sampling.
    """
    patient = _Patient(folder, list(volumes), settled, seed)
    handled: set[str] = set()
    for frame, target in list(within_studies(frames_of(patient.volumes))):
        patient.bring(frame, target, handled)
        handled.add(frame)
    for frame, target in list(across_studies(frames_of(patient.volumes))):
        patient.bring(frame, target)
    return PatientResult(tuple(patient.decisions), patient.skipped)


class _Patient:
    """A patient's volumes where they have been brought so far."""

    def __init__(self, folder: Path, volumes: list[Volume], settled: frozenset[Key], seed: int) -> None:
        self.volumes = volumes
        self.decisions: list[Decision] = []
        self.skipped = 0
        self._folder = folder
        self._settled = settled
        self._seed = seed
        self._scans: dict[tuple[Path, Rigid], Scan | Reason] = {}

    def bring(self, name: str, target_name: str, handled: Collection[str] = ()) -> None:
        """Tries to bring one frame onto another; where that is refused, onto what else it may be aligned to."""
        frames = frames_of(self.volumes)
        lead = next(frame.lead for frame in frames if frame.name == name)
        path = path_cell(lead.path, self._folder)
        if (lead.patient, path, name) in self._settled:
            self.skipped += 1
            return
        for partner in partners(frames, lead, target_name, handled):
            judgement = self._judgement(partner, lead)
            moved = IDENTITY
            if judgement.verdict is Verdict.ACCEPTED and judgement.there is not None:
                moved = rigid_of(judgement.there)
                self._move(name, partner.frame, moved)
            names = {
                "patient": lead.patient,
                "study": lead.study,
                "modality": lead.modality,
                "path": path,
                "frame": name,
                "target_study": partner.study,
                "target_modality": partner.modality,
                "target": partner.frame,
            }
            self.decisions.append(Decision(names, judgement.verdict, numbers_of(judgement), moved))
            if judgement.verdict is Verdict.ACCEPTED or isinstance(self._scan(lead), Reason):
                break

    def _move(self, name: str, target_name: str, moved: Rigid) -> None:
        self.volumes = [
            replace(volume, frame=target_name, moved=composed(moved, volume.moved)) if volume.frame == name else volume
            for volume in self.volumes
        ]

    def _judgement(self, target: Volume, moving: Volume) -> Judgement:
        onto, scan = self._scan(target), self._scan(moving)
        if isinstance(onto, Reason) or isinstance(scan, Reason):
            return Judgement(Verdict.UNUSABLE)
        try:
            return judge(onto, scan, self._seed)
        except Exception:  # one odd pair must not stop its patient
            return Judgement(Verdict.FAILED)

    def _scan(self, volume: Volume) -> Scan | Reason:
        key = (volume.path, volume.moved)
        if key not in self._scans:
            try:
                self._scans[key] = load_scan(volume)
            except Exception as error:  # as above
                self._scans[key] = Reason.TOO_LARGE if isinstance(error, MemoryError) else Reason.FAILED
        return self._scans[key]
