"""Weights from elsewhere, read without running anything that they bring.

A file of ``torch.save`` is a pickle, and a pickle is a program. It is therefore opened only as torch's own zip archive,
after a look at its sizes, and through torch's restricted reader (``weights_only``), which builds tensors and plain
containers and refuses every other name. Safetensors and this package's checkpoints hold no program.
"""

import math
import pickletools
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from parametrium.errors import Code, TrainingError
from parametrium.training.checkpoint import DESCRIPTION, find_checkpoint, load_checkpoint
from parametrium.training.run_folder import final_checkpoint
from parametrium.training.warm_start.formats import FORMATS, OWN_ANCHOR

LARGEST_FILE = 16 * 2**30
"""Bytes; a 3D ViT-H in float32 has 2.5 GB."""

LARGEST_PROGRAM = 16 * 2**20
"""Bytes of the archive's pickled part, which holds names and shapes alone; that of a base model has 50 kB."""

_PROGRAM = ".pkl"  # the pickled part of torch's archive

SAVED_BY_TORCH = (".pt", ".pth", ".ckpt", ".bin")

DEEPEST = 8
"""How far down in what a training program saved a state dict is looked for."""

NUMBERS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""Kinds of weights that are read; whole and complex numbers are passed over."""

_ANCHORS = (OWN_ANCHOR, *(format_.anchor for format_ in FORMATS))

_ALLOCATORS = ("bytearray", "TypedStorage", "UntypedStorage", "_rebuild_meta_tensor_no_storage")
"""What torch's restricted reader would build of any size, whatever the file holds; and classes of tensors."""


class Weights(NamedTuple):
    """Tensors by their names at the source.

    Attributes:
        tensors: all tensors of the state dict, on the CPU.
        meta: the description of a checkpoint of this package; None for other files.
    """

    tensors: dict[str, Tensor]
    meta: Mapping[str, Any] | None = None


def read_weights(source: Path) -> Weights:
    """Reads a run folder, a checkpoint of this package, a safetensors file, or a state dict that torch saved.

    Raises:
        TrainingError: PM403 when the source is absent, too large, of another kind, damaged, holds anything but tensors
            in plain containers, or a tensor that is not finite or of a shorter kind than ``NUMBERS``.
        FederationError: PM503 when it is a run folder without a finished run.
    """
    if (source / "manifest.json").is_file():
        return _of_checkpoint(final_checkpoint(source))
    found = find_checkpoint(source)
    if found is not None:
        return _of_checkpoint(found)
    if not source.is_file():
        raise _refused("the source is neither a file nor a folder", source)
    if source.stat().st_size > LARGEST_FILE:
        raise _refused(f"the file has more than {LARGEST_FILE // 2**30} GB", source)
    kind = source.suffix.lower()
    if kind == ".safetensors":
        try:
            tensors = load_file(source)
        except (OSError, SafetensorError) as error:
            raise _refused("the file is no whole safetensors file", f"{source}: {error}") from error
    elif kind in SAVED_BY_TORCH:
        tensors = _saved_by_torch(source)
    else:
        raise _refused(f"weights are read from .safetensors, {', '.join(SAVED_BY_TORCH)}, or a run folder", source)
    _require_numbers(tensors, source)
    return Weights(tensors)


def _of_checkpoint(folder: Path) -> Weights:
    if not (folder / DESCRIPTION).is_file():
        raise _refused("the folder is neither a run nor a checkpoint of this package", folder)
    tensors, meta = load_checkpoint(folder)
    _require_numbers(tensors, folder)
    return Weights(tensors, meta)


def _saved_by_torch(file: Path) -> dict[str, Tensor]:
    _check_archive(file)
    try:
        document = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # what the restricted reader refuses has many classes
        raise _refused(
            "the file holds more than tensors, and was not run; save its state_dict() alone, best as safetensors",
            f"{file}: {error}",
        ) from error
    tensors = _state_dict(document, file)
    for name, tensor in tensors.items():
        # A view may repeat its few stored numbers without end; whoever copies it would fill the memory.
        if tensor.layout != torch.strided or tensor.nbytes > tensor.untyped_storage().nbytes():
            raise _refused("a tensor is not stored number by number", f"{file}: {name}")
    return tensors


