"""Pictures of the reconstructions: what the encoder saw, what came back, and the error.

L patches, Q masked, V voxels of a patch.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from parametrium.data.batch import Batch
from parametrium.model.patch_embed import gather, patchify, unpatchify
from parametrium.objectives.reconstruction import CrossModalReconstruction, MaskedReconstruction
from parametrium.objectives.synthesis import CrossModalSynthesis
from parametrium.objectives.target import Target
from parametrium.report.planes import Image, Item, Panel
from parametrium.report.scene import (
    SHOWN,
    Scene,
    array_of,
    central_corner,
    drawn_items,
    pairs_shown,
    window_of,
)


def draw_masked(scene: Scene, path: Path) -> bool:
    """Masked reconstruction of the examples; False where the model has no such objective."""
    objective = scene.model.find(MaskedReconstruction)
    if objective is None:
        return False
    items = []
    for patient, volume in scene.examples():
        batch = scene.batch([volume], central_corner(volume, scene.job.crop))
        visible, masked = scene.mask(objective.mask_ratio, objective.mask_unit)
        predicted, _ = objective.predict(scene.model.encoder, batch.images, batch.modality, visible, masked)
        panels = _reconstruction_panels(scene, batch, masked, predicted, objective.target, volume.modality)
        items.append(Item(f"{volume.modality}, patient {patient + 1}", panels))
    return drawn_items(path, items, scene, SHOWN)


def draw_cross_modal(scene: Scene, path: Path) -> bool:
    """Cross-modal reconstruction of registered pairs; False where the model has no such objective."""
    objective = scene.model.find(CrossModalReconstruction)
    if objective is None:
        return False
    items = []
    for patient, volume, other, batch in pairs_shown(scene):
        visible, masked = scene.mask(objective.mask_ratio, objective.mask_unit)
        images, modality = batch.images, batch.modality
        predicted, _ = objective.predict(
            scene.model.encoder, images[:1], modality[:1], images[1:], modality[1:], visible, masked
        )
        panels = _reconstruction_panels(scene, batch, masked, predicted, objective.target, volume.modality)
        fill = Panel(f"{other.modality} (fills)", array_of(images[1]), window_of(batch, 1))
        title = f"{volume.modality} from {other.modality}, patient {patient + 1}"
        items.append(Item(title, (*panels[:2], fill, *panels[2:])))
    return drawn_items(path, items, scene, 2)


def draw_synthesis(scene: Scene, path: Path) -> bool:
    """What a scan is turned into, beside what was scanned; False where the model has no such objective."""
    objective = scene.model.find(CrossModalSynthesis)
    if objective is None:
        return False
    items = []
    for patient, volume, other, batch in pairs_shown(scene):
        images, modality = batch.images, batch.modality
        source = torch.zeros(1, dtype=torch.long, device=images.device)
        made = objective.predict(scene.model.encoder, images[1:], modality[1:], source, modality[:1])[0]
        looked = Panel(f"{other.modality}, as it is", array_of(images[1]), window_of(batch, 1))
        true, window = array_of(images[0]), window_of(batch, 0)
        panels = (looked, *_compared(volume.modality, true, array_of(made), window, "synthesis"))
        items.append(Item(f"{volume.modality} from {other.modality}, patient {patient + 1}", panels))
    return drawn_items(path, items, scene, 2)


def restored(predicted: Tensor, true: Tensor, target: Target) -> Tensor:
    """[B, Q, V] predictions on the scale of the intensities.

    Standardised patches get back the mean and the deviation of the true patch, without which they cannot be shown.
    """
    if target == "raw":
        return predicted
    deviation = true.std(-1, keepdim=True, unbiased=False).clamp(min=0.1)
    return predicted * deviation + true.mean(-1, keepdim=True)


def _reconstruction_panels(
    scene: Scene, batch: Batch, masked: Tensor, predicted: Tensor, target: Target, modality: str
) -> tuple[Panel, ...]:
    """The first crop of a batch: as it is, as the encoder saw it, as it came back, and the error."""
    patches = patchify(batch.images[:1], scene.patch)
    masked = masked.to(patches.device)
    index = masked[..., None].expand(-1, -1, patches.shape[-1])
    back = patches.scatter(1, index, restored(predicted.float(), gather(patches, masked), target))
    seen = patches.scatter(1, index, torch.full_like(back, torch.nan))
    true, hidden, made = (array_of(unpatchify(p, scene.grid, scene.patch)[0]) for p in (patches, seen, back))
    window = window_of(batch, 0)
    as_it_is, *others = _compared(modality, true, made, window, "reconstruction")
    return (as_it_is, Panel("seen by the encoder", hidden, window), *others)


def _compared(
    modality: str, true: Image, made: Image, window: tuple[float, float], name: str
) -> tuple[Panel, Panel, Panel]:
    """A crop as it is, as it came back, and the error."""
    limit = (window[1] - window[0]) / 2
    return (
        Panel(modality, true, window),
        Panel(name, made, window),
        Panel(f"error, 0 to {limit:.1f}", np.abs(made - true), (0.0, limit), "magma"),
    )
