"""Attention rollout as pictures: of a few held-out volumes along the rounds, and of one volume as a whole.

A site keeps the maps of every measured round beside its pictures (``rollouts/``, which never travels), so that the last
page can show how attention moved.

D H W voxels, L patches of a crop, B crops.
"""

import math
from collections.abc import Callable, Mapping
from itertools import product
from pathlib import Path
from typing import NamedTuple
from zipfile import BadZipFile

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from parametrium.config import JobConfig
from parametrium.data.cache import PreparedVolume
from parametrium.data.lattice import Triple
from parametrium.model.encoder import Encoder
from parametrium.model.windows import Grid
from parametrium.monitor.attention import attention_numbers
from parametrium.monitor.rollout import rollout_of

Map = NDArray[np.float32]

EDGE_SHARE = 0.7
"""Share of body of the crops that are drawn along the rounds."""

_EVERY = 8  # of a volume's known body voxels one in so many is tried

MOST_ROUNDS = 5
"""Rounds that are shown side by side."""


class Overlay(NamedTuple):
    """What is drawn over one crop.

    Attributes:
        relative: [d, h, w] attention of each patch; 1 is as much as every other patch of the crop.
        numbers: see ``attention_numbers``.
    """

    relative: Map
    numbers: Mapping[str, float]


@torch.no_grad()
def overlay_of(encoder: Encoder, image: Tensor, body: Tensor, modality: int, job: JobConfig) -> Overlay:
    """Of one crop [D, H, W], multiples of the patch."""
    device = next(encoder.parameters()).device
    volumes, index = image[None].to(device), torch.tensor([modality], device=device)
    found = rollout_of(encoder, volumes, index, job.preparation.spacing_mm)
    numbers = attention_numbers(found, image[None], body[None], encoder.shape.patch)
    d, h, w = (extent // encoder.shape.patch for extent in image.shape)
    relative = (found.map[0] * found.map.shape[1]).reshape(d, h, w).float().cpu().numpy()
    return Overlay(relative, {name: float(value) for name, value in numbers.items()})


def edge_corner(volume: PreparedVolume, extent: Triple) -> Triple:
    """First voxel of a crop at the edge of the body: in its middle nothing could leak into the background.

    Of crops around body voxels, moved into the volume, the one whose share of body is nearest to ``EDGE_SHARE``.
    """
    first = np.asarray(volume.offset)
    last = first + volume.shape - np.asarray(extent)
    wanted = volume.foreground()[::_EVERY] - np.asarray(extent) // 2
    corners = np.where(last >= first, np.clip(wanted, first, np.maximum(first, last)), (first + last) // 2)
    best = corners[int(np.abs(volume.body_shares(corners, extent) - EDGE_SHARE).argmin())]
    return int(best[0]), int(best[1]), int(best[2])


def heat_of(relative: Map, extent: Triple) -> Map:
    """[D, H, W] what is coloured: attention above even, interpolated from patches to voxels."""
    coarse = torch.from_numpy(relative)[None, None]
    fine = F.interpolate(coarse, size=extent, mode="trilinear", align_corners=False)[0, 0]
    heat: Map = np.maximum(fine.numpy() - 1, 0).astype(np.float32)
    return heat


def save_overlays(folder: Path, rounds: int, overlays: Mapping[str, Overlay]) -> None:
    """Keeps the maps of one round, by the name of the volume."""
    folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)  # made on the way, it would have another mode
    folder.mkdir(exist_ok=True, mode=0o700)
    arrays = {f"{name}/map": overlay.relative for name, overlay in overlays.items()}
    for name, overlay in overlays.items():
        arrays |= {f"{name}/{key}": np.array(value, dtype=np.float32) for key, value in overlay.numbers.items()}
    np.savez_compressed(folder / f"round_{rounds:04d}.npz", **arrays)  # type: ignore[arg-type]


def load_overlays(folder: Path, grid: Grid) -> dict[int, dict[str, Overlay]]:
    """By finished rounds and name of the volume; a file that is damaged or of another crop is passed over."""
    found = {}
    for path in sorted(folder.glob("round_*.npz")):
        try:
            with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
                arrays = dict(file)
            maps = {name.removesuffix("/map"): array for name, array in arrays.items() if name.endswith("/map")}
            found[int(path.stem.removeprefix("round_"))] = {
                name: Overlay(relative, _numbers_of(arrays, name))
                for name, relative in maps.items()
                if relative.shape == grid
            }
        except (OSError, ValueError, KeyError, EOFError, BadZipFile):
            continue
    return found


def _numbers_of(arrays: Mapping[str, NDArray[np.float32]], name: str) -> dict[str, float]:
    own = {key.removeprefix(f"{name}/"): x for key, x in arrays.items() if key.startswith(f"{name}/")}
    return {key: float(x) for key, x in own.items() if x.ndim == 0}


def shown_rounds(rounds: list[int]) -> list[int]:
    """At most ``MOST_ROUNDS`` of them, evenly, with the first and the last."""
    if len(rounds) <= MOST_ROUNDS:
        return rounds
    return [rounds[round(n * (len(rounds) - 1) / (MOST_ROUNDS - 1))] for n in range(MOST_ROUNDS)]


@torch.no_grad()
def overlay_of_volume(
    encoder: Encoder,
    image: Tensor,
    body: Tensor,
    modality: int,
    job: JobConfig,
    progress: Callable[[int, int], None] | None = None,
) -> Overlay:
    """Of a whole volume [D, H, W], as the mean over crops that overlap by half; memory does not grow with the volume.

    Each crop is as large as in training, so that what it attends to is what it learned to attend to. Attention is
    relative within its crop. Crops without a body voxel are not looked at; where no other crop lies the map is 0.

    Returns:
        The map has ceil(extent / patch) patches along each axis, and the numbers are means over the crops, as those
        that a site measures; ``crops`` is how many there were.
    """
    patch, extents = encoder.shape.patch, job.crop
    grid = [max(math.ceil(n / patch), extent // patch) for n, extent in zip(image.shape, extents, strict=True)]
    image, body = (_filled(x, [n * patch for n in grid]) for x in (image, body))
    starts = [_starts(n, extent // patch) for n, extent in zip(grid, extents, strict=True)]
    boxes = [
        box
        for corner in product(*starts)
        if body[box := tuple(slice(c * patch, c * patch + e) for c, e in zip(corner, extents, strict=True))].any()
    ]
    total, seen = np.zeros(grid), np.zeros(grid)
    sums: dict[str, list[float]] = {}
    for number, box in enumerate(boxes, 1):
        overlay = overlay_of(encoder, image[box], body[box], modality, job)
        place = tuple(slice(part.start // patch, part.stop // patch) for part in box)
        total[place] += overlay.relative
        seen[place] += 1
        for name, value in overlay.numbers.items():
            if math.isfinite(value):
                sums.setdefault(name, []).append(value)
        if progress:
            progress(number, len(boxes))
    numbers = {name: sum(values) / len(values) for name, values in sums.items()}
    relative: Map = (total / np.maximum(seen, 1)).astype(np.float32)
    return Overlay(relative, numbers | {"crops": float(len(boxes))})


def _starts(patches: int, extent: int) -> list[int]:
    """First patches of crops along one axis: every half crop, and the last that fits."""
    last = patches - extent
    return sorted({*range(0, last, max(extent // 2, 1)), last})


def _filled(x: Tensor, extents: list[int]) -> Tensor:
    """[D, H, W] with nothing behind its end, up to these extents."""
    missing = [wanted - n for wanted, n in zip(extents, x.shape, strict=True)]
    return F.pad(x, [n for extent in reversed(missing) for n in (0, extent)])
