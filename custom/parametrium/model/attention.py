"""Pre-norm transformer blocks (METHODS 8.2): QK-norm, LayerScale, GELU MLP, drop-path; no batch norm anywhere.

B rows, L tokens, K context tokens, C channels, N heads, E = C / N channels of a head.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from parametrium.model.presets import Architecture


class Attention(nn.Module):
    """Multi-head attention of tokens to a context (to themselves when none is given), over all tokens.

    The windowed form takes this class's place block by block: ``Block`` only knows ``attention(x, context)``.
    """

    def __init__(self, width: int, heads: int, context_width: int | None = None) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(context_width or width, 2 * width)
        self.query_norm = nn.RMSNorm(width // heads, eps=1e-6)
        self.key_norm = nn.RMSNorm(width // heads, eps=1e-6)
        self.project = nn.Linear(width, width)

    def _split(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        source = x if context is None else context
        q = self.query(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = self.key_value(source).unflatten(-1, (2, self.heads, -1)).unbind(2)
        q, k = self.query_norm(q), self.key_norm(k.transpose(1, 2))
        return q.to(v.dtype), k.to(v.dtype), v.transpose(1, 2)

    def forward(self, x: Tensor, context: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        """[B, L, C], [B, K, C'] -> [B, L, C]; ``bias`` [B, N, L, K] is added to the scores."""
        q, k, v = self._split(x, context)
        mixed = F.scaled_dot_product_attention(q, k, v, None if bias is None else bias.to(q.dtype))
        out: Tensor = self.project(mixed.transpose(1, 2).flatten(2))
        return out

    def weights(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Attention probabilities [B, N, L, K], for pictures and monitors; rows sum to 1."""
        q, k, _ = self._split(x, context)
        scores: Tensor = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
        return scores.softmax(-1)


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
    """x + attention, then x + MLP; with a context the attention looks at it instead of at the tokens themselves."""

    def __init__(
        self, width: int, heads: int, shape: Architecture, drop_path: float = 0.0, context_width: int | None = None
    ) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = Attention(width, heads, context_width)
        self.attention_scale = LayerScale(width, shape.layer_scale)
        self.mlp_norm = nn.LayerNorm(width)
        hidden = shape.mlp_ratio * width
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
        self.mlp_scale = LayerScale(width, shape.layer_scale)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, context: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        """[B, L, C], [B, K, C'], [B, N, L, K] -> [B, L, C]."""
        x = x + self.drop_path(self.attention_scale(self.attention(self.attention_norm(x), context, bias)))
        out: Tensor = x + self.drop_path(self.mlp_scale(self.mlp(self.mlp_norm(x))))
        return out
