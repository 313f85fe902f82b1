"""What has been imported into a cohort, kept in the site's private store, so that its tables can be written anew.

Study numbers, days and file names are given once and stay. A series that comes again replaces what it gave before;
nothing else is ever taken back.
"""

import hashlib
import json
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np

from parametrium.cohort.deidentify import pseudonym
from parametrium.cohort.dicom.facts import Converted, Grid, LeftOut
from parametrium.cohort.dicom.index import Series
from parametrium.cohort.manifest import DEFACED
from parametrium.cohort.problem import Reason

SUFFIX = ".nii.gz"
SIDECAR_SUFFIX = ".json"

Put = Callable[[Path, PurePosixPath], None]
"""Moves a staged file to its place below the cohort folder."""

Standing = Literal["new", "current", "fewer"]


@dataclass(frozen=True)
class Held:
    """A volume of the cohort that structures may refer to.

    Attributes:
        number: in the ledger.
        grid: of its voxels.
        series: Series Instance UID; never written into the cohort.
        frame_of_reference: its frame's UID; never written into the cohort.
        instances: SOP Instance UIDs of its slices; never written into the cohort.
        defaced: the mask of what defacing took from it; None where it took nothing.
    """

    number: int
    grid: Grid
    series: str
    frame_of_reference: str
    instances: frozenset[str]
    defaced: Path | None = None


@dataclass(frozen=True)
class Drawn:
    """A mask made for a volume, still in the staging folder.

    Attributes:
        volume: ``Held.number`` of its volume.
        structure: what it shows.
        file: the NIfTI.
    """

    volume: int
    structure: str
    file: Path


