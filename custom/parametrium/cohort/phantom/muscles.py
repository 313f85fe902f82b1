"""The muscles of pelvis, abdominal wall and upper thigh, between planes of fat."""

import numpy as np

from parametrium.cohort.phantom.anatomy import Anatomy
from parametrium.cohort.phantom.bones import beside_wing
from parametrium.cohort.phantom.canvas import Canvas, Field, Point, ellipsoid, on_side, tube
from parametrium.cohort.phantom.habitus import abdominal_wall
from parametrium.cohort.phantom.tissue import Tissue

_RODS: tuple[tuple[tuple[Point, ...], tuple[float, ...], Point], ...] = (
    # (points, radii, flattening) on the right side, mm; named in the order of an atlas from top to bottom.
    (
        ((42, -40, 150), (47, -20, 105), (62, 10, 62), (80, 34, 28), (92, 38, -2), (106, 8, -45)),
        (17, 18, 17, 16, 14, 8),
        (1, 1, 1),
    ),  # psoas
    (((29, -92, 150), (27, -99, 112), (20, -110, 80)), (20, 18, 10), (1.15, 0.9, 1)),  # erector of the spine
    (((70, -58, 150), (76, -60, 128)), (14, 10), (1.2, 0.8, 1)),  # quadratus lumborum
    (((22, -84, 46), (52, -72, 36), (84, -52, 22), (126, -26, 4)), (10, 13, 9, 4), (1, 1, 1)),  # piriformis
    (((55, 8, 20), (52, -8, 0), (50, -22, -28)), (15, 18, 14), (0.5, 1.25, 1)),  # internal obturator
    (((58, -40, -16), (80, -52, -14), (124, -24, -10)), (6, 6, 4), (1, 1, 1)),  # its tendon and the gemelli
    (((28, 34, -46), (60, 8, -50), (104, -22, -38)), (9, 13, 5), (1, 0.8, 1)),  # external obturator
    (((66, -40, -52), (112, -30, -50)), (10, 9), (1, 0.7, 1)),  # quadratus of the thigh
    (((24, 50, -12), (64, 38, -40), (100, 8, -68)), (9, 12, 9), (1, 1, 1)),  # pectineus
    (((18, 48, -34), (48, 42, -66), (72, 30, -112)), (7, 13, 15), (1, 1, 1)),  # long adductor
    (((22, 28, -52), (50, 16, -80), (70, 8, -112)), (8, 14, 16), (1, 1, 1)),  # short adductor
    (((48, -14, -70), (62, -14, -92), (74, -12, -115)), (12, 22, 24), (1, 0.9, 1)),  # great adductor
    (((64, -46, -66), (74, -48, -90), (84, -48, -115)), (8, 14, 20), (1.2, 0.9, 1)),  # hamstrings
    (
        ((112, 44, 78), (104, 60, 30), (92, 64, -20), (72, 60, -70), (56, 50, -115)),
        (6, 8, 9, 9, 9),
        (1, 0.8, 1),
    ),  # sartorius
    (
        ((98, 40, 34), (110, 48, -20), (110, 54, -70), (108, 54, -115)),
        (6, 11, 15, 17),
        (1.1, 0.9, 1),
    ),  # straight femoral
    (((124, 40, 72), (138, 32, 20), (144, 22, -50)), (8, 12, 6), (0.8, 1.2, 1)),  # tensor of the broad fascia
    (((130, 14, -40), (126, 18, -80), (122, 16, -115)), (10, 24, 30), (1, 1, 1)),  # lateral and middle vastus
)


def draw_muscles(canvas: Canvas, anatomy: Anatomy, fascia: Field) -> None:
    """Paints the muscles inside the fascia; bones are painted over them afterwards."""
    _abdominal_wall(canvas, anatomy, fascia)
    for side in (1, -1):
        _gluteus_maximus(canvas, anatomy, fascia, side)
        _beside_the_wing(canvas, anatomy, fascia, side)
        for points, radii, flat in _RODS:
            shape = on_side(tube(points, [radius * anatomy.muscle for radius in radii], flat), side)
            window, distance = canvas.distance(shape)
            canvas.fill(window, np.maximum(distance, fascia[window] + 1), (0, Tissue.MUSCLE))
    _levator(canvas)


