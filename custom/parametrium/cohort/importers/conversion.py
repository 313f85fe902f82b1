"""What a worker does with one series, and how what it made gets into the cohort."""

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath

from parametrium.cohort.defacing.hook import Hook
from parametrium.cohort.dicom.convert import convert_series
from parametrium.cohort.dicom.facts import SIDECAR, Choice, Converted, Facts, LeftOut, SidecarValue
from parametrium.cohort.importers.ledger import SIDECAR_SUFFIX, SUFFIX
from parametrium.cohort.problem import Reason


def convert(
    files: Sequence[Path], staging: Path, choose: Callable[[Facts], Choice], defacing: Hook | None
) -> list[Converted | LeftOut]:
    """Volumes of one image series with their sidecars, in ``staging``, which is made; or why there are none.

    Raises:
        OSError: ``staging`` cannot be written.
    """
    staging.mkdir(mode=0o700)
    try:
        outcomes = convert_series(files, choose, staging, defacing)
    except OSError:
        raise
    except Exception as error:  # one odd series must not stop the batch; a fault of ours hits all and is seen
        return [failure(error, len(files))]
    for outcome in outcomes:
        if isinstance(outcome, Converted):
            _write_sidecar(_sidecar_of(outcome.file), outcome.sidecar)
            for file in filter(None, (outcome.defaced, outcome.file)):
                flush(file)
    return outcomes


def put(folder: Path, staged: Path, name: PurePosixPath) -> None:
    """Moves a staged file into the cohort, its sidecar before it: a volume that is seen is whole."""
    target = folder / name
    for parent in reversed(target.relative_to(folder).parents[:-1]):
        (folder / parent).mkdir(mode=0o700, exist_ok=True)
    sidecar = _sidecar_of(staged)
    if sidecar.exists():
        sidecar.replace(_sidecar_of(target))
    staged.replace(target)


def failure(error: Exception, files: int) -> LeftOut:
    """What is left of a series that something unforeseen happened to; of the error, only its class is told."""
    reason = Reason.TOO_LARGE if isinstance(error, MemoryError) else Reason.FAILED
    return LeftOut(None, reason, type(error).__name__, files)


def _sidecar_of(volume: Path) -> Path:
    return volume.with_name(volume.name.removesuffix(SUFFIX) + SIDECAR_SUFFIX)


def read_sidecar(volume: Path) -> Mapping[str, SidecarValue]:
    """What the sidecar of a volume tells; nothing where there is none that can be read."""
    try:
        told = json.loads(_sidecar_of(volume).read_text(encoding="ascii"))
    except (OSError, ValueError):
        return {}
    return told if isinstance(told, dict) else {}


def _write_sidecar(path: Path, values: Mapping[str, SidecarValue]) -> None:
    """Only names of the allow-list, and of their values only numbers and yes or no."""
    told = {name: values[name] for name in SIDECAR if name in values and _is_plain(values[name])}
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "w", encoding="ascii") as file:
        json.dump(told, file, indent=1)
        file.write("\n")


def _is_plain(value: object) -> bool:
    if isinstance(value, list):
        return all(_is_plain(item) for item in value)
    return isinstance(value, bool | int | float) and math.isfinite(value)


def flush(path: Path) -> None:
    """To the disk before it gets its name, so that a power cut leaves no empty file under it."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
