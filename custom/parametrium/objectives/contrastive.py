"""Soft contrast between a patient's modalities, with clinical similarity (METHODS 3.3; after the brachytherapy work).

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
from parametrium.objectives.objective import Objective, Outcome, count

PROJECTION = 128
"""Channels Z of the projection."""


def soft_targets(similarity: Similarity, softness: float, temperature: float) -> Tensor:
    """q_ij = (1 - a) [i = j] + a softmax_{j != i}(S~_ij / t); one-hot where nothing is known of patient i.

    A pair of which nothing is known in common gets no share of the soft part.

    Args:
        similarity: of the batch's patients.
        softness: a in [0, 1].
        temperature: t > 0.

    Returns:
        [P, P] rows that sum to 1.
    """
    count_ = len(similarity.gower)
    own = torch.eye(count_, dtype=torch.bool, device=similarity.gower.device)
    known = (similarity.coverage > 0) & ~own
    scores = (similarity.gower / temperature).masked_fill(~known, -math.inf)
    share = torch.where(known.any(1, keepdim=True), scores, torch.zeros_like(scores)).softmax(1)
    has_soft = known.any(1, keepdim=True)
    one_hot = own.to(share.dtype)
    return torch.where(has_soft, (1 - softness) * one_hot + softness * share, one_hot)


def soft_contrastive_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean over both directions of KL(targets || softmax(logits)); zero at the optimum.

    Args:
        logits: [P, P], row i: view a of patient i against view b of every patient.
        targets: [P, P], rows sum to 1. The other direction compares columns with the same targets.
    """
    forward = F.kl_div(logits.log_softmax(1), targets, reduction="batchmean")
    backward = F.kl_div(logits.T.log_softmax(1), targets, reduction="batchmean")
    return (forward + backward) / 2


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


class SoftContrastive(Objective):
    """Two views of every patient attract each other; the other patients share what clinical similarity grants them."""

    kind = "soft_contrastive"

    def __init__(self, config: SoftContrastiveConfig, job: JobConfig, shape: Architecture) -> None:
        super().__init__()
        self.config = config
        self.spacing_mm = job.preparation.spacing_mm
        self.clinical = job.clinical
        self.projector = projection_head(shape.width)
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / config.temperature)))

    def request(self, patients: int, volumes: int) -> CropRequest:
        """Two views of each patient at independent places: the field of view must not give the patient away."""
        return CropRequest("contrast", self.config.patients or patients, 2, self.config.crops)

    def views(self, encoder: Encoder, images: Tensor, modality: Tensor, visible: Tensor) -> Tensor:
        """[B / crops, 2 C] pooled views: each the mean over its crops [B, D, H, W] of their visible patches [B, K]."""
        pooled: Tensor = encoder.encode(images, modality, self.spacing_mm, visible).pooled
        return pooled.reshape(-1, self.config.crops, pooled.shape[1]).mean(1)

    def project(self, standardised: Tensor) -> Tensor:
        """[P, Z] unit vectors in which patients are compared, from standardised views [P, 2 C] of one modality."""
        return F.normalize(self.projector(standardised).float(), dim=-1, eps=1e-6)

    def forward(self, encoder: Encoder, batch: Batch, generator: torch.Generator) -> Outcome | None:
        """KL to the soft targets; ``chance`` is the loss of an embedding that cannot tell patients apart."""
        if batch.patients < 2:
            return None
        grid = patch_grid(batch.images, encoder.shape.patch)
        visible, _ = draw_mask(len(batch.images), grid, self.config.mask_ratio, generator)
        views = self.views(encoder, batch.images, batch.modality, visible)
        a, b = (self.project(standardise_views(view)) for view in views.reshape(batch.patients, 2, -1).unbind(1))
        logits = self.log_scale.exp().clamp(max=100) * a @ b.T
        similarity = gower(batch.clinical, batch.observed, self.clinical)
        targets = soft_targets(similarity, self.config.softness, self.config.similarity_temperature)
        loss = soft_contrastive_loss(logits, targets)
        chance = float(soft_contrastive_loss(torch.zeros_like(logits), targets))
        tally = count(batch.modality, encoder.modalities)
        return Outcome(loss, len(batch.images), tally, scalars={"chance": chance})
