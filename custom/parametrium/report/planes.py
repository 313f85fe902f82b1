"""Planes of a crop as a radiologist sees them, and pages of such planes as a PNG.

Crops are [D, H, W] along right, anterior, superior (RAS+): a higher index lies further right, anterior, superior.

    axial      patient's right on the left of the picture, anterior up
    coronal    patient's right on the left of the picture, superior up
    sagittal   anterior on the left of the picture, superior up
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray

from parametrium.data.lattice import Spacing

Image = NDArray[np.float32]
Place = tuple[float, float]
Plane = Literal["axial", "coronal", "sagittal"]

ACROSS: dict[Plane, int] = {"axial": 2, "coronal": 1, "sagittal": 0}
"""The axis that a plane cuts."""

LETTERS: dict[Plane, tuple[str, str]] = {"axial": ("R", "A"), "coronal": ("R", "S"), "sagittal": ("A", "S")}
"""What lies at the left and at the upper edge."""

_CELL = 1.32  # inches for one plane
_GAP = 0.02  # inches around it
_BETWEEN = 0.3  # inches between items
_HEAD = 0.5  # inches above the planes, for the titles
_FOOT = 0.12  # inches below them
_DPI = 100
_HIDDEN = "#7d8590"
_OUTLINE = [withStroke(linewidth=2, foreground="black")]


@dataclass(frozen=True)
class Panel:
    """One volume of a page.

    Attributes:
        title: a few words.
        image: [D, H, W]; NaN is drawn grey.
        window: lowest and highest intensity shown.
        colours: a matplotlib colour map.
        overlay: [D, H, W] drawn over the image, transparent where it is low; None for no overlay.
    """

    title: str
    image: Image
    window: tuple[float, float]
    colours: str = "gray"
    overlay: Image | None = None


@dataclass(frozen=True)
class Item:
    """Volumes that belong together, side by side: one patient, one modality.

    Attributes:
        title: above them.
        panels: at least one.
        at: the voxel through which the planes go; the middle where it is None.
    """

    title: str
    panels: tuple[Panel, ...]
    at: tuple[int, int, int] | None = None


def plane_of(volume: Image, plane: Plane, index: int | None = None) -> Image:
    """One plane as rows and columns of a picture, oriented as the head of this file says.

    Args:
        volume: [D, H, W].
        plane: which.
        index: along the axis that it cuts; the middle by default.
    """
    axis = ACROSS[plane]
    at = volume.shape[axis] // 2 if index is None else index
    # Rows begin at the top (superior or anterior) and columns at the left (right or anterior): both indices run down.
    picture: Image = np.take(volume, at, axis=axis)[::-1, ::-1].T
    return picture


def filled(box: Sequence[float], extent: tuple[int, int, int]) -> NDArray[np.bool_]:
    """[D, H, W] the voxels whose centre lies in a box of (centre, size) along D, H, W as fractions of the whole."""
    inside = np.ones(extent, dtype=np.bool_)
    for axis, voxels in enumerate(extent):
        along = np.abs((np.arange(voxels) + 0.5) / voxels - box[axis]) <= box[axis + 3] / 2
        inside &= along.reshape([-1 if other == axis else 1 for other in range(3)])
    return inside


def frame_of(inside: NDArray[np.bool_]) -> Image:
    """[D, H, W] 1 in the outermost voxels of a box, along each axis by itself, and 0 elsewhere."""
    core = inside.copy()
    for axis in range(3):
        for step in (-1, 1):
            core &= np.roll(inside, step, axis)
    frame: Image = (inside & ~core).astype(np.float32)
    return frame


def draw_items(
    target: Path | BinaryIO, items: Sequence[Item], spacing_mm: Spacing, beside: int, dpi: int = _DPI
) -> None:
    """Writes a page: each item is a block of three rows of planes, one column a panel.

    Args:
        target: PNG to write.
        items: equally many panels each.
        spacing_mm: of the voxels, along right, anterior, superior.
        beside: items next to each other.
        dpi: dots an inch; a plane is about 1.3 inches wide.
    """
    beside = min(beside, len(items))
    block = (len(items[0].panels) * _CELL + _BETWEEN, len(ACROSS) * _CELL + _HEAD + _FOOT)
    size = (beside * block[0] - _BETWEEN, -(-len(items) // beside) * block[1])
    page = Figure(figsize=size, dpi=dpi)
    # One pair of axes in inches for the whole page: a pair for each plane takes seconds.
    axes = page.add_axes((0, 0, 1, 1), xlim=(0, size[0]), ylim=(size[1], 0), autoscale_on=False)
    axes.set_axis_off()
    for index, item in enumerate(items):
        _draw_item(axes, item, spacing_mm, (index % beside * block[0], index // beside * block[1]))
    page.savefig(target, format="png", facecolor="white")


def _draw_item(axes: Any, item: Item, spacing_mm: Spacing, corner: Place) -> None:
    left, top = corner
    axes.text(left + _GAP, top + 0.06, item.title, fontsize=9.5, fontweight="bold", va="top")
    for column, panel in enumerate(item.panels):
        x = left + column * _CELL
        axes.text(x + _CELL / 2, top + _HEAD - 0.05, panel.title, fontsize=8, ha="center", va="bottom")
        for row, plane in enumerate(ACROSS):
            index = None if item.at is None else item.at[ACROSS[plane]]
            place = (x, top + _HEAD + row * _CELL)
            _draw_plane(axes, panel, plane, index, spacing_mm, place)
            if column == 0:
                _letter(axes, plane, place)


def _draw_plane(axes: Any, panel: Panel, plane: Plane, index: int | None, spacing_mm: Spacing, place: Place) -> None:
    picture = plane_of(panel.image, plane, index)
    across, up = [mm for axis, mm in enumerate(spacing_mm) if axis != ACROSS[plane]]
    width, height = picture.shape[1] * across, picture.shape[0] * up
    edge = (_CELL - 2 * _GAP) / max(width, height)  # inches a millimetre
    x, y = place[0] + (_CELL - width * edge) / 2, place[1] + (_CELL - height * edge) / 2
    view = {
        "extent": (x, x + width * edge, y + height * edge, y),
        "aspect": "auto",
        "interpolation": "nearest",
        "origin": "upper",
    }
    low, high = panel.window
    colours = colormaps[panel.colours].with_extremes(bad=_HIDDEN)
    axes.imshow(np.ma.masked_invalid(picture), cmap=colours, vmin=low, vmax=high, **view)
    if panel.overlay is not None:
        heat = plane_of(panel.overlay, plane, index)
        highest = max(float(panel.overlay.max()), 1e-12)
        axes.imshow(heat, cmap="inferno", vmin=0, vmax=highest, alpha=0.75 * np.clip(heat / highest, 0, 1), **view)


def _letter(axes: Any, plane: Plane, place: Place) -> None:
    left, top = LETTERS[plane]
    style: dict[str, Any] = {"color": "white", "fontsize": 8, "path_effects": _OUTLINE}
    axes.text(place[0] + 3 * _GAP, place[1] + _CELL / 2, left, ha="left", va="center", **style)
    axes.text(place[0] + _CELL / 2, place[1] + 3 * _GAP, top, ha="center", va="top", **style)
