"""Prepared volumes as the loader sees them, and how one lies on disk.

An entry is a folder: image.b2nd (float16), body.b2nd (uint8), foreground.npy and occupancy.npy (int32) and
entry.json, written last.
The arrays are compressed in chunks, so that a crop is read without loading the volume.
"""

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
from numpy.typing import NDArray

from parametrium.cohort.manifest import Mask, Problem, Reason, Split
from parametrium.data.lattice import Spacing, Triple, overlap
from parametrium.errors import Code, DataError

FOREGROUND_SAMPLE = 2048
"""Body voxels whose positions are kept for drawing crop centres."""

_CHUNK, _BLOCK = 64, 16  # voxels; only the blocks (8 kB) that a crop touches are unpacked
_FLOAT16_LIMIT = 60000.0
OCCUPANCY = 4
"""Edge of the blocks in which body voxels are counted."""

UNPACKED_LIMIT = 256 * 2**20
"""Bytes of unpacked volumes that one process keeps."""

_BYTES_PER_VOXEL = 3  # float16 and uint8
_kept: frozenset[Path] = frozenset()
_unpacked: dict[Path, NDArray[Any]] = {}
_OPEN_ARRAYS = 256  # handles hold no file descriptor between reads, only a few kB each


@dataclass(frozen=True)
class Entry:
    """What ``entry.json`` says of one prepared volume.

    Attributes:
        spacing_mm: of the lattice.
        modality: as in the table.
        source: SHA-256 of the source file.
        recipe: digest of the settings.
        offset: lattice index of the first voxel, right, anterior, superior.
        shape: voxels.
        body_voxels: voxels of the patient.
        sizes: bytes of each file; a shorter one was cut by a crash of the machine.
        problem: why there is no volume here; None in a good entry.
    """

    spacing_mm: Spacing
    modality: str
    source: str
    recipe: str
    offset: Triple = (0, 0, 0)
    shape: Triple = (0, 0, 0)
    body_voxels: int = 0
    sizes: Mapping[str, int] = field(default_factory=dict)
    problem: Reason | None = None


Box = tuple[Triple, Triple]
"""First voxel, and the one after the last."""