def _abdominal_wall(canvas: Canvas, anatomy: Anatomy, fascia: Field) -> None:
    """Oblique muscles around the flanks, and the two straight ones in front with the white line between them."""
    wall = abdominal_wall(canvas, anatomy)
    window = canvas.window((-170, -110, 30), (170, 160, 145))
    x, y, z = canvas.coordinates(window)
    depth = -fascia[window]
    flank = (depth > 0.8) & (depth < wall[:, :, window[2]]) & (np.abs(x) > 62) & (y > -70) & (z > 66 + 0.25 * y)
    layers = (depth % 6.5) > 1.4  # thin fat between external, internal and transverse muscle
    canvas.tissue[window][flank & layers] = Tissue.MUSCLE
    window = canvas.window((-62, 0, -25), (62, 160, 145))
    x, y, z = canvas.coordinates(window)
    depth, taper = -fascia[window], np.clip((z + 25) / 70, 0, 1)
    straight = (depth > 0.8) & (depth < 11.5 * anatomy.muscle) & (np.abs(np.abs(x) - 3 - 27 * taper) < 4 + 23 * taper)
    canvas.tissue[window][straight & (np.abs(x) > 2.5) & (y > 20)] = Tissue.MUSCLE


def _gluteus_maximus(canvas: Canvas, anatomy: Anatomy, fascia: Field, side: int) -> None:
    """A thick sheet from sacrum and crest down and outwards to the femur, its bundles parted by fat."""
    window = canvas.window(*(((6, -150, -95), (165, -5, 100)) if side > 0 else ((-165, -150, -95), (-6, -5, 100))))
    x, y, z = canvas.coordinates(window)
    across, depth = np.abs(x), -fascia[window]
    thick = anatomy.muscle * (40 - 0.0022 * (z - 0) ** 2) * np.clip(1.15 - across / 260, 0, 1)
    behind = y < -28 - 0.10 * (across - 100)
    upper = z < 92 - 0.42 * across + 0.25 * np.abs(y + 90)
    lower = z > -92 + 0.35 * across
    fossa = np.clip(-z - 5, 0, 40) / 40 * np.clip(y + 112, 0, 70) * 0.8  # the fat beside the anal canal
    medial = across > 8 + np.clip(-z - 10, 0, 60) * 0.2 + np.clip(z, 0, 60) * 0.22 + fossa
    # Bundles run from the sacrum outwards, forwards and down; fat between them shows where there is some.
    phase = (0.55 * z + 0.62 * y + 0.35 * across + 9 * np.sin(across / 31 + z / 23)) / 13
    bundles = np.abs(phase % 1 - 0.5) < 0.5 - (0.03 + 0.14 * anatomy.gaps) * (np.sin(2.4 * phase + across / 19) > -0.2)
    sheet = (depth > 1) & (depth < thick) & behind & upper & lower & medial & bundles
    canvas.tissue[window][sheet] = Tissue.MUSCLE


def _beside_the_wing(canvas: Canvas, anatomy: Anatomy, fascia: Field, side: int) -> None:
    """Iliacus inside the wing; least and middle gluteus outside, drawing together to the greater trochanter."""
    window = canvas.window(*(((30, -100, -15), (170, 80, 140)) if side > 0 else ((-170, -100, -15), (-30, 80, 140))))
    _, y, z = canvas.coordinates(window)
    outward, outline = beside_wing(canvas, anatomy, window, side)
    inside = -fascia[window] > 2
    bulk = anatomy.muscle * np.clip(1 - np.abs(z - 62) / 95, 0.1, 1)
    bulk = bulk * np.sqrt(np.clip(np.where(z < 34, 1, -outline / 26), 0, 1))
    iliacus = (outward < -5) & (outward > -5 - 17 * bulk) & (outline < -4) & (y > -48) & (z > 24)
    canvas.tissue[window][iliacus & inside] = Tissue.MUSCLE
    # Towards the trochanter both muscles leave the wing's outline.
    span = (outline < -3) | ((z < 34) & (np.abs(y + 6) < 26 - 0.3 * (34 - z)) & (z > -8))
    least = (outward > 6) & (outward < 6 + 14 * bulk) & (y > -45) & (y < 34)
    start = 8 + 14 * bulk * ((y > -45) & (y < 34))
    middle = (outward > start) & (outward < start + 30 * bulk) & (y > -64)
    canvas.tissue[window][(least | middle) & span & inside] = Tissue.MUSCLE


def _levator(canvas: Canvas) -> None:
    """The pelvic floor: a funnel from the side walls to the anal canal, and the sphincter around that."""
    window = canvas.window((-52, -72, -70), (52, 30, -8))
    x, y, z = canvas.coordinates(window)
    out = np.sqrt(x**2 + ((y + 22) * 0.85) ** 2)
    sheet = np.abs(z + 54 - 0.95 * np.clip(out - 12, 0, 60)) < 3.2
    canvas.tissue[window][sheet & (out < 50) & (y < 22)] = Tissue.MUSCLE
    canvas.paint(ellipsoid((0, -46, -68), (15, 16, 18)), (0, Tissue.MUSCLE))
