"""The reconstruction error and the predictors that learned nothing, against loops."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from memory_volumes import memory_patient, memory_patients, memory_volume
from parametrium.config import JobConfig
from parametrium.evaluation.crops import volume_crops
from parametrium.evaluation.measure import measure_reconstruction
from parametrium.evaluation.reconstruction import modality_means, neighbour_mean, reconstruction_errors
from parametrium.model.masking import draw_mask
from parametrium.model.patch_embed import gather, patchify
from parametrium.objectives.reconstruction import MaskedReconstruction
from parametrium.objectives.registry import PretrainingModel, build_model
from parametrium.objectives.target import standardise

MakeJob = Callable[..., JobConfig]
SETS = [["CT", "T1"], ["T1"]]


def small(make_job: MakeJob, target: str = "raw", **changes: Any) -> JobConfig:
    return make_job(
        **{"objectives": [{"kind": "masked_reconstruction", "target": target}], "evaluation": {"crops": 3}, **changes}
    )


def stub(model: PretrainingModel, monkeypatch: pytest.MonkeyPatch, answer: Callable[[Tensor], Tensor]) -> None:
    """Lets the model's decoder answer from the truth."""
    objective = model.objective("masked_reconstruction")
    assert isinstance(objective, MaskedReconstruction)

    def predict(
        encoder: Any, images: Tensor, modality: Tensor, visible: Tensor, masked: Tensor
    ) -> tuple[Tensor, Tensor]:
        true = gather(patchify(images, 4), masked)
        truth = standardise(true, true, objective.target)
        return answer(truth), truth

    monkeypatch.setattr(objective, "predict", predict)


