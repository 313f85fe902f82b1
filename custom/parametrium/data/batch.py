"""What a loader yields: crops of several patients and modalities in one flat list.

A flat list holds ragged patients as they are: one modality, different sets, different fields of view.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Layout = Literal["aligned", "contrast", "views"]


class CropRequest(NamedTuple):
    """What an objective wants in its mini-batch.

    Attributes:
        layout: ``aligned``: all crops of a patient show the same place of one frame. ``contrast``: two views of
            each patient, crops at independent places, of two modalities where the site can pair them. ``views``: two
            crops of each patient, of two volumes where it has them, overlapping where these share a frame.
        patients: patients in the batch.
        volumes: at most so many volumes a patient; the other layouts always take two views.
        crops: ``contrast``: so many crops make one view; the other layouts take one.
    """

    layout: Layout
    patients: int
    volumes: int
    crops: int = 1


@dataclass(frozen=True)
class Batch:
    """N crops of P patients; where the loader drew one twice, she counts as two here, and has one ``identity``.

    Attributes:
        images: [N, D, H, W] float32 prepared intensities, 0 outside the field of view.
        body: [N, D, H, W] bool, True in the patient and in the field of view.
        patient: [N] which of the batch's patients, 0 .. P - 1, ascending.
        modality: [N] index into the job's modalities.
        frame: [N] crops with the same number show the same place and are registered to each other.
        corner: [N, 3] lattice index of the crop's first voxel; comparable within a frame.
        box: [N, 2, 3] float32 lattice indices of the body's first voxel and of the one after its last, along each axis,
            in all that the patient's frame shows.
        clinical: [P, F] encoded clinical variables, 0 where not observed.
        observed: [P, F] bool.
        identity: [P] which of the site's patients each is. At an epoch's end, and where a site has few, one is drawn
            more than once: more to reconstruct, but nobody to be told apart from.
        text: [P, D] unit vectors of the patients' texts, 0 where a patient has none; None where nobody has one.
    """

    images: Tensor
    body: Tensor
    patient: Tensor
    modality: Tensor
    frame: Tensor
    corner: Tensor
    box: Tensor
    clinical: Tensor
    observed: Tensor
    identity: Tensor
    text: Tensor | None = None

    def to(self, device: torch.device) -> "Batch":
        """The same batch on another device."""
        held = {f.name: value for f in fields(self) if (value := getattr(self, f.name)) is not None}
        return replace(self, **{name: value.to(device, non_blocking=True) for name, value in held.items()})

    def of(self, chosen: Tensor) -> "Batch":
        """The crops and rows of some patients, [P] bool, numbered anew; the batch itself where all are chosen."""
        if bool(chosen.all()):
            return self
        crops = chosen[self.patient]
        own = {name: getattr(self, name)[crops] for name in ("images", "body", "modality", "frame", "corner", "box")}
        number = chosen.cumsum(0) - 1
        rows = {name: getattr(self, name)[chosen] for name in ("clinical", "observed", "identity")}
        text = None if self.text is None else self.text[chosen]
        return Batch(**own, **rows, patient=number[self.patient[crops]], text=text)

    @property
    def once(self) -> Tensor:
        """[P] bool: who was not drawn into this batch before."""
        numbers = self.identity.tolist()
        first = [number not in numbers[:place] for place, number in enumerate(numbers)]
        return torch.tensor(first, dtype=torch.bool, device=self.identity.device)

    @property
    def owner(self) -> Tensor:
        """[N] which of the site's patients each crop is of."""
        return self.identity[self.patient]

    @property
    def has_text(self) -> Tensor:
        """[P] bool."""
        if self.text is None:
            return torch.zeros(self.patients, dtype=torch.bool, device=self.clinical.device)
        return (self.text != 0).any(1)

    @property
    def patients(self) -> int:
        """P."""
        return len(self.clinical)

    def volumes_of(self, modalities: Sequence[str]) -> dict[str, int]:
        """How many crops of each modality."""
        counts = torch.bincount(self.modality, minlength=len(modalities)).tolist()
        return {name: count for name, count in zip(modalities, counts, strict=True) if count}
