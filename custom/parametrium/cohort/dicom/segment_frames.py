"""Stored values of a segmentation's frames: single bits packed over the borders of frames, bytes, words, compressed.

Single bits are read here: highdicom's reader of single frames loses the last ones of a frame that is no whole number
of bytes, and it prints the path of a file that it cannot read.
"""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from highdicom.frame import decode_frame
from numpy.typing import NDArray
from pydicom.encaps import generate_frames
from pydicom.uid import ExplicitVRBigEndian, RLELossless

from parametrium.cohort.dicom.codestream import frame_size
from parametrium.cohort.dicom.part10 import Opened, Pixels, opened
from parametrium.cohort.dicom.pixel_layout import UndecodableError

_PIXEL_DATA = 0x7FE00010
_TAGS = (
    *("Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "BitsAllocated"),
    *("ExtendedOffsetTable", "ExtendedOffsetTableLengths"),
)


@dataclass(frozen=True, slots=True)
class FrameFile:
    """An open SEG file: where its pixel data lie, rows and columns of a frame, and bits of a voxel."""

    file: Opened
    pixels: Pixels
    shape: tuple[int, int]
    bits: int

    def stored(self, frames: Collection[int]) -> Iterator[tuple[int, NDArray[Any]]]:
        """Number and [R, C] unsigned integers of each wanted frame, counted from 0, in the file's order.

        Raises:
            UndecodableError: the pixel data are not what the header says.
            Exception: whatever a decoder raises for damaged data.
        """
        read = _encapsulated if self.pixels.encapsulated else _packed if self.bits == 1 else _native
        return read(self, sorted(frames))


@contextmanager
def frame_file(path: Path, shape: tuple[int, int]) -> Iterator[FrameFile]:
    """Opens a file for all its segments at once: its header can take longer to read than its frames.

    Args:
        path: a SEG file.
        shape: rows and columns that its frames must have.

    Raises:
        UndecodableError: these are no frames of single integers, or of another size.
        Exception: as ``part10.opened``.
    """
    with opened(path, _TAGS, content=True) as file:
        bits = file.elements.integer("BitsAllocated")
        pixels = file.pixels
        if pixels is None or pixels.tag != _PIXEL_DATA or bits not in (1, 8, 16):
            raise UndecodableError
        if (file.elements.integer("SamplesPerPixel") or 1) != 1:
            raise UndecodableError
        if (file.elements.integer("Rows"), file.elements.integer("Columns")) != shape:
            raise UndecodableError
        yield FrameFile(file, pixels, shape, bits)


def _packed(source: FrameFile, frames: list[int]) -> Iterator[tuple[int, NDArray[Any]]]:
    """Bits, the lowest of a byte first, each frame right after the last (PS3.5 8.1.1)."""
    file, pixels, shape = source.file, source.pixels, source.shape
    size = shape[0] * shape[1]
    for frame in frames:
        first, offset = divmod(frame * size, 8)
        length = (offset + size + 7) // 8
        if file.syntax == ExplicitVRBigEndian or first + length > pixels.length:
            raise UndecodableError
        file.stream.seek(pixels.offset + first)
        data = np.frombuffer(file.stream.read(length), dtype=np.uint8)
        yield frame, np.unpackbits(data, bitorder="little")[offset : offset + size].reshape(shape)


def _native(source: FrameFile, frames: list[int]) -> Iterator[tuple[int, NDArray[Any]]]:
    """Bytes or words."""
    file, pixels, shape, bits = source.file, source.pixels, source.shape, source.bits
    order = np.dtype(f"u{bits // 8}").newbyteorder(">" if file.syntax == ExplicitVRBigEndian else "<")
    length = shape[0] * shape[1] * bits // 8
    for frame in frames:
        if (frame + 1) * length > pixels.length:
            raise UndecodableError
        file.stream.seek(pixels.offset + frame * length)
        yield frame, np.frombuffer(file.stream.read(length), dtype=order).reshape(shape)


def _encapsulated(source: FrameFile, frames: list[int]) -> Iterator[tuple[int, NDArray[Any]]]:
    """Compressed frames, each decoded alone; what a frame claims to hold is looked at before memory is reserved."""
    file, shape, bits = source.file, source.shape, source.bits
    file.stream.seek(source.pixels.offset)
    offsets = file.elements.octets("ExtendedOffsetTable"), file.elements.octets("ExtendedOffsetTableLengths")
    fragments = generate_frames(
        file.stream,
        number_of_frames=file.elements.integer("NumberOfFrames") or 1,
        extended_offsets=offsets if all(offsets) else None,
    )
    wanted = set(frames)
    for frame, data in enumerate(fragments):
        if frame in wanted:
            if file.syntax != RLELossless and frame_size(data) not in (None, shape):
                raise UndecodableError
            wanted.remove(frame)
            yield frame, np.asarray(decode_frame(data, file.syntax, *shape, 1, bits, bits, "MONOCHROME2"))
        if not wanted:
            return
    raise UndecodableError
