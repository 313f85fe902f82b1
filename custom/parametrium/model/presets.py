"""Named sizes of the encoder and of the reconstruction decoders."""

import math
from dataclasses import dataclass, replace

from parametrium.config import ModelConfig
from parametrium.errors import Code, ConfigError


@dataclass(frozen=True)
class Architecture:
    """Everything that fixes the shapes of the model's tensors, but for the modalities.

    Attributes:
        patch: edge of a cubic patch, voxels.
        width: encoder channels C.
        depth: encoder blocks.
        heads: encoder attention heads.
        decoder_width: decoder channels.
        decoder_depth: decoder blocks.
        decoder_heads: decoder attention heads.
        registers: extra tokens beside the class token (METHODS 4.2).
        mlp_width: hidden channels of the encoder's MLPs; None: 4 C, which the decoders' always have.
        layer_scale: initial scale of a residual branch (METHODS 8.2: .1; 1e-5 is slow in small budgets).
        drop_path: probability of skipping a residual branch in training, at the last block (linear from 0).
        reach_mm: how far the first head looks, the deviation of a Gaussian that doubles from head to head; None: all
            distances are alike.
        global_every: every so many blocks, and in the last one, tokens look at all others and not only at their window.
    """

    patch: int
    width: int
    depth: int
    heads: int
    decoder_width: int
    decoder_depth: int
    decoder_heads: int
    registers: int = 4
    mlp_width: int | None = None
    layer_scale: float = 0.1
    drop_path: float = 0.0
    global_every: int = 3
    reach_mm: float | None = 16.0


PRESETS = {
    "tiny": Architecture(
        8, width=96, depth=4, heads=3, decoder_width=96, decoder_depth=2, decoder_heads=3, registers=2, global_every=2
    ),
    "small": Architecture(
        8, width=384, depth=12, heads=6, decoder_width=192, decoder_depth=4, decoder_heads=6, drop_path=0.1
    ),
    "base": Architecture(
        8, width=768, depth=12, heads=12, decoder_width=384, decoder_depth=4, decoder_heads=12, drop_path=0.1
    ),
}


def architecture(config: ModelConfig) -> Architecture:
    """The preset with the config's differences.

    Raises:
        ConfigError: PM103 when the width does not divide into the heads.
    """
    named = ("width", "depth", "heads", "mlp_width", "decoder_width", "decoder_depth")
    chosen = {name: value for name in named if (value := getattr(config, name)) is not None}
    if "decoder_width" in chosen and chosen["decoder_width"] % PRESETS[config.preset].decoder_heads:
        chosen["decoder_heads"] = _heads(chosen["decoder_width"])
    result = replace(PRESETS[config.preset], patch=config.patch, reach_mm=config.reach_mm, **chosen)
    if result.width % result.heads:
        raise ConfigError(
            Code.CONFIG_INVALID_VALUE,
            f"job.model.width ({result.width}) must be divisible by job.model.heads ({result.heads})",
        )
    return result


def _heads(width: int) -> int:
    """Of the numbers of heads that divide a width, the one that leaves them nearest to the presets' 32 channels."""
    return min((h for h in range(1, width + 1) if width % h == 0), key=lambda h: abs(math.log(width / h / 32)))
