"""Pictures of registered volumes: how well the body of one lies on the body of another that shares its frame.

In each frame of a patient the first volume is the anchor, and each of another modality is laid on it: as many pairs as
there are volumes, at most. Only the coarse copies are read.
"""

import base64
import hashlib
import json
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from parametrium.errors import Code, DataError
from parametrium.report.html import write_at_once
from parametrium.report.quality.measure import Measured
from parametrium.report.quality.png import encode_png
from parametrium.report.quality.reduced import checkerboard, on_grid, read_viewer_file
from parametrium.report.quality.survey import RECORDS, VIEWER, Progress, Surveyed, in_parallel

_FEWEST = 200  # coarse voxels that both must see for an overlap to mean something


@dataclass(frozen=True)
class Pair:
    """Two volumes of one frame.

    Attributes:
        anchor: place of the first in the survey.
        other: place of the second.
        overlap: Dice of their body masks where both see; None where they do not see the same place.
        picture: PNG, anchor and other in alternating squares, with both outlines; empty where there is none.
    """

    anchor: int
    other: int
    overlap: float | None
    picture: bytes


@dataclass(frozen=True)
class _Record:
    overlap: float | None
    picture: str


def registered_pairs(
    surveyed: Sequence[Surveyed], folder: Path, *, jobs: int = 1, progress: Progress | None = None
) -> tuple[list[Pair], set[str]]:
    """Every pair with its picture, the worst overlap first, and the keys of their records.

    Raises:
        DataError: PM301 the folder cannot be written.
    """
    places = _places(surveyed)
    keys = {_key(surveyed[a].key, surveyed[b].key): (a, b) for a, b in places}
    report = progress or (lambda done, total: None)
    try:
        missing = [key for key in keys if _known(folder, key) is None]
        calls = [(key, folder, surveyed[keys[key][0]].key, surveyed[keys[key][1]].key) for key in missing]
        done = len(keys) - len(missing)
        report(done, len(keys))
        for _ in in_parallel(_lay, calls, jobs):
            done += 1
            report(done, len(keys))
    except OSError as error:
        raise DataError(
            Code.DATA_CACHE, "the folder of the quality page cannot be written", site_detail=str(error)
        ) from error
    pairs = []
    for key, (anchor, other) in keys.items():
        record = _known(folder, key) or _Record(None, "")
        pairs.append(Pair(anchor, other, record.overlap, base64.b64decode(record.picture)))
    return sorted(pairs, key=lambda pair: (pair.overlap is None, pair.overlap or 0.0)), set(keys)


def _places(surveyed: Sequence[Surveyed]) -> list[tuple[int, int]]:
    anchors: dict[tuple[str, str], int] = {}
    places = []
    for n, item in enumerate(surveyed):
        if not isinstance(item.found, Measured):
            continue
        anchor = anchors.setdefault((item.volume.patient, item.volume.frame), n)
        if surveyed[anchor].volume.modality != item.volume.modality:
            places.append((anchor, n))
    return places


def _key(first: str, second: str) -> str:
    return hashlib.sha256(f"pair {first} {second}".encode()).hexdigest()[:24]


def _known(folder: Path, key: str) -> _Record | None:
    try:
        record = json.loads((folder / RECORDS / f"{key}.json").read_text(encoding="utf-8"))
        return _Record(record["overlap"], record["picture"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _lay(key: str, folder: Path, first: str, second: str) -> str:
    """Makes one record. Runs in a worker."""
    record = _Record(None, "")
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        try:
            fixed, _ = read_viewer_file(folder / VIEWER / f"{first}.js")
            moving, _ = read_viewer_file(folder / VIEWER / f"{second}.js")
            laid = on_grid(moving, fixed)
            both = fixed.seen & laid.seen
            sizes = np.count_nonzero(fixed.body & both) + np.count_nonzero(laid.body & both)
            if np.count_nonzero(both) >= _FEWEST and sizes:
                overlap = 2 * np.count_nonzero(fixed.body & laid.body & both) / sizes
                picture = encode_png(checkerboard(fixed, laid))
                record = _Record(float(overlap), base64.b64encode(picture).decode())
        except ValueError:  # a viewer's file that is not ours any more: the pair is shown without a picture
            pass
    write_at_once(folder / RECORDS / f"{key}.json", json.dumps(asdict(record)).encode(), private=True)
    return key
