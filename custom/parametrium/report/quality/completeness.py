"""How complete the clinical rows are, by column and count; no cell of a patient is shown."""

from collections.abc import Sequence

from parametrium.clinical.check import ColumnReport, check_rows, unused_columns
from parametrium.cohort.manifest import Patient
from parametrium.config import JobConfig
from parametrium.report.quality.words import shown
from parametrium.report.tables import Table

MOST_COLUMNS = 200


def clinical_table(patients: Sequence[Patient], job: JobConfig | None) -> Table:
    """One row a column: against the job's schema where there is one, otherwise what is filled in."""
    columns = dict.fromkeys(name for patient in patients for name in patient.clinical)
    filled = {name: sum(name in patient.clinical for patient in patients) for name in columns}
    if job is None:
        rows = [
            [shown(name), str(count), _share(len(patients) - count, len(patients)), str(_different(patients, name))]
            for name, count in list(filled.items())[:MOST_COLUMNS]
        ]
        note = "Without a job nothing is known of what the columns should hold; --job compares them with its schema."
        header = ["column", "filled in", "missing", "different values"]
        return Table("Clinical columns", header, rows, note, numeric=(1, 2, 3))
    clinical = [patient.clinical for patient in patients]
    rows = [_row(report, len(patients)) for report in check_rows(clinical, job.clinical)]
    other = [shown(name) for name in unused_columns(clinical, job.clinical)]
    more = f" Columns that the job does not use: {', '.join(other[:20])}" if other else ""
    more += f" and {len(other) - 20} more." if len(other) > 20 else "." if other else ""
    note = (
        "A value outside the schema counts as missing; none is guessed. Where most numbers of a column would fit after "
        "one multiplication, the unit is named as wrong." + more
    )
    header = ["variable", "usable", "missing", "outside the schema", "what is wrong"]
    return Table("Clinical variables of the job", header, rows, note, numeric=(1, 2, 3))


def outside_schema(patients: Sequence[Patient], job: JobConfig | None) -> int:
    """How many cells are not what the job's schema allows."""
    if job is None:
        return 0
    reports = check_rows([patient.clinical for patient in patients], job.clinical)
    return sum(sum(report.problems.values()) for report in reports)


def _row(report: ColumnReport, patients: int) -> list[str]:
    wrong = [f"{count} {problem.value.replace('_', ' ')}" for problem, count in report.problems.items()]
    if report.factor is not None:
        wrong.append(f"values times {report.factor:g} would fit")
    wrong += [f"{count} of FIGO {edition}" for edition, count in sorted(report.editions.items())]
    outside = str(sum(report.problems.values()))
    return [report.column, str(report.observed), _share(report.missing, patients), outside, "; ".join(wrong)]


def _different(patients: Sequence[Patient], name: str) -> int:
    return len({patient.clinical[name] for patient in patients if name in patient.clinical})


def _share(count: int, of: int) -> str:
    return f"{count} ({100 * count / max(of, 1):.0f} %)"
