"""Attention rollout for windowed attention with extra tokens (Abnar and Zuidema 2020, section 3; METHODS 3.6).

Each block moves information: a token's output is half itself (the residual branch) and half what it attends to.
Followed from the last block back to the first, that tells how much of what is read at the end came from each patch.
Written as a row vector that passes the blocks, no product of matrices is ever made: O(L S) a windowed block, O(L^2) a
global one.

B crops, L patches, K tokens (all patches, in row-major order of the grid), X extra tokens, W windows, S slots.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from parametrium.model.attention import window_shares
from parametrium.model.encoder import AttentionMap, Encoder
from parametrium.model.position import Spacing
from parametrium.model.windows import Windows

Start = Literal["patches", "class_token"]
"""What is read at the end. ``patches``: the mean of the patch tokens. Pooled features are made of them, and every
objective reads patch tokens or their pool, so this is the default. ``class_token``: no objective reads it, so that what
it attends to was never asked for."""

RESIDUAL = 0.5
"""Share of a block's output that is the token itself."""

_AT_ONCE = 2**21
"""Entries of a global block's attention, of all crops and one head, that are held at once."""


class Rollout(NamedTuple):
    """Where what is read came from; all of a row sums to 1.

    Attributes:
        patches: [B, K] share of each patch, in the order of the tokens.
        class_token: [B] share that the class token's own start vector has.
        registers: [B] share of the registers' start vectors.
    """

    patches: Tensor
    class_token: Tensor
    registers: Tensor

    @property
    def map(self) -> Tensor:
        """[B, K] shares of the patches alone, which sum to 1."""
        return self.patches / self.patches.sum(1, keepdim=True).clamp(min=1e-12)


def rollout(
    maps: Sequence[AttentionMap], windows: Windows | None, extras: int, tokens: int, start: Start = "patches"
) -> Rollout:
    """Follows the attention from the last block back to the first.

    Args:
        maps: of all blocks, from the first to the last, as ``Encoder.watched`` gives them.
        windows: the layout that the maps were made with.
        extras: X; the class token is the first.
        tokens: K.
        start: what is read at the end.

    Returns:
        Shares in float64 on the CPU or GPU of the maps.
    """
    weights = maps[0].weights
    slots = tokens if windows is None else windows.number * windows.size
    mass = torch.zeros(len(weights), extras + slots, dtype=torch.float64, device=weights.device)
    if start == "class_token":
        mass[:, 0] = 1
    elif windows is None or windows.occupied is None:
        mass[:, extras:] = 1 / tokens
    else:
        mass[:, extras:] = windows.occupied.to(mass) / tokens
    for block in reversed(maps):
        moved = _through(block, mass, windows, extras)
        mass = RESIDUAL * mass + (1 - RESIDUAL) * moved
    patches = mass[:, extras:]
    if windows is not None:
        patches = windows.restore(patches[..., None])[..., 0]
    return Rollout(patches, mass[:, 0], mass[:, 1:extras].sum(1))


def _through(block: AttentionMap, mass: Tensor, windows: Windows | None, extras: int) -> Tensor:
    """The row vector times one block's attention as an operator on all tokens.

    Of a windowed block, a patch's row is its own window's. An extra token is a copy in every window, and the copies are
    averaged after the block: its row is the average of the windows' rows, each at the window's own patches.
    """
    weights = block.weights.to(mass)
    weights = weights / weights.sum(-1, keepdim=True)
    if not block.local or windows is None:
        return (mass[:, None] @ weights[:, 0])[:, 0]
    counted = window_shares(windows)
    share = mass.new_ones(len(mass), windows.number) if counted is None else counted.to(mass)
    share = share / share.sum(1, keepdim=True)  # in float64: no mass may be lost
    own = mass[:, None, :extras] * share[..., None]  # [B, W, X] what each window's copies hold
    slots = mass[:, extras:].reshape(-1, windows.number, windows.size)
    moved = (torch.cat([own, slots], 2)[:, :, None] @ weights)[:, :, 0]
    return torch.cat([moved[:, :, :extras].sum(1), moved[:, :, extras:].flatten(1)], 1)


@torch.no_grad()
def rollout_of(
    encoder: Encoder, volumes: Tensor, modality: Tensor, spacing_mm: Spacing, start: Start = "patches"
) -> Rollout:
    """Rollout of [B, D, H, W] crops, all of their patches visible; as ``watched_rollout``."""
    return watched_rollout(encoder, volumes, modality, spacing_mm, start)[0]


@torch.no_grad()
def watched_rollout(
    encoder: Encoder, volumes: Tensor, modality: Tensor, spacing_mm: Spacing, start: Start = "patches"
) -> tuple[Rollout, Tensor]:
    """Rollout of crops and their pooled tokens [B, 2 C], in one pass; few crops at a time where they are large.

    Args:
        encoder: in evaluation mode.
        volumes: [B, D, H, W], on the encoder's device.
        modality: [B].
        spacing_mm: voxel spacing of the crops.
        start: what is read at the end.
    """
    parts: list[Rollout] = []
    pooled: list[Tensor] = []
    row = 0
    while row < len(volumes):
        begin = encoder.tokens(volumes[row : row + 1], modality[row : row + 1], spacing_mm)
        many = max(1, _AT_ONCE // (begin.tokens.shape[1] + encoder.extras) ** 2)
        if many > 1:
            begin = encoder.tokens(volumes[row : row + many], modality[row : row + many], spacing_mm)
        encoded, maps = encoder.watched(*begin)
        pooled.append(encoded.pooled)
        parts.append(rollout(maps, begin.windows, encoder.extras, begin.tokens.shape[1], start))
        row += len(begin.tokens)
    return Rollout(*(torch.cat(part) for part in zip(*parts, strict=True))), torch.cat(pooled)
