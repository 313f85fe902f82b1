"""Rigid alignment of two scans by mutual information, from coarse to fine.

The scan with the smaller body is the fixed one: what it sees, the other as a rule sees too, so the samples stay in the
common field of view. One thread and a seed: the same scans give the same bits.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from parametrium.cohort.registration.agreement import agreement
from parametrium.cohort.registration.scan import GRID_MM, Scan

Matrix = NDArray[np.float64]

SMALLEST_SHARE = 0.4
"""Of the smaller body, how much the other scan must see: less is told by too little."""

_BINS = 32
_SLIDE_MM = 24.0  # between starts along the body: the coarse level finds its way over more than half of that
_STARTS = 3  # of the best that are followed
_ITERATIONS = 100  # about 12 are needed
_SEEDS = 2**31
_SAMPLES = 10_000  # twice as many move the result by hundredths of a millimetre


def align(fixed: Scan, moving: Scan, seed: int) -> Matrix | None:
    """The rigid transform of most mutual information.

    Starts are the world's coordinates as they are, and the middles of the bodies on each other, slid along the
    patient. The best few are followed on half the resolution, and the best of those on the full one.

    Args:
        fixed: the scan with the smaller body.
        moving: the other.
        seed: of the sampling.

    Returns:
        [4, 4] fixed to moving millimetres; None where no start has enough in common.
    """
    ranked = _ranked(fixed, moving, _starts(fixed, moving))
    if not ranked:
        return None
    followed = (_optimised(fixed, moving, start, seed, coarse=True) for start in ranked[:_STARTS])
    best = _ranked(fixed, moving, [there for there in followed if there is not None])
    return refined(fixed, moving, best[0], seed) if best else None


def refined(
    fixed: Scan, moving: Scan, start: Matrix, seed: int, where: NDArray[np.bool_] | None = None
) -> Matrix | None:
    """The transform on the full resolution, from a start that is nearly right; None where the scans lost each other.

    Args:
        fixed: the scan whose voxels are sampled.
        moving: the other.
        start: [4, 4] fixed to moving millimetres.
        seed: of the sampling.
        where: [D, H, W] of the fixed scan: sample only there.
    """
    return _optimised(fixed, moving, start, seed, coarse=False, where=where)


def _starts(fixed: Scan, moving: Scan) -> Iterator[Matrix]:
    yield np.eye(4)
    centre, extent = fixed.centre, np.ptp(np.flatnonzero(fixed.body.any(axis=(0, 1)))) * GRID_MM
    planes = np.flatnonzero(moving.body.any(axis=(0, 1)))
    heights = moving.origin[2] + GRID_MM * planes
    room = (heights[-1] - heights[0] + extent) / 2
    count = int(room // _SLIDE_MM)
    for step in range(-count, count + 1):
        height = (heights[0] + heights[-1]) / 2 + step * _SLIDE_MM
        window = planes[np.abs(heights - height) <= extent / 2]
        if window.size:
            across = np.argwhere(moving.body[:, :, window].any(axis=2)).mean(axis=0)
            start = np.eye(4)
            start[:3, 3] = np.array([*(moving.origin[:2] + GRID_MM * across), height]) - centre
            yield start


def _ranked(fixed: Scan, moving: Scan, transforms: Iterable[Matrix]) -> list[Matrix]:
    """Those with enough in common, the most informative first."""
    found = [(agreement(fixed, moving, there, every=2), there) for there in transforms]
    kept = [(told.information, there) for told, there in found if told.share >= SMALLEST_SHARE]
    return [there for _, there in sorted(kept, key=lambda pair: -pair[0])]


def _optimised(
    fixed: Scan, moving: Scan, start: Matrix, seed: int, *, coarse: bool, where: NDArray[np.bool_] | None = None
) -> Matrix | None:
    told = fixed.informative if where is None else fixed.informative & where
    with _one_thread():
        method = _method(fixed, moving, told, seed, coarse=coarse)
        method.SetInitialTransform(_euler(start, fixed.centre), inPlace=False)
        try:
            found = method.Execute(fixed.as_image(fixed.image), moving.as_image(moving.image))
        except RuntimeError:  # the samples left the moving image
            return None
    return _matrix(sitk.Euler3DTransform(sitk.CompositeTransform(found).GetNthTransform(0)))


def _method(fixed: Scan, moving: Scan, told: NDArray[np.bool_], seed: int, *, coarse: bool) -> Any:
    """Regular step gradient descent; steps are physical, scaled by what they move in the fixed scan."""
    shrink, step, smallest = (2, 8.0, 0.2) if coarse else (1, 1.0, 0.01)
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(_BINS)
    method.SetMetricFixedMask(fixed.as_image(told.astype(np.uint8)))
    if not moving.seen.all():
        method.SetMetricMovingMask(moving.as_image(moving.seen.astype(np.uint8)))
    method.SetMetricSamplingStrategy(method.RANDOM)
    share = min(_SAMPLES * shrink**3 / max(int(np.count_nonzero(told)), 1), 1.0)
    method.SetMetricSamplingPercentage(share, seed % _SEEDS + 1)  # 0 would be the clock
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(step, smallest, _ITERATIONS)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel([shrink])
    method.SetSmoothingSigmasPerLevel([shrink - 1])
    return method


@contextmanager
def _one_thread() -> Iterator[None]:
    """The metric asks the global default, whatever its method was told; several threads add up in any order."""
    before = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(before)


def _euler(there: Matrix, centre: NDArray[np.float64]) -> sitk.Euler3DTransform:
    """As ITK holds it: x -> R (x - centre) + centre + shift."""
    transform = sitk.Euler3DTransform()
    transform.SetCenter(centre.tolist())
    transform.SetMatrix(there[:3, :3].ravel().tolist(), 1e-5)
    transform.SetTranslation((there[:3, 3] + there[:3, :3] @ centre - centre).tolist())
    return transform


def _matrix(transform: sitk.Euler3DTransform) -> Matrix:
    there = np.eye(4)
    centre = np.array(transform.GetCenter())
    there[:3, :3] = np.reshape(transform.GetMatrix(), (3, 3))
    there[:3, 3] = centre + np.array(transform.GetTranslation()) - there[:3, :3] @ centre
    return there
