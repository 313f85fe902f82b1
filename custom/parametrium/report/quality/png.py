"""Small grey pictures with coloured outlines as PNG, in a palette: a third of the bytes of a picture in full colour."""

import struct
import zlib

import numpy as np
from numpy.typing import NDArray

GREYS = 64
"""Grey levels; indices from GREYS on are the colours."""

COLOURS = ((255, 176, 0), (0, 190, 255))
"""Outlines: amber and blue, apart for the colour-blind."""

_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def encode_png(picture: NDArray[np.uint8]) -> bytes:
    """A PNG.

    Args:
        picture: [rows, columns]; 0 black to GREYS - 1 white, GREYS + n for ``COLOURS[n]``.
    """
    rows, columns = picture.shape
    palette = [(grey * 255 // (GREYS - 1),) * 3 for grey in range(GREYS)] + list(COLOURS)
    lines = np.concatenate([np.zeros((rows, 1), np.uint8), picture], axis=1)  # each line begins with its filter, none
    header = struct.pack(">IIBBBBB", columns, rows, 8, 3, 0, 0, 0)  # 8 bits, palette
    parts = ((b"IHDR", header), (b"PLTE", bytes(sum(palette, ()))), (b"IDAT", zlib.compress(lines.tobytes(), 6)))
    return _SIGNATURE + b"".join(_chunk(name, content) for name, content in (*parts, (b"IEND", b"")))


def _chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
