"""The bones of the pelvis: hip bones, femora, sacrum and the last lumbar vertebrae."""

import numpy as np
from numpy.typing import NDArray

from parametrium.cohort.phantom.anatomy import Anatomy
from parametrium.cohort.phantom.canvas import Canvas, Field, Part, Shape, Window, ellipsoid, on_side, tube
from parametrium.cohort.phantom.tissue import Tissue

_WING_POINTS = np.array(
    [
        (116, 46, 80),  # anterior superior iliac spine
        (94, 38, 40),  # anterior inferior iliac spine
        (82, 5, 30),  # roof of the acetabulum
        (136, 15, 122),  # tubercle of the crest
        (124, -25, 136),  # top of the crest
        (108, 5, 88),  # iliac fossa
        (92, -55, 122),
        (48, -98, 88),  # posterior superior spine
        (60, -72, 72),  # sacroiliac joint
        (64, -52, 48),  # greater sciatic notch
        (46, -94, 60),  # posterior inferior spine
    ]
)
_WING_OUTLINE = np.array(
    [
        *((46, 82), (36, 104), (8, 128), (-22, 137), (-55, 128), (-88, 108), (-104, 88), (-98, 64), (-80, 54)),
        *((-56, 52), (-42, 40), (-34, 26), (8, 20), (32, 30), (42, 46), (38, 60)),
    ]
)
"""Outline of the iliac wing seen from the side, (Y, Z) mm."""


def draw_bones(canvas: Canvas, anatomy: Anatomy) -> None:
    """Paints all bones with cortex and marrow, and the cartilage between them."""
    spine = _spine(anatomy)
    canvas.paint(_discs(anatomy), (0, Tissue.CARTILAGE))
    canvas.paint(spine, (0, Tissue.CORTEX), (0.7 * anatomy.cortex, Tissue.RED_MARROW))
    _draw_sacrum(canvas, anatomy)
    canvas.paint(ellipsoid((0, 45, -27), (4, 9, 17)), (0, Tissue.CARTILAGE))
    for side in (1, -1):
        canvas.paint(on_side(_joint(anatomy), side), (0, Tissue.CARTILAGE))
        window, distance = _hip_bone(canvas, anatomy, side)
        canvas.fill(window, distance, (0, Tissue.CORTEX), (0.85 * anatomy.cortex, Tissue.RED_MARROW))
        canvas.paint(on_side(_femur(anatomy), side), (0, Tissue.CORTEX), (0.55 * anatomy.cortex, Tissue.YELLOW_MARROW))
        shaft = _shaft(anatomy)
        canvas.paint(on_side(shaft, side), (0, Tissue.CORTEX), (1.9 * anatomy.cortex, Tissue.YELLOW_MARROW))


def wing_sheet(anatomy: Anatomy) -> NDArray[np.float64]:
    """Coefficients of the iliac wing's middle surface, x = c · (1, y, z, y², yz, z²), y and z in units of 100 mm."""
    points = _WING_POINTS / 100
    y, z = points[:, 1], points[:, 2]
    across = _WING_POINTS[:, 0] + anatomy.flare * np.clip(z, 0, None) + (anatomy.hip - 88) * 0.8
    terms = np.column_stack([np.ones_like(y), y, z, y * y, y * z, z * z])
    return np.asarray(np.linalg.lstsq(terms, across, rcond=None)[0])


def beside_wing(canvas: Canvas, anatomy: Anatomy, window: Window, side: int) -> tuple[Field, Field]:
    """Where voxels lie beside the iliac wing.

    Returns:
        Outward distance from its middle surface, mm [window], and distance to its outline seen from the side,
        mm [1, Y, Z], negative inside.
    """
    x, y, z = canvas.coordinates(window)
    v, w = y / 100, z / 100
    c = wing_sheet(anatomy)
    middle = c[0] + c[1] * v + c[2] * w + c[3] * v * v + c[4] * v * w + c[5] * w * w
    steep = ((c[1] + 2 * c[3] * v + c[4] * w) / 100) ** 2 + ((c[2] + c[4] * v + 2 * c[5] * w) / 100) ** 2
    outward = (side * x - middle.astype(np.float32)) / np.sqrt(1 + steep).astype(np.float32)
    return np.asarray(outward), _polygon(y, z, _WING_OUTLINE)


