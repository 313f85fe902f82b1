"""Scanners: every site has its own, and they are why the same patient looks different elsewhere.

Grids are coarser than a clinic's, so that a cohort is made in seconds; everything else lies in the range in which
clinical scanners differ. The numbers are our choice.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from parametrium.cohort.phantom.canvas import Point
from parametrium.cohort.phantom.chance import around, between, happens, stream

_GRIDS: dict[str, tuple[Point, Point]] = {
    # modality: voxel (mm), field of view (mm), along X, Y, Z
    "CT": ((3.2, 3.2, 3.5), (410, 300, 240)),
    "CBCT": ((3.0, 3.0, 3.5), (264, 264, 170)),
    "T1": ((3.1, 3.1, 4.5), (400, 290, 225)),
    "T2": ((2.8, 2.8, 4.0), (380, 280, 210)),
    "ADC": ((3.6, 3.6, 5.0), (390, 290, 200)),
    "PET": ((4.0, 4.0, 4.0), (420, 320, 240)),
}
_NOISE = {"CT": 11.0, "CBCT": 28.0, "T1": 0.025, "T2": 0.03, "ADC": 70.0, "PET": 0.11}
_BLUR_MM = {"CT": 1.3, "CBCT": 1.7, "T1": 1.1, "T2": 0.9, "ADC": 2.0, "PET": 2.7}


@dataclass(frozen=True)
class Scanner:
    """How one site acquires one modality.

    Attributes:
        spacing: voxel, mm along X, Y, Z.
        shape: voxels along X, Y, Z.
        lps: the file stores its axes towards left and posterior, as DICOM does, instead of right and anterior.
        blur_mm: standard deviation of the point spread, mm.
        noise: standard deviation: HU, 10^-6 mm^2/s, or a share of the brightest tissue (MR) or of the signal (PET).
        gain: factor of the stored value: scanner units for MR, calibration for PET and ADC, 1 for CT.
        bias: strength of the coil's or the scatter's slow variation, 0 to 1.
        contrast: CT with contrast agent in the vessels.
        offset: CBCT's error of calibration, HU.
    """

    spacing: Point
    shape: tuple[int, int, int]
    lps: bool
    blur_mm: float
    noise: float
    gain: float
    bias: float
    contrast: bool
    offset: float


def site_scanner(site: str, modality: str) -> Scanner:
    """The scanner of a site for a modality; depends on nothing else."""
    rng = stream("scanner", site, modality)
    voxel, field = _GRIDS[modality]
    plane, slices = between(rng, 0.94, 1.12), between(rng, 0.94, 1.12)
    spacing = (round(voxel[0] * plane, 2), round(voxel[1] * plane, 2), round(voxel[2] * slices, 2))
    x, y, z = (round(extent / step) for extent, step in zip(field, spacing, strict=True))
    gain = 1.0
    if modality in ("T1", "T2"):
        gain = float(np.exp(between(rng, np.log(0.35), np.log(2.5))))
    elif modality in ("PET", "ADC"):
        gain = around(rng, 1.0, 0.04)
    return Scanner(
        spacing=spacing,
        shape=(x, y, z),
        lps=happens(stream("orientation", site, modality), 0.5),
        blur_mm=_BLUR_MM[modality] * between(rng, 0.85, 1.25),
        noise=_NOISE[modality] * between(rng, 0.7, 1.5),
        gain=gain,
        bias=between(rng, 0.4, 1.0),
        contrast=happens(rng, 0.5),
        offset=between(rng, -90, 30),
    )


def grid_affine(scanner: Scanner, centre: NDArray[np.float64]) -> NDArray[np.float64]:
    """[4, 4] voxel to world, RAS+ mm, of a grid around a point of the world."""
    direction = np.array([-1.0, -1.0, 1.0]) if scanner.lps else np.ones(3)
    affine = np.eye(4)
    affine[:3, :3] = np.diag(direction * scanner.spacing)
    affine[:3, 3] = centre - affine[:3, :3] @ ((np.array(scanner.shape) - 1) / 2)
    return affine
