"""What every pretext task gives: a loss, and who contributed to it.

A new objective is one file with a class like these, one config class and one line in ``registry.py``;
docs/objectives.md shows it by an example.
"""

from abc import ABC, abstractmethod
from collections import Counter
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from parametrium.data.batch import Batch, CropRequest
from parametrium.model.encoder import Encoder
from parametrium.model.modality import Owner


@dataclass(frozen=True)
class Outcome:
    """One objective on one batch.

    Attributes:
        loss: scalar, not yet weighted.
        samples: crops that entered the loss.
        embedded: by modality, crops whose patches were embedded.
        decoded: by modality, crops that were reconstructed.
        filled: by modality, crops of which a part was filled from that modality's template.
        scalars: further numbers worth logging, by name.
    """

    loss: Tensor
    samples: int
    embedded: Counter[str]
    decoded: Counter[str] = field(default_factory=Counter)
    filled: Counter[str] = field(default_factory=Counter)
    scalars: dict[str, float] = field(default_factory=dict)

    def contribution(self, owner: Owner) -> int:
        """Samples whose loss had a gradient path to a tensor of this owner (n_kp, METHODS 5.2)."""
        if owner.modality is None:
            return self.samples
        counts = {"embed": self.embedded, "decode": self.decoded, "fill": self.filled}
        return counts[owner.role][owner.modality]


class Objective(nn.Module, ABC):
    """A pretext task with its own heads; the encoder is shared and passed in.

    A subclass is built as ``(config, job, shape)``, see ``registry.py``. Its parameters are trained, counted and
    aggregated; what it must keep from step to step without that goes into ``kept``.
    """

    kind: ClassVar[str]
    fills_from_templates: ClassVar[bool] = False
    """Whether the encoder must have templates."""
    step: int = 0
    """Global step, set before ``forward``: for draws that must be the same at every site."""

    @abstractmethod
    def request(self, patients: int, volumes: int) -> CropRequest:
        """Which crops it wants."""

    @abstractmethod
    def forward(self, encoder: Encoder, batch: Batch, generator: torch.Generator) -> Outcome | None:
        """The loss, or None where the batch has nothing for it (then nobody contributes).

        Args:
            encoder: the shared encoder.
            batch: crops as requested.
            generator: CPU generator for masks and draws, fixed by seed, site and step.
        """

    def begin_round(self, encoder: Encoder, steps: int) -> None:
        """Called when the global weights of a round are in the model; most objectives need nothing of it.

        Args:
            encoder: with the global weights.
            steps: optimiser steps since this was called last, over all rounds that passed meanwhile; 0 at first.
        """

    def kept(self) -> dict[str, Tensor]:
        """What this objective keeps between rounds at the site and never sends, by name; see ``keep``."""
        return {}

    def keep(self, tensors: dict[str, Tensor]) -> None:
        """Takes up what ``kept`` gave, in a fresh process; empty: as at the start of a run."""


def count(modality: Tensor, modalities: tuple[str, ...]) -> Counter[str]:
    """How many rows of each modality index."""
    numbers = torch.bincount(modality, minlength=len(modalities)).tolist()
    return Counter({name: n for name, n in zip(modalities, numbers, strict=True) if n})
