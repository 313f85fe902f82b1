"""Prepared patients that live in memory: everything the loader asks of a cache entry, by the dumbest means."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parametrium.data.cache import PreparedPatient, PreparedVolume

Triple = tuple[int, int, int]


@dataclass(frozen=True, eq=False)
class MemoryVolume(PreparedVolume):
    """A prepared volume whose arrays are here, [D, H, W], and the places of some body voxels, [N, 3]."""

    image: NDArray[np.float32]
    body: NDArray[np.bool_]
    places: NDArray[np.int64]

    def read(self, low: Triple, shape: Triple) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Voxel by voxel along each axis: its own value where the array has it, nothing where it has not."""
        return self._box(low, shape)

    def _box(self, low: Triple, shape: Triple) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        axes = [np.arange(a, a + n) - o for a, n, o in zip(low, shape, self.offset, strict=True)]
        near = np.ix_(*[axis.clip(0, n - 1) for axis, n in zip(axes, self.shape, strict=True)])
        i, j, k = ((axis >= 0) & (axis < n) for axis, n in zip(axes, self.shape, strict=True))
        inside = i[:, None, None] & j[None, :, None] & k[None, None, :]
        return np.where(inside, self.image[near], np.float32(0)), self.body[near] & inside

    def foreground(self) -> NDArray[np.int64]:
        """Lattice indices of at most 300 body voxels."""
        return self.places + np.asarray(self.offset)

    def body_shares(self, corners: NDArray[np.int64], extent: Triple) -> NDArray[np.float64]:
        """Counted voxel by voxel."""
        return np.array([self._box(tuple(corner), extent)[1].mean() for corner in corners])


def memory_volume(
    modality: str,
    *,
    seed: int = 0,
    offset: Triple = (0, 0, 0),
    shape: Triple = (24, 20, 22),
    frame: str = "grid",
    study: str = "s1",
    coordinates: bool = False,
    body: NDArray[np.bool_] | None = None,
) -> MemoryVolume:
    """Noise in an ellipsoid; with ``coordinates`` every voxel of the box holds a number that names its place."""
    rng = np.random.default_rng(seed)
    axes = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij")
    inside = sum(axis**2 for axis in axes) < 1.2 if body is None else body
    image = np.where(inside, rng.normal(0.5, 1, shape), -0.5).astype(np.float32)
    if coordinates:
        i, j, k = (np.arange(n) + o for n, o in zip(shape, offset, strict=True))
        image = (1 + i[:, None, None] + 100 * j[None, :, None] + 10000 * k[None, None, :]).astype(np.float32)
        inside = np.ones(shape, dtype=np.bool_)
    places = rng.permutation(np.argwhere(inside))[:300]
    return MemoryVolume(0, study, 0, modality, frame, Path("memory"), offset, shape, image, inside, places)


def memory_patient(
    name: str, volumes: Sequence[PreparedVolume], clinical: Mapping[str, str] | None = None
) -> PreparedPatient:
    """A patient with these volumes."""
    return PreparedPatient(name, None, tuple(volumes), clinical or {}, ())


def memory_patients(sets: Sequence[Sequence[str]], *, first: int = 0, **settings: Any) -> list[PreparedPatient]:
    """One patient for each set of modalities; age 20, 21, ... tells them apart."""
    return [
        memory_patient(
            f"p{first + p}",
            [memory_volume(m, seed=1000 * (first + p) + n, **settings) for n, m in enumerate(names)],
            {"age": str(20 + first + p)},
        )
        for p, names in enumerate(sets)
    ]
