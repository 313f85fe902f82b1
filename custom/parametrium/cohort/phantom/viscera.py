"""Vessels, bowel, rectum, bladder and the genital organs."""

import math

import numpy as np
from numpy.typing import NDArray

from parametrium.cohort.phantom.anatomy import Anatomy, Filling
from parametrium.cohort.phantom.canvas import Canvas, Field, Point, Shape, Window, ellipsoid, mirrored, on_side, tube
from parametrium.cohort.phantom.chance import between, happens
from parametrium.cohort.phantom.tissue import Tissue

CERVIX: Point = (0.0, -14.0, -2.0)
"""Middle of the cervix, mm."""

_FAT = (Tissue.VISCERAL_FAT,)
_SOFT = (Tissue.VISCERAL_FAT, Tissue.BOWEL_WALL, Tissue.BOWEL_FLUID, Tissue.STOOL, Tissue.GAS, Tissue.PARAMETRIUM)
GENITAL = (
    *(Tissue.MYOMETRIUM, Tissue.JUNCTIONAL_ZONE, Tissue.ENDOMETRIUM, Tissue.CERVIX, Tissue.CERVICAL_CANAL),
    *(Tissue.VAGINA, Tissue.OVARY, Tissue.FOLLICLE, Tissue.TUMOUR, Tissue.NECROSIS, Tissue.METASTATIC_NODE),
)
_FIRM = (
    *(Tissue.AIR, Tissue.SKIN, Tissue.SUBCUTANEOUS_FAT, Tissue.MUSCLE, Tissue.CORTEX, Tissue.RED_MARROW),
    *(Tissue.YELLOW_MARROW, Tissue.CARTILAGE, Tissue.CSF, Tissue.ARTERY, Tissue.VEIN, *GENITAL),
    Tissue.BONE_METASTASIS,
)

_ILIAC: tuple[Point, ...] = ((24, -12, 108), (44, 6, 76), (60, 30, 40), (72, 52, 8), (76, 56, -30), (74, 52, -115))
_INTERNAL: tuple[Point, ...] = ((32, -10, 92), (42, -36, 66), (50, -48, 36), (52, -36, 8))


def draw_vessels(canvas: Canvas, anatomy: Anatomy, rng: np.random.Generator) -> None:
    """Aorta, vena cava, iliac and femoral vessels; old arteries have chalk in their wall."""
    arteries = tube([(4, -12, 150), (2, -12, 124)], [9, 8.5])
    veins = tube([(24, -16, 150), (20, -16, 118)], [10.5, 10])
    for side in (1, -1):
        shift = between(rng, -2, 2)
        line = [(x + shift, y, z) for x, y, z in _ILIAC]
        beside = [(x - 8 + 12 * (z < 20), y - 12 + 4 * (z < 20), z) for x, y, z in line]
        if side < 0:
            beside[0] = (10.0, -16.0, 112.0)
        arteries += on_side(tube([(3, -12, 124), *line], [7, 6, 5.5, 5.5, 5.5, 5, 4.5]), side)
        veins += on_side(tube([(16 if side > 0 else 0, -17, 122), *beside], [8, 7.5, 7, 7, 7, 6.5, 5.5]), side)
        arteries += on_side(tube(_INTERNAL, [4.5, 4, 3.2, 2.4]), side)
        veins += on_side(tube([(x + 4, y - 6, z) for x, y, z in _INTERNAL], [5, 4.5, 3.6, 2.6]), side)
    canvas.paint(veins, (0, Tissue.VEIN))
    window, distance = canvas.distance(arteries)
    canvas.fill(window, distance, (0, Tissue.ARTERY))
    ring = (distance < 0) & (distance > -2.6)
    patchy = np.repeat(rng.random((math.ceil(ring.shape[2] / 3), 2)) < anatomy.calcified, 3, axis=0)[: ring.shape[2]]
    x, y, _ = canvas.coordinates(window)
    chalk = np.where(x > 0, patchy[:, 0], patchy[:, 1]) & (y < -0.2 * np.abs(x) + 40) | (patchy[:, 0] & (y > 56))
    canvas.tissue[window][ring & chalk] = Tissue.CORTEX


