"""MetaImage and NRRD: a text header, then a block of voxels behind it or in a file beside it.

The plain form that scanners' and research tools write is read, and everything else is refused. ITK is not asked: its
MetaImage reader ends the whole process on some damaged headers and writes to stderr by itself. The tests compare with
it. Formats: https://itk.org/Wiki/MetaIO/Documentation and https://teem.sourceforge.net/nrrd/format.html.
"""

import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from parametrium.cohort.problem import Reason

_LONGEST_HEADER = 2**16  # bytes
_CHUNK = 2**20
_FARTHEST = 1e6  # millimetres; a larger number in a header is damage, and would overflow on the way to the same verdict

_META_TYPES = {
    "MET_CHAR": "i1",
    "MET_UCHAR": "u1",
    "MET_SHORT": "i2",
    "MET_USHORT": "u2",
    "MET_INT": "i4",
    "MET_UINT": "u4",
    "MET_LONG_LONG": "i8",
    "MET_ULONG_LONG": "u8",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}
_META_PLAIN = {
    "ObjectType": ("Image",),
    "BinaryData": ("True",),
    "HeaderSize": ("0",),
    "ElementToIntensityFunctionSlope": ("1",),
    "ElementToIntensityFunctionOffset": ("0",),
}
"""What these fields must say where they stand: other forms exist and no scan needs them."""

_NRRD_TYPES = {
    name: code
    for code, names in {
        "i1": ("signed char", "int8", "int8_t"),
        "u1": ("uchar", "unsigned char", "uint8", "uint8_t"),
        "i2": ("short", "short int", "signed short", "signed short int", "int16", "int16_t"),
        "u2": ("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"),
        "i4": ("int", "signed int", "int32", "int32_t"),
        "u4": ("uint", "unsigned int", "uint32", "uint32_t"),
        "i8": ("longlong", "long long", "long long int", "signed long long", "int64", "int64_t"),
        "u8": ("ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t"),
        "f4": ("float",),
        "f8": ("double",),
    }.items()
    for name in names
}
_NRRD_SPACES = {
    "left-posterior-superior": (-1.0, -1.0, 1.0),
    "lps": (-1.0, -1.0, 1.0),
    "right-anterior-superior": (1.0, 1.0, 1.0),
    "ras": (1.0, 1.0, 1.0),
    "left-anterior-superior": (-1.0, 1.0, 1.0),
    "las": (-1.0, 1.0, 1.0),
}
"""Signs that bring a space's axes to right, anterior, superior."""


class VolumeFileError(Exception):
    """A volume file cannot be used; it holds nothing but the reason.

    Args:
        reason: why.
    """

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True)
class TextHeader:
    """What a header says.

    Attributes:
        shape: voxels along the file's axes, the fastest first.
        affine: [4, 4] voxel to RAS+ millimetres.
        dtype: of the stored voxels, with their byte order.
        data: the file that holds them.
        offset: bytes before them.
        packed: whether they are a zlib or gzip stream.
    """

    shape: tuple[int, int, int]
    affine: NDArray[np.float64]
    dtype: np.dtype[Any]
    data: Path
    offset: int
    packed: bool


def read_meta_image(path: Path) -> TextHeader:
    """Header of a MetaImage file, .mha or .mhd.

    Raises:
        VolumeFileError: it is not a plain 3D image of one channel, or its data file is absent or lies elsewhere.
        ValueError, KeyError, OSError: it is damaged or cannot be read.
    """
    fields, offset = _meta_fields(_block(path))
    if int(fields["NDims"]) != 3 or int(fields.get("ElementNumberOfChannels", "1")) != 1:
        raise VolumeFileError(Reason.NOT_3D)
    if fields.get("DistanceUnits", "mm") != "mm":
        raise VolumeFileError(Reason.UNKNOWN_UNIT)
    odd = [key for key, allowed in _META_PLAIN.items() if fields.get(key, allowed[0]) not in allowed]
    if odd or "BinaryData" not in fields:
        raise VolumeFileError(Reason.UNREADABLE)
    # A row of the matrix is the direction of one axis.
    directions = _numbers(_first(fields, "TransformMatrix", "Rotation", "Orientation", default="1 0 0 0 1 0 0 0 1"), 9)
    spacing = _numbers(_first(fields, "ElementSpacing", "ElementSize", default="1 1 1"), 3)
    origin = _numbers(_first(fields, "Offset", "Position", "Origin", default="0 0 0"), 3)
    big = _truth(_first(fields, "BinaryDataByteOrderMSB", "ElementByteOrderMSB", default="False"))
    name = fields["ElementDataFile"]
    local = name.upper() == "LOCAL"
    return TextHeader(
        shape=_shape(fields["DimSize"]),
        affine=_affine(directions.reshape(3, 3).T * spacing, origin, _NRRD_SPACES["lps"]),
        dtype=np.dtype(_META_TYPES[fields["ElementType"]]).newbyteorder(">" if big else "<"),
        data=path if local else _beside(path, name),
        offset=offset if local else 0,
        packed=_truth(fields.get("CompressedData", "False")),
    )


