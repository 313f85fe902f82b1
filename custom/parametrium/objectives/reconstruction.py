"""Masked and cross-modal reconstruction (METHODS 8.3; cross-modal after BrainMVP, METHODS 1.1).

B volumes, L patches, K visible, Q masked, V voxels of a patch, C channels.
"""

from collections import Counter
from typing import NamedTuple

import torch
from torch import Tensor

from parametrium.config import (
    CrossModalReconstructionConfig,
    JobConfig,
    MaskedReconstructionConfig,
    ReconstructionConfig,
)
from parametrium.data.batch import Batch, CropRequest
from parametrium.model.decoder import Decoder
from parametrium.model.encoder import Encoder
from parametrium.model.masking import draw_mask
from parametrium.model.patch_embed import gather, patch_grid, patchify
from parametrium.model.presets import Architecture
from parametrium.objectives.filling import crop_positions, embed_patches, encode_filled
from parametrium.objectives.objective import Objective, Outcome, count
from parametrium.objectives.target import Target, counting_patches, patch_errors, spectral_errors, standardise


class Places(NamedTuple):
    """Where crops are masked, of those of which at least one masked patch counts.

    Attributes:
        rows: [B] bool, which of the crops.
        visible: [B', K] patch indices of those crops, on the CPU.
        masked: [B', Q] likewise.
        counts: [B', Q] which masked patches count.
    """

    rows: Tensor
    visible: Tensor
    masked: Tensor
    counts: Tensor


class Reconstruction(Objective):
    """What the reconstructions have in common: a mask, a decoder, and an error over the masked patches that count."""

    def __init__(
        self, config: ReconstructionConfig, job: JobConfig, shape: Architecture, *, mask_token: bool = False
    ) -> None:
        super().__init__()
        self.mask_ratio = config.mask_ratio
        self.mask_unit = config.mask_unit
        self.target: Target = config.target
        self.spectral = config.spectral
        self.patch = shape.patch
        self.spacing_mm = job.preparation.spacing_mm
        self.decoder = Decoder(job.modalities, shape, self.spacing_mm, mask_token=mask_token)

    def draw_places(self, body: Tensor, patch: int, generator: torch.Generator) -> Places | None:
        """Masks for bodies [B, D, H, W]; None where no masked patch counts."""
        grid = patch_grid(body, patch)
        visible, masked = draw_mask(len(body), grid, self.mask_ratio, generator, self.mask_unit)
        counts = counting_patches(gather(patchify(body, patch), masked.to(body.device)))
        rows = counts.any(1)
        if not rows.any():
            return None
        drawn = rows.cpu()
        return Places(rows, visible[drawn], masked[drawn], counts[rows])

    def loss(self, predicted: Tensor, true: Tensor, counts: Tensor) -> Tensor:
        """Mean squared error of the patches [B, Q, V] that count [B, Q], and of their spectra as weighted."""
        error = patch_errors(predicted, true)[counts].mean()
        if self.spectral == 0:
            return error
        return error + self.spectral * spectral_errors(predicted, true, self.patch)[counts].mean()

    def decode_filled(
        self,
        encoder: Encoder,
        images: Tensor,
        modality: Tensor,
        tokens: tuple[Tensor, Tensor],
        visible: Tensor,
        masked: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Predicted and true masked patches of crops that are filled there.

        Args:
            encoder: the shared encoder.
            images: [B, D, H, W] crops as they are.
            modality: [B].
            tokens: [B, K, C] of the visible patches, [B, Q, C] of what fills the masked ones.
            visible: [B, K] patch indices, on the CPU.
            masked: [B, Q] likewise.

        Returns:
            Both [B, Q, V], on the scale of the target.
        """
        patch = encoder.shape.patch
        positions = crop_positions(images, patch, self.spacing_mm)
        everywhere = torch.cat([visible, masked], dim=1)
        encoded = encode_filled(encoder, *tokens, everywhere, patch_grid(images, patch), positions).patches
        starts = encoded[:, visible.shape[1] :]
        predicted = self.decoder(encoded, modality, positions[everywhere], positions[masked], starts)
        true = gather(patchify(images, patch), masked.to(images.device))
        return predicted, standardise(true, true, self.target)


class MaskedReconstruction(Reconstruction):
    """The encoder sees some patches; the decoder gives back the others, where they lie in the body."""

    kind = "masked_reconstruction"

    def __init__(self, config: MaskedReconstructionConfig, job: JobConfig, shape: Architecture) -> None:
        super().__init__(config, job, shape, mask_token=True)

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
        places = self.draw_places(batch.body, encoder.shape.patch, generator)
        if places is None:
            return None
        modality = batch.modality[places.rows]
        predicted, true = self.predict(encoder, batch.images[places.rows], modality, places.visible, places.masked)
        tally = count(modality, encoder.modalities)
        return Outcome(self.loss(predicted, true, places.counts), len(modality), tally, tally)


class CrossModalReconstruction(Reconstruction):
    """Masked patches are filled with those of another registered modality; the decoder gives back the masked ones.

    The filled patches carry the embedding of their own modality: otherwise the task would be ambiguous (METHODS 8.3).
    """

    kind = "cross_modal_reconstruction"

    def __init__(self, config: CrossModalReconstructionConfig, job: JobConfig, shape: Architecture) -> None:
        super().__init__(config, job, shape)

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
        own = embed_patches(encoder, images, modality, visible, self.spacing_mm)
        filled = embed_patches(encoder, fill, fill_modality, masked, self.spacing_mm)
        return self.decode_filled(encoder, images, modality, (own, filled), visible, masked)

    def forward(self, encoder: Encoder, batch: Batch, generator: torch.Generator) -> Outcome | None:
        """Mean squared error over masked patches that are body in both volumes."""
        anchor, source = draw_pairs(batch, generator)
        if not len(anchor):
            return None
        in_both = batch.body[anchor] & batch.body[source]
        places = self.draw_places(in_both, encoder.shape.patch, generator)
        if places is None:
            return None
        anchor, source = anchor[places.rows], source[places.rows]
        modality, fill_modality = batch.modality[anchor], batch.modality[source]
        predicted, true = self.predict(
            encoder,
            batch.images[anchor],
            modality,
            batch.images[source],
            fill_modality,
            places.visible,
            places.masked,
        )
        loss = self.loss(predicted, true, places.counts)
        embedded = count_either(modality, fill_modality, encoder.modalities)
        return Outcome(loss, len(anchor), embedded, count(modality, encoder.modalities))


def draw_pairs(batch: Batch, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """For every crop, another modality of the same frame, drawn at random; crops without one are left out.

    Returns:
        anchor [A] and source [A] indices of crops.
    """
    partners = registered(batch)
    chance = torch.rand(partners.shape, generator=generator).to(partners.device) * partners
    best, source = chance.max(1)
    anchor = (best > 0).nonzero().squeeze(1)
    return anchor, source[anchor]


def registered(batch: Batch) -> Tensor:
    """[N, N] which crops show the same place in another modality."""
    return (batch.frame[:, None] == batch.frame[None]) & (batch.modality[:, None] != batch.modality[None])


def count_either(first: Tensor, second: Tensor, modalities: tuple[str, ...]) -> Counter[str]:
    """How many rows have a modality index in either; a row counts once for a modality that it has in both."""
    return +Counter({m: int(((first == i) | (second == i)).sum()) for i, m in enumerate(modalities)})
