"""A slow copy of the encoder, at the site, that nobody trains, aggregates or sends (METHODS 5.3)."""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor

from parametrium.model.encoder import Encoder
from parametrium.model.position import Spacing


class Teacher:
    """Mean over rounds of the global encoder: teacher <- m^s teacher + (1 - m^s) global, s the steps that passed.

    Sites that train the same rounds make the same teacher of the same global weights, so there is nothing to average; a
    teacher that followed the local steps would lag behind a model that jumps at each aggregation (MonAcoSFL, METHODS
    5.1). It is no module: its weights are no parameters or buffers of the model that holds it.

    Args:
        momentum: m of one step, in [0, 1).
    """

    def __init__(self, momentum: float) -> None:
        self.momentum = momentum
        self._encoder: Encoder | None = None
        self._saved: dict[str, Tensor] = {}

    @property
    def ready(self) -> bool:
        """Whether a round has begun."""
        return self._encoder is not None

    def follow(self, encoder: Encoder, steps: int) -> None:
        """At the start of a round: moves towards the global weights.

        Without a past it becomes a copy of them: of its own, since a teacher that were the student itself would follow
        every step (the aliasing defect of METHODS 5.1).

        Args:
            encoder: with the global weights; not changed.
            steps: s, since the last call.
        """
        if self._encoder is None:
            self._encoder = copy.deepcopy(encoder).requires_grad_(False).eval()
            if not _fits(self._saved, self._encoder):
                return
            self._encoder.load_state_dict(self._saved)
        kept = self.momentum**steps
        with torch.no_grad():
            for own, new in zip(self._encoder.parameters(), encoder.parameters(), strict=True):
                own.lerp_(new, 1 - kept)

    @torch.no_grad()
    def patches(self, volumes: Tensor, modality: Tensor, spacing_mm: Spacing) -> Tensor:
        """[B, L, C] tokens of all patches of [B, D, H, W] crops.

        Raises:
            RuntimeError: no round has begun.
        """
        if self._encoder is None:
            raise RuntimeError("a teacher exists from the first round on: begin_round was not called")
        return self._encoder.encode(volumes, modality, spacing_mm).patches

    def tensors(self) -> dict[str, Tensor]:
        """Its weights by name; none before the first round."""
        return {} if self._encoder is None else dict(self._encoder.state_dict())

    def resume(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes up what ``tensors`` gave; weights of another model are as good as none."""
        self._encoder = None
        self._saved = dict(tensors)


def _fits(tensors: Mapping[str, Tensor], encoder: Encoder) -> bool:
    shapes = {name: tensor.shape for name, tensor in encoder.state_dict().items()}
    return {name: tensor.shape for name, tensor in tensors.items()} == shapes
