"""Volume files as the rest of the package sees them: geometry from the header alone, voxels when they are wanted.

``.nii`` and ``.nii.gz`` through nibabel, MetaImage (``.mha``, ``.mhd``) and NRRD (``.nrrd``, ``.nhdr``) through their
text headers. A header is believed only where its file can hold what it promises, so nothing is allocated for a claim.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import nibabel
import numpy as np
from nibabel.arrayproxy import ArrayProxy
from nibabel.openers import ImageOpener
from numpy.typing import NDArray

from parametrium.cohort.problem import Reason
from parametrium.cohort.text_header import TextHeader, VolumeFileError, read_block, read_meta_image, read_nrrd

__all__ = [
    "MAXIMUM_VOXELS",
    "SUFFIXES",
    "Geometry",
    "Stored",
    "VolumeFileError",
    "is_present",
    "open_geometry",
    "read_stored",
    "read_voxels",
    "source_files",
    "stem_of",
]

SUFFIXES = (".nii.gz", ".nii", ".mha", ".mhd", ".nrrd", ".nhdr")
"""Ends of the names of volume files, in any case."""
MAXIMUM_VOXELS = 2**30
"""A larger array (4 GiB as float32) is not a scan of one patient but a damaged header."""

_LONGEST_HEADER = 540  # bytes of NIfTI-2's; NIfTI-1's has 348
_DEFLATE_RATIO = 1032  # no deflate stream unpacks to more than this many times its size
_TEXT_HEADERS = {".mha": read_meta_image, ".mhd": read_meta_image, ".nrrd": read_nrrd, ".nhdr": read_nrrd}


class Geometry(NamedTuple):
    """What a header alone tells.

    Attributes:
        shape: voxels along the file's axes; more than three where the file has more.
        affine: [4, 4] voxel to RAS+ millimetres.
        kind: numpy's letter for the stored type: i, u or f.
    """

    shape: tuple[int, ...]
    affine: NDArray[np.float64]
    kind: str


class Stored(NamedTuple):
    """A volume as it is stored: value = slope * voxels + intercept.

    Attributes:
        voxels: [I, J, K] in the file's own type.
        affine: [4, 4] voxel to RAS+ millimetres.
        slope: the file's own.
        intercept: the file's own.
    """

    voxels: NDArray[Any]
    affine: NDArray[np.float64]
    slope: float
    intercept: float


def stem_of(name: str) -> str | None:
    """A file name without its suffix; None where it is not the name of a volume."""
    suffix = _suffix(name)
    return name[: -len(suffix)] if suffix and len(name) > len(suffix) else None


def is_present(path: Path) -> bool:
    """Whether a file lies there; False also where no file could, as for a name that is too long."""
    try:
        return path.is_file()
    except OSError:
        return False


def open_geometry(path: Path) -> Geometry:
    """Shape, affine and type from the header; nothing of the voxels is read.

    NIfTI's affine is the sform where it is set, else the qform, else what the voxel sizes give.

    Raises:
        VolumeFileError: not a readable volume file, or the file is too small for what its header promises.
    """
    with _one_reason():
        suffix = _suffix(path.name)
        if suffix in _TEXT_HEADERS:
            header = _text_header(path, suffix)
            return Geometry(header.shape, header.affine, header.dtype.kind)
        nifti = _nifti_header(path, suffix)
        affine = np.asarray(nifti.get_best_affine(), dtype=np.float64)
        return Geometry(nifti.get_data_shape(), affine, nifti.get_data_dtype().kind)


def read_stored(path: Path) -> Stored:
    """Voxels in the file's own type, with the file's own scaling beside them; raises as ``read_voxels``."""
    with _one_reason():
        suffix = _suffix(path.name)
        if suffix in _TEXT_HEADERS:
            header = _text_header(path, suffix)
            _three_axes(header.shape)
            return Stored(read_block(header), header.affine, 1.0, 0.0)
        nifti = _nifti_header(path, suffix)
        extent = _three_axes(nifti.get_data_shape())
        proxy = ArrayProxy(path, nifti, mmap=False)
        affine = np.asarray(nifti.get_best_affine(), dtype=np.float64)
        return Stored(proxy.get_unscaled().reshape(extent), affine, float(proxy.slope), float(proxy.inter))


def read_voxels(path: Path) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Voxels with the file's own scaling, [I, J, K], and affine [4, 4] voxel to RAS+ millimetres.

    Values beyond float32 become infinite.

    Raises:
        VolumeFileError: not a readable volume file, damaged, not 3D (trailing axes of one voxel are none), or larger
            than MAXIMUM_VOXELS or than memory.
    """
    with _one_reason(), np.errstate(all="ignore"):
        suffix = _suffix(path.name)
        if suffix in _TEXT_HEADERS:
            stored = read_stored(path)
            return stored.voxels.astype(np.float32), stored.affine
        nifti = _nifti_header(path, suffix)
        extent = _three_axes(nifti.get_data_shape())
        voxels = np.asarray(ArrayProxy(path, nifti, mmap=False), dtype=np.float32)
        return voxels.reshape(extent), np.asarray(nifti.get_best_affine(), dtype=np.float64)


