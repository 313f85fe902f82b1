"""What a hospital should know of its clinical table: by column and count, never a value.

Problems are found cell by cell, as ``schema.encode`` does; only a wrong unit shows in a whole column.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from parametrium.clinical.problem import ClinicalProblem
from parametrium.clinical.reading import Reading, reader_of
from parametrium.config import ClinicalVariable, ContinuousVariable, FigoVariable

_FEWEST = 3  # numbers; fewer make no column
_MOST = 0.9  # share of the numbers that a factor must bring into the bounds

# What a value would have to be multiplied by, the likeliest first.
_YEARS = (1 / 12, 1 / 365.25, 1 / 52.18)  # months, days, weeks
_DECIMAL = (1 / 1000, 1 / 10, 1 / 100, 1000.0, 10.0, 100.0)  # mm3 for ml, mm for cm, cGy for Gy, and back


@dataclass(frozen=True)
class ColumnReport:
    """One variable over all rows.

    Attributes:
        column: the variable's name.
        observed: cells that are used.
        missing: cells that are empty or say so.
        problems: cells that are not used, by kind.
        factor: by what the numbers would have to be multiplied, where the unit looks wrong; None elsewhere.
        editions: used FIGO stages by edition.
    """

    column: str
    observed: int
    missing: int
    problems: Mapping[ClinicalProblem, int]
    factor: float | None
    editions: Mapping[int, int]


def check_rows(rows: Sequence[Mapping[str, str]], variables: Sequence[ClinicalVariable]) -> list[ColumnReport]:
    """Reports every variable of a schema, in its order; observed + missing + problems is the number of rows.

    Args:
        rows: one mapping of column to text a patient.
        variables: the job's schema.
    """
    return [_report(rows, variable) for variable in variables]


def unused_columns(rows: Sequence[Mapping[str, str]], variables: Sequence[ClinicalVariable]) -> dict[str, int]:
    """Columns that no variable reads, with how many cells are filled. Their names are the hospital's own: for its eyes.

    Args:
        rows: as in ``check_rows``; the column ``patient`` is no variable and not counted.
        variables: the job's schema.
    """
    used = {"patient"} | {variable.name for variable in variables}
    used |= {v.edition_column for v in variables if isinstance(v, FigoVariable) and v.edition_column}
    filled: Counter[str] = Counter()
    for row in rows:
        filled.update({column: int(bool(cell.strip())) for column, cell in row.items() if column not in used})
    return dict(filled)


def _report(rows: Sequence[Mapping[str, str]], variable: ClinicalVariable) -> ColumnReport:
    read = reader_of(variable)
    readings = [read(row) for row in rows]
    problems = Counter(reading.problem for reading in readings if reading.problem is not None)
    factor = _unit_factor(readings, variable) if isinstance(variable, ContinuousVariable) else None
    if factor is not None:
        problems[ClinicalProblem.UNIT_LOOKS_WRONG] = problems.pop(ClinicalProblem.OUT_OF_BOUNDS)
    return ColumnReport(
        column=variable.name,
        observed=sum(reading.observed for reading in readings),
        missing=sum(reading.number is None and reading.problem is None for reading in readings),
        problems=dict(problems),
        factor=factor,
        editions=dict(Counter(reading.edition for reading in readings if reading.edition is not None)),
    )


def _unit_factor(readings: Sequence[Reading], variable: ContinuousVariable) -> float | None:
    """The factor that brings most of a column into its bounds, where most of it is outside."""
    numbers = [reading.number for reading in readings if reading.number is not None]
    outside = sum(reading.problem is ClinicalProblem.OUT_OF_BOUNDS for reading in readings)
    if len(numbers) < _FEWEST or outside <= len(numbers) / 2:
        return None
    factors = (_YEARS if variable.unit.strip().lower().startswith("year") else ()) + _DECIMAL
    shares = {
        factor: sum(variable.lower <= number * factor <= variable.upper for number in numbers) / len(numbers)
        for factor in factors
    }
    best = max(factors, key=shares.__getitem__)  # the first of equals
    return best if shares[best] >= _MOST else None
