"""What must be computed so that a block or a first layer of another encoder keeps its function in ours.

B volumes, C channels, N heads, D channels of a head, E input channels; D H W the axes of a kernel or volume.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from parametrium.model.attention import Attention
from parametrium.model.encoder import Encoder
from parametrium.model.position import Spacing

NORM_EPS = 1e-12


def linear_resize(size: int, to: int) -> Tensor:
    """[to, size] float64: linear interpolation along one axis, smoothed where it shrinks; rows sum to 1."""
    rows = torch.eye(size, dtype=torch.float64)[None, None]
    return F.interpolate(rows, size=(to, size), mode="bilinear", antialias=True)[0, 0]


def resize_kernel(kernel: Tensor, patch: int) -> Tensor:
    """A patch embedding for patches of another edge (FlexiViT, Beyer et al. 2023, section 3.4 and equation 4).

    With B the interpolation of a patch to the new edge, the kernel becomes pinv(B^T) w along each axis: where the new
    patch is larger, the interpolated patch gives the very token that the patch gave; where it is smaller, the token
    nearest to it in the mean over patches of white noise.

    Args:
        kernel: [C, E, D, H, W], any edges.
        patch: the new edge.

    Returns:
        [C, E, patch, patch, patch] float32.
    """
    resized = kernel.double()
    for axis in (2, 3, 4):
        solve = torch.linalg.pinv(linear_resize(kernel.shape[axis], patch).T)  # [patch, size]
        resized = torch.movedim(torch.tensordot(resized, solve, dims=([axis], [1])), -1, axis)
    return resized.float()


def noise_volumes(number: int, crop: tuple[int, int, int], seed: int) -> Tensor:
    """[number, D, H, W] random fields of all wavelengths from the crop's size to two voxels, mean 0, deviation 1."""
    generator = torch.Generator().manual_seed(seed)
    volumes = torch.zeros(number, *crop)
    for octave in range(1, max(2, round(math.log2(max(crop))))):
        coarse = [min(2**octave + 1, extent) for extent in crop]
        field = torch.randn(number, 1, *coarse, generator=generator)
        volumes += F.interpolate(field, size=crop, mode="trilinear")[:, 0]
    flat = volumes.flatten(1)
    return (volumes - flat.mean(1)[:, None, None, None]) / flat.std(1)[:, None, None, None]


@torch.no_grad()
def score_scales(encoder: Encoder, depth: int, volumes: Tensor, spacing_mm: Spacing) -> list[float]:
    """The weights of query and key norm with which normalised attention is nearest to plain attention, block by block.

    Plain scores are q k / sqrt(D) = rms(q) rms(k) x (normalised scores); our norms give one factor to all heads and
    tokens. It is the mean over the heads of rms(q) rms(k), measured while volumes pass through the blocks as the source
    would run them: attention without norms and windows. It cannot be computed from the weights alone: for tokens
    that leave a trained network's layer norm it is several times what white tokens would give.

    Args:
        encoder: with everything loaded but the norms of query and key.
        depth: how many of its blocks are the source's.
        volumes: [B, D, H, W] what is looked at.
        spacing_mm: their voxel spacing.

    Returns:
        For each block the square root of its factor, for each of the two norms.
    """
    tokens = encoder.tokens(volumes, torch.zeros(len(volumes), dtype=torch.long), spacing_mm).tokens
    x = torch.cat([encoder.extra_tokens.expand(len(tokens), -1, -1), tokens], dim=1)
    scales = []
    for block in list(encoder.blocks)[:depth]:
        attention: Attention = block.attention  # type: ignore[assignment]
        h = block.attention_norm(x)  # type: ignore[operator]
        q = attention.query(h).unflatten(-1, (attention.heads, -1)).transpose(1, 2)
        k, v = attention.key_value(h).unflatten(-1, (2, attention.heads, -1)).transpose(1, 3).unbind(2)
        sizes = [part.square().mean(-1).sqrt().mean((0, 2)) for part in (q, k)]  # [N] each
        scales.append(float((sizes[0] * sizes[1]).mean().clamp(min=NORM_EPS).sqrt()))
        mixed = attention.project(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        x = x + block.attention_scale(mixed)  # type: ignore[operator]
        x = x + block.mlp_scale(block.mlp(block.mlp_norm(x)))  # type: ignore[operator]
    return scales


def spread(code: Tensor) -> float:
    """Root mean square of [L, C] position codes about their mean over the positions."""
    return float((code.double() - code.double().mean(0)).square().mean().sqrt())
