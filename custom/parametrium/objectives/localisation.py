"""Box localisation: given a small box of a scan, where in the crop is it (METHODS 2.1, 3D; after UP-DETR, Dai 2021)?

The box is cut from another modality of the same frame where there is one: to find it, the encoder must know the anatomy
that both show, not the grey values of one.

N crops, B boxes, K image tokens, Q box tokens, C encoder channels, G head channels, D H W voxels of a crop.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from parametrium.config import BoxLocalisationConfig, JobConfig
from parametrium.data.batch import Batch, CropRequest
from parametrium.model.attention import Block
from parametrium.model.encoder import Encoded, Encoder
from parametrium.model.masking import draw_mask
from parametrium.model.patch_embed import patch_grid
from parametrium.model.position import Spacing, position_code
from parametrium.model.presets import Architecture
from parametrium.objectives.boxes import (
    TRIES,
    as_fractions,
    best_constant_box,
    body_shares,
    box_loss,
    cut,
    draw_extents,
    draw_places,
    iou,
)
from parametrium.objectives.contrast_loss import limited_scale
from parametrium.objectives.filling import crop_positions
from parametrium.objectives.objective import Objective, Outcome
from parametrium.objectives.reconstruction import draw_pairs
from parametrium.objectives.target import MINIMUM_BODY

SIZES = 4
"""Different sizes of boxes in a batch: boxes of one size are encoded together, without any filling up."""

SLOPE = 4.0
"""A sigmoid's inverse at its middle: a vote of .1 off the crop's centre moves the answer by about .1."""

ENOUGH_BODY = 0.5
"""Of the places that are tried, the first with this share of body is taken; else the one with most."""


class BoxHead(nn.Module):
    """The box's tokens look for themselves among the image's tokens, vote for a centre, and agree on centre and size.

    A vote is the mean place of the image tokens that are like a box token, less that token's place in the box. Without
    votes, cross-attention alone answered with the crop's middle for as long as it was watched (480 steps), even where
    the box was a plain copy: what is found in one token and where it lies first has to meet in a product.

    Args:
        shape: sizes; the head has the width and heads of the reconstruction decoders.
        layers: cross-attention layers.
    """

    def __init__(self, shape: Architecture, layers: int) -> None:
        super().__init__()
        width = shape.decoder_width
        self.width = width
        self.context = nn.Linear(shape.width, width)
        self.token = nn.Linear(shape.width, width)
        self.pooled = nn.Linear(2 * shape.width, width)
        # Two layers need no damping; with the encoder's LayerScale the box would hardly look at the image at first.
        undamped = replace(shape, layer_scale=1.0)
        self.alike = nn.Linear(shape.width, width)
        self.log_sharpness = nn.Parameter(torch.tensor(math.log(10.0)))
        self.vote = nn.Linear(3, width)
        self.blocks = nn.ModuleList(Block(width, shape.decoder_heads, undamped) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.box = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, 6))

    def votes(self, query: Tensor, query_mm: Tensor, image: Tensor, image_mm: Tensor) -> Tensor:
        """[B, Q, 3] where each box token [B, Q, C] puts the box's centre: millimetres from the crop's, float32."""
        like, own = (F.normalize(self.alike(tokens).float(), dim=-1, eps=1e-6) for tokens in (image, query))
        with torch.autocast(like.device.type, enabled=False):
            scores = limited_scale(self.log_sharpness) * own @ like.transpose(1, 2)
            return scores.softmax(-1) @ image_mm - query_mm

    def forward(
        self, query: Encoded, query_mm: Tensor, image: Tensor, image_mm: Tensor, crop_mm: tuple[float, float, float]
    ) -> Tensor:
        """[B, 6] centre and size as fractions of the crop.

        Args:
            query: the encoded boxes, Q tokens each.
            query_mm: [Q, 3] patch centres from the box's own centre.
            image: [B, K, C] tokens of the crops.
            image_mm: [B, K, 3] patch centres from the crop's centre.
            crop_mm: edges of the crops.
        """
        votes = self.votes(query.patches, query_mm, image, image_mm) / image_mm.new_tensor(crop_mm)
        seen = self.context(image)
        seen = seen + position_code(image_mm, self.width).to(seen.dtype)
        own = self.token(query.patches)
        own = own + position_code(query_mm, self.width).to(own.dtype) + self.vote(SLOPE * votes).to(own.dtype)
        x = torch.cat([self.pooled(query.pooled)[:, None].to(own.dtype), own], dim=1)
        for block in self.blocks:
            x = block(x, seen)
        answer = self.box(self.norm(x).mean(1)).float()
        return (answer + F.pad(SLOPE * votes.mean(1), (0, 3))).sigmoid()  # type: ignore[no-any-return]


class Drawn(NamedTuple):
    """Boxes that are to be found, on the CPU.

    Attributes:
        row: [B] the crop in which a box is looked for.
        source: [B] the crop from which it is cut, at the same place of the same frame; the same one where there is no
            other modality.
        low: [B, 3] first voxel.
        extents: [B, 3] edges, voxels; at most ``SIZES`` different ones.
    """

    row: Tensor
    source: Tensor
    low: Tensor
    extents: Tensor


class BoxLocalisation(Objective):
    """The encoder embeds crop and box; a head says where the box lies. L1 + (1 - GIoU)."""

    kind = "box_localisation"

    def __init__(self, config: BoxLocalisationConfig, job: JobConfig, shape: Architecture) -> None:
        super().__init__()
        self.config = config
        self.spacing_mm: Spacing = job.preparation.spacing_mm
        self.head = BoxHead(shape, config.layers)
        self.constant: tuple[float, ...] = tuple(
            best_constant_box(job.crop, shape.patch, config.size, config.aspect).tolist()
        )

    def request(self, patients: int, volumes: int) -> CropRequest:
        """At least two registered volumes of a patient, where it has them."""
        return CropRequest("aligned", patients, max(volumes, 2))

    def draw(self, batch: Batch, patch: int, generator: torch.Generator) -> Drawn:
        """Boxes of every crop; one for which no try finds body is left out.

        Boxes that share a size are drawn at random, so that size tells nothing of modality or patient.
        """
        crop, number = _extent(batch.images), len(batch.images)
        rows = torch.arange(number).repeat(self.config.boxes)
        source = rows.clone()
        for first in range(0, len(rows), number):
            anchor, other = draw_pairs(batch, generator)
            source[first + anchor.cpu()] = other.cpu()
        sizes = draw_extents(SIZES, crop, patch, self.config.size, self.config.aspect, generator)
        extents = sizes[torch.randperm(len(rows), generator=generator) % SIZES]
        places = draw_places(extents, crop, TRIES, generator)
        device = batch.body.device
        in_both = batch.body[rows.to(device)] & batch.body[source.to(device)]
        shares = body_shares(in_both, places.to(device), extents.to(device)).cpu()
        best = shares.clamp(max=ENOUGH_BODY).argmax(1)
        every = torch.arange(len(rows))
        shown = shares[every, best] >= MINIMUM_BODY
        return Drawn(rows[shown], source[shown], places[every, best][shown], extents[shown])

    def locate(self, encoder: Encoder, batch: Batch, drawn: Drawn, generator: torch.Generator) -> Tensor:
        """[B, 6] where the model thinks the boxes are."""
        images, device = batch.images, batch.images.device
        crops, of_box = torch.unique(drawn.row, return_inverse=True)  # a crop is encoded once for all of its boxes
        visible, _ = draw_mask(len(crops), patch_grid(images, encoder.shape.patch), self.config.mask_ratio, generator)
        crops = crops.to(device)
        tokens = encoder.encode(images[crops], batch.modality[crops], self.spacing_mm, visible).patches
        positions = crop_positions(images, encoder.shape.patch, self.spacing_mm)[visible.to(device)]
        d, h, w = (n * mm for n, mm in zip(_extent(images), self.spacing_mm, strict=True))
        found, order = [], []
        for extent in torch.unique(drawn.extents, dim=0).tolist():
            these = (drawn.extents == torch.tensor(extent)).all(1).nonzero().squeeze(1)
            box, query_mm = self.query(encoder, batch, drawn, these, extent, generator)
            own = of_box[these].to(device)
            found.append(self.head(box, query_mm, tokens[own], positions[own], (d, h, w)))
            order.append(these)
        return torch.cat(found)[torch.cat(order).argsort().to(device)]

    def query(
        self,
        encoder: Encoder,
        batch: Batch,
        drawn: Drawn,
        these: Tensor,
        extent: Sequence[int],
        generator: torch.Generator,
    ) -> tuple[Encoded, Tensor]:
        """Encodes the boxes ``these`` of one size at their own resolution.

        Positions are counted from the box's own centre, and zeros that fill up its last patches follow from its size
        alone: neither tells where it was cut.

        Returns:
            the encoded boxes, and [Q, 3] patch centres.
        """
        device = batch.images.device
        source, low = drawn.source[these].to(device), drawn.low[these].to(device)
        box = cut(batch.images[source], low, extent)
        same = (drawn.source == drawn.row)[these]
        disguised = disguise(box, cut(batch.body[source], low, extent), generator)
        box = torch.where(same.to(device)[:, None, None, None], disguised, box)
        encoded = encoder.encode(box, batch.modality[source], self.spacing_mm)
        return encoded, crop_positions(box, encoder.shape.patch, self.spacing_mm)

    def forward(self, encoder: Encoder, batch: Batch, generator: torch.Generator) -> Outcome | None:
        """Mean loss over boxes; ``chance`` and ``iou_chance`` are of the best box that looks at no scan."""
        drawn = self.draw(batch, encoder.shape.patch, generator)
        if not len(drawn.row):
            return None
        true = as_fractions(drawn.low, drawn.extents, _extent(batch.images)).to(batch.images.device)
        predicted = self.locate(encoder, batch, drawn, generator)
        constant = torch.tensor(self.constant, device=true.device).expand_as(true)
        scalars = {
            "iou": float(iou(predicted.detach(), true).mean()),
            "iou_chance": float(iou(constant, true).mean()),
            "chance": float(box_loss(constant, true).mean()),
        }
        embedded = _crops_by_modality(drawn, batch.modality.tolist(), encoder.modalities)
        return Outcome(box_loss(predicted, true).mean(), len(set(drawn.row.tolist())), embedded, scalars=scalars)


def _crops_by_modality(drawn: Drawn, modality: Sequence[int], names: Sequence[str]) -> Counter[str]:
    """Crops whose boxes are looked for or cut in a modality: each once, however many of its boxes that are."""
    pairs = zip(drawn.row.tolist(), drawn.source.tolist(), strict=True)
    return Counter(names[m] for _, m in {(row, modality[n]) for row, source in pairs for n in (row, source)})


def disguise(box: Tensor, body: Tensor, generator: torch.Generator) -> Tensor:
    """Other grey values for the same anatomy, where a box is cut from the very volume in which it is looked for.

    Contrast times .5 to 1.5 (half of the boxes: upside down) around the box's mean, brightness by up to .5, noise of
    .1. Outside the body nothing changes.

    Args:
        box: [B, d, h, w] prepared intensities.
        body: [B, d, h, w] bool.
        generator: CPU generator.
    """
    contrast, upside, shift = torch.rand(3, len(box), 1, 1, 1, generator=generator).to(box.device).unbind(0)
    noise = 0.1 * torch.randn(box.shape, generator=generator).to(box.device)
    voxels = body.sum((1, 2, 3), keepdim=True).clamp(min=1)
    mean = (box * body).sum((1, 2, 3), keepdim=True) / voxels
    factor = (0.5 + contrast) * torch.where(upside < 0.5, -1.0, 1.0)
    return torch.where(body, mean + factor * (box - mean) + (shift - 0.5) + noise, box)


def _extent(images: Tensor) -> tuple[int, int, int]:
    return images.shape[1], images.shape[2], images.shape[3]