def _polygon(y: Field, z: Field, corners: NDArray[np.int_]) -> Field:
    """Signed distance to a polygon in the (Y, Z) plane, mm, negative inside."""
    squared: Field = np.full(np.broadcast_shapes(y.shape, z.shape), 1e6, dtype=np.float32)
    inside = np.zeros(squared.shape, dtype=bool)
    for a, b in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        edge = (b - a).astype(float)
        share = np.clip(((y - a[0]) * edge[0] + (z - a[1]) * edge[1]) / (edge @ edge), 0, 1)
        squared = np.minimum(squared, (y - a[0] - share * edge[0]) ** 2 + (z - a[1] - share * edge[1]) ** 2)
        crosses = (z >= min(a[1], b[1])) & (z < max(a[1], b[1]))
        if crosses.any():
            inside ^= crosses & (y < a[0] + (z - a[1]) * edge[0] / edge[1])
    return np.where(inside, -np.sqrt(squared), np.sqrt(squared)).astype(np.float32)


def _hip_bone(canvas: Canvas, anatomy: Anatomy, side: int) -> tuple[Window, Field]:
    hip = anatomy.hip
    rods = (
        tube([(hip - 4, 4, 26), (hip - 16, -28, 46)], [15, 10])
        + tube([(hip - 22, -24, 14), (hip - 25, -37, -30), (hip - 30, -36, -66)], [12, 12, 16])
        + tube([(hip - 16, 24, 4), (44, 42, -7), (14, 47, -18)], [12, 7.5, 9])
        + ellipsoid((12, 45, -27), (9, 9, 19))
        + tube([(13, 40, -40), (36, 12, -62), (hip - 34, -26, -76)], [7, 6, 9])
    )
    right = (0.0, -112.0, -100.0), (160.0, 75.0, 145.0)
    left = (-160.0, -112.0, -100.0), (0.0, 75.0, 145.0)
    window = canvas.window(*(right if side > 0 else left))
    outward, outline = beside_wing(canvas, anatomy, window, side)
    thickness = 2.6 + 0.3 * anatomy.cortex + 4.5 * np.exp(np.minimum(outline, 0) / 9)
    wing = np.maximum(np.abs(outward) - thickness, outline).astype(np.float32)
    _, others = canvas.distance(on_side(rods + _acetabulum(anatomy), side), window)
    # The socket is carved for the head and its cartilage.
    x, y, z = canvas.coordinates(window)
    socket = anatomy.head + 2.6 - np.sqrt((side * x - hip) ** 2 + y**2 + z**2)
    return window, np.maximum(np.minimum(wing, others), socket)


def _acetabulum(anatomy: Anatomy) -> Shape:
    """A cup around the head, open to the side, forward and down."""
    centre = np.array([anatomy.hip, 0.0, 0.0])
    opening = np.array([0.78, 0.30, -0.55]) / np.linalg.norm([0.78, 0.30, -0.55])
    inner, outer = anatomy.head + 2.6, anatomy.head + 10.5

    def distance(x: Field, y: Field, z: Field) -> Field:
        p = (x - np.float32(centre[0]), y, z)
        radius = np.sqrt(p[0] ** 2 + p[1] ** 2 + p[2] ** 2)
        shell = np.abs(radius - (inner + outer) / 2) - (outer - inner) / 2
        ahead = p[0] * opening[0] + p[1] * opening[1] + p[2] * opening[2] - 5
        return np.asarray(np.maximum(shell, ahead), dtype=np.float32)

    low, high = (centre - outer - 4).tolist(), (centre + outer + 4).tolist()
    return (Part((low[0], low[1], low[2]), (high[0], high[1], high[2]), distance),)


def _joint(anatomy: Anatomy) -> Shape:
    """Cartilage around the head; the bones are painted over it."""
    reach = anatomy.head + 2.8
    return ellipsoid((anatomy.hip, 0, 0), (reach, reach, reach))


