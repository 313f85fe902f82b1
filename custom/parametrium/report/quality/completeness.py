"""How complete the clinical rows are, by column and count; no cell of a patient is shown."""

from collections.abc import Sequence

from parametrium.clinical.schema import encode
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
    encoded = encode([patient.clinical for patient in patients], job.clinical)
    rows = []
    for f, variable in enumerate(job.clinical):
        used, wrong = int(encoded.observed[:, f].sum()), encoded.problems[variable.name]
        rows.append(
            [variable.name, variable.kind, str(used), _share(len(patients) - used - wrong, len(patients)), str(wrong)]
        )
    other = [shown(name) for name in columns if name not in {variable.name for variable in job.clinical}]
    more = f" Columns that the job does not use: {', '.join(other[:20])}" if other else ""
    more += f" and {len(other) - 20} more." if len(other) > 20 else "." if other else ""
    note = "Outside the schema: an unknown level or a number out of its bounds; such a value counts as missing." + more
    header = ["variable", "kind", "usable", "missing", "outside the schema"]
    return Table("Clinical variables of the job", header, rows, note, numeric=(2, 3, 4))


def outside_schema(patients: Sequence[Patient], job: JobConfig | None) -> int:
    """How many cells are not what the job's schema allows."""
    return sum(encode([patient.clinical for patient in patients], job.clinical).problems.values()) if job else 0


def _different(patients: Sequence[Patient], name: str) -> int:
    return len({patient.clinical[name] for patient in patients if name in patient.clinical})


def _share(count: int, of: int) -> str:
    return f"{count} ({100 * count / max(of, 1):.0f} %)"
