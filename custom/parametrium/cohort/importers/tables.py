"""From what a source holds to the tables of a cohort, pseudonymous, and on demand with copies of its volumes."""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np

from parametrium.cohort.deidentify import pseudonym, remember, site_secret
from parametrium.cohort.header import geometry_problem
from parametrium.cohort.importers.advice import advice
from parametrium.cohort.importers.copies import copy_volumes
from parametrium.cohort.importers.listing import LeftOut, Listing, Scan, Segmentation
from parametrium.cohort.manifest import COHORT_COLUMNS, MASK_COLUMNS
from parametrium.cohort.problem import Problem, Reason
from parametrium.cohort.table import write_table
from parametrium.cohort.volume_file import Geometry, VolumeFileError, is_present, open_geometry
from parametrium.errors import Code, CohortError

SPLITS = ("", "train", "test")
"""What a table may say of who is held out; nothing leaves it to the job."""

_MODALITY = re.compile(r"[A-Za-z][A-Za-z0-9]{0,15}")
_CHANNEL = re.compile(r"[0-9]{1,3}")
_STORABLE = re.compile(r"[^\x00-\x1f\x7f\ud800-\udfff]{1,4096}")  # what a table in UTF-8 holds, one line a row
_SAME_GRID_MM = 0.05
_HEADER_THREADS = 8  # headers are small reads: on network storage, latency is all there is

_Rows = list[dict[str, str]]
_Grids = dict[tuple[str, str], list[tuple[Geometry, str]]]
"""Grids and the names of their frames, by subject and study."""


@dataclass(frozen=True)
class Options:
    """What the site asked of an import.

    Attributes:
        rename: from a source's modality name to the cohort's.
        drop: source modality names to leave out.
        rescale: slope and intercept by (cohort) modality: value = slope * stored + intercept.
        vocabulary: modality names that need no ``rename``.
        copy: whether the cohort gets its own scrubbed NIfTI files.
    """

    rename: Mapping[str, str]
    drop: Collection[str]
    rescale: Mapping[str, tuple[float, float]]
    vocabulary: Collection[str]
    copy: bool = False


@dataclass(frozen=True)
class ImportReport:
    """What was taken, and what was not.

    Attributes:
        patients: subjects with at least one volume.
        volumes: number of volumes by modality.
        masks: number of masks.
        problems: by pseudonym; for the site's eyes.
        warnings: sentences with a remedy.
    """

    patients: int
    volumes: Mapping[str, int]
    masks: int
    problems: tuple[Problem, ...]
    warnings: tuple[str, ...]

    def summary(self) -> dict[str, int]:
        """Counts without any name of a patient."""
        counts = {"patients": self.patients} | dict(self.volumes) | {"masks": self.masks}
        reasons = Counter(problem.reason.value for problem in self.problems)
        return counts | {f"left out: {reason}": count for reason, count in sorted(reasons.items())}


@dataclass
class _Tables:
    cohort: _Rows
    masks: _Rows
    clinical: _Rows
    problems: list[Problem]


