"""The forms of soft contrast against loops over patients, and their limits (METHODS 3.3, 9.1, 9.3)."""

import math
from collections.abc import Callable

import pytest
import torch
from contrast_loops import sigmoid_by_loop, softmax_by_loop, targets_by_loop, weighted_by_loop
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr
from torch import Tensor
from torch.nn import functional as F

from parametrium.clinical.similarity import Similarity, gower
from parametrium.config import JobConfig
from parametrium.objectives.contrast_loss import (
    best_constant,
    limited_scale,
    negative_weights,
    pair_targets,
    sigmoid_loss,
    soft_targets,
    softmax_loss,
    weighted_negatives_loss,
)

sizes = st.integers(2, 7)
seeds = st.integers(0, 2**20)
softnesses = st.sampled_from([0.0, 0.1, 0.5, 1.0])
temperatures = st.sampled_from([0.05, 0.1, 1.0])


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
    assert float(softmax_loss(logits, targets)) == pytest.approx(by_hand, rel=1e-9)


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
    assert float(softmax_loss(logits, targets)) == pytest.approx(expected, abs=1e-9)


@given(sizes, seeds, softnesses)
def test_the_loss_equals_a_loop_and_is_not_negative(count: int, seed: int, softness: float) -> None:
    logits, targets = random_logits(count, seed), soft_targets(random_similarity(count, seed), softness, 0.1)
    loss = float(softmax_loss(logits, targets))
    assert loss == pytest.approx(softmax_by_loop(logits.tolist(), targets.tolist()), abs=1e-9)
    assert loss >= -1e-12


@given(sizes, seeds)
def test_the_loss_is_zero_where_the_prediction_is_the_target(count: int, seed: int) -> None:
    # Symmetric and doubly stochastic, so that one matrix of logits is right in both directions.
    ring = torch.eye(count, dtype=torch.float64).roll(1, 0)
    targets = 0.6 * torch.eye(count, dtype=torch.float64) + 0.2 * (ring + ring.T)
    shift = float(random_logits(1, seed))
    loss = softmax_loss((targets + 1e-300).log() + shift, targets)
    assert float(loss) == pytest.approx(0, abs=1e-9)


# ------------------------------------------------------------------------------------------------- pairwise sigmoid


@given(sizes, seeds, softnesses, st.sampled_from([0.5, 1.0, 4.0]))
def test_pair_targets_equal_a_loop(count: int, seed: int, softness: float, power: float) -> None:
    similarity = random_similarity(count, seed)
    targets = pair_targets(similarity, softness, power)
    for i in range(count):
        for j in range(count):
            known = float(similarity.coverage[i, j]) > 0
            soft = softness * float(similarity.gower[i, j]) ** power if known else 0.0
            assert float(targets[i, j]) == pytest.approx(1.0 if i == j else soft)


@given(sizes, seeds, softnesses)
def test_the_sigmoid_loss_equals_a_loop_and_is_not_negative(count: int, seed: int, softness: float) -> None:
    logits, targets = random_logits(count, seed), pair_targets(random_similarity(count, seed), softness, 4.0)
    loss = float(sigmoid_loss(logits, targets))
    assert loss == pytest.approx(sigmoid_by_loop(logits.tolist(), targets.tolist()), abs=1e-9)
    assert loss >= -1e-12


@given(sizes, seeds)
def test_without_softness_the_sigmoid_loss_is_that_of_siglip(count: int, seed: int) -> None:
    logits = random_logits(count, seed)
    signs = 2 * torch.eye(count, dtype=torch.float64) - 1
    expected = -F.logsigmoid(signs * logits).sum() / count
    found = sigmoid_loss(logits, pair_targets(random_similarity(count, seed), 0.0, 4.0))
    assert float(found) == pytest.approx(float(expected), rel=1e-9)


@given(sizes, seeds)
def test_the_sigmoid_loss_is_zero_only_where_every_pair_has_its_target(count: int, seed: int) -> None:
    targets = pair_targets(random_similarity(count, seed), 0.5, 1.0).clamp(1e-6, 1 - 1e-6)
    assert float(sigmoid_loss(targets.logit(), targets)) == pytest.approx(0, abs=1e-9)
    changed = targets.logit()
    changed[0, 1] += 0.3
    assert float(sigmoid_loss(changed, targets)) > 1e-9


