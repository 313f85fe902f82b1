"""Do the features tell which hospital a scan comes from? A linear probe for the site, beside chance.

It needs the features of several sites, which no site ever sends: it runs where the sites' own folders are on one
machine, as in a simulation, and its result stays there with the pictures.

N patients, C channels.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import recall_score
from sklearn.model_selection import StratifiedKFold

from parametrium.report.embedding import Point, load_points
from parametrium.report.tables import Table

Array = NDArray[np.float64]
Labels = NDArray[np.int64]

FEWEST_PATIENTS = 4
"""Patients of a site in one modality below which the site is left out."""

RIDGE = 0.03
"""Added to the variance within sites, as a share of a channel's whole variance. On made-up sites with as few patients,
.01 to .03 found shifts of one channel and of all; 1 found hardly any."""

FOLDS = 5
SHUFFLES = 100
_ORDINARY = 95  # percentile of the shuffled probes: what is below it may be chance


class SiteLeak(NamedTuple):
    """The probe in one modality.

    Attributes:
        modality: compared within it, since a site is told by the modalities that it has.
        sites: how many.
        patients: of all of them.
        accuracy: balanced accuracy on patients that the probe did not see.
        chance: 1 / sites.
        ordinary: what 95 of 100 probes for shuffled sites do not exceed.
    """

    modality: str
    sites: int
    patients: int
    accuracy: float
    chance: float
    ordinary: float


def site_leaks(points: Sequence[Point]) -> list[SiteLeak]:
    """One probe for every modality that two sites or more have in enough held-out patients.

    A patient has one vector in a modality, so that folds of vectors are folds of patients.

    Args:
        points: of several sites, with features of one model.
    """
    found = []
    for modality in sorted({point.modality for point in points}):
        own = [point for point in points if point.modality == modality]
        counts = {site: sum(p.site == site for p in own) for site in sorted({p.site for p in own})}
        sites = [site for site, count in counts.items() if count >= FEWEST_PATIENTS]
        if len(sites) < 2:
            continue
        kept = sorted((p for p in own if p.site in sites), key=lambda p: (p.site, p.patient))
        x = np.array([p.vector for p in kept], dtype=np.float64)
        y = np.array([sites.index(p.site) for p in kept])
        rng = np.random.default_rng(0)
        shuffled = [site_accuracy(x, rng.permutation(y)) for _ in range(SHUFFLES)]
        ordinary = float(np.percentile(shuffled, _ORDINARY))
        found.append(SiteLeak(modality, len(sites), len(kept), site_accuracy(x, y), 1 / len(sites), ordinary))
    return found


def site_accuracy(x: Array, y: Labels) -> float:
    """Balanced accuracy of a linear discriminant, cross-validated over patients.

    Args:
        x: [N, C] features.
        y: [N] sites 0, 1, ..., each at least ``FEWEST_PATIENTS`` times.
    """
    deviation = x.std(0)
    scaled = (x - x.mean(0)) / np.where(deviation > 0, deviation, 1.0)
    u, lengths, _ = np.linalg.svd(scaled, full_matrices=False)
    turned = u * lengths  # the same distances in at most N dimensions
    folds = StratifiedKFold(min(FOLDS, int(np.bincount(y).min())), shuffle=True, random_state=0)
    guess = np.empty_like(y)
    for seen, unseen in folds.split(turned, y):
        guess[unseen] = _nearest_site(turned[seen], y[seen], turned[unseen])
    return float(recall_score(y, guess, average="macro"))


def _nearest_site(x: Array, y: Labels, test: Array) -> Labels:
    """The site whose mean is nearest, by the covariance within the sites (Fisher's discriminant, equal priors).

    ``RIDGE`` is added to the covariance, without which more channels than patients would have none.
    """
    means = np.stack([x[y == site].mean(0) for site in range(int(y.max()) + 1)])
    within = x - means[y]
    inverse = np.linalg.inv(within.T @ within / len(x) + RIDGE * np.eye(x.shape[1]))
    away = test[:, None] - means
    distances = np.einsum("nsc,cd,nsd->ns", away, inverse, away)
    nearest: Labels = distances.argmin(1)
    return nearest


def site_leak_table(run: Path) -> Table:
    """The probes over the features in RUN/sites; without rows where fewer than two sites have features of one model."""
    folders = sorted(path for path in run.glob("sites/*/pictures") if path.is_dir() and not path.is_symlink())
    points = [point for folder in folders for point in load_points(folder / "embeddings.json", folder.parent.name)]
    alike = len({len(point.vector) for point in points}) == 1
    rows = [
        [leak.modality, str(leak.sites), str(leak.patients)]
        + [f"{value:.3f}" for value in (leak.accuracy, leak.chance, leak.ordinary)]
        for leak in (site_leaks(points) if alike else [])
    ]
    header = ["modality", "sites", "patients", "balanced accuracy", "chance", "95 % of shuffled sites"]
    note = (
        "A linear probe that tells the site from the pooled features of held-out patients, within one modality. At "
        "chance, sites look alike to the encoder; above the last column it sees where a scan was made. Scanner and "
        "patients differ together between hospitals: the probe cannot say which of the two it found."
    )
    return Table("Can the features tell the site?", header, rows, note, numeric=tuple(range(1, len(header))))
