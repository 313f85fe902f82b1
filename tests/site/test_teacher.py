"""A teacher over rounds: a function of the global weights, kept at the site, never in an update (METHODS 5.3, 9.11)."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cohort_files import ct, row, save, write_rows
from parametrium.config import JobConfig, PolicyConfig, SiteConfig
from parametrium.objectives.registry import initial_tensors
from parametrium.privacy.egress import check_scalars
from parametrium.site.local import train_locally
from parametrium.site.trainer import SiteTrainer
from parametrium.training.aggregation import aggregate
from parametrium.training.checkpoint import load_checkpoint
from parametrium.training.run_folder import final_model
from parametrium.training.update import Update, check_update

MakeJob = Callable[..., JobConfig]
Tensors = dict[str, Tensor]

KINDS = ("masked_reconstruction", "latent_prediction", "box_localisation")
STEPS, MOMENTUM = 4, 0.9


@pytest.fixture
def job(make_job: MakeJob, request: pytest.FixtureRequest) -> JobConfig:
    settings: list[dict[str, Any]] = [{"kind": kind} for kind in KINDS]
    settings[1]["momentum"] = MOMENTUM
    return make_job(
        modalities=["CT", "T1"],
        objectives=settings,
        schedule=getattr(request, "param", "cyclic"),
        precision="fp32",
        crop=[8, 8, 8],
        rounds=4,
        local_steps=STEPS,
        evaluation={"crops": 1, "pictures": False, "retrieval": False, "holdout_fraction": 0.0},
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> SiteConfig:
    folder = tmp_path_factory.mktemp("site")
    rows = [
        row(f"p{p}", save(folder / "cohort" / f"{m}{p}.nii.gz", ct(seed=2 * p + n)), modality=m)
        for p in range(5)
        for n, m in enumerate(("CT", "T1"))
    ]
    write_rows(folder / "cohort" / "cohort.csv", rows)
    folders = {key: str(folder / key) for key in ("cohort", "cache", "state")}
    return SiteConfig(
        site="alpha",
        threads=torch.get_num_threads(),
        policy=PolicyConfig(objectives=KINDS, minimum_patients=1),
        **folders,
    )


def opened(job: JobConfig, site: SiteConfig, folder: Path) -> SiteTrainer:
    trainer = SiteTrainer(job, site, "run", folder)
    trainer.open()
    return trainer


def teacher(trainer: SiteTrainer) -> Tensors:
    """A copy of the teacher's weights."""
    kept = trainer.state.model.objective("latent_prediction").kept()
    return {name: tensor.clone() for name, tensor in kept.items()}


def student(tensors: Tensors) -> Tensors:
    return {n.removeprefix("encoder."): t for n, t in tensors.items() if n.startswith("encoder.")}


def same(first: Tensors, second: Tensors) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def follows(after: Tensors, before: Tensors, towards: Tensors, steps: int) -> bool:
    kept = MOMENTUM**steps
    expected = {n: kept * before[n].double() + (1 - kept) * towards[n].double() for n in before}
    return all(torch.allclose(after[n].double(), expected[n], rtol=0, atol=1e-6) for n in after)


def another(model: Tensors, seed: int) -> Tensors:
    """Global weights as other sites would have moved them."""
    generator = torch.Generator().manual_seed(seed)
    return {name: tensor + 0.1 * torch.randn(tensor.shape, generator=generator) for name, tensor in model.items()}


def test_in_its_first_round_the_teacher_is_the_global_model(job: JobConfig, site: SiteConfig, tmp_path: Path) -> None:
    for number in (0, 3):  # also at a site that comes late
        trainer = opened(job, site, tmp_path / str(number))
        model = another(initial_tensors(job), number)
        trainer.train(number, model)
        assert same(teacher(trainer), student(model)), "and it did not follow the round's steps"
        trainer.close()


@pytest.mark.parametrize("missed", [0, 1, 2])
def test_a_missed_round_counts_its_steps(job: JobConfig, site: SiteConfig, tmp_path: Path, missed: int) -> None:
    trainer = opened(job, site, tmp_path)
    first, later = initial_tensors(job), another(initial_tensors(job), 1)
    trainer.train(0, first)
    trainer.train(1 + missed, later)
    assert follows(teacher(trainer), student(first), student(later), STEPS * (1 + missed))
    assert not follows(teacher(trainer), student(first), student(later), STEPS * (2 + missed))
    trainer.close()


def test_the_teacher_follows_the_aggregate_and_not_the_site(job: JobConfig, site: SiteConfig, tmp_path: Path) -> None:
    trainer = opened(job, site, tmp_path)
    models = [another(initial_tensors(job), seed) for seed in range(3)]
    expected = student(models[0])
    for number, model in enumerate(models):
        before = expected if number == 0 else teacher(trainer)
        trainer.train(number, model)
        if number:
            assert follows(teacher(trainer), before, student(model), STEPS)
    trainer.close()


