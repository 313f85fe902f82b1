"""What is measured of one volume: a few dozen numbers that the whole page is made from.

Everything here but the body's size is taken without looking at the modality that the table names: the numbers shall say
what a volume is like, and ``suspicion.py`` compares them with the name.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from nibabel.affines import voxel_sizes
from nibabel.orientations import io_orientation
from numpy.typing import NDArray
from scipy import ndimage

from parametrium.cohort.intensity import body_mask
from parametrium.cohort.problem import Reason
from parametrium.data.lattice import Spacing, Triple
from parametrium.report.quality.reduced import Reduced

QUANTILES = (0.1, 1.0, 5.0, 25.0, 50.0, 75.0, 95.0, 99.0, 99.9)
"""Percent at which intensities are kept."""

BINS = 64
"""Of the histogram of intensities in the body."""

RANGES: Mapping[str, tuple[float, float]] = {"CT": (-1000.0, 1500.0), "CBCT": (-1000.0, 1500.0), "PET": (0.0, 10.0)}
"""What a histogram spans; of other modalities 0 to 1.5 times the 95th percentile in the body."""

_SAMPLE = 1_000_000  # voxels that quantiles of the whole volume are taken from
_CHUNK = 1 << 20  # voxels hashed at a time
_SHELL_MM = 12.0  # beneath the skin lies fat
_MINIMUM_BODY = 64  # voxels; less is noise that passed the threshold


@dataclass(frozen=True)
class Measured:
    """Numbers of one volume; quantiles are at ``QUANTILES``.

    Attributes:
        shape: voxels along right, anterior, superior, as far as its axes follow these.
        spacing_mm: likewise.
        content: equal for two volumes that hold the same values, in whatever order of voxels and under whatever header.
        grid: equal for two volumes with the same shape and geometry.
        whole: quantiles of all voxels.
        body: quantiles in the patient.
        histogram: shares of the body's voxels, over ``RANGES``.
        body_litres: size of the patient in the field of view.
        integers: share of the voxels that hold whole numbers.
        air: share of the voxels between -1100 and -900.
        foreground: quantiles of what stands out from the background, whatever the modality's name.
        background: median and 95th percentile of the rest; the lowest value twice where there is no rest.
        shell: median of the foreground's outer 12 mm; the foreground's own where it has no inside.
        roughness: mean step between neighbours of the coarse copy in the foreground.
    """

    shape: Triple
    spacing_mm: Spacing
    content: str
    grid: str
    whole: tuple[float, ...]
    body: tuple[float, ...]
    histogram: tuple[float, ...]
    body_litres: float
    integers: float
    air: float
    foreground: tuple[float, ...]
    background: tuple[float, float]
    shell: float
    roughness: float

    @property
    def extent_mm(self) -> Spacing:
        """Field of view along right, anterior, superior."""
        right, anterior, superior = (n * s for n, s in zip(self.shape, self.spacing_mm, strict=True))
        return right, anterior, superior


def measure(
    voxels: NDArray[np.float32], affine: NDArray[np.float64], reduced: Reduced, modality: str
) -> Measured | Reason:
    """Measures one volume.

    Args:
        voxels: [I, J, K], finite and not constant.
        affine: [4, 4] voxel to RAS+ millimetres.
        reduced: its coarse copy.
        modality: its name in the table; decides only what the histogram spans.

    Returns:
        The numbers, or why there are none.
    """
    if np.count_nonzero(reduced.body) < _MINIMUM_BODY:
        return Reason.NO_BODY
    flat = voxels.ravel(order="K")
    sample = flat[:: max(1, flat.size // _SAMPLE)]
    body = reduced.image[reduced.body]
    axes = np.argsort(io_orientation(affine)[:, 0])  # source axis of right, anterior, superior
    right, anterior, superior = (int(voxels.shape[a]) for a in axes)
    steps = voxel_sizes(affine)
    litres = np.count_nonzero(reduced.body) * abs(np.linalg.det(reduced.affine[:3, :3])) / 1e6
    return Measured(
        shape=(right, anterior, superior),
        spacing_mm=(float(steps[axes[0]]), float(steps[axes[1]]), float(steps[axes[2]])),
        content=content_digest(flat),
        grid=_grid_digest(voxels.shape, affine),
        whole=_quantiles(sample),
        body=_quantiles(body),
        histogram=_histogram(body, modality),
        body_litres=float(litres),
        integers=float(np.mean(sample == np.rint(sample))),
        air=float(np.mean((sample > -1100) & (sample < -900))),
        **_nameless(reduced),
    )


def _nameless(reduced: Reduced) -> dict[str, Any]:
    """Foreground, background, shell and roughness of a coarse copy, found without its name."""
    image, seen = reduced.image, reduced.seen
    lowest = float(np.percentile(image[seen], 0.5))
    # Any name that is no CT and no PET finds the border between air and what is brighter; CT's air is moved to 0.
    lifted = np.where(seen, np.maximum(image - lowest, 0), 0).astype(np.float32)
    front = body_mask(lifted, "", seen)
    front = front if np.count_nonzero(front) >= _MINIMUM_BODY else seen
    rest = image[seen & ~front]
    step = float(np.abs(np.diag(reduced.affine)[:3]).min())
    depth = max(1, round(_SHELL_MM / step))
    inside = ndimage.binary_erosion(front, iterations=depth, border_value=1)
    shell = image[front & ~inside]
    values = image[front]
    pairs = [
        (image[:-1][front[:-1] & front[1:]], image[1:][front[:-1] & front[1:]]),
        (image[:, :-1][front[:, :-1] & front[:, 1:]], image[:, 1:][front[:, :-1] & front[:, 1:]]),
    ]
    return {
        "foreground": _quantiles(values),
        "background": (float(np.median(rest)), float(np.percentile(rest, 95))) if rest.size else (lowest, lowest),
        "shell": float(np.median(shell)) if shell.size else float(np.median(values)),
        "roughness": float(np.mean([np.abs(a - b).mean() if a.size else 0.0 for a, b in pairs])),
    }


def content_digest(flat: NDArray[np.float32]) -> str:
    """A digest that does not depend on the order of the voxels: two sums of scrambled values, modulo 2**64."""
    sums = [np.uint64(0), np.uint64(0)]
    with np.errstate(over="ignore"):
        for start in range(0, flat.size, _CHUNK):
            bits = (flat[start : start + _CHUNK] + np.float32(0)).view(np.uint32).astype(np.uint64)  # -0 becomes 0
            for n, odd in enumerate((0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F)):
                mixed = (bits + np.uint64(n + 1)) * np.uint64(odd)
                mixed ^= mixed >> np.uint64(29)
                mixed *= np.uint64(0xBF58476D1CE4E5B9)
                mixed ^= mixed >> np.uint64(32)
                sums[n] = sums[n] + mixed.sum(dtype=np.uint64)
    return f"{flat.size:x}-{int(sums[0]):016x}{int(sums[1]):016x}"


def _grid_digest(shape: tuple[int, ...], affine: NDArray[np.float64]) -> str:
    return hashlib.sha256(repr((shape, np.round(affine, 3).tolist())).encode()).hexdigest()[:16]


def _quantiles(values: NDArray[np.float32]) -> tuple[float, ...]:
    return tuple(float(value) for value in np.percentile(values, QUANTILES))


def _histogram(body: NDArray[np.float32], modality: str) -> tuple[float, ...]:
    low, high = RANGES.get(modality) or (0.0, max(1.5 * float(np.percentile(body, 95)), 1e-6))
    counts, _ = np.histogram(np.clip(body, low, high), bins=BINS, range=(low, high))
    return tuple(float(share) for share in counts / body.size)


def as_record(measured: Measured) -> dict[str, Any]:
    """As JSON holds it."""
    return asdict(measured)


def from_record(record: Mapping[str, Any]) -> Measured:
    """Back from JSON.

    Raises:
        KeyError, TypeError: a field is missing or of another kind.
    """
    values: dict[str, Any] = {field.name: record[field.name] for field in fields(Measured)}
    for name, value in values.items():
        values[name] = tuple(value) if isinstance(value, list) else value
    return Measured(**values)
