"""All files below a folder, whatever their names, and nothing outside it."""

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from parametrium.cohort.problem import Reason
from parametrium.errors import Code, CohortError

ARCHIVE = "archive"
LINK = "link out of the source"
FOLDER = "folder without right to read"
SPECIAL = "device, pipe or socket"

_ARCHIVES = (b".zip", b".tar", b".tar.gz", b".tgz", b".tar.bz2", b".7z", b".rar")


@dataclass(frozen=True, slots=True)
class Found:
    """One file.

    Attributes:
        path: below the folder, in the file system's own bytes: a name need not be text.
        size: bytes.
        changed: time of the last change, nanoseconds.
        reason: why it is left out unopened; None where it may be opened.
        rule: which rule decided that.
    """

    path: bytes
    size: int
    changed: int
    reason: Reason | None = None
    rule: str = ""


def walk(folder: Path) -> Iterator[Found]:
    """Every file below ``folder``. Links are not followed: what they lead to inside is met in its own place.

    Raises:
        CohortError: PM204 ``folder`` is not a folder that can be read.
    """
    root = os.fsencode(folder.resolve())
    waiting = [b""]
    while waiting:
        below = waiting.pop()
        try:
            with os.scandir(b"/".join(filter(None, (root, below)))) as entries:
                for entry in entries:
                    path = b"/".join(filter(None, (below, entry.name)))
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(path)
                    elif found := _found(entry, path, root):
                        yield found
        except OSError as error:
            if not below:
                raise CohortError(
                    Code.COHORT_IMPORT, "the source is not a folder that can be read", site_detail=f"{folder}: {error}"
                ) from error
            yield Found(below, 0, 0, Reason.UNREADABLE, FOLDER)


def _found(entry: "os.DirEntry[bytes]", path: bytes, root: bytes) -> Found | None:
    if entry.is_symlink():
        inside = (os.path.realpath(entry.path) + b"/").startswith(root.rstrip(b"/") + b"/")
        return None if inside else Found(path, 0, 0, Reason.UNREADABLE, LINK)
    try:
        status = entry.stat(follow_symlinks=False)
    except OSError:
        return Found(path, 0, 0, Reason.UNREADABLE)
    if not stat.S_ISREG(status.st_mode):
        return Found(path, 0, 0, Reason.NOT_DICOM, SPECIAL)
    archive = entry.name.lower().endswith(_ARCHIVES)
    return Found(path, status.st_size, status.st_mtime_ns, *((Reason.NOT_DICOM, ARCHIVE) if archive else ()))
