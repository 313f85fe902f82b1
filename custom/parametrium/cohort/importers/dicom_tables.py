"""The tables of a cohort made from DICOM, told from the ledger: always all that was ever imported into it.

Patient, study, day, modality, path and rule are the import's. Frame and every other cell of ``cohort.csv`` belong to
whoever wrote them (registration, or the site), and are kept as long as the volume stays the same.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from parametrium.cohort.dicom.choice import TOO_LONG
from parametrium.cohort.dicom.index import left_out
from parametrium.cohort.importers.ledger import Ledger
from parametrium.cohort.manifest import COHORT_COLUMNS, MASK_COLUMNS
from parametrium.cohort.problem import Reason
from parametrium.cohort.table import read_table, write_table

PROBLEM_COLUMNS = ("patient", "modality", "reason", "rule", "count")

_MASK_COLUMNS = (*MASK_COLUMNS, "volume")
_OWN_COLUMNS = (*COHORT_COLUMNS, "rule")
_MODALITIES = (
    *("AR", "CR", "CT", "DG", "DOC", "DX", "ES", "IO", "KO", "MG", "MR", "NM", "OT", "PR", "PT", "PX", "REG", "RF"),
    *("RTDOSE", "RTIMAGE", "RTPLAN", "RTRECORD", "RTSTRUCT", "RWV", "SC", "SEG", "SM", "SR", "TG", "US", "XA", "XC"),
)
"""Defined terms of (0008,0060) (PS3.3 C.7.3.1.1.1); anything else in that place might be a name."""

_VOLUMES = """
SELECT p.pseudonym, t.number, t.date, p.origin, v.modality, v.path, v.frame, v.rule, v.kept, v.id,
    v.told = v.digest AS as_told
