"""Clinical rows against the job's schema: numbers for the similarity, problems by column.

A value outside the schema is missing, never coerced; missing stays missing.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from parametrium.config import ClinicalVariable, ContinuousVariable


class ClinicalRows(NamedTuple):
    """Encoded rows of P patients and F variables.

    Attributes:
        values: [P, F] float32; continuous in its unit (log(1 + value) where the variable says log), ordinal the rank,
            nominal the index of the level; 0 where not observed.
        observed: [P, F] bool.
        problems: how many values of each variable were outside the schema.
    """

    values: NDArray[np.float32]
    observed: NDArray[np.bool_]
    problems: Counter[str]


def encode(rows: Sequence[Mapping[str, str]], variables: Sequence[ClinicalVariable]) -> ClinicalRows:
    """Encodes raw cells.

    Args:
        rows: one mapping of column to text a patient; absent or blank is missing.
        variables: the job's schema.
    """
    values = np.zeros((len(rows), len(variables)), dtype=np.float32)
    observed = np.zeros(values.shape, dtype=np.bool_)
    problems: Counter[str] = Counter()
    for p, row in enumerate(rows):
        for f, variable in enumerate(variables):
            cell = row.get(variable.name, "").strip()
            if not cell:
                continue
            number = _number(cell, variable)
            if number is None:
                problems[variable.name] += 1
            else:
                values[p, f], observed[p, f] = number, True
    return ClinicalRows(values, observed, problems)


def _number(cell: str, variable: ClinicalVariable) -> float | None:
    if not isinstance(variable, ContinuousVariable):
        return float(variable.levels.index(cell)) if cell in variable.levels else None
    try:
        value = float(cell)
    except ValueError:
        return None
    if not variable.lower <= value <= variable.upper:
        return None
    return math.log1p(value) if variable.log else value
