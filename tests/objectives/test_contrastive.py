"""Soft contrast against loops over patients, and its limits (METHODS 3.3, 9.1, 9.3)."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from parametrium.clinical.similarity import Similarity, gower
from parametrium.config import JobConfig
from parametrium.data.batch import Batch, CropRequest
from parametrium.objectives.contrastive import SoftContrastive, soft_contrastive_loss, soft_targets, standardise_views
from parametrium.objectives.registry import PretrainingModel, build_model

Matrix = list[list[float]]

sizes = st.integers(2, 7)
seeds = st.integers(0, 2**20)
softnesses = st.sampled_from([0.0, 0.1, 0.5, 1.0])
temperatures = st.sampled_from([0.05, 0.1, 1.0])


def targets_by_loop(gowers: Matrix, coverage: Matrix, softness: float, temperature: float) -> Matrix:
    count = len(gowers)
    rows = []
    for i in range(count):
        shares = [math.exp(gowers[i][j] / temperature) if j != i and coverage[i][j] > 0 else 0.0 for j in range(count)]
        total = sum(shares)
        own = [float(j == i) for j in range(count)]
        soft = [(1 - softness) * o + softness * s / total for o, s in zip(own, shares, strict=True)] if total else own
        rows.append(soft)
    return rows


def loss_by_loop(logits: Matrix, targets: Matrix) -> float:
    count = len(logits)
    total = 0.0
    for table in (logits, [list(column) for column in zip(*logits, strict=True)]):
        for i in range(count):
            partition = math.log(sum(math.exp(score) for score in table[i]))
            for j in range(count):
                if targets[i][j] > 0:
                    total += targets[i][j] * (math.log(targets[i][j]) - (table[i][j] - partition)) / count
    return total / 2


def random_similarity(count: int, seed: int, missing: float = 0.3) -> Similarity:
    generator = torch.Generator().manual_seed(seed)
    value, coverage = torch.rand(2, count, count, generator=generator, dtype=torch.float64)
    coverage = torch.where(coverage < missing, 0.0, coverage)
    return Similarity((value + value.T) / 2, torch.minimum(coverage, coverage.T))


def random_logits(count: int, seed: int) -> Tensor:
    return 3 * torch.randn(count, count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(sizes, seeds, softnesses, temperatures)
def test_targets_equal_a_loop(count: int, seed: int, softness: float, temperature: float) -> None:
    similarity = random_similarity(count, seed)
    expected = targets_by_loop(similarity.gower.tolist(), similarity.coverage.tolist(), softness, temperature)
    assert torch.allclose(soft_targets(similarity, softness, temperature), torch.tensor(expected).double(), atol=1e-6)


@given(sizes, seeds, softnesses, temperatures)
def test_rows_of_targets_sum_to_one(count: int, seed: int, softness: float, temperature: float) -> None:
    targets = soft_targets(random_similarity(count, seed), softness, temperature)
    assert torch.allclose(targets.sum(1), torch.ones(count, dtype=torch.float64))
    assert (targets >= 0).all()
    assert torch.isfinite(targets).all()


def test_rows_not_columns_are_distributions() -> None:
    """The published y-aware weights were normalised along the wrong axis; for an uneven similarity the two differ."""
    value = torch.tensor([[1.0, 0.9, 0.1], [0.9, 1.0, 0.5], [0.1, 0.5, 1.0]], dtype=torch.float64)
    targets = soft_targets(Similarity(value, torch.ones_like(value)), 0.5, 0.1)
    assert torch.allclose(targets.sum(1), torch.ones(3, dtype=torch.float64))
    assert not torch.allclose(targets.sum(0), torch.ones(3, dtype=torch.float64), atol=0.05)
    assert targets[0, 1] > targets[0, 2]


@given(sizes, seeds, softnesses)
def test_a_patient_is_never_its_own_negative(count: int, seed: int, softness: float) -> None:
    similarity = random_similarity(count, seed, missing=0.0)
    own = soft_targets(similarity, softness, 0.1).diagonal()
    assert torch.allclose(own, torch.full((count,), 1 - softness, dtype=torch.float64))


@given(sizes, seeds)
def test_without_clinical_rows_targets_are_one_hot(count: int, seed: int) -> None:
    value = random_similarity(count, seed).gower
    assert torch.equal(soft_targets(Similarity(value, torch.zeros_like(value)), 0.4, 0.1), torch.eye(count).double())


def test_a_patient_without_clinical_row_gets_and_gives_no_soft_share(make_job: Callable[..., JobConfig]) -> None:
    values, observed = torch.rand(4, 3), torch.ones(4, 3, dtype=torch.bool)
    observed[2] = False
    targets = soft_targets(gower(values, observed, make_job().clinical), 0.3, 0.1)
    assert targets[2].tolist() == [0, 0, 1, 0]
    assert targets[:, 2].tolist() == [0, 0, 1, 0]
    assert torch.allclose(targets.sum(1), torch.ones(4))


@given(sizes, seeds)
def test_without_softness_the_loss_is_info_nce(count: int, seed: int) -> None:
    logits = random_logits(count, seed)
    targets = soft_targets(random_similarity(count, seed), 0.0, 0.1)
    by_hand = 0.0
    for table in (logits.tolist(), logits.T.tolist()):
        for i in range(count):
            by_hand -= math.log(math.exp(table[i][i]) / sum(math.exp(score) for score in table[i])) / (2 * count)
    assert float(soft_contrastive_loss(logits, targets)) == pytest.approx(by_hand, rel=1e-9)


@given(sizes, seeds, st.sampled_from([0.1, 0.3]), st.floats(0, 1))
def test_equal_similarity_is_label_smoothing(count: int, seed: int, softness: float, level: float) -> None:
    logits = random_logits(count, seed)
    value = torch.full((count, count), level, dtype=torch.float64)
    targets = soft_targets(Similarity(value, torch.ones_like(value)), softness, 0.1)
    # torch spreads its smoothing over all classes, the own one included.
    smoothing = softness * count / (count - 1)
    if smoothing > 1:
        return
    own = torch.arange(count)
    cross_entropy = (
        F.cross_entropy(logits, own, label_smoothing=smoothing)
        + F.cross_entropy(logits.T, own, label_smoothing=smoothing)
    ) / 2
    entropy = -(1 - softness) * math.log(1 - softness) - softness * math.log(softness / (count - 1))
    expected = float(cross_entropy) - entropy
    assert float(soft_contrastive_loss(logits, targets)) == pytest.approx(expected, abs=1e-9)


@given(sizes, seeds, softnesses)
def test_the_loss_equals_a_loop_and_is_not_negative(count: int, seed: int, softness: float) -> None:
    logits, targets = random_logits(count, seed), soft_targets(random_similarity(count, seed), softness, 0.1)
    loss = float(soft_contrastive_loss(logits, targets))
    assert loss == pytest.approx(loss_by_loop(logits.tolist(), targets.tolist()), abs=1e-9)
    assert loss >= -1e-12


@given(sizes, seeds)
def test_the_loss_is_zero_where_the_prediction_is_the_target(count: int, seed: int) -> None:
    # Symmetric and doubly stochastic, so that one matrix of logits is right in both directions.
    ring = torch.eye(count, dtype=torch.float64).roll(1, 0)
    targets = 0.6 * torch.eye(count, dtype=torch.float64) + 0.2 * (ring + ring.T)
    shift = float(random_logits(1, seed))
    loss = soft_contrastive_loss((targets + 1e-300).log() + shift, targets)
    assert float(loss) == pytest.approx(0, abs=1e-9)


@given(sizes, seeds, softnesses)
def test_the_order_of_patients_does_not_matter(count: int, seed: int, softness: float) -> None:
    logits, similarity = random_logits(count, seed), random_similarity(count, seed)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    moved = Similarity(*(matrix[order][:, order] for matrix in similarity))
    targets, moved_targets = soft_targets(similarity, softness, 0.1), soft_targets(moved, softness, 0.1)
    assert torch.allclose(moved_targets, targets[order][:, order])
    moved_loss = soft_contrastive_loss(logits[order][:, order], moved_targets)
    assert float(moved_loss) == pytest.approx(float(soft_contrastive_loss(logits, targets)), abs=1e-9)


@pytest.mark.parametrize("softness", [0.0, 0.3, 1.0])
def test_the_gradient_is_that_of_the_loss(softness: float) -> None:
    logits = random_logits(4, 3).requires_grad_()
    targets = soft_targets(random_similarity(4, 3), softness, 0.1)
    assert torch.autograd.gradcheck(lambda x: soft_contrastive_loss(x, targets), logits)


# ------------------------------------------------------------------------------------------------- the objective


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


@torch.no_grad()
@pytest.mark.parametrize(("softness", "crops"), [(0.0, 1), (0.4, 1), (0.4, 3)])
def test_the_objective_equals_crops_encoded_one_by_one(
    make_job: Callable[..., JobConfig], make_batch: Callable[..., Batch], softness: float, crops: int
) -> None:
    model, objective = contrast_model(make_job, mask_ratio=0.0, softness=softness, temperature=0.25, crops=crops)
    batch = make_batch([[0] * crops + [2] * crops] * 4, aligned=False)
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
    logits = [[float((unit[0][i] * unit[1][j]).sum()) / 0.25 for j in range(4)] for i in range(4)]
    known = gower(batch.clinical, batch.observed, objective.clinical)
    targets = targets_by_loop(known.gower.tolist(), known.coverage.tolist(), softness, 0.1)
    assert float(outcome.loss) == pytest.approx(loss_by_loop(logits, targets), abs=1e-4)


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
def test_masked_voxels_do_not_reach_the_views(
    make_job: Callable[..., JobConfig], make_batch: Callable[..., Batch]
) -> None:
    model, objective = contrast_model(make_job)
    batch = make_batch([[0, 1]] * 2, aligned=False)
    visible = torch.arange(32).expand(4, -1)  # the first half of the volume
    disturbed = batch.images.clone()
    disturbed[:, 8:] += 100
    same = [objective.views(model.encoder, images, batch.modality, visible) for images in (batch.images, disturbed)]
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
@pytest.mark.parametrize("order", [[1, 0, 2, 3], [3, 2, 1, 0], [2, 3, 0, 1]])
def test_the_objective_does_not_care_in_which_order_patients_come(
    make_job: Callable[..., JobConfig], make_batch: Callable[..., Batch], order: list[int]
) -> None:
    model, objective = contrast_model(make_job, mask_ratio=0.0, softness=0.3)
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
    loss = soft_contrastive_loss(5 * unit @ unit.T, torch.eye(4))
    loss.backward()
    assert float(loss.detach()) == pytest.approx(math.log(4))
    assert torch.isfinite(views.grad).all()
