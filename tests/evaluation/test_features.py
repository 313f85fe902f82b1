"""Frozen features, their controls, and the linear probe."""

import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from memory_volumes import memory_patient, memory_patients, memory_volume
from parametrium.config import ContinuousVariable, JobConfig, NominalVariable, OrdinalVariable
from parametrium.data.batch import Batch
from parametrium.data.cache import PreparedPatient
from parametrium.errors import ConfigError
from parametrium.evaluation.crops import volume_crops
from parametrium.evaluation.features import (
    Features,
    body_mask_features,
    encoder_features,
    patient_features,
    standardised,
    template_features,
    voxel_features,
)
from parametrium.evaluation.measure import measure_features
from parametrium.evaluation.probe import probe
from parametrium.evaluation.retrieval import retrieval
from parametrium.objectives.registry import build_model
from parametrium.privacy.egress import check_scalars

MakeJob = Callable[..., JobConfig]

AGE = ContinuousVariable(name="age", unit="years", lower=0.0, upper=100.0, sigma=10.0)
STAGE = OrdinalVariable(name="stage", levels=("I", "II", "III"))
HISTOLOGY = NominalVariable(name="histology", levels=("a", "b", "c"))


# ------------------------------------------------------------------------------------------------------- features


def test_controls_see_blocks_of_body_and_of_voxels(make_batch: Callable[..., Batch]) -> None:
    batch = make_batch([[0], [1]], extent=12)
    batch.body[0, :6] = False
    body, voxels = body_mask_features(batch), voxel_features(batch)
    assert body.shape == voxels.shape == (2, 6**3)
    for n, block in enumerate(np.ndindex(6, 6, 6)):
        box = tuple(slice(2 * b, 2 * b + 2) for b in block)
        for row in range(2):
            assert float(body[row, n]) == pytest.approx(float(batch.body[row][box].float().mean()))
            assert float(voxels[row, n]) == pytest.approx(float(batch.images[row][box].mean()), abs=1e-6)


def test_the_body_mask_control_does_not_see_intensities(make_batch: Callable[..., Batch]) -> None:
    first, second = make_batch([[0]], seed=0), make_batch([[0]], seed=1)
    assert torch.equal(body_mask_features(first), body_mask_features(second))


@torch.no_grad()
def test_encoder_features_are_mean_and_deviation_of_patch_tokens(
    make_job: MakeJob, make_batch: Callable[..., Batch]
) -> None:
    job = make_job()
    model, batch = build_model(job).eval(), make_batch([[0, 1], [2]])
    found = encoder_features(model, job)(batch)
    assert found.shape == (3, 48)
    for n in range(3):
        alone = model.encoder.encode(batch.images[n, None], batch.modality[n, None], (3.0, 3.0, 3.0))
        tokens = torch.stack([*alone.patches[0]])
        expected = torch.cat([tokens.mean(0), tokens.std(0, unbiased=False)])
        assert torch.allclose(found[n], expected, atol=1e-4)


def test_a_patient_is_the_mean_of_its_crops_and_studies(make_job: MakeJob) -> None:
    job = make_job(evaluation={"crops": 2})
    patients = [
        memory_patient("p", [memory_volume("CT", seed=1), memory_volume("T1", seed=2), memory_volume("CT", seed=3)])
    ]
    found = patient_features(patients, {"voxels": voxel_features}, job, "a", "x")["voxels"]
    assert set(found) == {(0, "CT"), (0, "T1")}
    vectors = [voxel_features(item.batch) for item in volume_crops(patients, job, "a", "x", inner=True)]
    np.testing.assert_allclose(found[0, "T1"], vectors[1].mean(0).numpy(), atol=1e-6)
    np.testing.assert_allclose(found[0, "CT"], torch.cat([vectors[0], vectors[2]]).mean(0).numpy(), atol=1e-6)


