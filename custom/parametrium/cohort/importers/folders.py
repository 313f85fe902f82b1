"""A folder per patient with one volume file a modality, beside ``subjects.csv``, becomes a cohort table.

``subjects.csv`` has a column ``subject`` (the folder's name) and optionally site, split, modalities (names joined by
semicolons), mask (file name), labels, label and label_name. Unless copies are asked for, the table points to the files.
"""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

from parametrium.cohort.importers.listing import Listing, Scan, Segmentation, entries_of
from parametrium.cohort.importers.tables import SPLITS, ImportReport, Options, write_listing
from parametrium.cohort.problem import Reason
from parametrium.cohort.table import Table, read_table
from parametrium.cohort.volume_file import SUFFIXES, is_present, stem_of
from parametrium.errors import Code, CohortError

__all__ = ["ImportReport", "import_folders"]

_STUDY = "baseline"  # the form knows one visit


def import_folders(
    source: Path,
    cohort: Path,
    *,
    site: str | None = None,
    rename: Mapping[str, str] | None = None,
    drop: Collection[str] = (),
    rescale: Mapping[str, tuple[float, float]] | None = None,
    secret: Path | None = None,
    vocabulary: Collection[str],
    copy: bool = False,
) -> ImportReport:
    """Writes cohort.csv, masks.csv and clinical.csv for a source folder; the same call twice writes the same bytes.

    Args:
        source: folder with subjects.csv and a folder a subject.
        cohort: folder to write the tables to, made where absent.
        site: take only subjects whose column ``site`` holds this.
        rename: from a file's modality name to the cohort's.
        drop: file modality names to leave out.
        rescale: slope and intercept by (cohort) modality: value = slope * stored + intercept.
        secret: the site's secret for pseudonyms, made on first use; None puts it beside the cohort folder.
        vocabulary: modality names that need no ``rename``.
        copy: give the cohort its own scrubbed NIfTI files.

    Raises:
        CohortError: PM201 subjects.csv is unreadable; PM204 a modality is unknown and neither renamed nor dropped, no
            subject is of the site, or nothing is left.
    """
    source = source.resolve()
    table = read_table(source / "subjects.csv", what="the subject table", required=("subject",))
    listing = _listing(source, table, _of_site(table, site))
    options = Options(rename or {}, drop, rescale or {}, vocabulary, copy)
    return write_listing(listing, cohort, options, secret=secret)


def _of_site(table: Table, site: str | None) -> Sequence[Mapping[str, str]]:
    if site is None:
        return table.rows
    if "site" not in table.columns:
        raise CohortError(Code.COHORT_IMPORT, "the subject table has no column site to choose by")
    rows = [row for row in table.rows if row["site"] == site]
    if not rows:
        known = ", ".join(sorted({row["site"] for row in table.rows}))
        raise CohortError(
            Code.COHORT_IMPORT, "the subject table has no subject of the wanted site", site_detail=f"sites: {known}"
        )
    return rows


def _listing(source: Path, table: Table, rows: Sequence[Mapping[str, str]]) -> Listing:
    listing = Listing()
    for _ in table.ragged:
        listing.leave_out("", "", Reason.BAD_ROW)
    for row in _sound(rows, listing):
        _add_subject(source / row["subject"], row, listing)
    named = {row["subject"] for row in table.rows}  # whatever the site
    for name in (path.name for path in entries_of(source) if path.is_dir()):
        if name not in named:
            listing.leave_out(name, "", Reason.FOLDER_WITHOUT_ROW)
    return listing


def _sound(rows: Sequence[Mapping[str, str]], listing: Listing) -> Iterator[Mapping[str, str]]:
    """Rows that name a folder, once, and a split that exists."""
    seen: set[str] = set()
    for row in rows:
        subject = row["subject"]
        reason = None
        if not _is_folder_name(subject) or row.get("split", "") not in SPLITS:
            reason = Reason.BAD_ROW
        elif subject in seen:
            reason = Reason.DUPLICATE
        if reason is not None:
            listing.leave_out(subject, "", reason)
            continue
        seen.add(subject)
        yield row


def _is_folder_name(subject: str) -> bool:
    return bool(subject) and subject != ".." and Path(subject).name == subject and len(subject.encode()) < 256


def _add_subject(folder: Path, row: Mapping[str, str], listing: Listing) -> None:
    subject = row["subject"]
    if not folder.is_dir():
        listing.leave_out(subject, "", Reason.MISSING_FOLDER)
        return
    for name in _modalities(folder, row):
        listing.scans.append(Scan(subject, _STUDY, name, _image(folder, name), split=row.get("split", "")))
    mask = row.get("mask", "")
    if mask:
        if Path(mask).name == mask and is_present(folder / mask):
            structure = row.get("labels", "") or "mask"
            listing.masks.append(Segmentation(subject, _STUDY, structure, folder / mask))
        else:
            listing.leave_out(subject, "mask", Reason.MISSING_FILE)
    listing.clinical[subject] = _clinical(row)


def _modalities(folder: Path, row: Mapping[str, str]) -> list[str]:
    """Names of a subject's modalities: from the table, or else from the files other than the mask."""
    if row.get("modalities"):
        return [name.strip() for name in row["modalities"].split(";") if name.strip()]
    stems = (stem_of(path.name) for path in entries_of(folder) if path.name != row.get("mask"))
    return list(dict.fromkeys(stem.partition(".")[0] for stem in stems if stem))


def _image(folder: Path, name: str) -> Path:
    """The file of a modality, in its own folder whatever the name says; one that does not exist where there is none."""
    files = [folder / f"{name}{suffix}" for suffix in SUFFIXES]
    inside = [path for path in files if path.parent == folder and "\0" not in name]
    return next((path for path in inside if is_present(path)), folder / "absent")


def _clinical(row: Mapping[str, str]) -> dict[str, str]:
    """The clinical cell from ``label``, named and translated by ``label_name``, as ``grade(1=G2,2=G3)``.

    No other column is taken over: a subject table may hold names and dates of birth.
    """
    label = row.get("label", "")
    name, _, levels = row.get("label_name", "").partition("(")
    column = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
    if not label or not re.match(r"[a-z]", column):
        return {}
    pairs = (level.partition("=") for level in levels.rstrip(")").split(","))
    words = {key.strip(): word.strip() for key, _, word in pairs}
    return {column: words.get(label, label)}
