"""Soft contrast between a patient's modalities, with clinical similarity (METHODS 3.3; after the brachytherapy work).

The patients that are compared are one site's own: its scanners tell none of them apart. A negative from another
hospital could be recognised by the hospital, and nothing would be learned of the patient (METHODS 10).

P patients, C channels, Z channels of the projection.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from parametrium.clinical.similarity import Similarity, gower
from parametrium.config import JobConfig, SoftContrastiveConfig
from parametrium.data.batch import Batch, CropRequest
from parametrium.model.encoder import Encoder
from parametrium.model.masking import draw_mask
from parametrium.model.patch_embed import patch_grid
from parametrium.model.presets import Architecture
from parametrium.objectives.contrast_loss import (
    best_constant,
    limited_scale,
    negative_weights,
    pair_targets,
    sigmoid_loss,
    softmax_contrast,
    weighted_negatives_loss,
)
from parametrium.objectives.objective import Objective, Outcome, count

PROJECTION = 128
"""Channels Z of the projection."""


def standardise_views(pooled: Tensor) -> Tensor:
    """[P, C] pooled tokens of one view -> how each patient differs from the batch's mean, a channel in its own scale.

    Pooled tokens of a fresh transformer have cosine 1 with each other: the mean holds what the modality looks like, and
    without it the patients' differences are seen from the first step on. A channel's scale is at least a tenth of all
    channels' root mean square: what does not differ between patients must not be blown up.
    """
    centred = pooled - pooled.mean(0, keepdim=True)
    deviation = (centred.square().mean(0, keepdim=True) + 1e-12).sqrt()
    floor = 0.1 * deviation.square().mean().sqrt() + 1e-6
    return centred / deviation.clamp(min=float(floor.detach()))


def projection_head(width: int) -> nn.Sequential:
    """[..., 2 C] standardised pooled tokens -> [..., Z], in which patients are compared."""
    return nn.Sequential(
        nn.LayerNorm(2 * width), nn.Linear(2 * width, 2 * width), nn.GELU(), nn.Linear(2 * width, PROJECTION)
    )


def unit_vectors(head: nn.Module, features: Tensor) -> Tensor:
    """[P, Z] what a head makes of features [P, ...], at unit length and in float32: their products are cosines."""
    return F.normalize(head(features).float(), dim=-1, eps=1e-6)


class SoftContrastive(Objective):
    """Two views of every patient attract each other; the other patients are held off less, the more alike they are."""

    kind = "soft_contrastive"

    def __init__(self, config: SoftContrastiveConfig, job: JobConfig, shape: Architecture) -> None:
        super().__init__()
        self.config = config
        self.spacing_mm = job.preparation.spacing_mm
        self.clinical = job.clinical
        self.projector = projection_head(shape.width)
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / config.temperature)))
        if config.form == "sigmoid":
            # The odds of an own pair among all: cosines of standardised views lie around 0, so that training starts
            # near the loss of the best constant. With a bias of -5 or -10 it starts above it, far for few patients.
            others = max((config.patients or job.batch.patients) - 1, 1)
            self.pair_bias = nn.Parameter(torch.tensor(-math.log(others)))

    def request(self, patients: int, volumes: int) -> CropRequest:
        """Two views of each patient at independent places: the field of view must not give the patient away."""
        return CropRequest("contrast", self.config.patients or patients, 2, self.config.crops)

    def views(self, encoder: Encoder, images: Tensor, modality: Tensor, visible: Tensor, number: int) -> Tensor:
        """[number, 2 C] pooled views: each the mean over its share of the crops [B, D, H, W], patches [B, K]."""
        pooled: Tensor = encoder.encode(images, modality, self.spacing_mm, visible).pooled
        return pooled.reshape(number, -1, pooled.shape[1]).mean(1)

    def project(self, standardised: Tensor) -> Tensor:
        """[P, Z] unit vectors in which patients are compared, from standardised views [P, 2 C] of one modality."""
        return unit_vectors(self.projector, standardised)

    def loss(self, cosines: Tensor, similarity: Similarity) -> tuple[Tensor, Tensor]:
        """The loss in the form of the job, and its chance level: that of scores which tell no patient from another.

        Args:
            cosines: [P, P] of view a of each patient with view b of every patient.
            similarity: of the patients.
        """
        form, softness = self.config.form, self.config.softness
        logits = limited_scale(self.log_scale) * cosines
        if form == "sigmoid":
            targets = pair_targets(similarity, softness, self.config.similarity_power)
            return sigmoid_loss(logits + self.pair_bias, targets), sigmoid_loss(best_constant(targets), targets)
        if form == "weighted_negatives":
            weights = negative_weights(similarity, softness)
            equal = torch.zeros_like(logits)
            return weighted_negatives_loss(logits, weights), weighted_negatives_loss(equal, weights)
        return softmax_contrast(logits, similarity, softness, self.config.similarity_temperature)

    def forward(self, encoder: Encoder, batch: Batch, generator: torch.Generator) -> Outcome | None:
        """The contrast of the batch's patients; ``chance`` is what an embedding scores that cannot tell them apart."""
        if batch.patients < 2:
            return None
        grid = patch_grid(batch.images, encoder.shape.patch)
        visible, _ = draw_mask(len(batch.images), grid, self.config.mask_ratio, generator)
        views = self.views(encoder, batch.images, batch.modality, visible, 2 * batch.patients)
        a, b = (self.project(standardise_views(view)) for view in views.reshape(batch.patients, 2, -1).unbind(1))
        with torch.autocast(a.device.type, enabled=False):  # a cosine in bf16 has two digits
            loss, chance = self.loss(a @ b.T, gower(batch.clinical, batch.observed, self.clinical))
        tally = count(batch.modality, encoder.modalities)
        return Outcome(loss, len(batch.images), tally, scalars={"chance": float(chance)})
