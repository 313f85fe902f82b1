"""The cervical tumour and its spread, drawn as the latent causes say."""

import numpy as np
from numpy.typing import NDArray

from parametrium.cohort.phantom.anatomy import Anatomy, Filling
from parametrium.cohort.phantom.canvas import Canvas, Point, Shape, ellipsoid, on_side, tube
from parametrium.cohort.phantom.chance import between, stream
from parametrium.cohort.phantom.clinical import MICROSCOPIC_ML, Latent
from parametrium.cohort.phantom.texture import smooth_noise
from parametrium.cohort.phantom.tissue import Tissue
from parametrium.cohort.phantom.viscera import CERVIX

_OVER = (
    *(Tissue.VISCERAL_FAT, Tissue.PARAMETRIUM, Tissue.CERVIX, Tissue.CERVICAL_CANAL, Tissue.VAGINA, Tissue.URETER),
    *(Tissue.MYOMETRIUM, Tissue.JUNCTIONAL_ZONE, Tissue.ENDOMETRIUM, Tissue.OVARY, Tissue.FOLLICLE),
    *(Tissue.BOWEL_WALL, Tissue.BOWEL_FLUID, Tissue.STOOL, Tissue.GAS),
)
_NODE_SITES: dict[str, tuple[Point, ...]] = {
    "pelvic": ((48, 2, 18), (54, 16, 40), (36, -34, 56), (34, 0, 84)),
    "para_aortic": ((-14, -4, 138), (34, -2, 140)),
}
_AROUND_NODES = (*_OVER, Tissue.NODE, Tissue.MUSCLE, Tissue.ARTERY, Tissue.VEIN)
_PUSH_START = 14.0  # radius at which a tumour begins to push bladder and rectum away, mm


def tumour_radius(tumour_ml: float) -> float:
    """Radius of a ball of that volume, mm."""
    return float((tumour_ml * 1000 * 3 / (4 * np.pi)) ** (1 / 3))


def push_of(latent: Latent, filling: Filling) -> float:
    """How far the tumour pushes its neighbours away, mm."""
    return max(0.0, tumour_radius(latent.tumour_ml * filling.tumour_left) - _PUSH_START)


def draw_tumour(canvas: Canvas, anatomy: Anatomy, latent: Latent, filling: Filling, key: tuple[object, ...]) -> None:
    """Paints the tumour; bladder and rectum, which it may only push, are drawn after it.

    Args:
        canvas: already with uterus and vagina.
        anatomy: of the patient.
        latent: causes.
        filling: of the day, with the share of the tumour that is left.
        key: name of the patient's random streams.
    """
    rng = stream(*key, "tumour")
    offset = rng.uniform(-0.2, 0.2, 3)
    radius = tumour_radius(latent.tumour_ml * filling.tumour_left)
    shape = _bulk(latent, radius, offset) + _reach(latent, radius, filling)
    window, distance = canvas.distance(shape)
    lumps = smooth_noise(stream(*key, "lumps"), distance.shape, 5)
    rough = distance + (0.10 * radius) * lumps
    canvas.fill(window, rough.astype(np.float32), (0, Tissue.TUMOUR), over=_OVER)
    if radius > 20:  # the middle of a large tumour outgrows its blood supply
        core = smooth_noise(stream(*key, "necrosis"), distance.shape, 5) > between(rng, 0.9, 1.6)
        canvas.tissue[window][core & (distance < -0.4 * radius)] = Tissue.NECROSIS


def _bulk(latent: Latent, radius: float, offset: NDArray[np.float64]) -> Shape:
    if latent.tumour_ml <= MICROSCOPIC_ML:
        return ellipsoid((5, CERVIX[1], CERVIX[2] - 6), (radius, radius, radius))
    centre = np.asarray(CERVIX) + offset * radius + (0, 0, 0.12 * radius)
    return ellipsoid(
        (float(centre[0]), float(centre[1]), float(centre[2])), (1.05 * radius, 0.92 * radius, 1.03 * radius)
    )


def _reach(latent: Latent, radius: float, filling: Filling) -> Shape:
    """Tongues into the parametria and down the vagina."""
    x, y, z = CERVIX
    left = filling.tumour_left ** (1 / 3)
    shape: Shape = ()
    for side, share in zip((1, -1), latent.spread.parametrium, strict=True):
        if share > 0:
            end = 16 + 38 * share * left
            tongue = tube([(0.6 * radius, y, z), (end, y - 6, z + 3)], [0.55 * radius, 6 + 0.12 * radius])
            shape += on_side(tongue, side)
    if latent.spread.vagina > 0:
        down = latent.spread.vagina * left
        shape += tube([(x, y - 2, z - 10), (x, -16 + 28 * down, -14 - 60 * down)], [0.5 * radius, 7.5], (1, 0.6, 1))
    return shape


def draw_invasion(canvas: Canvas, latent: Latent, filling: Filling) -> None:
    """Growth through the walls of bladder or rectum, after these are drawn."""
    radius = tumour_radius(latent.tumour_ml * filling.tumour_left)
    push = push_of(latent, filling)
    x, y, z = CERVIX
    thick = [0.55 * radius, 0.4 * radius]
    if latent.spread.bladder:
        growth = tube([(x + 4, y + 0.5 * radius, z + 4), (x + 6, y + radius + push + 12, z + 6)], thick)
        canvas.paint(growth, (0, Tissue.TUMOUR), over=(Tissue.BLADDER_WALL, Tissue.URINE, *_OVER))
    if latent.spread.rectum:
        growth = tube([(x, y - 0.5 * radius, z), (x - 2, y - radius - push - 22, z + 2)], thick)
        rectum = (Tissue.RECTUM_WALL, Tissue.RECTUM_STOOL, Tissue.RECTUM_GAS)
        canvas.paint(growth, (0, Tissue.TUMOUR), over=(*rectum, *_OVER))


def draw_metastases(canvas: Canvas, latent: Latent, filling: Filling, key: tuple[object, ...]) -> None:
    """Enlarged nodes beside the vessels, and a hole in a pelvic bone."""
    rng = stream(*key, "metastases")
    left = filling.tumour_left**0.25
    if latent.spread.nodes != "none":
        places = [(site, side) for site in _NODE_SITES["pelvic"] for side in (1, -1)]
        chosen = rng.choice(len(places), size=int(rng.integers(1, 4)), replace=False)
        picked = [places[int(i)] for i in chosen]
        if latent.spread.nodes == "para_aortic":
            picked += [(site, 1) for site in _NODE_SITES["para_aortic"]]
        for site, side in picked:
            size = between(rng, 6.0, 11.0) * left
            node = on_side(ellipsoid(site, (size, 0.85 * size, 1.2 * size)), side)
            canvas.paint(node, (0, Tissue.METASTATIC_NODE), over=_AROUND_NODES)
    if latent.spread.bone:
        site = ((100, -6, 84), (-94, -30, 96), (20, -78, 62), (66, -34, -60))[int(rng.integers(4))]
        size = between(rng, 9, 14) * left
        bone = (Tissue.CORTEX, Tissue.RED_MARROW, Tissue.MUSCLE)
        canvas.paint(ellipsoid(site, (size, size, 1.2 * size)), (0, Tissue.BONE_METASTASIS), over=bone)
