"""One study of a drawn patient, volume by volume, before anybody writes it."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from parametrium.cohort.phantom.body import STRUCTURES, Body, draw_body
from parametrium.cohort.phantom.canvas import Field, table_of
from parametrium.cohort.phantom.chance import stream
from parametrium.cohort.phantom.clinical import Latent
from parametrium.cohort.phantom.render import Pose, render, sample_tissue
from parametrium.cohort.phantom.scanner import Scanner, grid_affine, site_scanner
from parametrium.cohort.phantom.tissue import Tissue
from parametrium.cohort.phantom.visit import displacement, present_modalities, setup_pose

COURSE_DAYS = 28
"""Days from the first to the last study of a treatment."""

_MIDDLE = {
    **dict.fromkeys(("CT", "PET"), (0.0, 0.0, 17.0)),
    **dict.fromkeys(("T1", "T2", "ADC"), (0.0, 0.0, 14.0)),
    "CBCT": (0.0, -8.0, 8.0),
}
"""Middle of the field of view from the middle between the femoral heads, mm."""


@dataclass(frozen=True)
class Course:
    """What is scanned, the same for all patients of a cohort; names and ranges as in ``write_phantom``."""

    modalities: tuple[str, ...]
    seed: int
    site: str
    studies: int
    misregistration_mm: float
    incomplete: float


@dataclass(frozen=True)
class Drawn:
    """One volume.

    Attributes:
        modality: a word of MODALITIES.
        image: [X, Y, Z] in its physical unit: HU, 10^-6 mm^2/s, SUV, or the scanner's own (MR).
        scanner: that took it.
        pose: where body and grid lie; ``pose.grid`` is voxel to RAS+ mm.
        frame: volumes of a patient with the same frame are registered to each other.
        body: what was scanned.
    """

    modality: str
    image: Field
    scanner: Scanner
    pose: Pose
    frame: str
    body: Body

    def masks(self) -> Iterator[tuple[str, NDArray[np.bool_]]]:
        """Structures that are not empty on this grid, [X, Y, Z]; "body" is all that is not air."""
        tissue = sample_tissue(self.body, self.scanner, self.pose)
        whole = tuple(kind for kind in Tissue if kind is not Tissue.AIR)
        for structure, tissues in {"body": whole, **STRUCTURES}.items():
            mask = table_of(tissues)[tissue]
            if mask.any():
                yield structure, mask


def study_day(course: Course, study: int) -> int:
    """Days from a patient's first study to another."""
    return round(COURSE_DAYS * study / max(1, course.studies - 1))


def draw_study(course: Course, latent: Latent, index: int, study: int) -> Iterator[Drawn]:
    """The volumes of one visit; the first one is the reference that others may be displaced from.

    Args:
        course: what is scanned.
        latent: the patient's causes.
        index: the patient's number, from 0.
        study: the visit's number, from 0.
    """
    body = draw_body(latent, course.seed, course.site, index, study, course.studies)
    key = (course.seed, course.site, index, study)
    setup = setup_pose(*key)
    for order, modality in enumerate(present_modalities(course.modalities, course.incomplete, *key)):
        scanner = site_scanner(course.site, modality)
        grid = grid_affine(scanner, (setup @ (*_MIDDLE[modality], 1.0))[:3])
        moved = order > 0 and course.misregistration_mm > 0
        pose = Pose(setup @ displacement(course.misregistration_mm, modality, *key) if moved else setup, grid)
        rng = stream(course.seed, course.site, index, "noise", study, modality)
        image = render(body, latent.profile, modality, scanner, pose, rng)
        yield Drawn(modality, image, scanner, pose, f"s{study}-{modality}" if moved else f"s{study}", body)
