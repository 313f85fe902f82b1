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
    positions, of_class = split_positions(found)
    scale = stream_scale(positions, own)
    for modality in job.modalities:
        _put_kernel(ledger, found, kernel, modality, channels, scale, job.model.patch)
        _put_bias(ledger, found, f"encoder.patch_embed.of.{modality}.bias", scale)
        if positions is not None:
            vector = scale * positions.mean(0) - own.mean(0)
            how = "the mean of the source's positions less that of ours"
            sources = [found.full(found.format.positions)]
            ledger.put(f"encoder.modality_token.of.{modality}.vector", vector, "adapted", sources, how)
    _put_extra_tokens(ledger, found, of_class, scale)
    return scale


def kernel_of(weight: Tensor, channels: Sequence[str] = ()) -> Tensor:
    """A patch embedding as a kernel [C, E, D, H, W]; a linear one is [C, D H W E], of cubes.

    Raises:
        ConfigError: PM103 when as many channels are not there.
        TrainingError: PM403 when it is not one of volumes.
    """
    if weight.ndim == 2:
        width, inputs = weight.shape
        cubes = {number: round((inputs / number) ** (1 / 3)) for number in range(1, MOST_CHANNELS + 1)}
        fitting = [number for number, edge in cubes.items() if edge**3 * number == inputs]
        if not fitting:
            raise TrainingError(
                Code.CHECKPOINT_INVALID,
                f"the source's linear patch embedding has {inputs} inputs, which is no number of channels times a cube",
            )
        number = len(channels) if len(channels) in fitting else fitting[0]
        weight = weight.reshape(width, *[cubes[number]] * 3, number).movedim(-1, 1)
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
    """The source's position code of patches [L, C] and that of its class token [C], each where there is one.

    One position more than a cube has, beside a class token, is the class token's. A code that is zero is none.
    """
    positions = found.tensors.get(found.format.positions)
    if positions is None or not positions.any():
        return None, None
    rows = positions.reshape(-1, positions.shape[-1])
    if found.format.class_token in found.tensors and _is_cube(len(rows) - 1) and not _is_cube(len(rows)):
        return rows[1:], rows[0]
    return rows, None


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


def _put_extra_tokens(ledger: Ledger, found: Found, of_class: Tensor | None, scale: float) -> None:
    """The class token, with its position where it has one, and registers; the others stay fresh."""
    table = found.format
    if table.class_token not in found.tensors:
        return
    names = [name for name in (table.class_token, *table.registers) if name in found.tensors]
    rows = torch.cat([found.tensors[name].reshape(-1, found.tensors[name].shape[-1]) for name in names])
    if of_class is not None:
        rows[0] += of_class
        names.append(table.positions)
    put_extra_tokens(ledger, scale * rows, [found.full(name) for name in names])


def _is_cube(number: int) -> bool:
    return number > 0 and round(number ** (1 / 3)) ** 3 == number
