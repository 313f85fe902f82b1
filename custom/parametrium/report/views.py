"""Pictures of what the objectives without voxels in their answer compare: views, small crops, hidden features.

P patients, L patches, V views.
"""

import math
from itertools import permutations
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from parametrium.data.cache import PreparedPatient, PreparedVolume
from parametrium.model.masking import draw_mask
from parametrium.model.patch_embed import patchify, unpatchify
from parametrium.objectives.block_masks import draw_block_masks
from parametrium.objectives.boxes import as_fractions
from parametrium.objectives.global_local import GlobalLocal
from parametrium.objectives.local_views import cut as cut_out
from parametrium.objectives.local_views import draw_corners, local_extent
from parametrium.objectives.modality_contrastive import Compared, ModalityContrastive
from parametrium.objectives.prediction import LatentPrediction
from parametrium.report.planes import Image, Item, Panel, filled, frame_of
from parametrium.report.scene import (
    SHOWN,
    Scene,
    array_of,
    central_corner,
    drawn_items,
    window_of,
)

PATIENTS = 4
"""Whose views are compared in a picture."""


def draw_modality_contrast(scene: Scene, path: Path) -> bool:
    """The two fills of a few patients' crops; False where fewer than two patients have the same registered pair."""
    objective, templates = scene.model.find(ModalityContrastive), scene.model.encoder.templates
    if objective is None or templates is None:
        return False
    chosen = same_pair(scene)
    if len(chosen) < 2:
        return False
    volumes = [volume for _, *pair in chosen for volume in pair]
    corners = [central_corner(first, scene.job.crop) for _, first, _ in chosen for _ in range(2)]
    batch = scene.batch(volumes, *corners)
    anchor = torch.arange(0, len(volumes), 2, device=batch.modality.device)
    compared = Compared(anchor, anchor + 1)
    generator = torch.Generator().manual_seed(scene.job.seed)
    masks = [draw_mask(len(chosen), scene.grid, objective.config.mask_ratio, generator) for _ in range(2)]
    encoder = scene.model.encoder
    a = objective.project(objective.source_view(encoder, batch, compared, *masks[0]))
    b = objective.project(objective.template_view(encoder, batch, compared, *masks[1]))
    cosines = array_of(a @ b.T)
    shown = templates.crops(batch.modality[anchor], batch.corner[anchor], batch.box[anchor], scene.job.crop)
    items = []
    for row, (patient, first, second) in enumerate(chosen):
        image, window = batch.images[2 * row], window_of(batch, 2 * row)
        others = np.delete(cosines[row], row).mean()
        views = [
            filled_in(scene, image, fill, masked[row])
            for fill, (_, masked) in zip((batch.images[2 * row + 1], shown[row]), masks, strict=True)
        ]
        panels = (
            Panel(first.modality, array_of(image), window),
            Panel(f"filled from {second.modality}", views[0], window),
            Panel("filled from the template", views[1], window),
        )
        items.append(Item(f"patient {patient + 1}: {cosines[row, row]:+.2f} (others {others:+.2f})", panels))
    return drawn_items(path, items, scene, 2)


def same_pair(scene: Scene) -> list[tuple[int, PreparedVolume, PreparedVolume]]:
    """Patients with the same two registered modalities, the pair that most have; at most ``PATIENTS``."""
    groups: dict[tuple[str, str], dict[int, tuple[int, PreparedVolume, PreparedVolume]]] = {}
    for number, patient in enumerate(scene.patients):
        for first, second in permutations(patient.volumes, 2):
            if first.frame == second.frame and first.modality != second.modality:
                own = groups.setdefault((first.modality, second.modality), {})
                own.setdefault(number, (number, first, second))
    largest = max(groups.values(), key=len, default={})
    return list(largest.values())[:PATIENTS]


def filled_in(scene: Scene, image: Tensor, fill: Tensor, masked: Tensor) -> Image:
    """A crop [D, H, W] whose masked patches show another one."""
    own, other = (patchify(volume[None].float(), scene.patch) for volume in (image, fill))
    index = masked.to(own.device)
    own[0, index] = other[0, index]
    return array_of(unpatchify(own, scene.grid, scene.patch)[0])


