"""Which patches the encoder sees."""

import torch
from torch import Tensor


def visible_count(patches: int, mask_ratio: float) -> int:
    """Patches that stay visible: at least one, and at least one is masked where the ratio is above zero."""
    if mask_ratio == 0:
        return patches
    return min(max(round(patches * (1 - mask_ratio)), 1), patches - 1)


def random_mask(batch: int, patches: int, mask_ratio: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draws visible and masked patches, the same number in every row.

    Args:
        batch: rows B.
        patches: patches L of a row.
        mask_ratio: share that is masked.
        generator: CPU generator; masks are equal on every device.

    Returns:
        visible [B, K] and masked [B, L - K] patch indices, each ascending; together they are 0 .. L - 1.
    """
    order = torch.rand(batch, patches, generator=generator).argsort(dim=1)
    count = visible_count(patches, mask_ratio)
    return order[:, :count].sort(dim=1).values, order[:, count:].sort(dim=1).values
