"""A word that must stay where it was planted, and the search for it in whatever a program wrote."""

import base64
import gzip
import io
import re
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

SENTINEL = "QuixotryZephyrSentinel"
"""Letters only: it survives in file names, codes and headers alike."""

_BASE64 = re.compile(rb"[A-Za-z0-9+/]{200,}={0,2}")


def spellings(text: str) -> list[bytes]:
    """A text as it could stand in a file: utf-8, utf-16 in both orders, base64 at its three alignments, hexadecimal."""
    found = [text.encode(), text.encode("utf-16-le"), text.encode("utf-16-be"), text.encode().hex().encode()]
    for offset in range(3):
        raw = b"\0" * offset + text.encode()
        inner = base64.b64encode(raw[: len(raw) // 3 * 3])
        found.append(inner[4:] if offset else inner)
    return found


def leaks(*places: Path, words: tuple[str, ...] = (SENTINEL,)) -> list[str]:
    """Files below the places that hold a word, in their names or in what they say.

    Archives, compressed files and base64 are looked into.
    """
    needles = [needle.lower() for word in words for needle in spellings(word)]
    found = []
    for place in places:
        for name, content in contents(place):
            small, said = name.lower().encode("utf-8", "surrogateescape"), content.lower()
            if any(needle in small or needle in said for needle in needles):
                found.append(name)
    return found


def contents(place: Path) -> Iterator[tuple[str, bytes]]:
    """Names and bytes of a file or of all below a folder, and of what is packed in them."""
    assert place.exists(), place
    for path in [place] if place.is_file() else sorted(place.rglob("*")):
        name = str(path.relative_to(place)) if path != place else path.name
        content = path.read_bytes() if path.is_file() else b""
        yield name, content
        yield from _packed(name, content)
        if path.suffix in (".js", ".html"):
            for blob in _BASE64.findall(content):
                decoded = base64.b64decode(blob[: len(blob) // 4 * 4])
                yield f"{name}/base64", decoded
                yield from _packed(f"{name}/base64", decoded)


def _packed(name: str, content: bytes) -> Iterator[tuple[str, bytes]]:
    if content[:4] == b"PK\x03\x04":
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            yield from ((f"{name}/{member}", archive.read(member)) for member in archive.namelist())
    if content[:3] == b"\x1f\x8b\x08":
        try:
            yield f"{name}/unpacked", gzip.decompress(content)
        except (OSError, EOFError, zlib.error):  # cut off; what there is was searched as it is
            return
