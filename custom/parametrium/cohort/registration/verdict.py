"""Whether a pair of scans is registered, with the numbers that say so.

Shared information and overlap of the bodies grow for two strangers too, so they only catch what failed. What tells a
patient from another, or from her mirror image, is that her halves, registered alone, go to one place, and that she does
not fit as well with left and right exchanged: 132 of 132 wrong pairs of the phantom are refused, 132 of 132 right ones
taken. Registering back and composing parts them less well and costs more. All numbers: ``docs/registration.md``.
"""

import math
from dataclasses import dataclass, replace
from enum import Enum

import numpy as np

from parametrium.cohort.registration.agreement import Agreement, agreement
from parametrium.cohort.registration.align import SMALLEST_SHARE, Matrix, align, refined
from parametrium.cohort.registration.scan import GRID_MM, Scan
from parametrium.cohort.rigid import turn_degrees

_LARGEST_TURN = 15.0  # degrees: the axes are the patient's own, however she lies; a greater turn fits by chance
_SMALLEST_OVERLAP = 0.5  # a diffusion map shows no fat: 0.7 is its best
_SLACK = 0.02  # of overlap: outlines of two modalities differ by more than a small true step changes them
_LEAST_INFORMATION = 0.98  # of what it was: a pair that is aligned already stays so, but for the sampling
_HALVES_MM = 4.0  # a voxel of the coarse grid: volumes of one patient are at most 3.3 mm apart, others 5.9 and more
_MIRRORED = 0.9  # of the information: other patients' pelves fit mirrored as well as not, 0.95 to 1


class Verdict(Enum):
    """One word for a pair."""

    ACCEPTED = "accepted"
    UNUSABLE = "unusable"  # one of the volumes cannot be read or shows no body
    NO_OVERLAP = "no_overlap"  # at no place do they see enough of the same
    LARGE_TURN = "large_turn"
    METRIC_WORSE = "metric_worse"
    OVERLAP_WORSE = "overlap_worse"
    HALVES_DISAGREE = "halves_disagree"  # halves of the body want to go to different places
    FITS_MIRRORED = "fits_mirrored"  # nearly as well or better
    FAILED = "failed"  # an error; the others of the patient go on


@dataclass(frozen=True)
class Judgement:
    """A pair's verdict, and what it was told from; None where it was not come to.

    Attributes:
        verdict: one word.
        there: [4, 4] moving volume's to target's RAS+ millimetres; what ``moved`` becomes when accepted.
        before: as the world's coordinates have it.
        after: under the transform.
        shift_mm: by how much the middle of the moving body moves.
        turn_deg: by how much it turns.
        halves_mm: by how much its halves disagree on where the body goes.
        mirrored: information of the pair with left and right of one of them exchanged.
    """

    verdict: Verdict
    there: Matrix | None = None
    before: Agreement | None = None
    after: Agreement | None = None
    shift_mm: float | None = None
    turn_deg: float | None = None
    halves_mm: float | None = None
    mirrored: float | None = None


def judge(target: Scan, moving: Scan, seed: int) -> Judgement:
    """Aligns a scan to its target and says whether that may be believed.

    Args:
        target: stays where it is.
        moving: what is brought onto it.
        seed: of the sampling.
    """
    smaller = np.count_nonzero(moving.body) < np.count_nonzero(target.body)
    first, second = (moving, target) if smaller else (target, moving)
    found = align(first, second, seed)
    if found is None:
        return Judgement(Verdict.NO_OVERLAP)
    there: Matrix = found if smaller else np.asarray(np.linalg.inv(found))
    before, after = agreement(first, second, np.eye(4)), agreement(first, second, found)
    judgement = Judgement(
        _at_a_glance(before, after, turn_degrees(there)),
        there,
        before,
        after,
        shift_mm=float(np.linalg.norm(there[:3, :3] @ moving.centre + there[:3, 3] - moving.centre)),
        turn_deg=turn_degrees(there),
    )
    if judgement.verdict is not Verdict.ACCEPTED:
        return judgement
    apart = halves_apart(first, second, found, seed)
    judgement = replace(judgement, halves_mm=apart)
    if apart > _HALVES_MM:
        return replace(judgement, verdict=Verdict.HALVES_DISAGREE)
    mirrored = _information_mirrored(first, second, found, seed)
    known = mirrored - 1 <= _MIRRORED * (after.information - 1)
    return replace(judgement, mirrored=mirrored, verdict=Verdict.ACCEPTED if known else Verdict.FITS_MIRRORED)


def _at_a_glance(before: Agreement, after: Agreement, turn: float) -> Verdict:
    """What numbers tell that cost nothing."""
    if after.share < SMALLEST_SHARE:
        return Verdict.NO_OVERLAP
    if turn > _LARGEST_TURN:
        return Verdict.LARGE_TURN
    comparable = before.share >= SMALLEST_SHARE
    if comparable and after.information - 1 < _LEAST_INFORMATION * (before.information - 1):
        return Verdict.METRIC_WORSE
    if after.overlap < max(_SMALLEST_OVERLAP, before.overlap - _SLACK if comparable else 0.0):
        return Verdict.OVERLAP_WORSE
    return Verdict.ACCEPTED


def halves_apart(fixed: Scan, moving: Scan, there: Matrix, seed: int) -> float:
    """Registers each half of the body on its own, left and right, lower and upper.

    Returns:
        Distance, mm, between where two halves put the body: root mean square over it, of the worse pair of halves.
    """
    voxels = np.indices(fixed.body.shape, sparse=True)
    points = fixed.origin + GRID_MM * np.argwhere(fixed.body)
    apart = 0.0
    for axis in (0, 2):
        low = np.broadcast_to(voxels[axis] < np.median(np.nonzero(fixed.body)[axis]), fixed.body.shape)
        one, other = (refined(fixed, moving, there, seed, half) for half in (low, ~low))
        if one is None or other is None:
            return math.inf
        between = one - other
        squared = ((points @ between[:3, :3].T + between[:3, 3]) ** 2).sum(axis=1)
        apart = max(apart, math.sqrt(float(squared.mean())))
    return apart


def _information_mirrored(fixed: Scan, moving: Scan, there: Matrix, seed: int) -> float:
    """How well the pair fits with left and right exchanged: a wrong header, or anatomy that is nobody's own."""
    mirrored = moving.mirrored()
    other = refined(fixed, mirrored, there, seed)
    return 1.0 if other is None else agreement(fixed, mirrored, other).information
