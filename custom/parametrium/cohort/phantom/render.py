"""From a drawn body to a stored volume: tissue values, the scanner's grid and blur, its errors, its units."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from parametrium.cohort.phantom.body import Body
from parametrium.cohort.phantom.canvas import SPACING, Field
from parametrium.cohort.phantom.clinical import Profile
from parametrium.cohort.phantom.scanner import Scanner
from parametrium.cohort.phantom.texture import smooth_noise
from parametrium.cohort.phantom.tissue import Tissue, tissue_table

_CBCT_RADIUS_MM = 129.0
_CONTRAST_HU = (
    (Tissue.ARTERY, 110),
    (Tissue.VEIN, 90),
    (Tissue.MYOMETRIUM, 40),
    (Tissue.TUMOUR, 22),
    (Tissue.CERVIX, 25),
)


@dataclass(frozen=True)
class Pose:
    """Where body and grid lie in the world.

    Attributes:
        body: [4, 4] body millimetres to world.
        grid: [4, 4] voxel to world.
    """

    body: NDArray[np.float64]
    grid: NDArray[np.float64]


def render(
    body: Body, profile: Profile, modality: str, scanner: Scanner, pose: Pose, rng: np.random.Generator
) -> Field:
    """One volume in its physical unit: HU, 10^-6 mm^2/s, SUV, or the scanner's own (MR).

    Args:
        body: what is scanned.
        profile: the patient's tissues.
        modality: one of MODALITIES.
        scanner: of the site.
        pose: where body and grid lie.
        rng: noise.

    Returns:
        [X, Y, Z] of scanner.shape.
    """
    mean, amplitude = tissue_table(modality, profile)
    if modality == "CT" and scanner.contrast:
        for tissue, enhancement in _CONTRAST_HU:
            mean[tissue] += enhancement
    value = mean[body.tissue]
    value += amplitude[body.tissue] * body.texture
    image = _sampled(value, body, scanner, pose, float(mean[Tissue.AIR]))
    sigma = [scanner.blur_mm / step for step in scanner.spacing]
    image = ndimage.gaussian_filter(image, sigma, truncate=2.5, mode="nearest")
    position = _positions(scanner, pose)
    if modality in ("CT", "CBCT"):
        _add_couch(image, body, position)
        beam = _cone_beam if modality == "CBCT" else _fan_beam
        return beam(image, scanner, position, rng)
    if modality == "PET":
        return _counted(image, scanner, rng)
    return _diffusion(image, scanner, rng) if modality == "ADC" else _magnetic(image, scanner, position, rng)


def sample_tissue(body: Body, scanner: Scanner, pose: Pose) -> NDArray[np.uint8]:
    """The tissue at each voxel's centre, [X, Y, Z] uint8."""
    there = _from_grid_to_drawing(body, pose)
    if not _is_straight(there):
        return ndimage.affine_transform(body.tissue, there[:3, :3], there[:3, 3], scanner.shape, order=0)
    tissue = body.tissue
    for axis, size in enumerate(scanner.shape):
        place = np.rint(there[axis, axis] * np.arange(size) + there[axis, 3]).astype(int)
        last = tissue.shape[axis] - 1
        tissue = tissue.take(np.clip(place, 0, last), axis)
        tissue[_at(axis, (place < 0) | (place > last))] = Tissue.AIR
    return tissue


def _sampled(values: Field, body: Body, scanner: Scanner, pose: Pose, outside: float) -> Field:
    """Linear interpolation at each voxel's centre; ``outside`` beyond the drawing."""
    there = _from_grid_to_drawing(body, pose)
    if not _is_straight(there):
        return ndimage.affine_transform(
            values, there[:3, :3], there[:3, 3], scanner.shape, order=1, mode="constant", cval=outside
        )
    # Without a turn the axes are independent, which takes half the time.
    for axis in (2, 0, 1):
        place = there[axis, axis] * np.arange(scanner.shape[axis]) + there[axis, 3]
        last = values.shape[axis] - 1
        first = np.clip(np.floor(place).astype(int), 0, last - 1)
        across = [-1 if other == axis else 1 for other in range(3)]
        share = (place - first).astype(np.float32).reshape(across)
        near, far = values.take(first, axis), values.take(first + 1, axis)
        far -= near
        far *= share
        near += far
        near[_at(axis, (place < 0) | (place > last))] = outside
        values = near
    return values


def _at(axis: int, where: NDArray[np.bool_]) -> tuple[slice | NDArray[np.bool_], ...]:
    """Index of the planes across an axis."""
    return (*(slice(None) for _ in range(axis)), where)


def _from_grid_to_drawing(body: Body, pose: Pose) -> NDArray[np.float64]:
    """[4, 4] voxel of the scan to voxel of the drawing."""
    drawn = np.diag([SPACING, SPACING, SPACING, 1.0])
    drawn[:3, 3] = body.origin
    return np.asarray(np.linalg.inv(pose.body @ drawn) @ pose.grid)


