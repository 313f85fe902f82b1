"""Distributions by modality as plain geometry; the template draws them as inline SVG of a bounded size."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from parametrium.report.chart import COLOURS
from parametrium.report.quality.measure import BINS, RANGES, Measured

WIDTH, HEIGHT = 340, 190
LEFT, RIGHT, TOP, BOTTOM = 40, 20, 10, 40
AXES = ("right-left", "front-back", "head-feet")

_STEPS = 24  # bins over volumes
_DASHES = ("", "6 3", "2 2")


@dataclass(frozen=True)
class Curve:
    """One line: name, colour, dashes, SVG points."""

    name: str
    colour: str
    dashes: str
    points: str


@dataclass(frozen=True)
class Distribution:
    """One small chart, in pixels of a WIDTH x HEIGHT picture.

    Attributes:
        title: what is shown.
        x_label: of the horizontal axis.
        y_label: of the vertical axis.
        x_ticks: position and text.
        y_ticks: position and text.
        curves: lines.
        band: SVG points of a grey area; empty where there is none.
    """

    title: str
    x_label: str
    y_label: str
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    curves: list[Curve]
    band: str = ""
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = WIDTH - RIGHT
    top: int = TOP
    bottom: int = HEIGHT - BOTTOM


def distributions(modality: str, own: Sequence[Measured]) -> list[Distribution]:
    """Voxel spacing, field of view and intensity of one modality's volumes."""
    spacing = np.array([m.spacing_mm for m in own])
    extent = np.array([m.extent_mm for m in own])
    return [
        _counts(f"{modality}: voxel size", "mm", spacing),
        _counts(f"{modality}: field of view", "mm", extent),
        _intensities(modality, np.array([m.histogram for m in own])),
    ]


def _counts(title: str, unit: str, values: NDArray[np.float64]) -> Distribution:
    """Volumes by value, a stepped line an axis; values [N, 3]."""
    low, high = float(values.min()), float(values.max())
    room = max((high - low) * 0.05, abs(high) * 0.05, 1e-3)
    low, high = max(0.0, low - room), high + room
    edges = np.linspace(low, high, _STEPS + 1)
    tables = [np.histogram(values[:, axis], bins=edges)[0] for axis in range(3)]
    x, y = _Axis(low, high, LEFT, WIDTH - RIGHT), _Axis(0.0, float(np.max(tables)), HEIGHT - BOTTOM, TOP, whole=True)
    curves = []
    for axis, counts in enumerate(tables):
        steps = [f"{x(edges[i + side])},{y(float(count))}" for i, count in enumerate(counts) for side in (0, 1)]
        curves.append(Curve(AXES[axis], COLOURS[axis], _DASHES[axis], " ".join(steps)))
    return Distribution(title, unit, "volumes", x.ticks, y.ticks, curves)


def _intensities(modality: str, histograms: NDArray[np.float64]) -> Distribution:
    """Median over the volumes [N, BINS] in a band from the 10th to the 90th percentile."""
    low, high = RANGES.get(modality, (0.0, 1.5))
    unit = {"CT": "HU", "CBCT": "scanner's HU", "PET": "SUV"}.get(modality, "share of the volume's own 95th percentile")
    lower, middle, upper = (row[1:-1] * 100 for row in np.percentile(histograms, (10, 50, 90), axis=0))
    at = (low + (np.arange(BINS) + 0.5) / BINS * (high - low))[1:-1]  # the ends hold all that lies beyond
    x, y = _Axis(low, high, LEFT, WIDTH - RIGHT), _Axis(0.0, max(float(upper.max()), 1.0), HEIGHT - BOTTOM, TOP)
    line, top, under = (
        [f"{x(float(a))},{y(float(v))}" for a, v in zip(at, row, strict=True)] for row in (middle, upper, lower)
    )
    curve = Curve("median of the volumes", COLOURS[0], "", " ".join(line))
    band = " ".join([*top, *reversed(under)])
    return Distribution(f"{modality}: intensity in the body", unit, "% of the body", x.ticks, y.ticks, [curve], band)


class _Axis:
    """A linear axis with a few round ticks."""

    def __init__(self, low: float, high: float, start: float, stop: float, *, whole: bool = False) -> None:
        self.low, self.high, self.start, self.stop = low, max(high, low + 1e-9), start, stop
        locator = MaxNLocator(5, integer=whole, steps=[1, 2, 5, 10])
        ticks = [float(t) for t in locator.tick_values(self.low, self.high) if self.low <= t <= self.high]
        self.ticks = [(self(tick), f"{tick:.6g}") for tick in ticks]

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.stop - self.start), 1)