FROM volumes v JOIN studies t ON v.study = t.id JOIN patients p ON t.patient = p.id
WHERE p.cohort = ? ORDER BY p.pseudonym, t.number, v.path
"""
_MASKS = """
SELECT p.pseudonym, t.number, m.structure, m.path, v.frame, v.path, v.kept
FROM masks m JOIN volumes v ON m.volume = v.id JOIN studies t ON v.study = t.id JOIN patients p ON t.patient = p.id
WHERE p.cohort = ? ORDER BY p.pseudonym, t.number, m.path
"""
_LEFT_OUT = """
SELECT p.pseudonym, s.modality, l.reason, l.rule, sum(l.files)
FROM left_out l JOIN series s ON l.series = s.id JOIN patients p ON s.patient = p.id
WHERE p.cohort = ? GROUP BY p.pseudonym, s.modality, l.reason, l.rule ORDER BY 1, 2, 3, 4
"""


@dataclass(frozen=True)
class Counts:
    """What a cohort holds; ``undated`` studies, ``unsure`` volumes, ``files`` of all its sources.

    ``endless``: series for which a rule of the site was given up.
    """

    patients: int
    volumes: Mapping[str, int]
    masks: int
    undated: int
    unsure: int
    files: int
    endless: int


def count_cohort(ledger: Ledger) -> Counts:
    """Counts what a cohort holds."""
    of_cohort = "FROM volumes v JOIN studies t ON v.study = t.id JOIN patients p ON t.patient = p.id WHERE p.cohort = ?"

    def one(query: str, *more: str) -> int:
        return int(ledger.store.execute(query, (ledger.cohort, *more)).fetchone()[0])

    volumes = ledger.store.execute(
        f"SELECT v.modality, count(*) {of_cohort} GROUP BY v.modality ORDER BY v.modality", (ledger.cohort,)
    )
    return Counts(
        patients=one(f"SELECT count(DISTINCT p.id) {of_cohort}"),
        volumes=dict(volumes.fetchall()),
        masks=one(f"SELECT count(*) {of_cohort.replace('volumes v', 'masks m JOIN volumes v ON m.volume = v.id')}"),
        undated=one(f"SELECT count(DISTINCT t.id) {of_cohort} AND t.date = ''"),
        unsure=one(f"SELECT count(*) {of_cohort} AND NOT v.sure"),
        files=one("SELECT count(*) FROM files WHERE source IN (SELECT source FROM cohort_sources WHERE cohort = ?)"),
        endless=one(
            "SELECT count(*) FROM series s JOIN patients p ON s.patient = p.id WHERE p.cohort = ?1 AND s.id IN "
            "(SELECT series FROM volumes WHERE rule LIKE ?2 UNION SELECT series FROM left_out WHERE rule LIKE ?2)",
            f"%{TOO_LONG}",
        ),
    )


def keep_cells(ledger: Ledger, folder: Path) -> None:
    """Takes over what others wrote into ``cohort.csv`` since the import wrote it.

    Raises:
        CohortError: PM201 the table cannot be read.
    """
    path = folder / "cohort.csv"
    if not path.exists():
        return
    table = read_table(path, what="the cohort table", required=COHORT_COLUMNS)
    extra = [column for column in table.columns if column not in _OWN_COLUMNS]
    cells = {row["path"]: row for row in table.rows}
    with ledger.store:
        for row in ledger.store.execute(_VOLUMES, (ledger.cohort,)).fetchall():
            _, study, _, _, _, name, frame, _, known, volume, as_told = row
            if as_told and name in cells:
                kept = {column: cells[name][column] for column in extra if cells[name][column]}
                if cells[name]["frame"] != _frame(study, frame):
                    kept["frame"] = cells[name]["frame"]
                if kept != json.loads(known):
                    update = "UPDATE volumes SET kept = ? WHERE id = ?"
                    ledger.store.execute(update, (json.dumps(kept), volume))


def write_tables(ledger: Ledger, folder: Path) -> None:
    """Writes masks.csv, problems.csv and, last, cohort.csv; the same ledger gives the same bytes."""
    kept = ledger.store.execute(
        "SELECT v.kept FROM volumes v JOIN studies t ON v.study = t.id JOIN patients p ON t.patient = p.id "
        "WHERE p.cohort = ? AND v.kept <> '{}'",
        (ledger.cohort,),
    )
    extra = sorted({column for (cells,) in kept for column in json.loads(cells)} - {"frame"})
    masks = list(_mask_rows(ledger))
    if masks or (folder / "masks.csv").exists():
        columns = (*_MASK_COLUMNS, "moved") if any("moved" in row for row in masks) else _MASK_COLUMNS
        write_table(folder / "masks.csv", columns, masks)
    write_table(folder / "problems.csv", PROBLEM_COLUMNS, map(_problem_row, problems(ledger)))
    volumes = list(_volume_rows(ledger))
    if volumes:
        write_table(folder / "cohort.csv", (*_OWN_COLUMNS, *extra), volumes)
        with ledger.store:
            ledger.store.execute(
                "UPDATE volumes SET told = digest WHERE told <> digest AND study IN "
                "(SELECT t.id FROM studies t JOIN patients p ON t.patient = p.id WHERE p.cohort = ?)",
                (ledger.cohort,),
            )


def problems(ledger: Ledger) -> Iterator[tuple[str, str, Reason, str, int]]:
    """Pseudonym, DICOM modality, reason, rule and number of files; the first two empty for files of no patient."""
    for patient, modality, reason, rule, count in ledger.store.execute(_LEFT_OUT, (ledger.cohort,)):
        yield patient, modality if modality in _MODALITIES else "", Reason(reason), rule, count
    sources = ledger.store.execute(
        "SELECT source, patient_folders FROM cohort_sources WHERE cohort = ? ORDER BY source", (ledger.cohort,)
    ).fetchall()
    counts: dict[tuple[Reason, str], int] = {}
    for source, patient_folders in sources:
        for reason, rule, count in left_out(ledger.store, source, patient_folders=bool(patient_folders)):
            counts[reason, rule] = counts.get((reason, rule), 0) + count
    for (reason, rule), count in sorted(counts.items(), key=lambda item: (item[0][0].value, item[0][1])):
        yield "", "", reason, rule, count


def _problem_row(problem: tuple[str, str, Reason, str, int]) -> dict[str, str]:
    patient, modality, reason, rule, count = problem
    return dict(zip(PROBLEM_COLUMNS, (patient, modality, reason.value, rule, str(count)), strict=True))


def _volume_rows(ledger: Ledger) -> Iterator[dict[str, str]]:
    for patient, study, day, origin, modality, path, frame, rule, kept, *_ in ledger.store.execute(
        _VOLUMES, (ledger.cohort,)
    ):
        cells = (patient, f"s{study}", str(_days(day, origin)), modality, path, _frame(study, frame), rule)
        yield dict(zip(_OWN_COLUMNS, cells, strict=True)) | json.loads(kept)


def _mask_rows(ledger: Ledger) -> Iterator[dict[str, str]]:
    """A mask goes where its volume goes."""
    for patient, study, structure, path, frame, volume, kept in ledger.store.execute(_MASKS, (ledger.cohort,)):
        moved: dict[str, Any] = {key: cell for key, cell in json.loads(kept).items() if key in ("frame", "moved")}
        cells = (patient, f"s{study}", structure, path, _frame(study, frame), volume)
        yield dict(zip(_MASK_COLUMNS, cells, strict=True)) | moved


def _frame(study: int, frame: int) -> str:
    return f"s{study}-f{frame}"


def _days(day: str, origin: str | None) -> int:
    """Days since the patient's first imported study; 0 where a date is missing."""
    return (date.fromisoformat(day) - date.fromisoformat(origin)).days if day and origin else 0
