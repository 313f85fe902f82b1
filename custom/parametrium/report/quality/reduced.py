"""A volume as the page shows it: a coarse copy for the viewer, its body mask, and three planes as one picture.

D H W: voxels of the coarse copy along right, anterior, superior (RAS+).
"""

import base64
import gzip
import itertools
import re
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from parametrium.cohort.intensity import body_mask
from parametrium.data.lattice import Spacing, resample
from parametrium.report.planes import ACROSS, Plane, plane_of
from parametrium.report.quality.png import GREYS

SPACING_MM = 3.5
"""Of the coarse copy; more where the field of view would otherwise have too many voxels."""

MOST_VOXELS = 1_000_000
FEWEST_ALONG = 4
"""Voxels that a thin slab keeps along its short axis."""

CELL = 168
"""Pixels of the longer edge of a plane."""

_LEVELS = 1023  # of the viewer's copy: enough for a narrow window on Hounsfield units
_CT_WINDOW = (-250.0, 400.0)
_FAT = -50.0  # Hounsfield units hold something below; otherwise they are none
_UPTAKE = 6.0  # times the median uptake is drawn white
_GAP = 4  # pixels between planes
_CALL = re.compile(rb'^parametriumVolume\("(\w+)","([\w+/=]*)","([\w+/=]*)","([\w+/=]*)",(\S+),(\S+)\);\n$')

Picture = NDArray[np.uint8]


@dataclass(frozen=True)
class Reduced:
    """A coarse copy of a volume.

    Attributes:
        image: [D, H, W] in the volume's own unit; 0 outside the field of view.
        seen: [D, H, W] True in the field of view.
        body: [D, H, W] True in the patient, found as the preparation finds it.
        affine: [4, 4] voxel to RAS+ millimetres.
        window: intensities that are drawn black and white.
    """

    image: NDArray[np.float32]
    seen: NDArray[np.bool_]
    body: NDArray[np.bool_]
    affine: NDArray[np.float64]
    window: tuple[float, float]


def reduce_volume(voxels: NDArray[np.float32], affine: NDArray[np.float64], modality: str) -> Reduced:
    """The coarse copy of a volume.

    Args:
        voxels: [I, J, K] in the file's order.
        affine: [4, 4] voxel to RAS+ millimetres.
        modality: decides how the body is found, and the window of CT.
    """
    spacing = _spacing(voxels.shape, affine)
    image, seen, offset = resample(voxels, affine, spacing)
    coarse = np.diag([*spacing, 1.0])
    coarse[:3, 3] = np.asarray(offset) * spacing
    body = body_mask(image, modality, seen)
    return Reduced(image, seen, body, coarse, _window(image, body if body.any() else seen, modality))


def _spacing(shape: tuple[int, ...], affine: NDArray[np.float64]) -> Spacing:
    """Cubic voxels, so many that their number is bounded; flatter ones for a slab."""
    corners = np.array(list(itertools.product(*[(-0.5, n - 0.5) for n in shape]))) @ affine[:3, :3].T
    extent = np.ptp(corners, axis=0)
    _, wide, long = (float(length) for length in sorted(extent))
    slab = (wide * long * FEWEST_ALONG / MOST_VOXELS) ** (1 / 2)
    edge = max(SPACING_MM, float(np.prod(extent) / MOST_VOXELS) ** (1 / 3), slab)
    right, anterior, superior = (min(edge, float(length) / FEWEST_ALONG) for length in extent)
    return right, anterior, superior


def _window(image: NDArray[np.float32], where: NDArray[np.bool_], modality: str) -> tuple[float, float]:
    """The middle 99 % of the patient; of CT what soft tissue and bone need, of PET less, where the values are such."""
    low, high = (float(value) for value in np.percentile(image[where], (0.5, 99.5)))
    if modality in ("CT", "CBCT") and low < _FAT and high > _CT_WINDOW[0]:
        low, high = max(low, _CT_WINDOW[0]), min(high, _CT_WINDOW[1])
    if modality == "PET" and low >= 0:  # the bladder would leave everything else black
        low, high = 0.0, min(high, _UPTAKE * float(np.median(image[where])))
    return (low, high) if high > low else (low, low + 1.0)


def montage(reduced: Reduced) -> Picture:
    """Axial, coronal and sagittal planes through the middle of the body, side by side, the body's edge outlined."""
    centre = _centre(reduced.body)
    parts = []
    for plane, axis in ACROSS.items():
        index = centre[axis]
        grey = _greys(_enlarged(reduced, plane, reduced.image, index), reduced.window)
        grey[outline(_enlarged(reduced, plane, reduced.body.astype(np.float32), index) > 0.5)] = GREYS
        parts.append(grey)
    return beside(parts)


def checkerboard(fixed: Reduced, other: Reduced) -> Picture:
    """Planes of two registered volumes in alternating squares, each with the outline of its body; on one grid."""
    centre = _centre(fixed.body & other.body)
    parts = []
    for plane, axis in ACROSS.items():
        index = centre[axis]
        a, b = (_greys(_enlarged(fixed, plane, v.image, index), v.window) for v in (fixed, other))
        rows, columns = np.indices(a.shape) // (CELL // 7)
        mixed = np.where((rows + columns) % 2 == 0, a, b)
        for number, volume in enumerate((fixed, other)):
            body = _enlarged(fixed, plane, volume.body.astype(np.float32), index) > 0.5
            mixed[outline(body)] = GREYS + number
        parts.append(mixed.astype(np.uint8))
    return beside(parts)


