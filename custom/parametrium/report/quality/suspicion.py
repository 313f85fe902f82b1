"""What looks wrong among the volumes that could be read: names that do not fit, copies, and strangers.

Four questions, none of which a header answers:

    mislabelled   Do the values fit the modality's name? First by what physics says of its unit, then by likeness: a
                  volume that resembles another modality of this cohort clearly more than its own.
    duplicate     Do two rows hold the same voxels? In whatever order, under whatever header.
    outlier       Is a number far from the same number of the other volumes of its modality?
    misaligned    Do two volumes that share a frame show the body in different places?

Likeness is a Laplace likelihood a feature around each modality's median, with its median absolute deviation, so that a
third of the volumes of a modality may be wrong without moving it. It sees a T2 that is a CT, and within one hospital's
protocols T1 and T2. It does not see: a whole modality under another name of the same unit, sequences that look alike
over mixed scanners (T1 with and without contrast), a left-right flip, or another patient's scan.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from parametrium.report.quality.measure import QUANTILES, Measured
from parametrium.report.quality.pairs import Pair
from parametrium.report.quality.survey import Surveyed

MINIMUM_CLASS = 5
"""Volumes of a modality from which likeness is known; with fewer only physics speaks."""

MARGIN = 0.3
"""Mean log-likelihood a feature by which another modality must be the better one."""

MINIMUM_PEERS = 6
"""Volumes of a modality from which it is known what is far."""

FAR = 6.0
"""Robust deviations from the median that make an outlier."""

LEAST_OVERLAP = 0.75
"""Dice of the body masks of two volumes of one frame, where both see, below which their frame is doubted."""

_CUT = 8.0  # a single feature counts at most so many deviations
_MAD = 1.4826  # of a normal distribution: standard deviation over median absolute deviation
_TINY = 1e-9

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Suspicion:
    """Something to look at.

    Attributes:
        kind: ``mislabelled``, ``duplicate``, ``outlier`` or ``misaligned``.
        volume: place in the survey.
        text: what is odd, in words and numbers of this package.
        others: places of the other volumes that it is about.
        strength: how odd, for the order within a kind.
    """

    kind: str
    volume: int
    text: str
    others: tuple[int, ...] = ()
    strength: float = 0.0


def suspicions(surveyed: Sequence[Surveyed]) -> list[Suspicion]:
    """Everything odd about the volumes that could be measured, the strongest of each kind first."""
    measured = {n: item.found for n, item in enumerate(surveyed) if isinstance(item.found, Measured)}
    labels = {n: surveyed[n].volume.modality for n in measured}
    found = [*_mislabelled(measured, labels), *duplicates(measured, labels), *outliers(measured, labels)]
    order = {"mislabelled": 0, "duplicate": 1, "outlier": 2}
    return sorted(found, key=lambda s: (order[s.kind], -s.strength, s.volume))


def _mislabelled(measured: dict[int, Measured], labels: dict[int, str]) -> list[Suspicion]:
    """One suspicion a volume; where physics and likeness both speak, both texts."""
    texts: dict[int, list[str]] = defaultdict(list)
    strength: dict[int, float] = defaultdict(float)
    for n, volume in measured.items():
        if text := unphysical(volume, labels[n]):
            texts[n].append(text)
            strength[n] += 10.0
    for n, (other, margin) in unlike(measured, labels).items():
        texts[n].append(f"resembles the cohort's {other} more than its {labels[n]} (by {margin:.1f}, limit {MARGIN})")
        strength[n] += margin
    return [Suspicion("mislabelled", n, "; ".join(parts), (), strength[n]) for n, parts in texts.items()]


def unphysical(volume: Measured, modality: str) -> str:
    """What the unit of a modality forbids and the volume does; empty where it keeps to it."""
    whole, body = (dict(zip(QUANTILES, values, strict=True)) for values in (volume.whole, volume.body))
    if modality == "CT":
        if whole[0.1] >= -50:
            return "nothing below -50, where fat and air lie in Hounsfield units: another modality, or not rescaled"
        return ""
    if modality == "CBCT":
        return ""  # cone-beam numbers are not calibrated: nothing is forbidden
    if volume.air > 0.02 and volume.integers > 0.9 and whole[1.0] < -900:
        return f"{100 * volume.air:.0f} % of the voxels lie around -1000 as air in CT does"
    if whole[1.0] < -0.05 * max(whole[99.0], _TINY):
        return "negative values beyond noise, which this modality does not have"
    if modality == "PET" and body[50.0] > 30:
        return f"median {body[50.0]:.4g} in the body, far above any SUV: another modality, or activity per volume"
    if modality == "ADC" and body[95.0] < 20:
        return "values far too small for 1e-6 mm2/s: another modality, or another unit"
    return ""


def unlike(measured: dict[int, Measured], labels: dict[int, str]) -> dict[int, tuple[str, float]]:
    """For volumes that resemble another modality of the cohort more: which, and by how much."""
    members: dict[str, list[int]] = defaultdict(list)
    rows = {n: row for row, n in enumerate(measured)}
    for n, label in labels.items():
        members[label].append(rows[n])
    known = sorted(label for label, own in members.items() if len(own) >= MINIMUM_CLASS)
    if len(known) < 2:
        return {}
    features = np.array([_features(volume) for volume in measured.values()])
    likelihood = np.array([_likelihood(features, features[members[label]]) for label in known])
    found = {}
    for n, label in labels.items():
        if label not in known:
            continue
        own = known.index(label)
        margins = likelihood[:, rows[n]] - likelihood[own, rows[n]]
        best = int(np.argmax(margins))
        if margins[best] > MARGIN:
            found[n] = (known[best], float(margins[best]))
    return found


def misaligned(pairs: Sequence[Pair]) -> list[Suspicion]:
    """Pairs of one frame whose bodies do not lie on each other, or that do not see the same place at all."""
    found = []
    for pair in pairs:
        if pair.overlap is None:
            text = "shares a frame with the other, but they do not see the same place"
        elif pair.overlap < LEAST_OVERLAP:
            text = f"overlap of the bodies {pair.overlap:.2f}, in one frame (limit {LEAST_OVERLAP})"
        else:
            continue
        found.append(Suspicion("misaligned", pair.other, text, (pair.anchor,), 1 - (pair.overlap or 0.0)))
    return found


_FLOORS = np.array([0.3, 0.3, 0.3, 0.05, 0.05, 0.05, 0.05, 0.1, 0.07, 0.05, 0.15, 0.1, 0.1, 0.3])
"""Smallest deviation of each feature: a cohort in which all are alike must not make a stranger of every difference."""


def _features(volume: Measured) -> Array:
    """Levels as they are (for calibrated units), and relative to the foreground's median (for all others)."""
    front = dict(zip(QUANTILES, volume.foreground, strict=True))
    air = volume.background[0]
    tissue = front[50.0] - air
    scale = tissue if abs(tissue) > _TINY else _TINY
    levels = np.arcsinh(np.array([front[50.0], air, front[99.0]]) / 10)
    parts = [front[5.0], front[25.0], front[75.0], front[95.0], front[99.9], volume.shell, volume.background[1]]
    relative = np.arcsinh((np.array(parts) - air) / scale)
    rough = np.log(max(volume.roughness / abs(scale), 1e-4))
    return np.array([*levels, *relative, rough, volume.integers, volume.air, float(volume.whole[1] < 0)])


