"""Pre-norm transformer blocks (METHODS 8.2): QK-norm, LayerScale, GELU MLP, drop-path; no batch norm anywhere.

B rows, L tokens, K context tokens, C channels, N heads, D = C / N channels of a head, W windows, S slots of a window, X
extra tokens (class token and registers), which stand before the patches.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from parametrium.model.presets import Architecture
from parametrium.model.windows import Windows


class HeadNorm(nn.RMSNorm):
    """RMSNorm with its weight in the input's type: under autocast torch would else leave its fused kernel."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


_CHANNELS = 8
"""That say how near two tokens are; seven are used, and eight keep the widths that fast kernels want."""


class Nearness(NamedTuple):
    """Channels beside those of queries and keys, whose product is how near two tokens are.

    Attributes:
        query: [B, N, L, 8].
        key: [B, N, L, 8].
    """

    query: Tensor
    key: Tensor


def nearness(centres_mm: Tensor, extras: int, heads: int, reach_mm: float) -> Nearness:
    """Adds -d^2 / (2 r^2) to the scores of tokens d apart, with r of the first head, doubled from head to head.

    Without it a fresh encoder must find out that near patches belong together, which takes it thousands of steps
    (docs/transfer.md). A Gaussian, because -|p - q|^2 = 2 p q - |p|^2 - |q|^2 is a product of channels: the scores
    themselves are never held in memory, and fused kernels do the work. Extras are near to everything.

    Args:
        centres_mm: [B, L - X, 3] of the patches, or of slots.
        extras: X tokens before them.
        heads: N.
        reach_mm: r of the first head.
    """
    # Rounded first, and squares in two parts, so that the sum is the same in bf16; slopes are powers of two.
    place = (centres_mm / reach_mm).bfloat16().float()
    square = place.square().sum(-1, keepdim=True)
    rough = square.bfloat16().float()
    fine, one = square - rough, torch.ones_like(square)
    key = torch.cat([place, one, one, rough, fine, 0 * one], dim=-1)
    query = torch.cat([2 * place, -rough, -fine, -one, -one, 0 * one], dim=-1)
    slopes = 0.5 * 4.0 ** -torch.arange(heads, device=place.device)[:, None, None]
    shown = F.pad(key, (0, 0, extras, 0))[:, None].expand(-1, heads, -1, -1)
    return Nearness(F.pad(query, (0, 0, extras, 0))[:, None] * slopes, shown)


class Attention(nn.Module):
    """Multi-head attention of tokens to a context (to themselves when none is given), over all tokens."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.head_width = width // heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.query_norm = HeadNorm(self.head_width, eps=1e-6)
        self.key_norm = HeadNorm(self.head_width, eps=1e-6)
        self.project = nn.Linear(width, width)

    def _split(self, x: Tensor, context: Tensor | None, near: Nearness | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, whose products with the keys are scores, keys and values; all as wide, with ``near`` by 8 more."""
        source = x if context is None else context
        q = self.query(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = self.key_value(source).unflatten(-1, (2, self.heads, -1)).unbind(2)
        q, k, v = self.query_norm(q) * self.head_width**-0.5, self.key_norm(k.transpose(1, 2)), v.transpose(1, 2)
        if near is None:
            return q, k, v
        q, k = torch.cat([q, near.query.to(q.dtype)], dim=-1), torch.cat([k, near.key.to(k.dtype)], dim=-1)
        return q, k, F.pad(v, (0, _CHANNELS))

    def _mixed(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """[..., L, D] values by attention, without the channels that values do not have."""
        mixed: Tensor = F.scaled_dot_product_attention(q, k, v, mask, scale=1.0)
        return mixed[..., : self.head_width]

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        bias: Tensor | None = None,
        windows: Windows | None = None,
        near: Nearness | None = None,
    ) -> Tensor:
        """[B, L, C], [B, K, C'] -> [B, L, C].

        Args:
            x: tokens.
            context: what they look at; None: themselves.
            bias: [B, N, L, K], added to the scores.
            windows: where given, x is extras and then slots, and empty slots are not looked at.
            near: of the tokens x, without a context.
        """
        mixed = self._attend(*self._split(x, context, near), windows, bias)
        out: Tensor = self.project(mixed.transpose(1, 2).flatten(2))
        return out

    def weights(self, x: Tensor, windows: Windows | None = None, near: Nearness | None = None) -> Tensor:
        """Attention probabilities, mean over the heads, for pictures and monitors; rows sum to 1.

        Returns:
            [B, 1, L, L], or [B, W, X + S, X + S] of each window by itself.
        """
        q, k, _ = self._split(x, None, near)
        return self._looks(q, k, windows)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, windows: Windows | None, bias: Tensor | None) -> Tensor:
        """[B, N, L, D]."""
        return self._mixed(q, k, v, _keys(windows, q.shape[2]) if bias is None else bias.to(q.dtype))

    def _looks(self, q: Tensor, k: Tensor, windows: Windows | None) -> Tensor:
        return _probabilities(q, k, _keys(windows, q.shape[2])).mean(1, keepdim=True)


