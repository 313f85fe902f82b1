"""Clinical rows against the job's schema: numbers for the similarity, problems by column.

A value outside the schema is missing, never coerced; missing stays missing.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from parametrium.clinical.reading import reader_of
from parametrium.config import ClinicalVariable, ContinuousVariable


class ClinicalRows(NamedTuple):
    """Encoded rows of P patients and F variables.

    Attributes:
        values: [P, F] float32; continuous in its unit (log(1 + value) where the variable says log), ordinal and FIGO
            the rank, nominal the index of the level; 0 where not observed.
        observed: [P, F] bool.
        problems: how many values of each variable were outside the schema.
        editions: [P, F] int16; edition of an observed FIGO stage, 0 elsewhere. Provenance; no similarity looks at it.
    """

    values: NDArray[np.float32]
    observed: NDArray[np.bool_]
    problems: Counter[str]
    editions: NDArray[np.int16]


def encode(rows: Sequence[Mapping[str, str]], variables: Sequence[ClinicalVariable]) -> ClinicalRows:
    """Encodes raw cells, each row by itself.

    Args:
        rows: one mapping of column to text a patient; absent, blank or a word for missing is missing.
        variables: the job's schema.
    """
    values = np.zeros((len(rows), len(variables)), dtype=np.float32)
    observed = np.zeros(values.shape, dtype=np.bool_)
    editions = np.zeros(values.shape, dtype=np.int16)
    problems: Counter[str] = Counter()
    for f, variable in enumerate(variables):
        read = reader_of(variable)
        logarithmic = isinstance(variable, ContinuousVariable) and variable.log
        for p, row in enumerate(rows):
            reading = read(row)
            if reading.problem is not None:
                problems[variable.name] += 1
            elif reading.number is not None:
                values[p, f] = math.log1p(reading.number) if logarithmic else reading.number
                observed[p, f] = True
                editions[p, f] = reading.edition or 0
    return ClinicalRows(values, observed, problems, editions)