def _check_archive(file: Path) -> None:
    """Refuses what is no archive of torch's, or would become larger than the file when it is opened."""
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            _check_sizes(file, entries)
            for entry in entries:
                if entry.filename.endswith(_PROGRAM):
                    _check_program(archive.read(entry), file)
    except (OSError, ValueError, RuntimeError, zipfile.BadZipFile) as error:  # RuntimeError: encrypted
        message = "the file is no zip archive of torch's; save it again with torch 1.6 or later, best as safetensors"
        raise _refused(message, f"{file}: {error}") from error


def _check_sizes(file: Path, entries: Sequence[zipfile.ZipInfo]) -> None:
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise _refused("the archive is compressed, which torch never does", file)
    programs = [entry.file_size for entry in entries if entry.filename.endswith(_PROGRAM)]
    if sum(programs) > LARGEST_PROGRAM or sum(entry.file_size for entry in entries) > file.stat().st_size:
        raise _refused("the archive declares more than a state dict can have", file)


def _check_program(program: bytes, file: Path) -> None:
    """Refuses a pickle that names what a few bytes can make fill the memory; raises ValueError for no pickle."""
    for code, argument, _ in pickletools.genops(program):
        name = re.split("[ .]", str(argument))[-1]
        if code.name == "GLOBAL" and (name in _ALLOCATORS or name.endswith("Tensor")):
            raise _refused(
                "the archive names what a few bytes make of any size (byte arrays, storages, classes of tensors); save "
                "its state_dict() alone, best as safetensors",
                f"{file}: {name}",
            )


def _state_dict(document: object, file: Path) -> dict[str, Tensor]:
    """The tensors of the encoder's container; whatever else a training program saved beside it is passed over.

    Where several containers hold an encoder, a student and a teacher for instance, the names of each stand before its
    tensors, but for those that they share. Where none does, the largest container is taken.
    """
    held = _containers(document)
    if not held:
        raise _refused("no state dict was found", file)
    encoders = [path for path, tensors in held.items() if any(name.endswith(_ANCHORS) for name in tensors)]
    paths = encoders or [max(held, key=lambda path: len(held[path]))]
    # The containers' names that all of them lie under; of a single container all of its.
    shared = next((n for n, names in enumerate(zip(*paths, strict=False)) if len(set(names)) > 1), min(map(len, paths)))
    return {".".join((*path[shared:], name)): t.detach() for path in paths for name, t in held[path].items()}


def _containers(document: object) -> dict[tuple[str, ...], dict[str, Tensor]]:
    """The tensors of every container that has some, by the names on the way to it.

    Each container is looked into once, by the shortest way: it may hold itself.
    """
    found: dict[tuple[str, ...], dict[str, Tensor]] = {}
    waiting: list[tuple[tuple[str, ...], object]] = [((), document)]
    seen: set[int] = set()
    for path, value in waiting:
        if not isinstance(value, Mapping) or len(path) >= DEEPEST or id(value) in seen:
            continue
        seen.add(id(value))
        named = [(name, inner) for name, inner in value.items() if isinstance(name, str)]
        waiting += [((*path, name), inner) for name, inner in named]
        if tensors := {name: inner for name, inner in named if isinstance(inner, Tensor)}:
            found[path] = tensors
    return found


def _require_numbers(tensors: Mapping[str, Tensor], source: Path) -> None:
    if not tensors:
        raise _refused("the source holds no tensor", source)
    weights = [(name, t) for name, t in tensors.items() if t.is_floating_point()]
    strange = [f"{name}: {t.dtype}" for name, t in weights if t.dtype not in NUMBERS]
    if strange:
        raise _refused(f"{len(strange)} tensors have other numbers than float of 16 to 64 bits", f"{source}: {strange}")
    broken = [name for name, t in weights if not math.isfinite(t.double().sum())]
    if broken:
        raise _refused(f"{len(broken)} tensors are not finite", f"{source}: {', '.join(broken)}")


def _refused(message: str, detail: object) -> TrainingError:
    return TrainingError(Code.CHECKPOINT_INVALID, message, site_detail=str(detail))
