"""What a site sees of its own model: reconstructions, attention and a map of features, of held-out patients.

The pictures go into the site's own folder and never travel. Patients are numbered in the order in which the site's
held-out patients stand; no picture holds a name. Crops, masks and colours are functions of the job's seed, and the
global random state is left as it was.

D H W voxels of a crop, L patches, K visible, Q masked, V voxels of a patch.
"""

import io
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path

import numpy as np
import torch
from matplotlib.image import imread
from torch import Tensor

from parametrium.config import JobConfig
from parametrium.data.batch import Batch
from parametrium.data.cache import PreparedPatient, PreparedVolume
from parametrium.data.crops import Corner, Crop
from parametrium.data.loader import read_batch
from parametrium.errors import public_text
from parametrium.evaluation.features import encoder_features, patient_features
from parametrium.model.masking import draw_mask
from parametrium.model.patch_embed import gather, patchify, unpatchify
from parametrium.objectives.boxes import as_fractions, iou
from parametrium.objectives.localisation import BoxLocalisation
from parametrium.objectives.reconstruction import CrossModalReconstruction, MaskedReconstruction
from parametrium.objectives.registry import PretrainingModel
from parametrium.objectives.target import Target
from parametrium.report.embedding import draw_map, save_points
from parametrium.report.learned_templates import draw_templates
from parametrium.report.planes import Image, Item, Panel, draw_items, filled, frame_of
from parametrium.report.rollouts import (
    Overlay,
    edge_corner,
    heat_of,
    load_overlays,
    overlay_of,
    save_overlays,
    shown_rounds,
)

log = logging.getLogger(__name__)

SHOWN = 2
"""Patients of each modality that are shown."""

ROLLOUTS = "rollouts"
"""Folder of the rollouts of all measured rounds, beside the pictures."""

PAIRS = 6
"""Ordered pairs of modalities that are shown."""

MAPPED = 32
"""Patients on the map of features, and in the mean beside the templates."""

ABOUT = {
    "masked_reconstruction": (
        "Masked reconstruction",
        "Middle planes of a crop in the middle of the body; R, A and S mark the patient's right, anterior and "
        "superior. The encoder sees the patches that are not grey; the reconstruction shows those and the predicted "
        "others.",
    ),
    "cross_modal_reconstruction": (
        "Cross-modal reconstruction",
        "The grey patches are hidden and filled with those of the other, registered modality; the model gives back the "
        "first modality there.",
    ),
    "box_localisation": (
        "Box localisation",
        "The model is given the box as another modality shows it, and says where in the first modality it lies. Planes "
        "through the middle of the true box; frames are the true and the found one.",
    ),
    "templates": (
        "Templates",
        "Middle planes of each modality's learned template in the box of the body, as it was at some rounds and as it "
        "is, beside the mean of the held-out patients in the same coordinates. It should come to resemble the mean; "
        "where one patient can be recognised in it, too few trained it.",
    ),
    "attention_rollout": (
        "Attention rollout along the rounds",
        "Where the mean of the patch tokens comes from, followed back through all blocks; middle planes of a crop at "
        "the edge of the body, interpolated from patches to voxels. Coloured is what gets more than even attention. "
        "Above each picture, the share of the attention outside the body; even attention would give the share in "
        "brackets. It shows where information comes from, not what a decision would rest on.",
    ),
    "embeddings": (
        "Map of features",
        "Two principal components of the pooled features of held-out patients, each modality centred by itself. A line "
        "joins the modalities of one patient.",
    ),
}
"""Title and caption of each picture, by file name."""


