"""PET to standardised uptake by body weight (SUVbw).

    SUVbw = activity concentration [Bq/ml] * weight [g] / dose [Bq], both at the same time

after the Quantitative Imaging Biomarkers Alliance's vendor-neutral pseudo-code (FDG-PET/CT profile, annex G). Decay
Correction says which time the voxels are corrected to: ADMIN is the injection; START is the scan's start, so the dose
is brought there. Series Time is the scan's start unless a workstation rewrote it after the acquisition; then it is
GE's own scan start, or it follows from the first frame's time and its mean count rate.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from parametrium.cohort.dicom.facts import Facts
from parametrium.cohort.dicom.header import Uptake
from parametrium.cohort.problem import Reason

_WEIGHT_KG = (0.5, 500.0)
_DOSE_BQ = (1e5, 1e11)  # outside, the number is in another unit (MBq, mCi) or was blanked
_HALF_LIVES = 10  # between injection and scan; more is a wrong date


@dataclass(frozen=True, slots=True)
class SuvScale:
    """What turns rescaled PET values into SUVbw.

    Attributes:
        factor: SUVbw = factor * value.
        minutes_after_injection: of the scan's start; None where not known.
    """

    factor: float
    minutes_after_injection: float | None = None


def suv_scale(facts: Facts, uptakes: Sequence[Uptake]) -> SuvScale | Reason:
    """The factor from a stack's values to SUVbw, or what is missing.

    Args:
        facts: of the stack; its units decide.
        uptakes: of each of its files; the earliest acquisition tells the scan's start.
    """
    if any(uptake.corrected and "ATTN" not in uptake.corrected for uptake in uptakes):
        return Reason.NO_ATTENUATION_CORRECTION  # whatever Units says, and where a site's rule took it all the same
    first = min(uptakes, key=lambda uptake: uptake.acquired or datetime.max)
    start = _scan_start(first)
    if facts.units == "GML":
        known = facts.suv_type in ("", "BW")  # lean mass and body surface are other scales
        return SuvScale(1.0, _minutes(first, start)) if known else Reason.UNKNOWN_UNIT
    if facts.units == "CNTS":
        if _positive(first.suv_factor):
            return SuvScale(float(first.suv_factor or 0), _minutes(first, start))
        if not _positive(first.activity_factor):
            return Reason.UNKNOWN_UNIT
        scale = _from_activity(first, start)
        factor = float(first.activity_factor or 0)
        return SuvScale(scale.factor * factor, scale.minutes_after_injection) if isinstance(scale, SuvScale) else scale
    return _from_activity(first, start) if facts.units == "BQML" else Reason.UNKNOWN_UNIT


def _positive(value: float | None) -> bool:
    return value is not None and value > 0


def _from_activity(uptake: Uptake, start: datetime | None) -> SuvScale | Reason:
    """From Bq/ml."""
    weight, dose = uptake.weight_kg, uptake.dose_bq
    if uptake.corrected and "DECY" not in uptake.corrected:
        return Reason.UNKNOWN_UNIT  # not Bq/ml at one time, whatever Decay Correction says
    if weight is None or not _WEIGHT_KG[0] <= weight <= _WEIGHT_KG[1]:
        return Reason.NO_WEIGHT
    if dose is None or not _DOSE_BQ[0] <= dose <= _DOSE_BQ[1]:
        return Reason.NO_INJECTED_DOSE
    minutes = _minutes(uptake, start)
    if uptake.decay_correction == "START":
        if minutes is None or not _positive(uptake.half_life_s):
            return Reason.NO_INJECTION_TIME
        dose *= math.exp2(-60 * minutes / float(uptake.half_life_s or math.inf))
    elif uptake.decay_correction != "ADMIN":
        return Reason.UNKNOWN_UNIT  # each frame has its own time: not one scale
    return SuvScale(weight * 1000 / dose, minutes)


def _scan_start(uptake: Uptake) -> datetime | None:
    """The time that START means."""
    if uptake.series is not None and (uptake.acquired is None or uptake.series <= uptake.acquired):
        return uptake.series
    if uptake.scan_start is not None:
        return uptake.scan_start
    if uptake.acquired is None or uptake.frame_reference_s is None or not _positive(uptake.frame_s):
        return None
    if not _positive(uptake.half_life_s):
        return None
    rate = math.log(2) / float(uptake.half_life_s or math.inf)
    decayed = rate * float(uptake.frame_s or 0)
    mean = math.log(decayed / -math.expm1(-decayed)) / rate  # into the frame, when its count rate is the mean one
    return uptake.acquired - timedelta(seconds=uptake.frame_reference_s - mean)


def _minutes(uptake: Uptake, start: datetime | None) -> float | None:
    """From injection to ``start``; None where unknown or implausible."""
    if uptake.injected is None or start is None:
        return None
    seconds = (start - uptake.injected).total_seconds()
    if seconds < 0:  # a time without its own date, before midnight
        seconds += 86400
    longest = _HALF_LIVES * (uptake.half_life_s or math.inf)
    return seconds / 60 if 0 <= seconds <= longest else None
