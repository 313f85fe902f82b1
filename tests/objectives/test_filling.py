"""Crops that are filled, in part or whole, are encoded as the image that they compose; in one window and in several."""

from collections.abc import Callable

import pytest
import torch

from parametrium.config import JobConfig
from parametrium.model.masking import draw_mask
from parametrium.model.patch_embed import gather, patchify, unpatchify
from parametrium.objectives.filling import crop_positions, embed_patches, encode_filled, encode_templates
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


@torch.no_grad()
@pytest.mark.parametrize("extent", [16, 20])
def test_a_crop_of_templates_alone_is_encoded_as_the_image_that_they_show(
    make_job: Callable[..., JobConfig], extent: int
) -> None:
    job = make_job(crop=[extent] * 3, objectives=[{"kind": "template_reconstruction"}])
    encoder = build_model(job).eval().encoder
    modality, corner = torch.tensor([0, 1]), torch.tensor([[0, 3, 5], [9, 0, 2]])
    box = torch.tensor([[[0.0] * 3, [40.0] * 3]] * 2)
    templates = encoder.templates
    assert templates is not None
    for name in ("CT", "T1"):
        templates.template(name).values.normal_()
        for number, parameter in enumerate(templates.template(name).parameters()):
            if parameter.ndim == 1:  # its token: as of a scan of the modality, so that the image can be encoded instead
                parameter.copy_(next(encoder.modality_token.of[name].parameters()))
                assert number < 2
    spacing = job.preparation.spacing_mm
    found = encode_templates(encoder, modality, corner, box, job.crop, spacing)
    expected = encoder.encode(templates.crops(modality, corner, box, job.crop), modality, spacing)
    torch.testing.assert_close(found.patches, expected.patches, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.pooled[0], expected.pooled[0], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found.pooled[0], found.pooled[1])
