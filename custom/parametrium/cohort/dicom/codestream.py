"""The size that a compressed frame itself claims, read before a decoder reserves memory for it."""

import struct

_SIZE_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC} | {0xF7}  # SOF0-15 of JPEG, SOF55 of JPEG-LS
_ALONE = frozenset(range(0xD0, 0xDA)) | {0x01}  # markers without a length


def frame_size(data: bytes) -> tuple[int, int] | None:
    """Rows and columns that a JPEG, JPEG-LS, JPEG 2000 or HTJ2K frame claims; None where it claims none."""
    if data[:2] == b"\xff\xd8":
        return _jpeg(data)
    start = data.find(b"\xff\x4f\xff\x51")  # SOC and SIZ; before them a JP2 file may have its boxes
    if start < 0 or len(data) < start + 24:
        return None
    columns, rows, left, top = struct.unpack(">4L", data[start + 8 : start + 24])
    return rows - top, columns - left


def _jpeg(data: bytes) -> tuple[int, int] | None:
    place = 2
    while place + 9 <= len(data):
        if data[place] != 0xFF:
            return None
        marker = data[place + 1]
        if marker == 0xFF:
            place += 1
        elif marker in _ALONE:
            place += 2
        elif marker in _SIZE_MARKERS:
            rows, columns = struct.unpack(">HH", data[place + 5 : place + 9])
            return rows, columns
        else:
            place += 2 + struct.unpack(">H", data[place + 2 : place + 4])[0]
    return None
