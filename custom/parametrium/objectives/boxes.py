"""Boxes in three dimensions: how they are drawn, and how two of them agree.

A box is (centre, size) along D, H, W as fractions of the crop: six numbers.

B boxes, G sizes, T tries, D H W voxels of a crop.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

MOST = 0.75
"""No box is longer than this share of the crop along any axis: its place must stay open."""

TRIES = 8
"""Places that are tried for a box that shall show the body."""


def extent_range(crop: Sequence[int], patch: int, size: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """[3] smallest and largest edge in voxels: ``size`` of the crop, but at least 2 and 3 patches, at most ``MOST``.

    A box of less than about two patches is no picture of anything; in a crop of four patches a tenth would be that.
    """
    extent = torch.tensor(crop, dtype=torch.float32)
    most = extent * MOST
    smallest, largest = (
        torch.maximum(share * extent, torch.tensor(float(patches * patch))).minimum(most)
        for share, patches in zip(size, (2, 3), strict=True)
    )
    return smallest, largest


def draw_extents(
    number: int, crop: Sequence[int], patch: int, size: tuple[float, float], aspect: float, generator: torch.Generator
) -> Tensor:
    """[G, 3] edges of boxes in whole voxels: one edge a box, each axis longer or shorter by up to ``aspect``."""
    smallest, largest = extent_range(crop, patch, size)
    edge = smallest + torch.rand(number, 1, generator=generator) * (largest - smallest)
    stretch = 1 + aspect * (2 * torch.rand(number, 3, generator=generator) - 1)
    most = (torch.tensor(crop) * MOST).floor().clamp(min=1)
    return (edge * stretch).round().clamp(min=1).minimum(most).long()


def draw_places(extents: Tensor, crop: Sequence[int], tries: int, generator: torch.Generator) -> Tensor:
    """[B, T, 3] first voxels, evenly over all places at which a box of [B, 3] voxels lies inside the crop."""
    free = torch.tensor(crop) - extents + 1
    return (torch.rand(len(extents), tries, 3, generator=generator) * free[:, None]).long().minimum(free[:, None] - 1)


def body_shares(body: Tensor, low: Tensor, extents: Tensor) -> Tensor:
    """[B, T] share of body voxels in boxes.

    Args:
        body: [B, D, H, W] bool.
        low: [B, T, 3] first voxels.
        extents: [B, 3] edges, voxels.
    """
    B, D, H, W = body.shape
    summed = torch.zeros(B, D + 1, H + 1, W + 1, device=body.device)
    summed[:, 1:, 1:, 1:] = body.float().cumsum(1).cumsum(2).cumsum(3)
    ends = low, low + extents[:, None]
    row = torch.arange(B, device=body.device)[:, None]
    total = torch.zeros(low.shape[:2], device=body.device)
    for corner in range(8):  # inclusion and exclusion of the eight corners
        high = [corner >> axis & 1 for axis in range(3)]
        d, h, w = (ends[side][..., axis] for axis, side in enumerate(high))
        total += (-1) ** (3 - sum(high)) * summed[row, d, h, w]
    return total / extents.prod(1)[:, None]


def cut(images: Tensor, low: Tensor, extent: Sequence[int]) -> Tensor:
    """[B, d, h, w] voxels of boxes of one size at [B, 3] first voxels of [B, D, H, W] images."""
    d, h, w = (low[:, axis, None] + torch.arange(n, device=images.device) for axis, n in enumerate(extent))
    row = torch.arange(len(images), device=images.device)
    return images[row[:, None, None, None], d[:, :, None, None], h[:, None, :, None], w[:, None, None, :]]


def as_fractions(low: Tensor, extents: Tensor, crop: Sequence[int]) -> Tensor:
    """[B, 6] boxes from first voxels [B, 3] and edges [B, 3]."""
    whole = torch.tensor(crop, dtype=torch.float32, device=low.device)
    return torch.cat([(low + extents / 2) / whole, extents / whole], dim=1)


def iou(a: Tensor, b: Tensor) -> Tensor:
    """[B] volume in both over volume in either, of boxes [B, 6]; 0 where neither has a volume."""
    both, either, _ = _volumes(a, b)
    return both / _positive(either)


def generalised_iou(a: Tensor, b: Tensor) -> Tensor:
    """[B] IoU less the share of the smallest box around both that belongs to neither (Rezatofighi et al. 2019, eq. 2).

    In (-1, 1]: boxes that do not touch still have a slope towards each other. 0 where even the box around both has no
    volume: two points, lines or faces at the same place.
    """
    both, either, around = _volumes(a, b)
    neither = (around - either).clamp(min=0)  # below 0 by rounding alone, of boxes as thin as that
    return both / _positive(either) - neither / _positive(around)


def _volumes(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """[B] volume in both, in either, and of the smallest box around both."""
    low_a, high_a = a[:, :3] - a[:, 3:] / 2, a[:, :3] + a[:, 3:] / 2
    low_b, high_b = b[:, :3] - b[:, 3:] / 2, b[:, :3] + b[:, 3:] / 2
    both = (torch.minimum(high_a, high_b) - torch.maximum(low_a, low_b)).clamp(min=0).prod(1)
    around = (torch.maximum(high_a, high_b) - torch.minimum(low_a, low_b)).prod(1)
    return both, a[:, 3:].prod(1) + b[:, 3:].prod(1) - both, around


def _positive(volume: Tensor) -> Tensor:
    """A divisor that is never 0."""
    return volume.clamp(min=1e-12)


def box_loss(predicted: Tensor, true: Tensor) -> Tensor:
    """[B] L1 over the six numbers, mean, plus 1 - GIoU (METHODS 2.1), in at least float32."""
    predicted = predicted if predicted.dtype == torch.float64 else predicted.float()
    return (predicted - true).abs().mean(1) + 1 - generalised_iou(predicted, true)


def best_constant_box(crop: Sequence[int], patch: int, size: tuple[float, float], aspect: float) -> Tensor:
    """[6] the box in the middle of the crop with the highest mean IoU over drawn boxes: what no look at a scan gives.

    Places are drawn evenly, so the best centre is the middle; the size is found among 40 between the smallest and the
    whole crop, over 2000 boxes of a fixed draw.
    """
    generator = torch.Generator().manual_seed(0)
    extents = draw_extents(2000, crop, patch, size, aspect, generator)
    boxes = as_fractions(draw_places(extents, crop, 1, generator)[:, 0], extents, crop)
    smallest = extent_range(crop, patch, size)[0] / torch.tensor(crop)
    candidates = [torch.cat([torch.full((3,), 0.5), smallest + t * (1 - smallest)]) for t in torch.linspace(0, 1, 40)]
    scores = [float(iou(candidate.expand(len(boxes), -1), boxes).mean()) for candidate in candidates]
    return candidates[scores.index(max(scores))]
