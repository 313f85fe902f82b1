"""Maps of pooled features: two principal components, drawn by patient, by modality and by site.

A site keeps the features themselves beside its pictures (``embeddings.json``, which never travels), so that on one
machine several sites can be drawn with common components.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from parametrium.report.chart import COLOURS

Array = NDArray[np.float64]

DIGITS = 5
MARKERS = "osD^vP*X<>"
_LEGEND = 12  # entries that are still told apart


@dataclass(frozen=True)
class Point:
    """One patient in one modality.

    Attributes:
        site: name of the site.
        patient: 1, 2, ... within the site.
        modality: its modality.
        vector: pooled features.
    """

    site: str
    patient: int
    modality: str
    vector: tuple[float, ...]


def save_points(path: Path, features: Mapping[tuple[int, str], NDArray[np.float32]], site: str) -> list[Point]:
    """Writes (patient index from 0, modality) to vector as numbered patients; gives them as points."""
    points = [
        Point(site, patient + 1, modality, tuple(round(float(x), DIGITS) for x in vector))
        for (patient, modality), vector in features.items()
    ]
    rows = [{"patient": p.patient, "modality": p.modality, "vector": p.vector} for p in points]
    path.write_text(json.dumps({"points": rows}), encoding="utf-8")
    return points


def load_points(path: Path, site: str) -> list[Point]:
    """What ``save_points`` wrote; nothing where the file is absent, damaged or not finite."""
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))["points"]
        points = [
            Point(site, int(row["patient"]), str(row["modality"]), tuple(float(x) for x in row["vector"]))
            for row in rows
        ]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    whole = len({len(point.vector) for point in points}) == 1 and np.isfinite([p.vector for p in points]).all()
    return points if whole else []


def components(points: Sequence[Point]) -> tuple[Array, tuple[float, float]]:
    """Two principal components of the features, each modality centred by itself.

    What a modality looks like is by far the largest difference between pooled features; without it the patients' and
    the sites' differences are seen.

    Returns:
        [N, 2] positions, and the share of the variance along each.
    """
    x = np.array([point.vector for point in points], dtype=np.float64)
    names = np.array([point.modality for point in points])
    for name in set(names.tolist()):
        x[names == name] -= x[names == name].mean(0)
    _, lengths, directions = np.linalg.svd(x, full_matrices=False)
    found = np.zeros((len(x), 2))
    shares = [0.0, 0.0]
    for k in range(min(2, len(lengths))):
        sign = np.sign(directions[k][np.abs(directions[k]).argmax()]) or 1.0  # the sign of a component is arbitrary
        found[:, k] = sign * (x @ directions[k])
        shares[k] = float(lengths[k] ** 2 / max(float((lengths**2).sum()), 1e-300))
    return found, (shares[0], shares[1])


def draw_map(target: Path | BinaryIO, points: Sequence[Point], by: Sequence[str]) -> None:
    """Writes one map a colouring, side by side, as PNG.

    Args:
        target: where to.
        points: at least two.
        by: ``site`` or ``patient`` for each map: what colours mean. Markers are modalities; with ``patient`` a line
            joins the modalities of a patient, and its number stands beside the first.
    """
    positions, shares = components(points)
    page = Figure(figsize=(6.2 * len(by), 5.0), dpi=100, layout="constrained")
    for axes, colouring in zip(page.subplots(1, len(by), squeeze=False)[0], by, strict=True):
        _draw(axes, points, positions, colouring)
        axes.set_xlabel(f"first component ({100 * shares[0]:.0f} % of the variance)", fontsize=9)
        axes.set_ylabel(f"second component ({100 * shares[1]:.0f} %)", fontsize=9)
    page.savefig(target, format="png", facecolor="white")


def _draw(axes: Any, points: Sequence[Point], positions: Array, colouring: str) -> None:
    modalities = sorted({point.modality for point in points})
    keys = [point.site if colouring == "site" else (point.site, point.patient) for point in points]
    order = {key: index for index, key in enumerate(dict.fromkeys(keys))}
    colours = [COLOURS[order[key] % len(COLOURS)] for key in keys]
    if colouring == "patient":
        for key, index in order.items():
            own = positions[[n for n, k in enumerate(keys) if k == key]]
            axes.plot(own[:, 0], own[:, 1], color=COLOURS[index % len(COLOURS)], linewidth=0.9, alpha=0.6, zorder=1)
            axes.annotate(str(key[1]), own[0], xytext=(5, 4), textcoords="offset points", fontsize=8)
    for n, point in enumerate(points):
        marker = MARKERS[modalities.index(point.modality) % len(MARKERS)]
        axes.scatter(*positions[n], color=colours[n], marker=marker, s=34, edgecolors="white", linewidths=0.5, zorder=2)
    handles = [
        Line2D([], [], linestyle="", color="#444444", marker=MARKERS[n % len(MARKERS)], label=name)
        for n, name in enumerate(modalities)
    ]
    if colouring == "site":
        handles += [Line2D([], [], linewidth=4, color=COLOURS[n % len(COLOURS)], label=s) for s, n in order.items()]
    axes.legend(handles=handles[:_LEGEND], fontsize=8, frameon=False, loc="best")
    axes.set_title(f"by {colouring}", fontsize=10)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
