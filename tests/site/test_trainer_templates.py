"""Templates at a site: the policy keeps those of few patients at home, and they survive an interruption."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cohort_files import ct, row, save, write_rows
from parametrium.config import JobConfig, PolicyConfig, SiteConfig
from parametrium.objectives.registry import initial_tensors
from parametrium.privacy.policy import templates_to_leave
from parametrium.site.trainer import SiteTrainer
from parametrium.training.aggregation import aggregate

MakeJob = Callable[..., JobConfig]
KINDS = ("masked_reconstruction", "template_reconstruction")
CT, T1 = (f"encoder.templates.of.{name}.values" for name in ("CT", "T1"))


def small_job(make_job: MakeJob) -> JobConfig:
    return make_job(
        modalities=["CT", "T1", "PET"],
        objectives=[{"kind": kind} for kind in KINDS],
        precision="fp32",
        crop=[8, 8, 8],
        rounds=4,
        evaluation={"crops": 2, "pictures": False, "holdout_fraction": 0.0},
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six patients with a CT, three of them with a T1."""
    folder = tmp_path_factory.mktemp("site")
    rows = [
        row(f"p{n}", save(folder / "cohort" / f"{m}{n}.nii.gz", ct(seed=2 * n + (m == "T1"))), modality=m)
        for m, patients in (("CT", 6), ("T1", 3))
        for n in range(patients)
    ]
    write_rows(folder / "cohort" / "cohort.csv", rows)
    return folder


def opened(folder: Path, job: JobConfig, state: Path, **policy: Any) -> SiteTrainer:
    folders = {key: str(folder / key) for key in ("cohort", "cache", "state")}
    site = SiteConfig(site="alpha", **folders, policy={"objectives": KINDS, **policy})  # type: ignore[arg-type]
    trainer = SiteTrainer(job, site, "run", state)
    trainer.open()
    return trainer


def with_noise(job: JobConfig) -> dict[str, Tensor]:
    """Global weights whose templates hold something."""
    tensors = initial_tensors(job)
    generator = torch.Generator().manual_seed(1)
    values = {name: torch.randn(t.shape, generator=generator) for name, t in tensors.items() if name.endswith("values")}
    return tensors | values


@pytest.mark.parametrize(("minimum", "expected"), [(3, {CT, T1}), (4, {CT}), (6, {CT}), (7, set()), (None, set())])
def test_a_template_of_fewer_patients_than_the_policy_wants_is_neither_trained_nor_sent(
    folder: Path, make_job: MakeJob, tmp_path: Path, minimum: int | None, expected: set[str]
) -> None:
    job = small_job(make_job)
    policy = {} if minimum is None else {"minimum_template_patients": minimum}
    trainer = opened(folder, job, tmp_path, **policy)
    model = with_noise(job)
    update = trainer.train(0, model)
    trainer.close()
    assert {name for name in update.tensors if name.endswith("values")} == expected
    assert all(update.contributions[name] > 0 for name in expected)
    for name, tensor in trainer.state.model.named_parameters():
        if name.endswith("values"):
            assert torch.equal(tensor.detach(), model[name]) == (name not in expected)
    # The task itself goes on: patches are filled from the template as it was received.
    assert "train/loss/template_reconstruction" in update.scalars
    assert "objectives.template_reconstruction.decoder.context.weight" in update.tensors


def test_a_site_is_told_which_templates_it_does_not_train(
    folder: Path, make_job: MakeJob, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        opened(folder, small_job(make_job), tmp_path, minimum_template_patients=4).close()
    (message,) = (record.getMessage() for record in caplog.records if "template" in record.getMessage())
    assert "template of T1 is not trained here" in message
    assert "(4)" in message


def test_the_policy_counts_patients_by_modality() -> None:
    policy = PolicyConfig(minimum_template_patients=10)
    assert templates_to_leave({"CT": 10, "T1": 9, "PET": 0}, policy) == ["T1", "PET"]


def test_rounds_after_an_interruption_equal_those_without_it_templates_included(
    folder: Path, make_job: MakeJob, tmp_path: Path
) -> None:
    job = small_job(make_job)
    models = []
    for interrupted in (False, True):
        state, model = tmp_path / str(interrupted), with_noise(job)
        trainer = opened(folder, job, state, minimum_template_patients=3)
        for number in range(4):
            if interrupted and number == 2:
                trainer.close()
                trainer = opened(folder, job, state, minimum_template_patients=3)
            model = aggregate(model, [trainer.train(number, model)])
        trainer.close()
        models.append(model)
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])
    assert not torch.equal(models[0][CT], with_noise(job)[CT])