def write_listing(listing: Listing, cohort: Path, options: Options, *, secret: Path | None) -> ImportReport:
    """Writes cohort.csv, masks.csv and clinical.csv; the same listing twice writes the same bytes.

    Volumes of one study on one grid share a frame: they were put there. Others are not known to be registered. A mask
    is taken where a volume of its study lies on its grid.

    Args:
        listing: what the source holds.
        cohort: folder to write to, made where absent.
        options: what the site asked for.
        secret: the site's secret for pseudonyms, made on first use; None puts it beside the cohort folder.

    Raises:
        CohortError: PM204 a modality is unknown and neither renamed nor dropped, nothing is left to take, the folder
            holds a cohort made of DICOM, or it cannot be written.
    """
    if (cohort / ".import").exists():
        raise CohortError(
            Code.COHORT_IMPORT,
            "the cohort folder holds a cohort made of DICOM, whose tables would be lost; choose another folder",
            site_detail=str(cohort),
        )
    refuse_unknown((scan.name for scan in listing.scans), options)
    secret_path = secret or cohort.absolute().with_name(f"{cohort.absolute().name}.secret")
    key = site_secret(secret_path)
    names = {subject: pseudonym(key, subject) for subject in _subjects(listing)}
    tables = _fill(listing, names, options)
    warnings = (*listing.warnings, *advice(tables.cohort, rescaled=options.rescale))
    if options.copy:
        tables.cohort = copy_volumes(cohort, tables.cohort, tables.problems)
        tables.masks = copy_volumes(cohort, tables.masks, tables.problems)
    if not tables.cohort:
        raise CohortError(Code.COHORT_IMPORT, f"the source holds no volume to import{_told(tables.problems)}")
    _write(cohort, tables)
    remember(secret_path, names)
    return ImportReport(
        patients=len({row["patient"] for row in tables.cohort}),
        volumes=Counter(row["modality"] for row in tables.cohort),
        masks=len(tables.masks),
        problems=tuple(tables.problems),
        warnings=warnings,
    )


def refuse_unknown(found: Iterable[str], options: Options) -> None:
    """Names every modality that is neither in the vocabulary nor renamed nor dropped.

    Raises:
        CohortError: PM204 there is one, or a new name is not one that a modality may have.
    """
    unknown = sorted(set(found) - set(options.vocabulary) - set(options.rename) - set(options.drop))
    malformed = [name for name in options.rename.values() if not _MODALITY.fullmatch(name)]
    if malformed:
        raise CohortError(
            Code.COHORT_IMPORT,
            "a modality must be renamed to a letter and up to 15 further letters or digits",
            site_detail=", ".join(malformed),
        )
    if unknown:
        # Only what looks like a modality is repeated: anything else in that place may be a file or a patient.
        known = [name for name in unknown if _MODALITY.fullmatch(name) or _CHANNEL.fullmatch(name)]
        shown = known + ["(a name that no modality has)"] * (len(unknown) > len(known))
        example = known[0] if known else "NAME"
        raise CohortError(
            Code.COHORT_IMPORT,
            f"not a modality: {', '.join(shown)}; known are {', '.join(options.vocabulary)}. "
            f"Leave it out with --drop {example} or give it a name with --rename {example}=MODALITY",
            site_detail=", ".join(map(repr, unknown)),
        )


def _subjects(listing: Listing) -> list[str]:
    """Subjects that a table can hold, each once, in order."""
    named = (*(scan.subject for scan in listing.scans), *(item.subject for item in listing.left_out))
    return [subject for subject in dict.fromkeys(named) if storable(subject)]


def storable(text: str) -> bool:
    """Whether a name can stand in a table and come back as it was."""
    return bool(_STORABLE.fullmatch(text)) and text == text.strip()


def _fill(listing: Listing, names: Mapping[str, str], options: Options) -> _Tables:
    tables = _Tables([], [], [], [_problem(item, names, options) for item in listing.left_out])
    grids = _add_scans([scan for scan in listing.scans if scan.name not in options.drop], names, options, tables)
    _add_masks(listing.masks, names, grids, tables)
    taken = {row["patient"] for row in tables.cohort}
    clinical = ((names.get(subject, ""), cells) for subject, cells in listing.clinical.items())
    tables.clinical.extend({"patient": patient} | cells for patient, cells in clinical if cells and patient in taken)
    return tables


def _problem(item: LeftOut, names: Mapping[str, str], options: Options) -> Problem:
    """Of the name of what was not taken, only a modality that the site or the vocabulary knows is repeated."""
    name = options.rename.get(item.name, item.name)
    known = item.name in options.rename or name in (*options.vocabulary, "mask")
    return Problem(names.get(item.subject, ""), name if known else "", item.reason)


