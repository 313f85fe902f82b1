"""Fixed log-spaced sinusoidal position code in physical units (METHODS 2.2, spacing-aware variant).

Fixed, because a learned position embedding lets whoever sees an update solve for the image (METHODS 6.6 P). In
millimetres, because the code then keeps its meaning when spacing or crop change.
"""

import math

import torch
from torch import Tensor

Spacing = tuple[float, float, float]
"""Voxel edges, millimetres along right, anterior, superior."""

UNIT_MM = 100.0
"""u = offset from the crop's centre in units of this."""

HIGHEST = 32.0
"""F_max: the highest angular frequency is pi * F_max / 2 per unit, a wavelength of 12.5 mm."""


def grid_positions(crop: tuple[int, int, int], patch: int, spacing_mm: Spacing) -> Tensor:
    """Centres of a crop's patches relative to the crop's centre.

    Args:
        crop: voxels of the crop; where they are no multiple of the patch, the last patch reaches beyond the crop.
        patch: edge of a patch, voxels.
        spacing_mm: voxel spacing.

    Returns:
        [L, 3] float32 millimetres along right, anterior, superior, in the order of ``patchify``.
    """
    axes = []
    for extent, spacing in zip(crop, spacing_mm, strict=True):
        starts = torch.arange(0, extent, patch, dtype=torch.float32)
        axes.append((starts + (patch - extent) / 2) * spacing)
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(-1, 3)


def distance_bias(queries_mm: Tensor, keys_mm: Tensor, patch_mm: float, heads: int) -> Tensor:
    """Fixed attention bias that falls with distance: -slope x distance in patches, slopes 2, 1, 1/2 ... by head.

    ALiBi (Press et al. 2022, section 3) in three dimensions: without it a small decoder spends its first thousand steps
    on finding out that near patches are alike.

    Args:
        queries_mm: [B, Q, 3].
        keys_mm: [B, K, 3].
        patch_mm: edge of a patch, millimetres.
        heads: N.

    Returns:
        [B, N, Q, K], at most 0.
    """
    slopes = 2.0 ** (1 - torch.arange(heads, device=keys_mm.device))
    return -torch.cdist(queries_mm, keys_mm)[:, None] / patch_mm * slopes[:, None, None]


def position_code(positions_mm: Tensor, width: int) -> Tensor:
    """Sine and cosine of each axis at log-spaced frequencies f_b = pi 2^(-1 + b/(n-1) (log2(F_max/2) + 1)).

    Args:
        positions_mm: [..., 3] millimetres.
        width: channels C; the last C mod 6 channels are zero.

    Returns:
        [..., C] float32 in [-1, 1].
    """
    bands = width // 6
    steps = torch.linspace(0, 1, bands, device=positions_mm.device)
    frequencies = math.pi * 2 ** (-1 + steps * (math.log2(HIGHEST / 2) + 1))
    phases = (positions_mm.float() / UNIT_MM)[..., None] * frequencies
    code = torch.cat([phases.sin(), phases.cos()], dim=-1).flatten(-2)
    return torch.nn.functional.pad(code, (0, width - code.shape[-1]))