def _likelihood(features: Array, own: Array) -> Array:
    """Mean log-likelihood of each volume [N] under a modality's own features."""
    middle = np.median(own, axis=0)
    scale = np.maximum(_MAD * np.median(np.abs(own - middle), axis=0), _FLOORS)
    distance = np.minimum(np.abs(features - middle) / scale, _CUT)
    result: Array = (-distance - np.log(scale)).mean(axis=1)
    return result


def duplicates(measured: dict[int, Measured], labels: dict[int, str]) -> list[Suspicion]:
    """Volumes that hold the same values; one suspicion a group, at its first volume."""
    groups: dict[str, list[int]] = defaultdict(list)
    for n, volume in measured.items():
        groups[volume.content].append(n)
    found = []
    for group in groups.values():
        if len(group) < 2:
            continue
        grids = {measured[n].grid for n in group}
        names = {labels[n] for n in group}
        place = "the same place" if len(grids) == 1 else "other places, as their headers have it"
        text = f"{len(group)} rows hold the same voxels, in {place}"
        text += f", under the names {', '.join(sorted(names))}" if len(names) > 1 else ""
        found.append(Suspicion("duplicate", group[0], text, tuple(group[1:]), float(len(group))))
    return found


def outliers(measured: dict[int, Measured], labels: dict[int, str]) -> list[Suspicion]:
    """Volumes far from the others of their modality; one suspicion a volume, its farthest number first."""
    by_label: dict[str, list[int]] = defaultdict(list)
    for n, label in labels.items():
        by_label[label].append(n)
    far: dict[int, list[tuple[float, str]]] = defaultdict(list)
    for own in by_label.values():
        if len(own) < MINIMUM_PEERS:
            continue
        for name, unit, numbers, floor, logarithmic in _numbers([measured[n] for n in own]):
            values = np.log(np.maximum(numbers, 1e-6)) if logarithmic else numbers
            middle = float(np.median(values))
            scale = max(_MAD * float(np.median(np.abs(values - middle))), floor)
            for n, value, number in zip(own, values, numbers, strict=True):
                z = (value - middle) / scale
                if abs(z) > FAR:
                    text = f"{name} {number:.4g}{unit}, others {float(np.median(numbers)):.4g}{unit}"
                    far[n].append((abs(float(z)), text))
    return [
        Suspicion("outlier", n, "; ".join(text for _, text in sorted(parts, reverse=True)), (), max(parts)[0])
        for n, parts in far.items()
    ]


def _numbers(own: Sequence[Measured]) -> list[tuple[str, str, Array, float, bool]]:
    """Name, unit, values, smallest deviation, and whether ratios count, of what is compared within a modality."""
    spread = np.array([m.body[QUANTILES.index(95.0)] - m.body[QUANTILES.index(5.0)] for m in own])
    tissue = max(float(np.median(spread)), _TINY)
    table = []
    for axis, word in enumerate(("right-left", "front-back", "head-feet")):
        table.append((f"voxel {word}", " mm", np.array([m.spacing_mm[axis] for m in own]), 0.08, True))
        table.append((f"field of view {word}", " mm", np.array([m.extent_mm[axis] for m in own]), 0.12, True))
    table.append(("body", " l", np.array([m.body_litres for m in own]), 0.15, True))
    for percent in (5.0, 50.0, 95.0):
        values = np.array([m.body[QUANTILES.index(percent)] for m in own])
        table.append((f"{percent:g}th percentile of the body", "", values, 0.15 * tissue, False))
    return table