def _femur(anatomy: Anatomy) -> Shape:
    """Head, neck and trochanters."""
    hip, head = anatomy.hip, anatomy.head
    knee = hip + 40, -10.0, -anatomy.neck_drop
    return (
        ellipsoid((hip, 0, 0), (head, head, head))
        + tube([(hip + 8, -2, -5), (hip + 22, -5, -0.55 * anatomy.neck_drop), knee], [16, 14, 16])
        + ellipsoid((hip + 46, -18, 18 - anatomy.neck_drop), (12, 17, 21))
        + ellipsoid((hip + 26, -24, -24 - anatomy.neck_drop), (8, 8, 10))
    )


def _shaft(anatomy: Anatomy) -> Shape:
    """The upper end of the femur's shaft, whose cortex is thick."""
    hip, drop = anatomy.hip, anatomy.neck_drop
    return tube([(hip + 40, -9, -8 - drop), (hip + 34, -2, -120)], [16.5, 13.5])


def _draw_sacrum(canvas: Canvas, anatomy: Anatomy) -> None:
    back = anatomy.sacrum_tilt
    bodies = (
        ellipsoid((0, -54, 86), (56, 21, 18), _tilted(28))
        + tube([(26, -56, 84), (57, -68, 74)], [17, 15], (1, 0.9, 1.2))
        + tube([(-26, -56, 84), (-57, -68, 74)], [17, 15], (1, 0.9, 1.2))
        + ellipsoid((0, -77, 62), (50, 17, 18), _tilted(40))
        + ellipsoid((0, -89 - 0.5 * back, 38), (36, 12, 17), _tilted(15))
        + ellipsoid((0, -91 - back, 15), (25, 9, 15), _tilted(-5))
        + ellipsoid((0, -82 - back, -7), (11, 6, 14), _tilted(-35))
        + tube([(0, -96, 92), (0, -108, 66), (0, -106 - back, 40)], [6, 5, 4])
    )
    canvas.paint(bodies, (0, Tissue.CORTEX), (0.6 * anatomy.cortex, Tissue.RED_MARROW))
    canvas.paint(
        tube([(0, -77, 110), (0, -91, 80), (0, -98 - 0.5 * back, 45)], [8, 6, 3], (1.3, 0.8, 1)), (0, Tissue.CSF)
    )
    for side in (1, -1):
        for x, y, z in ((19, -62, 70), (17, -79, 48), (15, -88 - back, 27)):
            nerve = tube([(x + 3, y + 14, z - 6), (x, y - 16, z + 6)], [4.5, 4.5])
            canvas.paint(on_side(nerve, side), (0, Tissue.VISCERAL_FAT), (2.4, Tissue.MUSCLE))


def _tilted(degrees: float) -> NDArray[np.float64]:
    """Axes of a vertebral body whose top leans forward by an angle."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[1, 0, 0], [0, c, -s], [0, s, c]])


def _spine(anatomy: Anatomy) -> Shape:
    """Bodies and arches of the fourth and fifth lumbar vertebrae."""
    arches: Shape = ()
    for side in (1, -1):
        arches += on_side(tube([(14, -62, 124), (17, -78, 120), (4, -94, 114)], [6, 6, 5]), side)
        arches += on_side(tube([(16, -66, 122), (46, -72, 124)], [5.5, 5]), side)
        arches += on_side(ellipsoid((19, -84, 104), (8, 8, 11)), side)
    return (
        ellipsoid((0, -41, 119), (31, 23, 18), _tilted(12))
        + ellipsoid((0, -36, 156), (30, 22, 20))
        + tube([(0, -94, 114), (0, -116, 108)], [5, 6])
        + tube([(0, -90, 146), (0, -114, 142)], [4, 5])
        + arches
    )


def _discs(anatomy: Anatomy) -> Shape:
    return ellipsoid((0, -44, 103), (28, 21, 10), _tilted(22)) + ellipsoid((0, -38, 137), (28, 21, 9))
