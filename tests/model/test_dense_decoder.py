"""The decoder that draws voxels: sizes, what it sees, and that patients of one batch do not see each other."""

from dataclasses import replace

import pytest
import torch

from parametrium.model.dense_decoder import WIDTH, DenseDecoder, convolution, spread
from parametrium.model.encoder import Encoder
from parametrium.model.presets import PRESETS

SHAPE = replace(PRESETS["tiny"], width=24, depth=2, heads=2)
MM = (2.0, 2.0, 2.0)


def features(patch: int, volumes: torch.Tensor) -> torch.Tensor:
    """[B, F, D, H, W] by networks of one seed."""
    torch.manual_seed(0)
    shape = replace(SHAPE, patch=patch)
    encoder, stem, decoder = Encoder(("CT", "T1"), shape).eval(), convolution(1, WIDTH, 3), DenseDecoder(shape)
    modality = torch.arange(len(volumes)) % 2
    with torch.no_grad():
        known = decoder.known(encoder, volumes, modality, MM)
        assert known.shape == (len(volumes), decoder.channels, *(n // patch for n in volumes.shape[1:]))
        found: torch.Tensor = decoder(stem(volumes[:, None]), known)
    return found


@pytest.mark.parametrize("patch", [2, 4, 8])
def test_every_voxel_gets_features_whatever_the_patch(patch: int) -> None:
    found = features(patch, torch.randn(2, 16, 24, 16))
    assert found.shape == (2, WIDTH, 16, 24, 16)
    assert found.std() > 0.1


def test_volumes_of_one_batch_do_not_see_each_other() -> None:
    volumes = torch.randn(3, 16, 16, 16)
    together = features(4, volumes)
    volumes[0] *= 30
    torch.testing.assert_close(features(4, volumes)[1:], together[1:])


def test_tokens_reach_the_voxels() -> None:
    torch.manual_seed(0)
    decoder = DenseDecoder(replace(SHAPE, patch=4))
    narrow, known = torch.randn(1, WIDTH, 16, 16, 16), torch.randn(1, decoder.channels, 4, 4, 4)
    assert not torch.allclose(decoder(narrow, known), decoder(narrow, known.flip(2)), atol=1e-3)


def test_a_patch_that_is_no_power_of_two_is_refused() -> None:
    with pytest.raises(ValueError, match="power of two"):
        DenseDecoder(replace(SHAPE, patch=6))


def test_a_level_has_the_same_name_whatever_the_patch() -> None:
    """So that a warm start into larger patches takes the levels that both have, and leaves the deepest alone."""
    small, large = (DenseDecoder(replace(SHAPE, patch=patch)).state_dict() for patch in (4, 8))
    for part in ("falls", "rises", "joins"):
        own = {name: tensor.shape for name, tensor in small.items() if name.startswith(part)}
        assert own
        assert own == {n: t.shape for n, t in large.items() if n.startswith(part) and f"{part}.2" not in n}


def test_what_is_said_of_patches_is_spread_over_their_voxels() -> None:
    coarse = torch.arange(4.0).reshape(1, 1, 4, 1, 1).expand(1, 2, 4, 4, 4)
    fine = spread(coarse, (16, 16, 16))
    assert fine.shape == (1, 2, 16, 16, 16)
    centres = fine[0, 0, :, 8, 8].reshape(4, 4)[:, 1:3].mean(1)
    torch.testing.assert_close(centres[1:3], torch.tensor([1.0, 2.0]))  # beyond, the last patch goes on


def test_a_crop_of_one_patch_along_an_axis_is_refused_naming_its_patches() -> None:
    with pytest.raises(ValueError, match=r"two patches along each axis, not \(4, 4, 1\)"):
        features(4, torch.randn(1, 16, 16, 4))
