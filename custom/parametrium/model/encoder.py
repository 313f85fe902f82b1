"""The 3D vision transformer: one volume at a time, so that any subset of modalities works by construction.

B volumes, L patches, K visible patches, V voxels of a patch, E extra tokens (class token and registers), C channels.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from parametrium.model.attention import Block
from parametrium.model.modality import ByModality, Token
from parametrium.model.patch_embed import patchify
from parametrium.model.position import grid_positions, position_code
from parametrium.model.presets import Architecture

VARIANCE_FLOOR = 1e-6
"""Added to the variance of tokens, so that the slope of its root stays finite."""


class Encoded(NamedTuple):
    """What the encoder makes of the visible patches.

    Attributes:
        cls: [B, C] class token.
        registers: [B, E - 1, C].
        patches: [B, K, C].
    """

    cls: Tensor
    registers: Tensor
    patches: Tensor

    @property
    def pooled(self) -> Tensor:
        """[B, 2 C] mean and standard deviation of the patch tokens over the crop.

        The mean alone blurs texture away, and texture (fat between muscle bundles, bone's trabeculae) tells patients
        apart wherever the crop lies; pooling by statistics comes from speaker recognition (Snyder et al. 2018, 3.1).
        """
        variance = self.patches.float().var(1, unbiased=False)
        return torch.cat([self.patches.mean(1), (variance + VARIANCE_FLOOR).sqrt()], dim=-1)


class Encoder(nn.Module):
    """Patch embedding a modality, fixed positions, class token and registers, pre-norm blocks.

    Args:
        modalities: the job's modalities, in order.
        shape: sizes.
    """

    def __init__(self, modalities: Sequence[str], shape: Architecture) -> None:
        super().__init__()
        self.shape = shape
        self.modalities = tuple(modalities)
        voxels = shape.patch**3
        self.patch_embed = ByModality("embed", modalities, [nn.Linear(voxels, shape.width) for _ in modalities])
        self.modality_token = ByModality("embed", modalities, [Token(shape.width) for _ in modalities])
        self.extra_tokens = nn.Parameter(torch.randn(1 + shape.registers, shape.width) * 0.02)
        rates = [shape.drop_path * layer / max(shape.depth - 1, 1) for layer in range(shape.depth)]
        self.blocks = nn.ModuleList(Block(shape.width, shape.heads, shape, rate) for rate in rates)
        self.norm = nn.LayerNorm(shape.width)

    def embed(self, patches: Tensor, modality: Tensor, positions_mm: Tensor) -> Tensor:
        """Patches to tokens.

        Args:
            patches: [B, K, V] prepared intensities.
            modality: [B] index of each volume's modality.
            positions_mm: [B, K, 3] or [K, 3] patch centres.

        Returns:
            [B, K, C] tokens with modality and position.
        """
        tokens = self.modality_token(self.patch_embed(patches, modality), modality)
        return tokens + position_code(positions_mm, self.shape.width).to(tokens.dtype)  # type: ignore[no-any-return]

    def forward(self, tokens: Tensor) -> Encoded:
        """[B, K, C] tokens -> class token, registers and patch tokens."""
        x = self._with_extras(tokens)
        for block in self.blocks:
            x = block(x)
        cls, registers, patches = self.norm(x).split([1, self.shape.registers, tokens.shape[1]], dim=1)
        return Encoded(cls.squeeze(1), registers, patches)

    def encode(self, volumes: Tensor, modality: Tensor, spacing_mm: tuple[float, float, float]) -> Encoded:
        """All patches of [B, D, H, W] crops, for features and pictures."""
        crop = (volumes.shape[1], volumes.shape[2], volumes.shape[3])
        positions = grid_positions(crop, self.shape.patch, spacing_mm).to(volumes.device)
        encoded: Encoded = self(self.embed(patchify(volumes, self.shape.patch), modality, positions))
        return encoded

    def class_attention(self, tokens: Tensor) -> Tensor:
        """[B, K] attention of the last block's class token to the patches, mean over heads; sums to at most 1."""
        x = self._with_extras(tokens)
        for block in list(self.blocks)[:-1]:
            x = block(x)
        last = self.blocks[-1]
        weights: Tensor = last.attention.weights(last.attention_norm(x))  # type: ignore[union-attr,operator]
        return weights.mean(1)[:, 0, 1 + self.shape.registers :]

    def _with_extras(self, tokens: Tensor) -> Tensor:
        extras = self.extra_tokens.to(tokens.dtype).expand(len(tokens), -1, -1)
        return torch.cat([extras, tokens], dim=1)
