"""Held-out losses: fixed batches, the objectives' own losses, and nothing left behind."""

from collections.abc import Callable

import pytest
import torch

from memory_volumes import memory_patients
from parametrium.config import JobConfig
from parametrium.training.held_out import HeldOutLoss
from parametrium.training.step import new_state, step_generator, train_step

MakeJob = Callable[..., JobConfig]
CPU = torch.device("cpu")
KINDS = ("masked_reconstruction", "cross_modal_reconstruction", "soft_contrastive")
SETS = [["CT", "T1"]] * 5


def job_of(make_job: MakeJob, **changes: object) -> JobConfig:
    late = [{"kind": kind, "start": 0.5 if kind == "soft_contrastive" else 0.0} for kind in KINDS]
    return make_job(**{"objectives": late, "precision": "fp32", **changes})


def test_every_objective_is_measured_also_one_whose_turn_has_not_come(make_job: MakeJob) -> None:
    job = job_of(make_job)
    state = new_state(job, CPU)
    found = HeldOutLoss(memory_patients(SETS), job, "a", state.model).measure(state)
    assert set(found) == {f"evaluation/loss/{kind}" for kind in KINDS}


def test_a_loss_is_the_objectives_own_on_fixed_batches(make_job: MakeJob) -> None:
    job = job_of(make_job, objectives=[{"kind": "masked_reconstruction"}])
    state = new_state(job, CPU)
    held_out = HeldOutLoss(memory_patients(SETS), job, "a", state.model)
    objective, total, samples = state.model.eval().objective(KINDS[0]), 0.0, 0
    for step in range(4):
        batch = held_out.loader[step]["aligned"]  # type: ignore[index]
        outcome = objective(state.model.encoder, batch, step_generator(job.seed, "a, held out", step, KINDS[0]))
        total, samples = total + float(outcome.loss.detach()) * outcome.samples, samples + outcome.samples
    assert held_out.measure(state) == {f"evaluation/loss/{KINDS[0]}": pytest.approx(total / samples)}


def test_only_the_model_differs_between_two_measurements(make_job: MakeJob) -> None:
    job = job_of(make_job)
    state = new_state(job, CPU)
    held_out = HeldOutLoss(memory_patients(SETS), job, "a", state.model)
    before = held_out.measure(state)
    assert all(parameter.grad is None for parameter in state.model.parameters())
    torch.manual_seed(9)
    assert held_out.measure(state) == before
    assert HeldOutLoss(memory_patients(SETS), job, "a", state.model).measure(state) == before
    assert HeldOutLoss(memory_patients(SETS), job, "b", state.model).measure(state) != before
    train_step(state, held_out.loader[0], job, "a")  # type: ignore[index]
    assert held_out.measure(state) != before


def test_training_in_between_changes_no_draw_of_an_objective(make_job: MakeJob) -> None:
    """Isotropy draws its directions by the step, and a site that was started again has not trained yet."""
    job = job_of(make_job, objectives=[{"kind": "global_local"}])
    state = new_state(job, CPU)
    held_out = HeldOutLoss(memory_patients(SETS), job, "a", state.model)
    before = held_out.measure(state)
    weights = {name: tensor.clone() for name, tensor in state.model.state_dict().items()}
    for step in range(2):
        train_step(state, held_out.loader[step], job, "a")  # type: ignore[index]
    state.model.load_state_dict(weights)
    assert held_out.measure(state) == before != {}


def test_what_cannot_be_measured_is_left_out(make_job: MakeJob) -> None:
    job = job_of(make_job)
    state = new_state(job, CPU)
    assert HeldOutLoss([], job, "a", state.model).measure(state) == {}
    alone = HeldOutLoss(memory_patients([["CT"]]), job, "a", state.model).measure(state)
    assert set(alone) == {"evaluation/loss/masked_reconstruction"}
    with torch.no_grad():
        state.model.encoder.norm.weight.fill_(torch.nan)
    assert HeldOutLoss(memory_patients(SETS), job, "a", state.model).measure(state) == {}