def on_grid(moving: Reduced, fixed: Reduced) -> Reduced:
    """The coarse copy on another's grid."""
    matrix = np.linalg.inv(moving.affine) @ fixed.affine
    shape = fixed.image.shape

    def moved(array: NDArray[np.float32]) -> NDArray[np.float32]:
        result = np.empty(shape, np.float32)
        ndimage.affine_transform(array, matrix[:3, :3], matrix[:3, 3], output_shape=shape, output=result, order=1)
        return result

    seen, body = (moved(mask.astype(np.float32)) > 0.5 for mask in (moving.seen, moving.body))
    return Reduced(moved(moving.image), seen, body, fixed.affine, moving.window)


def outline(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The pixels of a mask that touch what is not in it; the picture's own edge is no outline."""
    inner: NDArray[np.bool_] = ndimage.binary_erosion(mask, border_value=1)
    return mask & ~inner


def beside(parts: list[Picture]) -> Picture:
    """Pictures next to each other on black, of one height."""
    height = max(part.shape[0] for part in parts)
    room = [height - part.shape[0] for part in parts]
    framed = [np.pad(part, ((n // 2, n - n // 2), (0, _GAP))) for part, n in zip(parts, room, strict=True)]
    joined: Picture = np.concatenate(framed, axis=1)[:, :-_GAP]
    return joined


def _centre(body: NDArray[np.bool_]) -> tuple[int, int, int]:
    """Median of the body along each axis: a stray part does not move it."""
    if not body.any():
        return body.shape[0] // 2, body.shape[1] // 2, body.shape[2] // 2
    i, j, k = (int(np.median(where)) for where in np.nonzero(body))
    return i, j, k


def _enlarged(grid: Reduced, plane: Plane, volume: NDArray[np.float32], index: int) -> NDArray[np.float32]:
    """One plane in pixels of equal millimetres, its longer edge CELL pixels."""
    picture = plane_of(volume, plane, index)
    step = np.abs(np.diag(grid.affine)[:3])
    across, up = [float(mm) for axis, mm in enumerate(step) if axis != ACROSS[plane]]
    edge = CELL / max(picture.shape[1] * across, picture.shape[0] * up)
    rows, columns = max(8, round(picture.shape[0] * up * edge)), max(8, round(picture.shape[1] * across * edge))
    at = np.meshgrid(
        (np.arange(rows) + 0.5) * picture.shape[0] / rows - 0.5,
        (np.arange(columns) + 0.5) * picture.shape[1] / columns - 0.5,
        indexing="ij",
    )
    result: NDArray[np.float32] = ndimage.map_coordinates(picture, at, order=1, mode="nearest")
    return result


def _greys(picture: NDArray[np.float32], window: tuple[float, float]) -> Picture:
    low, high = window
    grey: Picture = np.clip((picture - low) / (high - low) * (GREYS - 1), 0, GREYS - 1).astype(np.uint8)
    return grey


def viewer_file(key: str, reduced: Reduced, picture: bytes) -> bytes:
    """The script that hands a volume to the page: a page opened from a disk may run scripts but not read files.

    It holds base64 and numbers only. The NIfTI files inside have a header without any text.
    """
    image, body = (base64.b64encode(data).decode() for data in (_image_nifti(reduced), _body_nifti(reduced)))
    low, high = reduced.window
    call = f'parametriumVolume("{key}","{image}","{body}","{base64.b64encode(picture).decode()}",{low:.6g},{high:.6g});'
    return call.encode() + b"\n"


def read_viewer_file(path: Path) -> tuple[Reduced, bytes]:
    """What ``viewer_file`` wrote: the coarse copy, in steps of the viewer, and the picture.

    Raises:
        ValueError: the file is not one of ours.
    """
    found = _CALL.match(path.read_bytes())
    if found is None:
        raise ValueError("not a file of the viewer")
    image, mask = (nibabel.Nifti1Image.from_bytes(gzip.decompress(base64.b64decode(found[n]))) for n in (2, 3))
    code = np.asarray(mask.dataobj)
    window = (float(found[5]), float(found[6]))
    reduced = Reduced(image.get_fdata(dtype=np.float32), code > 0, code == 2, image.affine, window)
    return reduced, base64.b64decode(found[4])


def _image_nifti(reduced: Reduced) -> bytes:
    low, high = (float(value) for value in np.percentile(reduced.image[reduced.seen], (0.02, 99.98)))
    step = (high - low) / _LEVELS if high > low else 1.0
    stored = np.clip(np.rint((reduced.image - low) / step), 0, _LEVELS).astype(np.int16)
    image = nibabel.Nifti1Image(stored, reduced.affine)
    image.header.set_slope_inter(step, low)
    return gzip.compress(image.to_bytes(), 5, mtime=0)


def _body_nifti(reduced: Reduced) -> bytes:
    """0 outside the field of view, 1 in it, 2 in the body."""
    code = reduced.seen.astype(np.uint8) + (reduced.body & reduced.seen)
    return gzip.compress(nibabel.Nifti1Image(code.astype(np.uint8), reduced.affine).to_bytes(), 9, mtime=0)