def draw_bowel(canvas: Canvas, anatomy: Anatomy, fascia: Field, rng: np.random.Generator) -> None:
    """Loops of small bowel, the caecum and the sigmoid, inside the abdominal wall only."""
    for _ in range(52):
        centre = np.array([between(rng, -88, 88), between(rng, -2, 72), between(rng, 20, 152)])
        if centre[2] < 70:  # in the true pelvis, where it lies beside and above the uterus
            centre[:2] = centre[0] * 0.5, centre[1] - 30
        turn, tilt, length = between(rng, 0, 2 * np.pi), between(rng, -0.7, 0.7), between(rng, 16, 34)
        along = np.array([np.cos(turn) * np.cos(tilt), np.sin(turn) * np.cos(tilt), np.sin(tilt)]) * length
        bend = np.cross(along, rng.standard_normal(3)) * between(rng, 0.2, 0.5) / 1.5
        radius = between(rng, 9, 14)
        content = Tissue.GAS if happens(rng, 0.16) else Tissue.BOWEL_FLUID
        shape = _line([centre - along, centre + bend, centre + along], [radius] * 3)
        _gut(canvas, shape, fascia, content, rng)
    caecum = ellipsoid((84, 22, between(rng, 92, 118)), (22, 24, 34))
    _gut(canvas, caecum, fascia, Tissue.STOOL, rng)
    descent = ellipsoid((-90, 18, 122), (15, 17, 40))
    _gut(canvas, descent, fascia, Tissue.STOOL, rng)
    swing, rise = between(rng, -20, 45), between(rng, 40, 84)
    points = [(-88, 18, 92), (-62, 18, 62), (swing, 26, rise), (22, -22, 74), (8, -52, 78), (0, -66, 60)]
    _gut(canvas, tube(points, [12, 11, 13, 12, 12, 12]), fascia, Tissue.STOOL, rng)


def _line(points: list[NDArray[np.float64]], radii: list[float]) -> Shape:
    return tube([(float(p[0]), float(p[1]), float(p[2])) for p in points], radii)


def _gut(canvas: Canvas, shape: Shape, fascia: Field, content: Tissue, rng: np.random.Generator) -> None:
    """One piece of gut, its gas above its content (she lies on her back)."""
    window, distance = canvas.distance(shape)
    distance = np.maximum(distance, fascia[window] + 16)
    open_to = (Tissue.VISCERAL_FAT, Tissue.BOWEL_WALL, Tissue.BOWEL_FLUID, Tissue.GAS)
    canvas.fill(window, distance, (0, Tissue.BOWEL_WALL), (2.6, content), over=open_to)
    if content is Tissue.GAS or not happens(rng, 0.5):
        return
    y = canvas.coordinates(window)[1]
    inside = distance < -2.6
    if inside.any():
        rows = np.broadcast_to(y, inside.shape)[inside]
        level = rows.min() + np.ptp(rows) * between(rng, 0.6, 0.95)
        canvas.fill(window, np.where(y > level, distance, 1).astype(np.float32), (2.6, Tissue.GAS), over=(content,))