def _is_straight(matrix: NDArray[np.float64]) -> bool:
    return bool(np.allclose(matrix[:3, :3], np.diag(np.diag(matrix[:3, :3])), atol=1e-9))


def _positions(scanner: Scanner, pose: Pose) -> tuple[Field, Field, Field]:
    """World coordinates less the body's middle, mm; [X, 1, 1], [1, Y, 1], [1, 1, Z]."""
    axes = []
    for axis, size in enumerate(scanner.shape):
        shape = [1, 1, 1]
        shape[axis] = size
        line = pose.grid[axis, axis] * np.arange(size) + pose.grid[axis, 3] - pose.body[axis, 3]
        axes.append(line.astype(np.float32).reshape(shape))
    return axes[0], axes[1], axes[2]


def _add_couch(image: Field, body: Body, position: tuple[Field, Field, Field]) -> None:
    """A carbon-fibre couch, curved up a little at its sides, where the image shows air."""
    x, y, _ = position
    depth = y + body.couch + 5 - 0.0004 * x**2
    shell = (np.abs(depth) < 3) | (np.abs(depth + 34) < 3)
    foam = (depth < 0) & (depth > -34)
    inside = np.abs(x) < 200
    couch = np.where(shell, -560, np.where(foam, -910, -1000)) * inside + -1000 * ~inside
    np.maximum(image, couch.astype(np.float32), out=image)


def _fan_beam(image: Field, scanner: Scanner, position: tuple[Field, Field, Field], rng: np.random.Generator) -> Field:
    """Noise grows where the body is thick; the kernel makes it a little smooth."""
    x, y, _ = position
    thick = 0.55 + 0.75 * np.exp(-((x / 130) ** 2) - (y / 110) ** 2)
    image += _blurred_noise(image.shape, 0.5, rng) * (scanner.noise * thick)
    return np.clip(image, -1024, 3071)


def _cone_beam(image: Field, scanner: Scanner, position: tuple[Field, Field, Field], rng: np.random.Generator) -> Field:
    """Scatter darkens the middle (cupping), numbers are off, noise is strong, and the field of view is a cylinder."""
    x, y, _ = position
    ratio = (x**2 + y**2) / _CBCT_RADIUS_MM**2
    tissue = np.clip((image + 1000) / 1000, 0, 1)
    cupping = -130 * scanner.bias * (1 - ratio) + 70 * np.exp(-(((1 - ratio) / 0.10) ** 2))
    streaks = smooth_noise(rng, image.shape, (2.5, 14, 9)) * 10
    wrong = (0.86 + 0.1 * scanner.bias) * image + tissue * (scanner.offset + cupping)
    wrong += streaks + _blurred_noise(image.shape, 0.6, rng) * (scanner.noise * (1.25 - 0.5 * ratio))
    return np.where(ratio < 1, np.clip(wrong, -1000, 3071), -1000).astype(np.float32)


def _magnetic(image: Field, scanner: Scanner, position: tuple[Field, Field, Field], rng: np.random.Generator) -> Field:
    """Coil sensitivity, stronger near the surface and falling off at the ends, and the noise of a magnitude image."""
    x, y, z = position
    slow = smooth_noise(rng, image.shape, [max(image.shape) / 1.5] * 3) * 0.10
    shading = 0.30 * (x**2 / 190**2 + y**2 / 130**2) - 0.22 * (z / 110) ** 2 + 0.12 * y / 130
    signal = image * np.exp(scanner.bias * (slow + shading))
    sigma = np.float32(1000 * scanner.noise)
    real = signal + sigma * rng.standard_normal(image.shape, dtype=np.float32)
    imaginary = sigma * rng.standard_normal(image.shape, dtype=np.float32)
    return np.asarray(np.sqrt(real**2 + imaginary**2) * scanner.gain, dtype=np.float32)


def _diffusion(image: Field, scanner: Scanner, rng: np.random.Generator) -> Field:
    """An ADC map is noisy, most of all where there is little signal; air is masked by the scanner's own software."""
    noise = scanner.noise * rng.standard_normal(image.shape, dtype=np.float32)
    weak = 1 + 1.2 * np.exp(-image / 300)
    return np.where(image > 40, np.clip(scanner.gain * image + weak * noise, 0, 4000), 0).astype(np.float32)


def _counted(image: Field, scanner: Scanner, rng: np.random.Generator) -> Field:
    """Counting noise grows with the square root of the uptake; the reconstruction has smoothed it."""
    noise = _blurred_noise(image.shape, 0.8, rng)
    return np.clip(scanner.gain * image + scanner.noise * np.sqrt(np.maximum(image, 0.02)) * noise, 0, None)


def _blurred_noise(shape: tuple[int, ...], sigma: float, rng: np.random.Generator) -> Field:
    """Correlated noise of standard deviation 1; sigma in voxels."""
    noise = ndimage.gaussian_filter(rng.standard_normal(shape, dtype=np.float32), sigma, truncate=2.5)
    return np.asarray(noise / noise.std())
