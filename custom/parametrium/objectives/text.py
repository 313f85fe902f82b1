"""Contrast of a patient's scans with its text, whose encoder is frozen and stays at the site (after CLIP; METHODS 3.3).

P patients, D channels of the text encoder, Z channels of the projection.
"""

import math

import torch
from torch import Tensor, nn

from parametrium.clinical.similarity import gower
from parametrium.config import JobConfig, TextContrastiveConfig
from parametrium.data.batch import Batch, CropRequest
from parametrium.model.encoder import Encoder
from parametrium.model.masking import draw_mask
from parametrium.model.patch_embed import patch_grid
from parametrium.model.presets import Architecture
from parametrium.objectives.contrast_loss import limited_scale, softmax_contrast
from parametrium.objectives.contrastive import PROJECTION, projection_head, standardise_views, unit_vectors
from parametrium.objectives.objective import Objective, Outcome, count

VIEWS = 2


class TextContrastive(Objective):
    """Both views of a patient's scans attract its text; texts of other patients are held off, similar ones less."""

    kind = "text_contrastive"

    def __init__(self, config: TextContrastiveConfig, job: JobConfig, shape: Architecture) -> None:
        super().__init__()
        self.config = config
        self.spacing_mm = job.preparation.spacing_mm
        self.clinical = job.clinical
        self.projector = projection_head(shape.width)
        self.text_projector = nn.Linear(config.channels, PROJECTION)
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / config.temperature)))

    def request(self, patients: int, volumes: int) -> CropRequest:
        """Two views of each patient at independent places, as for the contrast between modalities."""
        return CropRequest("contrast", self.config.patients or patients, volumes=VIEWS, crops=self.config.crops)

    def project_text(self, text: Tensor) -> Tensor:
        """[P, D] unit vectors of texts -> [P, Z] unit vectors; what all texts share is taken out first."""
        return unit_vectors(self.text_projector, text - text.mean(0, keepdim=True))

    def project(self, view: Tensor) -> Tensor:
        """[P, 2 C] pooled tokens of one view -> [P, Z] unit vectors."""
        return unit_vectors(self.projector, standardise_views(view))

    def forward(self, encoder: Encoder, batch: Batch, generator: torch.Generator) -> Outcome | None:
        """Symmetric softmax over the patients of the batch that have a text; None for fewer than two."""
        batch = batch.of(batch.has_text)
        if batch.text is None or batch.patients < 2:
            return None
        visible, _ = draw_mask(
            len(batch.images), patch_grid(batch.images, encoder.shape.patch), self.config.mask_ratio, generator
        )
        pooled = encoder.encode(batch.images, batch.modality, self.spacing_mm, visible).pooled
        views = pooled.reshape(batch.patients, VIEWS, -1, pooled.shape[1]).mean(2)
        text = self.project_text(batch.text)
        seen = [self.project(view) for view in views.unbind(1)]
        softness, temperature = self.config.softness, self.config.similarity_temperature
        with torch.autocast(text.device.type, enabled=False):  # a cosine in bf16 has two digits
            similarity = gower(batch.clinical, batch.observed, self.clinical)
            scale = limited_scale(self.log_scale)
            both = [softmax_contrast(scale * view @ text.T, similarity, softness, temperature) for view in seen]
        loss, chance = (torch.stack(values).mean() for values in zip(*both, strict=True))
        tally = count(batch.modality, encoder.modalities)
        return Outcome(loss, len(batch.images), tally, scalars={"chance": float(chance)})
