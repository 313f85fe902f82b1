"""Small crops cut out of large ones, on the device where these are.

B large crops, N small ones, T places that are tried, D H W voxels.
"""

from itertools import product

import torch
from torch import Tensor
from torch.nn import functional as F

Extent = tuple[int, int, int]

TRIES = 8
"""Places that are tried for a small crop; the one that shows most of the body is taken: air tells of no patient."""


def local_extent(crop: Extent, edge: float) -> Extent:
    """Voxels of a small crop whose edges are that share of a large one's; at least one along each axis."""
    d, h, w = (max(round(edge * extent), 1) for extent in crop)
    return d, h, w


def draw_corners(body: Tensor, source: Tensor, extent: Extent, generator: torch.Generator) -> Tensor:
    """Where small crops lie in their large ones: of a few random places the one with the largest share of body.

    Args:
        body: [B, D, H, W] bool.
        source: [N] the large crop of each small one.
        extent: voxels of the small crops, at most those of the large ones.
        generator: CPU generator; places are equal on every device.

    Returns:
        [N, 3] first voxel of each small crop, on the device of ``body``.
    """
    shape = (len(source), TRIES)
    room = [large - small + 1 for large, small in zip(body.shape[1:], extent, strict=True)]
    tried = torch.stack([torch.randint(0, r, shape, generator=generator) for r in room], dim=-1).to(body.device)
    best = body_voxels(body, source, tried, extent).argmax(1)
    return tried[torch.arange(len(source), device=body.device), best]


def body_voxels(body: Tensor, source: Tensor, corners: Tensor, extent: Extent) -> Tensor:
    """[N, T] body voxels of boxes at corners [N, T, 3], from a summed-volume table: no box is looked through."""
    table = body.cumsum(1, dtype=torch.int32).cumsum(2, dtype=torch.int32).cumsum(3, dtype=torch.int32)
    table = F.pad(table, (1, 0, 1, 0, 1, 0))
    far = corners + corners.new_tensor(extent)
    total = torch.zeros(corners.shape[:2], dtype=torch.int32, device=body.device)
    for ends in product((False, True), repeat=3):
        d, h, w = (far[..., axis] if end else corners[..., axis] for axis, end in enumerate(ends))
        sign = 1 if sum(ends) % 2 else -1  # all three far ends: added
        total += sign * table[source[:, None], d, h, w]
    return total


def cut(volumes: Tensor, source: Tensor, corner: Tensor, extent: Extent) -> Tensor:
    """[N, *extent] boxes of [B, D, H, W] volumes: source [N] names the volume, corner [N, 3] the first voxel."""
    d, h, w = (corner[:, axis, None] + torch.arange(size, device=corner.device) for axis, size in enumerate(extent))
    volume = source[:, None, None, None]
    return volumes[volume, d[:, :, None, None], h[:, None, :, None], w[:, None, None, :]]


def jittered(images: Tensor, body: Tensor, limit: float, generator: torch.Generator) -> Tensor:
    """[N, D, H, W] crops scaled, and shifted within the body, by up to ``limit``, each by itself as the loader does."""
    scale, shift = ((2 * torch.rand(2, len(images), 1, 1, 1, generator=generator) - 1) * limit).to(images.device)
    result: Tensor = images * (1 + scale) + shift * body
    return result
