"""Templates along the rounds, for the site's eyes: in its TensorBoard, and as a picture for its page.

    PICTURES/templates/round_0003.npz      [I, J, K] float16 by modality, as round 3 received them; some rounds of a run

Templates are images that were learned from patients: like all pictures these stay at the site.
"""

import math
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch.utils.tensorboard import SummaryWriter

from parametrium.config import JobConfig
from parametrium.data.cache import PreparedPatient
from parametrium.evaluation.template import mean_anatomy, mean_cell_mm
from parametrium.model.template import Templates
from parametrium.report.planes import ACROSS, Image, Item, Panel, draw_items, plane_of

SHOWN_ROUNDS = 5
"""At most so many earlier states of a template stand beside its last one."""

GREY = (-2.0, 2.0)
"""Prepared intensities shown as black and white in TensorBoard: fixed, so that rounds can be compared."""

_ENLARGED = 4
_NAME = re.compile(r"round_(\d{4,9})\.npz", re.ASCII)


def note_templates(templates: Templates, number: int, job: JobConfig, pictures: Path, writer: SummaryWriter) -> None:
    """Shows the templates that round ``number`` begins with in TensorBoard, and keeps a few rounds for the picture.

    Args:
        templates: of the global model.
        number: round, counted from 0.
        job: how many rounds there are.
        pictures: the site's folder of pictures; made, readable by its owner alone.
        writer: the site's TensorBoard.
    """
    volumes = _volumes(templates)
    for modality, volume in volumes.items():
        writer.add_image(f"template/{modality}", _sheet(volume)[None], number)
    if number % math.ceil(job.rounds / SHOWN_ROUNDS) == 0:
        folder = pictures / "templates"
        pictures.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder.mkdir(exist_ok=True, mode=0o700)
        np.savez(folder / f"round_{number:04d}.npz", **{m: v.astype(np.float16) for m, v in volumes.items()})  # type: ignore[arg-type]


def draw_templates(path: Path, templates: Templates, held_out: Sequence[PreparedPatient], job: JobConfig) -> bool:
    """Draws each template as it is, as it was, and beside the mean of held-out patients, for modalities that they have.

    Args:
        path: PNG to write; earlier rounds are read from the folder ``templates`` beside it.
        templates: of the global model.
        held_out: patients of the site that were never trained on.
        job: modalities, spacing.

    Returns:
        Whether there was anything to draw.
    """
    now, before = _volumes(templates), _kept(path.parent / "templates")
    items: list[Item] = []
    cell = job.preparation.spacing_mm
    for modality, volume in now.items():
        mean = mean_anatomy(held_out, modality, job.model.template)
        if not mean.body.any():
            continue
        cell = mean_cell_mm(held_out, modality, job.model.template, cell) if not items else cell
        inside = mean.image[mean.body].numpy()
        low, high = (float(x) for x in np.percentile(inside, (1, 99)))
        window = (low, high) if high > low else (low - 0.5, low + 0.5)
        shown = {f"round {number}": kept[modality] for number, kept in before.items() if modality in kept}
        shown |= {"template": volume, f"mean of {mean.patients}": mean.image.numpy()}
        items.append(Item(modality, tuple(Panel(title, image, window) for title, image in shown.items())))
    if not items:
        return False
    draw_items(path, items, cell, 1 if before else 2)
    return True


def _volumes(templates: Templates) -> dict[str, Image]:
    return {m: templates.template(m).volume().detach().float().cpu().numpy() for m in templates.modalities}


def _sheet(volume: Image) -> Image:
    """The three middle planes side by side, in [0, 1], enlarged."""
    planes = [plane_of(volume, plane) for plane in ACROSS]
    height = max(plane.shape[0] for plane in planes)
    padded = [np.pad(plane, ((0, height - plane.shape[0]), (0, 1)), constant_values=GREY[0]) for plane in planes]
    grey = np.clip((np.concatenate(padded, axis=1) - GREY[0]) / (GREY[1] - GREY[0]), 0, 1)
    sheet: Image = np.kron(grey, np.ones((_ENLARGED, _ENLARGED), dtype=np.float32)).astype(np.float32)
    return sheet


def _kept(folder: Path) -> dict[int, dict[str, Image]]:
    """The rounds that were kept, in order; one that cannot be read is passed over."""
    found: dict[int, dict[str, Image]] = {}
    for path in sorted(folder.glob("round_*.npz")):
        match = _NAME.fullmatch(path.name)
        try:
            with np.load(path) as volumes:
                kept = {modality: volumes[modality].astype(np.float32) for modality in volumes.files}
        except (OSError, ValueError):
            continue
        if match:
            found[int(match.group(1))] = kept
    return found
