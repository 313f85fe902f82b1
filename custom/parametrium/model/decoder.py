"""Lightweight decoder: masked patches ask the encoded ones (cross-attention) and become voxels.

Only masked patches are decoded, and they do not look at each other, as in CrossMAE (Fu et al. 2024, section 3): the
cost grows with masked x visible tokens, and the voxel head runs on masked tokens alone.

B volumes, Q decoded patches, K context tokens, C encoder channels, G decoder channels, V voxels of a patch.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from parametrium.model.attention import Block
from parametrium.model.modality import ByModality, Token
from parametrium.model.position import Spacing, distance_bias, position_code
from parametrium.model.presets import Architecture


class Decoder(nn.Module):
    """Queries to voxels, in the modality that is asked for.

    Args:
        modalities: the job's modalities, in order.
        shape: sizes.
        spacing_mm: voxel spacing of the crops.
        mask_token: whether there are queries without an encoded token; otherwise the token would be a dead tensor,
            sent around and never trained.
    """

    def __init__(
        self,
        modalities: Sequence[str],
        shape: Architecture,
        spacing_mm: Spacing,
        *,
        mask_token: bool = True,
    ) -> None:
        super().__init__()
        width = shape.decoder_width
        self.width = width
        self.heads = shape.decoder_heads
        self.patch_mm = shape.patch * math.prod(spacing_mm) ** (1 / 3)
        self.mask_token = nn.Parameter(torch.randn(width) * 0.02) if mask_token else None
        self.context = nn.Linear(shape.width, width)
        self.target_token = ByModality("decode", modalities, [Token(width) for _ in modalities])
        self.blocks = nn.ModuleList(Block(width, shape.decoder_heads, shape) for _ in range(shape.decoder_depth))
        self.norm = nn.LayerNorm(width)
        self.to_voxels = ByModality("decode", modalities, [nn.Linear(width, shape.patch**3) for _ in modalities])

    def forward(
        self,
        context: Tensor,
        modality: Tensor,
        context_mm: Tensor,
        positions_mm: Tensor,
        starts: Tensor | None = None,
    ) -> Tensor:
        """Predicts patches.

        Args:
            context: [B, K, C] encoded tokens.
            modality: [B] modality to decode to.
            context_mm: [B, K, 3] centres of the encoded patches.
            positions_mm: [B, Q, 3] centres of the wanted patches.
            starts: [B, Q, C] encoded tokens at the wanted patches; None starts from the mask token.

        Returns:
            [B, Q, V] intensities.

        Raises:
            ValueError: neither ``starts`` nor a mask token is there.
        """
        seen = self.context(context)
        queries = self._mask_queries().to(seen.dtype) if starts is None else self.context(starts)
        x = self.target_token(queries + position_code(positions_mm, self.width).to(seen.dtype), modality)
        bias = distance_bias(positions_mm, context_mm, self.patch_mm, self.heads)
        for block in self.blocks:
            x = block(x, seen, bias)
        return self.to_voxels(self.norm(x), modality)  # type: ignore[no-any-return]

    def _mask_queries(self) -> Tensor:
        if self.mask_token is None:
            raise ValueError("a decoder without mask token needs starts")
        return self.mask_token
