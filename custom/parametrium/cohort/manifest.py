"""A cohort: which volumes a hospital has, of whom, when, and which of them are registered to each other.

``cohort.csv`` has one row a volume: patient, study, day, modality, path, frame, and optionally split, slope, intercept
and moved. ``clinical.csv`` has one row a patient, ``masks.csv`` one row a segmentation, which may name in ``volume``
the file that it was drawn on. Reading checks everything that headers tell and reports all problems at once; a bad
volume is left out and counted, never fatal to its site.
"""

import math
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeVar

from parametrium.cohort.header import header_problem
from parametrium.cohort.problem import Problem, Reason, empty_cohort
from parametrium.cohort.rigid import IDENTITY, Rigid, parse_rigid
from parametrium.cohort.table import read_table

__all__ = [
    "COHORT_COLUMNS",
    "DEFACED",
    "MASK_COLUMNS",
    "Cohort",
    "Mask",
    "Patient",
    "Problem",
    "Reason",
    "Split",
    "Volume",
    "read_cohort",
]

COHORT_COLUMNS = ("patient", "study", "day", "modality", "path", "frame")
MASK_COLUMNS = ("patient", "study", "structure", "path", "frame")
DEFACED = "defaced"
"""The structure of a mask that is True where a volume does not show the patient's own tissue."""

_HEADER_THREADS = 8  # headers are small reads: on network storage, latency is all there is

Split = Literal["train", "test"]


@dataclass(frozen=True)
class Volume:
    """One modality of a study.

    Attributes:
        patient: pseudonym.
        study: name of the visit.
        day: days since a patient's own reference date.
        modality: a word of the vocabulary, or one that the job declares.
        path: absolute path of a NIfTI file.
        frame: volumes of a patient with the same frame are registered to each other.
        slope: value = slope * stored + intercept, after the file's own scaling.
        intercept: see slope.
        moved: where registration has put it: applied, in RAS+ millimetres, after the file's own affine.
        defaced: mask on the file's own grid of the voxels that defacing took from the patient; None where it took none.
    """

    patient: str
    study: str
    day: int
    modality: str
    path: Path
    frame: str
    slope: float = 1.0
    intercept: float = 0.0
    moved: Rigid = IDENTITY
    defaced: Path | None = None


@dataclass(frozen=True)
class Mask:
    """A segmentation of one structure or label map, in the geometry of a frame; ``moved`` as of a volume.

    ``volume`` is the file whose grid it has, where the table names it.
    """

    patient: str
    study: str
    structure: str
    path: Path
    frame: str
    moved: Rigid = IDENTITY
    volume: Path | None = None


@dataclass(frozen=True)
class Patient:
    """One patient with at least one usable volume.

    Attributes:
        name: pseudonym.
        split: where the table decides who is held out; None leaves it to the job.
        volumes: in table order.
        clinical: raw non-empty cells by column; empty where there is no row.
        masks: in table order.
    """

    name: str
    split: Split | None
    volumes: tuple[Volume, ...]
    clinical: Mapping[str, str]
    masks: tuple[Mask, ...]


@dataclass(frozen=True)
class Cohort:
    """What a site can use, in table order, and what it cannot."""

    patients: tuple[Patient, ...]
    problems: tuple[Problem, ...]

    @property
    def volumes(self) -> tuple[Volume, ...]:
        """All usable volumes in table order of their patients."""
        return tuple(volume for patient in self.patients for volume in patient.volumes)


class _BadRowError(Exception):
    """A cell does not hold what its column promises."""


_Row = TypeVar("_Row", Volume, Mask)


def read_cohort(folder: Path, modalities: Collection[str]) -> Cohort:
    """Reads and checks a cohort folder without loading any voxel.

    Args:
        folder: holds cohort.csv and, optionally, clinical.csv and masks.csv; paths in them count from here.
        modalities: the job's modalities; volumes of another are left out and reported.

    Raises:
        CohortError: PM201 a table is unreadable or cohort.csv absent, PM202 no usable volume is left.
    """
    folder = Path(os.path.abspath(folder))  # noqa: PTH100 - resolve() would follow links that a site moves at will
    table = read_table(
        folder / "cohort.csv",
        what="the cohort table",
        required=COHORT_COLUMNS,
        remedy="a cohort folder holds cohort.csv, which `parametrium cohort import SOURCE COHORT` makes",
    )
    problems = [_bad_row(row) for row in table.ragged]
    listed = _parse(table.rows, lambda row: _volume(row, folder), problems)
    splits = _splits(table.rows, problems)
    usable = _usable(listed, modalities, problems)
    listed_masks = _listed_masks(folder, problems)
    defaced = {mask.volume: mask.path for mask in listed_masks if mask.structure == DEFACED}
    usable = [replace(volume, defaced=defaced.get(volume.path)) for volume in usable]
    masks = _usable_masks(listed_masks, problems)
    clinical = _read_clinical(folder, {volume.patient for volume in listed}, problems)
    patients = _group(usable, splits, clinical, masks)
    if not patients:
        raise empty_cohort(problems)
    return Cohort(patients, tuple(problems))


def _parse(
    rows: Sequence[Mapping[str, str]], parse: Callable[[Mapping[str, str]], _Row], problems: list[Problem]
) -> list[_Row]:
    """Parses every row, reports bad ones and all but the first row that names a file."""
    parsed: list[_Row] = []
    seen: set[str] = set()
    for row in rows:
        try:
            item = parse(row)
        except _BadRowError:
            problems.append(_bad_row(row))
            continue
        file = os.path.realpath(item.path)
        if file in seen:
            problems.append(Problem(item.patient, row.get("modality", "mask"), Reason.DUPLICATE))
            continue
        seen.add(file)
        parsed.append(item)
    return parsed


