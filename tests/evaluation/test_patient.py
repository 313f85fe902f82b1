"""The patient-level probe: what one volume shows is found, what is noise is not, and few patients are no trouble."""

import numpy as np
import pytest
import torch

from parametrium.config import ContinuousVariable, NominalVariable
from parametrium.data.cache import PreparedPatient
from parametrium.evaluation.features import VolumeFeature, patient_means
from parametrium.evaluation.patient import PatientHead, Probed, pooled_probe, studies_of
from parametrium.evaluation.probe import probe

MODALITIES = ("CT", "T1", "PET")
VALUE = ContinuousVariable(name="value", unit="", lower=-100.0, upper=100.0, sigma=1.0)
LEVEL = NominalVariable(name="level", levels=("a", "b", "c"))

CHANNELS = 8


def cohort(count: int, seed: int, kind: str, volumes: tuple[int, int] = (3, 7)) -> Probed:
    """Patients with a few volumes; one of these, or their mean, or nothing decides the variable."""
    rng = np.random.default_rng(seed)
    signal, mark = np.eye(CHANNELS)[:2]
    found, patients = [], []
    for p in range(count):
        number = int(rng.integers(*volumes))
        decides = int(rng.integers(number))
        vectors = rng.normal(size=(number, CHANNELS))
        if kind == "marked":
            vectors += np.where(np.arange(number) == decides, 3.0, -1.0)[:, None] * mark
        own = {"marked": vectors[decides], "mean": 2 * vectors.mean(0), "noise": rng.normal(size=CHANNELS)}
        own["modality"] = vectors[1 % number]
        value = float(own[kind] @ signal + 0.2 * rng.normal())
        cells = {"value": f"{value:.4f}", "level": "abc"[int(np.digitize(value, [-0.5, 0.5]))]}
        patients.append(PreparedPatient(f"p{p}", None, (), cells, ()))
        for v, vector in enumerate(vectors):
            found.append(VolumeFeature(p, MODALITIES[v % 3], 7 * v, vector.astype(np.float32)))
    return patients, found


def both(variable: ContinuousVariable | NominalVariable, kind: str, seed: int) -> tuple[float, float]:
    """Scores of the pooled and of the linear probe."""
    training, held_out = cohort(60, 2 * seed, kind), cohort(60, 2 * seed + 1, kind)
    pooled = pooled_probe(variable, training, held_out, MODALITIES, seed)
    plain = [(patients, patient_means(volumes)) for patients, volumes in (training, held_out)]
    linear = probe(variable, plain[0], plain[1])
    assert pooled.keys() == linear.keys()
    assert pooled["chance"] == linear["chance"]
    return next(iter(pooled.values())), next(iter(linear.values()))


@pytest.mark.parametrize("kind", ["marked", "modality"])
def test_where_one_volume_of_several_decides_it_beats_the_mean(kind: str) -> None:
    pooled, linear = both(VALUE, kind, seed=0)
    assert pooled > linear + 0.2
    assert pooled > 0.6


def test_where_the_mean_decides_it_is_as_good_as_the_mean() -> None:
    pooled, linear = both(VALUE, "mean", seed=1)
    assert pooled > linear - 0.05


def test_levels_are_learned_too() -> None:
    pooled, _ = both(LEVEL, "modality", seed=2)
    assert pooled > 1 / 3 + 0.12


def test_it_finds_nothing_in_noise() -> None:
    scores = [both(VALUE, "noise", seed)[0] for seed in range(3)]
    assert abs(np.mean(scores)) < 0.25  # 180 independent patients: deviation 0.07


def test_a_single_volume_a_patient_works() -> None:
    training, held_out = (cohort(40, seed, "mean", volumes=(1, 2)) for seed in (0, 1))
    assert pooled_probe(VALUE, training, held_out, MODALITIES, 0)["spearman"] > 0.8


def test_the_same_seed_gives_the_same_score_and_the_callers_chance_goes_on() -> None:
    training, held_out = cohort(16, 0, "marked"), cohort(8, 1, "marked")
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    first = pooled_probe(VALUE, training, held_out, MODALITIES, 5)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert pooled_probe(VALUE, training, held_out, MODALITIES, 5) == first


@pytest.mark.parametrize(("train", "test"), [(9, 20), (20, 3), (0, 20), (20, 0)])
def test_too_few_patients_give_no_score(train: int, test: int) -> None:
    assert pooled_probe(VALUE, cohort(train, 0, "mean"), cohort(test, 1, "mean"), MODALITIES, 0) == {}


def test_patients_without_the_variable_or_without_volumes_are_left_out() -> None:
    patients, volumes = cohort(5, 0, "mean")
    patients = [*patients[:2], PreparedPatient("x", None, (), {"value": ""}, ()), *patients[3:]]
    found = studies_of(VALUE, patients, [v for v in volumes if v.patient != 4], MODALITIES)
    assert found is not None
    assert len(found.values) == 3
    for row, patient in enumerate((0, 1, 3)):
        own = [v for v in volumes if v.patient == patient]
        assert int(found.present[row].sum()) == len(own)
        for n, volume in enumerate(own):
            assert np.array_equal(found.features[row, n].numpy(), volume.vector)
            assert MODALITIES[int(found.modality[row, n])] == volume.modality
            assert float(found.days[row, n]) == volume.day
    assert studies_of(VALUE, patients, [], MODALITIES) is None


@torch.no_grad()
def test_the_error_of_those_left_out_is_that_of_a_regression_without_them() -> None:
    """Against a loop that leaves each out and solves again; the mean is that of all, as in the closed form."""
    found = studies_of(VALUE, *cohort(12, 0, "mean"), MODALITIES)
    assert found is not None
    head = PatientHead(CHANNELS, 3)
    head.log_penalty.fill_(-0.5)
    target = torch.from_numpy(found.values)[:, None]
    x = head.pooled(found)
    x, y = (x - x.mean(0)).double(), (target - target.mean(0)).double()
    errors = []
    for i in range(12):
        rest = torch.arange(12) != i
        weight = torch.linalg.solve(
            x[rest].T @ x[rest] + np.exp(-0.5) * torch.eye(CHANNELS).double(), x[rest].T @ y[rest]
        )
        errors.append(float((x[i] @ weight - y[i]).square()))
    assert float(head.left_out_loss(found, target)) == pytest.approx(np.mean(errors), rel=1e-3)
