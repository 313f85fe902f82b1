"""One step: what is trained, what is counted, and that nothing moves when something is not finite."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from memory_volumes import memory_patients
from parametrium.config import JobConfig
from parametrium.data.batch import Batch
from parametrium.data.loader import Batches, CropLoader
from parametrium.errors import TrainingError
from parametrium.objectives.registry import OBJECTIVES
from parametrium.objectives.schedule import CropPlan
from parametrium.training.optim import learning_rate
from parametrium.training.step import TrainState, autocast, new_state, step_generator, train_step

MakeJob = Callable[..., JobConfig]
MakeBatch = Callable[..., Batch]

CPU = torch.device("cpu")
KINDS = ["masked_reconstruction", "cross_modal_reconstruction", "soft_contrastive"]


def three(make_job: MakeJob, **changes: Any) -> JobConfig:
    weights = (1.0, 0.5, 0.25)
    objectives: list[dict[str, Any]] = [
        {"kind": kind, "weight": weight} for kind, weight in zip(KINDS, weights, strict=True)
    ]
    objectives[2]["crops"] = 1
    return make_job(**{"objectives": objectives, "precision": "fp32", **changes})


def batches_of(state: TrainState, job: JobConfig, sets: list[list[str]], step: int = 0) -> Batches:
    return CropLoader(memory_patients(sets), job, "alpha", CropPlan(job, state.model))[step]


def copies(state: TrainState) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in state.model.named_parameters()}


def moved(state: TrainState, before: dict[str, Tensor]) -> set[str]:
    return {name for name, p in state.model.named_parameters() if not torch.equal(p, before[name])}


PAIRED = [["CT", "T1"]] * 4


def test_a_step_moves_exactly_what_it_counts(make_job: MakeJob) -> None:
    job = three(make_job, schedule="summed")
    state = new_state(job, CPU)
    before = copies(state)
    report = train_step(state, batches_of(state, job, PAIRED), job, "alpha")
    assert moved(state, before) == report.contributions.keys()
    assert state.step == 1
    assert not any("PET" in name for name in report.contributions)
    assert set(report.losses) == set(KINDS)
    assert set(report.scalars) == {"chance/soft_contrastive"}


def test_contributions_of_a_summed_step_are_the_sums_of_its_objectives(make_job: MakeJob) -> None:
    job = three(make_job, schedule="summed", batch={"patients": 4})
    state = new_state(job, CPU)
    counts = train_step(state, batches_of(state, job, PAIRED), job, "alpha").contributions
    # Four patients with two crops each: 8 masked, 8 cross-modal (each shows or fills both), 8 contrasted.
    assert counts["encoder.blocks.0.mlp.0.weight"] == 24
    assert counts["encoder.patch_embed.of.CT.weight"] == 4 + 8 + 4
    assert counts["encoder.modality_token.of.T1.vector"] == 4 + 8 + 4
    assert counts["objectives.masked_reconstruction.decoder.to_voxels.of.CT.weight"] == 4
    assert counts["objectives.cross_modal_reconstruction.decoder.to_voxels.of.T1.bias"] == 4
    assert counts["objectives.cross_modal_reconstruction.decoder.context.weight"] == 8
    assert counts["objectives.soft_contrastive.projector.1.weight"] == 8
    assert counts["objectives.soft_contrastive.log_scale"] == 8


@pytest.mark.parametrize("step", [0, 1, 2])
def test_a_cyclic_step_leaves_the_other_objectives_alone(make_job: MakeJob, step: int) -> None:
    job = three(make_job)
    state = new_state(job, CPU)
    state.step = step
    before = copies(state)
    report = train_step(state, batches_of(state, job, PAIRED, step), job, "alpha")
    heads = {name.split(".")[1] for name in moved(state, before) if name.startswith("objectives.")}
    assert heads == {KINDS[step]} == set(report.losses)
    assert moved(state, before) == report.contributions.keys()


def test_an_absent_modality_stays_bit_identical_after_it_was_trained_once(make_job: MakeJob) -> None:
    job = make_job(precision="fp32", optimiser={"weight_decay": 0.5})
    state = new_state(job, CPU)
    train_step(state, batches_of(state, job, PAIRED), job, "alpha")
    before = copies(state)
    train_step(state, batches_of(state, job, [["T1"]] * 4), job, "alpha")
    private = {name for name, owner in state.owners.items() if owner.modality == "CT"}
    assert private
    assert not private & moved(state, before)
    assert {name for name, owner in state.owners.items() if owner.modality == "T1"} <= moved(state, before)


def test_a_summed_gradient_is_the_weighted_sum_of_single_ones(make_job: MakeJob) -> None:
    # Plain gradients: clipping and the optimiser are taken out, what remains in ``grad`` is the step's own.
    job = three(make_job, schedule="summed", optimiser={"clip_norm": 1e9})
    state = new_state(job, CPU)
    batches = batches_of(state, job, PAIRED)
    expected: dict[str, Tensor] = {}
    for config in job.objectives:
        objective = state.model.objective(config.kind)
        generator = step_generator(job.seed, "alpha", 0, config.kind)
        outcome = objective(state.model.encoder, batches[objective.request(1, 1).layout], generator)
        named = dict(state.model.named_parameters())
        gradients = torch.autograd.grad(outcome.loss, list(named.values()), allow_unused=True)
        for name, gradient in zip(named, gradients, strict=True):
            if gradient is not None:
                expected[name] = expected.get(name, 0) + config.weight * gradient
    report = train_step(state, batches, job, "alpha")
    found = {name: p.grad for name, p in state.model.named_parameters() if p.grad is not None}
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        assert torch.allclose(gradient, expected[name], rtol=1e-4, atol=1e-7), name
    by_hand = sum(float(gradient.double().square().sum()) for gradient in expected.values()) ** 0.5
    assert report.gradient_norm == pytest.approx(by_hand, rel=1e-4)


def test_the_gradient_is_clipped_and_its_norm_is_that_before_clipping(make_job: MakeJob) -> None:
    job = make_job(precision="fp32", optimiser={"clip_norm": 1e-3})
    state = new_state(job, CPU)
    report = train_step(state, batches_of(state, job, PAIRED), job, "alpha")
    clipped = sum(float(p.grad.square().sum()) for p in state.model.parameters() if p.grad is not None) ** 0.5
    assert report.gradient_norm > 1e-2
    assert clipped == pytest.approx(1e-3, rel=1e-2)


def test_the_rate_is_that_of_the_global_step(make_job: MakeJob) -> None:
    job = make_job(precision="fp32", rounds=10)
    state = new_state(job, CPU)
    state.step = 17
    train_step(state, batches_of(state, job, PAIRED, 17), job, "alpha")
    expected = learning_rate(17, 40, job.optimiser)
    adamw, (muon,) = ([group["lr"] for group in part.param_groups] for part in state.optimiser.parts)
    assert set(adamw) == {expected}
    assert muon == pytest.approx(expected * 0.02 / 1e-3)


@pytest.mark.parametrize("schedule", ["cyclic", "summed"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("kind", KINDS)
def test_a_bad_voxel_stops_the_step_by_name_before_anything_moves(
    make_job: MakeJob, schedule: str, value: float, kind: str
) -> None:
    job = make_job(objectives=[{"kind": kind}], schedule=schedule, precision="fp32")
    state = new_state(job, CPU)
    train_step(state, batches_of(state, job, PAIRED), job, "alpha")  # the optimiser has moments by now
    batches = batches_of(state, job, PAIRED, 1)
    for batch in batches.values():
        batch.images[0] = value
    before = copies(state)
    moments = {
        name: {key: slot.clone() for key, slot in state.optimiser.state[p].items()}
        for name, p in state.model.named_parameters()
        if p in state.optimiser.state
    }
    with pytest.raises(TrainingError, match=rf"PM402 .*{kind}.* step 1;"):
        train_step(state, batches, job, "alpha")
    assert not moved(state, before)
    for name, p in state.model.named_parameters():
        for key, slot in moments.get(name, {}).items():
            assert torch.equal(state.optimiser.state[p][key], slot)
    assert state.step == 1


@pytest.mark.parametrize("where", ["visible", "masked", "uncounted"])
def test_not_even_a_voxel_that_counts_nowhere_may_be_nan(make_job: MakeJob, make_batch: MakeBatch, where: str) -> None:
    from parametrium.model.masking import draw_mask

    job = make_job(precision="fp32")
    state = new_state(job, CPU)
    batch = make_batch([[0], [1]])
    visible, masked = draw_mask(2, (4, 4, 4), 0.75, step_generator(job.seed, "alpha", 0, KINDS[0]))
    patch = int((visible if where == "visible" else masked)[0, 0])
    box = tuple(slice(4 * n, 4 * n + 4) for n in (patch // 16, patch // 4 % 4, patch % 4))
    batch.images[0][box] = float("nan")
    if where == "uncounted":
        batch.body[0][box] = False
    before = copies(state)
    with pytest.raises(TrainingError, match=r"PM402 .*masked_reconstruction.* step 0;"):
        train_step(state, {"aligned": batch}, job, "alpha")
    assert not moved(state, before)


def test_a_gradient_that_overflows_is_named(make_job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    job = make_job(precision="fp32")
    state = new_state(job, CPU)
    objective = state.model.objective(KINDS[0])
    forward = type(objective).forward

    def explosive(self: Any, *arguments: Any) -> Any:
        outcome = forward(self, *arguments)
        # A finite loss whose gradient is infinite: the root at zero.
        return replace(outcome, loss=outcome.loss + (self.decoder.mask_token[0] * 0).sqrt())

    monkeypatch.setattr(type(objective), "forward", explosive)
    before = copies(state)
    with pytest.raises(TrainingError, match=r"PM402 the gradient of masked_reconstruction .* step 0;"):
        train_step(state, batches_of(state, job, PAIRED), job, "alpha")
    assert not moved(state, before)


def test_a_step_with_nothing_to_train_moves_nothing_but_the_step(make_job: MakeJob) -> None:
    job = make_job(objectives=[{"kind": "cross_modal_reconstruction"}], precision="fp32")
    state = new_state(job, CPU)
    before = copies(state)
    report = train_step(state, batches_of(state, job, [["CT"], ["T1"]]), job, "alpha")
    assert (report.losses, report.samples, report.gradient_norm) == ({}, 0, 0.0)
    assert not report.contributions
    assert not moved(state, before)
    assert state.step == 1


def test_a_missing_layout_is_skipped(make_job: MakeJob) -> None:
    job = three(make_job, schedule="summed")
    state = new_state(job, CPU)
    report = train_step(state, batches_of(state, job, [["CT", "T1"]]), job, "alpha")
    assert set(report.losses) == set(KINDS[:2])


def test_two_trainers_take_the_same_step_to_the_bit(make_job: MakeJob) -> None:
    job = three(make_job, schedule="summed")
    states = []
    for noise in (0, 1):
        torch.manual_seed(noise)
        state = new_state(job, CPU)
        torch.rand(3 + noise)
        train_step(state, batches_of(state, job, PAIRED), job, "alpha")
        states.append(copies(state))
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_masks_differ_by_seed_site_step_and_purpose() -> None:
    arguments = [(0, "a", 0, "x"), (1, "a", 0, "x"), (0, "b", 0, "x"), (0, "a", 1, "x"), (0, "a", 0, "y")]
    draws = {tuple(torch.rand(4, generator=step_generator(*a)).tolist()) for a in arguments}
    assert len(draws) == 5
    assert torch.equal(
        torch.rand(4, generator=step_generator(0, "a", 0, "x")), torch.rand(4, generator=step_generator(0, "a", 0, "x"))
    )


def test_drop_path_draws_from_numbers_of_its_own() -> None:
    """It uses the global generator; with the mask's seed the same numbers would decide over both."""
    drawn = torch.rand(64, generator=step_generator(0, "a", 0, "x"))
    dropped = torch.rand(64)
    assert not torch.equal(drawn, dropped)
    assert abs(float(torch.corrcoef(torch.stack([drawn, dropped]))[0, 1])) < 0.5
    torch.manual_seed(5)
    step_generator(0, "a", 0, "x")
    assert torch.equal(torch.rand(64), dropped)
    step_generator(0, "a", 1, "x")
    assert not torch.equal(torch.rand(64), dropped)


