"""What registration decided, kept in the cohort's ``registration.csv``, and how it gets into the tables.

One row a pair of volumes that was tried: a frame that was refused with one partner may have been tried with others, and
its last row counts. A row speaks of the frame by the volume that led it; an accepted one says that every volume and
mask of that frame is moved and takes the target's name. Rows are in the order in which they were decided, and applying
them to freshly written tables, in that order, gives the registered tables again.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from parametrium.cohort.registration.verdict import Judgement, Verdict
from parametrium.cohort.rigid import Rigid, composed, format_rigid, parse_rigid
from parametrium.cohort.table import Table, read_table, write_table

Row = dict[str, str]
Key = tuple[str, str, str]

NAMES = ("patient", "study", "modality", "path", "frame", "target_study", "target_modality", "target", "verdict")
NUMBERS = (
    "metric_before",  # normalised mutual information, 1 to 2; empty where the pair had too little in common
    "metric_after",
    "metric_mirrored",  # with left and right of one of the two exchanged
    "overlap_before",  # Dice of the bodies in the common field of view
    "overlap_after",
    "share_after",  # of the smaller body, how much the other volume sees
    "translation_mm",  # of the middle of the body
    "rotation_deg",
    "halves_mm",  # by how much two halves of the body disagree on where it goes
)
COLUMNS = (*NAMES, *NUMBERS, "moved")


@dataclass(frozen=True)
class Decision:
    """One row.

    Attributes:
        names: cells by ``NAMES``; path as in the cohort table or relative to the cohort, frame as it was before.
        verdict: one word.
        numbers: cells by ``NUMBERS``, empty where not measured.
        moved: what is applied after a volume's own ``moved``; the identity when refused.
    """

    names: Mapping[str, str]
    verdict: Verdict
    numbers: Mapping[str, str]
    moved: Rigid

    @property
    def key(self) -> Key:
        """What was tried: patient, path of the volume that led the frame, and the frame's name."""
        return self.names["patient"], self.names["path"], self.names["frame"]


def numbers_of(judgement: Judgement) -> Row:
    """The cells of a judgement."""
    before, after = judgement.before, judgement.after
    values = {
        "metric_before": before.information if before and before.information > 1 else None,
        "metric_after": after.information if after else None,
        "metric_mirrored": judgement.mirrored,
        "overlap_before": before.overlap if before and before.share > 0 else None,
        "overlap_after": after.overlap if after else None,
        "share_after": after.share if after else None,
        "translation_mm": judgement.shift_mm,
        "rotation_deg": judgement.turn_deg,
        "halves_mm": judgement.halves_mm,
    }
    return {name: "" if value is None else f"{value:.4f}" for name, value in values.items()}


def path_cell(path: Path, cohort: Path) -> str:
    """A volume's path as its row names it: from the cohort folder where it lies in there."""
    return path.relative_to(cohort).as_posix() if path.is_relative_to(cohort) else str(path)


def read_decisions(cohort: Path) -> tuple[Decision, ...]:
    """The decisions of a cohort folder in their order; none where nothing was registered yet.

    A row that cannot be understood is as good as absent: its frame is tried again.

    Raises:
        CohortError: PM201 the table cannot be read.
    """
    path = cohort / "registration.csv"
    if not path.exists():
        return ()
    rows = read_table(path, what="the table of registrations", required=(*NAMES, "moved")).rows
    return tuple(decision for row in rows if (decision := _parsed(row)) is not None)


def _parsed(row: Mapping[str, str]) -> Decision | None:
    try:
        verdict, moved = Verdict(row["verdict"]), parse_rigid(row["moved"])
    except ValueError:
        return None
    names = {name: row[name] for name in NAMES if name != "verdict"}
    return Decision(names, verdict, {name: row.get(name, "") for name in NUMBERS}, moved)


def write_decisions(cohort: Path, decisions: Iterable[Decision]) -> None:
    """Writes ``registration.csv`` in one step."""
    rows = [
        {**decision.names, "verdict": decision.verdict.value, **decision.numbers, "moved": format_rigid(decision.moved)}
        for decision in decisions
    ]
    write_table(cohort / "registration.csv", COLUMNS, rows)


def applied(
    decisions: Sequence[Decision],
    cohort: Path,
    volumes: Iterable[Mapping[str, str]],
    masks: Iterable[Mapping[str, str]],
) -> tuple[list[Row], list[Row]]:
    """Rows of ``cohort.csv`` and ``masks.csv`` with every accepted decision that is not yet in them.

    Whoever writes these tables anew, with the frames as they are in the source, passes its rows through here first and
    loses nothing; a volume that came later into a frame that has moved follows it. A decision counts while the volume
    that led it is in the frame that it spoke of, or has moved on from there. Where frames were named anew it is void.

    Args:
        decisions: from ``read_decisions``.
        cohort: the cohort folder; paths count from there.
        volumes: rows of cohort.csv.
        masks: rows of masks.csv.
    """
    moved_volumes, moved_masks = [dict(row) for row in volumes], [dict(row) for row in masks]
    leads = {(row["patient"], _place(cohort, row["path"])): row for row in moved_volumes}
    held: dict[str, list[Row]] = {}
    for row in (*moved_volumes, *moved_masks):
        held.setdefault(row["patient"], []).append(row)
    for decision in decisions:
        patient, path, frame = decision.key
        lead = leads.get((patient, _place(cohort, path)))
        if decision.verdict is Verdict.ACCEPTED and lead is not None and (lead["frame"] == frame or lead.get("moved")):
            for row in held[patient]:
                if row["frame"] == frame:
                    _move(row, decision)
    return moved_volumes, moved_masks


def _place(cohort: Path, cell: str) -> str:
    return os.path.normpath(cohort / cell)


def _move(row: Row, decision: Decision) -> None:
    try:
        before = parse_rigid(row.get("moved", ""))
    except ValueError:  # a bad row stays one
        return
    row["frame"] = decision.names["target"]
    row["moved"] = format_rigid(composed(decision.moved, before))


def apply_to_tables(cohort: Path, decisions: Sequence[Decision]) -> None:
    """Brings ``masks.csv`` and then ``cohort.csv`` up to the decisions; a table that holds them is not touched.

    Raises:
        CohortError: PM201 a table cannot be read.
        OSError: a table cannot be written.
    """
    table = read_table(cohort / "cohort.csv", what="the cohort table", required=("patient", "path", "frame"))
    path = cohort / "masks.csv"
    masks = read_table(path, what="the mask table", required=("patient", "frame")) if path.exists() else None
    volume_rows, mask_rows = applied(decisions, cohort, table.rows, masks.rows if masks else ())
    if masks is not None:
        _rewrite(path, masks, mask_rows)
    _rewrite(cohort / "cohort.csv", table, volume_rows)


def _rewrite(path: Path, table: Table, rows: Sequence[Row]) -> None:
    if list(table.rows) == list(rows):
        return
    # A line that nobody could read stays, without its frame, so that it stays reported.
    ragged = [{**row, "frame": ""} for row in table.ragged]
    columns = table.columns if "moved" in table.columns else (*table.columns, "moved")
    write_table(path, columns, [*rows, *ragged])


def superseded(decisions: Iterable[Decision], newer: Iterable[Decision]) -> list[Decision]:
    """All decisions, the newer last; a refusal gives way to a newer word on the same volume."""
    newer = list(newer)
    keys = {decision.key for decision in newer}
    return [d for d in decisions if d.verdict is Verdict.ACCEPTED or d.key not in keys] + newer
