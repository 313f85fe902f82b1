"""The contrastive objective against crops encoded one by one, its chance level, and who is compared with whom."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from contrast_loops import sigmoid_by_loop, softmax_by_loop, targets_by_loop, weighted_by_loop
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from memory_volumes import memory_patient, memory_volume
from parametrium.clinical.similarity import Similarity, gower
from parametrium.config import JobConfig
from parametrium.data.batch import Batch, CropRequest
from parametrium.data.crops import draw_contrast
from parametrium.objectives.contrast_loss import softmax_loss
from parametrium.objectives.contrastive import SoftContrastive, standardise_views
from parametrium.objectives.registry import PretrainingModel, build_model

KIND = "soft_contrastive"
FORMS = ["softmax", "sigmoid", "weighted_negatives"]
sizes = st.integers(2, 7)
seeds = st.integers(0, 2**20)


def contrast_model(make_job: Callable[..., JobConfig], **settings: object) -> tuple[PretrainingModel, SoftContrastive]:
    model = build_model(make_job(objectives=[{"kind": "soft_contrastive", "crops": 1, **settings}])).eval()
    objective = model.objective("soft_contrastive")
    assert isinstance(objective, SoftContrastive)
    return model, objective


def seed_0() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_it_asks_for_two_views_at_independent_places(make_job: Callable[..., JobConfig]) -> None:
    _, objective = contrast_model(make_job, crops=4)
    assert objective.request(6, 3) == CropRequest("contrast", 6, 2, 4)
    _, crowd = contrast_model(make_job, patients=16)
    assert crowd.request(6, 3) == CropRequest("contrast", 16, 2)


@pytest.mark.parametrize("pairs", [[[0, 1]], [[2, 2]]])
def test_one_patient_has_nobody_to_be_compared_with(
    make_job: Callable[..., JobConfig], make_batch: Callable[..., Batch], pairs: Sequence[list[int]]
) -> None:
    model, objective = contrast_model(make_job)
    assert objective(model.encoder, make_batch(pairs, aligned=False), seed_0()) is None


def standardised_by_loop(rows: Sequence[Tensor]) -> list[Tensor]:
    """Centred on the mean of all rows, each channel over its deviation, at least a tenth of the channels' rms."""
    mean = sum(rows) / len(rows)
    deviation = [math.sqrt(sum(float(row[c] - mean[c]) ** 2 for row in rows) / len(rows)) for c in range(len(mean))]
    floor = 0.1 * math.sqrt(sum(d**2 for d in deviation) / len(deviation))
    return [(row - mean) / torch.tensor([max(d, floor) for d in deviation]) for row in rows]


def loss_by_loop(form: str, cosines: list[list[float]], similarity: Similarity, softness: float) -> float:
    """At an initial temperature of .25 and, for the sigmoid, a bias that gives an own pair the odds of 1 in 4."""
    gowers, coverage = similarity.gower.tolist(), similarity.coverage.tolist()
    scores = [[cosine / 0.25 for cosine in row] for row in cosines]
    known = [[coverage[i][j] > 0 and i != j for j in range(4)] for i in range(4)]
    if form == "sigmoid":
        soft = [[softness * gowers[i][j] ** 4 * known[i][j] if i != j else 1.0 for j in range(4)] for i in range(4)]
        return sigmoid_by_loop([[score - math.log(3) for score in row] for row in scores], soft)
    if form == "weighted_negatives":
        weights = [[1 - softness * gowers[i][j] * known[i][j] for j in range(4)] for i in range(4)]
        return weighted_by_loop(scores, weights)
    return softmax_by_loop(scores, targets_by_loop(gowers, coverage, softness, 0.1))


