"""Numbers of an attention rollout: does the model look at the patient (METHODS 3.6, after S1)?

B crops, L patches, V voxels of a patch.
"""

import math

import torch
from torch import Tensor

from parametrium.model.patch_embed import padded, patchify
from parametrium.monitor.rollout import Rollout

IN_BODY = 0.5
"""Share of body voxels from which on a patch counts as one of the body."""

_FEWEST = 8
"""Patches of the body below which a crop has no brightness: a correlation of few points is noise."""


def attention_numbers(found: Rollout, images: Tensor, body: Tensor, patch: int) -> dict[str, Tensor]:
    """One number a crop.

    Args:
        found: rollout of the crops, all patches visible.
        images: [B, D, H, W].
        body: [B, D, H, W] bool.
        patch: edge, voxels.

    Returns:
        [B] each, in float64 on the CPU:

        - ``background``: share of the map outside the body, a patch counting by its voxels, in [0, 1];
        - ``background_share``: share of the patches that lies there: what even attention would give;
        - ``brightness``: Pearson correlation of map and mean intensity over the body's patches (with the air among
          them it would say again what the background says); NaN where it is not defined;
        - ``entropy``: of the map, as a share of the largest possible, ln L: 1 is even attention;
        - ``class_token`` and ``registers``: what went to the extra tokens instead, a share of all.
    """
    shares = found.map.double().cpu()
    inside = patchify(padded(body.double(), patch), patch).mean(-1).cpu()
    bright = patchify(padded(images.double(), patch), patch).mean(-1).cpu()
    entropy = -torch.special.xlogy(shares, shares).sum(1) / math.log(max(shares.shape[1], 2))
    return {
        "background": (shares * (1 - inside)).sum(1),
        "background_share": (1 - inside).mean(1),
        "brightness": _correlation(shares, bright, (inside >= IN_BODY).double()),
        "entropy": entropy,
        "class_token": found.class_token.double().cpu(),
        "registers": found.registers.double().cpu(),
    }


def _correlation(a: Tensor, b: Tensor, counted: Tensor) -> Tensor:
    """[B] Pearson correlation of rows over what is counted; NaN for fewer than ``_FEWEST`` or for a constant."""
    number = counted.sum(1, keepdim=True)
    centred = [(x - (x * counted).sum(1, keepdim=True) / number) * counted for x in (a, b)]
    lengths = centred[0].norm(dim=1) * centred[1].norm(dim=1)
    found = (centred[0] * centred[1]).sum(1) / lengths
    # A map that is even to the last digit has no direction of its own.
    flat = (centred[0].norm(dim=1) < 1e-9 * a.norm(dim=1)) | (centred[1].norm(dim=1) < 1e-9 * b.norm(dim=1))
    return torch.where(flat | (number[:, 0] < _FEWEST), torch.nan, found)
