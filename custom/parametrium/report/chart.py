"""Line charts over rounds as plain geometry; the template draws them as inline SVG.

Up to ``MOST_LINES`` sites have a line each, told apart by colour, marker and legend; more sites become one median line
in a band from the lowest to the highest. A chart therefore has a bounded size.
"""

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass

from matplotlib.ticker import MaxNLocator

Series = Mapping[int, float]

MOST_LINES = 8
MOST_POINTS = 400
_MOST_DIGITS = 6  # numbers with more are written with an exponent
WIDTH, HEIGHT = 560, 300
LEFT, RIGHT, TOP, BOTTOM = 62, 14, 12, 44

COLOURS = ("#0b5fa5", "#c2410c", "#15803d", "#7e3794", "#8a6d00", "#0e7490", "#be185d", "#44403c")
"""Dark enough for white paper, apart for the colour-blind; markers differ as well."""

MARKERS = (
    "M-3,0a3,3 0 1,0 6,0a3,3 0 1,0 -6,0z",
    "M-3,-3h6v6h-6z",
    "M0,-4L4,3H-4z",
    "M0,-4L4,0L0,4L-4,0z",
    "M0,4L4,-3H-4z",
    "M-4,-1h3v-3h2v3h3v2h-3v3h-2v-3h-3z",
    "M-4,-4L4,4M-4,4L4,-4",
    "M-4,0H4M0,-4V4",
)


@dataclass(frozen=True)
class Line:
    """One line of a chart.

    Attributes:
        name: the site, or what is drawn instead.
        colour: a hexadecimal colour.
        dashed: True for a reference.
        pieces: SVG points; a gap in the rounds ends a piece.
        marker: SVG path of the marker.
        dots: where markers are.
    """

    name: str
    colour: str
    dashed: bool
    pieces: list[str]
    marker: str
    dots: list[tuple[float, float]]


@dataclass(frozen=True)
class Chart:
    """A chart ready to be drawn, in pixels of a WIDTH x HEIGHT picture.

    Attributes:
        title: what is shown.
        x_label: of the horizontal axis.
        y_label: of the vertical axis.
        x_ticks: position and text.
        y_ticks: position and text.
        lines: references first, so that they lie below.
        bands: SVG points of grey areas.
        reference: what dashed lines are; empty where there is none.
    """

    title: str
    x_label: str
    y_label: str
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    lines: list[Line]
    bands: list[str]
    reference: str
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = WIDTH - RIGHT
    top: int = TOP
    bottom: int = HEIGHT - BOTTOM


def line_chart(
    title: str,
    x_label: str,
    y_label: str,
    values: Mapping[str, Series],
    references: Mapping[str, Series] | None = None,
    reference: str = "",
    step: int = 1,
) -> Chart | None:
    """Lays out one chart.

    Args:
        title: what is shown.
        x_label: of the rounds.
        y_label: of the values.
        values: by site, value by round; values that are not finite are left out.
        references: by site, what the values are to be compared with.
        reference: name of the references.
        step: rounds between two values; a line breaks where more are between them.

    Returns:
        None where there is no value.
    """
    solid, dashed = _finite(values), _finite(references or {})
    every = [point for series in (*solid.values(), *dashed.values()) for point in series.items()]
    if not solid:
        return None
    x = _Scale([number for number, _ in every], LEFT, WIDTH - RIGHT, whole=True)
    y = _Scale([value for _, value in every], HEIGHT - BOTTOM, TOP, whole=False)
    style = {name: index for index, name in enumerate(values)}
    bands: list[str] = []
    if len(solid) > MOST_LINES:
        bands = [_band(solid, x, y)]
        name = f"median of {len(solid)} sites"
        solid, style = {name: _median(solid)}, {name: 0}
        dashed = {name: _median(dashed)} if dashed else {}
    lines = [
        _line(name, by_round, style[name], (x, y), step, reference=series is dashed)
        for series in (dashed, solid)
        for name, by_round in series.items()
        if name in style
    ]
    return Chart(title, x_label, y_label, x.ticks, y.ticks, lines, bands, reference if dashed else "")


