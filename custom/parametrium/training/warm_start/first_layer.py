"""Where a volume enters: patch embeddings, positions and class token of another encoder, fitted to ours.

C channels, E input channels, L positions, R extra tokens; D H W the edges of a patch.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from parametrium.config import JobConfig
from parametrium.errors import Code, ConfigError, TrainingError
from parametrium.model.position import grid_positions, position_code
from parametrium.model.presets import architecture
from parametrium.training.warm_start.fitting import resize_kernel, spread
from parametrium.training.warm_start.ledger import Kind, Ledger
from parametrium.training.warm_start.own import put_extra_tokens
from parametrium.training.warm_start.recognise import Found

LARGEST_SCALE = 64.0
"""Bound of the factor between the source's residual stream and ours."""

MOST_CHANNELS = 16
"""Input channels that are tried where a linear patch embedding does not say how many it has."""


def take_first_layer(ledger: Ledger, found: Found, job: JobConfig, channels: Sequence[str]) -> float:
    """Every modality starts from the source's one first layer, or from its own channel of it.

    Args:
        ledger: the job's model.
        found: the source.
        job: the job.
        channels: modality of each of the source's input channels, in order; none: they are averaged.

    Returns:
        The factor by which our residual stream is larger than the source's.

    Raises:
        ConfigError: PM103 when the channels' names are not as many as the source's channels.
        TrainingError: PM401 when the width differs; PM403 when there is no patch embedding of volumes.
    """
    name = _kernel_name(found)
    kernel = kernel_of(found.tensors[name], channels)
    width = architecture(job.model).width
    ledger.require("width", len(kernel), width)
    own = position_code(grid_positions(job.crop, job.model.patch, job.preparation.spacing_mm), width)
    positions, of_extras = split_positions(found)
    _tell_guesses(ledger, found.tensors[name], channels, positions, of_extras)
    scale = stream_scale(positions, own)
    for modality in job.modalities:
        _put_kernel(ledger, found, kernel, modality, channels, scale, job.model.patch)
        _put_bias(ledger, found, f"encoder.patch_embed.of.{modality}.bias", scale)
        if positions is not None:
            vector = scale * positions.mean(0) - own.mean(0)
            how = "the mean of the source's positions less that of ours"
            sources = [found.full(found.format.positions)]
            ledger.put(f"encoder.modality_token.of.{modality}.vector", vector, "adapted", sources, how)
    _put_extra_tokens(ledger, found, of_extras, scale)
    return scale


def kernel_of(weight: Tensor, channels: Sequence[str] = ()) -> Tensor:
    """A patch embedding as a kernel [C, E, D, H, W]; a linear one is [C, D H W E], of cubes.

    Raises:
        ConfigError: PM103 when as many channels are not there.
        TrainingError: PM403 when it is not one of volumes.
    """
    if weight.ndim == 2:
        width, inputs = weight.shape
        fitting = _cubes(inputs)
        if not fitting:
            raise TrainingError(
                Code.CHECKPOINT_INVALID,
                f"the source's linear patch embedding has {inputs} inputs, which is no number of channels times a cube",
            )
        number = len(channels) if len(channels) in fitting else min(fitting)
        weight = weight.reshape(width, *[fitting[number]] * 3, number).movedim(-1, 1)
    if weight.ndim != 5:
        raise TrainingError(
            Code.CHECKPOINT_INVALID,
            f"the source's patch embedding has {weight.ndim - 2} spatial dimensions; it must be one of volumes",
        )
    if channels and len(channels) != weight.shape[1]:
        raise ConfigError(
            Code.CONFIG_INVALID_VALUE,
            f"{len(channels)} channels were named, the source has {weight.shape[1]}; name the modality of each",
        )
    return weight


def split_positions(found: Found) -> tuple[Tensor | None, Tensor | None]:
    """The source's position code of patches [L, C] and that of its extra tokens [E, C], each where there is one.

    Positions beyond those of a cube, beside a class token, are its own and those of the registers. Where no number of
    extra tokens leaves a cube, the format says whether they have positions. A code that is zero is none.
    """
    positions = found.tensors.get(found.format.positions)
    if positions is None or not positions.any():
        return None, None
    rows = positions.reshape(-1, positions.shape[-1])
    extras = len(_extra_tokens(found))
    if not extras or _is_cube(len(rows)):
        return rows, None
    fitting = [number for number in (1, extras) if _is_cube(len(rows) - number)]
    if not fitting and not found.format.extras_first:
        return rows, None
    number = fitting[0] if fitting else extras
    return rows[number:], rows[:number]