def _add_scans(scans: Sequence[Scan], names: Mapping[str, str], options: Options, tables: _Tables) -> _Grids:
    grids: _Grids = {}
    numbers: Counter[str] = Counter()
    for scan, found in zip(scans, _geometries(scans), strict=True):
        patient, modality = names.get(scan.subject, ""), options.rename.get(scan.name, scan.name)
        if isinstance(found, Reason) or not patient:
            reason = found if isinstance(found, Reason) else Reason.BAD_ROW
            tables.problems.append(Problem(patient, modality, reason))
            continue
        known = grids.setdefault((scan.subject, scan.study), [])
        frame = _frame_on(found, known)
        if frame is None:
            numbers[scan.subject] += 1
            frame = f"grid{numbers[scan.subject]}"
            known.append((found, frame))
        slope, intercept = options.rescale.get(modality, (1.0, 0.0))
        cells = (patient, scan.study, str(scan.day), modality, str(scan.path), frame)
        tables.cohort.append(
            dict(zip(COHORT_COLUMNS, cells, strict=True))
            | {"split": scan.split, "slope": repr(slope), "intercept": repr(intercept)}
        )
    return grids


def _add_masks(masks: Iterable[Segmentation], names: Mapping[str, str], grids: _Grids, tables: _Tables) -> None:
    wanted = [mask for mask in masks if (mask.subject, mask.study) in grids]
    for mask, found in zip(wanted, _geometries(wanted), strict=True):
        frame = None if isinstance(found, Reason) else _frame_on(found, grids[mask.subject, mask.study])
        if frame is None:
            reason = found if isinstance(found, Reason) else Reason.STRUCTURES_WITHOUT_IMAGE
            tables.problems.append(Problem(names[mask.subject], "mask", reason))
            continue
        cells = (names[mask.subject], mask.study, mask.structure, str(mask.path), frame)
        tables.masks.append(dict(zip(MASK_COLUMNS, cells, strict=True)))


def _geometries(items: Iterable[Scan] | Iterable[Segmentation]) -> list[Geometry | Reason]:
    with ThreadPoolExecutor(_HEADER_THREADS) as pool:
        return list(pool.map(_geometry, [item.path for item in items]))


def _geometry(path: Path) -> Geometry | Reason:
    if not storable(str(path)):
        return Reason.BAD_ROW
    if not is_present(path):
        return Reason.MISSING_FILE
    try:
        geometry = open_geometry(path)
    except VolumeFileError as error:
        return error.reason
    return geometry_problem(geometry.shape, geometry.affine) or geometry


def _frame_on(geometry: Geometry, grids: Iterable[tuple[Geometry, str]]) -> str | None:
    return next((frame for other, frame in grids if _same_grid(geometry, other)), None)


def _same_grid(one: Geometry, other: Geometry) -> bool:
    """Whether all corners of two grids lie together, within what single precision and text headers lose."""
    if one.shape[:3] != other.shape[:3]:
        return False
    corners = np.array(list(product(*((0, extent - 1) for extent in one.shape[:3]))))
    apart = one.affine - other.affine
    return bool(np.abs(corners @ apart[:3, :3].T + apart[:3, 3]).max() < _SAME_GRID_MM)


def _told(problems: Iterable[Problem]) -> str:
    counts = Counter(problem.reason.value for problem in problems)
    return f" ({', '.join(f'{count} {reason}' for reason, count in sorted(counts.items()))})" if counts else ""


def _write(cohort: Path, tables: _Tables) -> None:
    """Writes the tables, cohort.csv last: where it exists, the others do."""
    columns = dict.fromkeys(column for row in tables.clinical for column in row)
    try:
        cohort.mkdir(mode=0o700, parents=True, exist_ok=True)
        if tables.masks:
            write_table(cohort / "masks.csv", MASK_COLUMNS, tables.masks)
        if tables.clinical:
            write_table(cohort / "clinical.csv", tuple(columns), tables.clinical)
        write_table(cohort / "cohort.csv", (*COHORT_COLUMNS, "split", "slope", "intercept"), tables.cohort)
    except OSError as error:
        raise CohortError(
            Code.COHORT_IMPORT, "the cohort folder cannot be written", site_detail=f"{cohort}: {error}"
        ) from error
