"""A round: what it reports is what it did, and an interruption changes nothing (METHODS 5.3, 9.11)."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cohort_files import small_cohort
from memory_volumes import memory_patients
from parametrium.config import JobConfig, SiteConfig
from parametrium.data.loader import CropLoader
from parametrium.errors import TrainingError
from parametrium.objectives.registry import initial_tensors
from parametrium.objectives.schedule import CropPlan
from parametrium.site.trainer import SiteTrainer
from parametrium.training.aggregation import aggregate
from parametrium.training.checkpoint import load_checkpoint, save_checkpoint
from parametrium.training.optim import learning_rate
from parametrium.training.round import set_tensors, tensors_of, train_round
from parametrium.training.step import TrainState, new_state, train_step
from parametrium.training.update import Update, check_update

MakeJob = Callable[..., JobConfig]

CPU = torch.device("cpu")
KINDS = ["masked_reconstruction", "cross_modal_reconstruction", "soft_contrastive"]
SETS = [["CT", "T1"]] * 3 + [["CT"]]


def three(make_job: MakeJob, **changes: Any) -> JobConfig:
    return make_job(**{"objectives": [{"kind": kind} for kind in KINDS], "precision": "fp32", **changes})


def trainer(job: JobConfig, sets: list[list[str]] | None = None) -> tuple[TrainState, CropLoader]:
    state = new_state(job, CPU)
    return state, CropLoader(memory_patients(sets or SETS), job, "alpha", CropPlan(job, state.model))


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_the_differences_are_after_minus_before_to_the_bit(make_job: MakeJob) -> None:
    job = three(make_job)
    state, loader = trainer(job)
    before = tensors_of(state)
    update = train_round(state, loader, job, "alpha", 0)
    after = tensors_of(state)
    for name in before:
        if name in update.tensors:
            assert torch.equal(update.tensors[name], after[name] - before[name])
            assert not torch.equal(after[name], before[name])
        else:
            assert torch.equal(after[name], before[name])
    check_update(update, before, round_number=0)
    assert not any("PET" in name for name in update.tensors)


def test_a_round_is_its_steps(make_job: MakeJob) -> None:
    job = three(make_job, local_steps=5)
    state, loader = trainer(job)
    update = train_round(state, loader, job, "alpha", 1)
    other, _ = trainer(job)
    other.step = 5
    reports = [train_step(other, batches, job, "alpha") for batches in loader.steps(5, 10)]
    assert same(tensors_of(state), tensors_of(other))
    assert state.step == other.step == 10
    assert update.samples == sum(report.samples for report in reports)
    for name in update.tensors:
        assert update.contributions[name] == sum(report.contributions[name] for report in reports)
        assert update.steps[name] == sum(name in report.contributions for report in reports)
    assert update.contributions.keys() == update.steps.keys() == update.tensors.keys()
    for kind in KINDS:
        losses = [report.losses[kind] for report in reports if kind in report.losses]
        assert update.scalars[f"train/loss/{kind}"] == pytest.approx(sum(losses) / len(losses))
    norms = [report.gradient_norm for report in reports]
    assert update.scalars["train/gradient_norm"] == pytest.approx(sum(norms) / 5)
    assert update.scalars["train/samples"] == update.samples
    assert "train/chance/soft_contrastive" in update.scalars


def test_a_decoder_whose_turn_did_not_come_is_not_in_the_update(make_job: MakeJob) -> None:
    job = three(make_job, local_steps=2)
    state, loader = trainer(job)
    update = train_round(state, loader, job, "alpha", 0)
    heads = {name.split(".")[1] for name in update.tensors if name.startswith("objectives.")}
    assert heads == set(KINDS[:2])
    assert set(update.steps.values()) == {1, 2}
    assert update.steps["encoder.blocks.0.mlp.0.weight"] == 2


@pytest.mark.parametrize("missed", [0, 1, 2])
def test_the_round_number_fixes_steps_and_rate_whatever_was_missed(make_job: MakeJob, missed: int) -> None:
    job = three(make_job, rounds=8)
    state, loader = trainer(job)
    for number in range(missed):
        train_round(state, loader, job, "alpha", number)
    set_tensors(state, initial_tensors(job))
    update = train_round(state, loader, job, "alpha", 5)
    assert state.step == 24
    assert update.scalars["train/learning_rate"] == learning_rate(23, 32, job.optimiser)


def optimiser_tensors(state: TrainState) -> dict[str, Tensor]:
    return {
        f"{key}/{name}": value
        for name, parameter in state.model.named_parameters()
        for key, value in state.optimiser.state.get(parameter, {}).items()
    }


def rounds(
    state: TrainState, loader: CropLoader, job: JobConfig, model: dict[str, Tensor], numbers: range
) -> dict[str, Tensor]:
    for number in numbers:
        set_tensors(state, model)
        model = aggregate(model, [train_round(state, loader, job, "alpha", number)])
    return model


@pytest.mark.parametrize("schedule", ["cyclic", "summed"])
@pytest.mark.parametrize("stop", [1, 2])
def test_a_resumed_run_equals_an_uninterrupted_one_to_the_bit(
    make_job: MakeJob, tmp_path: Path, schedule: str, stop: int
) -> None:
    job = three(
        make_job,
        rounds=3,
        local_steps=3,
        schedule=schedule,
    )
    state, loader = trainer(job)
    through = rounds(state, loader, job, initial_tensors(job), range(3))

    state, loader = trainer(job)
    model = rounds(state, loader, job, initial_tensors(job), range(stop))
    save_checkpoint(tmp_path / "model", model, {})
    save_checkpoint(tmp_path / "optimiser", optimiser_tensors(state), {})
    del state, loader

    state, loader = trainer(job)  # as a new process would make it
    torch.manual_seed(99)
    named = dict(state.model.named_parameters())
    for key, value in load_checkpoint(tmp_path / "optimiser")[0].items():
        slot, name = key.split("/", 1)
        state.optimiser.state[named[name]][slot] = value
    resumed = rounds(state, loader, job, load_checkpoint(tmp_path / "model")[0], range(stop, 3))
    assert same(resumed, through)


def test_without_its_moments_a_resumed_run_differs(make_job: MakeJob) -> None:
    """The control of the test above: the moments matter, so their equality is seen."""
    job = three(make_job, rounds=3, local_steps=3)
    state, loader = trainer(job)
    through = rounds(state, loader, job, initial_tensors(job), range(2))
    state, loader = trainer(job)
    model = rounds(state, loader, job, initial_tensors(job), range(1))
    state, loader = trainer(job)
    assert not same(rounds(state, loader, job, model, range(1, 2)), through)


def test_a_site_with_nothing_to_train_on_says_so_and_goes_on_in_the_next_round(make_job: MakeJob) -> None:
    """Steps 0 and 1 are cross-modal, which one modality alone cannot be; step 2 is masked."""
    cross = {"kind": "cross_modal_reconstruction", "turns": 2}
    job = make_job(objectives=[cross, {"kind": "masked_reconstruction"}], local_steps=2, precision="fp32")
    state, loader = trainer(job, [["CT"], ["T1"]])
    before = tensors_of(state)
    update = train_round(state, loader, job, "alpha", 0)
    assert update.idle
    assert set(update.scalars) == {"train/gradient_norm", "train/learning_rate", "train/samples", "train/seconds"}
    check_update(update, before, round_number=0)
    assert same(tensors_of(state), before)
    assert same(aggregate(before, [update]), before)
    assert set(train_round(state, loader, job, "alpha", 1).steps.values()) == {1}


def test_a_nan_volume_stops_the_round_by_name(make_job: MakeJob) -> None:
    job = make_job(precision="fp32")
    state, loader = trainer(job, [["CT"]])
    loader.patients[0].volumes[0].image[:] = float("nan")
    before = tensors_of(state)
    with pytest.raises(TrainingError, match="PM402 the loss of masked_reconstruction is not finite at step 4;"):
        train_round(state, loader, job, "alpha", 1)
    assert same(tensors_of(state), before)


def test_a_received_model_replaces_every_tensor(make_job: MakeJob) -> None:
    job = three(make_job)
    state, _ = trainer(job)
    wanted = {name: torch.randn(t.shape) for name, t in tensors_of(state).items()}
    set_tensors(state, wanted)
    assert same(tensors_of(state), wanted)
    tensors_of(state)["encoder.extra_tokens"].zero_()
    assert same(tensors_of(state), wanted), "tensors_of gives copies"


def test_a_received_model_with_other_names_is_refused(make_job: MakeJob) -> None:
    state, _ = trainer(make_job())
    wanted = tensors_of(state)
    wanted["other"] = wanted.pop("encoder.extra_tokens")
    with pytest.raises(TrainingError, match="PM401 the received model has"):
        set_tensors(state, wanted)


def test_a_received_model_with_another_shape_is_refused_before_anything_is_changed(make_job: MakeJob) -> None:
    state, _ = trainer(make_job())
    before = tensors_of(state)
    wanted = {name: torch.randn(t.shape) for name, t in before.items()}
    wanted[list(wanted)[-1]] = torch.zeros(3, 3, 3)
    with pytest.raises(TrainingError, match=r"PM401 .* must be .*, received \[3, 3, 3\]"):
        set_tensors(state, wanted)
    assert same(tensors_of(state), before)


def test_an_update_is_of_its_site_and_round(make_job: MakeJob) -> None:
    job = make_job(precision="fp32")
    state, loader = trainer(job)
    update = train_round(state, loader, job, "alpha", 1)
    assert isinstance(update, Update)
    assert (update.site, update.round) == ("alpha", 1)
    assert {t.dtype for t in update.tensors.values()} == {torch.float32}


def test_a_site_trainer_that_is_started_again_goes_on_to_the_bit(make_job: MakeJob, tmp_path: Path) -> None:
    small_cohort(tmp_path / "cohort", patients=8)
    job = make_job(
        objectives=[{"kind": kind} for kind in (KINDS[0], KINDS[2])],
        modalities=["CT"],
        rounds=3,
        precision="fp32",
        crop=[8, 8, 8],
        evaluation={"holdout_fraction": 0.0},
    )
    folders = {key: str(tmp_path / key) for key in ("cohort", "cache", "state")}
    site = SiteConfig(site="alpha", threads=torch.get_num_threads(), **folders)

    def run(folder: str, restarts: bool) -> dict[str, Tensor]:
        model = initial_tensors(job)
        trainer = SiteTrainer(job, site, "run", tmp_path / folder)
        trainer.open()
        for number in range(3):
            if restarts and number:
                trainer.close()
                trainer = SiteTrainer(job, site, "run", tmp_path / folder)
                trainer.open()
            model = aggregate(model, [trainer.train(number, model)])
        trainer.close()
        return model

    through = run("through", restarts=False)
    assert same(run("restarted", restarts=True), through)
    assert not same(initial_tensors(job), through)