@given(st.integers(2, 8), st.integers(0, 1000))
def test_standardised_reference_has_mean_zero_and_deviation_one_in_each_modality(count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    features: Features = {
        (p, m): rng.normal(shift, 2, 5).astype(np.float32) for p in range(count) for m, shift in (("CT", 3), ("T1", -7))
    }
    found = standardised(features, features)
    for modality in ("CT", "T1"):
        rows = np.stack([found[p, modality] for p in range(count)])
        np.testing.assert_allclose(rows.mean(0), 0, atol=1e-4)
        deviation = np.std([features[p, modality] for p in range(count)], axis=0)
        varying = deviation > 0.101 * np.sqrt(np.mean(deviation**2))
        np.testing.assert_allclose(rows.std(0)[varying], 1, atol=1e-3)
        assert (rows.std(0) < 1.001).all()


def test_held_out_patients_are_put_on_the_reference_scale() -> None:
    reference: Features = {(p, "CT"): np.array([p, 5.0], dtype=np.float32) for p in (1, 3)}
    found = standardised({(0, "CT"): np.array([4.0, 5.0], dtype=np.float32)}, reference)
    np.testing.assert_allclose(found[0, "CT"], [2.0, 0.0])


def test_a_channel_that_is_constant_among_the_reference_patients_does_not_drown_the_others() -> None:
    """A block that is body in every training crop and nearly so in a held-out one must not decide the control."""
    rng = np.random.default_rng(0)
    people = rng.normal(size=(20, 8))

    def with_flat_channel(first: int, ripple: float) -> Features:
        return {
            (p - first, m): np.array([1 + ripple * rng.normal(), *people[p]], dtype=np.float32)
            for p in range(first, first + 10)
            for m in ("CT", "T1")
        }

    found = standardised(with_flat_channel(10, 0.01), with_flat_channel(0, 0.0))
    assert retrieval(found, ("CT", "T1"))["CT-T1"]["r1"] == 1


def test_the_divisor_is_at_least_a_tenth_of_the_typical_deviation_of_the_modality() -> None:
    reference: Features = {
        (p, m): np.array([size * p, size * 0.001 * p, 5.0], dtype=np.float32)
        for p in (-1, 1)
        for m, size in (("CT", 1), ("T1", 50))
    }
    found = standardised({(0, m): np.array([1.0, 1.0, 6.0], dtype=np.float32) for m in ("CT", "T1")}, reference)
    floor = 0.1 * np.sqrt((1 + 0.001**2) / 3)
    np.testing.assert_allclose(found[0, "CT"], [1, 1 / floor, 1 / floor], rtol=1e-4)
    np.testing.assert_allclose(found[0, "T1"], [1 / 50, 1 / (50 * floor), 1 / (50 * floor)], rtol=1e-4)


def test_without_reference_patients_features_stay_as_they_are() -> None:
    features: Features = {(0, "PET"): np.array([4.0, 5.0], dtype=np.float32)}
    np.testing.assert_array_equal(standardised(features, {})[0, "PET"], [4.0, 5.0])


# ---------------------------------------------------------------------------------------------------------- probe


def people(cells: list[dict[str, str]]) -> list[PreparedPatient]:
    return [memory_patient(f"p{n}", [], row) for n, row in enumerate(cells)]


def noise_features(count: int, seed: int, channels: int = 4) -> Features:
    rng = np.random.default_rng(seed)
    return {(p, m): rng.normal(size=channels).astype(np.float32) for p in range(count) for m in ("CT", "T1")}


def planted_cells(features: Features, count: int) -> list[dict[str, str]]:
    signal = [
        np.mean([v for (p, _), v in features.items() if p == n], axis=0) @ [1.0, -2, 0.5, 0] for n in range(count)
    ]
    return [
        {
            "age": f"{50 + 5 * s:.4f}",
            "stage": STAGE.levels[int(np.digitize(s, [-0.7, 0.7]))],
            "histology": HISTOLOGY.levels[int(np.digitize(s, [-0.7, 0.7]))],
        }
        for s in signal
    ]


def test_the_probe_finds_a_planted_linear_signal() -> None:
    train, test = noise_features(80, 0), noise_features(60, 1)
    training, held_out = people(planted_cells(train, 80)), people(planted_cells(test, 60))
    assert probe(AGE, (training, train), (held_out, test))["spearman"] > 0.98
    assert probe(STAGE, (training, train), (held_out, test))["spearman"] > 0.7
    found = probe(HISTOLOGY, (training, train), (held_out, test))
    assert found["balanced_accuracy"] > 0.75
    assert found["chance"] == pytest.approx(1 / 3)


def test_the_probe_finds_nothing_in_noise() -> None:
    scores: dict[str, list[float]] = {"spearman": [], "balanced_accuracy": []}
    for seed in range(6):
        train, test = noise_features(60, 2 * seed), noise_features(60, 2 * seed + 1)
        # The signal of other patients.
        training = people(planted_cells(noise_features(60, 100 + seed), 60))
        held_out = people(planted_cells(noise_features(60, 200 + seed), 60))
        for variable in (AGE, HISTOLOGY):
            found = probe(variable, (training, train), (held_out, test))
            chance = found.pop("chance")
            for measure, score in found.items():
                scores[measure].append(score - chance)
    assert len(scores["spearman"]) == len(scores["balanced_accuracy"]) == 6
    # 360 independent patients: the mean correlation has deviation 0.05, the mean accuracy 0.03.
    assert abs(np.mean(scores["spearman"])) < 0.2
    assert abs(np.mean(scores["balanced_accuracy"])) < 0.12


@pytest.mark.parametrize(("train", "test"), [(9, 20), (20, 3)])
def test_too_few_patients_give_no_score(train: int, test: int) -> None:
    features = noise_features(20, 0)
    cells = planted_cells(features, 20)
    training = people(cells[:train] + [{}] * (20 - train))
    held_out = people(cells[:test] + [{"age": ""}] * (20 - test))
    assert probe(AGE, (training, features), (held_out, features)) == {}


def test_one_value_only_gives_no_score() -> None:
    features = noise_features(20, 0)
    cells = planted_cells(features, 20)
    same = people([{"age": "50", "histology": "a"}] * 20)
    for variable in (AGE, HISTOLOGY):
        assert probe(variable, (same, features), (people(cells), features)) == {}
        assert probe(variable, (people(cells), features), (same, features)) == {}


def test_constant_features_score_zero() -> None:
    features: Features = {(p, "CT"): np.zeros(4, dtype=np.float32) for p in range(20)}
    found = probe(
        AGE,
        (people([{"age": str(p)} for p in range(20)]), features),
        (people([{"age": str(p)} for p in range(20)]), features),
    )
    assert found == {"spearman": 0.0, "chance": 0.0}


def test_a_level_that_no_held_out_patient_has_is_no_reason_to_warn() -> None:
    train, test = noise_features(60, 0), noise_features(40, 1)
    cells = [row for row in planted_cells(test, 40) if row["histology"] != "c"]
    held_out = people(cells)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = probe(HISTOLOGY, (people(planted_cells(train, 60)), train), (held_out, test))
    assert 0 <= found["balanced_accuracy"] <= 1


# --------------------------------------------------------------------------------------------------- all together


def test_every_figure_stands_beside_its_controls(make_job: MakeJob) -> None:
    job = make_job(evaluation={"crops": 2, "probe": "age"})
    training = memory_patients([["CT", "T1"]] * 10)
    held_out = memory_patients([["CT", "T1"]] * 4, first=20)
    scalars = measure_features(build_model(job), training, held_out, job, "a")
    for pair in ("CT-T1", "T1-CT"):
        for measure in ("r1", "r5"):
            for name in ("model", "untrained", "body_mask", "voxels", "chance"):
                assert 0 <= scalars[f"evaluation/retrieval/{pair}/{measure}/{name}"] <= 1
        assert scalars[f"evaluation/retrieval/{pair}/candidates"] == 4
        # The model is the untrained one here.
        assert scalars[f"evaluation/retrieval/{pair}/r1/model"] == scalars[f"evaluation/retrieval/{pair}/r1/untrained"]
    for name in ("model", "untrained", "body_mask", "voxels", "chance", "pooled", "pooled_untrained"):
        assert -1 <= scalars[f"evaluation/probe/spearman/{name}"] <= 1
    assert scalars["evaluation/probe/spearman/pooled"] == scalars["evaluation/probe/spearman/pooled_untrained"]
    assert check_scalars(job, scalars) == scalars
    assert all(np.isfinite(value) for value in scalars.values())


def test_templates_stand_for_what_a_patient_lacks_and_for_nothing_else(make_job: MakeJob) -> None:
    job = make_job(objectives=[{"kind": "template_reconstruction"}], evaluation={"crops": 2, "missing": "template"})
    model = build_model(job).eval()
    patients = memory_patients([["CT", "T1", "PET"], ["T1", "T1"], ["CT", "PET"]])
    found = template_features(patients, model, job, "a", "x")
    assert [(f.patient, f.modality) for f in found] == [(1, "CT"), (1, "PET"), (2, "T1")]
    assert all(np.isfinite(f.vector).all() for f in found)
    with torch.no_grad():
        template = model.encoder.templates
        assert template is not None
        template.template("PET").values.add_(1.0)
    again = template_features(patients, model, job, "a", "x")
    assert [np.array_equal(a.vector, b.vector) for a, b in zip(found, again, strict=True)] == [True, False, True]


def test_the_probe_of_patients_may_see_templates_and_retrieval_never_does(make_job: MakeJob) -> None:
    training = memory_patients([["CT", "T1"], ["CT"]] * 6)
    held_out = memory_patients([["CT", "T1"], ["T1"], ["CT"]] * 2, first=20)
    found = {}
    for missing in ("nothing", "template"):
        evaluation = {"crops": 2, "probe": "age", "missing": missing}
        job = make_job(objectives=[{"kind": "template_reconstruction"}], evaluation=evaluation)
        found[missing] = measure_features(build_model(job), training, held_out, job, "a")
    assert found["nothing"].keys() == found["template"].keys()
    moved = {name for name, value in found["nothing"].items() if value != found["template"][name]}
    assert moved
    assert moved <= {"evaluation/probe/spearman/pooled", "evaluation/probe/spearman/pooled_untrained"}
    with pytest.raises(ConfigError, match=r"evaluation\.missing.*template_reconstruction"):
        make_job(evaluation={"missing": "template"})


def test_what_is_switched_off_is_not_measured(make_job: MakeJob) -> None:
    job = make_job(evaluation={"crops": 1, "retrieval": False})
    patients = memory_patients([["CT", "T1"]] * 3)
    assert measure_features(build_model(job), patients, patients, job, "a") == {}
