"""Siemens mosaics: a volume's slices as tiles of one square picture.

The header places the picture as if it were one large slice with the tiles' centre; the first tile's corner follows
from the difference in size, and the tiles advance along the slice normal of Siemens' own (CSA) header.
"""

import math
import warnings
from dataclasses import replace
from typing import Any

from parametrium.cohort.dicom.elements import Elements, Tag, as_numbers, private_tags
from parametrium.cohort.dicom.facts import Facts, Slice, Vector
from parametrium.cohort.dicom.planes import Traits

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # nibabel calls its own DICOM readers experimental; only its parser is used
    from nibabel.nicom import csareader

MOSAIC_TAGS: tuple[Tag, ...] = (
    "SpacingBetweenSlices",
    "SliceThickness",
    *private_tags(0x0019, 0x0A),
    *private_tags(0x0029, 0x10),
)

_MAXIMUM_TILES = 4096


def is_mosaic(facts: Facts, elements: Elements) -> bool:
    """Whether the file's one picture is a mosaic."""
    return "MOSAIC" in facts.image_type and _csa_or_count(elements) is not None


def mosaic_planes(picture: Slice, traits: Traits, elements: Elements) -> list[tuple[Slice, Traits]]:
    """One plane a tile: ``frame`` is the tile's number, row by row from the upper left.

    Args:
        picture: the whole picture as if it were a slice.
        traits: of the picture.
        elements: the header.

    Returns:
        The tiles, or nothing where their number or distance is not known.
    """
    found = _csa_or_count(elements)
    step = elements.number("SpacingBetweenSlices") or elements.number("SliceThickness")
    if found is None or step is None or step <= 0:
        return []
    tiles, normal = found
    side = math.ceil(math.sqrt(tiles))
    rows, columns = picture.shape[0] // side, picture.shape[1] // side
    if not 1 <= tiles <= _MAXIMUM_TILES or rows < 1 or columns < 1:
        return []
    across = picture.spacing[1] * (picture.shape[1] - columns) / 2
    down = picture.spacing[0] * (picture.shape[0] - rows) / 2
    normal = normal or _cross(picture.row, picture.column)
    corner = _moved(_moved(picture.position, picture.row, across), picture.column, down)
    return [
        (replace(picture, frame=tile, position=_moved(corner, normal, tile * step), shape=(rows, columns)), traits)
        for tile in range(tiles)
    ]


def _csa_or_count(elements: Elements) -> tuple[int, Vector | None] | None:
    """Number of tiles and the slice normal, if they are told."""
    csa = _csa(elements)
    count = elements.private_numbers(0x0019, "SIEMENS MR HEADER", 0x0A) or as_numbers(
        csa.get("NumberOfImagesInMosaic", [])[:1]
    )
    if not count:
        return None
    normal = as_numbers(csa.get("SliceNormalVector", []))
    return int(count[0]), (normal[0], normal[1], normal[2]) if len(normal) == 3 else None


def _csa(elements: Elements) -> dict[str, list[Any]]:
    tag = elements.private(0x0029, "SIEMENS CSA HEADER", 0x10)
    try:
        tags = csareader.read(elements.octets(tag))["tags"] if tag else {}
        return {
            name: list(tags[name]["items"]) for name in ("NumberOfImagesInMosaic", "SliceNormalVector") if name in tags
        }
    except Exception:  # a damaged header makes the parser raise nearly anything
        return {}


def _cross(a: Vector, b: Vector) -> Vector:
    return (a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0])


def _moved(point: Vector, direction: Vector, distance: float) -> Vector:
    x, y, z = (p + d * distance for p, d in zip(point, direction, strict=True))
    return (x, y, z)
