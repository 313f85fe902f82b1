"""A BIDS data set becomes a cohort table.

``sub-*/[ses-*/]`` with ``anat``, ``pet``, ``ct`` and ``dwi``; masks and label maps also from ``derivatives``. All runs
and variants of a modality are taken, each as a volume of its own. Studies are numbered, sessions' names may be dates.
Format: https://bids-specification.readthedocs.io
"""

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from parametrium.cohort.importers.bids_tables import read_participants, session_dates
from parametrium.cohort.importers.listing import Listing, Scan, Segmentation, entries_of, structure_name
from parametrium.cohort.importers.tables import ImportReport, Options, write_listing
from parametrium.cohort.problem import Reason
from parametrium.cohort.volume_file import stem_of

NAMES: Mapping[str, str] = {
    "T1w": "T1",
    "T1wce": "T1c",
    "T2w": "T2",
    "pet": "PET",
    "ct": "CT",
    "dwi": "DWI",
}
"""Modality by BIDS suffix; ``ce`` behind a suffix stands for a contrast agent (entity ``ce-``)."""

_DATATYPES = ("anat", "pet", "ct", "dwi")
_MASKS = ("mask", "dseg")
_UNWANTED = ("sbref", "defacemask")
_DERIVED_PARTS = ("phase", "real", "imag")
_WORD = re.compile(r"[A-Za-z0-9+]+")
_LABEL = re.compile(r"(sub|ses)-[A-Za-z0-9+]{1,64}")


@dataclass(frozen=True)
class _File:
    """A volume file's name, taken apart.

    Attributes:
        path: absolute.
        datatype: name of its folder.
        entities: as ``{"sub": "01", "run": "2"}``.
        suffix: last word of the name.
    """

    path: Path
    datatype: str
    entities: Mapping[str, str]
    suffix: str

    @property
    def name(self) -> str:
        """What it is called for ``rename`` and ``drop``."""
        return self.suffix + ("ce" if "ce" in self.entities else "")

    @property
    def structure(self) -> str:
        """What a mask shows: its label or description, where it is one word as BIDS wants it."""
        words = (self.entities.get(entity, "") for entity in ("label", "desc"))
        return structure_name(next(filter(_WORD.fullmatch, words), self.suffix))


def import_bids(
    source: Path,
    cohort: Path,
    *,
    secret: Path | None = None,
    rename: Mapping[str, str] | None = None,
    drop: Collection[str] = (),
    rescale: Mapping[str, tuple[float, float]] | None = None,
    vocabulary: Collection[str],
    copy: bool = False,
    clinical: Collection[str] = (),
) -> ImportReport:
    """Writes cohort.csv, masks.csv and clinical.csv for a BIDS data set; the same call twice writes the same bytes.

    Args:
        source: the data set's folder.
        cohort: folder to write the tables to, made where absent.
        secret: the site's secret for pseudonyms, made on first use; None puts it beside the cohort folder.
        rename: from a BIDS suffix (with ``ce`` behind it where an agent was given) to the cohort's modality.
        drop: such suffixes to leave out.
        rescale: slope and intercept by (cohort) modality: value = slope * stored + intercept.
        vocabulary: modality names that need no ``rename``.
        copy: give the cohort its own scrubbed NIfTI files.
        clinical: columns of participants.tsv to take over besides age and sex.

    Raises:
        CohortError: PM201 participants.tsv is unreadable; PM204 a suffix is unknown and neither renamed nor dropped, a
            clinical column does not exist, or nothing is left.
    """
    source = source.resolve()
    listing = Listing()
    subjects = list(_labelled(source, "sub", listing))
    studies: dict[tuple[str, str], str] = {}
    undated = sum(not _add_subject(folder, studies, listing) for folder in subjects)
    if undated:
        listing.warnings.append(
            f"{undated} patients have several sessions without dates; their days are the sessions' numbers"
        )
    for pipeline in _pipelines(source / "derivatives"):
        for folder in _labelled(pipeline, "sub", listing):
            _add_derivatives(folder, studies, listing)
    read_participants(source, {folder.name for folder in subjects}, clinical, listing)
    options = Options({**NAMES, **(rename or {})}, drop, rescale or {}, vocabulary, copy)
    return write_listing(listing, cohort, options, secret=secret)


