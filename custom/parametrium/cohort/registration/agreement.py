"""How well two scans agree under a transform: shared information, common field of view, overlap of the bodies."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from parametrium.cohort.registration.scan import GRID_MM, Scan

_BINS = 32
_FEWEST = 200  # points: a histogram of fewer is noise
_INDEPENDENT = 1.0  # normalised mutual information of images that know nothing of each other


class Agreement(NamedTuple):
    """How well two scans agree.

    Attributes:
        information: normalised mutual information (H(A) + H(B)) / H(A, B) (Studholme 1999), in [1, 2]; 1 where the
            common field of view is too small to tell.
        share: of the fixed scan's body, with its skin, how much the moving scan sees, in [0, 1].
        overlap: Dice of the two bodies in the common field of view, in [0, 1].
    """

    information: float
    share: float
    overlap: float


def agreement(fixed: Scan, moving: Scan, there: NDArray[np.float64], every: int = 1) -> Agreement:
    """How well two scans agree.

    Args:
        fixed: whose voxels are looked at.
        moving: the other.
        there: [4, 4] fixed to moving millimetres.
        every: look at each so many-th voxel along each axis.
    """
    sparse = (slice(None, None, every),) * 3
    voxels = np.argwhere(fixed.seen[sparse]) * every
    places = (fixed.origin + GRID_MM * voxels) @ there[:3, :3].T + there[:3, 3]
    places = (places - moving.origin) / GRID_MM
    near = np.rint(places).astype(np.int64)
    common = np.asarray(((near >= 0) & (near < moving.seen.shape)).all(axis=1))
    near[~common] = 0
    common &= moving.seen[tuple(near.T)]
    told = fixed.informative[tuple(voxels.T)]
    share = np.count_nonzero(common & told) / max(int(np.count_nonzero(told)), 1)
    overlap = _dice(fixed.body[tuple(voxels[common].T)], moving.body[tuple(near[common].T)])
    told &= common
    if np.count_nonzero(told) < _FEWEST:
        return Agreement(_INDEPENDENT, float(share), overlap)
    values = ndimage.map_coordinates(moving.image, places[told].T, order=1, mode="nearest")
    return Agreement(_information(fixed.image[tuple(voxels[told].T)], values), float(share), overlap)


def _dice(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    either = int(np.count_nonzero(a)) + int(np.count_nonzero(b))
    return 2 * int(np.count_nonzero(a & b)) / max(either, 1)


def _information(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    joint = np.histogram2d(a, b, bins=_BINS)[0] / a.size
    together = _entropy(joint)
    return (_entropy(joint.sum(axis=0)) + _entropy(joint.sum(axis=1))) / together if together > 0 else _INDEPENDENT


def _entropy(shares: NDArray[np.float64]) -> float:
    positive = shares[shares > 0]
    return float(-(positive * np.log(positive)).sum())
