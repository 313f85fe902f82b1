"""What every pretext task gives: a loss, and who contributed to it.

A new objective is one file with a class like these, one config class and one line in ``registry.py``.
"""

from abc import ABC, abstractmethod
from collections import Counter
from dataclasses import dataclass, field

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
        scalars: further numbers worth logging, by name.
    """

    loss: Tensor
    samples: int
    embedded: Counter[str]
    decoded: Counter[str]
    scalars: dict[str, float] = field(default_factory=dict)

    def contribution(self, owner: Owner) -> int:
        """Samples whose loss had a gradient path to a tensor of this owner (n_kp, METHODS 5.2)."""
        if owner.modality is None:
            return self.samples
        return (self.embedded if owner.role == "embed" else self.decoded)[owner.modality]


class Objective(nn.Module, ABC):
    """A pretext task with its own heads; the encoder is shared and passed in."""

    kind: str

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


def count(modality: Tensor, modalities: tuple[str, ...]) -> Counter[str]:
    """How many rows of each modality index."""
    numbers = torch.bincount(modality, minlength=len(modalities)).tolist()
    return Counter({name: n for name, n in zip(modalities, numbers, strict=True) if n})