def all_there(make_job: MakeJob, kind: str, extent: int) -> tuple[JobConfig, TrainState, CropLoader]:
    """A site that has whatever an objective may need, before its first step."""
    settings: dict[str, Any] = {"text_contrastive": {"channels": 4, "crops": 1}}.get(kind, {})
    objectives = [{"kind": kind, **settings}]
    if kind == "modality_contrastive":
        objectives.append({"kind": "template_reconstruction"})
    batch = {"patients": 6, "volumes_per_patient": 3}
    job = make_job(objectives=objectives, crop=[extent] * 3, precision="fp32", batch=batch, schedule="summed")
    state = new_state(job, CPU)
    for objective in objectives:
        state.model.objective(objective["kind"]).begin_round(state.model.encoder, 0)
    texts = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    patients = [
        replace(patient, text=text)
        for patient, text in zip(memory_patients([["CT", "T1", "PET"]] * 6), texts, strict=True)
    ]
    return job, state, CropLoader(patients, job, "alpha", CropPlan(job, state.model))


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_the_gradient_of_an_objective_is_the_slope_of_its_loss(make_job: MakeJob, kind: str) -> None:
    """By a step up and a step down along it; over several windows, with the draws of masks and places held fast."""
    _, state, loader = all_there(make_job, kind, 20)
    objective = state.model.eval().objective(kind)
    batch = loader[0][objective.request(1, 1).layout]

    def loss() -> Tensor:
        outcome = objective(state.model.encoder, batch, step_generator(0, "alpha", 0, kind))
        assert outcome is not None
        return outcome.loss

    loss().backward()
    moved = [(p, p.grad.clone()) for p in state.model.parameters() if p.grad is not None]
    norm = sum(float(gradient.double().square().sum()) for _, gradient in moved) ** 0.5
    values = []
    with torch.no_grad():
        for length in (2e-3, -4e-3):  # up, and from there as far below
            for parameter, gradient in moved:
                parameter.add_(gradient, alpha=length / norm)
            values.append(float(loss()))
    assert (values[0] - values[1]) / 4e-3 == pytest.approx(norm, rel=0.03)


@pytest.mark.parametrize("extent", [16, 20])  # one window; windows of 3 and 2 patches along each axis
@pytest.mark.parametrize("kind", OBJECTIVES)
def test_no_tensor_of_an_objective_is_dead(make_job: MakeJob, kind: str, extent: int) -> None:
    """A tensor without gradient at a site that holds every modality would travel and never be trained."""
    job, state, loader = all_there(make_job, kind, extent)
    seen: set[str] = set()
    for step in range(4):
        seen |= train_step(state, loader[step], job, "alpha").contributions.keys()
    # Synthesis reads the outputs of blocks and scales them itself; the norm behind the last one is for pooled features.
    unread = {"encoder.norm.weight", "encoder.norm.bias"} if kind == "cross_modal_synthesis" else set()
    assert seen == dict(state.model.named_parameters()).keys() - unread


def test_bf16_is_used_only_when_asked_for_or_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    for precision, expected in (("fp32", False), ("auto", False), ("bf16", True)):
        with autocast(precision, CPU):
            assert torch.is_autocast_enabled("cpu") is expected
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    with autocast("auto", CPU):
        assert torch.is_autocast_enabled("cpu")