def _volume(row: Mapping[str, str], folder: Path) -> Volume:
    slope, intercept = _number(row.get("slope", ""), 1.0), _number(row.get("intercept", ""), 0.0)
    if not all(row[column] for column in COHORT_COLUMNS) or slope == 0.0 or row.get("split", "") not in _SPLITS:
        raise _BadRowError
    try:
        day = int(row["day"])
    except ValueError as error:
        raise _BadRowError from error
    path, moved = _file(folder, row["path"]), _moved(row)
    return Volume(row["patient"], row["study"], day, row["modality"], path, row["frame"], slope, intercept, moved)


def _mask(row: Mapping[str, str], folder: Path) -> Mask:
    if not all(row[column] for column in MASK_COLUMNS):
        raise _BadRowError
    path = _file(folder, row["path"])
    volume = _file(folder, row["volume"]) if row.get("volume") else None
    return Mask(row["patient"], row["study"], row["structure"], path, row["frame"], _moved(row), volume)


def _file(folder: Path, cell: str) -> Path:
    if "\0" in cell:
        raise _BadRowError
    return Path(os.path.normpath(folder / cell))


def _moved(row: Mapping[str, str]) -> Rigid:
    try:
        return parse_rigid(row.get("moved", ""))
    except ValueError as error:
        raise _BadRowError from error


_SPLITS: Mapping[str, Split | None] = {"": None, "train": "train", "test": "test"}


def _splits(rows: Sequence[Mapping[str, str]], problems: list[Problem]) -> dict[str, Split | None]:
    """Split by patient. Rows that disagree are reported, and the patient is held out: nobody is trained on by doubt."""
    named: dict[str, set[Split]] = {}
    for row in rows:
        splits = named.setdefault(row["patient"], set())
        split = _SPLITS.get(row.get("split", ""))
        if split is not None:
            splits.add(split)
    conflicting = [patient for patient, splits in named.items() if len(splits) > 1]
    problems.extend(Problem(patient, "", Reason.CONFLICTING_SPLIT) for patient in conflicting)
    return {patient: max(splits, key="test".__eq__, default=None) for patient, splits in named.items()}


def _number(cell: str, default: float) -> float:
    try:
        value = float(cell) if cell else default
    except ValueError as error:
        raise _BadRowError from error
    if not math.isfinite(value):
        raise _BadRowError
    return value


def _bad_row(row: Mapping[str, str]) -> Problem:
    return Problem(row.get("patient", ""), row.get("modality", ""), Reason.BAD_ROW)


def _usable(listed: Sequence[Volume], modalities: Collection[str], problems: list[Problem]) -> list[Volume]:
    with ThreadPoolExecutor(_HEADER_THREADS) as pool:
        found = list(pool.map(lambda volume: _volume_problem(volume, modalities), listed))
    problems.extend(
        Problem(volume.patient, volume.modality, reason) for volume, reason in zip(listed, found, strict=True) if reason
    )
    return [volume for volume, reason in zip(listed, found, strict=True) if reason is None]


def _volume_problem(volume: Volume, modalities: Collection[str]) -> Reason | None:
    return Reason.UNKNOWN_MODALITY if volume.modality not in modalities else header_problem(volume.path)


def _listed_masks(folder: Path, problems: list[Problem]) -> list[Mask]:
    path = folder / "masks.csv"
    if not path.exists():
        return []
    table = read_table(path, what="the mask table", required=MASK_COLUMNS)
    problems.extend(Problem(row.get("patient", ""), "mask", Reason.BAD_ROW) for row in table.ragged)
    return _parse(table.rows, lambda row: _mask(row, folder), problems)


def _usable_masks(listed: Sequence[Mask], problems: list[Problem]) -> list[Mask]:
    found = [header_problem(mask.path) for mask in listed]
    problems.extend(Problem(mask.patient, "mask", reason) for mask, reason in zip(listed, found, strict=True) if reason)
    return [mask for mask, reason in zip(listed, found, strict=True) if reason is None]


def _read_clinical(folder: Path, patients: Collection[str], problems: list[Problem]) -> dict[str, dict[str, str]]:
    """Clinical cells by patient; the first row of a patient counts."""
    path = folder / "clinical.csv"
    if not path.exists():
        return {}
    table = read_table(path, what="the clinical table", required=("patient",))
    problems.extend(_bad_row(row) for row in table.ragged)
    clinical: dict[str, dict[str, str]] = {}
    for row in table.rows:
        name = row["patient"]
        if name in clinical or name not in patients:
            reason = Reason.DUPLICATE if name in clinical else Reason.CLINICAL_ROW_WITHOUT_PATIENT
            problems.append(Problem(name, "", reason))
            continue
        clinical[name] = {column: cell for column, cell in row.items() if cell and column != "patient"}
    problems.extend(Problem(name, "", Reason.NO_CLINICAL_ROW) for name in sorted(set(patients) - set(clinical)))
    return clinical


def _group(
    volumes: Sequence[Volume],
    splits: Mapping[str, Split | None],
    clinical: Mapping[str, Mapping[str, str]],
    masks: Sequence[Mask],
) -> tuple[Patient, ...]:
    held: dict[str, list[Volume]] = {}
    for volume in volumes:
        held.setdefault(volume.patient, []).append(volume)
    return tuple(
        Patient(
            name=name,
            split=splits[name],
            volumes=tuple(own),
            clinical=clinical.get(name, {}),
            masks=tuple(mask for mask in masks if mask.patient == name),
        )
        for name, own in held.items()
    )
