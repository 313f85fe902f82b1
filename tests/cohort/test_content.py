"""Voxels that show nothing are told, wherever they are read."""

import numpy as np
import pytest

from parametrium.cohort.content import content_problem
from parametrium.cohort.problem import Reason


@pytest.mark.parametrize(
    ("voxels", "reason"),
    [
        ([0.0, 0.0], Reason.ALL_ZERO),
        ([3.0, 3.0], Reason.CONSTANT),
        ([1.0, np.nan], Reason.NOT_FINITE),
        ([1.0, np.inf], Reason.NOT_FINITE),
        ([0.0, 1.0], None),
    ],
)
def test_voxels_that_hold_nothing_are_told(voxels: list[float], reason: Reason | None) -> None:
    assert content_problem(np.array(voxels, np.float32)) is reason
