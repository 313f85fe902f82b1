"""JSON files that describe a source, read within bounds."""

import json
from pathlib import Path
from typing import Any

from parametrium.errors import Code, CohortError

_LARGEST = 2**26  # bytes; a list of 10^5 volumes has 2^24


def read_document(path: Path, *, what: str) -> dict[str, Any]:
    """The object that a JSON file holds.

    Args:
        path: the file.
        what: public name of the file in error texts, as "the datalist".

    Raises:
        CohortError: PM201 absent, too large, not UTF-8, not JSON, or not an object.
    """
    try:
        with path.open("rb") as stream:
            content = stream.read(_LARGEST + 1)
        if len(content) > _LARGEST:
            raise ValueError("too large")
        document = json.loads(content.decode("utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise CohortError(
            Code.COHORT_UNREADABLE,
            f"{what} cannot be read; it must be a UTF-8 JSON file ({type(error).__name__})",
            site_detail=f"{path}: {error}",
        ) from error
    if not isinstance(document, dict):
        raise CohortError(Code.COHORT_UNREADABLE, f"{what} is not a JSON object", site_detail=str(path))
    return document
