"""Measuring a cohort: one volume a worker, in parallel, each reduced to a record and a file for the viewer.

    quality/measured/<key>.json   the numbers of one volume, or why there are none
    quality/volumes/<key>.js      its coarse copy for the viewer

The key is made of where the source lies, its size and time of change, and of what the table says of it, so that a
second check measures only what is new or changed, also after an interruption. Neither name nor content holds a name.
"""

import hashlib
import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from parametrium.cohort.content import content_problem
from parametrium.cohort.manifest import Volume
from parametrium.cohort.problem import Reason
from parametrium.cohort.rigid import matrix_of
from parametrium.cohort.workers import Lost, Workers
from parametrium.data.recipe import load_volume
from parametrium.errors import Code, DataError
from parametrium.report.html import write_at_once
from parametrium.report.quality.measure import Measured, as_record, from_record, measure
from parametrium.report.quality.png import encode_png
from parametrium.report.quality.reduced import montage, reduce_volume, viewer_file

VERSION = 2
"""Raised whenever this code would measure or draw something else from the same source."""

RECORDS, VIEWER = "measured", "volumes"

_log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Surveyed:
    """One volume of the table and what was measured of it: numbers, or why there are none."""

    volume: Volume
    key: str
    found: Measured | Reason


def survey(
    volumes: Sequence[Volume], folder: Path, *, jobs: int = 1, progress: Progress | None = None
) -> list[Surveyed]:
    """Measures every volume that has no record yet.

    Args:
        volumes: from ``read_cohort``.
        folder: the page's folder; records and viewer files go below it.
        jobs: processes; each holds one volume at a time.
        progress: called with volumes done and volumes in all.

    Returns:
        In the order of ``volumes``.

    Raises:
        DataError: PM301 the folder cannot be written.
    """
    keys = [volume_key(volume) for volume in volumes]
    try:
        for part in (folder, folder / RECORDS, folder / VIEWER):
            part.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = {key: record for key in dict.fromkeys(keys) if (record := _known(folder, key))}
        missing = {key: volume for key, volume in zip(keys, volumes, strict=True) if key not in found}
        report = progress or (lambda done, total: None)
        report(len(found), len(found) + len(missing))
        calls = [(key, volume, folder) for key, volume in missing.items()]
        for key, _ in zip(missing, in_parallel(_measure_one, calls, jobs), strict=True):
            found[key] = _known(folder, key) or Reason.FAILED
            report(len(found), len(set(keys)))
    except OSError as error:
        raise DataError(
            Code.DATA_CACHE, "the folder of the quality page cannot be written", site_detail=str(error)
        ) from error
    return [Surveyed(volume, key, found[key]) for volume, key in zip(volumes, keys, strict=True)]


def volume_key(volume: Volume) -> str:
    """Name of a volume's record and viewer file."""
    try:
        state = volume.path.stat()
        identity = [state.st_size, state.st_mtime_ns]
    except OSError:
        identity = []
    told = [VERSION, os.path.realpath(volume.path), *identity]
    told += [volume.modality, volume.slope, volume.intercept, *volume.moved]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:24]


def in_parallel(function: Callable[..., str], calls: Sequence[tuple[Any, ...]], jobs: int) -> Iterator[str | None]:
    """Results in order; None for a call whose process died, as a rule for lack of memory.

    One job runs in this process.
    """
    if min(jobs, len(calls)) <= 1:
        yield from (function(*call) for call in calls)
        return
    with Workers(jobs) as workers:
        for result in workers.in_order(function, calls):
            yield None if isinstance(result, Lost) else result


def sweep(folder: Path, keys: set[str]) -> None:
    """Removes records, viewer files and partial files that belong to none of the keys."""
    for path in (*(folder / RECORDS).glob("*"), *(folder / VIEWER).glob("*.js"), *(folder / VIEWER).glob(".*")):
        if path.stem not in keys:
            path.unlink(missing_ok=True)


def _known(folder: Path, key: str) -> Measured | Reason | None:
    """The record of a key, if it is whole and the viewer's file lies beside it."""
    try:
        record = json.loads((folder / RECORDS / f"{key}.json").read_text(encoding="utf-8"))
        if "reason" in record:
            return Reason(record["reason"])
        return from_record(record) if (folder / VIEWER / f"{key}.js").is_file() else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _measure_one(key: str, volume: Volume, folder: Path) -> str:
    """Makes one record. Runs in a worker."""
    logging.getLogger("nibabel.global").disabled = True  # its warnings quote header values
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        try:
            found = _measured(key, volume, folder)
        except OSError:
            raise
        except Exception as error:  # one odd volume must not stop the page
            _log.warning("a volume could not be measured: %s", type(error).__name__)
            found = Reason.TOO_LARGE if isinstance(error, MemoryError) else Reason.FAILED
    record = {"reason": found.value} if isinstance(found, Reason) else as_record(found)
    write_at_once(folder / RECORDS / f"{key}.json", json.dumps(record).encode(), private=True)
    return key


def _measured(key: str, volume: Volume, folder: Path) -> Measured | Reason:
    loaded = load_volume(volume.path)
    if isinstance(loaded, Reason):
        return loaded
    voxels, affine = loaded
    reason = content_problem(voxels)
    if reason is not None:
        return reason
    if (volume.slope, volume.intercept) != (1.0, 0.0):
        voxels = voxels * np.float32(volume.slope) + np.float32(volume.intercept)
    affine = matrix_of(volume.moved) @ affine
    reduced = reduce_volume(voxels, affine, volume.modality)
    found = measure(voxels, affine, reduced, volume.modality)
    if isinstance(found, Measured):
        write_at_once(
            folder / VIEWER / f"{key}.js", viewer_file(key, reduced, encode_png(montage(reduced))), private=True
        )
    return found
