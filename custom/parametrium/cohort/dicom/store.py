"""The site's private store: one SQLite file beside the secret, for what may never lie in a cohort."""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from parametrium.errors import Code, CohortError

_VERSION = 1

# Of a source: its files (index.py). Of a cohort: what came of them (importers/ledger.py).
_SCHEMA = """
CREATE TABLE IF NOT EXISTS sources (
    id INTEGER PRIMARY KEY, root BLOB NOT NULL UNIQUE, walk INTEGER NOT NULL, reader INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS files (
    id INTEGER PRIMARY KEY,
    source INTEGER NOT NULL REFERENCES sources,
    path BLOB NOT NULL,
    size INTEGER NOT NULL,
    changed INTEGER NOT NULL,
    walk INTEGER NOT NULL,
    state TEXT NOT NULL, -- found, read, or the reason why it is left out
    rule TEXT NOT NULL DEFAULT '',
    patient TEXT, study TEXT, series TEXT, instance TEXT, sop_class TEXT, modality TEXT, study_date TEXT,
    number INTEGER, pixel_bytes INTEGER,
    UNIQUE (source, path)
);
CREATE INDEX IF NOT EXISTS files_by_series ON files (source, patient, study, series, path);
CREATE TABLE IF NOT EXISTS cohorts (name TEXT PRIMARY KEY);
CREATE TABLE IF NOT EXISTS patients (
    id INTEGER PRIMARY KEY, cohort TEXT NOT NULL, subject TEXT NOT NULL, pseudonym TEXT NOT NULL, origin TEXT,
    UNIQUE (cohort, subject), UNIQUE (cohort, pseudonym)
);
CREATE TABLE IF NOT EXISTS studies (
    id INTEGER PRIMARY KEY, patient INTEGER NOT NULL REFERENCES patients, uid TEXT NOT NULL, number INTEGER NOT NULL,
    date TEXT NOT NULL, UNIQUE (patient, uid), UNIQUE (patient, number)
);
CREATE TABLE IF NOT EXISTS frames (
    study INTEGER NOT NULL REFERENCES studies, uid TEXT NOT NULL, number INTEGER NOT NULL, PRIMARY KEY (study, uid)
);
CREATE TABLE IF NOT EXISTS series (
    id INTEGER PRIMARY KEY, patient INTEGER NOT NULL REFERENCES patients, study TEXT NOT NULL, uid TEXT NOT NULL,
    kind TEXT NOT NULL, modality TEXT NOT NULL, files INTEGER NOT NULL, digest TEXT NOT NULL,
    UNIQUE (patient, study, uid, kind)
);
CREATE TABLE IF NOT EXISTS volumes (
    id INTEGER PRIMARY KEY, series INTEGER NOT NULL REFERENCES series, study INTEGER NOT NULL REFERENCES studies,
    modality TEXT NOT NULL, path TEXT NOT NULL, frame INTEGER NOT NULL, rule TEXT NOT NULL, sure INTEGER NOT NULL,
    grid TEXT NOT NULL, digest TEXT NOT NULL,
    told TEXT NOT NULL DEFAULT '', -- digest when the table was last written
    kept TEXT NOT NULL DEFAULT '{}', -- cells that others wrote into the table
    UNIQUE (study, path)
);
CREATE INDEX IF NOT EXISTS volumes_by_series ON volumes (series);
CREATE TABLE IF NOT EXISTS instances (volume INTEGER NOT NULL REFERENCES volumes ON DELETE CASCADE, uid TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS instances_by_volume ON instances (volume);
CREATE TABLE IF NOT EXISTS masks (
    id INTEGER PRIMARY KEY, series INTEGER NOT NULL REFERENCES series,
    volume INTEGER NOT NULL REFERENCES volumes ON DELETE CASCADE,
    structure TEXT NOT NULL, path TEXT NOT NULL, UNIQUE (volume, path)
);
CREATE INDEX IF NOT EXISTS masks_by_series ON masks (series);
CREATE TABLE IF NOT EXISTS left_out (
    series INTEGER NOT NULL REFERENCES series, modality TEXT NOT NULL, reason TEXT NOT NULL, rule TEXT NOT NULL,
    files INTEGER NOT NULL
);
CREATE INDEX IF NOT EXISTS left_out_by_series ON left_out (series);
CREATE TABLE IF NOT EXISTS cohort_sources (
    cohort TEXT NOT NULL, source INTEGER NOT NULL, patient_folders INTEGER NOT NULL, PRIMARY KEY (cohort, source)
);
CREATE TABLE IF NOT EXISTS obsolete (cohort TEXT NOT NULL, path TEXT NOT NULL, PRIMARY KEY (cohort, path));
"""


@contextmanager
def private_store(secret: Path) -> Iterator[sqlite3.Connection]:
    """Opens, or makes, ``<secret>.index.sqlite``, readable by its owner only, for one process at a time.

    Raises:
        CohortError: PM204 another import uses it, it is damaged, of another version, or cannot be written.
    """
    path = secret.with_name(f"{secret.name}.index.sqlite")
    lock = FileLock(secret.with_name(f"{secret.name}.lock"), mode=0o600)
    try:
        with lock.acquire(blocking=False):
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))  # SQLite gives its journal the same rights
            path.chmod(0o600)
            with closing(sqlite3.connect(path)) as store:
                _prepare(store)
                yield store
    except Timeout as error:
        raise CohortError(
            Code.COHORT_IMPORT, "another import with this secret is running; wait for its end", site_detail=str(path)
        ) from error
    except sqlite3.Error as error:
        raise CohortError(
            Code.COHORT_IMPORT,
            "the site's private index beside the secret cannot be used; check the free space, or, where it is damaged, "
            "remove it together with the cohort folder and import again",
            site_detail=f"{path}: {error}",
        ) from error


def _prepare(store: sqlite3.Connection) -> None:
    store.execute("PRAGMA temp_store = MEMORY")  # a sort must not spill names into the system's temporary folder
    store.execute("PRAGMA foreign_keys = ON")
    version = store.execute("PRAGMA user_version").fetchone()[0]
    if version not in (0, _VERSION):
        raise CohortError(
            Code.COHORT_IMPORT,
            f"the private index beside the secret is of version {version}, this program reads version {_VERSION}; "
            "import into a new cohort folder with a new secret, or use the program that made it",
        )
    store.execute(f"PRAGMA user_version = {_VERSION}")
    store.executescript(_SCHEMA)
    store.commit()