def stream_scale(positions: Tensor | None, own: Tensor) -> float:
    """The factor by which our residual stream must be larger, so that our code is to a token what the source's was.

    Our code has a fixed size. A pre-norm encoder keeps its function when embeddings, extra tokens and residual branches
    all grow by one factor, so the rest is fitted to the code where the code cannot be fitted to the rest.

    Args:
        positions: [L, C] the source's code; None: it has none, and nothing is scaled.
        own: [L, C] our code on the job's crop.
    """
    theirs = 0.0 if positions is None else spread(positions)
    return 1.0 if theirs == 0 else min(max(spread(own) / theirs, 1 / LARGEST_SCALE), LARGEST_SCALE)


def _kernel_name(found: Found) -> str:
    name = next((f"{m}.weight" for m in found.format.kernel if f"{m}.weight" in found.tensors), None)
    if name is None:
        raise found.lacks("the patch embedding")
    return name


def _put_kernel(
    ledger: Ledger, found: Found, kernel: Tensor, modality: str, channels: Sequence[str], scale: float, patch: int
) -> None:
    how: list[str] = []
    if modality in channels:
        one = kernel[:, [channels.index(modality)]]
        how.append(f"channel {channels.index(modality)}")
    else:
        one = kernel.mean(1, keepdim=True)
        how += [f"mean of {kernel.shape[1]} channels"] if kernel.shape[1] > 1 else []
    kind: Kind = "loaded" if not how and scale == 1 else "adapted"
    if tuple(kernel.shape[2:]) != (patch,) * 3:
        one, kind = resize_kernel(one, patch), "resized"
        how.append(f"patch {'x'.join(map(str, kernel.shape[2:]))} to {patch}")
    how += [f"times {scale:.3g}"] if scale != 1 else []
    name = f"encoder.patch_embed.of.{modality}.weight"
    ledger.put(name, one.flatten(1) * scale, kind, [found.full(_kernel_name(found))], ", ".join(how) or "as it is")


def _put_bias(ledger: Ledger, found: Found, target: str, scale: float) -> None:
    name = _kernel_name(found).removesuffix("weight") + "bias"
    if name not in found.tensors:
        ledger.put(target, torch.zeros_like(ledger.tensors[target]), "adapted", [], "the source has none: zero")
    elif scale == 1:
        ledger.put(target, found.tensors[name], "loaded", [found.full(name)])
    else:
        ledger.put(target, found.tensors[name] * scale, "adapted", [found.full(name)], f"times {scale:.3g}")


def _put_extra_tokens(ledger: Ledger, found: Found, positions: Tensor | None, scale: float) -> None:
    """The class token and registers, the first of them with their positions [E, C]; the others stay fresh."""
    rows, table = _extra_tokens(found), found.format
    if not len(rows):
        return
    names = [name for name in (table.class_token, *table.registers) if name in found.tensors]
    if positions is not None:
        rows[: len(positions)] += positions
        names.append(table.positions)
    put_extra_tokens(ledger, scale * rows, [found.full(name) for name in names])


def _extra_tokens(found: Found) -> Tensor:
    """[E, C] the class token and the registers; none without a class token."""
    table = found.format
    if table.class_token not in found.tensors:
        return torch.empty(0, 0)
    given = [found.tensors[name] for name in (table.class_token, *table.registers) if name in found.tensors]
    return torch.cat([tokens.reshape(-1, tokens.shape[-1]) for tokens in given]).clone()


def _tell_guesses(
    ledger: Ledger, weight: Tensor, channels: Sequence[str], positions: Tensor | None, of_extras: Tensor | None
) -> None:
    """What the shapes leave open, and how they were read."""
    fitting = _cubes(weight.shape[1]) if weight.ndim == 2 and not channels else {}
    if len(fitting) > 1:
        ways = " or ".join(f"{number} of {edge}^3" for number, edge in fitting.items())
        ledger.note(
            f"the linear patch embedding fits {ways} (channels of voxels); the first was assumed; if that is wrong, "
            "name the channels with --channels"
        )
    if positions is not None and of_extras is not None and not _is_cube(len(positions)):
        ledger.note(
            f"{len(positions) + len(of_extras)} positions are no cube's: the first {len(of_extras)} were taken for "
            "those of the class token and the registers"
        )


def _cubes(inputs: int) -> dict[int, int]:
    """Numbers of channels to the edge of a cube, of which so many inputs may be made."""
    edges = {number: round((inputs / number) ** (1 / 3)) for number in range(1, MOST_CHANNELS + 1)}
    return {number: edge for number, edge in edges.items() if edge**3 * number == inputs}


def _is_cube(number: int) -> bool:
    return number > 0 and round(number ** (1 / 3)) ** 3 == number
