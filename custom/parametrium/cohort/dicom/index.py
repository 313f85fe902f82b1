"""A folder of DICOM files as series: every file found, its keys read once and kept in the site's private store.

The store knows each file by path, size and time of change, so that a second run reads only what is new, and an
interrupted one goes on. Files are handled in batches: memory does not grow with their number.
"""

import hashlib
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import Literal, TypeVar

from parametrium.cohort.dicom.keys import Keys, read_keys
from parametrium.cohort.dicom.walk import Found, walk
from parametrium.cohort.problem import Reason
from parametrium.cohort.workers import Lost, Workers

Kind = Literal["image", "structures", "segmentation"]
Progress = Callable[[int, int], None]

ENDED = "process ended"
"""The rule of what was lost with the process that worked on it; the next run tries it again."""

READER = 1
"""Raised whenever ``read_keys`` would say something else of the same file."""

_KINDS: dict[str, Kind] = {
    "1.2.840.10008.5.1.4.1.1.481.3": "structures",  # RT Structure Set
    "1.2.840.10008.5.1.4.1.1.66.4": "segmentation",
    "1.2.840.10008.5.1.4.1.1.66.7": "segmentation",  # label map
}
_FOUND_AT_ONCE = 2000
_READ_AT_ONCE = 64

_FIND = """
INSERT INTO files (source, walk, path, size, changed, state, rule) VALUES (?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (source, path) DO UPDATE SET
    state = iif((excluded.state, excluded.size, excluded.changed) = ('found', size, changed), state, excluded.state),
    rule = iif((excluded.state, excluded.size, excluded.changed) = ('found', size, changed), rule, excluded.rule),
    walk = excluded.walk, size = excluded.size, changed = excluded.changed
"""
_KEEP = """
UPDATE files SET state = ?, rule = ?, patient = ?, study = ?, series = ?, instance = ?, sop_class = ?, modality = ?,
    study_date = ?, number = ?, pixel_bytes = ? WHERE id = ?
"""
_READ = """
SELECT patient, study, series, path, sop_class, modality, study_date, number, pixel_bytes, instance, size, changed
FROM files WHERE source = ? AND state = 'read' ORDER BY patient, study, series, path
"""
_PATHS = """
SELECT patient, path, sop_class FROM files
WHERE source = ? AND study = ? AND series = ? AND patient IN (?, '') AND state = 'read' ORDER BY path
"""


@dataclass(frozen=True, slots=True)
class Series:
    """Files of one series of one patient. Identifies a patient: for memory and the private store only.

    Attributes:
        subject: who; Patient ID with its issuer, or the folder's name.
        study: Study Instance UID.
        uid: Series Instance UID.
        kind: by SOP class.
        modality: (0008,0060).
        study_date: ISO 8601; empty where unknown.
        number: Series Number.
        files: how many.
        pixel_bytes: of its decoded voxels, an estimate.
        digest: of the files' instances, sizes and times of change.
    """

    subject: str
    study: str
    uid: str
    kind: Kind
    modality: str
    study_date: str
    number: int
    files: int
    pixel_bytes: int
    digest: str


class Index:
    """What lies in one source folder.

    Args:
        store: from ``private_store``.
        source: the folder.
        patient_folders: where Patient ID is missing, the folder directly below ``source`` says by its name who it is.
    """

    def __init__(self, store: sqlite3.Connection, source: Path, *, patient_folders: bool = False) -> None:
        self._store = store
        self._source = source.resolve()
        self._patient_folders = patient_folders
        root = os.fsencode(self._source)
        with store:
            store.execute("INSERT OR IGNORE INTO sources (root, walk, reader) VALUES (?, 0, ?)", (root, READER))
        self.number: int = store.execute("SELECT id FROM sources WHERE root = ?", (root,)).fetchone()[0]

    def update(self, workers: Workers, progress: Progress) -> None:
        """Finds all files and reads the keys of those that are new or changed.

        Raises:
            CohortError: PM204 the source is not a folder that can be read.
        """
        self._find()
        (waiting,) = self._one("SELECT count(*) FROM files WHERE source = ? AND state = 'found'")
        done = 0
        progress(done, waiting)
        for rows in self._read(workers):
            with self._store:
                self._store.executemany(_KEEP, rows)
            done += len(rows)
            progress(done, waiting)

    def series(self) -> Iterator[Series]:
        """Every series by patient, study and series, with the files that can be told whose they are."""
        rows = self._store.execute(_READ, (self.number,))
        for (subject, study, uid), group in groupby(rows, key=lambda row: (self._whose(row[0], row[3]), *row[1:3])):
            tallies: dict[Kind, _Tally] = {}
            for _, _, _, _, sop_class, *facts in group:
                tallies.setdefault(_kind(sop_class), _Tally()).add(*facts)
            if subject:
                yield from (tally.series(subject, study, uid, kind) for kind, tally in sorted(tallies.items()))

    def paths(self, series: Series) -> list[Path]:
        """The files of one series."""
        rows = self._store.execute(_PATHS, (self.number, series.study, series.uid, series.subject))
        return [
            self._source / os.fsdecode(path)
            for patient, path, sop_class in rows
            if self._whose(patient, path) == series.subject and _kind(sop_class) == series.kind
        ]

    def _find(self) -> None:
        with self._store:
            self._store.execute(
                "UPDATE files SET state = 'found' WHERE source = (SELECT id FROM sources WHERE id = ? AND reader <> ?)",
                (self.number, READER),
            )
            self._store.execute(
                "UPDATE files SET state = 'found', rule = '' WHERE source = ? AND rule = ?", (self.number, ENDED)
            )
            self._store.execute("UPDATE sources SET walk = walk + 1, reader = ? WHERE id = ?", (READER, self.number))
        (walked,) = self._one("SELECT walk FROM sources WHERE id = ?")
        for found in _batches(walk(self._source), _FOUND_AT_ONCE):
            with self._store:
                self._store.executemany(_FIND, [_found_row(self.number, walked, file) for file in found])
        with self._store:
            self._store.execute("DELETE FROM files WHERE source = ? AND walk <> ?", (self.number, walked))

    def _read(self, workers: Workers) -> Iterator[list[tuple[object, ...]]]:
        """Rows for ``_KEEP``, a chunk of files at a time; files whose chunk was lost once more, each by itself."""
        lost: list[tuple[int, bytes]] = []
        for chunk, outcome in self._chunks(workers, self._waiting()):
            if isinstance(outcome, Lost):
                lost += chunk
            else:
                yield [_keys_row(number, keys) for (number, _), keys in zip(chunk, outcome, strict=True)]
        for ((number, _),), outcome in self._chunks(workers, ([file] for file in lost)):
            if isinstance(outcome, Lost):
                yield [_keys_row(number, Reason.FAILED, ENDED)]
            else:
                yield [_keys_row(number, outcome[0])]

    def _chunks(
        self, workers: Workers, chunks: Iterable[list[tuple[int, bytes]]]
    ) -> Iterator[tuple[list[tuple[int, bytes]], "list[Keys | Reason] | Lost"]]:
        """Each chunk with what was read of it."""
        sent: list[list[tuple[int, bytes]]] = []

        def tasks() -> Iterator[tuple[list[Path]]]:
            for chunk in chunks:
                sent.append(chunk)
                yield ([self._source / os.fsdecode(path) for _, path in chunk],)

        for outcome in workers.in_order(read_chunk, tasks()):
            yield sent.pop(0), outcome

    def _waiting(self) -> Iterator[list[tuple[int, bytes]]]:
        """Numbers and paths of files whose keys are unread. By pages, as rows change while they are handed out."""
        last = 0
        while page := self._store.execute(
            "SELECT id, path FROM files WHERE source = ? AND state = 'found' AND id > ? ORDER BY id LIMIT ?",
            (self.number, last, _READ_AT_ONCE),
        ).fetchall():
            last = page[-1][0]
            yield page

    def _whose(self, patient: str, path: bytes) -> str:
        return _subject(patient, path, patient_folders=self._patient_folders)

    def _one(self, query: str) -> tuple[int, ...]:
        row: tuple[int, ...] = self._store.execute(query, (self.number,)).fetchone()
        return row


