"""The monitors of a site: means over its volumes, the same at every call, under names that may travel."""

import math
from collections.abc import Callable

import pytest
import torch

from memory_volumes import memory_patients
from parametrium.config import JobConfig
from parametrium.evaluation.crops import volume_crops
from parametrium.evaluation.monitors import measure_monitors
from parametrium.monitor.attention import attention_numbers
from parametrium.monitor.collapse import rankme
from parametrium.monitor.rollout import rollout_of
from parametrium.objectives.registry import build_model
from parametrium.privacy.egress import check_scalars

MakeJob = Callable[..., JobConfig]
SETS = [["CT", "T1"], ["T1", "CT"], ["CT", "T1", "PET"], ["CT", "T1"], ["PET"]]
PAIRED = {"monitor/features/alignment", "monitor/features/uniformity"}


def test_the_numbers_are_means_over_the_volumes(make_job: MakeJob) -> None:
    job = make_job(evaluation={"crops": 3})
    patients, model = memory_patients(SETS), build_model(job).eval()
    found = measure_monitors(model, patients, job, "a")
    background, pooled = [], []
    for item in volume_crops(patients, job, "a", "monitor"):
        images, modality = item.batch.images, item.batch.modality
        for row in range(3):
            one = images[row : row + 1], modality[row : row + 1]
            shares = rollout_of(model.encoder, *one, job.preparation.spacing_mm)
            numbers = attention_numbers(shares, one[0], item.batch.body[row : row + 1], 4)
            background.append(float(numbers["background"]))
            with torch.no_grad():
                pooled.append(model.encoder.encode(*one, job.preparation.spacing_mm).pooled)
    assert found["monitor/volumes"] == 10
    assert found["monitor/attention/background"] == pytest.approx(sum(background) / 30, abs=1e-6)
    assert found["monitor/features/rankme"] == pytest.approx(rankme(torch.cat(pooled)), rel=1e-4)
    assert 0 < found["monitor/attention/background_share"] < 1
    assert found.keys() >= PAIRED


def test_every_number_may_travel_and_two_calls_give_the_same(make_job: MakeJob) -> None:
    job = make_job(objectives=[{"kind": "masked_reconstruction"}, {"kind": "soft_contrastive"}])
    patients, model = memory_patients(SETS), build_model(job).eval()
    found = measure_monitors(model, patients, job, "a")
    assert check_scalars(job, found) == found
    torch.manual_seed(5)
    assert measure_monitors(model, patients, job, "a") == found
    assert len(found) == 11


def test_a_site_with_little_measures_what_it_can(make_job: MakeJob) -> None:
    job = make_job(evaluation={"crops": 2})
    model = build_model(job).eval()
    assert measure_monitors(model, [], job, "a") == {}
    one = measure_monitors(model, memory_patients([["CT"]]), job, "a")
    assert one["monitor/volumes"] == 1
    assert not PAIRED & one.keys()
    three = measure_monitors(model, memory_patients([["CT", "T1"]] * 3), job, "a")
    assert not PAIRED & three.keys()
    assert measure_monitors(model, memory_patients(SETS), make_job(evaluation={"monitors": False}), "a") == {}


def test_a_model_that_is_not_finite_gives_no_number_that_is_not(make_job: MakeJob) -> None:
    job = make_job(evaluation={"crops": 2})
    model = build_model(job).eval()
    with torch.no_grad():
        model.encoder.norm.weight.fill_(torch.nan)
    found = measure_monitors(model, memory_patients(SETS), job, "a")
    assert all(math.isfinite(value) for value in found.values())
    assert not any("features" in name for name in found)
    with torch.no_grad():
        model.encoder.extra_tokens.fill_(torch.nan)
    found = measure_monitors(model, memory_patients(SETS), job, "a")
    assert set(found) == {"monitor/attention/background_share", "monitor/volumes"}
