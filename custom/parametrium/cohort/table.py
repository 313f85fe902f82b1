"""Reading and writing a cohort's tables as hospitals really have them.

Excel writes a byte-order mark, semicolons and trailing blanks; people leave ragged lines. All of it is read; what
cannot be understood is reported by line, and only a table that cannot be read at all stops.
"""

import csv
import io
import os
import tempfile
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from parametrium.errors import Code, CohortError

_DELIMITERS = ",;\t"


@dataclass(frozen=True)
class Table:
    """A table as text.

    Attributes:
        columns: names of the columns, lower case.
        rows: one mapping a good line, blank lines left out; cells are stripped.
        ragged: for each line with too few or too many cells, the cells that could be named.
    """

    columns: tuple[str, ...]
    rows: tuple[Mapping[str, str], ...]
    ragged: tuple[Mapping[str, str], ...]


def read_table(path: Path, *, what: str, required: Collection[str], remedy: str = "") -> Table:
    """Reads a CSV table, comma, semicolon or tab separated, UTF-8 with or without byte-order mark.

    Args:
        path: the file.
        what: public name of the table in error texts, as "the clinical table".
        required: columns that must be there.
        remedy: what to do where the file is absent.

    Raises:
        CohortError: PM201 absent, not UTF-8, not CSV, a required column is missing or a column stands twice.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        delimiter = max(_DELIMITERS, key=text.partition("\n")[0].count)
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        cells = [[cell.strip() for cell in row] for row in reader]
    except (FileNotFoundError, NotADirectoryError) as error:
        told = f"{what} is not there" + (f"; {remedy}" if remedy else "")
        raise CohortError(Code.COHORT_UNREADABLE, told, site_detail=str(path)) from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise CohortError(
            Code.COHORT_UNREADABLE,
            f"{what} cannot be read; it must be a UTF-8 CSV file ({type(error).__name__})",
            site_detail=f"{path}: {error}",
        ) from error
    columns = tuple(cell.lower() for cell in _without_empty_tail(cells[0])) if cells else ()
    missing = sorted(set(required) - set(columns))
    if missing:
        raise CohortError(
            Code.COHORT_UNREADABLE, f"{what} has no column {', '.join(missing)}", site_detail=f"{path}: {columns}"
        )
    if len(set(columns)) != len(columns):
        raise CohortError(
            Code.COHORT_UNREADABLE, f"{what} has two columns of the same name", site_detail=f"{path}: {columns}"
        )
    return _split(columns, cells[1:])


def _split(columns: tuple[str, ...], lines: Iterable[list[str]]) -> Table:
    rows: list[Mapping[str, str]] = []
    ragged: list[Mapping[str, str]] = []
    for line in lines:
        if not any(line):
            continue
        surplus = len(line) > len(columns) and any(line[len(columns) :])
        good = len(line) >= len(columns) and not surplus
        (rows if good else ragged).append(dict(zip(columns, line, strict=False)))
    return Table(columns, tuple(rows), tuple(ragged))


def _without_empty_tail(cells: Sequence[str]) -> Sequence[str]:
    end = len(cells)
    while end and not cells[end - 1]:
        end -= 1
    return cells[:end]


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, str]]) -> None:
    """Writes a CSV table in one step, so that a reader sees the old table or the new one; missing cells are empty."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="") as stream:
            writer = csv.DictWriter(stream, columns, restval="", lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