def left_out(store: sqlite3.Connection, source: int, *, patient_folders: bool) -> Iterator[tuple[Reason, str, int]]:
    """Reason, rule and number of a source's files that belong to no series of a patient."""
    rows = store.execute(
        "SELECT state, rule, count(*) FROM files WHERE source = ? AND state NOT IN ('read', 'found') "
        "GROUP BY state, rule ORDER BY state, rule",
        (source,),
    )
    yield from ((Reason(state), rule, count) for state, rule, count in rows)
    nameless = store.execute("SELECT path FROM files WHERE source = ? AND state = 'read' AND patient = ''", (source,))
    count = sum(not _subject("", path, patient_folders=patient_folders) for (path,) in nameless)
    if count:
        yield Reason.NO_PATIENT, "", count


def _subject(patient: str, path: bytes, *, patient_folders: bool) -> str:
    """Who a file is of; empty where nothing tells."""
    if patient or not patient_folders:
        return patient
    folder, slash, _ = path.partition(b"/")
    return folder.decode("utf-8", "replace") if slash else ""


def read_chunk(paths: list[Path]) -> list[Keys | Reason]:
    """Keys of several files; what a worker does at a time."""
    return [read_keys(path) for path in paths]


_Item = TypeVar("_Item")


def _batches(items: Iterable[_Item], size: int) -> Iterator[list[_Item]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


def _found_row(source: int, walked: int, file: Found) -> tuple[object, ...]:
    state = "found" if file.reason is None else file.reason.value
    return source, walked, file.path, file.size, file.changed, state, file.rule


def _keys_row(number: int, keys: Keys | Reason, rule: str = "") -> tuple[object, ...]:
    if isinstance(keys, Reason):
        return keys.value, rule, *(None,) * 9, number
    day = keys.study_date.isoformat() if keys.study_date else ""
    identity = (keys.patient, keys.study, keys.series, keys.instance, keys.sop_class, keys.modality)
    return "read", rule, *identity, day, keys.number, keys.pixel_bytes, number


def _kind(sop_class: str) -> Kind:
    return _KINDS.get(sop_class, "image")


class _Tally:
    """What is counted of one series while its files pass by."""

    def __init__(self) -> None:
        self.modality = ""
        self.days: set[str] = set()
        self.numbers: set[int] = set()
        self.files = 0
        self.pixel_bytes = 0
        self.digest = hashlib.sha256()

    def add(self, modality: str, day: str, number: int, pixel_bytes: int, *state: object) -> None:
        self.modality = self.modality or modality
        self.days.update([day] if day else [])
        self.numbers.add(number)
        self.files += 1
        self.pixel_bytes += pixel_bytes
        self.digest.update(f"{state}\n".encode())

    def series(self, subject: str, study: str, uid: str, kind: Kind) -> Series:
        return Series(
            subject=subject,
            study=study,
            uid=uid,
            kind=kind,
            modality=self.modality,
            study_date=min(self.days, default=""),
            number=min(self.numbers),
            files=self.files,
            pixel_bytes=self.pixel_bytes,
            digest=self.digest.hexdigest(),
        )
