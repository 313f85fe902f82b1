"""The optimiser's groups and the learning rate (METHODS 8.4, 9.10)."""

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from parametrium.config import JobConfig, OptimiserConfig
from parametrium.objectives.registry import build_model
from parametrium.training.optim import build_optimiser, learning_rate, parameter_groups, set_learning_rate

KINDS = ["masked_reconstruction", "cross_modal_reconstruction", "soft_contrastive"]

configs = st.builds(
    OptimiserConfig,
    learning_rate=st.floats(1e-5, 1e-1),
    warmup_fraction=st.floats(0, 1),
    final_fraction=st.floats(0, 1),
)


def test_only_matrices_of_linear_layers_decay(make_job: Callable[..., JobConfig]) -> None:
    model = build_model(make_job(objectives=[{"kind": kind} for kind in KINDS]))
    decay, rest = parameter_groups(model.named_parameters(), 0.05)
    assert (decay["weight_decay"], rest["weight_decay"]) == (0.05, 0.0)
    matrices = {id(module.weight) for module in model.modules() if isinstance(module, nn.Linear)}
    assert {id(p) for p in decay["params"]} == matrices
    assert {id(p) for p in rest["params"]} == {id(p) for p in model.parameters()} - matrices
    assert len(decay["params"]) + len(rest["params"]) == len(list(model.parameters()))


def test_tokens_scales_and_the_temperature_do_not_decay(make_job: Callable[..., JobConfig]) -> None:
    model = build_model(make_job(objectives=[{"kind": kind} for kind in KINDS]))
    named = dict(model.named_parameters())
    rest = {id(p) for p in parameter_groups(named.items(), 0.05)[1]["params"]}
    for name in (
        "encoder.extra_tokens",
        "encoder.modality_token.of.CT.vector",
        "encoder.blocks.0.attention_scale.gamma",
        "encoder.blocks.0.attention.query_norm.weight",
        "objectives.masked_reconstruction.decoder.mask_token",
        "objectives.soft_contrastive.log_scale",
    ):
        assert id(named[name]) in rest


@given(configs, st.integers(1, 500))
def test_the_warm_up_rises_in_equal_steps_to_the_peak(config: OptimiserConfig, total: int) -> None:
    steps = math.ceil(config.warmup_fraction * total)
    for step in range(min(steps, 50)):
        assert learning_rate(step, total, config) == pytest.approx(config.learning_rate * (step + 1) / steps)
    if steps:
        assert learning_rate(steps - 1, total, config) == pytest.approx(config.learning_rate)


@given(configs, st.integers(1, 500))
def test_after_the_warm_up_the_rate_only_falls_and_ends_at_the_final_fraction(
    config: OptimiserConfig, total: int
) -> None:
    first = math.ceil(config.warmup_fraction * total)
    rates = [learning_rate(step, total, config) for step in range(first, total)]
    assert all(later <= earlier + 1e-15 for earlier, later in itertools.pairwise(rates))
    lowest, highest = config.learning_rate * config.final_fraction, config.learning_rate
    assert all(lowest - 1e-12 <= rate <= highest + 1e-12 for rate in rates)
    if total * (1 - config.warmup_fraction) >= 1:
        assert learning_rate(total, total, config) == pytest.approx(lowest)


@given(configs, st.integers(1, 500), st.data())
def test_the_cosine_by_hand(config: OptimiserConfig, total: int, data: st.DataObject) -> None:
    step = data.draw(st.integers(0, total - 1))
    warmup = config.warmup_fraction * total
    if step < warmup:
        return
    angle = math.pi * (step - warmup) / max(total - warmup, 1)
    share = config.final_fraction + (1 - config.final_fraction) * (0.5 + 0.5 * math.cos(angle))
    assert learning_rate(step, total, config) == pytest.approx(config.learning_rate * share)


@given(configs, st.integers(1, 500), st.integers(0, 499))
def test_the_rate_is_a_pure_function(config: OptimiserConfig, total: int, step: int) -> None:
    learning_rate(0, total, config)
    assert learning_rate(step, total, config) == learning_rate(step, total, config.model_copy())


