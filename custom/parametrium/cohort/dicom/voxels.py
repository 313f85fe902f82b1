"""Stored values of a stack's slices, decoded frame by frame into one array.

Uncompressed frames are read straight from the file; compressed ones go one at a time through pydicom's decoders
(pylibjpeg, pyjpegls, GDCM). What a header claims is compared with what the file holds before anything is reserved.

Values are as the standard's rescale gives them. MONOCHROME1 only says how to show them (PS3.3 C.7.6.3.1.2), so it
changes nothing here. CT below -1024 HU is set to -1024: scanners fill the corners outside the field of view with
-2000 or -3024, whether or not Pixel Padding Value says so, and such an edge would bleed into what is interpolated.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from pydicom.encaps import generate_frames
from pydicom.pixels import get_decoder
from pydicom.uid import ExplicitVRBigEndian, RLELossless

from parametrium.cohort.dicom.codestream import frame_size
from parametrium.cohort.dicom.facts import Slice
from parametrium.cohort.dicom.part10 import Opened, Pixels, opened
from parametrium.cohort.dicom.pixel_layout import LAYOUT_TAGS, Layout, UndecodableError, layout_of
from parametrium.cohort.dicom.quiet import quiet
from parametrium.cohort.dicom.stack import Stack
from parametrium.cohort.header import MAXIMUM_VOXELS
from parametrium.cohort.problem import Reason

_LOWEST_HU = -1024.0


@dataclass(frozen=True)
class Voxels:
    """A decoded stack; value = slope * stored + intercept.

    Attributes:
        stored: [I, J, K], column-major, integers as in the files or float32 values.
        slope: 1 for float32.
        intercept: 0 for float32.
    """

    stored: NDArray[Any]
    slope: float
    intercept: float


def read_voxels(stack: Stack, spare: Mapping[Path, Sequence[Path]] = MappingProxyType({})) -> Voxels | Reason:
    """Decodes a stack that has a grid; raises only ``MemoryError``.

    Integers stay integers where one slope and intercept serve all slices; else values become float32.

    Args:
        stack: what to decode.
        spare: of a file, copies of it; they are tried in their order for frames that the file itself does not give.
    """
    slices = [plane.slice for plane in stack.planes]
    lines = {(plane.slope, plane.intercept) for plane in slices}
    first = slices[0]
    if len(slices) * first.shape[0] * first.shape[1] > MAXIMUM_VOXELS:
        return Reason.TOO_LARGE
    volume: NDArray[Any] | None = None
    try:
        with quiet():
            for number, plane in _decoded(slices, spare):
                frame = _scaled(
                    plane, slices[number], one_line=len(lines) == 1, hounsfield=stack.facts.modality == "CT"
                )
                if volume is None:
                    volume = np.empty((len(slices), *first.shape), dtype=frame.dtype)
                if frame.dtype != volume.dtype:
                    volume = volume.astype(np.promote_types(frame.dtype, volume.dtype))
                volume[number] = frame
    except MemoryError:
        raise
    except Exception:  # a damaged stream makes decoders raise nearly anything; each means the same here
        return Reason.UNDECODABLE
    if volume is None or (volume.dtype.kind == "f" and not np.isfinite(volume).all()):
        return Reason.UNDECODABLE
    slope, intercept = next(iter(lines)) if volume.dtype.kind in "iu" else (1.0, 0.0)
    return Voxels(volume.T, slope, intercept)


def _scaled(frame: NDArray[Any], plane: Slice, *, one_line: bool, hounsfield: bool) -> NDArray[Any]:
    """The frame's values, or its stored integers where one line serves the stack; CT without values below air."""
    if not one_line:
        frame = frame * np.float32(plane.slope) + np.float32(plane.intercept)
        return np.maximum(frame, np.float32(_LOWEST_HU)) if hounsfield else frame
    if not hounsfield or plane.slope < 0:
        return frame
    lowest = int(np.ceil((_LOWEST_HU - plane.intercept) / plane.slope))
    return np.maximum(frame, frame.dtype.type(lowest)) if lowest > np.iinfo(frame.dtype).min else frame


def _decoded(slices: Sequence[Slice], spare: Mapping[Path, Sequence[Path]]) -> Iterator[tuple[int, NDArray[Any]]]:
    """Number in the stack and stored values [rows, columns] of each slice; a file is opened once."""
    order = sorted(range(len(slices)), key=lambda number: (slices[number].path, slices[number].frame))
    for path, numbers in groupby(order, key=lambda number: slices[number].path):
        wanted = {slices[number].frame: number for number in numbers}
        shape = slices[next(iter(wanted.values()))].shape
        for frame, data in _frames_of_any((path, *spare.get(path, ())), wanted, shape):
            yield wanted[frame], data


