"""Smooth random fields: the patient's own deformation and the grain of the tissues.

A field is white noise on coarse knots, spread to voxels by cubic B-splines, four knots a voxel along one axis after the
other: cheaper than filtering voxels. Plain sums instead of matrix products give the same bits on every machine.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from parametrium.cohort.phantom.canvas import Field
from parametrium.cohort.phantom.chance import stream
from parametrium.cohort.phantom.tissue import GRAIN, Grain


def smooth_noise(rng: np.random.Generator, shape: Sequence[int], knots: float | Sequence[float]) -> Field:
    """A Gaussian random field of mean 0 and standard deviation about 1.

    Args:
        rng: generator.
        shape: voxels along each axis.
        knots: voxels between knots, about the length over which the field changes; one number or one an axis.
    """
    gaps = [float(gap) for gap in ([knots] * len(shape) if isinstance(knots, int | float) else knots)]
    counts = [int((size - 1) / gap) + 4 for size, gap in zip(shape, gaps, strict=True)]
    field = rng.standard_normal(counts, dtype=np.float32)
    for axis in reversed(range(len(shape))):  # the contiguous axis first, while the field is small
        first, weights = _spline(shape[axis], gaps[axis])
        knots_first = np.moveaxis(field, axis, 0)
        spread = np.empty((shape[axis], *knots_first.shape[1:]), dtype=np.float32)
        for voxel, knot in enumerate(first):  # plane by plane, which stays in the processor's cache
            np.einsum("k,k...->...", weights[:, voxel], knots_first[knot : knot + 4], out=spread[voxel])
        field = np.moveaxis(spread, 0, axis)
    return field


def _spline(size: int, gap: float) -> tuple[NDArray[np.intp], Field]:
    """First knot of each voxel [size], and the cubic B-spline weights [4, size] of it and the next three.

    Weights have unit length, so that the field keeps the variance of its knots.
    """
    position = np.arange(size) / gap
    first = position.astype(np.intp)
    t = position - first
    weights = np.stack([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3])
    return first, (weights / np.sqrt((weights**2).sum(0))).astype(np.float32)


def draw_texture(tissue: NDArray[np.uint8], key: tuple[object, ...]) -> Field:
    """The grain of every voxel, standard deviation about 1, the same for all modalities and studies of a patient.

    Args:
        tissue: [X, Y, Z] voxels of 2.5 mm.
        key: name of the patient's random streams.
    """
    shape = tissue.shape
    lobes = smooth_noise(stream(*key, "lobes"), shape, (4.5, 4.0, 5.0))
    bundles = smooth_noise(stream(*key, "bundles"), shape, (1.8, 1.8, 7.0))
    coarse = smooth_noise(stream(*key, "coarse"), shape, 2.4)
    grain = GRAIN[tissue]
    fibres = np.maximum(bundles, np.float32(-0.6)) + 0.35 * lobes
    field = np.where(grain == Grain.FIBRES, fibres, 0.7 * bundles + 0.7 * lobes)
    np.copyto(field, 0.9 * coarse + 0.4 * lobes, where=grain == Grain.COARSE)
    # Septa run where two lobes of fat meet, which is where a smooth field changes its sign.
    fat = grain == Grain.SEPTA
    field[fat] = 2.2 * np.exp(-((lobes[fat] / 0.22) ** 2)) - 0.5 + 0.25 * coarse[fat]
    return field
