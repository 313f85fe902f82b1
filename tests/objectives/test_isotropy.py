"""SIGReg against a double loop with quadrature, its sums over sites, and what its gradient does (METHODS 4.2, 8.6)."""

import math
from collections import Counter
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from torch import Tensor

from memory_volumes import memory_patients
from parametrium.config import JobConfig
from parametrium.data.batch import Batch
from parametrium.data.loader import CropLoader
from parametrium.objectives.isotropy import GAUSSIAN, Isotropy, Sums, draw_directions, knots, mix, statistic, sums
from parametrium.objectives.objective import Outcome
from parametrium.objectives.registry import PretrainingModel, build_model
from parametrium.objectives.schedule import CropPlan
from parametrium.training.step import new_state, train_step

seeds = st.integers(0, 2**20)


def cloud(count: int, channels: int, seed: int = 0, deviation: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return deviation * torch.randn(count, channels, generator=generator, dtype=torch.float64)


def directions(channels: int, number: int = 32) -> Tensor:
    return draw_directions(0, 0, channels, number).double()


def sigreg(z: Tensor, number: int = 32) -> Tensor:
    return statistic(sums(z, directions(z.shape[-1], number), knots().double()), knots().double())


def epps_pulley_by_loops(z: list[list[float]], lines: list[list[float]]) -> float:
    """|phi|^2 as a sum over all pairs of samples, integrated adaptively; no characteristic function in sight."""
    total = 0.0
    for line in lines:
        places = [sum(a * b for a, b in zip(row, line, strict=True)) for row in z]
        n = len(places)

        def integrand(t: float, places: list[float] = places, n: int = n) -> float:
            gaussian = math.exp(-t * t / 2)
            pairs = sum(math.cos(t * (p - q)) for p in places for q in places) / n**2
            single = sum(math.cos(t * p) for p in places) / n
            return (pairs - 2 * gaussian * single + gaussian**2) * gaussian

        total += n * quad(integrand, -3, 3)[0] / len(lines)
    return total


@pytest.mark.parametrize("deviation", [0.0, 0.5, 1.0, 2.0])
def test_the_statistic_equals_a_double_loop_with_quadrature(deviation: float) -> None:
    z, lines = cloud(5, 4, seed=3, deviation=deviation), directions(4, 3)
    expected = epps_pulley_by_loops(z.tolist(), lines.T.tolist())
    fine = knots(2001).double()
    assert float(statistic(sums(z, lines, fine), fine)) == pytest.approx(expected, rel=1e-5)
    usual = knots().double()
    assert float(statistic(sums(z, lines, usual), usual)) == pytest.approx(expected, rel=0.02)


@given(seeds, st.lists(st.integers(1, 5), min_size=2, max_size=5))
def test_sums_of_parts_are_the_sums_of_the_whole(seed: int, sizes: list[int]) -> None:
    z = cloud(sum(sizes), 6, seed)
    parts = [sums(part, directions(6), knots()) for part in z.split(sizes)]
    whole = sums(z, directions(6), knots())
    added = parts[0]
    for part in parts[1:]:
        added = added + part
    assert added.samples == whole.samples == len(z)
    assert torch.allclose(added.cosine, whole.cosine, rtol=0, atol=1e-13)
    assert torch.allclose(added.sine, whole.sine, rtol=0, atol=1e-13)


@given(seeds, st.floats(-1e6, 1e6))
def test_no_patient_moves_a_sum_by_more_than_one(seed: int, far: float) -> None:
    one = sums(far * cloud(1, 6, seed), directions(6), knots())
    assert one.cosine.abs().max() <= 1
    assert one.sine.abs().max() <= 1


@pytest.mark.parametrize("count", [4, 16, 64, 256])
def test_a_gaussian_sample_has_the_same_small_statistic_at_any_size(count: int) -> None:
    values = [float(sigreg(cloud(count, 32, seed))) for seed in range(200)]
    assert sum(values) / 200 == pytest.approx(GAUSSIAN, rel=0.05)


@pytest.mark.parametrize("count", [16, 256])
def test_a_collapsed_sample_has_a_large_statistic(count: int) -> None:
    collapsed = torch.zeros(count, 8, dtype=torch.float64)
    assert float(sigreg(collapsed)) == pytest.approx(0.402 * count, rel=0.01)
    assert float(sigreg(collapsed + 2)) > float(sigreg(collapsed))  # elsewhere than at the origin it is worse still
    flat = cloud(count, 8)
    flat[:, 1:] = 0  # a line: dimensional collapse
    assert float(sigreg(flat)) > 2 * float(sigreg(cloud(count, 8)))


@pytest.mark.parametrize("scale", [0.3, 3.0])
def test_a_cloud_that_is_too_small_or_too_large_is_worse(scale: float) -> None:
    z = cloud(128, 8)
    assert float(sigreg(scale * z)) > 3 * float(sigreg(z))


def test_the_best_spread_of_a_small_sample_is_as_said() -> None:
    for count, expected in ((2, 0.43), (4, 0.75), (16, 0.94)):
        spreads = [expected - 0.15, expected, expected + 0.15]
        means = [sum(float(sigreg(s * cloud(count, 32, seed))) for seed in range(100)) for s in spreads]
        assert min(means) == means[1]


def test_the_gradient_pushes_collapsed_embeddings_apart() -> None:
    z = cloud(32, 8, deviation=1e-2).requires_grad_()
    spreads = []
    for step in range(300):
        lines = draw_directions(0, step, 8, 64).double()
        loss = statistic(sums(z, lines, knots()), knots())
        (gradient,) = torch.autograd.grad(loss, z)
        z = (z - 0.5 * gradient).detach().requires_grad_()
        spreads.append(float(z.detach().std(0).mean()))
    assert spreads[0] > 1e-2
    assert spreads[-1] == pytest.approx(1, abs=0.15)
    covariance = torch.cov(z.detach().T)
    assert (covariance - torch.diag(covariance.diagonal())).abs().max() < 0.3  # in all directions, not along one


def test_the_gradient_is_that_of_the_statistic() -> None:
    z = cloud(4, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: sigreg(x, 5), z)


def test_several_views_are_measured_each_by_itself() -> None:
    views = torch.stack([cloud(12, 8, seed) for seed in range(3)])
    assert float(sigreg(views)) == pytest.approx(sum(float(sigreg(view)) for view in views) / 3, rel=1e-9)


def test_a_sample_in_half_precision_is_summed_in_full() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        found = sums(cloud(12, 8).bfloat16(), directions(8), knots())
    assert found.cosine.dtype == torch.float32
    expected = sums(cloud(12, 8).bfloat16().double(), directions(8), knots())
    assert torch.allclose(found.cosine.double(), expected.cosine, atol=1e-4)


def test_directions_are_unit_vectors_and_follow_from_seed_and_step_alone() -> None:
    first = draw_directions(3, 7, 16, 64)
    torch.manual_seed(99)  # whatever a site drew meanwhile
    assert torch.equal(draw_directions(3, 7, 16, 64), first)
    assert torch.allclose(first.norm(dim=0), torch.ones(64))
    assert not torch.allclose(draw_directions(3, 8, 16, 64), first)
    assert not torch.allclose(draw_directions(4, 7, 16, 64), first)


# ------------------------------------------------------------------------------------- with the sums of other sites


def both(own: Tensor, other: Tensor) -> tuple[Sums, Sums]:
    lines = directions(own.shape[-1])
    return sums(own, lines, knots()), sums(other, lines, knots())


@settings(max_examples=30)
@given(seeds, st.integers(2, 12), st.integers(2, 40))
def test_mixed_by_size_the_batch_is_a_part_of_the_whole(seed: int, count: int, elsewhere: int) -> None:
    batch, others = both(cloud(count, 6, seed), cloud(elsewhere, 6, seed + 1, deviation=2))
    mixed = mix(batch, others, count / (count + elsewhere))
    assert mixed.samples == pytest.approx(count + elsewhere)
    whole = batch + others
    assert torch.allclose(mixed.cosine, whole.cosine)
    assert torch.allclose(mixed.sine, whole.sine)


@given(seeds, st.floats(0.05, 1.0))
def test_a_mixture_is_the_weighted_mean_of_both_characteristic_functions(seed: int, share: float) -> None:
    batch, others = both(cloud(7, 6, seed), cloud(30, 6, seed + 1))
    mixed = mix(batch, others, share)
    by_hand = share * batch.cosine / 7 + (1 - share) * others.cosine / 30
    assert torch.allclose(mixed.cosine / mixed.samples, by_hand)
    assert torch.allclose(mixed.sine / mixed.samples, share * batch.sine / 7 + (1 - share) * others.sine / 30)


def test_without_others_the_batch_stands_for_itself() -> None:
    batch, others = both(cloud(7, 6), cloud(30, 6, 1))
    mixed = mix(batch, others, 1.0)
    assert mixed.samples == pytest.approx(7)
    assert torch.allclose(mixed.cosine, batch.cosine)


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_a_mixture_of_gaussian_samples_keeps_the_scale_of_the_statistic(share: float) -> None:
    values = []
    for seed in range(200):
        batch, others = both(cloud(8, 32, seed), cloud(100, 32, 1000 + seed))
        values.append(float(statistic(mix(batch, others, share), knots())))
    assert sum(values) / 200 == pytest.approx(GAUSSIAN, rel=0.05)


def test_the_gradient_of_a_mixture_passes_through_the_batch_only() -> None:
    own, other = cloud(8, 6).requires_grad_(), cloud(20, 6, 1).requires_grad_()
    batch, others = both(own, other)
    statistic(mix(batch, others, 0.5), knots()).backward()
    assert other.grad is None
    assert own.grad is not None
    assert torch.isfinite(own.grad).all()
    assert own.grad.abs().max() > 0


def test_a_site_need_not_fill_the_whole_space_by_itself() -> None:
    """One scanner shows one side of the cloud, the other sites the rest: together they are Gaussian already."""
    whole = cloud(400, 6)
    side = whole[:, 0] > 0
    own, other = whole[side].requires_grad_(), whole[~side]
    batch, others = both(own, other)
    alone = torch.autograd.grad(statistic(batch, knots()), own)[0]
    batch, others = both(own, other)
    together = torch.autograd.grad(statistic(mix(batch, others, len(own) / 400), knots()), own)[0]
    assert float(together.norm()) < 0.2 * float(alone.norm())


# ------------------------------------------------------------------------------------------------- as an objective

MakeJob = Callable[..., JobConfig]
MakeBatch = Callable[..., Batch]


def objective_of(make_job: MakeJob) -> tuple[PretrainingModel, Isotropy]:
    model = build_model(make_job(objectives=[{"kind": "isotropy", "directions": 8}]))
    objective = model.find(Isotropy)
    assert objective is not None
    return model, objective


def outcome_of(model: PretrainingModel, objective: Isotropy, batch: Batch) -> Outcome:
    outcome = objective(model.encoder, batch, torch.Generator())
    assert isinstance(outcome, Outcome)
    return outcome


def test_each_modality_is_a_cloud_of_patients(make_job: MakeJob, make_batch: MakeBatch) -> None:
    """Of a patient's crops of one modality the first counts, of air none, and one patient is no cloud."""
    model, objective = objective_of(make_job)
    batch = make_batch([[0, 1, 1], [0, 1], [1, 2], [0]])
    batch.body[7] = False  # the last patient's CT
    outcome = outcome_of(model, objective, batch)
    rows = {0: [0, 3], 1: [1, 4, 5]}
    assert outcome.embedded == Counter({"CT": 2, "T1": 3})
    assert outcome.samples == 5
    total, lines = 0.0, objective.lines().T.tolist()
    for modality, chosen in rows.items():
        crops = batch.images[chosen]
        pooled = model.encoder.encode(crops, torch.full((len(crops),), modality), objective.spacing_mm).pooled
        cloud = objective.projector(pooled).detach().double().tolist()
        total += 128 / 5 * epps_pulley_by_loops(cloud, lines)
    assert float(outcome.loss.detach()) == pytest.approx(total, rel=2e-3)  # 17 knots against adaptive quadrature
    assert objective(model.encoder, make_batch([[0], [1], [2]]), torch.Generator()) is None


@pytest.mark.parametrize("people", [1, 2, 5])
def test_who_comes_twice_in_a_batch_is_one_sample(make_job: MakeJob, people: int) -> None:
    job = make_job(objectives=[{"kind": "isotropy", "directions": 8}], batch={"patients": 8})
    model, objective = objective_of(make_job)
    batch = CropLoader(memory_patients([["CT"]] * people), job, "alpha", CropPlan(job, model))[0]["aligned"]
    assert batch.patients == 8
    outcome = objective(model.encoder, batch, torch.Generator())
    assert outcome is None if people == 1 else outcome.samples == people


def test_it_takes_patients_apart_that_were_one_point(make_job: MakeJob) -> None:
    settings = {"batch": {"patients": 8}, "rounds": 1, "local_steps": 80, "optimiser": {"learning_rate": 0.005}}
    job = make_job(objectives=[{"kind": "isotropy"}], precision="fp32", **settings)
    state = new_state(job, torch.device("cpu"))
    loader = CropLoader(memory_patients([["CT"]] * 8), job, "alpha", CropPlan(job, state.model))
    reports = [train_step(state, loader[step], job, "alpha") for step in range(80)]
    chance = reports[0].scalars["chance/isotropy"]
    early, late = ([r.losses["isotropy"] / chance for r in part] for part in (reports[10:20], reports[-10:]))
    assert min(early) > 0.9  # it begins in one point
    assert sum(late) / len(late) < 0.7