class WindowAttention(Attention):
    """Each window looks at itself and at the extras, which are replicated into all windows and averaged after.

    The extras see each window by itself; windows without a token do not count in their average (METHODS 3.6).

    Args:
        width: channels C.
        heads: N.
        extras: X, the tokens before the patches.
    """

    def __init__(self, width: int, heads: int, extras: int) -> None:
        super().__init__(width, heads)
        self.extras = extras

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, windows: Windows | None, bias: Tensor | None) -> Tensor:
        if windows is None:
            return super()._attend(q, k, v, windows, bias)
        q, k, v = (self._into(part, windows) for part in (q, k, v))
        mixed = self._mixed(q, k, v, _keys_by_window(windows, self.extras))
        mixed = mixed.view(-1, windows.number, *mixed.shape[1:])  # [B, W, N, X + S, D]
        share = window_shares(windows)
        patches = mixed[:, :, :, self.extras :].transpose(1, 2).flatten(2, 3)
        extras = mixed[:, :, :, : self.extras]
        extras = extras.mean(1) if share is None else (extras * share.to(extras.dtype)[:, :, None, None, None]).sum(1)
        return torch.cat([extras, patches], dim=2)

    def _looks(self, q: Tensor, k: Tensor, windows: Windows | None) -> Tensor:
        if windows is None:
            return super()._looks(q, k, windows)
        q, k = (self._into(part, windows) for part in (q, k))
        weights = _probabilities(q, k, _keys_by_window(windows, self.extras)).mean(1)
        return weights.view(-1, windows.number, *weights.shape[1:])

    def _into(self, x: Tensor, windows: Windows) -> Tensor:
        """[B, N, X + W * S, D] -> [B * W, N, X + S, D]."""
        extras, slots = x[:, :, : self.extras], x[:, :, self.extras :]
        slots = slots.reshape(*slots.shape[:2], windows.number, windows.size, -1).transpose(1, 2)
        extras = extras[:, None].expand(-1, windows.number, -1, -1, -1)
        return torch.cat([extras, slots], dim=3).flatten(0, 1)


def window_shares(windows: Windows) -> Tensor | None:
    """[B, W] what each window counts in the average of the extras; None where all count alike."""
    if windows.occupied is None:
        return None
    holds = windows.occupied.view(-1, windows.number, windows.size).any(2).float()
    shares: Tensor = holds / holds.sum(1, keepdim=True).clamp(min=1)
    return shares


def _keys(windows: Windows | None, length: int) -> Tensor | None:
    """[B, 1, 1, L] True for extras and for occupied slots; None where all are looked at."""
    if windows is None or windows.occupied is None:
        return None
    return F.pad(windows.occupied, (length - windows.occupied.shape[1], 0), value=True)[:, None, None]


def _keys_by_window(windows: Windows, extras: int) -> Tensor | None:
    """[B * W, 1, 1, X + S], likewise."""
    if windows.occupied is None:
        return None
    own = windows.occupied.view(-1, windows.size)
    return F.pad(own, (extras, 0), value=True)[:, None, None]


def _probabilities(q: Tensor, k: Tensor, keys: Tensor | None) -> Tensor:
    scores: Tensor = q.float() @ k.float().transpose(-1, -2)
    return (scores if keys is None else scores.masked_fill(~keys, -torch.inf)).softmax(-1)


class DropPath(nn.Module):
    """Skips a residual branch for a whole row with the given probability, in training."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, branch: Tensor) -> Tensor:
        """[B, L, C] -> [B, L, C]."""
        if self.probability == 0 or not self.training:
            return branch
        kept = torch.rand(len(branch), 1, 1, device=branch.device) >= self.probability
        return branch * kept / (1 - self.probability)


class LayerScale(nn.Module):
    """Channel-wise scale of a residual branch."""

    def __init__(self, width: int, initial: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), initial))

    def forward(self, branch: Tensor) -> Tensor:
        """[B, L, C] -> [B, L, C]."""
        return branch * self.gamma


class Block(nn.Module):
    """x + attention, then x + MLP.

    Args:
        width: channels C.
        heads: N.
        shape: LayerScale.
        drop_path: probability of skipping a branch.
        attention: what mixes the tokens; None: attention over all of them.
        hidden: channels of the MLP between its layers; None: 4 C.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        shape: Architecture,
        drop_path: float = 0.0,
        attention: Attention | None = None,
        hidden: int | None = None,
    ) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = attention or Attention(width, heads)
        self.attention_scale = LayerScale(width, shape.layer_scale)
        self.mlp_norm = nn.LayerNorm(width)
        hidden = 4 * width if hidden is None else hidden
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
        self.mlp_scale = LayerScale(width, shape.layer_scale)
        self.drop_path = DropPath(drop_path)

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        bias: Tensor | None = None,
        windows: Windows | None = None,
        near: Nearness | None = None,
    ) -> Tensor:
        """[B, L, C] -> [B, L, C]; see ``Attention.forward``."""
        mixed = self.attention(self.attention_norm(x), context, bias, windows, near)
        x = x + self.drop_path(self.attention_scale(mixed))
        out: Tensor = x + self.drop_path(self.mlp_scale(self.mlp(self.mlp_norm(x))))
        return out
