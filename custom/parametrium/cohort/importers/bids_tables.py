"""The tables of a BIDS data set: whose age and sex is told, and on which day a session was."""

import math
import re
from collections.abc import Collection, Mapping, Sequence
from datetime import date
from pathlib import Path

from parametrium.cohort.importers.listing import Listing
from parametrium.cohort.importers.tables import storable
from parametrium.cohort.problem import Reason
from parametrium.cohort.table import Table, read_table
from parametrium.errors import Code, CohortError

_ALWAYS = ("age", "sex")
_OLDEST = 89  # an older patient is told from others by her age alone
_LONGEST_CELL = 40
_DATE = re.compile(r"\d{4}[-/.]\d{1,2}[-/.]\d{1,2}|\d{1,2}[-/.]\d{1,2}[-/.]\d{4}|\b(19|20)\d{6}\b")
_MISSING = ("", "n/a", "na", "nan")


def read_participants(folder: Path, subjects: Collection[str], wanted: Collection[str], listing: Listing) -> None:
    """Clinical cells from participants.tsv: age, sex and the wanted columns, and nothing else.

    An age above 89 becomes ``90+``. A cell that holds a date, or a sentence, is left out, whatever its column.

    Raises:
        CohortError: PM201 the table is unreadable; PM204 a wanted column is not in it or may not be taken.
    """
    path = folder / "participants.tsv"
    if not path.is_file():
        if wanted:
            raise CohortError(Code.COHORT_IMPORT, "--clinical: the source has no participants.tsv")
        return
    table = read_table(path, what="participants.tsv", required=("participant_id",))
    columns = _columns(table, wanted)
    refused = 0
    for _ in table.ragged:
        listing.leave_out("", "", Reason.BAD_ROW)
    for row in table.rows:
        subject = f"sub-{row['participant_id'].removeprefix('sub-')}"
        if subject not in subjects or subject in listing.clinical:
            known = subject in listing.clinical
            listing.leave_out(subject, "", Reason.DUPLICATE if known else Reason.CLINICAL_ROW_WITHOUT_PATIENT)
            continue
        given = {name: row[column] for column, name in columns.items() if row[column].lower() not in _MISSING}
        cells = {name: _age(cell) if name == "age" else _cell(cell) for name, cell in given.items()}
        listing.clinical[subject] = {name: cell for name, cell in cells.items() if cell}
        refused += len(cells) - len(listing.clinical[subject])
    if refused:
        listing.warnings.append(
            f"{refused} cells of participants.tsv were left out: a date, a long text, or an age that is no number"
        )


def session_dates(folder: Path, subject: str, sessions: Sequence[tuple[str, Path]], listing: Listing) -> list[date]:
    """Date of each session, from sessions.tsv or else the first of its scans.tsv; empty unless all are known.

    Args:
        folder: the subject's.
        subject: as ``sub-01``.
        sessions: labels as ``ses-1`` (empty where there are no sessions) and folders.
        listing: is told of an unreadable table.
    """
    told = {}
    for row in _rows(folder / f"{subject}_sessions.tsv", "session_id", subject, listing):
        told[f"ses-{row['session_id'].removeprefix('ses-')}"] = _date(row)
    dates = []
    for label, place in sessions:
        name = "_".join(word for word in (subject, label) if word)
        found = told.get(label) or min(
            filter(None, map(_date, _rows(place / f"{name}_scans.tsv", "filename", subject, listing))), default=None
        )
        if found is None:
            return []
        dates.append(found)
    return dates


def _columns(table: Table, wanted: Collection[str]) -> dict[str, str]:
    """Our name by column of the table."""
    names = {}
    for column in (*(column for column in _ALWAYS if column in table.columns), *(name.lower() for name in wanted)):
        name = re.sub(r"[^a-z0-9]+", "_", column).strip("_")
        if column not in table.columns:
            raise CohortError(
                Code.COHORT_IMPORT,
                f"--clinical {column}: participants.tsv has no such column",
                site_detail=", ".join(table.columns),
            )
        if column == "participant_id" or name == "patient" or not re.match(r"[a-z]", name):
            raise CohortError(Code.COHORT_IMPORT, f"--clinical {column}: this column may not be taken over")
        names[column] = name
    return names


def _age(cell: str) -> str:
    try:
        age = float(cell)
    except ValueError:
        return "90+" if re.fullmatch(r"(>\s*89|89\+|90\+|>=\s*90)", cell) else ""
    if not math.isfinite(age) or age < 0:
        return ""
    return "90+" if age > _OLDEST else cell


def _cell(cell: str) -> str:
    return cell if storable(cell) and len(cell) <= _LONGEST_CELL and not _DATE.search(cell) else ""


def _rows(path: Path, column: str, subject: str, listing: Listing) -> Sequence[Mapping[str, str]]:
    """Rows of a subject's own table; one odd table stops nobody."""
    if not path.is_file():
        return ()
    try:
        return read_table(path, what="a table of a subject", required=(column, "acq_time")).rows
    except CohortError:
        listing.leave_out(subject, "", Reason.BAD_ROW)
        return ()


def _date(row: Mapping[str, str]) -> date | None:
    try:
        return date.fromisoformat(row["acq_time"][:10])
    except ValueError:
        return None
