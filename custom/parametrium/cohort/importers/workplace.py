"""The hidden folder in a cohort where an import works: whose the cohort is, and volumes until they are whole."""

import secrets
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from parametrium.errors import Code, CohortError

TABLES = ("cohort.csv", "masks.csv", "problems.csv")

_FOLDER = ".import"


@dataclass(frozen=True)
class Workplace:
    """Where an import works.

    Attributes:
        cohort: the cohort's own random name, by which the private store knows it wherever the folder is moved.
        staging: an empty folder on the cohort's disk, for this process alone.
    """

    cohort: str
    staging: Path


@contextmanager
def workplace(folder: Path, store: sqlite3.Connection) -> Iterator[Workplace]:
    """Takes a cohort folder, made where absent, for one import; leftovers of killed ones are swept away.

    Raises:
        CohortError: PM204 another import is at work in it, its table was made by something else, or with another
            secret, or it cannot be written.
    """
    work = folder / _FOLDER
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        work.mkdir(mode=0o700, exist_ok=True)
        with FileLock(work / "lock", mode=0o600).acquire(blocking=False):
            name = _name(folder, store)
            staging = work / "staging"
            shutil.rmtree(staging, ignore_errors=True)
            for table in TABLES:
                for leftover in folder.glob(f".{table}.*"):
                    leftover.unlink()
            staging.mkdir(mode=0o700)
            try:
                yield Workplace(name, staging)
            finally:
                shutil.rmtree(staging, ignore_errors=True)
    except Timeout as error:
        raise CohortError(
            Code.COHORT_IMPORT, "another import into this cohort is running; wait for its end", site_detail=str(folder)
        ) from error
    except OSError as error:
        raise CohortError(
            Code.COHORT_IMPORT,
            "the cohort folder cannot be written; check its rights and the free space",
            site_detail=f"{folder}: {error}",
        ) from error


def _name(folder: Path, store: sqlite3.Connection) -> str:
    path = folder / _FOLDER / "cohort"
    if path.exists():
        name = path.read_text(encoding="ascii", errors="replace").strip()
        if store.execute("SELECT 1 FROM cohorts WHERE name = ?", (name,)).fetchone() is None:
            raise CohortError(
                Code.COHORT_IMPORT,
                "this cohort was imported with another secret; name that one (--secret), or import into a new folder",
                site_detail=str(folder),
            )
        return name
    if (folder / "cohort.csv").exists():
        raise CohortError(
            Code.COHORT_IMPORT,
            "the cohort folder holds a cohort table that was not made by an import of DICOM; choose another folder",
            site_detail=str(folder),
        )
    name = secrets.token_hex(16)
    with store:
        store.execute("INSERT INTO cohorts (name) VALUES (?)", (name,))
    temporary = path.with_suffix(".new")
    temporary.touch(mode=0o600)
    temporary.write_text(name, encoding="ascii")
    temporary.replace(path)
    return name
