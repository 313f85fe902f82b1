"""Volumes to patches and back.

B volumes, D H W voxels, L patches, K chosen patches, V = patch^3 voxels of a patch.
"""

import math

from torch import Tensor
from torch.nn import functional as F

from parametrium.model.windows import Grid


def patch_grid(volumes: Tensor, patch: int) -> Grid:
    """Patches along D, H, W of [B, D, H, W]; an axis that is no multiple of the patch gets one more."""
    d, h, w = (math.ceil(extent / patch) for extent in volumes.shape[1:])
    return d, h, w


def padded(volumes: Tensor, patch: int, patches: int = 1) -> Tensor:
    """[B, D, H, W] with zeros after its end, so that every axis is a multiple of the patch, and has so many patches."""
    missing = [max(-extent % patch, patches * patch - extent) for extent in volumes.shape[1:]]
    if not any(missing):
        return volumes
    return F.pad(volumes, [n for extent in reversed(missing) for n in (0, extent)])


def patchify(volumes: Tensor, patch: int) -> Tensor:
    """[B, D, H, W], multiples of the patch -> [B, L, V], patches in row-major order of the patch grid."""
    B, D, H, W = volumes.shape
    d, h, w = D // patch, H // patch, W // patch
    x = volumes.reshape(B, d, patch, h, patch, w, patch)
    return x.permute(0, 1, 3, 5, 2, 4, 6).reshape(B, d * h * w, patch**3)


def unpatchify(patches: Tensor, grid: Grid, patch: int) -> Tensor:
    """[B, L, V] -> [B, D, H, W], the inverse of ``patchify``; grid is patches along D, H, W."""
    B, (d, h, w) = len(patches), grid
    x = patches.reshape(B, d, h, w, patch, patch, patch)
    return x.permute(0, 1, 4, 2, 5, 3, 6).reshape(B, d * patch, h * patch, w * patch)


def gather(tokens: Tensor, index: Tensor) -> Tensor:
    """[B, L, V], [B, K] -> [B, K, V]: the chosen tokens of each row."""
    return tokens.gather(1, index[..., None].expand(-1, -1, tokens.shape[-1]))