def _frames_of_any(
    copies: Sequence[Path], wanted: dict[int, int], shape: tuple[int, int]
) -> Iterator[tuple[int, NDArray[Any]]]:
    """The wanted frames of the first copy, and from where it fails on those of the next; twice round, then no more."""
    left = dict(wanted)
    tries = (*copies, *copies[:-1])
    for place, path in enumerate(tries, start=1):
        try:
            for frame, data in _frames(path, dict(left), shape):
                del left[frame]
                yield frame, data
            return
        except MemoryError:
            raise
        except Exception:  # a damaged stream makes decoders raise nearly anything
            if place == len(tries):
                raise


def _frames(path: Path, wanted: dict[int, int], shape: tuple[int, int]) -> Iterator[tuple[int, NDArray[Any]]]:
    """The wanted frames of one file; of a mosaic its tiles."""
    with opened(path, LAYOUT_TAGS) as file:
        if file.pixels is None or file.pixels.tag != 0x7FE00010:
            raise UndecodableError
        layout = layout_of(file.elements)
        whole = (layout.rows, layout.columns) == shape
        mosaic = layout.frames == 1 and not whole
        frames = {0} if mosaic else set(wanted)
        if max(frames) >= layout.frames or not (whole or mosaic):
            raise UndecodableError
        read = _compressed if file.pixels.encapsulated else _native
        found = 0
        for number, data in read(file, file.pixels, layout, frames):
            found += 1
            if mosaic:
                yield from ((tile, _tile(data, tile, shape)) for tile in wanted)
            else:
                yield number, data
        if found != len(frames):
            raise UndecodableError


def _tile(picture: NDArray[Any], tile: int, shape: tuple[int, int]) -> NDArray[Any]:
    across = picture.shape[1] // shape[1]
    row, column = tile // across * shape[0], tile % across * shape[1]
    return picture[row : row + shape[0], column : column + shape[1]]


def _native(file: Opened, pixels: Pixels, layout: Layout, frames: set[int]) -> Iterator[tuple[int, NDArray[Any]]]:
    """Frames of an uncompressed value."""
    if pixels.length < layout.frame_bytes * (max(frames) + 1):
        raise UndecodableError
    swapped = file.syntax == ExplicitVRBigEndian
    order = layout.dtype.newbyteorder(">" if swapped else "<")
    for number in sorted(frames):
        start = pixels.offset + number * layout.frame_bytes
        if swapped and pixels.words and layout.allocated == 8:
            data = _bytes_of_words(file.stream, start, layout.frame_bytes)
        else:
            file.stream.seek(start)
            data = file.stream.read(layout.frame_bytes)
        frame = np.frombuffer(data, dtype=order).astype(layout.dtype, copy=False)
        yield number, _significant(frame.reshape(layout.rows, layout.columns), layout)


def _bytes_of_words(stream: BinaryIO, start: int, length: int) -> bytes:
    """Bytes that were written as big-endian words: each pair is swapped (PS3.5 annex A.3 with OW)."""
    stream.seek(start - start % 2)
    words = stream.read(length + 2 + length % 2)
    pairs = np.frombuffer(words[: len(words) // 2 * 2], dtype=np.uint16).byteswap().tobytes()
    return pairs[start % 2 : start % 2 + length]


def _significant(frame: NDArray[Any], layout: Layout) -> NDArray[Any]:
    """Without what overlays and old writers left in the unused bits."""
    if layout.bits == layout.allocated:
        return frame
    left = layout.allocated - 1 - layout.high
    # Up against the top and back down: an arithmetic shift brings the sign along.
    return (frame << left) >> (layout.allocated - layout.bits)


def _compressed(file: Opened, pixels: Pixels, layout: Layout, frames: set[int]) -> Iterator[tuple[int, NDArray[Any]]]:
    """Frames of an encapsulated value, each decoded alone."""
    decoder = get_decoder(file.syntax)
    file.stream.seek(pixels.offset)
    offsets = file.elements.octets("ExtendedOffsetTable"), file.elements.octets("ExtendedOffsetTableLengths")
    fragments = generate_frames(
        file.stream, number_of_frames=layout.frames, extended_offsets=offsets if all(offsets) else None
    )
    last = max(frames)
    for number, data in enumerate(fragments):
        if number in frames:
            if file.syntax != RLELossless and frame_size(data) != (layout.rows, layout.columns):
                raise UndecodableError
            yield number, _decode(decoder, data, file, layout)
        if number >= last:
            return


def _decode(decoder: Any, data: bytes, file: Opened, layout: Layout) -> NDArray[Any]:
    fragment = b"\xfe\xff\x00\xe0\0\0\0\0\xfe\xff\x00\xe0" + len(data).to_bytes(4, "little") + data
    frame, _ = decoder.as_array(
        fragment,
        index=0,
        transfer_syntax_uid=file.syntax,
        rows=layout.rows,
        columns=layout.columns,
        number_of_frames=1,
        samples_per_pixel=1,
        photometric_interpretation=layout.photometric,
        bits_allocated=layout.allocated,
        bits_stored=layout.bits,
        pixel_representation=int(layout.signed),
        pixel_keyword="PixelData",
    )
    frame = np.asarray(frame)
    if frame.shape != (layout.rows, layout.columns):
        raise UndecodableError
    return frame
