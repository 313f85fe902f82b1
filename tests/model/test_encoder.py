"""The encoder: any subset of modalities, no leak from masked voxels, attention that sums to one."""

from collections.abc import Callable

import torch

from parametrium.config import JobConfig, ModelConfig
from parametrium.model.attention import Attention
from parametrium.model.encoder import Encoder
from parametrium.model.position import grid_positions
from parametrium.model.presets import PRESETS, architecture


def small_encoder() -> Encoder:
    torch.manual_seed(0)
    config = ModelConfig(patch=4, width=24, depth=2, heads=2)
    return Encoder(("CT", "T1"), architecture(config)).eval()


def test_volumes_of_one_batch_do_not_see_each_other() -> None:
    encoder, volumes = small_encoder(), torch.randn(3, 8, 8, 8)
    modality = torch.tensor([0, 1, 0])
    together = encoder.encode(volumes, modality, (1.0, 1.0, 1.0))
    for row in range(3):
        alone = encoder.encode(volumes[row : row + 1], modality[row : row + 1], (1.0, 1.0, 1.0))
        assert torch.allclose(together.patches[row], alone.patches[0], atol=1e-5)
        assert torch.allclose(together.cls[row], alone.cls[0], atol=1e-5)


def test_the_modality_is_seen() -> None:
    encoder, volume = small_encoder(), torch.randn(1, 8, 8, 8)
    as_ct, as_t1 = (encoder.encode(volume, torch.tensor([m]), (1.0, 1.0, 1.0)).pooled for m in (0, 1))
    assert not torch.allclose(as_ct, as_t1, atol=1e-3)


def test_masked_voxels_do_not_influence_the_encoder_and_visible_ones_do() -> None:
    encoder, visible = small_encoder(), torch.tensor([[0, 3, 5]])
    volume = torch.randn(1, 8, 8, 8)
    masked, seen = volume.clone(), volume.clone()
    masked[:, :4, :4, 4:] += 100  # patch 1
    seen[:, :4, 4:, 4:] += 100  # patch 3
    found = [encoder.encode(v, torch.tensor([0]), (1.0, 1.0, 1.0), visible).patches for v in (volume, masked, seen)]
    assert torch.equal(found[0], found[1])
    assert not torch.allclose(found[0], found[2])


def test_the_order_of_patches_does_not_matter() -> None:
    encoder = small_encoder()
    patches, positions = torch.randn(1, 8, 64), grid_positions((8, 8, 8), 4, (1.0, 1.0, 1.0))
    order = torch.randperm(8)
    straight = encoder(encoder.embed(patches, torch.tensor([0]), positions)).patches
    shuffled = encoder(encoder.embed(patches[:, order], torch.tensor([0]), positions[order])).patches
    assert torch.allclose(shuffled, straight[:, order], atol=1e-5)


def test_attention_weights_reproduce_attention() -> None:
    torch.manual_seed(0)
    attention = Attention(24, 1)
    x = torch.randn(2, 7, 24)
    weights = attention.weights(x)
    assert torch.allclose(weights.sum(-1), torch.ones(2, 1, 7), atol=1e-6)
    _, _, v = attention._split(x, None, None)
    by_hand = attention.project((weights @ v).transpose(1, 2).flatten(2))
    assert torch.allclose(by_hand, attention(x), atol=1e-5)


def test_presets_have_the_sizes_they_are_named_for() -> None:
    counts = {}
    for name in PRESETS:
        with torch.device("meta"):
            encoder = Encoder(("CT",), PRESETS[name])
        counts[name] = sum(p.numel() for p in encoder.parameters()) / 1e6
    assert counts["tiny"] < 1
    assert 20 < counts["small"] < 24
    assert 84 < counts["base"] < 88


def test_no_batch_norm_and_no_buffers_anywhere(make_job: Callable[..., JobConfig]) -> None:
    from parametrium.objectives.registry import OBJECTIVES, build_model

    model = build_model(make_job(objectives=[{"kind": kind} for kind in OBJECTIVES], rounds=3))
    assert not list(model.buffers())
