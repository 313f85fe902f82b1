"""Pseudonyms that a site can undo and nobody else can guess.

A plain hash of a hospital number is undone by trying all numbers; a keyed one needs the site's secret. The table from
subject to pseudonym lies beside the secret, never in the cohort.
"""

import hmac
import os
import secrets
import tempfile
from collections.abc import Mapping
from pathlib import Path

from parametrium.cohort.table import read_table, write_table
from parametrium.errors import Code, CohortError

_SECRET_BYTES = 32
_DIGITS = 12  # 48 bits: among 10^5 patients two share a pseudonym once in 10^4 hospitals


def site_secret(path: Path) -> bytes:
    """The site's secret, made on first use, readable by its owner only.

    Args:
        path: file of 64 hexadecimal digits.

    Raises:
        CohortError: PM204 the file cannot be read or made, is damaged, or others may read it.
    """
    try:
        if not path.exists():
            _create(path)
        if os.name == "posix" and path.stat().st_mode & 0o077:
            raise CohortError(
                Code.COHORT_IMPORT,
                "others may read the site's secret; make it private (chmod 600)",
                site_detail=str(path),
            )
        secret = bytes.fromhex(path.read_text(encoding="ascii").strip())
    except (OSError, ValueError) as error:
        raise _unusable(path, str(error)) from error
    if len(secret) != _SECRET_BYTES:
        raise _unusable(path, f"{len(secret)} bytes")
    return secret


def pseudonym(secret: bytes, subject: str) -> str:
    """``p`` and 12 hexadecimal digits of HMAC-SHA256; the same subject always gives the same."""
    return "p" + hmac.new(secret, subject.encode(), "sha256").hexdigest()[:_DIGITS]


def remember(secret_path: Path, pseudonyms: Mapping[str, str]) -> Path:
    """Adds subjects and their pseudonyms to the private key table beside the secret; returns its path."""
    path = secret_path.with_name(f"{secret_path.name}.patients.csv")
    merged: dict[str, str] = {}
    if path.exists():
        table = read_table(path, what="the table of pseudonyms", required=("subject", "pseudonym"))
        merged = {row["subject"]: row["pseudonym"] for row in table.rows}
    merged.update(pseudonyms)
    # The temporary file that becomes the table is made 0600 (mkstemp), so the table is never readable by others.
    write_table(
        path, ("subject", "pseudonym"), [{"subject": name, "pseudonym": merged[name]} for name in sorted(merged)]
    )
    return path


def _create(path: Path) -> None:
    """Makes the secret in one step: two processes that start together agree on the first."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="ascii") as stream:
            stream.write(secrets.token_hex(_SECRET_BYTES) + "\n")
        try:
            os.link(temporary, path)
        except FileExistsError:
            return
    finally:
        temporary.unlink(missing_ok=True)


def _unusable(path: Path, detail: str) -> CohortError:
    return CohortError(
        Code.COHORT_IMPORT,
        "the site's secret for pseudonyms cannot be read or made, or is damaged",
        site_detail=f"{path}: {detail}",
    )