@given(configs, st.integers(1, 500), st.integers(0, 2000))
def test_beyond_the_end_of_the_run_the_rate_stays_at_the_final_fraction(
    config: OptimiserConfig, total: int, more: int
) -> None:
    if total * (1 - config.warmup_fraction) >= 1:
        expected = config.learning_rate * config.final_fraction
        assert learning_rate(total + more, total, config) == pytest.approx(expected, abs=1e-15)


def test_templates_learn_ten_times_as_fast_and_do_not_decay(make_job: Callable[..., JobConfig]) -> None:
    model = build_model(make_job(objectives=[{"kind": "template_reconstruction"}]))
    optimiser = build_optimiser(model, OptimiserConfig(weight_decay=0.5))
    images = {id(p) for name, p in model.named_parameters() if name.endswith(".values")}
    assert len(images) == 3
    set_learning_rate(optimiser, 0.25)
    listed = [id(p) for group in optimiser.param_groups for p in group["params"]]
    assert sorted(listed) == sorted(id(p) for p in model.parameters())
    for group in optimiser.param_groups:
        own = {id(p) for p in group["params"]}
        assert group["lr"] == (2.5 if own == images else 0.25)
        assert own == images or not own & images
        assert group["weight_decay"] == 0 or not own & images


def test_without_warm_up_the_first_step_is_the_peak() -> None:
    config = OptimiserConfig(learning_rate=0.5, warmup_fraction=0.0, final_fraction=0.0)
    assert learning_rate(0, 10, config) == 0.5
    assert learning_rate(5, 10, config) == pytest.approx(0.25)


def test_the_default_is_five_per_cent_of_warm_up() -> None:
    config = OptimiserConfig()
    rates = [learning_rate(step, 200, config) for step in range(200)]
    assert rates.index(max(rates)) in (9, 10)
    assert rates[-1] < 0.021 * config.learning_rate


def test_a_tensor_without_gradient_is_not_moved_by_momentum_or_decay() -> None:
    layers = nn.ModuleDict({"seen": nn.Linear(4, 4), "absent": nn.Linear(4, 4)})
    optimiser = build_optimiser(layers, OptimiserConfig(weight_decay=0.5))
    for layer in layers.values():  # both have momentum from a first step
        layer(torch.randn(3, 4)).sum().backward()
    optimiser.step()
    before = {name: p.detach().clone() for name, p in layers.named_parameters()}
    optimiser.zero_grad(set_to_none=True)
    layers["seen"](torch.randn(3, 4)).sum().backward()
    optimiser.step()
    for name, parameter in layers.named_parameters():
        assert torch.equal(parameter, before[name]) == name.startswith("absent")
    assert int(optimiser.state[layers["absent"].weight]["step"]) == 1


def test_one_step_equals_adamw_written_down() -> None:
    config = OptimiserConfig(learning_rate=0.1, betas=(0.9, 0.95), weight_decay=0.2)
    layer = nn.Sequential(nn.Linear(3, 2)).double()
    optimiser = build_optimiser(layer, config)
    expected = {name: p.detach().clone() for name, p in layer.named_parameters()}
    moments = {name: (torch.zeros_like(p), torch.zeros_like(p)) for name, p in expected.items()}
    for t in (1, 2, 3):
        optimiser.zero_grad(set_to_none=True)
        layer(torch.randn(5, 3, dtype=torch.float64)).square().sum().backward()
        for name, parameter in layer.named_parameters():
            m, v = moments[name]
            m = 0.9 * m + 0.1 * parameter.grad
            v = 0.95 * v + 0.05 * parameter.grad**2
            moments[name] = m, v
            decay = 0.2 if name == "0.weight" else 0.0
            step = (m / (1 - 0.9**t)) / ((v / (1 - 0.95**t)).sqrt() + 1e-8)
            expected[name] = expected[name] * (1 - 0.1 * decay) - 0.1 * step
        optimiser.step()
        for name, parameter in layer.named_parameters():
            assert torch.allclose(parameter, expected[name], atol=1e-10)
