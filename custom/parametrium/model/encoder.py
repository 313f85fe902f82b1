"""The 3D vision transformer: one volume at a time, so that any subset of modalities works by construction.

Most blocks look at windows of 4^3 patches, every few at all (ViTDet; METHODS 8.2). Extras are in every window.

B volumes, L patches, K visible patches, V voxels of a patch, X extra tokens (class token and registers), C channels, W
windows, S slots of a window.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from parametrium.model.attention import Attention, Block, Nearness, WindowAttention, nearness
from parametrium.model.modality import ByModality, Token
from parametrium.model.patch_embed import gather, padded, patch_grid, patchify
from parametrium.model.position import Spacing, grid_positions, position_code
from parametrium.model.presets import Architecture
from parametrium.model.template import Templates
from parametrium.model.windows import Windows, windows_of

VARIANCE_FLOOR = 1e-6
"""Added to the variance of tokens, so that the slope of its root stays finite."""


class Encoded(NamedTuple):
    """What the encoder makes of the visible patches.

    Attributes:
        cls: [B, C] class token.
        registers: [B, X - 1, C].
        patches: [B, K, C].
    """

    cls: Tensor
    registers: Tensor
    patches: Tensor

    @property
    def pooled(self) -> Tensor:
        """[B, 2 C] mean and standard deviation of the patch tokens over the crop.

        The mean alone blurs texture away, and texture (fat between muscle bundles, bone's trabeculae) tells patients
        apart wherever the crop lies; pooling by statistics comes from speaker recognition (Snyder et al. 2018, 3.1).
        """
        variance = self.patches.float().var(1, unbiased=False)
        return torch.cat([self.patches.mean(1), (variance + VARIANCE_FLOOR).sqrt()], dim=-1)


class Tokens(NamedTuple):
    """What the blocks begin with.

    Attributes:
        tokens: [B, K, C] from ``Encoder.embed``.
        windows: of the same patches, see ``windows_of``; None makes all of them one window.
        centres_mm: [B, K, 3] where they lie; None: tokens are equally near.
    """

    tokens: Tensor
    windows: Windows | None = None
    centres_mm: Tensor | None = None


class AttentionMap(NamedTuple):
    """What one block's tokens look at, mean over the heads.

    Attributes:
        weights: [B, W, X + S, X + S] of windows, or [B, 1, X + W * S, X + W * S] of all tokens; rows sum to 1. An empty
            slot is never looked at.
        local: whether it is of windows.
    """

    weights: Tensor
    local: bool


class Encoder(nn.Module):
    """Patch embedding a modality, fixed positions, class token and registers, pre-norm blocks.

    Args:
        modalities: the job's modalities, in order.
        shape: sizes.
        templates: one a modality, where an objective fills from them; tasks that lack a modality can take its template.

    Attributes:
        activation_checkpointing: whether training keeps only the blocks' inputs and computes the rest again in the
            backward pass: less memory, more time, the same gradients.
    """

    def __init__(self, modalities: Sequence[str], shape: Architecture, templates: Templates | None = None) -> None:
        super().__init__()
        self.shape = shape
        self.modalities = tuple(modalities)
        self.templates = templates
        self.activation_checkpointing = False
        voxels = shape.patch**3
        self.patch_embed = ByModality("embed", modalities, [nn.Linear(voxels, shape.width) for _ in modalities])
        self.modality_token = ByModality("embed", modalities, [Token(shape.width) for _ in modalities])
        self.extra_tokens = nn.Parameter(torch.randn(self.extras, shape.width) * 0.02)
        self.blocks = nn.ModuleList(self._block(layer) for layer in range(shape.depth))
        self.norm = nn.LayerNorm(shape.width)

    def _block(self, layer: int) -> Block:
        shape = self.shape
        rate = shape.drop_path * layer / max(shape.depth - 1, 1)
        attends_all = (layer + 1) % shape.global_every == 0 or layer == shape.depth - 1
        attention = None if attends_all else WindowAttention(shape.width, shape.heads, self.extras)
        return Block(shape.width, shape.heads, shape, rate, attention, shape.mlp_width)

    @property
    def extras(self) -> int:
        """X: class token and registers."""
        return 1 + self.shape.registers

    def embed(self, patches: Tensor, modality: Tensor, positions_mm: Tensor) -> Tensor:
        """Patches to tokens.

        Args:
            patches: [B, K, V] prepared intensities.
            modality: [B] index of each volume's modality.
            positions_mm: [B, K, 3] or [K, 3] patch centres.

        Returns:
            [B, K, C] tokens with modality and position.
        """
        tokens = self.modality_token(self.patch_embed(patches, modality), modality)
        return tokens + position_code(positions_mm, self.shape.width).to(tokens.dtype)  # type: ignore[no-any-return]

    def embed_template(self, patches: Tensor, modality: Tensor, positions_mm: Tensor) -> Tensor:
        """Patches of templates to tokens: as ``embed``, but with the template's token in place of the modality's.

        Only so does the network know what it is told by a patient and what by a template (METHODS 8.3).

        Raises:
            ValueError: the encoder has no templates.
        """
        if self.templates is None:
            raise ValueError("this encoder was made without templates")
        tokens = self.templates(self.patch_embed(patches, modality), modality)
        return tokens + position_code(positions_mm, self.shape.width).to(tokens.dtype)  # type: ignore[no-any-return]

    def forward(self, tokens: Tensor, windows: Windows | None = None, centres_mm: Tensor | None = None) -> Encoded:
        """[B, K, C] tokens -> class token, registers and patch tokens; arguments as in ``Tokens``."""
        x, near = self._arranged(tokens, windows), self._near(centres_mm, windows)
        for block in self.blocks:
            x = self._through(block, x, windows, near)
        return self._encoded(x, windows)

    def _through(self, block: nn.Module, x: Tensor, windows: Windows | None, near: Nearness | None) -> Tensor:
        if self.activation_checkpointing and self.training:
            return checkpoint(block, x, None, None, windows, near, use_reentrant=False)  # type: ignore[no-any-return]
        return block(x, windows=windows, near=near)  # type: ignore[no-any-return]

    def _encoded(self, x: Tensor, windows: Windows | None) -> Encoded:
        cls, registers, patches = self.norm(x).split([1, self.extras - 1, x.shape[1] - self.extras], dim=1)
        return Encoded(cls.squeeze(1), registers, patches if windows is None else windows.restore(patches))

    def encode(self, volumes: Tensor, modality: Tensor, spacing_mm: Spacing, visible: Tensor | None = None) -> Encoded:
        """Encodes [B, D, H, W] crops of any size, all of their patches or some; see ``tokens``."""
        return self(*self.tokens(volumes, modality, spacing_mm, visible))  # type: ignore[no-any-return]

    def tokens(self, volumes: Tensor, modality: Tensor, spacing_mm: Spacing, visible: Tensor | None = None) -> Tokens:
        """Tokens of crops, as ``forward`` takes them.

        Args:
            volumes: [B, D, H, W]; the patches at the end are filled with zeros where an axis is no multiple.
            modality: [B].
            spacing_mm: voxel spacing of the crops.
            visible: [B, K] patch indices, on the CPU so that laying out windows waits for no GPU; None: all patches.
        """
        patch = self.shape.patch
        patches = patchify(padded(volumes, patch), patch)
        positions = grid_positions((volumes.shape[1], volumes.shape[2], volumes.shape[3]), patch, spacing_mm)
        if visible is None:
            visible = torch.arange(len(positions)).expand(len(volumes), -1)
        else:
            patches, positions = gather(patches, visible.to(volumes.device)), positions[visible]
        windows, centres = windows_of(visible, patch_grid(volumes, patch)), positions.to(volumes.device)
        tokens = self.embed(patches, modality, centres)
        return Tokens(
            tokens, None if windows is None else windows.to(volumes.device), centres.expand(len(tokens), -1, -1)
        )

    def intermediate(self, begin: Tokens, after: Sequence[int]) -> list[Tensor]:
        """[B, K, C] patch tokens after some blocks, for decoders of dense tasks.

        Args:
            begin: from ``tokens``.
            after: numbers of blocks, from 0 (the embedded patches) to all; not normalised.
        """
        windows, found = begin.windows, {}
        x, near = self._arranged(begin.tokens, windows), self._near(begin.centres_mm, windows)
        for passed, block in enumerate((None, *self.blocks)):
            x = x if block is None else self._through(block, x, windows, near)
            if passed in after:
                found[passed] = x[:, self.extras :] if windows is None else windows.restore(x[:, self.extras :])
        return [found[passed] for passed in after]

    def watched(
        self, tokens: Tensor, windows: Windows | None = None, centres_mm: Tensor | None = None
    ) -> tuple[Encoded, list[AttentionMap]]:
        """What ``forward`` gives, and what every block looked at, from the first to the last; without gradient."""
        maps = []
        with torch.no_grad():
            x, near = self._arranged(tokens, windows), self._near(centres_mm, windows)
            for block in self.blocks:
                attention: Attention = block.attention  # type: ignore[assignment]
                weights = attention.weights(block.attention_norm(x), windows, near)  # type: ignore[operator]
                maps.append(AttentionMap(weights, windows is not None and isinstance(attention, WindowAttention)))
                x = block(x, windows=windows, near=near)
            return self._encoded(x, windows), maps

    def _arranged(self, tokens: Tensor, windows: Windows | None) -> Tensor:
        extras = self.extra_tokens.to(tokens.dtype).expand(len(tokens), -1, -1)
        return torch.cat([extras, tokens if windows is None else windows.arrange(tokens)], dim=1)

    def _near(self, centres_mm: Tensor | None, windows: Windows | None) -> Nearness | None:
        if centres_mm is None or self.shape.reach_mm is None:
            return None
        places = centres_mm if windows is None else windows.arrange(centres_mm)
        return nearness(places, self.extras, self.shape.heads, self.shape.reach_mm)