@dataclass(frozen=True)
class PreparedVolume:
    """A volume in the cache.

    Attributes:
        patient: index in the prepared cohort's patients.
        study: name of the visit.
        day: days since the patient's own reference date.
        modality: as in the table.
        frame: volumes of a patient with the same frame show the same place at the same lattice index.
        folder: the cache entry.
        offset: lattice index of the first voxel, right, anterior, superior.
        shape: voxels.
        frame_box: the body's box in all volumes of the frame; None: as in this volume alone.
    """

    patient: int
    study: str
    day: int
    modality: str
    frame: str
    folder: Path
    offset: Triple
    shape: Triple
    frame_box: Box | None = field(default=None, kw_only=True)

    @property
    def box(self) -> Box:
        """``frame_box``, or this volume's own.

        Raises:
            DataError: PM301 the entry is damaged or gone.
        """
        return self.frame_box or body_box([self])

    def read(self, low: Triple, shape: Triple) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Prepared intensities and body of a box of the lattice; 0 and False outside the stored array.

        Args:
            low: lattice index of the box's first voxel.
            shape: voxels of the box.

        Raises:
            DataError: PM301 the entry is damaged or gone.
        """
        image = np.zeros(shape, dtype=np.float32)
        body = np.zeros(shape, dtype=bool)
        shared = overlap(low, shape, self.offset, self.shape)
        if shared is not None:
            inside, stored = shared
            with _damage_named(self.folder):
                image[inside] = _array(self.folder, "image.b2nd")[stored]
                body[inside] = _array(self.folder, "body.b2nd")[stored]
        return image, body

    def foreground(self) -> NDArray[np.int64]:
        """Lattice indices of at most ``FOREGROUND_SAMPLE`` body voxels, [N, 3], N >= 1; the same at every call.

        Raises:
            DataError: PM301 the entry is damaged or gone.
        """
        with _damage_named(self.folder):
            positions = _open_positions(self.folder / "foreground.npy")
        return positions + np.asarray(self.offset, dtype=np.int64)

    def body_shares(self, corners: NDArray[np.int64], extent: Triple) -> NDArray[np.float64]:
        """Share of each box that is body, its faces rounded to blocks of ``OCCUPANCY`` voxels; from a table, at once.

        Args:
            corners: [N, 3] lattice index of each box's first voxel.
            extent: voxels of the boxes.

        Returns:
            [N] in [0, 1].

        Raises:
            DataError: PM301 the entry is damaged or gone.
        """
        with _damage_named(self.folder):
            table = _open_positions(self.folder / "occupancy.npy")
        low = corners - np.asarray(self.offset)
        last = np.asarray(table.shape) - 1
        i, j, k = (
            np.stack([np.rint(low[:, a] / OCCUPANCY), np.rint((low[:, a] + extent[a]) / OCCUPANCY)]).astype(int)
            for a in range(3)
        )
        i, j, k = i.clip(0, last[0]), j.clip(0, last[1]), k.clip(0, last[2])
        # Sum of a box from the sums of the boxes that begin at the first voxel, inclusion and exclusion.
        count = sum((-1) ** (3 - a - b - c) * table[i[a], j[b], k[c]] for a in (0, 1) for b in (0, 1) for c in (0, 1))
        return np.asarray(count / math.prod(extent), dtype=np.float64)


def body_box(volumes: Iterable[PreparedVolume]) -> Box:
    """Lattice indices of the body's first voxel and of the one after its last, along each axis, in some volumes.

    Of the sampled body voxels, without the outermost 0.5 % on each side: a cable or a stray island must not set it.

    Raises:
        DataError: PM301 an entry is damaged or gone.
    """
    lows, highs = [], []
    for volume in volumes:
        low, high = np.percentile(volume.foreground(), (0.5, 99.5), axis=0, method="nearest")
        lows.append(low)
        highs.append(high + 1)
    (i, j, k), (d, h, w) = np.min(lows, axis=0).tolist(), np.max(highs, axis=0).tolist()
    return (int(i), int(j), int(k)), (int(d), int(h), int(w))


@dataclass(frozen=True)
class PreparedPatient:
    """One patient with at least one prepared volume; fields as in the cohort's ``Patient``."""

    name: str
    split: Split | None
    volumes: tuple[PreparedVolume, ...]
    clinical: Mapping[str, str]
    masks: tuple[Mask, ...]
    text: NDArray[np.float32] | None = None
    """[D] unit vector of the patient's text (``data/text.py``)."""


@dataclass(frozen=True)
class PreparedCohort:
    """What can be trained on, in table order, and all problems, the manifest's first."""

    patients: tuple[PreparedPatient, ...]
    problems: tuple[Problem, ...]


@contextmanager
def _damage_named(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError, ValueError) as error:
        raise DataError(
            Code.DATA_CACHE,
            "a prepared volume is damaged or was removed; prepare the cohort again",
            site_detail=f"{folder}: {error}",
        ) from error


def keep_unpacked(volumes: Iterable[PreparedVolume], limit: int = UNPACKED_LIMIT) -> bool:
    """Keeps volumes unpacked in this process's memory from their first read on, if all of them fit.

    Cropping is then a copy, several times faster. A larger cohort is read from its chunks as before: memory does not
    grow with it. The last call is the one that counts: what only earlier calls named is let go, also when this call's
    volumes do not fit, so that several cohorts in one process share the limit. Loader processes hold a copy each.

    Args:
        volumes: that will be read again and again.
        limit: bytes.

    Returns:
        Whether they fit.
    """
    global _kept
    voxels = {volume.folder: math.prod(volume.shape) for volume in volumes}
    fits = _BYTES_PER_VOXEL * sum(voxels.values()) <= limit
    _kept = frozenset(voxels) if fits else frozenset()
    for path in [path for path in _unpacked if path.parent not in _kept]:
        del _unpacked[path]
    return fits


def _array(folder: Path, name: str) -> Any:
    path = folder / name
    if folder not in _kept:
        return _open_array(path)
    if path not in _unpacked:
        _unpacked[path] = _open_array(path)[:]
    return _unpacked[path]


