"""Pictures of patients beside each other: how near they are, how alike they are clinically, how they fill the space.

P patients, Z channels of the projection.
"""

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.stats import spearmanr

from parametrium.clinical.schema import encode
from parametrium.clinical.similarity import gower
from parametrium.evaluation.features import Features, compared_features, standardised
from parametrium.evaluation.retrieval import recall_at
from parametrium.objectives.contrastive import SoftContrastive
from parametrium.objectives.isotropy import (
    GAUSSIAN,
    PROJECTION,
    Isotropy,
    draw_directions,
    knots,
    point,
    statistic,
    sums,
)
from parametrium.objectives.text import TextContrastive
from parametrium.report.scene import Scene

Matrix = NDArray[np.floating[Any]]

LINES = 24
"""Lines of the isotropy that are drawn."""


def draw_contrast(scene: Scene, path: Path) -> bool:
    """Cosines between two modalities of held-out patients; False where fewer than two patients have the same two."""
    if scene.model.find(SoftContrastive) is None:
        return False
    having = {pair: _with_both(scene.features, *pair) for pair in combinations(scene.job.modalities, 2)}
    pair, chosen = max(having.items(), key=lambda found: len(found[1]), default=(("", ""), []))
    if len(chosen) < 2:
        return False
    found = compared_features(scene.model, standardised(scene.features, scene.features))
    first, second = (np.stack([found[patient, modality] for patient in chosen]) for modality in pair)
    _draw(path, first.astype(np.float64) @ second.astype(np.float64).T, scene, chosen, pair)  # so that ties are ties
    return True


def draw_text_contrast(scene: Scene, path: Path) -> bool:
    """Cosines between a modality and the texts of held-out patients; False where fewer than two have both."""
    objective = scene.model.find(TextContrastive)
    texts = {number: patient.text for number, patient in enumerate(scene.patients) if patient.text is not None}
    if objective is None:
        return False
    having = {m: [p for p in texts if (p, m) in scene.features] for m in scene.job.modalities}
    modality = max(having, key=lambda name: len(having[name]))
    chosen = having[modality]
    if len(chosen) < 2:
        return False
    device = next(objective.parameters()).device
    seen = torch.from_numpy(np.stack([scene.features[patient, modality] for patient in chosen])).to(device)
    read = torch.from_numpy(np.stack([texts[patient] for patient in chosen])).to(device)
    cosines = objective.project(seen).double() @ objective.project_text(read).double().T
    _draw(path, cosines.cpu().numpy(), scene, chosen, (modality, "text"))
    return True


def draw_isotropy(scene: Scene, path: Path) -> bool:
    """Where patients lie along the lines on which isotropy is measured; False where no modality has two patients."""
    objective = scene.model.find(Isotropy)
    by_modality = {m: [p for p, own in sorted(scene.features) if own == m] for m in scene.job.modalities}
    having = {modality: patients for modality, patients in by_modality.items() if len(patients) > 1}
    if objective is None or not having:
        return False
    device = next(objective.parameters()).device
    page = Figure(figsize=(3.6 * len(having), 3.0), dpi=100, layout="constrained")
    # Those of the first step: a picture is a function of the model and the seed, whatever was trained or measured last.
    lines, at = draw_directions(scene.job.seed, 0, PROJECTION, objective.directions).to(device), knots()
    for axes, (modality, patients) in zip(page.subplots(1, len(having), squeeze=False)[0], having.items(), strict=True):
        pooled = torch.from_numpy(np.stack([scene.features[patient, modality] for patient in patients])).to(device)
        cloud = objective.projector(pooled).float()
        found, count = float(statistic(sums(cloud, lines, at), at)), len(patients)
        places = (cloud @ lines[:, :LINES]).cpu().numpy()
        for deviations in (2, 1):
            axes.axvspan(-deviations, deviations, color="#444444", alpha=0.12, linewidth=0)
        axes.scatter(
            places.clip(-4, 4), np.broadcast_to(np.arange(places.shape[1]), places.shape), s=8, color="#2a6f97"
        )
        axes.set_xlim(-4.2, 4.2)
        worst = float(statistic(point(count, at), at))
        axes.set_title(f"{modality}, {count} patients: {found:.2f} ({GAUSSIAN} to {worst:.2f})", fontsize=9)
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    page.savefig(path, format="png", facecolor="white")
    return True


def _with_both(features: Features, first: str, second: str) -> list[int]:
    return sorted(patient for patient, modality in features if modality == first and (patient, second) in features)


def _draw(path: Path, cosines: Matrix, scene: Scene, chosen: Sequence[int], sides: tuple[str, str]) -> None:
    """Cosines [P, P], and beside them the clinical similarity where the job has clinical variables."""
    rows = encode([scene.patients[patient].clinical for patient in chosen], scene.job.clinical)
    similarity = gower(torch.from_numpy(rows.values), torch.from_numpy(rows.observed), scene.job.clinical)
    known = bool((similarity.coverage > 0).any())
    page = Figure(figsize=(5.4 * (1 + known), 4.8), dpi=100, layout="constrained")
    axes = page.subplots(1, 1 + known, squeeze=False)[0]
    numbers = [patient + 1 for patient in chosen]
    nearest, count = recall_at(cosines, 1) * len(chosen), len(chosen)
    title = f"cosine: the own pair is the nearest for {nearest:.0f} of {count} (chance 1)"
    _matrix(page, axes[0], cosines, title, (f"patient's {sides[0]}", f"patient's {sides[1]}"), numbers)
    if known:
        like = similarity.gower.numpy()
        title = f"clinical similarity: rank correlation with the cosine {order(cosines, like):+.2f}"
        _matrix(page, axes[1], like, title, ("patient", "patient"), numbers)
    page.savefig(path, format="png", facecolor="white")


def order(cosines: Matrix, similarity: Matrix) -> float:
    """Rank correlation of both over pairs of different patients; 0 where one of them is the same for all."""
    other = ~np.eye(len(cosines), dtype=np.bool_)
    a, b = cosines[other], similarity[other]
    return float(spearmanr(a, b).statistic) if np.ptp(a) > 0 and np.ptp(b) > 0 else 0.0


def _matrix(
    page: Figure, axes: Any, values: Matrix, title: str, sides: tuple[str, str], numbers: Sequence[int]
) -> None:
    shown = axes.imshow(values, cmap="viridis")
    page.colorbar(shown, ax=axes, shrink=0.8)
    axes.set_title(title, fontsize=10)
    axes.set_ylabel(sides[0], fontsize=9)
    axes.set_xlabel(sides[1], fontsize=9)
    ticks = range(0, len(numbers), 1 + len(numbers) // 16)
    axes.set_xticks(ticks, [numbers[n] for n in ticks], fontsize=8)
    axes.set_yticks(ticks, [numbers[n] for n in ticks], fontsize=8)
