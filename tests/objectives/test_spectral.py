"""The spectral part of a reconstruction's error, against sums of sines (METHODS 4.3)."""

import cmath
import itertools
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from parametrium.config import JobConfig
from parametrium.data.batch import Batch
from parametrium.objectives.registry import build_model
from parametrium.objectives.target import spectral_errors

EDGE = 3


def magnitudes(patch: list[float], edge: int) -> list[float]:
    """|F(k)| / sqrt(V) by definition."""
    places = list(itertools.product(range(edge), repeat=3))
    found = []
    for k in places:
        total = sum(
            value * cmath.exp(-2j * math.pi * sum(a * b for a, b in zip(k, x, strict=True)) / edge)
            for value, x in zip(patch, places, strict=True)
        )
        found.append(abs(total) / math.sqrt(edge**3))
    return found


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@given(st.integers(0, 1000))
def test_it_equals_the_definition(seed: int) -> None:
    predicted, true = noise(2, 2, EDGE**3, seed=seed), noise(2, 2, EDGE**3, seed=seed + 1)
    found = spectral_errors(predicted, true, EDGE)
    for b, q in itertools.product(range(2), repeat=2):
        pair = [magnitudes(x[b, q].double().tolist(), EDGE) for x in (predicted, true)]
        expected = sum(abs(m - n) for m, n in zip(*pair, strict=True)) / EDGE**3
        assert float(found[b, q]) == pytest.approx(expected, rel=1e-4)


def test_a_shifted_texture_is_none_and_a_smoothed_one_is_an_error() -> None:
    texture = noise(1, 1, 4, 4, 4)
    shifted = texture.roll((1, 2, 3), (2, 3, 4)).flatten(2)
    smooth = torch.full_like(texture, float(texture.mean())).flatten(2)
    assert float(spectral_errors(shifted, texture.flatten(2), 4)) < 1e-5
    assert float(spectral_errors(smooth, texture.flatten(2), 4)) > 0.5


def test_the_gradient_is_that_of_the_error_and_finite_where_a_spectrum_is_zero() -> None:
    true = noise(1, 1, 8)
    predicted = noise(1, 1, 8, seed=3).requires_grad_()
    spectral_errors(predicted, true, 2).sum().backward()
    for voxel in range(8):
        step = torch.zeros(1, 1, 8)
        step[0, 0, voxel] = 1e-2
        ends = [float(spectral_errors(predicted.detach() + sign * step, true, 2)) for sign in (1, -1)]
        assert float(predicted.grad[0, 0, voxel]) == pytest.approx((ends[0] - ends[1]) / 2e-2, abs=2e-3)
    flat = torch.zeros(1, 1, 8, requires_grad=True)
    spectral_errors(flat, true, 2).sum().backward()
    assert flat.grad.isfinite().all()


@torch.no_grad()
@pytest.mark.parametrize("kind", ["masked_reconstruction", "cross_modal_reconstruction", "template_reconstruction"])
@pytest.mark.parametrize("target", ["raw", "patch_normalised"])
def test_a_reconstruction_adds_it_as_weighted_over_the_patches_that_count(
    make_job: Callable[..., JobConfig],
    make_batch: Callable[..., Batch],
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    target: str,
) -> None:
    batch = make_batch([[0, 1], [1, 2]])
    batch.body[:, 8:] = False
    losses = {}
    seen = []
    for weight in (0.0, 0.1):
        model = build_model(make_job(objectives=[{"kind": kind, "spectral": weight, "target": target}])).eval()
        objective = model.objective(kind)
        loss = objective.loss

        def keep(predicted: Tensor, true: Tensor, counts: Tensor, loss: Callable[..., Tensor] = loss) -> Tensor:
            seen.append((predicted, true, counts))
            return loss(predicted, true, counts)

        monkeypatch.setattr(objective, "loss", keep)
        losses[weight] = objective(model.encoder, batch, torch.Generator().manual_seed(5)).loss
    predicted, true, counts = seen[-1]
    assert counts.any()
    assert not counts.all()
    expected = sum(
        float(spectral_errors(predicted[b, q][None, None], true[b, q][None, None], 4))
        for b, q in counts.nonzero().tolist()
    ) / int(counts.sum())
    assert float(losses[0.1] - losses[0.0]) == pytest.approx(0.1 * expected, rel=1e-3)
