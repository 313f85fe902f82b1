"""Volumes to patches and back."""

from torch import Tensor

# B volumes, D H W voxels, L patches, V = patch^3 voxels of a patch


def patchify(volumes: Tensor, patch: int) -> Tensor:
    """[B, D, H, W] -> [B, L, V], patches in row-major order of the patch grid."""
    B, D, H, W = volumes.shape
    d, h, w = D // patch, H // patch, W // patch
    x = volumes.reshape(B, d, patch, h, patch, w, patch)
    return x.permute(0, 1, 3, 5, 2, 4, 6).reshape(B, d * h * w, patch**3)


def unpatchify(patches: Tensor, grid: tuple[int, int, int], patch: int) -> Tensor:
    """[B, L, V] -> [B, D, H, W], the inverse of ``patchify``; grid is patches along D, H, W."""
    B, (d, h, w) = len(patches), grid
    x = patches.reshape(B, d, h, w, patch, patch, patch)
    return x.permute(0, 1, 4, 2, 5, 3, 6).reshape(B, d * patch, h * patch, w * patch)


def gather(tokens: Tensor, index: Tensor) -> Tensor:
    """[B, L, V], [B, K] -> [B, K, V]: the chosen tokens of each row."""
    return tokens.gather(1, index[..., None].expand(-1, -1, tokens.shape[-1]))
