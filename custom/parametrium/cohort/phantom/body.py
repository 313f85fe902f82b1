"""One patient on one day: the drawn body in its own shape, ready to be scanned."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from parametrium.cohort.phantom.anatomy import Anatomy, sample_anatomy, sample_filling
from parametrium.cohort.phantom.bones import draw_bones
from parametrium.cohort.phantom.canvas import SPACING, Canvas, Field, Point, table_of
from parametrium.cohort.phantom.chance import stream
from parametrium.cohort.phantom.clinical import Latent
from parametrium.cohort.phantom.habitus import couch_level, draw_habitus, extent
from parametrium.cohort.phantom.muscles import draw_muscles
from parametrium.cohort.phantom.texture import draw_texture, smooth_noise
from parametrium.cohort.phantom.tissue import Tissue
from parametrium.cohort.phantom.tumour import draw_invasion, draw_metastases, draw_tumour, push_of
from parametrium.cohort.phantom.viscera import (
    draw_bladder,
    draw_bowel,
    draw_normal_nodes,
    draw_rectum,
    draw_uterus,
    draw_vessels,
)

STRUCTURES: dict[str, tuple[Tissue, ...]] = {
    "bladder": (Tissue.BLADDER_WALL, Tissue.URINE),
    "rectum": (Tissue.RECTUM_WALL, Tissue.RECTUM_STOOL, Tissue.RECTUM_GAS),
    "uterus": (*(Tissue.MYOMETRIUM, Tissue.JUNCTIONAL_ZONE, Tissue.ENDOMETRIUM, Tissue.CERVIX, Tissue.CERVICAL_CANAL),),
    "tumour": (Tissue.TUMOUR, Tissue.NECROSIS),
    "nodes": (Tissue.METASTATIC_NODE,),
    "bones": (Tissue.CORTEX, Tissue.RED_MARROW, Tissue.YELLOW_MARROW, Tissue.BONE_METASTASIS),
}
"""Organs with a mask; every structure beside them is "body", all that is not air."""

_WARP_MM = 3.5  # standard deviation of the patient's own deformation; larger ones fold thin bones
_WARP_KNOTS = 28.0  # voxels of 2.5 mm: it changes over about 70 mm


@dataclass(frozen=True)
class Body:
    """A drawn body.

    Attributes:
        tissue: [X, Y, Z] uint8, a Tissue a voxel of SPACING mm.
        origin: mm of the first voxel's centre from the middle between the femoral heads.
        texture: [X, Y, Z] grain, standard deviation about 1.
        couch: how far the couch lies behind the hip axis, mm.
        tumour_ml: volume of the drawn tumour.
    """

    tissue: NDArray[np.uint8]
    origin: Point
    texture: Field
    couch: float
    tumour_ml: float


def draw_body(latent: Latent, seed: int, site: str, index: int, study: int, studies: int) -> Body:
    """Draws a patient on the day of a study.

    Args:
        latent: causes.
        seed: of the cohort.
        site: its name.
        index: the patient's number.
        study: the visit's number, from 0.
        studies: visits of each patient.
    """
    key = (seed, site, index)
    anatomy = sample_anatomy(latent, seed, site, index)
    filling = sample_filling(latent, seed, site, index, study, studies)
    canvas = Canvas(*extent(anatomy))
    fascia = draw_habitus(canvas, anatomy)
    draw_muscles(canvas, anatomy, fascia)
    draw_vessels(canvas, anatomy, stream(*key, "vessels"))
    draw_bowel(canvas, anatomy, fascia, stream(*key, "bowel", study))
    draw_normal_nodes(canvas, stream(*key, "nodes"))
    draw_bones(canvas, anatomy)
    draw_uterus(canvas, anatomy, filling, stream(*key, "ovaries"))
    draw_tumour(canvas, anatomy, latent, filling, key)
    draw_metastases(canvas, latent, filling, key)
    draw_bladder(canvas, filling, 0.9 * push_of(latent, filling))
    draw_rectum(canvas, anatomy, filling, 0.6 * push_of(latent, filling))
    draw_invasion(canvas, latent, filling)
    tissue = _warped(canvas, anatomy, key)
    voxels = int(table_of(STRUCTURES["tumour"])[tissue].sum())
    couch = couch_level(anatomy) * anatomy.scale[1]
    return Body(tissue, canvas.lower, draw_texture(tissue, key), couch, voxels * SPACING**3 / 1000)


def _warped(canvas: Canvas, anatomy: Anatomy, key: tuple[object, ...]) -> NDArray[np.uint8]:
    """The body in its own size and with its own smooth deformation; nearest voxel, as tissues do not mix."""
    sizes = canvas.tissue.shape
    tilt = _tilt(stream(*key, "tilt"))
    axes = (canvas.x, canvas.y, canvas.z)
    index = np.zeros(sizes, dtype=np.int32)
    for axis, (size, low) in enumerate(zip(sizes, canvas.lower, strict=True)):
        x, y, z = (line * np.float32(part) for line, part in zip(axes, tilt[axis] / anatomy.scale, strict=True))
        step = smooth_noise(stream(*key, "warp", axis), sizes, _WARP_KNOTS)
        step *= np.float32(_WARP_MM)
        step += x + y
        step += z - np.float32(low)
        step *= np.float32(1 / SPACING)
        step += np.float32(0.5)
        np.clip(step, 0, size - 1, out=step)
        index *= size
        index += step.astype(np.int32)
    return np.take(canvas.tissue.ravel(), index)


def _tilt(rng: np.random.Generator) -> NDArray[np.float64]:
    """[3, 3] nobody lies quite straight: turns of up to 2 degrees, small enough to be added."""
    about_x, about_y, about_z = np.radians(rng.uniform(-2, 2, 3))
    return np.array([[1, -about_z, about_y], [about_z, 1, -about_x], [-about_y, about_x, 1]])
