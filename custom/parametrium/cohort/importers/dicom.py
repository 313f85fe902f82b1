"""A folder of DICOM as it comes out of an archive becomes a cohort: volumes, masks and tables, without identity.

    index (headers) -> image series to volumes -> structures to masks -> tables

Everything that is done is noted in the site's private store at once, so that after an interruption the next run goes
on where this one stopped, and a run over an unchanged folder does nothing. Files are moved into the cohort whole.
"""

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from parametrium.cohort.defacing.hook import Hook, hook_of
from parametrium.cohort.deidentify import remember, site_secret
from parametrium.cohort.dicom.choice import choose
from parametrium.cohort.dicom.facts import Choice, Facts, LeftOut
from parametrium.cohort.dicom.index import ENDED, Index, Kind, Progress, Series
from parametrium.cohort.dicom.store import private_store
from parametrium.cohort.dicom.walk import ARCHIVE, FOLDER, LINK
from parametrium.cohort.importers.conversion import convert, put
from parametrium.cohort.importers.defaced import not_defaced, require_defacing
from parametrium.cohort.importers.dicom_tables import Counts, count_cohort, keep_cells, problems, write_tables
from parametrium.cohort.importers.ledger import Held, Ledger, Standing
from parametrium.cohort.importers.masks import draw
from parametrium.cohort.importers.tables import ImportReport
from parametrium.cohort.importers.workplace import workplace
from parametrium.cohort.problem import Problem, Reason
from parametrium.cohort.workers import Lost, Workers
from parametrium.config import VOCABULARY, DefacingConfig, SeriesRule
from parametrium.errors import Code, CohortError

CONVERSION = 2
"""Raised whenever the same files would give other volumes, masks or reasons: a cohort is then converted anew."""

_LAST_DAY = "9999-12-31"  # studies without a date come last
_COMPRESSED = 0.8  # of a volume's size at the most, for the estimate of space
_SPARE = 2**28  # bytes that must stay free
_LIMIT_S = 3600.0  # for a series
_VOLUMES = 10  # of one series that may take all the time they have for defacing

Stage = Callable[[str], AbstractContextManager[Progress]]
"""Opens the progress of a named stage, to be called with what is done and how much there is."""


@dataclass(frozen=True)
class DicomReport(ImportReport):
    """As ``ImportReport``; its summary counts files, and accounts for all of them.

    Attributes:
        files: all files found in the sources of the cohort.
        left_out: how many of them gave nothing, by reason.
    """

    files: int = 0
    left_out: Mapping[Reason, int] = field(default_factory=dict)

    def summary(self) -> dict[str, int]:
        """Counts without any name of a patient."""
        counts = {"patients": self.patients} | dict(self.volumes) | {"masks": self.masks, "files": self.files}
        left = {reason.value: count for reason, count in self.left_out.items()}
        return counts | {f"files left out: {reason}": count for reason, count in sorted(left.items())}


@contextmanager
def _unseen(_title: str) -> Iterator[Progress]:
    yield lambda _done, _total: None