def draw_small_crops(scene: Scene, path: Path) -> bool:
    """A small crop of each of a few patients, and how near it is to them; False for fewer than two patients."""
    objective = scene.model.find(GlobalLocal)
    if objective is None:
        return False
    chosen = [(n, *two_volumes(patient)) for n, patient in enumerate(scene.patients) if patient.volumes][:PATIENTS]
    if len(chosen) < 2:
        return False
    crop = scene.job.crop
    volumes = [volume for _, *pair in chosen for volume in pair]
    batch = scene.batch(volumes, *(central_corner(volume, crop) for volume in volumes))
    extent = local_extent(crop, min(objective.config.local_edges, default=0.5))
    source = torch.arange(0, len(volumes), 2, device=batch.modality.device)
    corner = draw_corners(batch.body, source, extent, torch.Generator().manual_seed(scene.job.seed))
    boxes = as_fractions(corner, torch.tensor(extent, device=corner.device).expand_as(corner), crop)
    small = objective.project(
        scene.model.encoder, cut_out(batch.images, source, corner, extent), batch.modality[source]
    )
    large = objective.project(scene.model.encoder, batch.images, batch.modality).reshape(len(chosen), 2, -1).mean(1)
    distances = array_of((small[:, None] - large[None]).square().mean(-1))
    items = []
    for row, (patient, first, second) in enumerate(chosen):
        inside = filled(boxes[row].tolist(), crop)
        image, window = array_of(batch.images[2 * row]), window_of(batch, 2 * row)
        others = np.delete(distances[row], row).mean()
        panels = (
            Panel("small crop", np.where(inside, image, np.float32(np.nan)), window),
            Panel(first.modality, image, window, overlay=frame_of(inside)),
            Panel(second.modality, array_of(batch.images[2 * row + 1]), window_of(batch, 2 * row + 1)),
        )
        d, h, w = (int(a) + n // 2 for a, n in zip(corner[row], extent, strict=True))
        title = f"patient {patient + 1}: {distances[row, row]:.2f} (others {others:.2f})"
        items.append(Item(title, panels, (d, h, w)))
    return drawn_items(path, items, scene, 2)


def two_volumes(patient: PreparedPatient) -> tuple[PreparedVolume, PreparedVolume]:
    """A patient's first volume and one of another modality, or else another one, or else the same."""
    first = patient.volumes[0]
    others = sorted(patient.volumes[1:], key=lambda volume: volume.modality == first.modality)
    return first, (others or [first])[0]


def draw_latent(scene: Scene, path: Path) -> bool:
    """Where the teacher's features are guessed well; False before the first round, when there is no teacher."""
    objective = scene.model.find(LatentPrediction)
    if objective is None or not objective.teacher.ready:
        return False
    config, generator = objective.config, torch.Generator().manual_seed(scene.job.seed)
    masks = draw_block_masks(1, scene.grid, config.targets, config.target_scale, config.context_scale, generator)
    if masks is None:
        return False
    hidden = masks.blocks.flatten()
    context, shown = torch.full((2, 1, math.prod(scene.grid)), torch.nan)
    context[0, masks.context[0]] = 0.0
    seen = blown_up(scene, context)  # nothing is added where the encoder sees, and the rest is grey
    items = []
    for patient, volume in scene.examples():
        batch = scene.batch([volume], central_corner(volume, scene.job.crop))
        images, modality = batch.images, batch.modality
        guessed = objective.predict(scene.model.encoder, images, modality, masks.context, masks.blocks)[0].float()
        true = objective.targets(images, modality)[0, hidden.to(images.device)]
        errors = F.smooth_l1_loss(guessed, true, reduction="none").mean(-1).cpu()
        same = float(F.smooth_l1_loss(true.mean(0).expand_as(true), true))
        image, window = array_of(images[0]), window_of(batch, 0)
        shown[0, hidden] = errors
        panels = (
            Panel(volume.modality, image, window),
            Panel("seen by the encoder", image + seen, window),
            Panel(f"error, 0 to {2 * same:.2f}", blown_up(scene, shown), (0.0, 2 * same), "magma"),
        )
        title = f"{volume.modality}, patient {patient + 1}: {float(errors.mean()):.2f} ({same:.2f})"
        items.append(Item(title, panels))
    return drawn_items(path, items, scene, SHOWN)


def blown_up(scene: Scene, values: Tensor) -> Image:
    """[D, H, W] one number a patch, [1, L], at all its voxels."""
    patches = values[..., None].expand(-1, -1, scene.patch**3)
    return array_of(unpatchify(patches, scene.grid, scene.patch)[0])