class Ledger:
    """Reads and writes what has been imported into one cohort.

    Args:
        store: from ``private_store``.
        cohort: the cohort's own random name.
        secret: for pseudonyms.
        folder: the cohort folder.
    """

    def __init__(self, store: sqlite3.Connection, cohort: str, secret: bytes, folder: Path) -> None:
        self.store = store
        self.cohort = cohort
        self._secret = secret
        self._folder = folder

    def pseudonym(self, subject: str) -> str:
        """The patient's name in the cohort."""
        return pseudonym(self._secret, subject)

    def add_source(self, source: int, *, patient_folders: bool) -> None:
        """Notes that the files of a source count for this cohort."""
        with self.store:
            self.store.execute(
                "INSERT INTO cohort_sources (cohort, source, patient_folders) VALUES (?, ?, ?) "
                "ON CONFLICT DO UPDATE SET patient_folders = excluded.patient_folders",
                (self.cohort, source, patient_folders),
            )

    def standing(self, series: Series, digest: str) -> Standing:
        """Whether a series must be converted; ``fewer``: it has been, from more files than there are now."""
        row = self.store.execute(
            "SELECT s.id, s.digest, s.files FROM series s JOIN patients p ON s.patient = p.id "
            "WHERE p.cohort = ? AND p.subject = ? AND s.study = ? AND s.uid = ? AND s.kind = ?",
            (self.cohort, series.subject, series.study, series.uid, series.kind),
        ).fetchone()
        if row is None:
            return "new"
        number, known, files = row
        paths = self._paths("SELECT path FROM volumes WHERE series = ?", number)
        paths |= self._paths("SELECT path FROM masks WHERE series = ?", number)
        if not all((self._folder / path).is_file() for path in paths):
            return "new"
        if known == digest:
            return "current"
        return "fewer" if paths and series.files < files else "new"

    def volumes_of(self, subject: str) -> list[Held]:
        """A patient's volumes, in the order of the table."""
        rows = self.store.execute(
            "SELECT v.id, v.grid, s.uid, f.uid, m.path FROM volumes v JOIN series s ON v.series = s.id "
            "LEFT JOIN masks m ON m.volume = v.id AND m.series = v.series "  # others come of series of their own
            "JOIN studies t ON v.study = t.id JOIN patients p ON t.patient = p.id "
            "JOIN frames f ON f.study = v.study AND f.number = v.frame "
            "WHERE p.cohort = ? AND p.subject = ? ORDER BY t.number, v.path",
            (self.cohort, subject),
        ).fetchall()
        return [
            Held(n, _grid(grid), series, frame, self._instances(n), self._folder / mask if mask else None)
            for n, grid, series, frame, mask in rows
        ]

    def volumes_digest(self, subject: str) -> str:
        """Changes when one of a patient's volumes does."""
        rows = self.store.execute(
            "SELECT v.path, v.digest FROM volumes v JOIN studies t ON v.study = t.id "
            "JOIN patients p ON t.patient = p.id WHERE p.cohort = ? AND p.subject = ? ORDER BY v.path",
            (self.cohort, subject),
        )
        return hashlib.sha256(repr(rows.fetchall()).encode()).hexdigest()

    def record_volumes(self, series: Series, digest: str, outcomes: Sequence[Converted | LeftOut], put: Put) -> None:
        """Names what came of an image series, has it put there and remembers it; all of it or nothing.

        What could not be defaced is tried again by the next run: the site may have mended its program.
        """
        with self.store:
            undone = any(isinstance(one, LeftOut) and one.reason is Reason.DEFACING_FAILED for one in outcomes)
            patient, number = self._begin(series, "" if undone else digest)
            self._forget_masks(number)
            earlier = self._paths("SELECT path FROM volumes WHERE series = ?", number)
            named: set[str] = set()
            for outcome in outcomes:
                if isinstance(outcome, LeftOut):
                    self._leave_out(number, series, outcome)
                    continue
                study = self._study(patient, series)
                name = self._volume_name(study, str(outcome.choice.modality), spare=earlier - named)
                mask = name.parent / "masks" / f"{name.name.removesuffix(SUFFIX)}_{DEFACED}{SUFFIX}"
                if outcome.defaced is not None:
                    put(outcome.defaced, mask)
                put(outcome.file, name)
                volume = self._add_volume(series, (number, study, digest), outcome, str(name))
                if outcome.defaced is not None:
                    self._draw_anew(volume)
                    self._add_mask(number, volume, DEFACED, str(mask))
                named.add(str(name))
            for path in sorted(earlier - named):
                self._forget_volume(number, path)

    def record_masks(self, series: Series, digest: str, outcomes: Sequence[Drawn | LeftOut], put: Put) -> None:
        """As ``record_volumes``, for the masks that came of structures or of a segmentation."""
        with self.store:
            _, number = self._begin(series, digest)
            self._forget_masks(number)
            for outcome in outcomes:
                if isinstance(outcome, LeftOut):
                    self._leave_out(number, series, outcome)
                    continue
                name = self._mask_name(outcome.volume)
                put(outcome.file, name)
                self._add_mask(number, outcome.volume, outcome.structure, str(name))

    def record_loss(self, series: Series, item: LeftOut) -> None:
        """Notes that nothing is known of a series this time; what it gave before stays, and it will be tried again."""
        with self.store:
            _, number = self._begin(series, "")
            self._leave_out(number, series, item)

    def remove_obsolete(self) -> None:
        """Deletes files that no table names any more; for when the tables have been written."""
        for path in self._paths("SELECT path FROM obsolete WHERE cohort = ?", self.cohort):
            (self._folder / path).unlink(missing_ok=True)
        with self.store:
            self.store.execute("DELETE FROM obsolete WHERE cohort = ?", (self.cohort,))

    def _begin(self, series: Series, digest: str) -> tuple[int, int]:
        """Numbers of patient and series; what the series left out before is forgotten."""
        self.store.execute(
            "INSERT INTO patients (cohort, subject, pseudonym) VALUES (?, ?, ?) "
            "ON CONFLICT (cohort, subject) DO NOTHING",
            (self.cohort, series.subject, self.pseudonym(series.subject)),
        )
        (patient,) = self._one("SELECT id FROM patients WHERE cohort = ? AND subject = ?", self.cohort, series.subject)
        self.store.execute(
            "INSERT INTO series (patient, study, uid, kind, modality, files, digest) VALUES (?, ?, ?, ?, ?, ?, ?) "
            "ON CONFLICT DO UPDATE SET modality = excluded.modality, files = excluded.files, digest = excluded.digest",
            (patient, series.study, series.uid, series.kind, series.modality, series.files, digest),
        )
        (number,) = self._one(
            "SELECT id FROM series WHERE patient = ? AND study = ? AND uid = ? AND kind = ?",
            *(patient, series.study, series.uid, series.kind),
        )
        self.store.execute("DELETE FROM left_out WHERE series = ?", (number,))
        return patient, number

    def _leave_out(self, number: int, series: Series, item: LeftOut) -> None:
        self.store.execute(
            "INSERT INTO left_out (series, modality, reason, rule, files) VALUES (?, ?, ?, ?, ?)",
            (number, series.modality, item.reason.value, item.rule, item.files),
        )

    def _study(self, patient: int, series: Series) -> int:
        """The study's row; a new one gets the next number, and the patient's first with a date is her day 0."""
        self.store.execute(
            "INSERT INTO studies (patient, uid, number, date) "
            "SELECT ?, ?, 1 + count(*), ? FROM studies WHERE patient = ? ON CONFLICT (patient, uid) DO NOTHING",
            (patient, series.study, series.study_date, patient),
        )
        self.store.execute(
            "UPDATE patients SET origin = ? WHERE id = ? AND origin IS NULL AND ? <> ''",
            (series.study_date, patient, series.study_date),
        )
        return int(self._one("SELECT id FROM studies WHERE patient = ? AND uid = ?", patient, series.study)[0])

    def _frame(self, study: int, uid: str) -> int:
        self.store.execute(
            "INSERT INTO frames (study, uid, number) SELECT ?, ?, 1 + count(*) FROM frames WHERE study = ? "
            "ON CONFLICT (study, uid) DO NOTHING",
            (study, uid, study),
        )
        return int(self._one("SELECT number FROM frames WHERE study = ? AND uid = ?", study, uid)[0])

    def _volume_name(self, study: int, modality: str, *, spare: set[str]) -> PurePosixPath:
        """The first free name of the study; names that the same series had before are free."""
        patient, visit = self._one(
            "SELECT p.pseudonym, t.number FROM studies t JOIN patients p ON t.patient = p.id WHERE t.id = ?", study
        )
        taken = self._paths("SELECT path FROM volumes WHERE study = ?", study) - spare
        stem = f"images/{patient}/s{visit}/{modality}"
        names = (f"{stem}{SUFFIX}" if n == 1 else f"{stem}_{n}{SUFFIX}" for n in count(1))
        return PurePosixPath(next(name for name in names if name not in taken))

    def _mask_name(self, volume: int) -> PurePosixPath:
        image = PurePosixPath(self._one("SELECT path FROM volumes WHERE id = ?", volume)[0])
        taken = self._paths("SELECT path FROM masks WHERE volume = ?", volume)
        names = (str(image.parent / "masks" / f"{image.name.removesuffix(SUFFIX)}_{n:02}{SUFFIX}") for n in count(1))
        return PurePosixPath(next(name for name in names if name not in taken))

    def _add_volume(self, series: Series, owner: tuple[int, int, str], made: Converted, path: str) -> int:
        number, study, digest = owner
        # Without a frame of reference, the volumes of one series are still measured in one coordinate system.
        frame = self._frame(study, made.identity.frame_of_reference or f"series {series.uid}")
        grid = json.dumps([made.grid.shape, made.grid.affine.tolist()])
        self.store.execute(
            "INSERT INTO volumes (series, study, modality, path, frame, rule, sure, grid, digest) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (study, path) DO UPDATE SET frame = excluded.frame, "
            "rule = excluded.rule, sure = excluded.sure, grid = excluded.grid, digest = excluded.digest, kept = '{}'",
            (number, study, made.choice.modality, path, frame, made.choice.rule, made.choice.sure, grid, digest),
        )
        (volume,) = self._one("SELECT id FROM volumes WHERE study = ? AND path = ?", study, path)
        self.store.execute("DELETE FROM instances WHERE volume = ?", (volume,))
        self.store.executemany(
            "INSERT INTO instances (volume, uid) VALUES (?, ?)", [(volume, uid) for uid in sorted(made.instances)]
        )
        self._not_obsolete(path)
        return int(volume)

    def _add_mask(self, series: int, volume: int, structure: str, path: str) -> None:
        self.store.execute(
            "INSERT INTO masks (series, volume, structure, path) VALUES (?, ?, ?, ?)",
            (series, volume, structure, path),
        )
        self._not_obsolete(path)

    def _forget_masks(self, series: int) -> None:
        for path in self._paths("SELECT path FROM masks WHERE series = ?", series):
            self._add_obsolete(path)
        self.store.execute("DELETE FROM masks WHERE series = ?", (series,))

    def _draw_anew(self, volume: int) -> None:
        """Masks that were drawn on a volume when it had a face may show it; their series are due again."""
        self.store.execute(
            "UPDATE series SET digest = '' WHERE id IN (SELECT series FROM masks WHERE volume = ?)", (volume,)
        )
        for path in self._paths("SELECT path FROM masks WHERE volume = ?", volume):
            self._add_obsolete(path)
        self.store.execute("DELETE FROM masks WHERE volume = ?", (volume,))

    def _forget_volume(self, series: int, path: str) -> None:
        (volume,) = self._one("SELECT id FROM volumes WHERE series = ? AND path = ?", series, path)
        for mask in self._paths("SELECT path FROM masks WHERE volume = ?", volume):
            self._add_obsolete(mask)
        self._add_obsolete(path)
        self._add_obsolete(path.removesuffix(SUFFIX) + SIDECAR_SUFFIX)
        self.store.execute("DELETE FROM volumes WHERE id = ?", (volume,))

    def _add_obsolete(self, path: str) -> None:
        self.store.execute("INSERT OR IGNORE INTO obsolete (cohort, path) VALUES (?, ?)", (self.cohort, path))

    def _not_obsolete(self, path: str) -> None:
        sidecar = path.removesuffix(SUFFIX) + SIDECAR_SUFFIX
        self.store.execute("DELETE FROM obsolete WHERE cohort = ? AND path IN (?, ?)", (self.cohort, path, sidecar))

    def _instances(self, volume: int) -> frozenset[str]:
        return frozenset(uid for (uid,) in self.store.execute("SELECT uid FROM instances WHERE volume = ?", (volume,)))

    def _paths(self, query: str, value: object) -> set[str]:
        return {path for (path,) in self.store.execute(query, (value,))}

    def _one(self, query: str, *values: object) -> tuple[Any, ...]:
        row: tuple[Any, ...] = self.store.execute(query, values).fetchone()
        return row


def _grid(text: str) -> Grid:
    (i, j, k), affine = json.loads(text)
    return Grid((i, j, k), np.array(affine, dtype=np.float64))
