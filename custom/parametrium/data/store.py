"""The cache: prepared volumes on disk, each found by what it was made of, read crop by crop.

    cache/volumes/<key>/    image.b2nd  body.b2nd  foreground.npy  entry.json
    cache/sources/          digest of each source file beside its size and times, so that it is hashed once
    cache/attempts/         work in progress; a folder moves into volumes/ when it is complete, in one step

The key joins the digest of the source's bytes and of everything that decides the result, so that a new file or a new
setting makes a new entry and an old one is never overwritten. A lock that dies with its process tells a live attempt
from a dead one, which the next attempt sweeps away.
"""

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from parametrium.cohort.volume_file import VolumeFileError, source_files
from parametrium.data.cache import Entry, read_entry, write_private
from parametrium.errors import Code, DataError

_BLOCK = 2**20


def entry_key(source: str, recipe: str) -> str:
    """Name of the entry made of a source (digest of its bytes) by a recipe (digest of its settings)."""
    return hashlib.sha256(f"{source}:{recipe}".encode()).hexdigest()[:40]


class Cache:
    """A cache folder. Several processes may use one at the same time.

    Raises:
        DataError: PM301 the folder cannot be made or written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._volumes = folder / "volumes"
        self._sources = folder / "sources"
        self._attempts = folder / "attempts"
        with writable(folder):
            for part in (folder, self._volumes, self._sources, self._attempts):
                part.mkdir(mode=0o700, parents=True, exist_ok=True)

    def folder_of(self, key: str) -> Path:
        """Where the entry of a key is or would be."""
        return self._volumes / key

    def entry(self, key: str) -> Entry | None:
        """The complete entry of a key; None where there is none."""
        return read_entry(self.folder_of(key))

    def known_digest(self, source: Path) -> str | None:
        """SHA-256 of a source file whose size and times have not changed since it was hashed."""
        try:
            record = json.loads(self._source_record(source).read_text(encoding="utf-8"))
            digest, state = record["sha256"], record["state"]
            return str(digest) if state == _state(source) else None
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def digest(self, source: Path, staging: Path) -> str:
        """SHA-256 of a source's bytes, remembered; raises OSError where it cannot be read."""
        known = self.known_digest(source)
        if known is not None:
            return known
        state = _state(source)
        whole = hashlib.sha256()
        for path in _files(source):
            with path.open("rb") as stream:
                while block := stream.read(_BLOCK):
                    whole.update(block)
        digest = whole.hexdigest()
        with writable(self.folder):
            record = staging / f"{uuid.uuid4().hex}.json"
            write_private(record, json.dumps({"sha256": digest, "state": state}).encode())
            record.replace(self._source_record(source))
        return digest

    def _source_record(self, source: Path) -> Path:
        # By digest of the path: a listing of the cache then names no file of the hospital.
        return self._sources / f"{hashlib.sha256(os.fsencode(source)).hexdigest()[:32]}.json"

    @contextmanager
    def attempt(self) -> Iterator[Path]:
        """A folder for work in progress that nobody else touches; leftovers of dead attempts are swept away."""
        name = uuid.uuid4().hex
        lock = FileLock(self._attempts / f"{name}.lock", mode=0o600)
        staging = self._attempts / name
        with writable(self.folder), FileLock(self._attempts / "sweep", mode=0o600):
            self._sweep()
            lock.acquire()
            staging.mkdir(mode=0o700)
        try:
            yield staging
        finally:
            shutil.rmtree(staging, ignore_errors=True)
            (self._attempts / f"{name}.lock").unlink(missing_ok=True)
            lock.release()

    def _sweep(self) -> None:
        for path in self._attempts.glob("*.lock"):
            lock = FileLock(path)
            with suppress(Timeout):
                lock.acquire(blocking=False)
                shutil.rmtree(path.with_suffix(""), ignore_errors=True)
                path.unlink(missing_ok=True)
                lock.release()

    def publish(self, key: str, staged: Path) -> None:
        """Moves a complete entry into place; the first of two processes wins, and both made the same."""
        target = self.folder_of(key)
        with writable(self.folder):
            if target.exists() and self.entry(key) is None:
                shutil.rmtree(target, ignore_errors=True)
            try:
                staged.replace(target)
            except OSError:
                if self.entry(key) is None:
                    raise
                shutil.rmtree(staged, ignore_errors=True)


@contextmanager
def writable(folder: Path) -> Iterator[None]:
    """Names a full or read-only disk as what it is, rather than as a fault of some volume."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # blosc2 turns a failed write into a RuntimeError
        raise DataError(
            Code.DATA_CACHE,
            "the cache folder cannot be written; check its rights and the free space",
            site_detail=f"{folder}: {error}",
        ) from error


def _files(source: Path) -> tuple[Path, ...]:
    """The files that make a source: a header may name another one for its voxels; raises OSError."""
    try:
        return source_files(source)
    except VolumeFileError as error:
        raise OSError("the header cannot be read") from error


def _state(source: Path) -> list[int]:
    """Sizes and times; the change time catches a copy that keeps the modification time."""
    statuses = [path.stat() for path in _files(source)]
    return [n for status in statuses for n in (status.st_size, status.st_mtime_ns, status.st_ctime_ns)]
