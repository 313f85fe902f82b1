"""Contrast between differently filled views of one crop (BrainMVP's third objective, METHODS 1.1).

N crops of the batch, P patients compared, K visible, Q filled patches, C channels.
"""

import math
from collections import defaultdict
from typing import NamedTuple

import torch
from torch import Tensor, nn

from parametrium.clinical.similarity import gower
from parametrium.config import JobConfig, ModalityContrastiveConfig
from parametrium.data.batch import Batch, CropRequest
from parametrium.model.encoder import Encoder
from parametrium.model.masking import draw_mask
from parametrium.model.patch_embed import gather, patch_grid
from parametrium.model.presets import Architecture
from parametrium.objectives.contrast_loss import limited_scale, softmax_contrast
from parametrium.objectives.contrastive import (
    projection_head,
    standardise_views,
    unit_vectors,
)
from parametrium.objectives.filling import crop_positions, embed_patches, encode_filled, template_patches
from parametrium.objectives.objective import Objective, Outcome, count
from parametrium.objectives.reconstruction import count_either, draw_pairs


class Compared(NamedTuple):
    """The crops whose views are compared: all of one modality, one of each patient.

    Attributes:
        anchor: [P] indices of crops.
        source: [P] the crops that fill their first views; None where the patients have none to fill with.
    """

    anchor: Tensor
    source: Tensor | None


class ModalityContrastive(Objective):
    """Two views of each patient's crop attract each other: filled from another modality, and from the template.

    Where patients have one modality, the first view is plainly masked. Pooled features are compared, by patient: a
    patient is never its own negative. The two views are masked independently, so that they share few visible patches,
    but they show one place: of patients seen at different places the place alone tells them apart. The template gets
    no gradient here: it is to be typical, not easy to compare.
    """

    kind = "modality_contrastive"
    fills_from_templates = True

    def __init__(self, config: ModalityContrastiveConfig, job: JobConfig, shape: Architecture) -> None:
        super().__init__()
        self.config = config
        self.spacing_mm = job.preparation.spacing_mm
        self.clinical = job.clinical
        self.projector = projection_head(shape.width)
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / config.temperature)))

    def request(self, patients: int, volumes: int) -> CropRequest:
        """At least two registered volumes of a patient, where it has them."""
        return CropRequest("aligned", self.config.patients or patients, max(volumes, 2))

    def source_view(
        self, encoder: Encoder, batch: Batch, compared: Compared, visible: Tensor, masked: Tensor
    ) -> Tensor:
        """[P, 2 C] pooled: the crops with their masked patches filled from the source, or left out without one."""
        images, modality = batch.images[compared.anchor], batch.modality[compared.anchor]
        if compared.source is None:
            return encoder.encode(images, modality, self.spacing_mm, visible).pooled
        own = embed_patches(encoder, images, modality, visible, self.spacing_mm)
        fill, fill_modality = batch.images[compared.source], batch.modality[compared.source]
        filled = embed_patches(encoder, fill, fill_modality, masked, self.spacing_mm)
        places, patch = torch.cat([visible, masked], dim=1), encoder.shape.patch
        positions = crop_positions(images, patch, self.spacing_mm)
        return encode_filled(encoder, own, filled, places, patch_grid(images, patch), positions).pooled

    def template_view(
        self, encoder: Encoder, batch: Batch, compared: Compared, visible: Tensor, masked: Tensor
    ) -> Tensor:
        """[P, 2 C] pooled: the crops with their masked patches filled from their modality's template."""
        anchor, patch = compared.anchor, encoder.shape.patch
        images, modality = batch.images[anchor], batch.modality[anchor]
        extent = (images.shape[1], images.shape[2], images.shape[3])
        shown = template_patches(encoder, modality, batch.corner[anchor], batch.box[anchor], extent).detach()
        positions = crop_positions(images, patch, self.spacing_mm)
        own = embed_patches(encoder, images, modality, visible, self.spacing_mm)
        filled = encoder.embed_template(gather(shown, masked.to(shown.device)), modality, positions[masked])
        places = torch.cat([visible, masked], dim=1)
        return encode_filled(encoder, own, filled, places, patch_grid(images, patch), positions).pooled

    def project(self, pooled: Tensor) -> Tensor:
        """[P, Z] unit vectors from the pooled views [P, 2 C] of one kind."""
        return unit_vectors(self.projector, standardise_views(pooled))

    def forward(self, encoder: Encoder, batch: Batch, generator: torch.Generator) -> Outcome | None:
        """KL to the targets, both directions; ``chance`` is the loss of an embedding that tells no patients apart."""
        compared = draw_compared(batch, generator)
        if compared is None:
            return None
        grid, ratio, patients = patch_grid(batch.images, encoder.shape.patch), self.config.mask_ratio, len(compared[0])
        a = self.project(self.source_view(encoder, batch, compared, *draw_mask(patients, grid, ratio, generator)))
        b = self.project(self.template_view(encoder, batch, compared, *draw_mask(patients, grid, ratio, generator)))
        rows = batch.patient[compared.anchor]
        with torch.autocast(a.device.type, enabled=False):  # a cosine in bf16 has two digits
            logits = limited_scale(self.log_scale) * a @ b.T
            similarity = gower(batch.clinical[rows], batch.observed[rows], self.clinical)
            config = self.config
            loss, chance = softmax_contrast(logits, similarity, config.softness, config.similarity_temperature)
        modality = batch.modality[compared.anchor]
        shown = modality if compared.source is None else batch.modality[compared.source]
        embedded = count_either(modality, shown, encoder.modalities)
        filled = count(modality, encoder.modalities)
        return Outcome(loss, patients, embedded, filled=filled, scalars={"chance": float(chance)})


def draw_compared(batch: Batch, generator: torch.Generator) -> Compared | None:
    """One modality for the whole batch, and patients that have it, all with another one to fill from or all without.

    Candidates of different modality, or views made in different ways, would be told apart by that. What is compared is
    drawn in proportion to its patients; what fills is drawn for each patient by itself.

    Returns:
        The crops, or None where no two patients can be compared.
    """
    anchor, source = (index.tolist() for index in draw_pairs(batch, generator))
    fills = dict(zip(anchor, source, strict=True))
    groups: defaultdict[tuple[int, bool], dict[int, int]] = defaultdict(dict)
    for crop, (patient, modality) in enumerate(zip(batch.owner.tolist(), batch.modality.tolist(), strict=True)):
        groups[modality, crop in fills].setdefault(patient, crop)
    usable = [(paired, crops) for (_, paired), crops in sorted(groups.items()) if len(crops) > 1]
    if not usable:
        return None
    sizes = torch.tensor([float(len(crops)) for _, crops in usable])
    paired, crops = usable[int(torch.multinomial(sizes, 1, generator=generator))]
    device = batch.modality.device
    chosen = torch.tensor(list(crops.values()), device=device)
    filling = torch.tensor([fills[crop] for crop in crops.values()], device=device) if paired else None
    return Compared(chosen, filling)
