"""What a reconstruction is compared with, and where.

B volumes, Q patches, V voxels of a patch.
"""

from typing import Literal

import torch
from torch import Tensor

Target = Literal["raw", "patch_normalised"]

MINIMUM_BODY = 0.2
"""A patch counts when at least this share of its voxels is body (METHODS 8.3)."""


def standardise(patches: Tensor, reference: Tensor, target: Target) -> Tensor:
    """Puts patches on the scale of the target.

    Args:
        patches: [B, Q, V] intensities.
        reference: [B, Q, V] true patches, whose mean and deviation count for ``patch_normalised``.
        target: ``raw`` leaves intensities; ``patch_normalised`` is (x - mean) / max(sd, .1): a flat patch must not
            explode (METHODS 8.3).
    """
    if target == "raw":
        return patches
    mean = reference.mean(-1, keepdim=True)
    deviation = reference.std(-1, keepdim=True, unbiased=False).clamp(min=0.1)
    return (patches - mean) / deviation


def patch_errors(predicted: Tensor, true: Tensor) -> Tensor:
    """[B, Q] mean squared error of each patch, in float32."""
    return (predicted.float() - true.float()).square().mean(-1)


def spectral_errors(predicted: Tensor, true: Tensor, patch: int) -> Tensor:
    """[B, Q] mean absolute difference between the magnitudes of each patch's 3D spectrum, in float32 (METHODS 4.3).

    The spectrum is unitary, so that it is on the scale of the voxels. It is that of patches, not of the crop: so the
    background and what is visible stay out of it, and standardised targets have one.

    Args:
        predicted: [B, Q, V] on the scale of the target.
        true: [B, Q, V].
        patch: edge; V = patch^3.
    """
    cube = (*true.shape[:-1], patch, patch, patch)
    first, second = (
        torch.fft.fftn(x.float().reshape(cube), dim=(-3, -2, -1), norm="ortho").abs() for x in (predicted, true)
    )
    return torch.mean((first - second).abs(), dim=(-3, -2, -1))


def counting_patches(body: Tensor) -> Tensor:
    """[B, Q] bool from body voxels [B, Q, V]: which patches count."""
    return body.float().mean(-1) >= MINIMUM_BODY