@given(sizes, seeds, softnesses, st.floats(-3, 3))
def test_no_other_constant_is_better_than_the_best(count: int, seed: int, softness: float, shift: float) -> None:
    targets = pair_targets(random_similarity(count, seed), softness, 4.0)
    best = best_constant(targets)
    assert float(sigmoid_loss(best, targets)) <= float(sigmoid_loss(best + shift, targets)) + 1e-6


def test_the_best_constant_is_finite_where_all_patients_are_the_same() -> None:
    ones = torch.ones(3, 3, dtype=torch.float64)
    targets = pair_targets(Similarity(ones, ones), 1.0, 4.0)
    assert float(sigmoid_loss(best_constant(targets), targets)) == pytest.approx(0, abs=1e-5)


# ------------------------------------------------------------------------------------------------ weighted negatives


@given(sizes, seeds, softnesses)
def test_negative_weights_equal_a_loop(count: int, seed: int, softness: float) -> None:
    similarity = random_similarity(count, seed)
    weights = negative_weights(similarity, softness)
    for i in range(count):
        for j in range(count):
            known = float(similarity.coverage[i, j]) > 0 and i != j
            assert float(weights[i, j]) == pytest.approx(1 - softness * float(similarity.gower[i, j]) * known)


@given(sizes, seeds, softnesses)
def test_the_weighted_loss_equals_a_loop(count: int, seed: int, softness: float) -> None:
    logits, weights = random_logits(count, seed), negative_weights(random_similarity(count, seed), softness)
    expected = weighted_by_loop(logits.tolist(), weights.tolist())
    assert float(weighted_negatives_loss(logits, weights)) == pytest.approx(expected, abs=1e-9)


@given(sizes, seeds)
def test_without_softness_weighted_negatives_are_info_nce(count: int, seed: int) -> None:
    logits, similarity = random_logits(count, seed), random_similarity(count, seed)
    info_nce = softmax_loss(logits, soft_targets(similarity, 0.0, 0.1))
    found = weighted_negatives_loss(logits, negative_weights(similarity, 0.0))
    assert float(found) == pytest.approx(float(info_nce), rel=1e-9)


def test_two_equal_patients_do_not_push_each_other_at_all() -> None:
    ones = torch.ones(2, 2, dtype=torch.float64)
    logits = random_logits(2, 0).requires_grad_()
    loss = weighted_negatives_loss(logits, negative_weights(Similarity(ones, ones), 1.0))
    loss.backward()
    assert float(loss.detach()) == 0
    assert torch.equal(logits.grad, torch.zeros(2, 2, dtype=torch.float64))


@given(st.floats(-20, 20), st.sampled_from([0.1, 0.5, 0.9]))
def test_an_alike_patient_is_pushed_less_than_a_stranger_at_the_same_distance(score: float, alike: float) -> None:
    """Near or far. A weight in the exponent fails this for s < 0: (1 - .5) e^(-10 / 2) is 75 times e^-10."""
    value = torch.zeros(3, 3, dtype=torch.float64)
    value[0, 1] = value[1, 0] = alike
    logits = torch.full((3, 3), score, dtype=torch.float64)
    logits.fill_diagonal_(5.0).requires_grad_()
    weights = negative_weights(Similarity(value, torch.ones_like(value)), 1.0)
    weighted_negatives_loss(logits, weights).backward()
    assert 0 < float(logits.grad[0, 1]) < float(logits.grad[0, 2])
    hard = logits.detach().clone().requires_grad_()
    weighted_negatives_loss(hard, torch.ones_like(weights)).backward()
    assert float(logits.grad[0, 1]) <= float(hard.grad[0, 1])


def test_a_weight_in_the_exponent_would_push_an_alike_and_distant_patient_harder() -> None:
    """Why the weight is a factor: the numbers of METHODS 3.3, S = .5 and s = -10."""
    exponent, factor, hard = 0.5 * math.exp(-10 * 0.5), 0.5 * math.exp(-10), math.exp(-10)
    assert factor < hard < exponent


# ------------------------------------------------------------------------------------------------------- all forms

LOSSES: dict[str, Callable[[Tensor, Similarity, float], Tensor]] = {
    "softmax": lambda logits, similarity, a: softmax_loss(logits, soft_targets(similarity, a, 0.1)),
    "sigmoid": lambda logits, similarity, a: sigmoid_loss(logits, pair_targets(similarity, a, 4.0)),
    "weighted_negatives": lambda logits, similarity, a: weighted_negatives_loss(
        logits, negative_weights(similarity, a)
    ),
}
forms = st.sampled_from(sorted(LOSSES))