def source_files(path: Path) -> tuple[Path, ...]:
    """The files whose bytes make a volume: itself, and the data file that its header names.

    Raises:
        VolumeFileError: the header cannot be read.
    """
    suffix = _suffix(path.name)
    if suffix not in _TEXT_HEADERS:
        return (path,)
    with _one_reason():
        data = _text_header(path, suffix).data
    return (path,) if data == path else (path, data)


@contextmanager
def _one_reason() -> Iterator[None]:
    """A damaged header or stream makes the readers raise nearly anything; each means the same here."""
    try:
        yield
    except VolumeFileError:
        raise
    except FileNotFoundError:
        raise VolumeFileError(Reason.MISSING_FILE) from None
    except MemoryError:
        raise VolumeFileError(Reason.TOO_LARGE) from None
    except Exception:
        raise VolumeFileError(Reason.UNREADABLE) from None


def _suffix(name: str) -> str:
    lower = name.lower()
    return next((suffix for suffix in SUFFIXES if lower.endswith(suffix)), "")


def _three_axes(shape: Sequence[int]) -> tuple[int, int, int]:
    if len(shape) < 3 or any(extent != 1 for extent in shape[3:]):
        raise VolumeFileError(Reason.NOT_3D)
    if math.prod(shape) > MAXIMUM_VOXELS:
        raise VolumeFileError(Reason.TOO_LARGE)
    return shape[0], shape[1], shape[2]


def _text_header(path: Path, suffix: str) -> TextHeader:
    header = _TEXT_HEADERS[suffix](path)
    _refuse_hollow(header.data, header.shape, header.dtype, header.offset, packed=header.packed)
    return header


def _nifti_header(path: Path, suffix: str) -> Any:
    """NIfTI-1 or -2 header, without its extensions: they may hold names, and a hostile one claims gigabytes."""
    if not suffix:
        raise VolumeFileError(Reason.UNREADABLE)
    with ImageOpener(path) as stream:
        block = stream.read(_LONGEST_HEADER)
    kind = next(k for k in (nibabel.Nifti2Header, nibabel.Nifti1Header) if k.may_contain_header(block))
    header = kind(block[: kind.template_dtype.itemsize])
    dtype = header.get_data_dtype()
    if dtype.kind not in "iuf" or not bytes(header["magic"]).startswith(b"n+"):
        raise VolumeFileError(Reason.UNREADABLE)
    packed = suffix.endswith(".gz")
    _refuse_hollow(path, header.get_data_shape(), dtype, 0 if packed else header.get_data_offset(), packed=packed)
    return header


def _refuse_hollow(path: Path, shape: Sequence[int], dtype: np.dtype[Any], offset: int, *, packed: bool) -> None:
    """Refuses a header that promises more voxels than its file can hold."""
    if math.prod(shape) > MAXIMUM_VOXELS:
        return  # named too large by whoever asks for more than the geometry
    room = (path.stat().st_size - offset) * (_DEFLATE_RATIO if packed else 1)
    if math.prod(shape) * dtype.itemsize > room:
        raise VolumeFileError(Reason.UNREADABLE)
