"""Latent prediction against loops, its teacher kept apart, and who is counted (METHODS 4.3, 5.1, 5.3)."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from parametrium.config import JobConfig
from parametrium.data.batch import Batch, CropRequest
from parametrium.model.modality import tensor_owners
from parametrium.model.patch_embed import patchify
from parametrium.model.position import grid_positions
from parametrium.objectives import prediction
from parametrium.objectives.block_masks import BlockMasks, draw_block_masks
from parametrium.objectives.prediction import LatentPrediction, spread_of
from parametrium.objectives.registry import PretrainingModel, build_model
from parametrium.training.step import new_state, train_step

MakeJob = Callable[..., JobConfig]
MakeBatch = Callable[..., Batch]

PATCH, GRID = 4, (4, 4, 4)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def begun(make_job: MakeJob, **settings: Any) -> tuple[PretrainingModel, LatentPrediction]:
    model = build_model(make_job(objectives=[{"kind": "latent_prediction", **settings}])).eval()
    objective = model.objective("latent_prediction")
    assert isinstance(objective, LatentPrediction)
    objective.begin_round(model.encoder, 0)
    return model, objective


def masks_of(batch: Batch, objective: LatentPrediction) -> BlockMasks:
    config = objective.config
    masks = draw_block_masks(
        len(batch.images), GRID, config.targets, config.target_scale, config.context_scale, seeded()
    )
    assert masks is not None
    return masks


def ragged_body(batch: Batch) -> Batch:
    """A body that ends within some patches and is absent in others."""
    batch.body[:, 6:, :9] = False
    batch.body[0, :, 3:] = False
    return batch


def test_it_asks_for_any_crops(make_job: MakeJob) -> None:
    assert begun(make_job)[1].request(4, 1) == CropRequest("aligned", 4, 1)


def test_before_the_first_round_there_is_no_teacher(make_job: MakeJob, make_batch: MakeBatch) -> None:
    model = build_model(make_job(objectives=[{"kind": "latent_prediction"}]))
    with pytest.raises(RuntimeError, match="begin_round"):
        model.objective("latent_prediction")(model.encoder, make_batch([[0]]), seeded())


@torch.no_grad()
def test_the_loss_equals_a_loop_over_blocks_and_patches(make_job: MakeJob, make_batch: MakeBatch) -> None:
    model, objective = begun(make_job)
    with torch.no_grad():
        for parameter in model.encoder.parameters():  # the student has moved on since the round began
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=seeded(1)))
    batch = ragged_body(make_batch([[0, 1], [2]]))
    outcome = objective(model.encoder, batch, seeded())
    masks = masks_of(batch, objective)
    body = patchify(batch.body, PATCH).double().mean(-1)
    places = grid_positions((16, 16, 16), PATCH, (3.0, 3.0, 3.0))
    errors, wanted = [], []
    for row in range(3):
        image, modality = batch.images[row, None], batch.modality[row, None]
        seen = model.encoder.encode(image, modality, (3.0, 3.0, 3.0), masks.context[row, None]).patches
        taught = objective.teacher.patches(image, modality, (3.0, 3.0, 3.0))[0]
        for block in masks.blocks[row]:
            answer = objective.predictor(seen, places[masks.context[row]][None], places[block][None, None])[0, 0]
            for n, patch in enumerate(block.tolist()):
                if body[row, patch] < 0.2:
                    continue
                feature = taught[patch].double()
                target = (feature - feature.mean()) / (feature.var(unbiased=False) + 1e-5).sqrt()
                wanted.append(target)
                for difference in (answer[n].double() - target).abs().tolist():
                    errors.append(difference**2 / 2 if difference < 1 else difference - 0.5)
    assert len(wanted) > 20
    assert float(outcome.loss) == pytest.approx(sum(errors) / len(errors), rel=1e-4)
    stacked = torch.stack(wanted)
    away = (stacked - stacked.mean(0)).abs()
    chance = torch.where(away < 1, away.square() / 2, away - 0.5).mean()
    assert outcome.scalars["chance"] == pytest.approx(float(chance), rel=1e-4)


@torch.no_grad()
def test_hidden_voxels_do_not_reach_the_prediction(make_job: MakeJob, make_batch: MakeBatch) -> None:
    model, objective = begun(make_job)
    answers: list[Tensor] = []
    objective.predictor.register_forward_hook(lambda module, inputs, output: answers.append(output))
    batch = make_batch([[0, 1]])
    masks = masks_of(batch, objective)
    shown = torch.zeros(2, 64, dtype=torch.bool).scatter_(1, masks.context, True)
    voxels = shown.reshape(2, *GRID)
    for axis in (1, 2, 3):
        voxels = voxels.repeat_interleave(PATCH, axis)
    noise = torch.randn(batch.images.shape, generator=seeded(9))
    objective(model.encoder, batch, seeded())
    objective(model.encoder, replace(batch, images=torch.where(voxels, batch.images, noise)), seeded())
    objective(model.encoder, replace(batch, images=torch.where(voxels, noise, batch.images)), seeded())
    assert torch.equal(answers[0], answers[1])
    assert not torch.allclose(answers[0], answers[2])


@torch.no_grad()
def test_blocks_do_not_see_each_other(make_job: MakeJob, make_batch: MakeBatch) -> None:
    _, objective = begun(make_job)
    context, context_mm = torch.randn(1, 9, 24, generator=seeded()), torch.randn(1, 9, 3, generator=seeded(1))
    block_mm = 20 * torch.randn(1, 3, 5, 3, generator=seeded(2))
    together = objective.predictor(context, context_mm, block_mm)
    alone = objective.predictor(context, context_mm, block_mm[:, 1:2])
    assert torch.allclose(together[:, 1:2], alone, atol=1e-5)
    assert not torch.allclose(together[:, 0], together[:, 1], atol=1e-3), "mask tokens know their places"


def test_targets_are_normalised_tokens_without_gradient(make_job: MakeJob, make_batch: MakeBatch) -> None:
    _, objective = begun(make_job)
    batch = make_batch([[0, 1]])
    targets = objective.targets(batch.images, batch.modality)
    assert targets.shape == (2, 64, 24)
    assert not targets.requires_grad
    assert torch.allclose(targets.mean(-1), torch.zeros(2, 64), atol=1e-5)
    assert torch.allclose(targets.std(-1, unbiased=False), torch.ones(2, 64), atol=1e-3)


def test_the_teacher_is_a_copy_and_no_part_of_the_model(make_job: MakeJob, make_batch: MakeBatch) -> None:
    """In the first round of a published system teacher and student were one object (METHODS 5.1)."""
    job = make_job(objectives=[{"kind": "latent_prediction"}], precision="fp32")
    state = new_state(job, torch.device("cpu"))
    objective = state.model.objective("latent_prediction")
    assert isinstance(objective, LatentPrediction)
    names = {name for name, _ in state.model.named_parameters()}
    objective.begin_round(state.model.encoder, 0)
    own = dict(state.model.encoder.named_parameters())
    before = {name: tensor.clone() for name, tensor in objective.kept().items()}
    assert before.keys() == own.keys()
    for name, tensor in objective.kept().items():
        assert torch.equal(tensor, own[name])
        assert tensor.data_ptr() != own[name].data_ptr()
        assert not tensor.requires_grad
    assert {name for name, _ in state.model.named_parameters()} == names == set(state.model.state_dict())
    assert not any("teacher" in name for name in names)
    assert not list(state.model.named_buffers())
    train_step(state, {"aligned": make_batch([[0, 1], [2]])}, job, "alpha")
    assert all(torch.equal(tensor, before[name]) for name, tensor in objective.kept().items())
    changed = [n for n, p in state.model.encoder.named_parameters() if not torch.equal(p.detach(), before[n])]
    assert len(changed) == len(own)


def test_the_teacher_does_not_drop_paths(make_job: MakeJob, make_batch: MakeBatch) -> None:
    job = make_job(objectives=[{"kind": "latent_prediction"}], model={"preset": "small", "patch": 8, "depth": 2})
    model = build_model(job).train()
    objective = model.objective("latent_prediction")
    assert isinstance(objective, LatentPrediction)
    objective.begin_round(model.encoder, 0)
    batch = make_batch([[0], [0]])
    first, second = (objective.targets(batch.images, batch.modality) for _ in range(2))
    assert torch.equal(first, second)
    assert model.encoder.training


@torch.no_grad()
def test_spread_shows_a_teacher_that_tells_places_but_not_patients(make_job: MakeJob, make_batch: MakeBatch) -> None:
    model, objective = begun(make_job)
    batch = make_batch([[0], [0], [0]])
    healthy = objective(model.encoder, batch, seeded()).scalars
    features = objective.targets(batch.images, batch.modality).double()
    assert healthy["spread"] == pytest.approx(float(features.var(0, unbiased=True).sqrt().mean()), rel=1e-4)
    assert healthy["spread"] > 0.1
    blind = objective.kept()
    blind["patch_embed.of.CT.weight"].zero_()
    collapsed = objective(model.encoder, batch, seeded()).scalars
    assert collapsed["spread"] < 1e-3
    assert collapsed["chance"] > 0.05
    assert "spread" not in objective(model.encoder, make_batch([[0]]), seeded()).scalars


@torch.no_grad()
def test_spread_is_that_within_a_modality(make_job: MakeJob, make_batch: MakeBatch) -> None:
    """A teacher that tells CT from T1 and nothing else has collapsed."""
    model, objective = begun(make_job)
    batch = make_batch([[0, 1], [0, 1]])
    kept = objective.kept()
    for modality in ("CT", "T1"):
        kept[f"patch_embed.of.{modality}.weight"].zero_()
    assert float(objective.targets(batch.images, batch.modality).std(0).mean()) > 1e-2
    assert objective(model.encoder, batch, seeded()).scalars["spread"] < 1e-3
    assert spread_of(torch.randn(3, 2, 5), torch.tensor([0, 1, 2])) is None
    features = torch.randn(5, 2, 3)
    by_hand = (2 * features[[0, 2]].std(0).mean() + 3 * features[[1, 3, 4]].std(0).mean()) / 5
    assert spread_of(features, torch.tensor([0, 1, 0, 1, 1])) == pytest.approx(float(by_hand))


def touched(model: PretrainingModel) -> set[str]:
    names = {n for n, p in model.named_parameters() if p.grad is not None and bool(p.grad.any())}
    model.zero_grad(set_to_none=True)
    return names


@pytest.mark.parametrize("sets", [[[0, 1], [2], [1, 2, 0]], [[0], [0]]])
def test_contributions_count_the_crops_with_a_gradient_path(
    make_job: MakeJob, make_batch: MakeBatch, monkeypatch: pytest.MonkeyPatch, sets: list[list[int]]
) -> None:
    model, objective = begun(make_job)
    batch = ragged_body(make_batch(sets))
    batch.body[-1] = False
    every = prediction.counting_patches
    expected: Counter[str] = Counter()
    for row in range(len(batch.images)):

        def only(body: Tensor, row: int = row) -> Tensor:
            return every(body) & (torch.arange(len(body)) == row)[:, None]

        monkeypatch.setattr(prediction, "counting_patches", only)
        outcome = objective(model.encoder, batch, seeded())
        if outcome is not None:
            outcome.loss.backward()
            expected.update(touched(model))
    monkeypatch.setattr(prediction, "counting_patches", every)
    outcome = objective(model.encoder, batch, seeded())
    outcome.loss.backward()
    owners = tensor_owners(model)
    assert {name: outcome.contribution(owners[name]) for name in touched(model)} == expected
    assert outcome.samples == len(batch.images) - 1
    assert not outcome.decoded


def test_without_body_there_is_nothing_to_predict(make_job: MakeJob, make_batch: MakeBatch) -> None:
    model, objective = begun(make_job)
    batch = make_batch([[0, 1]])
    batch.body[:] = False
    assert objective(model.encoder, batch, seeded()) is None


def test_it_learns_to_predict(make_job: MakeJob, make_batch: MakeBatch) -> None:
    """Waves with another phase in every crop: what is hidden follows from what is shown."""
    job = make_job(
        objectives=[{"kind": "latent_prediction"}],
        precision="fp32",
        optimiser={"learning_rate": 5e-3},
        rounds=1,
        local_steps=240,
    )
    state = new_state(job, torch.device("cpu"))
    state.model.objective("latent_prediction").begin_round(state.model.encoder, 0)
    batch = make_batch([[0, 0], [0, 0], [0, 0]])
    d, h, w = torch.meshgrid(*[torch.linspace(0, 3, 16)] * 3, indexing="ij")
    generator, ratios = seeded(4), []
    for _ in range(240):
        phase = 6 * torch.rand(6, 1, 1, 1, generator=generator)
        waves = replace(batch, images=2 * torch.sin(d + h + w + phase))
        report = train_step(state, {"aligned": waves}, job, "alpha")
        ratios.append(report.losses["latent_prediction"] / report.scalars["chance/latent_prediction"])
    assert sum(ratios[-20:]) / 20 < 0.9
