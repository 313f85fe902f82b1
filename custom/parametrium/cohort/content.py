"""What the voxels themselves say against a volume, whoever reads it: preparation, registration or the quality page."""

import math

import numpy as np
from numpy.typing import NDArray

from parametrium.cohort.problem import Reason


def content_problem(voxels: NDArray[np.float32]) -> Reason | None:
    """Why voxels [I, J, K] show nothing; None when they may show something.

    Args:
        voxels: at least one, in any unit.
    """
    lowest, highest = float(voxels.min()), float(voxels.max())  # NaN and infinity reach one of them
    if not (math.isfinite(lowest) and math.isfinite(highest)):
        return Reason.NOT_FINITE
    if lowest == highest:
        return Reason.CONSTANT if lowest else Reason.ALL_ZERO
    return None
