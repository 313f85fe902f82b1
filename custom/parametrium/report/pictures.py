"""What a site sees of its own model: reconstructions, attention and a map of features, of held-out patients.

The pictures go into the site's own folder and never travel. Patients are numbered in the order in which the site's
held-out patients stand; no picture holds a name. Crops, masks and colours are functions of the job's seed, and the
global random state is left as it was.

D H W voxels of a crop, L patches, K visible, Q masked, V voxels of a patch.
"""

import io
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.image import imread

from parametrium.config import JobConfig
from parametrium.data.cache import PreparedPatient
from parametrium.errors import public_text
from parametrium.objectives.boxes import as_fractions, iou
from parametrium.objectives.localisation import BoxLocalisation
from parametrium.objectives.registry import PretrainingModel
from parametrium.report.compared_patients import draw_contrast, draw_isotropy, draw_text_contrast
from parametrium.report.embedding import draw_map, save_points
from parametrium.report.learned_templates import draw_templates
from parametrium.report.planes import Image, Item, Panel, draw_items, filled, frame_of
from parametrium.report.reconstructions import draw_cross_modal, draw_masked, draw_synthesis
from parametrium.report.rollouts import (
    Overlay,
    edge_corner,
    heat_of,
    load_overlays,
    overlay_of,
    save_overlays,
    shown_rounds,
)
from parametrium.report.scene import (
    MAPPED,
    SHOWN,
    Scene,
    array_of,
    drawn_items,
    pairs_shown,
    window_of,
)
from parametrium.report.views import draw_latent, draw_modality_contrast, draw_small_crops

log = logging.getLogger(__name__)

ROLLOUTS = "rollouts"
"""Folder of the rollouts of all measured rounds, beside the pictures."""

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
    "cross_modal_synthesis": (
        "Cross-modal synthesis",
        "A scan is turned into another modality, voxel by voxel; beside it what was scanned in that modality.",
    ),
    "box_localisation": (
        "Box localisation",
        "The model is given the box as another modality shows it, and says where in the first modality it lies. Planes "
        "through the middle of the true box; frames are the true and the found one.",
    ),
    "modality_contrastive": (
        "Modality-aware contrast",
        "One crop, filled once from another modality and once from its modality's template, and each masked by itself. "
        "Above, the cosine of the two views, and the mean cosine with the second views of the other patients.",
    ),
    "global_local": (
        "Global and local views",
        "A small crop in its place, in its large crop, and the patient's other large crop. Above, the squared distance "
        "of the small crop's projection to the mean of its patient's large crops, and to those of the other patients.",
    ),
    "isotropy": (
        "Isotropy",
        "Where held-out patients lie along random lines through the space of the projection, a row a line, each "
        "modality by itself. Two thirds should lie in the dark band and nearly all in the light one, in each row; dots "
        "that lie at one place are a collapse. Above, the statistic, and what it is for a Gaussian and for one point.",
    ),
    "latent_prediction": (
        "Latent prediction",
        "The encoder sees the patches that are not grey; a predictor says what the slow teacher, who sees all, makes "
        "of the hidden blocks. Bright patches are those that it guesses badly; above, the mean error, and that of the "
        "same answer to everything.",
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
    "soft_contrastive": (
        "Contrast between modalities",
        "Cosines between two modalities of held-out patients, where the model compares them: the diagonal is a patient "
        "with herself. Beside it, how alike the patients are clinically, by the job's variables.",
    ),
    "text_contrastive": (
        "Contrast with texts",
        "Cosines between a modality and the texts of held-out patients: the diagonal is a patient with her own text. "
        "Beside it, how alike the patients are clinically.",
    ),
    "embeddings": (
        "Map of features",
        "Two principal components of the pooled features of held-out patients, each modality centred by itself. A line "
        "joins the modalities of one patient.",
    ),
}
"""Title and caption of each picture, by file name."""


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
        "masked_reconstruction": draw_masked,
        "cross_modal_reconstruction": draw_cross_modal,
        "cross_modal_synthesis": draw_synthesis,
        "box_localisation": _box_localisation,
        "modality_contrastive": draw_modality_contrast,
        "global_local": draw_small_crops,
        "isotropy": draw_isotropy,
        "latent_prediction": draw_latent,
        "templates": _templates,
        "attention_rollout": _attention_rollout,
        "soft_contrastive": draw_contrast,
        "text_contrastive": draw_text_contrast,
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


def _box_localisation(scene: Scene, path: Path) -> bool:
    objective = scene.model.find(BoxLocalisation)
    if objective is None:
        return False
    items = []
    for patient, volume, other, batch in pairs_shown(scene):
        generator = torch.Generator().manual_seed(scene.job.seed)
        drawn = objective.draw(batch, scene.patch, generator)
        if 0 not in drawn.row:
            continue
        true = as_fractions(drawn.low, drawn.extents, scene.job.crop)[0]
        found = objective.locate(scene.model.encoder, batch, drawn, generator)[0].cpu()
        image, window = array_of(batch.images[0]), window_of(batch, 0)
        inside = filled(true.tolist(), scene.job.crop)
        box = np.where(inside, array_of(batch.images[1]), np.float32(np.nan))
        agreement = f"found, IoU {float(iou(found[None], true[None])):.2f}"
        panels = (
            Panel(f"box, in {other.modality}", box, window_of(batch, 1)),
            Panel(f"its place in {volume.modality}", image, window, overlay=frame_of(inside)),
            Panel(agreement, image, window, overlay=frame_of(filled(found.tolist(), scene.job.crop))),
        )
        d, h, w = (int(a + n // 2) for a, n in zip(drawn.low[0], drawn.extents[0], strict=True))
        items.append(Item(f"{other.modality} in {volume.modality}, patient {patient + 1}", panels, (d, h, w)))
    return drawn_items(path, items, scene, 2)


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
        image, window, overlay = array_of(batch.images[0]), window_of(batch, 0), overlays[name]
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
    return drawn_items(path, items, scene, 1 if items and len(items[0].panels) > 3 else SHOWN)


def rollouts_of(scene: Scene) -> dict[str, Overlay]:
    """By name of the volume, the rollout of a crop at the edge of its body."""
    found = {}
    for name, _, volume in scene.named():
        batch = scene.batch([volume], edge_corner(volume, scene.job.crop))
        modality = int(batch.modality[0])
        found[name] = overlay_of(scene.model.encoder, batch.images[0], batch.body[0], modality, scene.job)
    return found


def _embeddings(scene: Scene, path: Path) -> bool:
    if not scene.features:
        return False
    points = save_points(path.with_suffix(".json"), scene.features, scene.site)
    if len(points) < 2:
        return False
    draw_map(path, points, ("patient",))
    return True
