"""Drawing by implicit functions: shapes are signed distances in millimetres, negative inside.

A shape is a union of parts, each with a bounding box, so that a small organ costs only the voxels around it.
Axes of every array: X right, Y anterior, Z superior, millimetres from the middle between the femoral heads.
"""

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from parametrium.cohort.phantom.tissue import Tissue

Field: TypeAlias = NDArray[np.float32]
Point: TypeAlias = tuple[float, float, float]
Window: TypeAlias = tuple[slice, slice, slice]

FLOOR, CEILING = -110.0, 145.0
"""The body is drawn between these heights, upper thighs to fourth lumbar vertebra, mm."""
SPACING = 2.5
"""Grid that the body is drawn on, mm."""

_MARGIN = 4.0  # distances are exact enough this far outside of a part
_FAR = np.float32(1e3)


@dataclass(frozen=True)
class Part:
    """A convex piece: its bounding box in mm and its distance at coordinates (x, y, z) that broadcast."""

    lower: Point
    upper: Point
    distance: Callable[[Field, Field, Field], Field]


Shape: TypeAlias = tuple[Part, ...]


def ellipsoid(centre: Point, radii: Point, axes: NDArray[np.float64] | None = None) -> Shape:
    """An ellipsoid.

    Args:
        centre: mm.
        radii: mm along the axes.
        axes: [3, 3] unit vectors in rows; None means X, Y, Z.
    """
    frame = np.eye(3) if axes is None else axes
    reach = np.sqrt(((np.asarray(radii)[:, None] * frame) ** 2).sum(0))
    inverse = [np.float32(1 / radius) for radius in radii]

    def distance(x: Field, y: Field, z: Field) -> Field:
        p = (x - np.float32(centre[0]), y - np.float32(centre[1]), z - np.float32(centre[2]))
        if axes is not None:
            turned = frame.astype(np.float32)
            p = (*(row[0] * p[0] + row[1] * p[1] + row[2] * p[2] for row in turned),)
        # First-order distance: level over the length of its gradient; exact for a ball.
        scaled = [(axis * factor) ** 2 for axis, factor in zip(p, inverse, strict=True)]
        level = np.sqrt(scaled[0] + scaled[1] + scaled[2])
        steep = [part * factor**2 for part, factor in zip(scaled, inverse, strict=True)]
        slope = np.sqrt(steep[0] + steep[1] + steep[2])
        return np.asarray(level * (level - 1) / (slope + np.float32(1e-6)))

    return (_part(np.asarray(centre) - reach, np.asarray(centre) + reach, distance),)


def tube(points: Sequence[Point], radii: Sequence[float], flat: Point = (1.0, 1.0, 1.0)) -> Shape:
    """A tube along a smooth line.

    Args:
        points: mm, two or more; the line passes through them.
        radii: mm at the points.
        flat: stretch of the cross-section along X, Y, Z; (1, 0.4, 1) flattens it from front to back.
    """
    line = _smooth(np.column_stack([np.asarray(points, dtype=float), radii]))
    return tuple(_segment(a, b, np.asarray(flat)) for a, b in pairwise(line))


def _smooth(knots: NDArray[np.float64]) -> NDArray[np.float64]:
    """Catmull-Rom line through knots [n, 4], two pieces a span."""
    if len(knots) == 2:
        return knots
    k = np.vstack([2 * knots[0] - knots[1], knots, 2 * knots[-1] - knots[-2]])
    pieces = [knots[:1]]
    for i in range(1, len(k) - 2):
        for t in (0.5, 1.0):
            tangent = (-k[i - 1] + k[i + 1], 2 * k[i - 1] - 5 * k[i] + 4 * k[i + 1] - k[i + 2])
            bend = -k[i - 1] + 3 * k[i] - 3 * k[i + 1] + k[i + 2]
            pieces.append((0.5 * (2 * k[i] + tangent[0] * t + tangent[1] * t**2 + bend * t**3))[None])
    return np.vstack(pieces)


def _segment(a: NDArray[np.float64], b: NDArray[np.float64], flat: NDArray[np.float64]) -> Part:
    start, along = (a[:3] / flat).astype(np.float32), ((b[:3] - a[:3]) / flat).astype(np.float32)
    r0, r1 = np.float32(a[3]), np.float32(b[3] - a[3])
    unit, inverse = np.float32(flat.min()), (1 / flat).astype(np.float32)
    square = max(float(along @ along), 1e-6)

    def distance(x: Field, y: Field, z: Field) -> Field:
        p = (x * inverse[0] - start[0], y * inverse[1] - start[1], z * inverse[2] - start[2])
        share = np.clip((p[0] * along[0] + p[1] * along[1] + p[2] * along[2]) / np.float32(square), 0, 1)
        gap = [axis - share * step for axis, step in zip(p, along, strict=True)]
        return np.asarray(unit * (np.sqrt(gap[0] ** 2 + gap[1] ** 2 + gap[2] ** 2) - r0 - share * r1))

    reach = max(a[3], b[3]) * flat
    return _part(np.minimum(a[:3], b[:3]) - reach, np.maximum(a[:3], b[:3]) + reach, distance)


def _part(
    lower: NDArray[np.float64], upper: NDArray[np.float64], distance: Callable[[Field, Field, Field], Field]
) -> Part:
    low, high = (lower - _MARGIN).tolist(), (upper + _MARGIN).tolist()
    return Part((low[0], low[1], low[2]), (high[0], high[1], high[2]), distance)