@pytest.mark.parametrize("job", ["cyclic", "summed"], indirect=True)
def test_a_restarted_site_goes_on_to_the_bit_with_its_teacher(job: JobConfig, site: SiteConfig, tmp_path: Path) -> None:
    def run(folder: Path, restarts: bool) -> tuple[Tensors, Tensors]:
        model, trainer = initial_tensors(job), opened(job, site, folder)
        for number in range(3):
            if restarts and number:
                trainer.close()
                trainer = opened(job, site, folder)
            model = aggregate(model, [trainer.train(number, model)])
        trainer.close()
        return model, teacher(trainer)

    through, restarted = run(tmp_path / "through", False), run(tmp_path / "restarted", True)
    assert same(restarted[0], through[0])
    assert same(restarted[1], through[1])


def test_a_restarted_site_that_lost_its_teacher_differs(
    job: JobConfig, site: SiteConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control of the test above."""
    found = []
    for forgets in (False, True):
        trainer = opened(job, site, tmp_path / str(forgets))
        model = aggregate(initial_tensors(job), [trainer.train(0, initial_tensors(job))])
        if forgets:
            trainer.state.model.objective("latent_prediction").keep({})
        found.append(aggregate(model, [trainer.train(1, model)]))
        trainer.close()
    assert not same(*found)


@pytest.mark.parametrize("restarts", [False, True])
@pytest.mark.parametrize("number", [0, 2])
def test_a_repeated_round_gives_the_same_update_and_teacher(
    job: JobConfig, site: SiteConfig, tmp_path: Path, number: int, restarts: bool
) -> None:
    trainer, model = opened(job, site, tmp_path), initial_tensors(job)
    for earlier in range(number):
        model = aggregate(model, [trainer.train(earlier, model)])
    first, then = trainer.train(number, model), teacher(trainer)
    if restarts:
        trainer.close()
        trainer = opened(job, site, tmp_path)
    again = trainer.train(number, model)
    assert same(again.tensors, first.tensors)
    assert same(teacher(trainer), then)
    trainer.close()


def test_the_teacher_is_kept_at_the_site_and_never_sent(job: JobConfig, site: SiteConfig, tmp_path: Path) -> None:
    trainer, model = opened(job, site, tmp_path), initial_tensors(job)
    assert not any("teacher" in name or "kept" in name for name in model)
    update = trainer.train(0, model)
    assert isinstance(update, Update)
    check_update(update, model, round_number=0)
    assert update.tensors.keys() <= model.keys()
    assert len(student(model)) == len(teacher(trainer))
    own = check_scalars(job, update.scalars)
    assert {"train/loss/latent_prediction", "train/chance/latent_prediction", "train/spread/latent_prediction"} <= set(
        own
    )
    assert {"train/iou/box_localisation", "train/iou_chance/box_localisation", "train/chance/box_localisation"} <= set(
        own
    )
    saved, _ = load_checkpoint(tmp_path / "optimiser" / "round_0000")
    prefix = "kept/latent_prediction/"
    on_disk = {name.removeprefix(prefix): tensor for name, tensor in saved.items() if name.startswith(prefix)}
    assert same(on_disk, teacher(trainer))
    trainer.close()


def test_a_teacher_of_another_model_is_none(job: JobConfig, site: SiteConfig, tmp_path: Path) -> None:
    trainer = opened(job, site, tmp_path)
    objective = trainer.state.model.objective("latent_prediction")
    objective.keep({"blocks.0.other": torch.zeros(2)})
    objective.begin_round(trainer.state.model.encoder, 4)
    assert same(teacher(trainer), student(initial_tensors(job)))
    trainer.close()


def test_rounds_by_hand_equal_a_local_run(job: JobConfig, site: SiteConfig, tmp_path: Path) -> None:
    model, trainer = initial_tensors(job), opened(job, site, tmp_path / "hand")
    for number in range(job.rounds):
        model = aggregate(model, [trainer.train(number, model)])
    trainer.close()
    assert same(final_model(train_locally(job, site, tmp_path / "run")), model)


def test_before_the_first_round_there_is_no_teacher_and_its_loss_is_not_measured(
    job: JobConfig, site: SiteConfig, tmp_path: Path
) -> None:
    held = job.model_copy(update={"evaluation": job.evaluation.model_copy(update={"holdout_fraction": 0.5})})
    trainer = opened(held, site, tmp_path)
    model = initial_tensors(held)
    before = trainer.evaluate(0, model, final=False)
    assert "evaluation/loss/masked_reconstruction" in before
    assert "evaluation/loss/latent_prediction" not in before
    trainer.train(0, model)
    after = trainer.evaluate(1, model, final=False)
    assert 0 < after["evaluation/loss/latent_prediction"] < 10
    trainer.close()
