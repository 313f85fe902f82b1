"""A MONAI datalist becomes a cohort table.

A JSON file with lists ``training``, ``validation`` and ``test`` (or ``testing``) of objects with ``image`` (one path,
a list of paths by channel, or an object of paths by modality), and optionally ``label`` and ``fold``. Relative paths
count from the file's own folder and may not leave it; an absolute path is the hospital's own and is taken as it is.
Format: https://docs.monai.io/en/stable/data.html#decathlon-datalist
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from parametrium.cohort.importers.document import read_document
from parametrium.cohort.importers.listing import Listing, Scan, Segmentation, structure_name
from parametrium.cohort.importers.recognise import LISTS, datalists_in
from parametrium.cohort.importers.tables import ImportReport, Options, storable, write_listing
from parametrium.cohort.problem import Reason
from parametrium.cohort.volume_file import stem_of
from parametrium.errors import Code, CohortError


@dataclass(frozen=True)
class _Reading:
    """How entries are read.

    Attributes:
        folder: that relative paths count from.
        keys: names besides image that hold a path of a modality.
        patient: key that names the patient; None makes every entry a patient of its own.
        fold: entries of this fold are held out.
    """

    folder: Path
    keys: Collection[str]
    patient: str | None
    fold: int | None


def import_datalist(
    source: Path,
    cohort: Path,
    *,
    secret: Path | None = None,
    rename: Mapping[str, str] | None = None,
    drop: Collection[str] = (),
    rescale: Mapping[str, tuple[float, float]] | None = None,
    vocabulary: Collection[str],
    copy: bool = False,
    patient: str | None = None,
    fold: int | None = None,
) -> ImportReport:
    """Writes cohort.csv and masks.csv for a MONAI datalist; the same call twice writes the same bytes.

    Args:
        source: the JSON file, or a folder that holds one datalist.
        cohort: folder to write the tables to, made where absent.
        secret: the site's secret for pseudonyms, made on first use; None puts it beside the cohort folder.
        rename: from ``image``, a channel's number (from 0) or an object's key to the cohort's modality.
        drop: such keys or numbers to leave out.
        rescale: slope and intercept by (cohort) modality: value = slope * stored + intercept.
        vocabulary: modality names that need no ``rename``.
        copy: give the cohort its own scrubbed NIfTI files.
        patient: key of an entry that names its patient; entries of one patient become her studies, in the list's order.
        fold: hold out the entries whose ``fold`` is this.

    Raises:
        CohortError: PM201 the file is unreadable; PM204 the folder does not hold exactly one datalist, no entry has
            the wanted key, a modality is unknown and neither renamed nor dropped, or nothing is left.
    """
    file = _file(source.resolve())
    document = read_document(file, what="the datalist")
    options = Options(rename or {}, drop, rescale or {}, vocabulary, copy)
    keys = {*options.rename, *options.drop, *vocabulary} - {"image", "label", "fold"}
    listing = _listing(document, _Reading(file.parent, keys, patient, fold))
    return write_listing(listing, cohort, options, secret=secret)


def _file(source: Path) -> Path:
    if not source.is_dir():
        return source
    files = datalists_in(source)
    if len(files) != 1:
        raise CohortError(
            Code.COHORT_IMPORT,
            f"the source holds {len(files)} datalists and must hold one; give the JSON file itself",
            site_detail=", ".join(map(str, files)),
        )
    return files[0]


def _listing(document: Mapping[str, Any], reading: _Reading) -> Listing:
    listing = Listing()
    visits: dict[str, int] = {}
    entries = list(_entries(document, listing))
    if reading.patient is not None and not any(reading.patient in entry for entry, _ in entries):
        raise CohortError(Code.COHORT_IMPORT, f"no entry of the datalist has the key {reading.patient}")
    for entry, split in entries:
        images = list(_images(entry, reading))
        subject = _subject(entry, images, reading)
        if not images or not storable(subject):
            listing.leave_out("", "", Reason.BAD_ROW)
            continue
        if reading.patient is None and subject in visits:
            listing.leave_out(subject, "", Reason.DUPLICATE)
            continue
        visits[subject] = visits.get(subject, 0) + 1
        held_out = reading.fold is not None and entry.get("fold") == reading.fold
        _add_entry(entry, images, subject, visits[subject], "test" if held_out else split, reading, listing)
    _warn(visits, reading, listing)
    return listing


def _add_entry(
    entry: Mapping[str, Any],
    images: Collection[tuple[str, Any]],
    subject: str,
    visit: int,
    split: str,
    reading: _Reading,
    listing: Listing,
) -> None:
    study = f"s{visit}"
    for name, value in images:
        path = _path(value, reading.folder)
        if path is None:
            listing.leave_out(subject, name, Reason.BAD_ROW)
        else:
            listing.scans.append(Scan(subject, study, name, path, day=visit - 1, split=split))
    for structure, value in _labels(entry.get("label")):
        path = _path(value, reading.folder)
        if path is None:
            listing.leave_out(subject, "mask", Reason.BAD_ROW)
        else:
            listing.masks.append(Segmentation(subject, study, structure, path))


def _entries(document: Mapping[str, Any], listing: Listing) -> Iterator[tuple[Mapping[str, Any], str]]:
    """Entries and their split; one of the test lists may be a bare path."""
    for name, split in LISTS.items():
        values = document.get(name, [])
        for value in values if isinstance(values, list) else [None]:
            if isinstance(value, dict):
                yield value, split
            elif isinstance(value, str):
                yield {"image": value}, split
            else:
                listing.leave_out("", "", Reason.BAD_ROW)


def _images(entry: Mapping[str, Any], reading: _Reading) -> Iterator[tuple[str, Any]]:
    """What an entry calls its modalities, and what stands for their paths."""
    image = entry.get("image")
    if isinstance(image, dict):
        yield from image.items()
    elif isinstance(image, list):
        yield from ((str(number), value) for number, value in enumerate(image))
    elif image is not None:
        yield "image", image
    yield from ((key, value) for key, value in entry.items() if key in reading.keys and isinstance(value, str))


def _labels(label: Any) -> Iterator[tuple[str, Any]]:
    """Structures and paths; a label that is a number is a class of the patient and no mask."""
    if isinstance(label, dict):
        yield from ((structure_name(name), value) for name, value in label.items())
    elif isinstance(label, list):
        yield from (("mask", value) for value in label if isinstance(value, str))
    elif isinstance(label, str):
        yield "mask", label


def _subject(entry: Mapping[str, Any], images: Collection[tuple[str, Any]], reading: _Reading) -> str:
    """The patient's name, or for want of one the first image's path, which stays the same as the list grows."""
    if reading.patient is not None:
        name = entry.get(reading.patient)
        return str(name).strip() if isinstance(name, str | int) and not isinstance(name, bool) else ""
    return next((Path(value).as_posix().strip() for _, value in images if isinstance(value, str)), "")


def _path(value: Any, folder: Path) -> Path | None:
    """Where a volume lies; None for what is no path of a volume, or a relative one that leaves the folder."""
    if not isinstance(value, str) or "\0" in value or stem_of(Path(value).name) is None:
        return None
    if Path(value).is_absolute():
        return Path(value)
    return None if ".." in Path(value).parts else folder / value


def _warn(visits: Mapping[str, int], reading: _Reading, listing: Listing) -> None:
    if reading.patient is None:
        listing.warnings.append(
            "every entry was taken as a patient of its own; where a patient has several, tell with --patient-key KEY "
            "which key of an entry names her"
        )
    elif any(count > 1 for count in visits.values()):
        listing.warnings.append(
            "the days of patients with several entries are their numbers in the list, for want of dates"
        )
