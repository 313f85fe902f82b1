"""From weights of any known kind to the tensors of a job's model, with an account of each."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from parametrium.config import JobConfig
from parametrium.errors import Code, ConfigError
from parametrium.model.presets import PRESETS, architecture
from parametrium.objectives.registry import initial_tensors
from parametrium.training.warm_start.blocks import take_blocks
from parametrium.training.warm_start.first_layer import take_first_layer
from parametrium.training.warm_start.formats import OWN_ANCHOR
from parametrium.training.warm_start.ledger import Ledger, LoadReport
from parametrium.training.warm_start.own import other_rules, transfer_own
from parametrium.training.warm_start.recognise import Found, recognise
from parametrium.training.warm_start.weights import Weights


def transfer(
    job: JobConfig, weights: Weights, *, channels: Sequence[str] = (), prefix: str | None = None
) -> tuple[dict[str, Tensor], LoadReport]:
    """The job's model, started from weights.

    Args:
        job: sizes, modalities, objectives; what the source has nothing for keeps the job's own initial values.
        weights: of this package or of another.
        channels: modality of each of the source's input channels, in order; none: they are averaged.
        prefix: what stands before the encoder's names; None: found by looking.

    Returns:
        All tensors of the job's model by name, and what became of every tensor.

    Raises:
        ConfigError: PM103 for channels that are not the source's, that are named twice, or that differ from one of the
            job's modalities by spelling alone; for channels or a prefix where the source is of this package.
        TrainingError: PM401 when sizes differ that cannot be mapped; PM403 when no known encoder is found.
    """
    ledger = Ledger(initial_tensors(job), weights.tensors)
    tensors = {name: tensor for name, tensor in weights.tensors.items() if tensor.is_floating_point()}
    if OWN_ANCHOR in tensors:
        _refuse_options(channels, prefix)
        transfer_own(ledger, tensors, job)
        preparation = (weights.meta or {}).get("preparation")
        if preparation is not None:
            _tell_preparation(ledger, preparation, job)
        source_job = (weights.meta or {}).get("job")
        if source_job is not None:
            _tell_reach(ledger, source_job["model"].get("reach_mm"), job)
            _tell_windows(ledger, source_job["model"].get("preset", job.model.preset), job)
        return ledger.tensors, ledger.report("a checkpoint of this package")
    _require_channels(channels, job)
    found = recognise(tensors, prefix)
    scale = take_first_layer(ledger, found, job, channels)
    take_blocks(ledger, found, job, scale)
    _tell_differences(ledger, found, job)
    _tell_channels(ledger, channels, job)
    return ledger.tensors, ledger.report(found.format.title)


def _refuse_options(channels: Sequence[str], prefix: str | None) -> None:
    given = [option for option, value in (("--channels", channels), ("--prefix", prefix)) if value]
    if given:
        raise ConfigError(
            Code.CONFIG_INVALID_VALUE,
            f"{' and '.join(given)}: the source is a checkpoint of this package, which names its own modalities; "
            "leave it out",
        )


def _require_channels(channels: Sequence[str], job: JobConfig) -> None:
    twice = sorted({name for name in channels if channels.count(name) > 1})
    if twice:
        raise ConfigError(Code.CONFIG_INVALID_VALUE, f"--channels: {', '.join(twice)} is named more than once")
    spelled = {modality.lower(): modality for modality in job.modalities}
    for name in channels:
        meant = spelled.get(name.lower(), name)
        if meant not in (name, *channels):
            raise ConfigError(Code.CONFIG_INVALID_VALUE, f"--channels: {name!r} is {meant} in the job; write it so")


def _tell_channels(ledger: Ledger, channels: Sequence[str], job: JobConfig) -> None:
    unused = [name for name in channels if name not in job.modalities]
    if unused:
        ledger.note(f"channels that are no modality of the job, used only in the mean: {', '.join(unused)}")


def _tell_differences(ledger: Ledger, found: Found, job: JobConfig) -> None:
    """What another program's encoder does that ours does not, whatever the numbers."""
    shape, depth = architecture(job.model), found.depth
    ledger.note(f"a state dict does not say how many heads it has; it was read with the job's {shape.heads}")
    if depth != shape.depth:
        rest = "the others are fresh" if depth < shape.depth else "the source's others are left"
        ledger.note(f"the source has {depth} blocks, the job {shape.depth}: the first were taken, {rest}")
    local = sum((n + 1) % shape.global_every != 0 and n != shape.depth - 1 for n in range(shape.depth))
    ledger.note(f"{local} of {shape.depth} blocks look at windows of 4^3 patches; at the source all look at all tokens")
    _tell_reach(ledger, None, job)
    if found.format.positions in found.tensors:
        ledger.note("positions are fixed sines of millimetres; of the source's, their mean and their size are kept")
    if any("q_norm.weight" in name for name in found.tensors):
        ledger.note("the source's norms of query and key are taken for root-mean-square norms")
    else:
        ledger.note("query and key are normed; one factor a block stands for their sizes at the source")


def _tell_preparation(ledger: Ledger, theirs: Mapping[str, Any], job: JobConfig) -> None:
    """What the volumes were that the source was trained on."""
    spacing = theirs.get("spacing_mm")
    if spacing is not None and list(spacing) != list(job.preparation.spacing_mm):
        ledger.note(f"the source's spacing is {list(spacing)} mm, the job's {list(job.preparation.spacing_mm)} mm")
    rules = other_rules(theirs, job)
    if rules:
        ledger.note(f"the source saw volumes that were prepared by another intensity rule: {', '.join(rules)}")


def _tell_windows(ledger: Ledger, preset: str, job: JobConfig) -> None:
    """Which blocks look at all tokens is a preset's, and no tensor's either."""
    if preset not in PRESETS:
        return
    theirs, ours = (PRESETS[name].global_every for name in (preset, job.model.preset))
    if theirs != ours:
        ledger.note(
            f"every {theirs} blocks one looks at all tokens at the source, every {ours} in the job; "
            f"job.model.preset: {preset} keeps what the source computes"
        )


def _tell_reach(ledger: Ledger, theirs: float | None, job: JobConfig) -> None:
    """No tensor says how attention falls with distance: weights for another reach fit, and compute something else."""
    ours = job.model.reach_mm
    if theirs != ours:
        said = ["not at all" if reach is None else f"with a reach of {reach:g} mm" for reach in (theirs, ours)]
        wanted = "null" if theirs is None else f"{theirs:g}"
        ledger.note(
            f"distance counts {said[0]} at the source and {said[1]} in the job; "
            f"job.model.reach_mm: {wanted} keeps what the source computes"
        )
