"""Checkpoints that describe themselves: safetensors and JSON in one folder, atomic, no pickle anywhere.

    checkpoint/
        tensors.safetensors
        checkpoint.json      {"format", "parametrium", "sha256", ...meta: job, round, modalities, preparation, ...}

A folder appears under its name only when it is complete: it is written beside, flushed to disk and renamed.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from parametrium import __version__
from parametrium.errors import Code, TrainingError

FORMAT = 1
TENSORS = "tensors.safetensors"
DESCRIPTION = "checkpoint.json"


def save_checkpoint(folder: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> Path:
    """Writes a checkpoint, replacing one of the same name as a whole.

    Args:
        folder: the checkpoint's folder.
        tensors: tensors by name; moved to the CPU and made contiguous.
        meta: JSON-able description.

    Returns:
        The folder.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, partial / TENSORS)
    description = {
        "format": FORMAT,
        "parametrium": __version__,
        "sha256": file_digest(partial / TENSORS),
        **meta,
    }
    (partial / DESCRIPTION).write_text(json.dumps(description, indent=1, sort_keys=True), encoding="utf-8")
    for path in (partial / TENSORS, partial / DESCRIPTION, partial):
        flush(path)
    if folder.exists():
        retired = folder.with_name(f".{folder.name}.{os.getpid()}.retired")
        folder.rename(retired)
        partial.rename(folder)
        shutil.rmtree(retired)
    else:
        partial.rename(folder)
    flush(folder.parent)
    return folder


def load_checkpoint(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads a checkpoint and checks that it is whole.

    Raises:
        TrainingError: PM403 when it is absent, incomplete, damaged or of a newer format.
    """
    try:
        meta = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
        if meta["format"] > FORMAT:
            raise TrainingError(
                Code.CHECKPOINT_INVALID,
                f"the checkpoint has format {meta['format']}; this version reads up to {FORMAT}. Update parametrium.",
            )
        if file_digest(folder / TENSORS) != meta["sha256"]:
            raise TrainingError(
                Code.CHECKPOINT_INVALID, "the checkpoint's tensors do not match their checksum", site_detail=str(folder)
            )
        return load_file(folder / TENSORS), meta
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise TrainingError(
            Code.CHECKPOINT_INVALID, "the checkpoint is absent or incomplete", site_detail=f"{folder}: {error}"
        ) from error


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