def read_nrrd(path: Path) -> TextHeader:
    """Header of an NRRD file, .nrrd or .nhdr; raises as ``read_meta_image``, and where no anatomical space is named."""
    fields, offset = _nrrd_fields(_block(path))
    directions = fields.get("spacedirections", "")
    if int(fields["dimension"]) != 3 or "none" in directions:
        raise VolumeFileError(Reason.NOT_3D)
    if fields.get("space", "").lower() not in _NRRD_SPACES or not directions:
        raise VolumeFileError(Reason.NO_GEOMETRY)  # left and right would be a guess
    if set(re.findall(r'"([^"]*)"', fields.get("spaceunits", ""))) - {"", "mm"}:
        raise VolumeFileError(Reason.UNKNOWN_UNIT)
    if any(fields.get(key, "0") != "0" for key in ("lineskip", "byteskip")):
        raise VolumeFileError(Reason.UNREADABLE)
    dtype = np.dtype(_NRRD_TYPES[fields["type"].lower()])
    big = dtype.itemsize > 1 and {"little": False, "big": True}[fields["endian"].lower()]
    axes = np.stack([_vector(text) for text in re.findall(r"\([^()]*\)", directions)], axis=1)
    name = fields.get("datafile", "")
    return TextHeader(
        shape=_shape(fields["sizes"]),
        affine=_affine(axes, _vector(fields.get("spaceorigin", "(0,0,0)")), _NRRD_SPACES[fields["space"].lower()]),
        dtype=dtype.newbyteorder(">" if big else "<"),
        data=_beside(path, name) if name else path,
        offset=0 if name else offset,
        packed={"raw": False, "gzip": True, "gz": True}[fields["encoding"].lower()],
    )


def read_block(header: TextHeader) -> NDArray[Any]:
    """Stored voxels, [I, J, K]; raises ValueError, OSError or zlib.error where the block is not what the header says.

    No more is read or unpacked than the header's shape allows: the caller has judged that shape.
    """
    needed = int(np.prod(header.shape, dtype=np.int64)) * header.dtype.itemsize
    with header.data.open("rb") as stream:
        stream.seek(header.offset)
        content = _unpacked(stream, needed) if header.packed else stream.read(needed)
    if len(content) != needed:
        raise ValueError("the block of voxels is shorter or longer than the header says")
    return np.frombuffer(content, header.dtype).reshape(header.shape, order="F")


def _unpacked(stream: BinaryIO, needed: int) -> bytearray:
    """At most one byte more than needed, so that a longer stream is seen, and its checksum is verified."""
    inflater = zlib.decompressobj(wbits=47)  # zlib's or gzip's own header, whichever comes
    content = bytearray()
    while not inflater.eof and len(content) <= needed and (chunk := stream.read(_CHUNK)):
        content += inflater.decompress(chunk, needed + 1 - len(content))
    if not inflater.eof:
        raise ValueError("the stream ends early or late")
    return content


def _block(path: Path) -> bytes:
    with path.open("rb") as stream:
        return stream.read(_LONGEST_HEADER)


def _meta_fields(block: bytes) -> tuple[Mapping[str, str], int]:
    """Fields, and where the header ends."""
    fields: dict[str, str] = {}
    offset = 0
    for line in block.splitlines(keepends=True):
        offset += len(line)
        key, separator, value = (part.strip() for part in line.decode("latin-1").partition("="))
        if not separator or key in fields:
            raise ValueError("not a line of a MetaImage header, or a second of its kind")
        fields[key] = value
        if key == "ElementDataFile":
            return fields, offset
    raise ValueError("the header does not end")


def _nrrd_fields(block: bytes) -> tuple[Mapping[str, str], int]:
    """Fields, names without blanks in lower case, and where the header ends."""
    magic, *lines = block.splitlines(keepends=True) or [b""]
    if not re.fullmatch(rb"NRRD000[1-5]\s*", magic):
        raise ValueError("not NRRD")
    fields: dict[str, str] = {}
    offset = len(magic)
    for line in lines:
        offset += len(line)
        text = line.decode("latin-1").strip()
        if not text:
            return fields, offset
        key, separator, value = text.partition(":")
        if text.startswith("#") or value.startswith("="):  # a comment, or a pair of somebody's own
            continue
        key = key.replace(" ", "").lower()
        if not separator or key in fields:
            raise ValueError("not a line of an NRRD header, or a second of its kind")
        fields[key] = value.strip()
    if "datafile" not in fields:
        raise ValueError("the header does not end")
    return fields, offset


def _first(fields: Mapping[str, str], *keys: str, default: str) -> str:
    return next((fields[key] for key in keys if key in fields), default)


def _truth(text: str) -> bool:
    return {"true": True, "false": False}[text.lower()]


def _numbers(text: str, count: int) -> NDArray[np.float64]:
    numbers = np.array([float(word) for word in text.split()])
    if numbers.shape != (count,):
        raise ValueError(f"not {count} numbers")
    return numbers


def _vector(text: str) -> NDArray[np.float64]:
    return _numbers(text.strip().removeprefix("(").removesuffix(")").replace(",", " "), 3)


def _shape(text: str) -> tuple[int, int, int]:
    i, j, k = (int(word) for word in text.split())
    if min(i, j, k) < 1:
        raise ValueError("an extent below 1")
    return i, j, k


def _affine(axes: NDArray[np.float64], origin: NDArray[np.float64], to_ras: Sequence[float]) -> NDArray[np.float64]:
    """Affine [4, 4] from the steps of the axes, in the columns of [3, 3], and the first voxel's centre."""
    affine = np.eye(4)
    affine[:3] = np.diag(to_ras) @ np.column_stack([axes, origin])
    if np.abs(affine).max() > _FARTHEST:
        raise VolumeFileError(Reason.IMPLAUSIBLE_GEOMETRY)
    return affine


def _beside(header: Path, name: str) -> Path:
    """The data file that a header names: in the header's own folder, whatever the name or a link says."""
    if not name or "\0" in name or Path(name).name != name:
        raise VolumeFileError(Reason.UNREADABLE)
    data = header.parent / name
    if not data.is_file():
        raise VolumeFileError(Reason.MISSING_FILE)
    if data.resolve().parent != header.parent.resolve():
        raise VolumeFileError(Reason.UNREADABLE)
    return data
