"""One clinical cell against its variable: a number, missing, or a problem.

Levels and synonyms are looked up first, so that a schema may have a level ``-`` or ``unknown``; then words that mean
missing; then numbers. Nothing is coerced: a decimal comma, a unit behind a number or a bound (``<5``) is a problem.
The one exception is an age above 89 in its de-identified form: ``90+`` is read as 90 and counts as observed. The true
age is within a few years of it, well inside the kernel's width, and leaving it out would hide the oldest patients.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from parametrium.clinical.figo import read_stage
from parametrium.clinical.problem import ClinicalProblem
from parametrium.config import ClinicalVariable, ContinuousVariable
from parametrium.config.clinical import FigoVariable, fold

_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)
_DECIMAL_COMMA = re.compile(r"[+-]?\d+,\d+", re.ASCII)
_ABOVE_89 = re.compile(r"90 ?\+|> ?89|(>=|≥) ?90")
_INNER = re.compile(r"[./]")
_MARKS = re.compile(r"[?\-\u2013\u2014_*()\[\]'\"]")


class Reading(NamedTuple):
    """What a cell says.

    Attributes:
        number: continuous in its unit, ordinal and FIGO the rank, nominal the index of the level; also given when it
            is out of bounds; None where there is none.
        problem: why it is not used; None when it is used or missing.
        edition: of a FIGO stage.
    """

    number: float | None = None
    problem: ClinicalProblem | None = None
    edition: int | None = None

    @property
    def observed(self) -> bool:
        """Whether it may be used."""
        return self.number is not None and self.problem is None


MISSING = Reading()

Reader = Callable[[Mapping[str, str]], Reading]


def missing_test(words: Iterable[str]) -> Callable[[str], bool]:
    """Makes a function that says whether a cell tells nothing: blank, only marks, or one of these words."""
    missing = {_letters(word) for word in words} | {""}
    return lambda cell: _letters(cell) in missing


def reader_of(variable: ClinicalVariable) -> Reader:
    """Makes a function that reads a variable from a row of column to text; absent or blank is missing."""
    is_missing = missing_test(variable.missing_words)
    if isinstance(variable, ContinuousVariable):
        return _number_reader(variable, is_missing)
    if isinstance(variable, FigoVariable):
        return _stage_reader(variable, is_missing)
    ranks = {word: float(variable.levels.index(level)) for word, level in variable.words.items()}

    def read(row: Mapping[str, str]) -> Reading:
        cell = fold(row.get(variable.name, ""))
        rank = ranks.get(cell)
        if rank is not None:
            return Reading(rank)
        return MISSING if is_missing(cell) else Reading(problem=ClinicalProblem.UNKNOWN_LEVEL)

    return read


def _number_reader(variable: ContinuousVariable, is_missing: Callable[[str], bool]) -> Reader:
    age = variable.unit.strip().lower().startswith("year")

    def read(row: Mapping[str, str]) -> Reading:
        cell = fold(row.get(variable.name, ""))
        if is_missing(cell):
            return MISSING
        if age and _ABOVE_89.fullmatch(cell):
            number = 90.0
        elif _NUMBER.fullmatch(cell):
            number = float(cell)
        else:
            comma = _DECIMAL_COMMA.fullmatch(cell)
            return Reading(problem=ClinicalProblem.DECIMAL_COMMA if comma else ClinicalProblem.NOT_A_NUMBER)
        within = variable.lower <= number <= variable.upper
        return Reading(number, None if within else ClinicalProblem.OUT_OF_BOUNDS)

    return read


def _stage_reader(variable: FigoVariable, is_missing: Callable[[str], bool]) -> Reader:
    def read(row: Mapping[str, str]) -> Reading:
        cell = row.get(variable.name, "").strip()
        if is_missing(cell):
            return MISSING
        edition = row.get(variable.edition_column, "") if variable.edition_column else ""
        stage = read_stage(cell, variable.edition, "" if is_missing(edition) else edition)
        if isinstance(stage, ClinicalProblem):
            return Reading(problem=stage)
        return Reading(float(variable.levels.index(stage.level)), edition=stage.edition)

    return read


def _letters(cell: str) -> str:
    """A cell without the marks of an empty one and without dots and slashes inside words: ``[N/A]`` is ``na``."""
    return fold(_MARKS.sub(" ", _INNER.sub("", cell)))
