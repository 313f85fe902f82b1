"""Masked and cross-modal reconstruction (METHODS 8.3; cross-modal after BrainMVP, METHODS 1.1).

B volumes, L patches, K visible, Q masked, V voxels of a patch, C channels.
"""

from collections import Counter

import torch
from torch import Tensor

from parametrium.config import CrossModalReconstructionConfig, JobConfig, MaskedReconstructionConfig
from parametrium.data.batch import Batch, CropRequest
from parametrium.model.decoder import Decoder
from parametrium.model.encoder import Encoder
from parametrium.model.masking import draw_mask
from parametrium.model.patch_embed import gather, patch_grid, patchify
from parametrium.model.position import Spacing, grid_positions
from parametrium.model.presets import Architecture
from parametrium.model.windows import windows_of
from parametrium.objectives.objective import Objective, Outcome, count
from parametrium.objectives.target import Target, counting_patches, patch_errors, standardise


def crop_positions(images: Tensor, patch: int, spacing_mm: Spacing) -> Tensor:
    """[L, 3] patch centres of [B, D, H, W] crops, on their device."""
    crop = (images.shape[1], images.shape[2], images.shape[3])
    return grid_positions(crop, patch, spacing_mm).to(images.device)


class MaskedReconstruction(Objective):
    """The encoder sees some patches; the decoder gives back the others, where they lie in the body."""

    kind = "masked_reconstruction"

    def __init__(self, config: MaskedReconstructionConfig, job: JobConfig, shape: Architecture) -> None:
        super().__init__()
        self.mask_ratio = config.mask_ratio
        self.mask_unit = config.mask_unit
        self.target: Target = config.target
        self.spacing_mm = job.preparation.spacing_mm
        self.decoder = Decoder(job.modalities, shape, self.spacing_mm)

    def request(self, patients: int, volumes: int) -> CropRequest:
        """Any crops; those of a patient show the same place, so that one read serves several objectives."""
        return CropRequest("aligned", patients, volumes)

    def predict(
        self, encoder: Encoder, images: Tensor, modality: Tensor, visible: Tensor, masked: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Predicted and true masked patches, both [B, Q, V], on the scale of the target.

        Args:
            encoder: the shared encoder.
            images: [B, D, H, W].
            modality: [B].
            visible: [B, K] patch indices, on the CPU.
            masked: [B, Q] patch indices, on the CPU.
        """
        positions = crop_positions(images, encoder.shape.patch, self.spacing_mm)
        encoded = encoder.encode(images, modality, self.spacing_mm, visible)
        predicted = self.decoder(encoded.patches, modality, positions[visible], positions[masked])
        true = gather(patchify(images, encoder.shape.patch), masked.to(images.device))
        return predicted, standardise(true, true, self.target)

    def forward(self, encoder: Encoder, batch: Batch, generator: torch.Generator) -> Outcome | None:
        """Mean squared error over masked patches in the body."""
        patch = encoder.shape.patch
        body = patchify(batch.body, patch)
        visible, masked = draw_mask(
            len(body), patch_grid(batch.images, patch), self.mask_ratio, generator, self.mask_unit
        )
        counts = counting_patches(gather(body, masked.to(body.device)))
        rows = counts.any(1)
        if not rows.any():
            return None
        modality, drawn = batch.modality[rows], rows.cpu()
        predicted, true = self.predict(encoder, batch.images[rows], modality, visible[drawn], masked[drawn])
        loss = patch_errors(predicted, true)[counts[rows]].mean()
        tally = count(modality, encoder.modalities)
        return Outcome(loss, int(rows.sum()), tally, tally)


class CrossModalReconstruction(Objective):
    """Masked patches are filled with those of another registered modality; the decoder gives back the masked ones.

    The filled patches carry the embedding of their own modality: otherwise the task would be ambiguous (METHODS 8.3).
    """

    kind = "cross_modal_reconstruction"

    def __init__(self, config: CrossModalReconstructionConfig, job: JobConfig, shape: Architecture) -> None:
        super().__init__()
        self.mask_ratio = config.mask_ratio
        self.mask_unit = config.mask_unit
        self.target: Target = config.target
        self.spacing_mm = job.preparation.spacing_mm
        self.decoder = Decoder(job.modalities, shape, self.spacing_mm, mask_token=False)

    def request(self, patients: int, volumes: int) -> CropRequest:
        """At least two registered volumes of a patient, where it has them."""
        return CropRequest("aligned", patients, max(volumes, 2))

    def predict(
        self,
        encoder: Encoder,
        images: Tensor,
        modality: Tensor,
        fill: Tensor,
        fill_modality: Tensor,
        visible: Tensor,
        masked: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Predicted and true masked patches of ``images``, both [B, Q, V]; ``fill`` is registered to ``images``."""
        patch, device = encoder.shape.patch, images.device
        patches, other = patchify(images, patch), patchify(fill, patch)
        positions = crop_positions(images, patch, self.spacing_mm)
        own = encoder.embed(gather(patches, visible.to(device)), modality, positions[visible])
        filled = encoder.embed(gather(other, masked.to(device)), fill_modality, positions[masked])
        everywhere = torch.cat([visible, masked], dim=1)
        windows = windows_of(everywhere, patch_grid(images, patch))
        encoded = encoder(torch.cat([own, filled], dim=1), windows and windows.to(device)).patches
        starts = encoded[:, visible.shape[1] :]
        predicted = self.decoder(encoded, modality, positions[everywhere], positions[masked], starts)
        true = gather(patches, masked.to(device))
        return predicted, standardise(true, true, self.target)

    def forward(self, encoder: Encoder, batch: Batch, generator: torch.Generator) -> Outcome | None:
        """Mean squared error over masked patches that are body in both volumes."""
        anchor, source = draw_pairs(batch, generator)
        if not len(anchor):
            return None
        patch = encoder.shape.patch
        in_both = patchify(batch.body[anchor] & batch.body[source], patch)
        grid = patch_grid(batch.images, patch)
        visible, masked = draw_mask(len(anchor), grid, self.mask_ratio, generator, self.mask_unit)
        counts = counting_patches(gather(in_both, masked.to(in_both.device)))
        rows = counts.any(1)
        if not rows.any():
            return None
        anchor, source, drawn = anchor[rows], source[rows], rows.cpu()
        modality, fill_modality = batch.modality[anchor], batch.modality[source]
        predicted, true = self.predict(
            encoder, batch.images[anchor], modality, batch.images[source], fill_modality, visible[drawn], masked[drawn]
        )
        loss = patch_errors(predicted, true)[counts[rows]].mean()
        decoded = count(modality, encoder.modalities)
        # A crop counts once for a modality that it both shows and is filled with.
        embedded = Counter(
            {m: int(((modality == i) | (fill_modality == i)).sum()) for i, m in enumerate(encoder.modalities)}
        )
        return Outcome(loss, len(anchor), +embedded, decoded)


def draw_pairs(batch: Batch, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """For every crop, another modality of the same frame, drawn at random; crops without one are left out.

    Returns:
        anchor [A] and source [A] indices of crops.
    """
    registered = (batch.frame[:, None] == batch.frame[None]) & (batch.modality[:, None] != batch.modality[None])
    chance = torch.rand(registered.shape, generator=generator).to(registered.device) * registered
    best, source = chance.max(1)
    anchor = (best > 0).nonzero().squeeze(1)
    return anchor, source[anchor]
