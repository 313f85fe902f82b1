"""A small U-Net around the encoder's tokens: features of every voxel, for what has to be drawn voxel by voxel.

Tokens say what lies in a patch, and are too coarse for borders; the image's own convolutions draw those.

B volumes, D H W voxels, d h w patches, C encoder channels, F = ``WIDTH`` channels at full resolution.
"""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from parametrium.model.encoder import Encoder
from parametrium.model.patch_embed import patch_grid
from parametrium.model.position import Spacing
from parametrium.model.presets import Architecture

WIDTH = 16
"""F, channels of the decoder at full resolution."""


class DenseDecoder(nn.Module):
    """A U-Net whose bottom also has the encoder's tokens of before, amid and after its blocks.

    What makes F channels of an image (a first convolution), and what makes outputs of F channels and of the tokens,
    belongs to who uses it: those differ by modality, or by what is drawn.

    Args:
        shape: of the encoder.

    Raises:
        ValueError: the patch is no power of two.
    """

    def __init__(self, shape: Architecture) -> None:
        super().__init__()
        doublings = round(math.log2(shape.patch))
        if 2**doublings != shape.patch:
            raise ValueError("the decoder doubles its resolution step by step: the patch must be a power of two")
        self.after = sorted({0, shape.depth // 2, shape.depth})
        self.channels = len(self.after) * shape.width
        """Of the tokens, 3 C."""
        widths = [WIDTH * 2 ** min(level, 2) for level in range(doublings + 1)]
        self.falls = nn.ModuleList(convolution(narrow, wide, 3, 2) for narrow, wide in pairwise(widths))
        # Tokens share large means and differ little: without their own scale for each channel a decoder learns slowly.
        self.scale = nn.InstanceNorm3d(self.channels)
        self.tokens = convolution(self.channels, widths[-1], 1)
        self.bottom = convolution(2 * widths[-1], widths[-1], 3)
        # All lists begin at full resolution: a level has the same name whatever the patch, for warm starts.
        self.rises = nn.ModuleList(nn.ConvTranspose3d(wide, narrow, 2, 2) for narrow, wide in pairwise(widths))
        self.joins = nn.ModuleList(convolution(2 * narrow, narrow, 3) for narrow in widths[:-1])

    def known(self, encoder: Encoder, volumes: Tensor, modality: Tensor, spacing_mm: Spacing) -> Tensor:
        """What the encoder knows: [B, D, H, W] multiples of the patch, [B] -> [B, 3 C, d, h, w].

        Raises:
            ValueError: an axis has one patch only: torch's strided bf16 convolutions for CPUs read beyond such volumes.
        """
        grid = patch_grid(volumes, encoder.shape.patch)
        if min(grid) < 2:
            raise ValueError(f"the decoder needs two patches along each axis, not {grid}")
        layers = encoder.intermediate(encoder.tokens(volumes, modality, spacing_mm), self.after)
        joined = torch.cat([F.layer_norm(layer, layer.shape[-1:]) for layer in layers], dim=-1)
        scaled: Tensor = self.scale(joined.transpose(1, 2).reshape(len(volumes), -1, *grid))
        return scaled

    def forward(self, narrow: Tensor, known: Tensor) -> Tensor:
        """[B, F, D, H, W] of the image, [B, 3 C, d, h, w] -> [B, F, D, H, W]."""
        seen = [narrow]
        for fall in self.falls:
            seen.append(fall(seen[-1]))
        x: Tensor = self.bottom(torch.cat([self.tokens(known), seen[-1]], dim=1))
        levels = list(zip(self.rises, self.joins, seen[:-1], strict=True))
        for rise, join, skip in reversed(levels):
            x = join(torch.cat([rise(x), skip], dim=1))
        return x


def convolution(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Module:
    """Convolution, instance norm and activation; an instance norm has no memory of other patients."""
    return nn.Sequential(
        nn.Conv3d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False),  # the norm would take it out
        nn.InstanceNorm3d(outputs, affine=True),
        nn.GELU(),
    )


def spread(coarse: Tensor, extent: tuple[int, int, int]) -> Tensor:
    """[B, S, d, h, w] of patches -> [B, S, D, H, W] of voxels, trilinearly."""
    return F.interpolate(coarse, size=extent, mode="trilinear")
