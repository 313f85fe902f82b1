"""NIfTI files that hold voxels and their place, and nothing else."""

import gzip
import os
import tempfile
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray

_LEVEL = 1  # the cache is what training reads; a higher level saves a tenth of the size for thrice the time
_SLAB = 2**22  # bytes given to the compressor at a time
_QFORM_TOLERANCE = 1e-4  # of a voxel's step, how far a rotation may be from the affine and still be written


def write_nifti(
    path: Path, stored: NDArray[Any], affine: NDArray[np.float64], *, slope: float = 1.0, intercept: float = 0.0
) -> None:
    """Writes ``.nii`` or ``.nii.gz`` in one step: no reader ever sees half a file.

    Descriptive fields are empty, there are no extensions, and the gzip header holds neither name nor time, so the same
    voxels give the same bytes.

    Args:
        path: its suffix decides about compression; the file is made readable by its owner only.
        stored: [I, J, K] of an integer type that NIfTI knows, or float32.
        affine: [4, 4] voxel to RAS+ millimetres; sheared ones are written to the sform only.
        slope: value = slope * stored + intercept.
        intercept: see slope.

    Raises:
        OSError: the file cannot be written.
    """
    header = _header(stored, affine, slope, intercept)
    handle, name = tempfile.mkstemp(dir=path.parent, suffix=".part")  # mkstemp makes it 0600
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as raw:
            if path.suffix == ".gz":
                with gzip.GzipFile(filename="", fileobj=raw, mode="wb", compresslevel=_LEVEL, mtime=0) as stream:
                    _write(stream, header, stored)
            else:
                _write(raw, header, stored)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _header(stored: NDArray[Any], affine: NDArray[np.float64], slope: float, intercept: float) -> nibabel.Nifti1Header:
    header = nibabel.Nifti1Header(endianness="<")
    header.set_data_dtype(stored.dtype)
    header.set_data_shape(stored.shape)
    header.set_xyzt_units("mm")
    header.set_sform(affine, code="scanner")
    header.set_qform(affine, code="scanner", strip_shears=True)
    steps = np.linalg.norm(affine[:3, :3], axis=0)
    if np.abs(header.get_qform() - affine)[:3, :3].max() > _QFORM_TOLERANCE * steps.min():
        header.set_qform(None, code="unknown")
    header["pixdim"][1:4] = steps
    header["scl_slope"], header["scl_inter"] = slope, intercept
    header["vox_offset"] = 352
    header["magic"] = b"n+1"
    for field in ("descrip", "aux_file", "intent_name", "db_name"):
        header[field] = b""
    return header


def _write(stream: Any, header: nibabel.Nifti1Header, stored: NDArray[Any]) -> None:
    stream.write(header.binaryblock)
    stream.write(b"\0\0\0\0")  # no extensions
    # Column-major, as NIfTI has it; a stack is laid out so already and is not copied.
    flat = np.asfortranarray(stored.astype(stored.dtype.newbyteorder("<"), copy=False)).ravel(order="K").view(np.uint8)
    for start in range(0, flat.size, _SLAB):
        stream.write(flat[start : start + _SLAB])
