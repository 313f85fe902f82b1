"""The pictures that a site drew, or the sites of one machine, as data URIs for a page that stays there."""

import base64
import io
from dataclasses import dataclass
from pathlib import Path

from parametrium.report.embedding import draw_map, load_points
from parametrium.report.pictures import ABOUT

MOST_SITES = 12
MOST_PICTURES = 2 * len(ABOUT)
"""Of a site: all of ours, and as many of objectives that were added."""
MOST_BYTES = 8 * 2**20
_ORDER = {name: place for place, name in enumerate(ABOUT)}
_SIGNATURE = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Picture:
    """One picture: title, how to read it, and its content as a data URI."""

    title: str
    text: str
    uri: str


@dataclass(frozen=True)
class Group:
    """The pictures of one site, or of all."""

    title: str
    pictures: list[Picture]


def collect_pictures(run: Path) -> list[Group]:
    """Every PNG of RUN/sites/<site>/pictures, after a map of all sites' features with common components.

    A file that is a link, no PNG or larger than ``MOST_BYTES`` is passed over.
    """
    folders = sorted(path for path in run.glob("sites/*/pictures") if path.is_dir() and not path.is_symlink())
    groups = []
    for folder in folders[:MOST_SITES]:
        if found := pictures_of(folder):
            groups.append(Group(f"Site {folder.parent.name}", found))
    if len(folders) > MOST_SITES:
        groups.append(Group(f"{len(folders) - MOST_SITES} further sites have pictures that are not shown", []))
    common = _common_map(folders[:MOST_SITES])
    return [Group("All sites", [common]), *groups] if common else groups


def pictures_of(folder: Path) -> list[Picture]:
    """The PNGs of one site's folder of pictures, those of ``ABOUT`` first and in its order."""
    paths = sorted(folder.glob("*.png"), key=lambda path: (_ORDER.get(path.stem, len(_ORDER)), path.name))
    return [picture for path in paths[:MOST_PICTURES] if (picture := _picture(path))]


def _picture(path: Path) -> Picture | None:
    if path.is_symlink() or path.stat().st_size > MOST_BYTES:
        return None
    content = path.read_bytes()
    if not content.startswith(_SIGNATURE):
        return None
    title, text = ABOUT.get(path.stem, (path.stem.replace("_", " "), ""))
    return Picture(title, text, _uri(content))


def _common_map(folders: list[Path]) -> Picture | None:
    """Only where two sites or more have features of the same length: one site has its own map already."""
    by_site = [load_points(folder / "embeddings.json", folder.parent.name) for folder in folders]
    points = [point for own in by_site for point in own]
    if sum(bool(own) for own in by_site) < 2 or len({len(point.vector) for point in points}) != 1:
        return None
    content = io.BytesIO()
    draw_map(content, points, ("site", "patient"))
    text = (
        "Two principal components of the pooled features of all sites' held-out patients, each modality centred by "
        "itself. Left: sites that lie apart look different to the encoder. Right: a line joins the modalities of a "
        "patient."
    )
    return Picture("Features by site and by patient", text, _uri(content.getvalue()))


def _uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()
