"""One optimiser step: forward and backward of the step's objectives, checks, update."""

import contextlib
from collections import Counter
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from parametrium.config import JobConfig
from parametrium.data.loader import Batches, stable_number
from parametrium.errors import Code, TrainingError
from parametrium.model.modality import Owner, tensor_owners
from parametrium.objectives.objective import Outcome
from parametrium.objectives.registry import PretrainingModel, build_model
from parametrium.objectives.schedule import weight_at
from parametrium.training.optim import Optimiser, build_optimiser, learning_rate, set_learning_rate


@dataclass
class TrainState:
    """What a site's trainer keeps between steps.

    Attributes:
        model: the model on its device.
        optimiser: its moments stay at the site over rounds (METHODS 5.3).
        owners: to whom each tensor belongs.
        device: where it trains.
        step: global step, counted over the whole run.
        last_round: the round that was trained last; None before the first.
        touched: the tensors that got a gradient since it was cleared; filled by their hooks.
    """

    model: PretrainingModel
    optimiser: Optimiser
    owners: dict[str, Owner]
    device: torch.device
    step: int = 0
    last_round: int | None = None
    touched: set[str] = field(default_factory=set)


@dataclass
class StepReport:
    """What one step did.

    Attributes:
        losses: by objective, before weighting.
        scalars: further numbers of the objectives, ``<name>/<objective>``.
        gradient_norm: before clipping; 0 when nothing was trained.
        samples: crops, each counted once for every objective it served.
        contributions: by tensor, samples with a gradient path to it.
    """

    losses: dict[str, float] = field(default_factory=dict)
    scalars: dict[str, float] = field(default_factory=dict)
    gradient_norm: float = 0.0
    samples: int = 0
    contributions: Counter[str] = field(default_factory=Counter)


def new_state(job: JobConfig, device: torch.device) -> TrainState:
    """The job's initial model with a fresh optimiser."""
    model = build_model(job).to(device)
    state = TrainState(model, build_optimiser(model, job.optimiser), tensor_owners(model), device)
    for name, parameter in model.named_parameters():

        def note(_: Tensor, name: str = name) -> None:
            state.touched.add(name)

        parameter.register_post_accumulate_grad_hook(note)  # type: ignore[no-untyped-call]
    return state


def train_step(state: TrainState, batches: Batches, job: JobConfig, site: str) -> StepReport:
    """Trains one step and moves ``state.step`` on.

    Args:
        state: changed in place.
        batches: what the loader gave for ``state.step``.
        job: objectives, schedule, optimiser, precision.
        site: the site's name, which enters the seed of the masks.

    Raises:
        TrainingError: PM402 before the update, when a loss or the gradient is not finite; names objective and step.
    """
    report = StepReport()
    state.model.train()
    state.optimiser.zero_grad()
    for config in job.objectives_at(state.step):
        objective = state.model.objective(config.kind)
        layout = objective.request(1, 1).layout
        if layout not in batches:
            continue
        objective.step = state.step
        generator = step_generator(job.seed, site, state.step, config.kind)
        with autocast(job.precision, state.device):
            outcome = objective(state.model.encoder, batches[layout].to(state.device), generator)
        if outcome is None:
            continue
        loss = float(outcome.loss.detach())
        if not torch.isfinite(outcome.loss):
            raise _not_finite(f"the loss of {config.kind}", state.step)
        state.touched.clear()
        (weight_at(state.step, config, job) * outcome.loss).backward()
        report.losses[config.kind] = loss
        report.scalars.update({f"{name}/{config.kind}": value for name, value in outcome.scalars.items()})
        report.samples += outcome.samples
        report.contributions += _contributions(state, outcome)
    if report.losses:
        norm = nn.utils.clip_grad_norm_(state.model.parameters(), job.optimiser.clip_norm)
        report.gradient_norm = float(norm)
        if not torch.isfinite(norm):
            raise _not_finite(f"the gradient of {' + '.join(report.losses)}", state.step)
        set_learning_rate(state.optimiser, learning_rate(state.step, job.total_steps, job.optimiser))
        state.optimiser.step()
    state.step += 1
    return report


def step_generator(seed: int, site: str, step: int, purpose: str) -> torch.Generator:
    """CPU generator that is a function of its arguments alone.

    Also seeds the global generator, since drop-path has none of its own; with another number, since otherwise the
    blocks that are dropped would follow the draw of the mask.
    """
    drawn_for = f"{seed}/{site}/{step}/{purpose}"
    torch.manual_seed(stable_number(f"{drawn_for}/global"))
    return torch.Generator().manual_seed(stable_number(drawn_for))


def autocast(precision: str, device: torch.device) -> contextlib.AbstractContextManager[object]:
    """bf16 autocast when asked for, or when the device multiplies bf16 faster than fp32.

    Raises:
        TrainingError: PM404 when bf16 is asked for and the GPU does not have it.
    """
    if device.type == "cuda":
        has = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        # Without tile instructions a CPU's bf16 product is slower than its fp32 product.
        has = torch.cpu._is_amx_tile_supported()
    if precision == "bf16" and device.type == "cuda" and not has:
        raise TrainingError(Code.TRAINING_UNAVAILABLE, "job.precision is bf16, but this GPU has none; use fp32 or auto")
    if precision == "bf16" or (precision == "auto" and has):
        return torch.autocast(device.type, torch.bfloat16)
    return contextlib.nullcontext()


def _contributions(state: TrainState, outcome: Outcome) -> Counter[str]:
    """n_kp of one objective: the tensors that its loss, and not an earlier one's of the step, gave a gradient."""
    counts = Counter({name: outcome.contribution(state.owners[name]) for name in state.touched})
    return +counts


def _not_finite(what: str, step: int) -> TrainingError:
    return TrainingError(
        Code.TRAINING_NOT_FINITE,
        f"{what} is not finite at step {step}; the update was not made. "
        "Lower optimiser.learning_rate or use precision fp32.",
    )