def _add_subject(folder: Path, studies: dict[tuple[str, str], str], listing: Listing) -> bool:
    """Adds a subject's volumes; False where she has several sessions and not all have a date."""
    sessions = _sessions(folder, listing)
    dates = session_dates(folder, folder.name, sessions, listing)
    days = [(day - min(dates)).days for day in dates] or list(range(len(sessions)))
    ordered = sorted(zip(days, sessions, strict=True), key=lambda visit: visit[0])  # stable: else by name
    for number, (day, (label, place)) in enumerate(ordered, 1):
        study = studies[folder.name, label] = f"s{number}"
        for file in _files(place, folder.name, label, listing):
            _add_file(file, folder.name, study, day, listing)
    return bool(dates) or len(sessions) < 2


def _add_file(file: _File, subject: str, study: str, day: int, listing: Listing) -> None:
    if file.suffix in _MASKS:
        listing.masks.append(Segmentation(subject, study, file.structure, file.path))
    elif file.datatype not in _DATATYPES or file.suffix in _UNWANTED:
        listing.leave_out(subject, file.name, Reason.MODALITY_NOT_WANTED)
    elif file.entities.get("part") in _DERIVED_PARTS:
        listing.leave_out(subject, file.name, Reason.DERIVED)
    else:
        listing.scans.append(Scan(subject, study, file.name, file.path, day=day))


def _add_derivatives(folder: Path, studies: Mapping[tuple[str, str], str], listing: Listing) -> None:
    """Masks of a subject; what a pipeline made of her images is left out."""
    for label, place in _sessions(folder, listing):
        study = studies.get((folder.name, label))
        for file in _files(place, folder.name, label, listing):
            if file.suffix not in _MASKS:
                listing.leave_out(folder.name, file.name, Reason.DERIVED)
            elif study is None:
                listing.leave_out(folder.name, "mask", Reason.STRUCTURES_WITHOUT_IMAGE)
            else:
                listing.masks.append(Segmentation(folder.name, study, file.structure, file.path))


def _pipelines(derivatives: Path) -> list[Path]:
    """Folders that hold subjects: each pipeline's, or the derivatives' own."""
    return [derivatives, *(path for path in entries_of(derivatives) if path.is_dir() and not _is(path, "sub"))]


def _sessions(folder: Path, listing: Listing) -> list[tuple[str, Path]]:
    """Sessions by name, numbers by their value; the subject's own folder where it holds images itself."""
    sessions = [(path.name, path) for path in _labelled(folder, "ses", listing)]
    own = any(path.is_dir() and not path.name.startswith("ses-") for path in entries_of(folder))
    return [*([("", folder)] if own or not sessions else []), *sorted(sessions, key=lambda item: _natural(item[0]))]


def _natural(text: str) -> list[tuple[int, str]]:
    return [(int(word), "") if word.isdecimal() else (-1, word) for word in re.split(r"(\d+)", text)]


def _labelled(folder: Path, entity: str, listing: Listing) -> Iterator[Path]:
    """Subfolders ``sub-<label>`` or ``ses-<label>``, by name; one with a label that BIDS forbids is left out."""
    for path in entries_of(folder):
        if path.name.startswith(f"{entity}-") and path.is_dir():
            if _is(path, entity):
                yield path
            else:
                listing.leave_out("", "", Reason.BAD_ROW)


def _is(path: Path, entity: str) -> bool:
    return path.name.startswith(f"{entity}-") and _LABEL.fullmatch(path.name) is not None


def _files(place: Path, subject: str, session: str, listing: Listing) -> Iterator[_File]:
    """Volume files in the datatype folders of a session, by name; one that belongs to somebody else is left out."""
    own = {tuple(label.split("-")) for label in (subject, session) if label}
    for folder in entries_of(place):
        if not folder.is_dir() or folder.name.startswith("ses-"):
            continue
        for path in entries_of(folder):
            stem = stem_of(path.name)
            if stem is None or path.is_dir():
                continue
            *words, suffix = stem.split("_")
            entities = dict(word.partition("-")[::2] for word in words)
            if own <= set(entities.items()):
                yield _File(path, folder.name, entities, suffix)
            else:
                listing.leave_out(subject, "", Reason.BAD_ROW)
