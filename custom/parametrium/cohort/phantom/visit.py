"""What happens at a visit: which modalities are taken, how she lies, and how far a volume is displaced."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from parametrium.cohort.phantom.chance import stream

_SKIN_MM = 150.0
"""From the middle of the body to its skin: the lever of a turn."""


def present_modalities(
    modalities: Sequence[str], incomplete: float, seed: int, site: str, index: int, study: int
) -> list[str]:
    """The modalities that a study really has, in the order that was asked for; one always stays.

    Args:
        modalities: that were asked for.
        incomplete: probability in [0, 1] that one is missing.
        seed: of the cohort.
        site: its name.
        index: the patient's number.
        study: the visit's number.
    """
    draws = {
        modality: float(stream(seed, site, index, "incomplete", study, modality).random()) for modality in modalities
    }
    stays = max(draws, key=lambda modality: draws[modality])
    return [modality for modality in modalities if draws[modality] >= incomplete or modality == stays]


def setup_pose(seed: int, site: str, index: int, study: int) -> NDArray[np.float64]:
    """[4, 4] body millimetres to world: wherever the couch's zero is on the day, and turned against the first visit."""
    rng = stream(seed, site, index, "setup", study)
    shift = rng.uniform((-10, -40, -400), (10, 40, 400))
    return rigid(shift, np.radians(rng.uniform(-2, 2, 3)) * (study > 0))


def displacement(
    misregistration_mm: float, modality: str, seed: int, site: str, index: int, study: int
) -> NDArray[np.float64]:
    """[4, 4] a shift of about ``misregistration_mm`` and a turn that moves the skin by half of that."""
    rng = stream(seed, site, index, "misregistration", study, modality)
    shift, turn = rng.standard_normal(3), rng.standard_normal(3)
    size = misregistration_mm * rng.uniform(0.7, 1.3)
    angle = 0.5 * misregistration_mm / _SKIN_MM
    return rigid(shift / np.linalg.norm(shift) * size, turn / np.linalg.norm(turn) * angle)


def rigid(shift_mm: NDArray[np.float64], turn: NDArray[np.float64]) -> NDArray[np.float64]:
    """[4, 4] rotations about X, then Y, then Z by radians [3], then a shift [3]."""
    matrix = np.eye(4)
    for axis, angle in enumerate(turn):
        c, s = np.cos(angle), np.sin(angle)
        a, b = (axis + 1) % 3, (axis + 2) % 3
        step = np.eye(4)
        step[a, a], step[a, b], step[b, a], step[b, b] = c, -s, s, c
        matrix = step @ matrix
    matrix[:3, 3] = shift_mm
    return matrix
