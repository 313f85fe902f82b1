"""Crops that are filled in part: the encoder sees them as the image they compose, in one window and in several."""

from collections.abc import Callable

import pytest
import torch

from parametrium.config import JobConfig
from parametrium.model.masking import draw_mask
from parametrium.model.patch_embed import gather, patchify, unpatchify
from parametrium.objectives.filling import crop_positions, embed_patches, encode_filled
from parametrium.objectives.registry import build_model


@torch.no_grad()
@pytest.mark.parametrize("extent", [16, 20, 24])  # 4^3 patches in one window, 5^3 and 6^3 in eight
def test_a_crop_filled_from_its_own_modality_is_encoded_as_the_composed_image(
    make_job: Callable[..., JobConfig], extent: int
) -> None:
    """The second way: patches are put in place in voxels, and the whole image is encoded."""
    job = make_job(crop=[extent] * 3)
    encoder, generator = build_model(job).eval().encoder, torch.Generator().manual_seed(0)
    own, other = torch.randn(2, 2, extent, extent, extent, generator=generator)
    grid, spacing = (extent // 4,) * 3, job.preparation.spacing_mm
    visible, filled = draw_mask(2, grid, 0.75, generator)
    modality = torch.tensor([0, 1])
    tokens = [embed_patches(encoder, *part, spacing) for part in ((own, modality, visible), (other, modality, filled))]
    places = torch.cat([visible, filled], dim=1)
    found = encode_filled(encoder, *tokens, places, grid, crop_positions(own, 4, spacing))
    patches = patchify(own, 4).clone()
    for row in range(2):
        patches[row, filled[row]] = patchify(other, 4)[row, filled[row]]
    expected = encoder.encode(unpatchify(patches, grid, 4), modality, spacing)
    torch.testing.assert_close(found.patches, gather(expected.patches, places), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.cls, expected.cls, rtol=1e-4, atol=1e-5)
