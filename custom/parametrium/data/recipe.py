"""One volume's way from its source file to the arrays of a cache entry (METHODS 8.1)."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from parametrium.cohort.content import content_problem
from parametrium.cohort.header import MAXIMUM_VOXELS, geometry_problem
from parametrium.cohort.intensity import Rule, body_mask, normalise, rule_for
from parametrium.cohort.problem import Reason
from parametrium.cohort.rigid import IDENTITY, Rigid, matrix_of
from parametrium.cohort.volume_file import VolumeFileError, open_geometry, read_voxels
from parametrium.config import PreparationConfig
from parametrium.data.lattice import Spacing, Triple, lattice_box, resample

RECIPE = 3
"""Raised whenever this code would make other voxels from the same source and settings."""

_MARGIN = 2  # lattice voxels kept around the body: its edge, with the air beside it, is worth seeing
_DEFACED_SHARE = 0.5  # of a lattice voxel
_MINIMUM_BODY = 64  # voxels; less is noise that passed the threshold


@dataclass(frozen=True)
class Recipe:
    """Everything beside the source's bytes that decides a prepared volume.

    Attributes:
        modality: decides how the body is found.
        spacing_mm: of the lattice.
        rule: intensity rule.
        slope: value = slope * stored + intercept, from the cohort table.
        intercept: see slope.
        moved: rigid transform in RAS+ millimetres, from the cohort table: affine = moved @ the file's own.
    """

    modality: str
    spacing_mm: Spacing
    rule: Rule
    slope: float = 1.0
    intercept: float = 0.0
    moved: Rigid = IDENTITY

    @property
    def key(self) -> str:
        """Digest of the recipe."""
        settings = {
            "recipe": RECIPE,
            "modality": self.modality,
            "spacing_mm": self.spacing_mm,
            "rule": self.rule.model_dump(mode="json"),
            "slope": self.slope,
            "intercept": self.intercept,
            "moved": self.moved,
        }
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def recipe_for(
    preparation: PreparationConfig,
    modality: str,
    slope: float = 1.0,
    intercept: float = 0.0,
    moved: Rigid = IDENTITY,
) -> Recipe:
    """The job's recipe for one volume; raises ConfigError PM103 where a modality has no intensity rule."""
    rule = rule_for(modality, preparation.intensity)
    return Recipe(modality, preparation.spacing_mm, rule, slope, intercept, moved)


class Prepared(NamedTuple):
    """Arrays of a cache entry.

    Attributes:
        image: [D, H, W] prepared intensities along right, anterior, superior; 0 outside the field of view and where
            defacing took the patient's own.
        body: [D, H, W] True in the patient, in the field of view and not defaced.
        offset: lattice index of the first voxel.
    """

    image: NDArray[np.float32]
    body: NDArray[np.bool_]
    offset: Triple


def load_volume(path: Path) -> tuple[NDArray[np.float32], NDArray[np.float64]] | Reason:
    """Voxels with the file's own scaling, [I, J, K], and affine [4, 4]; or what is wrong with the file."""
    try:
        geometry = open_geometry(path)
        reason = geometry_problem(geometry.shape, geometry.affine)
        return read_voxels(path) if reason is None else reason
    except VolumeFileError as error:
        return error.reason


def prepare_arrays(
    voxels: NDArray[np.float32],
    affine: NDArray[np.float64],
    recipe: Recipe,
    defaced: NDArray[np.float32] | None = None,
) -> Prepared | Reason:
    """Resampled, normalised, cut to the body.

    Args:
        voxels: [I, J, K] in the file's order and scaling.
        affine: [4, 4] voxel to RAS+ millimetres, of the file itself.
        recipe: what to do.
        defaced: [I, J, K], 1 where the voxels are not the patient's own. They are no body, and 0 as outside the field
            of view: a patch which holds some of them does not teach what a defacing program drew.

    Returns:
        The arrays, or why there are none.
    """
    affine = matrix_of(recipe.moved) @ affine
    reason = content_problem(voxels) or _extent_problem(voxels.shape, affine, recipe.spacing_mm)
    if reason is not None:
        return reason
    if (recipe.slope, recipe.intercept) != (1.0, 0.0):
        voxels = voxels * np.float32(recipe.slope) + np.float32(recipe.intercept)
    image, seen, offset = resample(voxels, affine, recipe.spacing_mm)
    body = body_mask(image, recipe.modality, seen)
    if defaced is not None:
        seen &= resample(defaced, affine, recipe.spacing_mm).image < _DEFACED_SHARE
        body &= seen
    if np.count_nonzero(body) < _MINIMUM_BODY:
        return Reason.NO_BODY
    image = normalise(image, body, recipe.rule)
    image[~seen] = 0.0
    box = _bounding_box(body)
    i, j, k = (int(part.start) + start for part, start in zip(box, offset, strict=True))
    return Prepared(image[box], body[box], (i, j, k))


def _extent_problem(shape: tuple[int, ...], affine: NDArray[np.float64], spacing: Spacing) -> Reason | None:
    _, (d, h, w) = lattice_box(shape, affine, spacing)
    if min(d, h, w) < 1:
        return Reason.ONE_SLICE
    return Reason.TOO_LARGE if d * h * w > MAXIMUM_VOXELS else None


def _bounding_box(body: NDArray[np.bool_]) -> tuple[slice, slice, slice]:
    """The body with a small margin, within the array."""
    ranges = []
    for axis, size in enumerate(body.shape):
        others = tuple(other for other in range(3) if other != axis)
        present = np.flatnonzero(body.any(axis=others))
        ranges.append(slice(max(int(present[0]) - _MARGIN, 0), min(int(present[-1]) + 1 + _MARGIN, size)))
    return ranges[0], ranges[1], ranges[2]
