"""Reconstruction from the modality's template (METHODS 8.3, L_tmpl; after BrainMVP, METHODS 1.1).

B crops, K visible, Q masked patches, V voxels of a patch, C channels.
"""

import torch
from torch import Tensor

from parametrium.config import JobConfig, TemplateReconstructionConfig
from parametrium.data.batch import Batch, CropRequest
from parametrium.model.encoder import Encoder
from parametrium.model.patch_embed import gather, patchify
from parametrium.model.presets import Architecture
from parametrium.objectives.filling import crop_positions, embed_patches, template_patches
from parametrium.objectives.objective import Outcome, count
from parametrium.objectives.reconstruction import Reconstruction
from parametrium.objectives.target import patch_errors


class TemplateReconstruction(Reconstruction):
    """Masked patches are filled from the template of the crop's own modality; the decoder gives back the masked ones.

    The template is learned by it: what helps most at a place of the body, for all patients.
    """

    kind = "template_reconstruction"
    fills_from_templates = True

    def __init__(self, config: TemplateReconstructionConfig, job: JobConfig, shape: Architecture) -> None:
        super().__init__(config, job, shape)
        self.likeness = config.likeness

    def request(self, patients: int, volumes: int) -> CropRequest:
        """Any crops; those of a patient show the same place, so that one read serves several objectives."""
        return CropRequest("aligned", patients, volumes)

    def predict(
        self, encoder: Encoder, images: Tensor, modality: Tensor, fill: Tensor, visible: Tensor, masked: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Predicted and true masked patches, both [B, Q, V], on the scale of the target.

        Args:
            encoder: with templates.
            images: [B, D, H, W].
            modality: [B].
            fill: [B, Q, V] the template's patches at the masked places.
            visible: [B, K] patch indices, on the CPU.
            masked: [B, Q] patch indices, on the CPU.
        """
        own = embed_patches(encoder, images, modality, visible, self.spacing_mm)
        positions = crop_positions(images, encoder.shape.patch, self.spacing_mm)
        filled = encoder.embed_template(fill, modality, positions[masked])
        return self.decode_filled(encoder, images, modality, (own, filled), visible, masked)

    def forward(self, encoder: Encoder, batch: Batch, generator: torch.Generator) -> Outcome | None:
        """Mean squared error over masked patches in the body, and of the template itself there, as weighted."""
        places = self.draw_places(batch.body, encoder.shape.patch, generator)
        if places is None:
            return None
        rows, masked = places.rows, places.masked
        images, modality = batch.images[rows], batch.modality[rows]
        extent = (images.shape[1], images.shape[2], images.shape[3])
        shown = template_patches(encoder, modality, batch.corner[rows], batch.box[rows], extent)
        fill = gather(shown, masked.to(shown.device))
        # What is seen beside the body would otherwise be shaped by the patches that look at it.
        fill = torch.where(places.counts[..., None], fill, fill.detach())
        predicted, true = self.predict(encoder, images, modality, fill, places.visible, masked)
        crop = gather(patchify(images, encoder.shape.patch), masked.to(images.device))
        unlike = patch_errors(fill, crop)[places.counts].mean()
        loss = self.loss(predicted, true, places.counts) + self.likeness * unlike
        tally = count(modality, encoder.modalities)
        scalars = {"template_error": float(unlike.detach())}
        return Outcome(loss, len(modality), tally, tally, filled=tally, scalars=scalars)