def import_dicom(
    source: Path,
    cohort: Path,
    *,
    secret: Path | None = None,
    rules: Sequence[SeriesRule] = (),
    wanted: Collection[str] = VOCABULARY,
    defacing: DefacingConfig | None = None,
    jobs: int = 1,
    patient_folders: bool = False,
    progress: Stage = _unseen,
) -> DicomReport:
    """Imports a folder of DICOM files; again and again, whenever there is more.

    The result does not depend on ``jobs``, on interruptions, or on the order in which the file system lists files.

    Args:
        source: any nesting, any names, many patients mixed.
        cohort: folder to write, made where absent; readable by its owner only.
        secret: the site's secret for pseudonyms, made on first use; None puts it beside the cohort folder. The private
            store lies beside it.
        rules: what series are called at this hospital.
        wanted: modalities to take.
        defacing: how faces are taken out of head scans; None leaves them.
        jobs: processes; each holds one volume at a time. 0 converts in this process itself.
        patient_folders: where a file names no patient, take the name of its folder directly below ``source``.
        progress: opens the progress of a stage.

    Raises:
        CohortError: PM204 the source cannot be read or holds no volume, the cohort cannot be written, is in use or was
            made otherwise, or the disk is too small; PM201 the cohort's table cannot be read.
        ConfigError: PM103 the defacing program is not there.
    """
    cohort = cohort.absolute()
    secret = (secret or cohort.with_name(f"{cohort.name}.secret")).absolute()
    _require_places(source, cohort, secret)
    key = site_secret(secret)
    limit_s = _LIMIT_S + (0 if defacing is None else _VOLUMES * defacing.timeout_s)
    with private_store(secret) as store, workplace(cohort, store) as place, Workers(jobs, limit_s) as workers:
        hook = None if defacing is None else hook_of(defacing, secret.with_name(f"{secret.name}.defacing.log"))
        index = Index(store, source, patient_folders=patient_folders)
        with progress("headers") as update:
            index.update(workers, update)
        ledger = Ledger(store, place.cohort, key, cohort)
        ledger.add_source(index.number, patient_folders=patient_folders)
        keep_cells(ledger, cohort)
        require_defacing(ledger, defacing)
        settings = [CONVERSION, [rule.model_dump() for rule in rules], sorted(wanted)]
        settings += [] if defacing is None else [defacing.model_dump()]
        run = _Run(index, ledger, workers, place.staging, cohort, json.dumps(settings), hook)
        with progress("volumes") as update:
            fewer = run.volumes(partial(choose, rules=tuple(rules), wanted=tuple(wanted)), update)
        with progress("masks") as update:
            run.masks(update)
        remember(secret, {series.subject: ledger.pseudonym(series.subject) for series in index.series()})
        write_tables(ledger, cohort)
        ledger.remove_obsolete()
        return _report(ledger, fewer, not_defaced(ledger, cohort, defacing) if defacing else 0)


def _require_places(source: Path, cohort: Path, secret: Path) -> None:
    """Before anything is written: the source is there, and nothing will be written into it."""
    inside = source.resolve()
    if not inside.is_dir():
        raise CohortError(Code.COHORT_IMPORT, "the source is not a folder", site_detail=str(source))
    if inside in (cohort.resolve(), *cohort.resolve().parents, *secret.resolve().parents):
        raise CohortError(
            Code.COHORT_IMPORT,
            "the cohort folder and the site's secret must lie outside the source",
            site_detail=f"{cohort}, {secret} in {source}",
        )


@dataclass(frozen=True)
class _Run:
    """One run of the import: what both of its stages need."""

    index: Index
    ledger: Ledger
    workers: Workers
    staging: Path
    folder: Path
    settings: str
    hook: Hook | None

    def volumes(self, choice: Callable[[Facts], Choice], progress: Progress) -> int:
        """Converts every image series that is new or changed; gives the number of those that have lost files."""
        standings = [(series, self._standing(series, "")) for series in self.index.series() if series.kind == "image"]
        due = self._sorted(series for series, standing in standings if standing == "new")
        _require_space(self.folder, sum(series.pixel_bytes for series in due))

        def tasks() -> Iterator[tuple[list[Path], Path, Callable[[Facts], Choice], Hook | None]]:
            for n, series in enumerate(due):
                yield self.index.paths(series), self.staging / f"volumes-{n}", choice, self.hook

        progress(0, len(due))
        for n, made in enumerate(self.workers.in_order(convert, tasks())):
            series = due[n]
            if isinstance(made, Lost):
                self.ledger.record_loss(series, _lost(series))
            else:
                self.ledger.record_volumes(series, self._digest(series, ""), made, partial(put, self.folder))
            shutil.rmtree(self.staging / f"volumes-{n}", ignore_errors=True)
            progress(n + 1, len(due))
        return sum(standing == "fewer" for _, standing in standings)

    def masks(self, progress: Progress) -> None:
        """Draws the structures of every series that is new or changed, or whose patient has other volumes now."""
        drawn = (series for series in self.index.series() if series.kind != "image")
        due = self._sorted(series for series in drawn if self._standing(series, self._volumes(series)) == "new")

        def tasks() -> Iterator[tuple[Kind, list[Path], list[Held], Path]]:
            for n, series in enumerate(due):
                held = self.ledger.volumes_of(series.subject)
                yield series.kind, self.index.paths(series), held, self.staging / f"masks-{n}"

        progress(0, len(due))
        for n, made in enumerate(self.workers.in_order(draw, tasks())):
            series = due[n]
            if isinstance(made, Lost):
                self.ledger.record_loss(series, _lost(series))
            else:
                digest = self._digest(series, self._volumes(series))
                self.ledger.record_masks(series, digest, made, partial(put, self.folder))
            shutil.rmtree(self.staging / f"masks-{n}", ignore_errors=True)
            progress(n + 1, len(due))

    def _standing(self, series: Series, volumes: str) -> Standing:
        return self.ledger.standing(series, self._digest(series, volumes))

    def _digest(self, series: Series, volumes: str) -> str:
        """Of everything that decides what comes of a series."""
        return hashlib.sha256("\n".join([series.digest, self.settings, volumes]).encode()).hexdigest()

    def _volumes(self, series: Series) -> str:
        return self.ledger.volumes_digest(series.subject)

    def _sorted(self, series: Iterable[Series]) -> list[Series]:
        """By patient and date, as studies are numbered; by pseudonym, so that no order tells of hospital numbers."""
        found = list(series)
        days: dict[tuple[str, str], str] = {}
        for one in found:
            key = one.subject, one.study
            days[key] = min(days.get(key, _LAST_DAY), one.study_date or _LAST_DAY)
        return sorted(
            found,
            key=lambda one: (
                self.ledger.pseudonym(one.subject),
                days[one.subject, one.study],
                *(one.study, one.number, one.uid, one.kind),
            ),
        )