def uterine_axis(anatomy: Anatomy, filling: Filling) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Where the uterine body starts (mm) and its unit direction; a full bladder pushes the fundus up."""
    lift = 0.05 * (filling.bladder_ml - 165)
    angle = np.radians(anatomy.version - np.sign(anatomy.version) * np.clip(lift, -8, 14))
    direction = np.array([anatomy.sideways / anatomy.uterus[0], np.sin(angle), np.cos(angle)])
    return np.array([0.0, -10.0, 12.0]), direction / np.linalg.norm(direction)


def draw_uterus(canvas: Canvas, anatomy: Anatomy, filling: Filling, rng: np.random.Generator) -> None:
    """Uterine body with cavity, cervix with canal, vagina, parametria, ovaries."""
    start, up = uterine_axis(anatomy, filling)
    length, half_width, half_depth = anatomy.uterus
    for side in (1, -1):
        canvas.paint(on_side(ellipsoid((27, -16, 2), (15, 10, 15)), side), (0, Tissue.PARAMETRIUM), over=_FAT)
        canvas.paint(
            on_side(tube([(44, -24, 24), (30, -12, 2), (16, 12, -16)], [2.6, 2.4, 2.2]), side), (0, Tissue.URETER)
        )
    _draw_ovaries(canvas, anatomy, rng)
    canvas.paint(tube([(0, -16, -14), (0, -4, -40), (0, 12, -74)], [16, 14, 10], (1, 0.42, 1)), (0, Tissue.VAGINA))
    canvas.paint(tube([(0, -4, -40), (0, 12, -74)], [9, 6], (1, 0.15, 1)), (0, Tissue.CERVICAL_CANAL))
    r = anatomy.cervix
    neck = (float(start[0]), float(start[1]), float(start[2]))
    cervix = tube([(0, -16, -14), neck], [r, 0.88 * r], (1.05, 0.92, 1))
    across = np.cross(up, [1.0, 0, 0])
    frame = np.array([np.cross(across, up), across / np.linalg.norm(across), up])
    frame[0] /= np.linalg.norm(frame[0])
    middle = start + up * (0.58 * length)
    waist = start + up * (0.3 * length)
    body = ellipsoid(_point(middle), (half_width, half_depth, 0.52 * length), frame)
    body += _line([start, waist], [0.85 * r, 0.75 * half_depth])
    canvas.paint(body, (0, Tissue.MYOMETRIUM))
    canvas.paint(cervix, (0, Tissue.CERVIX))
    flat = anatomy.endometrium
    cavity = ellipsoid(_point(middle + up * 0.06 * length), (0.42 * half_width, flat, 0.33 * length), frame)
    zone = ellipsoid(_point(middle + up * 0.05 * length), (0.42 * half_width + 5, flat + 5, 0.33 * length + 5), frame)
    canvas.paint(zone, (0, Tissue.JUNCTIONAL_ZONE))
    canvas.paint(cavity, (0, Tissue.ENDOMETRIUM))
    canal = _line([np.array([0, -16.0, -14.0]), start, start + up * 0.32 * length], [1.8, 1.7, 1.5])
    canvas.paint(canal, (0, Tissue.CERVICAL_CANAL))


def _point(p: NDArray[np.float64]) -> Point:
    return float(p[0]), float(p[1]), float(p[2])


def _draw_ovaries(canvas: Canvas, anatomy: Anatomy, rng: np.random.Generator) -> None:
    for side in (1, -1):
        centre = np.array([between(rng, 38, 50), between(rng, -26, 6), between(rng, 24, 46)])
        radii = np.array([13, 9, 11]) * anatomy.ovary
        canvas.paint(on_side(ellipsoid(_point(centre), _point(radii)), side), (0, Tissue.OVARY), over=_SOFT)
        for _ in range(int(rng.integers(2, 6)) if anatomy.endometrium > 2.2 else 0):
            offset = rng.uniform(-0.5, 0.5, 3) * radii
            radius = between(rng, 2.0, 5.0)
            follicle = on_side(ellipsoid(_point(centre + offset), (radius, radius, radius)), side)
            canvas.paint(follicle, (0, Tissue.FOLLICLE), over=(Tissue.OVARY,))


def bladder_shape(filling: Filling, push: float) -> Shape:
    """The bladder on its floor behind the symphysis: flat when empty, round when full.

    Args:
        filling: of the day.
        push: how far a large tumour pushes it forward, mm.
    """
    size = (filling.bladder_ml * 1000 * 3 / (4 * np.pi)) ** (1 / 3)
    full = np.clip((filling.bladder_ml - 50) / 300, 0, 1)
    radii = (1.22 * size, (0.92 + 0.04 * full) * size, (0.80 + 0.20 * full) * size)
    middle = (0.0, 14 + 0.42 * radii[1] + push, -32 + radii[2])
    return ellipsoid(middle, radii, _lean(20)) + tube([(0, 22, -26), (0, 22, -34)], [9, 6])


def _lean(degrees: float) -> NDArray[np.float64]:
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return np.array([[1, 0, 0], [0, c, s], [0, -s, c]])


def draw_bladder(canvas: Canvas, filling: Filling, push: float) -> None:
    """Bladder and urethra; uterus and tumour indent the bladder."""
    canvas.paint(tube([(0, 22, -34), (0, 25, -70)], [5.5, 4.5]), (0, Tissue.BLADDER_WALL), over=_SOFT)
    thick = 5.2 - 2.2 * min(1.0, filling.bladder_ml / 250)

    def urine(window: Window, distance: Field) -> NDArray[np.uint8]:
        return np.full(distance.shape, Tissue.URINE, dtype=np.uint8)

    canvas.fill_hollow(bladder_shape(filling, push), (thick, Tissue.BLADDER_WALL), urine, _FIRM)


def draw_rectum(canvas: Canvas, anatomy: Anatomy, filling: Filling, push: float) -> None:
    """Rectum along the sacrum, bent forward at the pelvic floor, and the anal canal."""
    r, back = filling.rectum, anatomy.sacrum_tilt + push
    points = [(0, -66, 62), (4, -70 - 0.5 * back, 40), (-2, -66 - back, 12), (0, -54 - 0.6 * back, -18), (0, -40, -46)]
    upper = tube(points, [12, 0.9 * r, r, r, 9], (1.1, 0.95, 1))
    canvas.paint(tube([(0, -40, -46), (0, -48, -84)], [8, 7]), (0, Tissue.RECTUM_WALL), (5, Tissue.RECTUM_STOOL))

    def content(window: Window, distance: Field) -> NDArray[np.uint8]:
        _, y, z = canvas.coordinates(window)
        middle = np.interp(z, [p[2] for p in points[::-1]], [p[1] for p in points[::-1]])
        gas = (y - middle > r * (1 - 2 * filling.rectum_gas)) & (filling.rectum_gas > 0.02)
        picked = np.where(gas, Tissue.RECTUM_GAS, Tissue.RECTUM_STOOL)
        return np.broadcast_to(picked, distance.shape).astype(np.uint8)

    keep = tuple(tissue for tissue in _FIRM if tissue is not Tissue.ARTERY and tissue is not Tissue.VEIN)
    canvas.fill_hollow(upper, (3.2, Tissue.RECTUM_WALL), content, keep)


def draw_normal_nodes(canvas: Canvas, rng: np.random.Generator) -> None:
    """Small nodes beside the vessels and in the groins that everybody has."""
    for x, y, z in ((50, 10, 16), (58, 20, 48), (36, -4, 98), (84, 66, -12), (66, 68, -26)):
        shape = ellipsoid((x + between(rng, -5, 5), y, z + between(rng, -8, 8)), (3.2, 2.8, between(rng, 3, 6)))
        canvas.paint(
            shape if happens(rng, 0.5) else mirrored(shape), (0, Tissue.NODE), over=(*_FAT, Tissue.SUBCUTANEOUS_FAT)
        )
