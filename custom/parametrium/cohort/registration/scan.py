"""What registration sees of a volume: a coarse grid, intensities of the order of one, and where the patient is.

Axes of every array here: D along right, H along anterior, W along superior, in voxels of ``GRID_MM``.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from scipy import ndimage

from parametrium.cohort.content import content_problem
from parametrium.cohort.header import geometry_problem
from parametrium.cohort.intensity import body_mask, normalise, rule_for
from parametrium.cohort.manifest import Volume
from parametrium.cohort.problem import Reason
from parametrium.cohort.rigid import matrix_of
from parametrium.cohort.volume_file import VolumeFileError, read_voxels
from parametrium.config import ForegroundRule
from parametrium.errors import ConfigError

GRID_MM = 4.0
"""Spacing of the coarse grid: six numbers are told by 10^5 voxels of it to a tenth of a voxel."""

_MINIMUM_BODY = 500  # voxels, 32 ml: less is no patient to be aligned by
_MAXIMUM_VOXELS = 2**24  # a whole body has half of that


@dataclass(frozen=True)
class Scan:
    """A volume on its coarse grid.

    Attributes:
        modality: word of the vocabulary.
        image: [D, H, W] prepared intensities.
        body: [D, H, W] True in the patient and in the field of view.
        seen: [D, H, W] True in the field of view.
        origin: mm, RAS+ [3], of the first voxel's centre.
    """

    modality: str
    image: NDArray[np.float32]
    body: NDArray[np.bool_]
    seen: NDArray[np.bool_]
    origin: NDArray[np.float64]

    @property
    def centre(self) -> NDArray[np.float64]:
        """Middle of the body, mm [3]."""
        return self.origin + GRID_MM * np.asarray(ndimage.center_of_mass(self.body))

    @property
    def informative(self) -> NDArray[np.bool_]:
        """[D, H, W] where an alignment is told from: the body with its skin and a little air.

        A cone beam's cylinder cuts the patient; its edge is no skin and would be taken for one.
        """
        if self.modality == "CBCT":
            inner: NDArray[np.bool_] = ndimage.binary_erosion(self.body)
            return inner if inner.any() else self.body
        return np.asarray(ndimage.binary_dilation(self.body, iterations=3) & self.seen)

    def mirrored(self) -> "Scan":
        """Left and right exchanged about the middle of the body."""
        last = self.origin[0] + GRID_MM * (self.image.shape[0] - 1)
        origin = np.array([2 * self.centre[0] - last, *self.origin[1:]])
        return Scan(self.modality, self.image[::-1], self.body[::-1], self.seen[::-1], origin)

    def as_image(self, values: NDArray[Any]) -> Any:
        """Values [D, H, W] as a SimpleITK image whose physical space is RAS+ millimetres."""
        image = sitk.GetImageFromArray(np.ascontiguousarray(values.transpose(2, 1, 0)))
        image.SetSpacing([GRID_MM] * 3)
        image.SetOrigin(self.origin.tolist())
        return image


def load_scan(volume: Volume) -> Scan | Reason:
    """A volume where its table puts it (``moved``), or what is wrong with it."""
    try:
        voxels, affine = read_voxels(volume.path)
    except VolumeFileError as error:
        return error.reason
    affine = matrix_of(volume.moved) @ affine
    reason = geometry_problem(voxels.shape, affine)
    if reason is not None:
        return reason
    reason = content_problem(voxels)
    if reason is not None:
        return reason
    if (volume.slope, volume.intercept) != (1.0, 0.0):
        voxels = voxels * np.float32(volume.slope) + np.float32(volume.intercept)
    return scan_of(voxels, affine, volume.modality)


def scan_of(voxels: NDArray[np.float32], affine: NDArray[np.float64], modality: str) -> Scan | Reason:
    """The coarse grid of voxels [I, J, K] in their physical unit; affine [4, 4] voxel to RAS+ millimetres."""
    low, size = _box(voxels.shape, affine)
    if np.prod(size.astype(float)) > _MAXIMUM_VOXELS:
        return Reason.TOO_LARGE
    image, seen = _coarse(voxels, affine, low, size)
    if modality == "CBCT":
        seen &= _reconstructed(image)
    body = body_mask(image, modality, seen)
    if np.count_nonzero(body) < _MINIMUM_BODY:
        return Reason.NO_BODY
    try:
        rule = rule_for(modality, {})
    except ConfigError:  # a modality that a job gives a rule to: for an alignment any monotone scale will do
        rule = ForegroundRule()
    image = normalise(image, body, rule)
    image[~seen] = image[seen].min()
    return Scan(modality, image, body, seen, low)


def _box(shape: tuple[int, ...], affine: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """First voxel's centre, mm, and extent of the smallest straight box that holds all voxel centres."""
    ends = np.stack(np.meshgrid(*[(0, n - 1) for n in shape], indexing="ij"), axis=-1).reshape(-1, 3)
    world = ends @ affine[:3, :3].T + affine[:3, 3]
    low = world.min(axis=0)
    return low, np.floor((world.max(axis=0) - low) / GRID_MM + 1e-3).astype(np.int64) + 1


def _coarse(
    voxels: NDArray[np.float32], affine: NDArray[np.float64], low: NDArray[np.float64], size: NDArray[np.int64]
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Mean of whole blocks of voxels, then linear interpolation; image and field of view."""
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    image = sitk.GetImageFromArray(voxels.transpose(2, 1, 0))
    image.SetSpacing(spacing.tolist())
    image.SetDirection((affine[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(affine[:3, 3].tolist())
    factors = np.clip(np.floor(GRID_MM / spacing), 1, voxels.shape).astype(int)
    if factors.max() > 1:
        image = sitk.BinShrink(image, factors.tolist())
    straight = np.eye(3).ravel().tolist()
    steps = [GRID_MM] * 3
    onto = (size.tolist(), sitk.Transform(), sitk.sitkLinear, low.tolist(), steps, straight, float("nan"))
    values = sitk.GetArrayFromImage(sitk.Resample(image, *onto)).transpose(2, 1, 0)
    seen = np.isfinite(values)
    lowest = values[seen].min() if seen.any() else 0.0
    return np.where(seen, values, lowest).astype(np.float32), seen


def _reconstructed(image: NDArray[np.float32]) -> NDArray[np.bool_]:
    """A cone beam's cylinder: beyond it every voxel holds the number that the corner holds."""
    inside = np.abs(image - image[0, 0, image.shape[2] // 2]) > 1e-3
    return np.asarray(ndimage.binary_fill_holes(ndimage.binary_closing(inside)))