@dataclass(frozen=True)
class Scene:
    """What is drawn: the model in evaluation mode, the job, the site's name, its held-out patients, finished rounds."""

    model: PretrainingModel
    job: JobConfig
    site: str
    patients: Sequence[PreparedPatient]
    rounds: int = 0

    @property
    def patch(self) -> int:
        """Edge of a patch, voxels."""
        return self.model.encoder.shape.patch

    @property
    def grid(self) -> tuple[int, int, int]:
        """Patches of a crop along D, H, W."""
        d, h, w = self.job.crop
        return (d // self.patch, h // self.patch, w // self.patch)

    def batch(self, volumes: Sequence[PreparedVolume], corner: Corner) -> Batch:
        """One crop of each volume at one place, on the model's device."""
        nothing = np.zeros((1, len(self.job.clinical)), dtype=np.float32)
        crops = [Crop(volume, 0, 0, corner) for volume in volumes]
        return read_batch(crops, self.job, (nothing, nothing > 0)).to(next(self.model.parameters()).device)

    def mask(self, ratio: float) -> tuple[Tensor, Tensor]:
        """Visible [1, K] and masked [1, Q], the same for every picture."""
        return draw_mask(1, self.grid, ratio, torch.Generator().manual_seed(self.job.seed))

    def examples(self) -> list[tuple[int, PreparedVolume]]:
        """Of each modality the first volumes of the first patients that have it, with the patient's index."""
        found = []
        for modality in self.job.modalities:
            own = [(p, v) for p, patient in enumerate(self.patients) if (v := _first(patient, modality))]
            found += own[:SHOWN]
        return found

    def named(self) -> list[tuple[str, int, PreparedVolume]]:
        """The examples with a name each, for instance ``CT-1``: modality, and number of the patient."""
        return [(f"{volume.modality}-{patient + 1}", patient, volume) for patient, volume in self.examples()]


def draw_pictures(
    model: PretrainingModel,
    held_out: Sequence[PreparedPatient],
    job: JobConfig,
    site: str,
    folder: Path,
    rounds: int = 0,
) -> list[str]:
    """Draws every picture for which the site has something to show.

    A picture that fails is logged by its public reason and left out: a run does not fail for a picture.

    Args:
        model: the model; its mode is restored.
        held_out: patients that were never trained on; at most ``job.evaluation.patients`` are looked at.
        job: crop, modalities, objectives, seed.
        site: name of the site.
        folder: where to; made, readable by its owner alone.
        rounds: finished rounds of this model; earlier ones come from what ``keep_rollouts`` left in the folder.

    Returns:
        Names of the pictures that were drawn.
    """
    draw: dict[str, Callable[[Scene, Path], bool]] = {
        "masked_reconstruction": _masked_reconstruction,
        "cross_modal_reconstruction": _cross_modal_reconstruction,
        "box_localisation": _box_localisation,
        "templates": _templates,
        "attention_rollout": _attention_rollout,
        "embeddings": _embeddings,
    }
    scene = Scene(model, job, site, held_out[: job.evaluation.patients], rounds)
    drawn = []
    training = model.training
    model.eval()
    try:
        for name, function in draw.items():
            try:
                folder.mkdir(parents=True, exist_ok=True, mode=0o700)
                with torch.no_grad():
                    if function(scene, folder / f"{name}.png"):
                        drawn.append(name)
            except Exception as error:
                log.warning("the picture %s was not drawn: %s", name, public_text(error))
    finally:
        model.train(training)
    return drawn


def keep_rollouts(scene: Scene, folder: Path) -> Image | None:
    """Keeps this round's rollouts in a site's folder of pictures, and draws them.

    A failure is logged by its public reason: a run does not fail for a picture.

    Returns:
        [height, width, 3] in [0, 1]; None where the site has no held-out volume, or drawing failed.
    """
    try:
        overlays = rollouts_of(scene)
        if not overlays:
            return None
        save_overlays(folder / ROLLOUTS, scene.rounds, overlays)
        content = io.BytesIO()
        draw_items(content, rollout_items(scene, overlays, {}), scene.job.preparation.spacing_mm, 2 * SHOWN)
        content.seek(0)
        drawn: Image = imread(content, format="png")[..., :3]
        return drawn
    except Exception as error:
        log.warning("the attention rollout was not drawn: %s", public_text(error))
        return None


def central_corner(volume: PreparedVolume, extent: Corner) -> Corner:
    """First voxel of the crop around the middle of the body, moved into the volume where that is larger."""
    corner = []
    for axis, centre in enumerate(volume.foreground().mean(0)):
        first, last = volume.offset[axis], volume.offset[axis] + volume.shape[axis] - extent[axis]
        wanted = round(float(centre)) - extent[axis] // 2
        corner.append(min(max(wanted, first), last) if last >= first else (first + last) // 2)
    return (corner[0], corner[1], corner[2])


def restored(predicted: Tensor, true: Tensor, target: Target) -> Tensor:
    """[B, Q, V] predictions on the scale of the intensities.

    Standardised patches get back the mean and the deviation of the true patch, without which they cannot be shown.
    """
    if target == "raw":
        return predicted
    deviation = true.std(-1, keepdim=True, unbiased=False).clamp(min=0.1)
    return predicted * deviation + true.mean(-1, keepdim=True)


def _masked_reconstruction(scene: Scene, path: Path) -> bool:
    objective = scene.model.find(MaskedReconstruction)
    if objective is None:
        return False
    items = []
    for patient, volume in scene.examples():
        batch = scene.batch([volume], central_corner(volume, scene.job.crop))
        visible, masked = scene.mask(objective.mask_ratio)
        predicted, _ = objective.predict(scene.model.encoder, batch.images, batch.modality, visible, masked)
        panels = _reconstruction_panels(scene, batch, masked, predicted, objective.target, volume.modality)
        items.append(Item(f"{volume.modality}, patient {patient + 1}", panels))
    return _draw(path, items, scene, SHOWN)


def _cross_modal_reconstruction(scene: Scene, path: Path) -> bool:
    objective = scene.model.find(CrossModalReconstruction)
    if objective is None:
        return False
    items = []
    for patient, volume, other in _registered_pairs(scene)[:PAIRS]:
        batch = scene.batch([volume, other], central_corner(volume, scene.job.crop))
        visible, masked = scene.mask(objective.mask_ratio)
        images, modality = batch.images, batch.modality
        predicted, _ = objective.predict(
            scene.model.encoder, images[:1], modality[:1], images[1:], modality[1:], visible, masked
        )
        panels = _reconstruction_panels(scene, batch, masked, predicted, objective.target, volume.modality)
        fill = Panel(f"{other.modality} (fills)", _array(images[1]), _window(batch, 1))
        title = f"{volume.modality} from {other.modality}, patient {patient + 1}"
        items.append(Item(title, (*panels[:2], fill, *panels[2:])))
    return _draw(path, items, scene, 2)


def _box_localisation(scene: Scene, path: Path) -> bool:
    objective = scene.model.find(BoxLocalisation)
    if objective is None:
        return False
    items = []
    for patient, volume, other in _registered_pairs(scene)[:PAIRS]:
        batch = scene.batch([volume, other], central_corner(volume, scene.job.crop))
        generator = torch.Generator().manual_seed(scene.job.seed)
        drawn = objective.draw(batch, scene.patch, generator)
        if 0 not in drawn.row:
            continue
        true = as_fractions(drawn.low, drawn.extents, scene.job.crop)[0]
        found = objective.locate(scene.model.encoder, batch, drawn, generator)[0].cpu()
        image, window = _array(batch.images[0]), _window(batch, 0)
        inside = filled(true.tolist(), scene.job.crop)
        box = np.where(inside, _array(batch.images[1]), np.float32(np.nan))
        agreement = f"found, IoU {float(iou(found[None], true[None])):.2f}"
        panels = (
            Panel(f"box, in {other.modality}", box, _window(batch, 1)),
            Panel(f"its place in {volume.modality}", image, window, overlay=frame_of(inside)),
            Panel(agreement, image, window, overlay=frame_of(filled(found.tolist(), scene.job.crop))),
        )
        d, h, w = (int(a + n // 2) for a, n in zip(drawn.low[0], drawn.extents[0], strict=True))
        items.append(Item(f"{other.modality} in {volume.modality}, patient {patient + 1}", panels, (d, h, w)))
    return _draw(path, items, scene, 2)


def _templates(scene: Scene, path: Path) -> bool:
    templates = scene.model.encoder.templates
    return templates is not None and draw_templates(path, templates, scene.patients[:MAPPED], scene.job)


def rollout_items(
    scene: Scene, overlays: Mapping[str, Overlay], earlier: Mapping[int, Mapping[str, Overlay]]
) -> list[Item]:
    """One item a volume: its crop, and its attention in some of the earlier rounds and in this one.

    Args:
        scene: what is drawn.
        overlays: of this round, as ``rollouts_of`` gives them.
        earlier: by round, those that were kept; an item shows the rounds in which its volume has a map.
    """
    items = []
    for name, patient, volume in scene.named():
        batch = scene.batch([volume], edge_corner(volume, scene.job.crop))
        image, window, overlay = _array(batch.images[0]), _window(batch, 0), overlays[name]
        by_round = {n: own[name] for n, own in earlier.items() if name in own} | {scene.rounds: overlay}
        panels = [Panel("crop", image, window)]
        for n in shown_rounds(sorted(by_round)):
            share = 100 * by_round[n].numbers["background"]
            heat = heat_of(by_round[n].relative, scene.job.crop)
            panels.append(Panel(f"round {n}: {share:.0f} % outside", image, window, overlay=heat))
        even = 100 * overlay.numbers["background_share"]
        title = f"{volume.modality}, patient {patient + 1} (even: {even:.0f} %)"
        items.append(Item(title, tuple(panels)))
    most = max((len(item.panels) for item in items), default=0)
    return [item for item in items if len(item.panels) == most]


def _attention_rollout(scene: Scene, path: Path) -> bool:
    earlier = load_overlays(path.parent / ROLLOUTS, scene.grid)
    items = rollout_items(scene, rollouts_of(scene), earlier)
    return _draw(path, items, scene, 1 if items and len(items[0].panels) > 3 else SHOWN)


def rollouts_of(scene: Scene) -> dict[str, Overlay]:
    """By name of the volume, the rollout of a crop at the edge of its body."""
    found = {}
    for name, _, volume in scene.named():
        batch = scene.batch([volume], edge_corner(volume, scene.job.crop))
        modality = int(batch.modality[0])
        found[name] = overlay_of(scene.model.encoder, batch.images[0], batch.body[0], modality, scene.job)
    return found


def _embeddings(scene: Scene, path: Path) -> bool:
    extractor = {"model": encoder_features(scene.model, scene.job)}
    features = patient_features(scene.patients[:MAPPED], extractor, scene.job, scene.site, "map")["model"]
    if not features:
        return False
    points = save_points(path.with_suffix(".json"), features, scene.site)
    if len(points) < 2:
        return False
    draw_map(path, points, ("patient",))
    return True


def _reconstruction_panels(
    scene: Scene, batch: Batch, masked: Tensor, predicted: Tensor, target: Target, modality: str
) -> tuple[Panel, ...]:
    """The first crop of a batch: as it is, as the encoder saw it, as it came back, and the error."""
    patches = patchify(batch.images[:1], scene.patch)
    masked = masked.to(patches.device)
    index = masked[..., None].expand(-1, -1, patches.shape[-1])
    back = patches.scatter(1, index, restored(predicted.float(), gather(patches, masked), target))
    seen = patches.scatter(1, index, torch.full_like(back, torch.nan))
    true, hidden, made = (_array(unpatchify(p, scene.grid, scene.patch)[0]) for p in (patches, seen, back))
    low, high = _window(batch, 0)
    error_limit = (high - low) / 2
    return (
        Panel(modality, true, (low, high)),
        Panel("seen by the encoder", hidden, (low, high)),
        Panel("reconstruction", made, (low, high)),
        Panel(f"error, 0 to {error_limit:.1f}", np.abs(made - true), (0.0, error_limit), "magma"),
    )


def _registered_pairs(scene: Scene) -> list[tuple[int, PreparedVolume, PreparedVolume]]:
    """For every ordered pair of modalities, the first patient that has both in one frame."""
    found = []
    for first, second in permutations(scene.job.modalities, 2):
        pairs = (
            (p, a, b)
            for p, patient in enumerate(scene.patients)
            for a in patient.volumes
            for b in patient.volumes
            if (a.modality, b.modality) == (first, second) and a.frame == b.frame
        )
        found += [pair for pair in [next(pairs, None)] if pair is not None]
    return found


def _first(patient: PreparedPatient, modality: str) -> PreparedVolume | None:
    return next((volume for volume in patient.volumes if volume.modality == modality), None)


def _window(batch: Batch, row: int) -> tuple[float, float]:
    """Intensities from the darkest to the brightest hundredth of the body, so that few bright voxels do not decide."""
    inside = batch.images[row][batch.body[row]]
    values = _array(inside if len(inside) else batch.images[row].flatten())
    low, high = (float(x) for x in np.percentile(values, (1, 99)))
    return (low, high) if high > low else (low - 0.5, low + 0.5)


def _draw(path: Path, items: Sequence[Item], scene: Scene, beside: int) -> bool:
    if not items:
        return False
    draw_items(path, items, scene.job.preparation.spacing_mm, beside)
    return True


def _array(values: Tensor) -> Image:
    array: Image = values.detach().float().cpu().numpy()
    return array
