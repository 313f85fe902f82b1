"""The body's outline: skin, subcutaneous fat, and the fascia that holds muscles and bowel."""

import numpy as np

from parametrium.cohort.phantom.anatomy import Anatomy
from parametrium.cohort.phantom.canvas import CEILING, FLOOR, SPACING, Canvas, Field, Point
from parametrium.cohort.phantom.tissue import Tissue

_LEVELS = (-110, -80, -40, 0, 40, 80, 110, 145)
_WIDTH = (140, 150, 153, 152, 147, 143, 138, 128)
_FRONT = (50, 58, 64, 72, 78, 82, 86, 90)
_BACK = (92, 100, 108, 112, 114, 116, 116, 112)
_POWER = 2.35  # of the superellipse: a pelvis is a little squarer than an ellipse
_REACH = 14.0  # mm beyond the skin for deformation, tilt and a rim of air
_LEGS_BELOW = 30.0  # mm; higher up the thighs do not change the outline
_ABDOMEN_WALL = (3, 3, 3, 6, 10, 14, 15, 15)


def draw_habitus(canvas: Canvas, anatomy: Anatomy) -> Field:
    """Paints skin, fat, and the content of the fascia as fat; muscles and organs come later.

    Returns:
        Distance to the fascia, mm, [X, Y, Z]; negative inside.
    """
    # The outline is the same on both sides: it is made on the right and mirrored.
    half = Canvas((0.0, *canvas.lower[1:]), canvas.upper)
    fascia, skin = _trunk(half, anatomy)
    # Below the perineum the trunk ends, rounded, and only the thighs go on.
    low = half.z[0, 0] < _LEGS_BELOW
    z = half.z[:, :, low]
    perineum = (-86 + 0.16 * half.x - z).astype(np.float32)
    thigh_fascia, thigh_skin = _thighs(half, anatomy, z)
    fascia[:, :, low] = -_rounded(-_rounded(fascia[:, :, low], perineum + 10, 40), -thigh_fascia, 20)
    skin[:, :, low] = -_rounded(-_rounded(skin[:, :, low], perineum, 40), -thigh_skin, 20)
    skin = np.maximum(skin, _cleft(half, anatomy))
    # She lies on a couch: the buttocks are flat behind.
    skin = np.maximum(skin, -(half.y + couch_level(anatomy)))
    fascia = np.maximum(fascia, skin + 5)
    half.tissue[skin < 0] = Tissue.SKIN
    half.tissue[skin < -2.2] = Tissue.SUBCUTANEOUS_FAT
    half.tissue[fascia < 0] = Tissue.VISCERAL_FAT
    np.concatenate([half.tissue[:0:-1], half.tissue], out=canvas.tissue)
    return np.concatenate([fascia[:0:-1], fascia])


def extent(anatomy: Anatomy) -> tuple[Point, Point]:
    """Lower and upper corner of a box that holds the body before and after scaling and deformation, mm."""
    grown = [max(1.0, scale) for scale in anatomy.scale]
    side = grown[0] * (max(_WIDTH) + 2.2 * abs(anatomy.flare) + 4 + 1.1 * anatomy.fat) + _REACH
    front = grown[1] * (max(_FRONT) + anatomy.belly + 4 + anatomy.fat) + _REACH
    back = grown[1] * couch_level(anatomy) + _REACH
    # Whole voxels from the middle, so that every body is drawn on the same lattice.
    side, front, back = (SPACING * np.ceil(length / SPACING) for length in (side, front, back))
    return (-float(side), -float(back), FLOOR), (float(side), float(front), CEILING)


def couch_level(anatomy: Anatomy) -> float:
    """How far the couch lies behind the hip axis, mm."""
    return 110.0 + 0.72 * anatomy.fat


def abdominal_wall(canvas: Canvas, anatomy: Anatomy) -> Field:
    """Thickness of the muscles under the fascia by height, mm, [1, 1, Z]."""
    return np.asarray(anatomy.muscle * _by_height(canvas, _ABDOMEN_WALL), dtype=np.float32)


def _by_height(canvas: Canvas, values: tuple[int, ...]) -> Field:
    return np.interp(canvas.z, _LEVELS, values).astype(np.float32)


def _trunk(canvas: Canvas, anatomy: Anatomy) -> tuple[Field, Field]:
    radius = np.sqrt(canvas.x**2 + canvas.y**2 + np.float32(0.01))
    cosine, sine = canvas.x / radius, canvas.y / radius
    belly = anatomy.belly * np.clip((canvas.z + 20) / 100, 0, 1)
    width = _by_height(canvas, _WIDTH) + 2.2 * anatomy.flare * np.clip(canvas.z / 140, 0, 1)
    front, back = _by_height(canvas, _FRONT) + belly, _by_height(canvas, _BACK)
    power = np.float32(_POWER)
    across = cosine**power * width**-power
    depth = np.where(sine > 0, front, back) ** np.float32(-power)
    fascia = radius - (np.float32(1e-9) + across + np.abs(sine) ** power * depth) ** np.float32(-1 / power)
    return fascia, fascia - _fat(canvas, anatomy, cosine, sine)


def _fat(canvas: Canvas, anatomy: Anatomy, cosine: Field, sine: Field) -> Field:
    """Thickness of subcutaneous fat: thick at hips, buttocks and lower belly, thin over the sacrum and the crests."""
    front, back = np.clip(sine, 0, 1) ** 2, np.clip(-sine, 0, 1) ** 2
    spine = back * np.exp(-((canvas.x / 28) ** 2))
    z = canvas.z[0, 0]
    low = np.clip(1 - np.abs(z + 15) / 160, 0, 1)
    behind = 0.45 + 0.65 * low
    in_plane = np.stack([cosine[..., 0] ** 2, front[..., 0], back[..., 0], -spine[..., 0]], axis=-1)
    by_height = np.stack([0.55 + 0.55 * low, 0.75 + 0.25 * low, behind, behind * np.clip((z - 10) / 30, 0, 0.6)])
    share = np.einsum("xyk,kz->xyz", in_plane.astype(np.float32), by_height.astype(np.float32))
    return np.asarray(4 + anatomy.fat * share, dtype=np.float32)


def _rounded(one: Field, other: Field, radius: float) -> Field:
    """The larger of two distances, with the edge where they meet rounded (Quilez's polynomial smooth maximum)."""
    blend = np.maximum(radius - np.abs(one - other), 0)
    return np.asarray(np.maximum(one, other) + blend * blend * np.float32(0.25 / radius))


def _thighs(canvas: Canvas, anatomy: Anatomy, z: Field) -> tuple[Field, Field]:
    radius = 66 * (0.75 + 0.25 * anatomy.muscle)
    across = canvas.x - (radius + 12 + 0.25 * anatomy.fat)
    gap = np.asarray(np.sqrt(across**2 + (canvas.y + 3) ** 2) - radius, dtype=np.float32)
    above = z + 15  # higher up the thigh is the hip, which the trunk draws
    fat = np.float32(5 + 0.75 * anatomy.fat)
    return _rounded(gap, above, 40), _rounded(gap - fat, above, 40)


def _cleft(canvas: Canvas, anatomy: Anatomy) -> Field:
    """The cleft between the buttocks, as a distance that is positive inside it."""
    deep = -canvas.y - (72 + 0.3 * anatomy.fat) - np.clip((canvas.z + 10) * 0.9, -15, 200)
    return np.asarray(np.minimum(0.10 * deep, deep) - canvas.x, dtype=np.float32)