class _Scale:
    """A linear axis with round ticks.

    Args:
        values: what it has to hold.
        start: pixel of the first tick.
        stop: pixel of the last tick.
        whole: ticks at whole numbers only.
    """

    def __init__(self, values: list[float], start: float, stop: float, whole: bool) -> None:
        low, high = min(values), max(values)
        if low == high and not whole:
            low, high = low - (abs(low) / 10 or 1.0), high + (abs(high) / 10 or 1.0)
        locator = MaxNLocator(6, integer=whole, steps=[1, 2, 5, 10], min_n_ticks=2)
        ticks = [float(tick) for tick in locator.tick_values(low, high)]
        if whole:
            self.low, self.high = float(low), float(high)
            ticks = [tick for tick in ticks if self.low <= tick <= self.high] or [self.low]
        else:
            self.low, self.high = ticks[0], ticks[-1]
        if self.high == self.low:
            self.low, self.high = self.low - 0.5, self.high + 0.5
        self.start, self.stop = start, stop
        step = ticks[1] - ticks[0] if len(ticks) > 1 else 1.0
        digits = 0 if whole else max(0, -math.floor(math.log10(step) + 1e-9))
        form = f".{digits}f" if digits < _MOST_DIGITS and abs(self.high) < 10**_MOST_DIGITS else ".1e"
        self.ticks = [(self(tick), format(tick, form)) for tick in ticks]

    def __call__(self, value: float) -> float:
        """Pixel of a value."""
        share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.stop - self.start), 1)


def _finite(series: Mapping[str, Series]) -> dict[str, dict[int, float]]:
    kept = {name: {n: v for n, v in sorted(by.items()) if math.isfinite(v)} for name, by in series.items()}
    return {name: by for name, by in kept.items() if by}


def _line(
    name: str, by_round: Series, style: int, scales: tuple["_Scale", "_Scale"], step: int, *, reference: bool
) -> Line:
    x, y = scales
    dots = [] if reference else [(x(n), y(by_round[n])) for n in _thinned(list(by_round), 12)]
    pieces = _pieces(by_round, x, y, step)
    return Line(name, COLOURS[style % len(COLOURS)], reference, pieces, MARKERS[style % len(MARKERS)], dots)


def _pieces(by_round: Series, x: "_Scale", y: "_Scale", step: int) -> list[str]:
    """Points of a line that breaks where values that should be there are not."""
    stretches: list[list[int]] = []
    for number in by_round:
        if not stretches or number - stretches[-1][-1] > step:
            stretches.append([])
        stretches[-1].append(number)
    most = max(2, MOST_POINTS // len(stretches))
    return [" ".join(f"{x(n)},{y(by_round[n])}" for n in _thinned(part, most)) for part in stretches if len(part) > 1]


def _band(series: Mapping[str, Series], x: _Scale, y: _Scale) -> str:
    numbers = _thinned(sorted({n for by in series.values() for n in by}), MOST_POINTS)
    present = {n: [by[n] for by in series.values() if n in by] for n in numbers}
    upper = [f"{x(n)},{y(max(present[n]))}" for n in numbers]
    lower = [f"{x(n)},{y(min(present[n]))}" for n in reversed(numbers)]
    return " ".join(upper + lower)


def _median(series: Mapping[str, Series]) -> dict[int, float]:
    numbers = sorted({n for by in series.values() for n in by})
    return {n: statistics.median(by[n] for by in series.values() if n in by) for n in numbers}


def _thinned(numbers: list[int], most: int) -> list[int]:
    """At most about so many of them, evenly, the last always."""
    stride = max(1, math.ceil(len(numbers) / most))
    kept = numbers[::stride]
    return kept if not numbers or kept[-1] == numbers[-1] else [*kept, numbers[-1]]