def _lost(series: Series) -> LeftOut:
    return LeftOut(None, Reason.FAILED, ENDED, series.files)


def _require_space(folder: Path, pixel_bytes: int) -> None:
    free, needed = shutil.disk_usage(folder).free, int(pixel_bytes * _COMPRESSED) + _SPARE
    if pixel_bytes and free < needed:
        raise CohortError(
            Code.COHORT_IMPORT,
            f"the import needs about {needed / 1e9:.1f} GB and the disk of the cohort has {free / 1e9:.1f} GB free; "
            "free some, or import a part of the source",
            site_detail=str(folder),
        )


def _report(ledger: Ledger, fewer: int, faces: int) -> DicomReport:
    """The report of all that the cohort holds.

    Raises:
        CohortError: PM204 it holds nothing.
    """
    counts = count_cohort(ledger)
    found = list(problems(ledger))
    left_out: Counter[Reason] = Counter()
    for _, _, reason, _, count in found:
        left_out[reason] += count
    if not counts.volumes:
        told = ", ".join(f"{count} {reason.value}" for reason, count in left_out.items() if count) or "no file"
        if Reason.NO_MODALITY in left_out:
            told += "; where no modality is known, write series_rules and name their file with --site-config"
        raise CohortError(Code.COHORT_IMPORT, f"the source holds no volume to import; files: {told}")
    rules = Counter[str]()
    for _, _, _, rule, count in found:
        rules[rule] += count
    return DicomReport(
        patients=counts.patients,
        volumes=counts.volumes,
        masks=counts.masks,
        problems=tuple(Problem(patient, modality, reason) for patient, modality, reason, _, _ in found),
        warnings=tuple(_warnings(counts, rules, fewer, faces)),
        files=counts.files,
        left_out={reason: count for reason, count in left_out.items() if count},
    )


def _warnings(counts: Counts, rules: Mapping[str, int], fewer: int, faces: int) -> Iterator[str]:
    if rules.get(ARCHIVE):
        yield f"{rules[ARCHIVE]} archives (zip and the like) were not opened; unpack them and import again"
    if rules.get(LINK):
        yield f"{rules[LINK]} links lead out of the source and were not followed; import what they lead to by itself"
    if rules.get(FOLDER):
        yield f"{rules[FOLDER]} folders were not looked into, since there is no right to read them; grant it"
    if rules.get(ENDED):
        yield (
            f"{rules[ENDED]} files were lost with a process that was killed, mostly for lack of memory, or took too "
            "long; lower --jobs, and give the command again"
        )
    if fewer:
        yield f"{fewer} series have fewer files than when they were imported; their volumes were kept as they are"
    if faces:
        yield (
            f"{faces} volumes of earlier imports, without defacing, may show a face; import their source again, "
            "whole, or use a new folder"
        )
    if counts.endless:
        yield (
            f"an expression of series_rules took too long on {counts.endless} series and counted as no match there "
            "(column rule says which); write it without one repetition inside another"
        )
    if counts.undated:
        yield f"{counts.undated} studies have no date; their day is 0"
    if counts.unsure:
        yield (
            f"{counts.unsure} volumes were named by words of their description alone (column rule of cohort.csv); "
            "look at them, or write series_rules"
        )
