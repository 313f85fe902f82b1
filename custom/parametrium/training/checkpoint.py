"""Checkpoints that describe themselves: safetensors and JSON in one folder, no pickle anywhere.

    checkpoint/
        tensors.safetensors
        checkpoint.json      {"format", "parametrium", "sha256", "description_sha256", ...meta: job, round, ...}

A folder appears under its name only when it is complete: it is written beside as ``.<name>.<pid>.partial``, flushed to
disk and renamed. One that it replaces steps aside as ``.<name>.retired`` first, and is read from there when a crash
came before the new one had its name: at every moment one complete checkpoint can be found. One process at a time
writes into a folder of checkpoints.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from parametrium import __version__
from parametrium.errors import Code, TrainingError

FORMAT = 1
TENSORS = "tensors.safetensors"
DESCRIPTION = "checkpoint.json"

_DESCRIPTION_DIGEST = "description_sha256"
_RESERVED = frozenset({"format", "parametrium", "sha256", _DESCRIPTION_DIGEST})
_PARTIAL = re.compile(r"\..+\.([0-9]{1,9})\.partial")


def save_checkpoint(folder: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> Path:
    """Writes a checkpoint, replacing one of the same name as a whole.

    Args:
        folder: the checkpoint's folder.
        tensors: tensors by name; moved to the CPU and made contiguous.
        meta: JSON-able description.

    Returns:
        The folder.

    Raises:
        ValueError: ``meta`` names a key that the checkpoint itself writes.
    """
    taken = sorted(_RESERVED & meta.keys())
    if taken:
        raise ValueError(f"meta must not hold {', '.join(taken)}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(folder.parent)
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    _write(partial, tensors, meta)
    retired = _retired(folder)
    if folder.exists():
        shutil.rmtree(retired, ignore_errors=True)
        folder.rename(retired)
    partial.rename(folder)
    flush(folder.parent)
    shutil.rmtree(retired, ignore_errors=True)
    return folder


def find_checkpoint(folder: Path) -> Path | None:
    """Where the checkpoint of that name lies now: under its name, or aside when a crash cut its replacement short."""
    folder = folder.absolute()  # "." has no name to step aside under
    return next((path for path in (folder, _retired(folder)) if path.is_dir()), None)


def checkpoint_names(parent: Path) -> set[str]:
    """Names of the checkpoints in a folder that ``find_checkpoint`` would find; an absent folder has none."""
    if not parent.is_dir():
        return set()
    found = (path.name.removeprefix(".").removesuffix(".retired") for path in parent.iterdir())
    return {name for name in found if find_checkpoint(parent / name)}


def remove_checkpoint(folder: Path) -> None:
    """Removes a checkpoint, also one that stepped aside; an absent one is none."""
    # That first: the other way round, a crash between the two would bring the older one back.
    shutil.rmtree(_retired(folder), ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)


def load_checkpoint(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads a checkpoint and checks that it is whole.

    Raises:
        TrainingError: PM403 when it is absent, incomplete, damaged or of a newer format.
    """
    found = find_checkpoint(folder) or folder
    try:
        meta = json.loads((found / DESCRIPTION).read_text(encoding="utf-8"))
        if meta["format"] > FORMAT:
            raise TrainingError(
                Code.CHECKPOINT_INVALID,
                f"the checkpoint has format {meta['format']}; this version reads up to {FORMAT}. Update parametrium.",
            )
        if meta.pop(_DESCRIPTION_DIGEST) != _description_digest(meta):
            raise _damaged("the checkpoint's description does not match its checksum", found)
        if file_digest(found / TENSORS) != meta["sha256"]:
            raise _damaged("the checkpoint's tensors do not match their checksum", found)
        return load_file(found / TENSORS), meta
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise _damaged("the checkpoint is absent or incomplete", f"{found}: {error}") from error


def file_digest(path: Path) -> str:
    """SHA-256 of a file, streamed."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def flush(path: Path) -> None:
    """Forces a file or folder entry to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _write(folder: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Writes both files into a fresh folder and flushes them to disk."""
    folder.mkdir()
    save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, folder / TENSORS)
    own = {"format": FORMAT, "parametrium": __version__, "sha256": file_digest(folder / TENSORS)}
    description = json.loads(json.dumps({**meta, **own}))  # as a reader will see it: text keys, lists
    description[_DESCRIPTION_DIGEST] = _description_digest(description)
    (folder / DESCRIPTION).write_text(json.dumps(description, indent=1, sort_keys=True), encoding="utf-8")
    for path in (folder / TENSORS, folder / DESCRIPTION, folder):
        flush(path)


def _description_digest(description: Mapping[str, Any]) -> str:
    """SHA-256 of the description as canonical JSON, before its own digest is part of it."""
    return hashlib.sha256(json.dumps(description, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _damaged(message: str, detail: object) -> TrainingError:
    return TrainingError(Code.CHECKPOINT_INVALID, message, site_detail=str(detail))


def _retired(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.retired")


def _remove_leftovers(parent: Path) -> None:
    """Removes what processes that ended amid a save left in a folder of checkpoints."""
    for path in list(parent.iterdir()):
        partial = _PARTIAL.fullmatch(path.name)
        if partial:
            pid = int(partial.group(1))
            gone = pid == os.getpid() or not psutil.pid_exists(pid)
        else:
            name = path.name.removeprefix(".").removesuffix(".retired")
            gone = path == _retired(parent / name) and (parent / name).is_dir()
        if gone:
            shutil.rmtree(path, ignore_errors=True)
