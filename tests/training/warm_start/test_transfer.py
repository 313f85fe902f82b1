"""Real encoders of MONAI, a timm-like one, our own: every tensor is accounted for, and functions are kept."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.networks.nets import UNETR, MaskedAutoEncoderViT, ViT, ViTAutoEnc
from torch import Tensor, nn

from parametrium.config import JobConfig, parse_job
from parametrium.errors import ConfigError, TrainingError
from parametrium.model.encoder import Encoder
from parametrium.model.patch_embed import patchify
from parametrium.model.position import grid_positions, position_code
from parametrium.objectives.registry import PretrainingModel, build_model, initial_tensors
from parametrium.training.warm_start.first_layer import kernel_of, split_positions, stream_scale
from parametrium.training.warm_start.ledger import LoadReport
from parametrium.training.warm_start.recognise import recognise
from parametrium.training.warm_start.transfer import transfer
from parametrium.training.warm_start.weights import Weights

MakeJob = Callable[..., JobConfig]

WIDTH, HEADS, DEPTH, CROP = 24, 2, 2, 16
MODEL = {"patch": 4, "width": WIDTH, "depth": DEPTH, "heads": HEADS, "decoder_width": 24, "decoder_depth": 1}
SIZES = {"hidden_size": WIDTH, "mlp_dim": 4 * WIDTH, "num_layers": DEPTH, "num_heads": HEADS}


def quiet(build: Callable[..., nn.Module], *args: Any, **kwargs: Any) -> nn.Module:
    """MONAI's modules warn of torch's future while they are built."""
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        torch.manual_seed(1)
        return build(*args, **kwargs).eval()


def monai_vit(patch: int = 4, channels: int = 1, **changes: Any) -> nn.Module:
    return quiet(ViT, channels, (CROP,) * 3, (patch,) * 3, **{**SIZES, **changes})


def masked_autoencoder(patch: int = 4, **changes: Any) -> nn.Module:
    decoder = {"decoder_hidden_size": 12, "decoder_mlp_dim": 24, "decoder_num_layers": 1, "decoder_num_heads": 2}
    return quiet(MaskedAutoEncoderViT, 1, (CROP,) * 3, (patch,) * 3, **{**SIZES, **decoder, **changes})


def timm_like(depth: int = DEPTH, *, norms: bool = True, registers: int = 2, seed: int = 0) -> dict[str, Tensor]:
    """The state dict of a 3D ViT with timm's names, class token, registers, LayerScale and norms of query and key."""
    generator = torch.Generator().manual_seed(seed)
    c, shapes = WIDTH, {"cls_token": (1, 1, WIDTH), "pos_embed": (1, 65, WIDTH), "patch_embed.proj.bias": (WIDTH,)}
    shapes |= {
        "patch_embed.proj.weight": (c, 1, 4, 4, 4),
        "norm.weight": (c,),
        "norm.bias": (c,),
        "head.weight": (5, c),
    }
    if registers:
        shapes["reg_token"] = (1, registers, c)
    for n in range(depth):
        block = {"norm1.weight": (c,), "norm1.bias": (c,), "norm2.weight": (c,), "norm2.bias": (c,)}
        block |= {"attn.qkv.weight": (3 * c, c), "attn.qkv.bias": (3 * c,), "attn.proj.weight": (c, c)}
        block |= {"attn.proj.bias": (c,), "mlp.fc1.weight": (4 * c, c), "mlp.fc1.bias": (4 * c,)}
        block |= {"mlp.fc2.weight": (c, 4 * c), "mlp.fc2.bias": (c,), "ls1.gamma": (c,), "ls2.gamma": (c,)}
        if norms:
            block |= {"attn.q_norm.weight": (c // HEADS,), "attn.k_norm.weight": (c // HEADS,)}
        shapes |= {f"blocks.{n}.{name}": shape for name, shape in block.items()}
    return {name: 0.2 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def partition(report: LoadReport, job: JobConfig, source: dict[str, Tensor]) -> None:
    """Every tensor of the model is in one list, and every tensor of the source is used or left, never both."""
    kinds = [report.names(kind) for kind in ("loaded", "resized", "adapted")]  # type: ignore[arg-type]
    ours = [name for names in (*kinds, report.missing) for name in names]
    assert sorted(ours) == sorted(initial_tensors(job))
    used = {name for origin in report.origins.values() for name in origin.sources}
    assert used | set(report.left) == source.keys()
    assert not used & set(report.left)
    assert len(report.left) == len(set(report.left))


def filled(job: JobConfig, tensors: dict[str, Tensor]) -> PretrainingModel:
    model = build_model(job).eval()
    model.load_state_dict(tensors)
    return model


def without_head_norms(encoder: Encoder) -> Encoder:
    for block in encoder.blocks:
        block.attention.query_norm = nn.Identity()  # type: ignore[union-attr, assignment]
        block.attention.key_norm = nn.Identity()  # type: ignore[union-attr, assignment]
    return encoder


def relative(found: Tensor, true: Tensor) -> float:
    return float((found - true).norm() / true.norm())


# ---------------------------------------------------------------------------------------------------- accounted for

LEFT_OF_VIT = {f"blocks.{n}.norm_cross_attn.{s}" for n in range(DEPTH) for s in ("weight", "bias")}


def left_of_unetr(name: str) -> bool:
    """Its convolutions, and the blocks beyond the job's: it always has 12."""
    parts = name.split(".")
    beyond = parts[1] == "blocks" and int(parts[2]) >= DEPTH
    return parts[0] != "vit" or beyond or "norm_cross_attn" in parts


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[str], bool]]] = {
    "vit": (lambda: monai_vit(), lambda name: name in LEFT_OF_VIT),
    "vit with class token and biases": (
        lambda: monai_vit(classification=True, qkv_bias=True),
        lambda name: name in LEFT_OF_VIT or name.startswith("classification_head."),
    ),
    "vit with a linear patch embedding": (lambda: monai_vit(proj_type="perceptron"), lambda name: name in LEFT_OF_VIT),
    "masked autoencoder": (
        lambda: masked_autoencoder(),
        lambda name: name in LEFT_OF_VIT or name.startswith(("decoder_", "mask_tokens")),
    ),
    "autoencoder": (
        lambda: quiet(ViTAutoEnc, 1, (CROP,) * 3, (4,) * 3, **SIZES),
        lambda name: name in LEFT_OF_VIT or name.startswith("conv3d_transpose"),
    ),
    "unetr": (
        lambda: quiet(UNETR, 1, 2, (CROP,) * 3, feature_size=4, hidden_size=WIDTH, mlp_dim=4 * WIDTH, num_heads=HEADS),
        left_of_unetr,
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_every_tensor_of_a_monai_model_is_accounted_for(make_job: MakeJob, name: str) -> None:
    build, is_left = MODELS[name]
    source, job = dict(build().state_dict()), make_job()
    tensors, report = transfer(job, Weights(source))
    partition(report, job, source)
    assert set(report.left) == {key for key in source if is_left(key)}
    fresh = {n for n in tensors if not n.startswith("encoder.")} | {"encoder.extra_tokens"}
    assert set(report.missing) == fresh - set(report.origins)
    assert all(bool(torch.isfinite(t).all()) for t in tensors.values())


@given(
    st.integers(1, 4), st.booleans(), st.integers(0, 3), st.integers(1, 4), st.sampled_from(["", "backbone.", "a.b."])
)
@settings(max_examples=15)
def test_lists_partition_both_sides_whatever_the_source_has(
    depth: int, norms: bool, registers: int, ours: int, prefix: str
) -> None:
    job = _job(model={"depth": ours})
    source = {prefix + name: t for name, t in timm_like(depth, norms=norms, registers=registers).items()}
    source["elsewhere.weight"] = torch.ones(2)
    _, report = transfer(job, Weights(source))
    partition(report, job, source)
    assert {"elsewhere.weight", f"{prefix}head.weight"} <= set(report.left)
    beyond = {n for n in source if ".blocks." in f".{n}" and int(n.removeprefix(prefix).split(".")[1]) >= ours}
    assert beyond <= set(report.left)


def _job(**changes: Any) -> JobConfig:
    model = MODEL
    settings_ = {"name": "tiny", "modalities": ["CT", "T1"], "crop": [16, 16, 16], "local_steps": 2}
    objectives = [{"kind": "masked_reconstruction"}]
    return parse_job({**settings_, "objectives": objectives, **changes, "model": model | changes.get("model", {})})


# ---------------------------------------------------------------------------------------------------- functions kept


@torch.no_grad()
def test_blocks_compute_what_monais_do_once_norms_of_query_and_key_are_out(make_job: MakeJob) -> None:
    vit = monai_vit(pos_embed_type="sincos", qkv_bias=True)
    tensors, _ = transfer(make_job(), Weights(dict(vit.state_dict())))
    encoder = without_head_norms(filled(make_job(), tensors).encoder)
    scale = float(tensors["encoder.blocks.0.attention_scale.gamma"][0])
    x = theirs = torch.randn(2, 30, WIDTH)
    ours = scale * x
    for block, other in zip(encoder.blocks, vit.blocks, strict=True):
        ours, theirs = block(ours), other(theirs)
        assert relative(ours, scale * theirs) < 1e-5
    assert relative(encoder.norm(ours), vit.norm(theirs)) < 1e-4


@torch.no_grad()
@pytest.mark.parametrize("projection", ["conv", "perceptron"])
def test_the_first_layer_gives_monais_tokens(make_job: MakeJob, projection: str) -> None:
    vit = monai_vit(proj_type=projection)
    nn.init.zeros_(vit.patch_embedding.position_embeddings)
    tensors, report = transfer(make_job(), Weights(dict(vit.state_dict())))
    volumes = torch.randn(2, CROP, CROP, CROP)
    embed = filled(make_job(), tensors).encoder.patch_embed
    assert relative(embed(patchify(volumes, 4), torch.tensor([0, 2])), vit.patch_embedding(volumes[:, None])) < 1e-5
    assert report.origins["encoder.patch_embed.of.CT.weight"].kind == "loaded"


@torch.no_grad()
def test_a_whole_encoder_is_nearer_to_its_source_than_with_what_was_not_fitted(make_job: MakeJob) -> None:
    """One window of tokens, so that all look at all: what is left are positions and the norms of query and key."""
    job = make_job()
    autoencoder = masked_autoencoder(pos_embed_type="learnable")
    volumes = torch.randn(6, CROP, CROP, CROP)
    tokens = autoencoder.patch_embedding(volumes[:, None])
    true = autoencoder.blocks(torch.cat([autoencoder.cls_token.expand(6, -1, -1), tokens], 1))[:, 1:]

    def likeness(tensors: dict[str, Tensor]) -> float:
        encoder = filled(job, tensors).encoder
        found = encoder.encode(volumes, torch.zeros(6, dtype=torch.long), (3.0, 3.0, 3.0)).patches
        return float(nn.functional.cosine_similarity(found - found.mean(0), true - true.mean(0), dim=-1).mean())

    tensors, _ = transfer(job, Weights(dict(autoencoder.state_dict())))
    small = {n: 0.1 * t if n.endswith(".gamma") else t for n, t in tensors.items()}
    ones = {
        n: torch.ones_like(t) if n.endswith(("query_norm.weight", "key_norm.weight")) else t for n, t in tensors.items()
    }
    best = likeness(tensors)
    assert best > 0.9
    assert best > max(likeness(small), likeness(ones), likeness(initial_tensors(job)))


@torch.no_grad()
def test_timms_layer_scale_norms_class_token_and_registers_are_taken() -> None:
    job, source = _job(), timm_like()
    source["pos_embed"] *= 0  # without a position code nothing is scaled
    source["pos_embed"][0, 0] += 0.5  # but that of the class token, which is told apart by being one too many
    tensors, report = transfer(job, Weights(source))
    for n in range(DEPTH):
        block = f"encoder.blocks.{n}."
        for ours, theirs in (("attention_scale", "ls1"), ("mlp_scale", "ls2")):
            assert torch.equal(tensors[f"{block}{ours}.gamma"], source[f"blocks.{n}.{theirs}.gamma"])
        for side in ("query", "key"):
            norm = f"{block}attention.{side}_norm.weight"
            assert torch.equal(tensors[norm], source[f"blocks.{n}.attn.{side[0]}_norm.weight"])
            assert report.origins[norm].kind == "loaded"
        q, kv = source[f"blocks.{n}.attn.qkv.weight"].split([WIDTH, 2 * WIDTH])
        assert torch.equal(tensors[f"{block}attention.query.weight"], q)
        assert torch.equal(tensors[f"{block}attention.key_value.weight"], kv)
    extra = tensors["encoder.extra_tokens"]
    assert torch.equal(extra[1:3], source["reg_token"][0])
    assert torch.equal(extra[0], source["cls_token"][0, 0] + 0.5)


def test_a_code_one_longer_than_a_cube_holds_the_class_tokens_position() -> None:
    source = timm_like()
    patches, of_class = split_positions(recognise(source))
    assert patches is not None
    assert of_class is not None
    assert len(of_class) == 1
    assert torch.equal(torch.cat([of_class, patches]), source["pos_embed"][0])
    source["pos_embed"] = source["pos_embed"][:, 1:]
    patches, of_class = split_positions(recognise(source))
    assert patches is not None
    assert len(patches) == 64
    assert of_class is None


def test_registers_may_have_positions_too(make_job: MakeJob) -> None:
    source = timm_like()
    before, _ = transfer(make_job(), Weights(source))
    added = torch.full((1, 2, WIDTH), 0.25)
    source["pos_embed"] = torch.cat([source["pos_embed"][:, :1], added, source["pos_embed"][:, 1:]], 1)
    tensors, report = transfer(make_job(), Weights(source))
    assert not any("no cube's" in note for note in report.notes)
    scale = stream_scale(source["pos_embed"][0, 3:], position_code(grid_positions((16,) * 3, 4, (3.0,) * 3), WIDTH))
    shift = tensors["encoder.extra_tokens"][1:3] - before["encoder.extra_tokens"][1:3]
    assert torch.allclose(shift, scale * added[0], atol=1e-5)


def test_where_no_grid_is_a_cube_timms_first_positions_are_those_of_extra_tokens(make_job: MakeJob) -> None:
    source = timm_like()
    source["pos_embed"] = torch.randn(1, 6 * 6 * 4 + 3, WIDTH)  # class token and two registers
    patches, of_extras = split_positions(recognise(source))
    assert patches is not None
    assert of_extras is not None
    assert (len(patches), len(of_extras)) == (144, 3)
    assert any("147 positions are no cube's" in note for note in transfer(make_job(), Weights(source))[1].notes)


def test_a_code_one_longer_than_a_cube_is_all_of_patches_where_there_is_no_class_token() -> None:
    vit = quiet(ViT, 1, (16, 28, 4), (4, 4, 4), **SIZES)  # 4 x 7 x 1 = 27 + 1 patches
    patches, of_class = split_positions(recognise(dict(vit.state_dict())))
    assert patches is not None
    assert len(patches) == 28
    assert of_class is None


def test_separate_projections_are_put_together(make_job: MakeJob) -> None:
    source = dict(monai_vit().state_dict())
    for n in range(DEPTH):
        q, k, v = source.pop(f"blocks.{n}.attn.qkv.weight").chunk(3)
        source |= {f"blocks.{n}.attn.to_{name}.weight": t for name, t in (("q", q), ("k", k), ("v", v))}
    apart, report = transfer(make_job(), Weights(source))
    joint, _ = transfer(make_job(), Weights(dict(monai_vit().state_dict())))
    assert all(torch.equal(apart[name], joint[name]) for name in joint)
    partition(report, make_job(), source)


# ------------------------------------------------------------------------------------------------ channels and patches


@pytest.mark.parametrize("projection", ["conv", "perceptron"])
def test_a_named_channel_becomes_its_modalitys_first_layer_and_the_mean_that_of_others(
    make_job: MakeJob, projection: str
) -> None:
    vit = monai_vit(channels=3, proj_type=projection, pos_embed_type="none")
    source = dict(vit.state_dict())
    tensors, report = transfer(make_job(), Weights(source), channels=["T1", "FLAIR", "PET"])
    weight = next(t for name, t in source.items() if name.startswith("patch_embedding.patch_embeddings") and t.ndim > 1)
    kernel = kernel_of(weight, ["T1", "FLAIR", "PET"]).flatten(2)
    assert torch.equal(tensors["encoder.patch_embed.of.T1.weight"], kernel[:, 0])
    assert torch.equal(tensors["encoder.patch_embed.of.PET.weight"], kernel[:, 2])
    assert torch.allclose(tensors["encoder.patch_embed.of.CT.weight"], kernel.mean(1))
    assert report.origins["encoder.patch_embed.of.CT.weight"].how == "mean of 3 channels"
    # What the source makes of a volume in that channel alone:
    volumes = torch.randn(2, CROP, CROP, CROP)
    stacked = torch.stack([torch.zeros_like(volumes), torch.zeros_like(volumes), volumes], 1)
    with torch.no_grad():
        found = filled(make_job(), tensors).encoder.patch_embed(patchify(volumes, 4), torch.tensor([2, 2]))
        assert relative(found, vit.patch_embedding(stacked)) < 1e-5


@pytest.mark.parametrize(
    ("channels", "says"),
    [(["T1", "T1", "PET"], "T1 is named more than once"), (["t1", "FLAIR", "PET"], "'t1' is T1 in the job")],
)
def test_a_channel_is_named_once_and_as_the_job_does(make_job: MakeJob, channels: list[str], says: str) -> None:
    with pytest.raises(ConfigError, match=f"PM103 --channels: {says}"):
        transfer(make_job(), Weights(dict(monai_vit(channels=3).state_dict())), channels=channels)


def test_channels_that_the_job_does_not_have_are_told(make_job: MakeJob) -> None:
    weights = Weights(dict(monai_vit(channels=3).state_dict()))
    _, report = transfer(make_job(), weights, channels=["T1", "FLAIR", "PET"])
    assert [note for note in report.notes if note.startswith("channels")] == [
        "channels that are no modality of the job, used only in the mean: FLAIR"
    ]


@pytest.mark.parametrize(("options", "named"), [({"channels": ["CT"]}, "--channels"), ({"prefix": "x."}, "--prefix")])
def test_options_that_a_checkpoint_of_this_package_does_not_need_are_refused(
    make_job: MakeJob, options: dict[str, Any], named: str
) -> None:
    with pytest.raises(ConfigError, match=f"PM103 {named}: the source is a checkpoint of this package"):
        transfer(make_job(), Weights(initial_tensors(make_job())), **options)


def test_a_linear_embedding_that_may_have_several_channels_is_told(make_job: MakeJob) -> None:
    """8 channels of 4^3 are as many inputs as one of 8^3."""
    vit = monai_vit(channels=8, proj_type="perceptron", pos_embed_type="none")
    _, report = transfer(make_job(), Weights(dict(vit.state_dict())))
    assert any("fits 1 of 8^3 or 8 of 4^3" in note for note in report.notes)


def test_channels_must_be_named_one_by_one(make_job: MakeJob) -> None:
    with pytest.raises(ConfigError, match="PM103 2 channels were named, the source has 3"):
        transfer(make_job(), Weights(dict(monai_vit(channels=3).state_dict())), channels=["CT", "T1"])


def test_a_patch_embedding_is_resized_and_the_report_says_so(make_job: MakeJob) -> None:
    tensors, report = transfer(make_job(), Weights(dict(monai_vit(patch=8).state_dict())))
    assert tensors["encoder.patch_embed.of.CT.weight"].shape == (WIDTH, 64)
    assert report.names("resized") == [f"encoder.patch_embed.of.{m}.weight" for m in ("CT", "T1", "PET")]
    assert "patch 8x8x8 to 4" in report.origins["encoder.patch_embed.of.CT.weight"].how


# ------------------------------------------------------------------------------------------------- what is refused


def test_another_width_is_refused_naming_both(make_job: MakeJob) -> None:
    source = dict(monai_vit(hidden_size=48).state_dict())
    with pytest.raises(
        TrainingError, match=r"PM401 the source's width is 48, the job's 24; .* job\.model\.width to 48"
    ):
        transfer(make_job(), Weights(source))


ANOTHER_MLP = r"PM401 the source's mlp_width is 48, the job's 96; .* set job\.model\.mlp_width to 48"


def test_another_mlp_is_refused_naming_both_and_the_setting_that_takes_it(make_job: MakeJob) -> None:
    """MONAI's masked autoencoder has narrow ones by default."""
    source = dict(masked_autoencoder(mlp_dim=48).state_dict())
    with pytest.raises(TrainingError, match=ANOTHER_MLP):
        transfer(make_job(), Weights(source))
    job = make_job(model={**MODEL, "mlp_width": 48})
    tensors, report = transfer(job, Weights(source))
    partition(report, job, source)
    assert torch.equal(tensors["encoder.blocks.1.mlp.2.weight"], source["blocks.1.mlp.linear2.weight"])
    decoder = [name for name in tensors if name.startswith("objectives.") and name.endswith("mlp.0.weight")]
    assert {tuple(tensors[name].shape) for name in decoder} == {(96, 24)}, "decoders keep their own"


def test_an_encoder_of_pictures_is_refused(make_job: MakeJob) -> None:
    source = dict(quiet(ViT, 1, (16, 16), (4, 4), spatial_dims=2, **SIZES).state_dict())
    with pytest.raises(TrainingError, match=r"PM403 .* has 2 spatial dimensions"):
        transfer(make_job(), Weights(source))


def test_a_block_that_lacks_a_part_is_refused(make_job: MakeJob) -> None:
    source = dict(monai_vit().state_dict())
    del source["blocks.1.mlp.linear1.weight"]
    with pytest.raises(TrainingError, match=r"PM403 .* nothing for encoder\.blocks\.1\.mlp\.0"):
        transfer(make_job(), Weights(source))
    for n in range(DEPTH):  # the first part of a block is no more than the others
        source = {name: t for name, t in monai_vit().state_dict().items() if f"blocks.{n}.norm1" not in name}
        with pytest.raises(TrainingError, match=rf"PM403 .* nothing for encoder\.blocks\.{n}\.attention_norm"):
            transfer(make_job(), Weights(source))


def test_whole_numbers_are_no_weights(make_job: MakeJob) -> None:
    source = {name: t.to(torch.int8) for name, t in monai_vit().state_dict().items()}
    with pytest.raises(TrainingError, match="PM403 0 vision transformers"):
        transfer(make_job(), Weights(source))
    source = {**monai_vit().state_dict(), "batches": torch.tensor(3)}
    assert "batches" in transfer(make_job(), Weights(source))[1].left


def test_no_encoder_or_two_are_refused_and_a_prefix_chooses(make_job: MakeJob) -> None:
    with pytest.raises(TrainingError, match="PM403 0 vision transformers"):
        transfer(make_job(), Weights({"conv.weight": torch.ones(3)}))
    both = {f"{who}.{n}": t for s, who in enumerate(("student", "teacher")) for n, t in timm_like(seed=s).items()}
    with pytest.raises(TrainingError, match="PM403 2 vision transformers"):
        transfer(make_job(), Weights(both))
    chosen, report = transfer(make_job(), Weights(both), prefix="teacher.")
    alone, _ = transfer(make_job(), Weights(timm_like(seed=1)))
    assert all(torch.equal(chosen[name], alone[name]) for name in alone)
    assert {n for n in both if n.startswith("student.")} <= set(report.left)


# ------------------------------------------------------------------------------------------------------ our own weights


def own(job: JobConfig, seed: int = 9) -> dict[str, Tensor]:
    return initial_tensors(job.model_copy(update={"seed": seed}))


def equal(tensors: dict[str, Tensor], source: dict[str, Tensor], names: Sequence[str]) -> bool:
    return all(torch.equal(tensors[name], source[name]) for name in names)


def test_a_checkpoint_of_the_same_model_comes_back_whole(make_job: MakeJob) -> None:
    source = own(make_job())
    tensors, report = transfer(make_job(), Weights(source))
    assert equal(tensors, source, list(source))
    assert report.names("loaded") == list(source)
    assert not report.missing
    assert not report.left


def test_a_further_modality_starts_from_the_mean_of_the_others(make_job: MakeJob) -> None:
    source = own(make_job(modalities=["CT", "T1"]))
    job = make_job(modalities=["CT", "PET"])
    tensors, report = transfer(job, Weights(source))
    partition(report, job, source)
    for part in ("patch_embed.of.{}.weight", "patch_embed.of.{}.bias", "modality_token.of.{}.vector"):
        mean = (source["encoder." + part.format("CT")] + source["encoder." + part.format("T1")]) / 2
        assert torch.allclose(tensors["encoder." + part.format("PET")], mean)
        assert torch.equal(tensors["encoder." + part.format("CT")], source["encoder." + part.format("CT")])
    assert all("objectives." in name for name in report.missing)  # PET's decoder head


def test_another_patch_keeps_the_tokens_of_interpolated_patches(make_job: MakeJob) -> None:
    source = own(make_job(model={"patch": 2, "width": 24, "depth": 2, "heads": 2, "decoder_width": 24}))
    tensors, report = transfer(make_job(), Weights(source))
    partition(report, make_job(), source)
    patches = torch.randn(5, 1, 2, 2, 2)
    larger = nn.functional.interpolate(patches, size=(4, 4, 4), mode="trilinear").flatten(1)
    weight = "encoder.patch_embed.of.T1.weight"
    assert torch.allclose(patches.flatten(1) @ source[weight].T, larger @ tensors[weight].T, atol=1e-4)
    assert report.origins[weight].how == "patch 2 to 4"


@pytest.mark.parametrize(("theirs", "ours"), [(4, 2), (2, 4)])
def test_the_first_blocks_are_taken_where_depths_differ(make_job: MakeJob, theirs: int, ours: int) -> None:
    sizes = {"patch": 4, "width": 24, "heads": 2, "decoder_width": 24, "decoder_depth": 1}
    source = own(make_job(model={**sizes, "depth": theirs}))
    job = make_job(model={**sizes, "depth": ours})
    tensors, report = transfer(job, Weights(source))
    partition(report, job, source)
    both = [name for name in source if name in tensors]
    assert equal(tensors, source, both)
    assert sum("blocks" in name for name in (report.left if theirs > ours else report.missing)) == 2 * 18
    assert any("4 blocks" in note or "2 blocks" in note for note in report.notes)


def test_our_own_width_cannot_be_mapped_either(make_job: MakeJob) -> None:
    source = own(make_job(model={"patch": 4, "width": 36, "depth": 2, "heads": 2, "decoder_width": 24}))
    with pytest.raises(TrainingError, match="PM401 the source's width is 36, the job's 24"):
        transfer(make_job(), Weights(source))


@pytest.mark.parametrize(
    ("theirs", "refused"),
    [
        ({"heads": 4}, "PM401 the source's heads is 4, the job's 2; .* set job.model.heads to 4"),
        ({"mlp_width": 48}, ANOTHER_MLP),
    ],
)
def test_heads_and_mlps_of_our_own_cannot_be_mapped(make_job: MakeJob, theirs: dict[str, int], refused: str) -> None:
    """With other heads every matrix fits, and each row of it means something else."""
    source = own(make_job(model={**MODEL, **theirs}))
    with pytest.raises(TrainingError, match=refused):
        transfer(make_job(model=MODEL), Weights(source))
    transfer(make_job(model={**MODEL, **theirs}), Weights(source))


@pytest.mark.parametrize(("preset", "told"), [("tiny", False), ("small", True), ("unknown", False)])
def test_other_windows_are_told(make_job: MakeJob, preset: str, told: bool) -> None:
    meta = {"job": {"model": {"reach_mm": 16.0, "preset": preset}}}
    _, report = transfer(make_job(), Weights(own(make_job()), meta))
    note = "every 3 blocks one looks at all tokens at the source, every 2 in the job; job.model.preset: small keeps"
    assert len(report.notes) == told
    assert all(found.startswith(note) for found in report.notes)


def test_another_spacing_is_told(make_job: MakeJob) -> None:
    meta = {"preparation": {"spacing_mm": [1.0, 1.0, 1.0]}}
    _, report = transfer(make_job(), Weights(own(make_job()), meta))
    assert report.notes == ("the source's spacing is [1.0, 1.0, 1.0] mm, the job's [3.0, 3.0, 3.0] mm",)


@pytest.mark.parametrize(
    ("theirs", "note"),
    [
        ({"reach_mm": 16.0}, None),
        ({"reach_mm": 32.0}, "with a reach of 32 mm at the source and with a reach of 16 mm in the job"),
        ({"reach_mm": None}, "not at all at the source"),
        ({}, "job.model.reach_mm: null keeps"),
    ],
)
def test_another_reach_is_told(make_job: MakeJob, theirs: dict[str, float | None], note: str | None) -> None:
    meta = {"job": {"model": theirs}}
    _, report = transfer(make_job(), Weights(own(make_job()), meta))
    assert len(report.notes) == (note is not None)
    assert all(note in found for found in report.notes)