@lru_cache(_OPEN_ARRAYS)
def _open_array(path: Path) -> Any:
    return blosc2.open(str(path), mode="r", dparams=blosc2.DParams(nthreads=1))


@lru_cache(_OPEN_ARRAYS)
def _open_positions(path: Path) -> NDArray[np.int64]:
    positions: NDArray[np.int32] = np.load(path, allow_pickle=False)
    return positions.astype(np.int64)


def write_volume(staged: Path, image: NDArray[np.float32], body: NDArray[np.bool_], entry: Entry) -> None:
    """Writes one entry into a fresh folder; shape, body voxels and sizes of ``entry`` are filled in here."""
    staged.mkdir(mode=0o700)
    # A rule that a job sets badly may exceed half precision; its largest number is better than infinity.
    half = np.clip(image, -_FLOAT16_LIMIT, _FLOAT16_LIMIT).astype(np.float16)
    _write_array(staged / "image.b2nd", half)
    _write_array(staged / "body.b2nd", body.astype(np.uint8))
    np.save(staged / "foreground.npy", _foreground_sample(body), allow_pickle=False)
    np.save(staged / "occupancy.npy", occupancy_table(body), allow_pickle=False)
    for path in staged.iterdir():
        path.chmod(0o600)
    sizes = {path.name: path.stat().st_size for path in sorted(staged.iterdir())}
    d, h, w = body.shape
    write_entry(staged, replace(entry, shape=(d, h, w), body_voxels=int(body.sum()), sizes=sizes))


def write_entry(staged: Path, entry: Entry) -> None:
    """Writes ``entry.json`` into a folder, which is made where it does not exist."""
    staged.mkdir(mode=0o700, exist_ok=True)
    fields = asdict(entry) | {"problem": entry.problem.value if entry.problem else None}
    write_private(staged / "entry.json", json.dumps(fields, indent=1).encode())


def read_entry(folder: Path) -> Entry | None:
    """The complete entry in a folder; None where there is none or a crash of the machine cut it."""
    try:
        entry = _decode((folder / "entry.json").read_text(encoding="utf-8"))
        whole = all((folder / name).stat().st_size == size for name, size in entry.sizes.items())
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return entry if whole else None


def _decode(text: str) -> Entry:
    fields = json.loads(text)
    for name in ("offset", "shape", "spacing_mm"):
        fields[name] = tuple(fields[name])
    fields["problem"] = Reason(fields["problem"]) if fields["problem"] else None
    return Entry(**fields)


def _write_array(path: Path, array: NDArray[Any]) -> None:
    blosc2.asarray(
        array,
        urlpath=str(path),
        mode="w",
        contiguous=True,
        chunks=tuple(min(_CHUNK, extent) for extent in array.shape),
        blocks=tuple(min(_BLOCK, extent) for extent in array.shape),
        cparams=blosc2.CParams(codec=blosc2.Codec.LZ4, clevel=5, nthreads=1, typesize=array.itemsize),
    )


def _foreground_sample(body: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Positions in the array, [N, 3]; drawn with a fixed seed, since a regular stride would favour some planes."""
    flat = np.flatnonzero(body)
    if flat.size > FOREGROUND_SAMPLE:
        chosen = np.random.default_rng(0).choice(flat.size, FOREGROUND_SAMPLE, replace=False, shuffle=False)
        flat = flat[np.sort(chosen)]
    return np.stack(np.unravel_index(flat, body.shape), axis=-1).astype(np.int32)


def occupancy_table(body: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Body voxels in every box that begins at the first voxel and ends at a block's edge (summed-area table).

    Args:
        body: [D, H, W].

    Returns:
        [ceil(D / 4) + 1, ceil(H / 4) + 1, ceil(W / 4) + 1].
    """
    blocks = np.asarray(body, dtype=np.int32)
    for axis in range(3):
        blocks = np.add.reduceat(blocks, np.arange(0, body.shape[axis], OCCUPANCY), axis=axis).cumsum(axis=axis)
    return np.pad(blocks, ((1, 0),) * 3).astype(np.int32)


def write_private(path: Path, content: bytes) -> None:
    """A new file that its owner alone may read."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "wb") as stream:
        stream.write(content)