@pytest.mark.parametrize("target", ["raw", "patch_normalised"])
def test_a_model_that_returns_the_truth_has_no_error(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    job = small(make_job, target)
    perfect, shifted = build_model(job).eval(), build_model(job).eval()
    stub(perfect, monkeypatch, lambda truth: truth)
    stub(shifted, monkeypatch, lambda truth: truth + 0.5)
    models = {"perfect": perfect, "shifted": shifted}
    scalars = reconstruction_errors(models, memory_patients(SETS), dict.fromkeys(job.modalities, 0.0), job, "a")
    for modality in ("CT", "T1"):
        assert scalars[f"evaluation/reconstruction/{modality}/perfect"] == 0
        assert scalars[f"evaluation/reconstruction/{modality}/shifted"] == pytest.approx(0.25, abs=1e-5)
        assert scalars[f"evaluation/reconstruction/{modality}/modality_mean"] > 0.1
    assert scalars["evaluation/reconstruction_volumes/CT"] == 1
    assert scalars["evaluation/reconstruction_volumes/T1"] == 2
    assert not any("PET" in name for name in scalars)


@pytest.mark.parametrize("target", ["raw", "patch_normalised"])
def test_the_modality_mean_equals_a_loop_over_patches(make_job: MakeJob, target: str) -> None:
    job = small(make_job, target)
    patients = memory_patients(SETS)
    means = {"CT": 0.3, "T1": -0.2, "PET": 0.0}
    scalars = reconstruction_errors({"m": build_model(job).eval()}, patients, means, job, "a")
    generator = torch.Generator().manual_seed(job.seed)
    errors: dict[str, list[float]] = {"CT": [], "T1": []}
    for item in volume_crops(patients, job, "a", "reconstruction"):
        _, masked = draw_mask(3, (4, 4, 4), 0.75, generator)
        for row in range(3):
            for patch in masked[row].tolist():
                box = tuple(slice(4 * n, 4 * n + 4) for n in (patch // 16, patch // 4 % 4, patch % 4))
                true = item.batch.images[row][box].double().numpy().ravel()
                if item.batch.body[row][box].float().mean() < 0.2:
                    continue
                scale = max(true.std(), 0.1) if target == "patch_normalised" else 1.0
                errors[item.modality].append(np.mean(((true - means[item.modality]) / scale) ** 2))
    for modality, values in errors.items():
        assert len(values) > 20
        found = scalars[f"evaluation/reconstruction/{modality}/modality_mean"]
        assert found == pytest.approx(np.mean(values), rel=1e-4)


def test_the_error_of_a_model_does_not_depend_on_who_is_measured_beside_it(make_job: MakeJob) -> None:
    job = small(make_job)
    first, second = build_model(job).eval(), build_model(job.model_copy(update={"seed": 5})).eval()
    patients, means = memory_patients(SETS), dict.fromkeys(job.modalities, 0.0)
    both = reconstruction_errors({"second": second, "first": first}, patients, means, job, "a")
    alone = reconstruction_errors({"first": first}, patients, means, job, "a")
    assert {name: both[name] for name in alone} == alone
    assert both["evaluation/reconstruction/CT/first"] != both["evaluation/reconstruction/CT/second"]


def test_an_untrained_model_is_measured_as_untrained(make_job: MakeJob) -> None:
    job = small(make_job)
    training, held_out = memory_patients(SETS), memory_patients(SETS, first=5)
    scalars = measure_reconstruction(build_model(job), training, held_out, job, "a")
    for modality in ("CT", "T1"):
        own = [scalars[f"evaluation/reconstruction/{modality}/{name}"] for name in ("model", "untrained")]
        assert own[0] == own[1]


def test_a_job_without_masked_reconstruction_has_no_such_error(make_job: MakeJob) -> None:
    job = make_job(objectives=[{"kind": "soft_contrastive"}])
    assert reconstruction_errors({"m": build_model(job)}, memory_patients(SETS), {}, job, "a") == {}


def test_a_modality_with_no_patch_to_compare_has_no_error_rather_than_none(make_job: MakeJob) -> None:
    """An error of 0 would read as perfect."""
    job = small(make_job)
    body = np.zeros((24, 20, 22), dtype=bool)
    body[10, 10, 10] = True  # one voxel: no patch reaches a fifth
    patients = [memory_patient("p", [memory_volume("CT", body=body)])]
    scalars = reconstruction_errors({"m": build_model(job).eval()}, patients, {"CT": 0.0}, job, "a")
    assert scalars.get("evaluation/reconstruction/CT/m") != 0


def neighbours_by_loop(means: np.ndarray, visible: set[int], grid: tuple[int, int, int], patch: int) -> float:
    _, h, w = grid
    at = (patch // (h * w), patch // w % h, patch % w)
    near = [
        float(means[n])
        for n in sorted(visible)
        if max(abs(a - b) for a, b in zip(at, (n // (h * w), n // w % h, n % w), strict=True)) == 1
    ]
    return sum(near) / len(near) if near else sum(float(means[n]) for n in visible) / len(visible)


@settings(deadline=None, max_examples=40)
@given(st.tuples(*[st.integers(1, 4)] * 3), st.sampled_from([0.3, 0.75, 0.95]), st.integers(0, 10**6))
def test_the_neighbour_mean_equals_a_loop(grid: tuple[int, int, int], ratio: float, seed: int) -> None:
    count = grid[0] * grid[1] * grid[2]
    if count < 2:
        return
    generator = torch.Generator().manual_seed(seed)
    patches = torch.randn(2, count, 8, generator=generator)
    visible, masked = draw_mask(2, grid, ratio, generator)
    found = neighbour_mean(patches, visible, masked, grid)
    for row in range(2):
        means = patches[row].double().mean(-1).numpy()
        expected = [neighbours_by_loop(means, set(visible[row].tolist()), grid, p) for p in masked[row].tolist()]
        np.testing.assert_allclose(found[row].numpy(), expected, atol=1e-5)


def test_masked_patches_do_not_enter_the_neighbour_mean() -> None:
    generator = torch.Generator().manual_seed(0)
    patches = torch.randn(1, 64, 8, generator=generator)
    visible, masked = draw_mask(1, (4, 4, 4), 0.75, generator)
    disturbed = patches.clone()
    disturbed[0, masked[0]] = 1e6
    results = [neighbour_mean(p, visible, masked, (4, 4, 4)) for p in (patches, disturbed)]
    assert torch.equal(*results)


def test_modality_means_are_those_of_body_voxels(make_job: MakeJob) -> None:
    job = small(make_job)
    patients = memory_patients(SETS)
    voxels: dict[str, list[float]] = {"CT": [], "T1": []}
    for item in volume_crops(patients, job, "a", "means"):
        for image, body in zip(item.batch.images.numpy(), item.batch.body.numpy(), strict=True):
            voxels[item.modality] += [float(v) for v in image[body]]
    means = modality_means(patients, job, "a")
    assert list(means) == ["CT", "T1", "PET"]
    assert means["PET"] == 0
    for modality, values in voxels.items():
        assert means[modality] == pytest.approx(sum(values) / len(values), rel=1e-5)


def test_evaluation_crops_are_fixed_and_those_of_each_purpose_their_own(make_job: MakeJob) -> None:
    job, patients = small(make_job), memory_patients(SETS)

    def corners(site: str = "a", purpose: str = "x", job: JobConfig = job) -> list[list[list[int]]]:
        return [item.batch.corner.tolist() for item in volume_crops(patients, job, site, purpose)]

    assert corners() == corners()
    assert corners() != corners(purpose="y")
    assert corners() != corners(site="b")
    assert corners() != corners(job=small(make_job, seed=1))
    assert corners()[0] != corners()[1], "two modalities of a patient are seen at independent places"


def test_at_most_so_many_patients_are_measured(make_job: MakeJob) -> None:
    job = make_job(evaluation={"patients": 2, "crops": 1})
    found = [(item.patient, item.modality) for item in volume_crops(memory_patients([["CT"]] * 4), job, "a", "x")]
    assert found == [(0, "CT"), (1, "CT")]
