"""Latent prediction: hidden blocks of a crop are predicted as a teacher's features (I-JEPA in 3D; METHODS 4.3, 5.3).

Assran et al. 2023, section 3. Nothing asks for voxels, so noise need not be modelled; nothing but the slow teacher and
the normalisation of its features keeps them from collapsing, which ``spread`` shows.

B crops, L patches, K context patches, N blocks, V patches of a block, C encoder channels, G predictor channels.
"""

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from parametrium.config import JobConfig, LatentPredictionConfig
from parametrium.data.batch import Batch, CropRequest
from parametrium.model.attention import Block
from parametrium.model.encoder import Encoder
from parametrium.model.patch_embed import gather, patch_grid, patchify
from parametrium.model.position import position_code
from parametrium.model.presets import Architecture
from parametrium.objectives.block_masks import draw_block_masks
from parametrium.objectives.filling import crop_positions
from parametrium.objectives.objective import Objective, Outcome, count
from parametrium.objectives.target import counting_patches
from parametrium.objectives.teacher import Teacher


class Predictor(nn.Module):
    """A small transformer over the context and one block of mask tokens, which know their places.

    Args:
        shape: sizes; the predictor has width, depth and heads of the reconstruction decoders.
    """

    def __init__(self, shape: Architecture) -> None:
        super().__init__()
        width = shape.decoder_width
        self.width = width
        self.context = nn.Linear(shape.width, width)
        self.mask_token = nn.Parameter(torch.randn(width) * 0.02)
        # Undamped: with the encoder's LayerScale, 300 steps learned places and hardly anything of the context.
        undamped = replace(shape, layer_scale=1.0)
        self.blocks = nn.ModuleList(Block(width, shape.decoder_heads, undamped) for _ in range(shape.decoder_depth))
        self.norm = nn.LayerNorm(width)
        self.feature = nn.Linear(width, shape.width)

    def forward(self, context: Tensor, context_mm: Tensor, block_mm: Tensor) -> Tensor:
        """[B, N, V, C] features; every block is predicted by itself, blocks do not see each other.

        Args:
            context: [B, K, C] encoded tokens.
            context_mm: [B, K, 3] patch centres.
            block_mm: [B, N, V, 3] patch centres of the blocks.
        """
        B, N, V, _ = block_mm.shape
        seen = self.context(context)
        seen = seen + position_code(context_mm, self.width).to(seen.dtype)
        asked = self.mask_token.to(seen.dtype) + position_code(block_mm, self.width).to(seen.dtype)
        x = torch.cat([seen.repeat_interleave(N, dim=0), asked.flatten(0, 1)], dim=1)
        for block in self.blocks:
            x = block(x)
        return self.feature(self.norm(x[:, -V:])).unflatten(0, (B, N))  # type: ignore[no-any-return]


class LatentPrediction(Objective):
    """The encoder sees the context; a predictor gives the teacher's features of the hidden blocks. Smooth L1.

    The teacher is fixed over a round and moves between rounds, towards the aggregated weights (``Teacher``). Within a
    round the target therefore stands still, however many steps it has, and is the same at all sites.
    """

    kind = "latent_prediction"

    def __init__(self, config: LatentPredictionConfig, job: JobConfig, shape: Architecture) -> None:
        super().__init__()
        self.config = config
        self.spacing_mm = job.preparation.spacing_mm
        self.predictor = Predictor(shape)
        self.teacher = Teacher(config.momentum)

    def request(self, patients: int, volumes: int) -> CropRequest:
        """Any crops; those of a patient show the same place, so that one read serves several objectives."""
        return CropRequest("aligned", patients, volumes)

    def begin_round(self, encoder: Encoder, steps: int) -> None:
        """The teacher moves towards the global weights; in its first round it becomes a copy of them."""
        self.teacher.follow(encoder, steps)

    def kept(self) -> dict[str, Tensor]:
        """The teacher's weights."""
        return self.teacher.tensors()

    def keep(self, tensors: dict[str, Tensor]) -> None:
        """Goes on with a teacher of an earlier process."""
        self.teacher.resume(tensors)

    def targets(self, images: Tensor, modality: Tensor) -> Tensor:
        """[B, L, C] float32 features of the whole crops, each token with mean 0 and variance 1, without gradient."""
        features = self.teacher.patches(images, modality, self.spacing_mm).float()
        return F.layer_norm(features, features.shape[-1:])

    def predict(self, encoder: Encoder, images: Tensor, modality: Tensor, context: Tensor, blocks: Tensor) -> Tensor:
        """[B, N V, C] guessed features of the blocks' patches.

        Args:
            encoder: the shared encoder.
            images: [B, D, H, W].
            modality: [B].
            context: [B, K] patch indices of what the encoder sees, on the CPU.
            blocks: [B, N, V] likewise of the blocks.
        """
        positions = crop_positions(images, encoder.shape.patch, self.spacing_mm)
        encoded = encoder.encode(images, modality, self.spacing_mm, context).patches
        asked, seen = (positions[index.to(images.device)] for index in (blocks, context))
        guessed: Tensor = self.predictor(encoded, seen, asked)
        return guessed.flatten(1, 2)

    def forward(self, encoder: Encoder, batch: Batch, generator: torch.Generator) -> Outcome | None:
        """Mean over hidden patches in the body.

        ``chance`` is the loss of the targets' own mean as an answer to everything; ``spread`` see ``spread_of``. Before
        the first round there is no teacher and nothing to measure.
        """
        if not self.training and not self.teacher.ready:
            return None
        config, patch, device = self.config, encoder.shape.patch, batch.images.device
        grid = patch_grid(batch.images, patch)
        masks = draw_block_masks(
            len(batch.images), grid, config.targets, config.target_scale, config.context_scale, generator
        )
        if masks is None:
            return None
        hidden = masks.blocks.flatten(1)
        counts = counting_patches(gather(patchify(batch.body, patch), hidden.to(device)))
        rows = counts.any(1)
        if not rows.any():
            return None
        context, hidden, blocks = (index[rows.cpu()] for index in (masks.context, hidden, masks.blocks))
        images, modality = batch.images[rows], batch.modality[rows]
        predicted = self.predict(encoder, images, modality, context, blocks)
        features = self.targets(images, modality)
        true = gather(features, hidden.to(device))[counts[rows]]
        loss = F.smooth_l1_loss(predicted[counts[rows]].float(), true)
        scalars = {"chance": float(F.smooth_l1_loss(true.mean(0).expand_as(true), true))}
        if (spread := spread_of(features, modality)) is not None:
            scalars["spread"] = spread
        return Outcome(loss, len(images), count(modality, encoder.modalities), scalars=scalars)


def spread_of(features: Tensor, modality: Tensor) -> float | None:
    """Deviation of a feature over the crops of one modality at one place, mean over crops, places and features.

    Near 0, the teacher tells places and modalities but no longer patients, however low the loss.

    Args:
        features: [B, L, C] the teacher's.
        modality: [B].

    Returns:
        None where no modality has two crops.
    """
    groups = [features[modality == index] for index in set(modality.tolist())]
    spreads = [(len(group), float(group.std(0).mean())) for group in groups if len(group) > 1]
    crops = sum(number for number, _ in spreads)
    return sum(number * spread for number, spread in spreads) / crops if crops else None
