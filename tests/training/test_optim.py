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
from parametrium.model.attention import Block
from parametrium.objectives.registry import build_model
from parametrium.training.optim import (
    block_matrices,
    build_optimiser,
    learning_rate,
    parameter_groups,
    set_learning_rate,
)

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
    optimiser = build_optimiser(model, OptimiserConfig(weight_decay=0.5, matrix_learning_rate=None))
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


@pytest.mark.parametrize("matrix_rate", [None, 0.02])
def test_an_objective_whose_turn_it_is_not_keeps_its_blocks(
    make_job: Callable[..., JobConfig], matrix_rate: float | None
) -> None:
    """Also the matrices that Muon trains, which have momentum from an earlier turn."""
    kinds = [{"kind": "masked_reconstruction"}, {"kind": "cross_modal_reconstruction"}]
    model = build_model(make_job(objectives=kinds))
    optimiser = build_optimiser(model, OptimiserConfig(weight_decay=0.5, matrix_learning_rate=matrix_rate))
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimiser.step()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimiser.zero_grad()
    absent = "objectives.cross_modal_reconstruction."
    for name, parameter in model.named_parameters():
        parameter.grad = None if name.startswith(absent) else torch.ones_like(parameter)
    optimiser.step()
    assert any(name.startswith(absent) and "blocks" in name for name in before)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) == name.startswith(absent)


def test_a_tensor_without_gradient_is_not_moved_by_momentum_or_decay() -> None:
    layers = nn.ModuleDict({"seen": nn.Linear(4, 4), "absent": nn.Linear(4, 4)})
    optimiser = build_optimiser(layers, OptimiserConfig(weight_decay=0.5))
    for layer in layers.values():  # both have momentum from a first step
        layer(torch.randn(3, 4)).sum().backward()
    optimiser.step()
    before = {name: p.detach().clone() for name, p in layers.named_parameters()}
    optimiser.zero_grad()
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
        optimiser.zero_grad()
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


def test_the_blocks_matrices_and_nothing_else_are_muons(make_job: Callable[..., JobConfig]) -> None:
    model = build_model(make_job(objectives=[{"kind": kind} for kind in KINDS]))
    optimiser = build_optimiser(model, OptimiserConfig(learning_rate=0.25, matrix_learning_rate=0.5, weight_decay=0.1))
    adamw, muon = optimiser.parts
    assert (type(adamw), type(muon)) == (torch.optim.AdamW, torch.optim.Muon)
    names = {id(p): name for name, p in model.named_parameters()}
    own = {names[id(p)] for group in muon.param_groups for p in group["params"]}
    linear = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    assert own == {name for name in linear if ".blocks." in name}
    assert any(name.startswith("encoder.") for name in own)
    assert any(".decoder.blocks." in name for name in own)
    listed = [id(p) for group in optimiser.param_groups for p in group["params"]]
    assert sorted(listed) == sorted(names)
    assert {group["lr"] for group in adamw.param_groups} == {0.25}
    assert {(group["lr"], group["weight_decay"]) for group in muon.param_groups} == {(0.5, 0.1)}


def test_without_a_rate_of_their_own_adamw_trains_the_matrices_too(make_job: Callable[..., JobConfig]) -> None:
    model = build_model(make_job())
    assert block_matrices(model)
    (part,) = build_optimiser(model, OptimiserConfig(matrix_learning_rate=None)).parts
    assert isinstance(part, torch.optim.AdamW)
    listed = [id(p) for group in part.param_groups for p in group["params"]]
    assert sorted(listed) == sorted(id(p) for p in model.parameters())


def orthogonal(matrix: torch.Tensor) -> torch.Tensor:
    """The nearest orthogonal matrix, by singular values: what Muon's five products approach."""
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    return left @ right


def test_a_matrix_moves_along_its_orthogonal_momentum(make_job: Callable[..., JobConfig]) -> None:
    shape = build_model(make_job()).encoder.shape
    torch.manual_seed(0)
    block = Block(shape.width, shape.heads, shape)
    config = OptimiserConfig(learning_rate=1e-3, matrix_learning_rate=0.02, weight_decay=0.3)
    optimiser = build_optimiser(block, config)
    matrices = block_matrices(block)
    momentum = [torch.zeros_like(p) for p in matrices]
    for _ in range(3):
        optimiser.zero_grad()
        tokens = torch.randn(2, 9, shape.width)
        (block(tokens) - torch.randn(2, 9, shape.width)).square().sum().backward()
        before = [p.detach().clone() for p in matrices]
        optimiser.step()
        for n, (matrix, old) in enumerate(zip(matrices, before, strict=True)):
            momentum[n] = 0.95 * momentum[n] + 0.05 * matrix.grad
            wanted = 0.05 * matrix.grad + 0.95 * momentum[n]
            rows, columns = matrix.shape
            step = ((1 - 0.02 * 0.3) * old - matrix.detach()) / (0.02 * max(1, rows / columns) ** 0.5)
            values = torch.linalg.svdvals(step)
            aligned = (step * orthogonal(wanted)).sum() / min(rows, columns)
            # Five products bring every singular value near 1 (.5 to 1.5), but for the smallest of the gradient's.
            assert values.max() < 1.6
            assert 0.6 < float(aligned) < 1.25


def test_one_state_holds_the_slots_of_all_parts(make_job: Callable[..., JobConfig]) -> None:
    shape = build_model(make_job()).encoder.shape
    block = Block(shape.width, shape.heads, shape)
    optimiser = build_optimiser(block, OptimiserConfig())
    block(torch.randn(1, 5, shape.width)).sum().backward()
    optimiser.step()
    slots = {name: set(optimiser.state[p]) for name, p in block.named_parameters()}
    assert slots["mlp.0.weight"] == {"momentum_buffer"}
    assert slots["mlp.0.bias"] == {"step", "exp_avg", "exp_avg_sq"}
    optimiser.state.clear()
    assert not any(part.state for part in optimiser.parts)