@given(forms, sizes, seeds, softnesses)
def test_the_order_of_patients_does_not_matter(form: str, count: int, seed: int, softness: float) -> None:
    logits, similarity = random_logits(count, seed), random_similarity(count, seed)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    moved = Similarity(*(matrix[order][:, order] for matrix in similarity))
    losses = LOSSES[form](logits, similarity, softness), LOSSES[form](logits[order][:, order], moved, softness)
    assert float(losses[0]) == pytest.approx(float(losses[1]), abs=1e-9)


@given(forms, sizes, seeds, st.sampled_from([0.1, 0.5, 0.9]))
def test_own_pairs_are_pulled_and_never_pushed(form: str, count: int, seed: int, softness: float) -> None:
    """A patient is never its own negative: at the same scores for all, more on the diagonal is less loss."""
    similarity = random_similarity(count, seed)
    softness = min(softness, 0.9 / count)  # the own target is then the largest
    logits = torch.zeros(count, count, dtype=torch.float64, requires_grad=True)
    LOSSES[form](logits, similarity, softness).backward()
    assert (logits.grad.diagonal() < 0).all()


@pytest.mark.parametrize("softness", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("form", LOSSES)
def test_the_gradient_is_that_of_the_loss(form: str, softness: float) -> None:
    logits, similarity = random_logits(4, 3).requires_grad_(), random_similarity(4, 3)
    assert torch.autograd.gradcheck(lambda x: LOSSES[form](x, similarity, softness), logits)


@pytest.mark.parametrize("form", ["softmax", "sigmoid"])
def test_soft_forms_pull_the_alike_nearer_than_the_unlike(form: str) -> None:
    value = torch.tensor([[1.0, 0.9, 0.1], [0.9, 1.0, 0.5], [0.1, 0.5, 1.0]], dtype=torch.float64)
    logits = torch.zeros(3, 3, dtype=torch.float64, requires_grad=True)
    LOSSES[form](logits, Similarity(value, torch.ones_like(value)), 0.5).backward()
    assert float(logits.grad[0, 1]) < float(logits.grad[0, 2])


def order_after_training(form: str, softness: float) -> float:
    """Rank correlation of distance with clinical distance of free embeddings that are trained with a loss alone."""
    count = 12
    generator = torch.Generator().manual_seed(0)
    stage = torch.linspace(0, 1, count, dtype=torch.float64)[torch.randperm(count, generator=generator)]
    alike = 1 - (stage[:, None] - stage[None]).abs()
    similarity = Similarity(alike, torch.ones_like(alike))
    views = torch.randn(2, count, 16, generator=generator, dtype=torch.float64).requires_grad_()
    bias = torch.tensor(-math.log(count - 1), dtype=torch.float64).requires_grad_()
    optimiser = torch.optim.Adam([views, bias], 0.05)
    for _ in range(150):
        a, b = F.normalize(views, dim=-1)
        logits = a @ b.T / 0.2 + (bias if form == "sigmoid" else 0)
        optimiser.zero_grad()
        LOSSES[form](logits, similarity, softness).backward()
        optimiser.step()
    a, b = F.normalize(views.detach(), dim=-1)
    pairs = ~torch.eye(count, dtype=torch.bool)
    return float(spearmanr((1 - a @ b.T)[pairs], (1 - alike)[pairs]).statistic)


@pytest.mark.parametrize(("form", "softness"), [("softmax", 0.3), ("sigmoid", 0.3), ("weighted_negatives", 1.0)])
def test_soft_forms_order_patients_by_clinical_similarity_and_hard_ones_do_not(form: str, softness: float) -> None:
    assert order_after_training(form, softness) > 0.5
    assert abs(order_after_training(form, 0.0)) < 0.3


def test_a_scale_that_was_too_large_can_come_back() -> None:
    scale = torch.tensor(6.0, requires_grad=True)  # e^6 is 403
    limited_scale(scale).backward()
    assert float(limited_scale(scale).detach()) == pytest.approx(100.0)
    assert float(scale.grad or 0) == pytest.approx(100.0)
    below = torch.tensor(1.0, requires_grad=True)
    limited_scale(below).backward()
    assert float(below.grad or 0) == pytest.approx(math.e) == float(limited_scale(below).detach())