@torch.no_grad()
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("softness", "crops"), [(0.0, 1), (0.4, 1), (0.4, 3)])
def test_the_objective_equals_crops_encoded_one_by_one(
    make_job: Callable[..., JobConfig], make_batch: Callable[..., Batch], form: str, softness: float, crops: int
) -> None:
    config = {"form": form, "mask_ratio": 0.0, "softness": softness, "temperature": 0.25, "crops": crops}
    model, objective = contrast_model(make_job, **config)
    batch = make_batch([[0] * crops + [2] * crops] * 4, aligned=False)
    batch.observed[3] = False  # of one patient nothing is known
    outcome = objective(model.encoder, batch, seed_0())
    views: list[list[Tensor]] = [[], []]
    for patient in range(4):
        for view in (0, 1):
            first = (2 * patient + view) * crops
            pooled = []
            for n in range(first, first + crops):
                crop, modality = batch.images[n, None], batch.modality[n, None]
                (tokens,) = model.encoder.encode(crop, modality, objective.spacing_mm).patches
                pooled.append(torch.cat([tokens.mean(0), (tokens.var(0, unbiased=False) + 1e-6).sqrt()]))
            views[view].append(sum(pooled) / crops)
    z = [[objective.projector(row) for row in standardised_by_loop(view)] for view in views]
    unit = [[row / row.norm() for row in view] for view in z]
    cosines = [[float((unit[0][i] * unit[1][j]).sum()) for j in range(4)] for i in range(4)]
    known = gower(batch.clinical, batch.observed, objective.clinical)
    assert float(outcome.loss) == pytest.approx(loss_by_loop(form, cosines, known, softness), abs=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("softness", [0.0, 0.4])
def test_chance_is_the_loss_of_equal_scores(
    make_job: Callable[..., JobConfig], make_batch: Callable[..., Batch], softness: float
) -> None:
    model, objective = contrast_model(make_job, softness=softness)
    batch = make_batch([[0, 1]] * 5, aligned=False)
    chance = objective(model.encoder, batch, seed_0()).scalars["chance"]
    known = gower(batch.clinical, batch.observed, objective.clinical)
    targets = targets_by_loop(known.gower.tolist(), known.coverage.tolist(), softness, 0.1)
    entropies = [-sum(q * math.log(q) for q in row if q > 0) for row in targets]
    assert chance == pytest.approx(math.log(5) - sum(entropies) / 5, abs=1e-5)


@torch.no_grad()
def test_chance_of_the_sigmoid_is_the_loss_of_the_best_constant(
    make_job: Callable[..., JobConfig], make_batch: Callable[..., Batch]
) -> None:
    model, objective = contrast_model(make_job, form="sigmoid", softness=0.0)
    chance = objective(model.encoder, make_batch([[0, 1]] * 5, aligned=False), seed_0()).scalars["chance"]
    # One pair in five is an own one.
    assert chance == pytest.approx(-5 * (0.2 * math.log(0.2) + 0.8 * math.log(0.8)), abs=1e-5)


@torch.no_grad()
def test_chance_of_weighted_negatives_is_the_share_of_their_weights(
    make_job: Callable[..., JobConfig], make_batch: Callable[..., Batch]
) -> None:
    model, objective = contrast_model(make_job, form="weighted_negatives", softness=0.6)
    batch = make_batch([[0, 1]] * 5, aligned=False)
    chance = objective(model.encoder, batch, seed_0()).scalars["chance"]
    alike = gower(batch.clinical, batch.observed, objective.clinical).gower
    by_hand = sum(math.log(1 + sum(1 - 0.6 * float(alike[i, j]) for j in range(5) if j != i)) for i in range(5)) / 5
    assert chance == pytest.approx(by_hand, abs=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("patients", [4, 8, 16, 32])
def test_the_sigmoid_starts_near_its_chance_level_for_any_number_of_patients(
    make_job: Callable[..., JobConfig], patients: int
) -> None:
    """A scale of 10 and a bias of -5 cost a third more than a constant, a bias of -10 three times as much."""
    config = {"kind": "soft_contrastive", "form": "sigmoid", "patients": patients, "softness": 0.0}
    objective = build_model(make_job(model={"preset": "tiny", "patch": 4}, objectives=[config])).objective(KIND)
    assert isinstance(objective, SoftContrastive)
    nothing = Similarity(torch.zeros(patients, patients), torch.zeros(patients, patients))
    generator = torch.Generator().manual_seed(0)
    excess = []
    for _ in range(20):
        views = torch.randn(2, patients, objective.projector[0].normalized_shape[0], generator=generator)
        a, b = (objective.project(standardise_views(view)) for view in views)
        loss, chance = objective.loss(a @ b.T, nothing)
        excess.append(float(loss / chance))
    assert sum(excess) / len(excess) < 1.25


@pytest.mark.parametrize("form", FORMS)
def test_every_part_of_the_objective_is_trained(
    make_job: Callable[..., JobConfig], make_batch: Callable[..., Batch], form: str
) -> None:
    model, objective = contrast_model(make_job, form=form)
    objective(model.encoder, make_batch([[0, 1]] * 4, aligned=False), seed_0()).loss.backward()
    assert all(parameter.grad is not None for parameter in objective.parameters())
    assert ("pair_bias" in dict(objective.named_parameters())) == (form == "sigmoid")


@pytest.mark.parametrize("form", FORMS)
def test_training_leaves_chance_and_finds_the_patients(
    make_job: Callable[..., JobConfig], make_batch: Callable[..., Batch], form: str
) -> None:
    """Both views of a patient are one crop with its own noise: an easy task, which each form must solve."""
    model, objective = contrast_model(make_job, form=form, mask_ratio=0.0, patients=6)
    batch = make_batch([[0, 0]] * 6, aligned=False)
    batch.images[1::2] = batch.images[::2] + 0.1 * batch.images[1::2]
    optimiser = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(40):
        outcome = objective(model.encoder, batch, seed_0())
        optimiser.zero_grad()
        outcome.loss.backward()
        optimiser.step()
    assert float(outcome.loss.detach()) < 0.5 * outcome.scalars["chance"]


@torch.no_grad()
def test_scores_are_compared_in_full_precision_under_autocast(
    make_job: Callable[..., JobConfig], make_batch: Callable[..., Batch], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, objective = contrast_model(make_job)
    seen: list[torch.dtype] = []
    loss = objective.loss
    monkeypatch.setattr(objective, "loss", lambda cosines, known: (seen.append(cosines.dtype), loss(cosines, known))[1])
    with torch.autocast("cpu", torch.bfloat16):
        outcome = objective(model.encoder, make_batch([[0, 1]] * 4, aligned=False), seed_0())
    assert seen == [torch.float32]
    assert outcome.loss.dtype == torch.float32


@settings(max_examples=30)
@given(st.lists(st.lists(st.sampled_from(["CT", "T1"]), min_size=1, max_size=5), min_size=2, max_size=5), seeds)
def test_other_scans_of_a_patient_are_never_its_negatives(sets: list[list[str]], seed: int) -> None:
    """Several studies and repeated scans: every patient stands in the batch once, so all others are other patients."""
    patients = [
        memory_patient(f"p{p}", [memory_volume(m, study=f"s{n}", frame=f"f{n}", seed=n) for n, m in enumerate(names)])
        for p, names in enumerate(sets)
    ]
    taken, crops = draw_contrast(np.random.default_rng(seed), patients, (8, 8, 8), 4)
    assert len(set(taken)) == len(taken)
    for view in (0, 1):
        owners = [
            next(p for p, patient in enumerate(patients) if any(c.volume is v for v in patient.volumes))
            for c in crops[view::2]
        ]
        assert owners == taken


@torch.no_grad()
def test_masked_voxels_do_not_reach_the_views(
    make_job: Callable[..., JobConfig], make_batch: Callable[..., Batch]
) -> None:
    model, objective = contrast_model(make_job)
    batch = make_batch([[0, 1]] * 2, aligned=False)
    visible = torch.arange(32).expand(4, -1)  # the first half of the volume
    disturbed = batch.images.clone()
    disturbed[:, 8:] += 100
    same = [
        objective.views(model.encoder, images, batch.modality, visible, 2 * batch.patients)
        for images in (batch.images, disturbed)
    ]
    assert torch.equal(*same)


@torch.no_grad()
def test_the_inverse_temperature_is_clamped_to_100(
    make_job: Callable[..., JobConfig], make_batch: Callable[..., Batch]
) -> None:
    model, objective = contrast_model(make_job)
    batch = make_batch([[0, 1]] * 3, aligned=False)
    losses = []
    for log_scale in (math.log(100), 9.0):
        objective.log_scale.fill_(log_scale)
        losses.append(objective(model.encoder, batch, seed_0()).loss)
    assert torch.allclose(*losses)


@torch.no_grad()
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("order", [[1, 0, 2, 3], [3, 2, 1, 0], [2, 3, 0, 1]])
def test_the_objective_does_not_care_in_which_order_patients_come(
    make_job: Callable[..., JobConfig], make_batch: Callable[..., Batch], order: list[int], form: str
) -> None:
    model, objective = contrast_model(make_job, form=form, mask_ratio=0.0, softness=0.3)
    batch = make_batch([[0, 1]] * 4, aligned=False)
    crops = [2 * p + view for p in order for view in (0, 1)]
    moved = replace(
        batch,
        images=batch.images[crops],
        modality=batch.modality[crops],
        clinical=batch.clinical[order],
        observed=batch.observed[order],
    )
    losses = [objective(model.encoder, b, seed_0()).loss for b in (batch, moved)]
    assert torch.allclose(*losses, atol=1e-5)


@given(sizes, seeds)
def test_views_are_standardised_as_a_loop_does_it(count: int, seed: int) -> None:
    views = torch.randn(count, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    views[:, 3] *= 1e-3  # hardly differs between patients: stays small
    found = standardise_views(views)
    assert torch.allclose(found, torch.stack(standardised_by_loop(list(views))), atol=1e-4)
    # What all have in common, and its scale, are gone.
    assert torch.allclose(standardise_views(1000 + 3 * views), found, atol=1e-4)
    assert found[:, 3].abs().max() < 0.5


def test_equal_views_are_chance_and_have_a_finite_gradient(make_job: Callable[..., JobConfig]) -> None:
    _, objective = contrast_model(make_job)
    views = torch.ones(4, objective.projector[0].normalized_shape[0], requires_grad=True)
    unit = objective.project(standardise_views(views))
    loss = softmax_loss(5 * unit @ unit.T, torch.eye(4))
    loss.backward()
    assert float(loss.detach()) == pytest.approx(math.log(4))
    assert torch.isfinite(views.grad).all()