def mirrored(shape: Shape) -> Shape:
    """The same shape on the other side of the body."""

    def flip(part: Part) -> Part:
        lower, upper = part.lower, part.upper
        return Part(
            (-upper[0], *lower[1:]), (-lower[0], *upper[1:]), lambda x, y, z: part.distance(np.negative(x), y, z)
        )

    return tuple(flip(part) for part in shape)


def on_side(shape: Shape, side: int) -> Shape:
    """A shape that was described on the right (x > 0), on the patient's right (1) or left (-1)."""
    return shape if side > 0 else mirrored(shape)


class Canvas:
    """The body's grid and what each voxel is made of.

    Args:
        lower: first voxel's centre, mm.
        upper: the last lies at or just before it.

    Attributes:
        lower: as given; upper: as given.
        x: [X, 1, 1] mm; y: [1, Y, 1]; z: [1, 1, Z].
        tissue: [X, Y, Z] uint8.
    """

    def __init__(self, lower: Point, upper: Point) -> None:
        self.lower, self.upper = lower, upper
        sizes = [int((high - low) / SPACING + 1e-6) + 1 for low, high in zip(lower, upper, strict=True)]
        axes = [(low + SPACING * np.arange(size)).astype(np.float32) for low, size in zip(lower, sizes, strict=True)]
        self.x, self.y, self.z = axes[0][:, None, None], axes[1][None, :, None], axes[2][None, None, :]
        self.tissue: NDArray[np.uint8] = np.zeros([len(axis) for axis in axes], dtype=np.uint8)

    def window(self, lower: Point, upper: Point) -> Window:
        """Voxels inside a box in mm."""
        edges = []
        for low, high, start, size in zip(lower, upper, self.lower, self.tissue.shape, strict=True):
            first = min(max(math.ceil((low - start) / SPACING), 0), size)
            edges.append(slice(first, min(max(math.floor((high - start) / SPACING) + 1, first), size)))
        return edges[0], edges[1], edges[2]

    def coordinates(self, window: Window) -> tuple[Field, Field, Field]:
        """X, Y, Z of a window, mm; they broadcast."""
        return self.x[window[0]], self.y[:, window[1]], self.z[:, :, window[2]]

    def distance(self, shape: Shape, window: Window | None = None) -> tuple[Window, Field]:
        """Signed distance of a shape, mm, in the window that holds it or the one given; far outside it is large."""
        if window is None:
            lower = np.array([part.lower for part in shape]).min(0).tolist()
            upper = np.array([part.upper for part in shape]).max(0).tolist()
            window = self.window((lower[0], lower[1], lower[2]), (upper[0], upper[1], upper[2]))
        field = np.full(self.tissue[window].shape, _FAR, dtype=np.float32)
        for part in shape:
            box = _common(self.window(part.lower, part.upper), window)
            inner = tuple(slice(b.start - w.start, b.stop - w.start) for b, w in zip(box, window, strict=True))
            field[inner] = np.minimum(field[inner], part.distance(*self.coordinates(box)))
        return window, field

    def paint(self, shape: Shape, *layers: tuple[float, Tissue], over: Collection[Tissue] | None = None) -> None:
        """Fills a shape with tissues from outside to inside.

        Args:
            shape: what to fill.
            layers: (depth below the surface in mm, tissue from there inwards), outermost first.
            over: tissues that may be painted over; None means all.
        """
        window, distance = self.distance(shape)
        self.fill(window, distance, *layers, over=over)

    def fill(
        self, window: Window, distance: Field, *layers: tuple[float, Tissue], over: Collection[Tissue] | None = None
    ) -> None:
        """As ``paint``, from a distance [window] in mm."""
        view = self.tissue[window]
        free = None if over is None else table_of(over)[view]
        for depth, tissue in layers:
            inside = distance < -depth
            view[inside if free is None else inside & free] = tissue

    def fill_hollow(
        self,
        shape: Shape,
        wall: tuple[float, Tissue],
        lumen: Callable[[Window, Field], NDArray[np.uint8]],
        keep: Collection[Tissue],
    ) -> None:
        """Fills a hollow organ that yields to its neighbours: where they indent it, its wall stays closed.

        Args:
            shape: the organ's outside, were it alone.
            wall: thickness in mm and tissue.
            lumen: tissue [window] of the content, from the window and the distance.
            keep: tissues that are not painted over.
        """
        window, distance = self.distance(shape)
        view = self.tissue[window]
        kept = table_of(keep)[view]
        inside = (distance < 0) & ~kept
        open_space = inside & (distance < -wall[0]) & ~ndimage.binary_dilation(kept)
        view[inside] = wall[1]
        view[open_space] = lumen(window, distance)[open_space]


def _common(one: Window, other: Window) -> Window:
    """Voxels in both windows."""
    edges = [(max(a.start, b.start), min(a.stop, b.stop)) for a, b in zip(one, other, strict=True)]
    first, second, third = (slice(start, max(start, stop)) for start, stop in edges)
    return first, second, third


def table_of(tissues: Collection[Tissue]) -> NDArray[np.bool_]:
    """[256] lookup table, True at the tissues."""
    table = np.zeros(256, dtype=np.bool_)
    table[list(tissues)] = True
    return table
