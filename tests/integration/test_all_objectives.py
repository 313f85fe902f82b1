"""Every objective in one federation: two sites, of which one lacks what some objectives need, in both schedules."""

from collections.abc import Callable
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from cohort_files import ct, row, save, write_rows
from parametrium.config import JobConfig, ObjectiveKind, PolicyConfig, SiteConfig, TextConfig
from parametrium.model.modality import Owner, tensor_owners
from parametrium.objectives.registry import build_model, initial_tensors
from parametrium.site.trainer import SiteTrainer
from parametrium.training.aggregation import aggregate, templates_of_few
from parametrium.training.update import Update, check_update

KINDS = get_args(ObjectiveKind)
NEEDS_TWO_MODALITIES = ("cross_modal_reconstruction", "cross_modal_synthesis")
NEEDS_TEXT = ("text_contrastive",)


def letters(texts: list[str]) -> np.ndarray:
    """A text encoder for this test."""
    return np.array([[text.count(letter) + 0.1 for letter in "012345678"] for text in texts])


def hospital(folder: Path, name: str, modalities: tuple[str, ...], text: TextConfig | None) -> SiteConfig:
    """Six patients, their modalities registered."""
    cohort = folder / name / "cohort"
    write_rows(
        cohort / "cohort.csv",
        [
            row(f"p{p}", save(cohort / f"{m}{p}.nii.gz", ct(seed=10 * p + n + len(name))), modality=m)
            for p in range(6)
            for n, m in enumerate(modalities)
        ],
    )
    clinical = [{"patient": f"p{p}", "age": str(40 + 7 * p), "stage": "II", "histology": "a"} for p in range(6)]
    write_rows(cohort / "clinical.csv", clinical)
    policy = PolicyConfig(minimum_patients=1, minimum_local_steps=1, minimum_template_patients=1, objectives=KINDS)
    folders = {key: str(folder / name / key) for key in ("cohort", "cache", "state")}
    return SiteConfig(site=name, threads=torch.get_num_threads(), policy=policy, text=text, **folders)


def job_of(make_job: Callable[..., JobConfig], schedule: str) -> JobConfig:
    extra = {"text_contrastive": {"channels": 9, "crops": 1}, "soft_contrastive": {"crops": 1}}
    return make_job(
        objectives=[{"kind": kind, **extra.get(kind, {})} for kind in KINDS],
        schedule=schedule,
        batch={"patients": 4},
        model={"patch": 4, "width": 24, "depth": 2, "heads": 2, "decoder_depth": 1, "template": [8, 8, 8]},
        rounds=1,
        local_steps=len(KINDS) if schedule == "cyclic" else 1,
        evaluation={"crops": 1, "pictures": False, "holdout_fraction": 0.2},
        precision="fp32",
    )


def objective_of(tensor: str) -> str:
    return tensor.split(".")[1] if tensor.startswith("objectives.") else ""


@pytest.mark.parametrize("schedule", ["cyclic", "summed"])
def test_a_site_skips_what_it_lacks_and_is_counted_for_nothing_of_it(
    schedule: str, make_job: Callable[..., JobConfig], tmp_path: Path
) -> None:
    job = job_of(make_job, schedule)
    sites = [
        hospital(tmp_path, "both", ("CT", "T1"), TextConfig(encoder=f"{__name__}:letters")),
        hospital(tmp_path, "one", ("T1",), None),
    ]
    trainers = [SiteTrainer(job, site, "run", Path(site.state)) for site in sites]
    for trainer in trainers:
        trainer.open()
    owners = tensor_owners(build_model(job))
    tensors: dict[str, Tensor] = initial_tensors(job)
    for number in range(job.rounds):
        updates: list[Update] = []
        for trainer in trainers:
            update = trainer.train(number, tensors)
            check_update(update, tensors, round_number=number)
            updates.append(update)
        rich, poor = updates
        trained = {kind for kind in KINDS if f"train/loss/{kind}" in rich.scalars}
        assert trained == set(KINDS)
        skipped = {*NEEDS_TWO_MODALITIES, *NEEDS_TEXT}
        assert {kind for kind in KINDS if f"train/loss/{kind}" in poor.scalars} == set(KINDS) - skipped
        for name in poor.tensors:
            assert objective_of(name) not in skipped
            assert owners[name].modality in (None, "T1")
        assert not any(owners[name].modality == "PET" for update in updates for name in update.tensors)
        kept = {owners[n] for n in templates_of_few(updates, owners, job.aggregation.minimum_template_sites)}
        assert kept == {Owner("fill", "CT")}, "only one site has CT: the other is not shown what its patients look like"
        after = aggregate(tensors, updates)
        for name, before in tensors.items():
            if name not in rich.tensors and name not in poor.tensors:
                assert torch.equal(after[name], before)
            elif name not in poor.tensors:
                torch.testing.assert_close(after[name], before + rich.tensors[name], rtol=0, atol=1e-6)
        assert all(bool(tensor.isfinite().all()) for tensor in after.values())
        tensors = after
    for trainer in trainers:
        scalars = trainer.evaluate(job.rounds, tensors, final=True)
        assert scalars
        assert all(np.isfinite(value) for value in scalars.values())
        trainer.close()
