"""What a job says of the clinical variables that make patients alike, and how a hospital's cells are read."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from parametrium.config.values import Positive, Strict, VariableName

FIGO_LEVELS = ("I", "IB", "IIA", "IIB", "III", "IV")
"""The coarse scale of cervical cancer stages that both FIGO editions map to (METHODS 3.2, clinical/figo.py)."""

MISSING_WORDS = ("na", "nan", "null", "unknown", "unk", "missing", "not available", "not known", "not recorded")
"""Cells that mean missing, compared without capitals and punctuation: ``N/A`` is ``na``."""


class _Variable(Strict):
    name: VariableName
    """Column of clinical.csv."""
    weight: Annotated[float, Field(ge=0)] = 1.0
    """Weight in the Gower similarity. With 0 the variable is no part of it, nor of a row in words: only so can a probe
    tell what was learned from scans (METHODS 3.3)."""
    missing: tuple[str, ...] | None = None
    """Words that mean missing; None takes the usual ones (na, nan, null, unknown, ...). A cell of question marks,
    dashes, dots or brackets only always does, where it is no level or synonym."""

    @property
    def missing_words(self) -> tuple[str, ...]:
        """``missing``, or the usual words."""
        return MISSING_WORDS if self.missing is None else self.missing


class ContinuousVariable(_Variable):
    """A number with unit and bounds; similarity exp(-(difference)^2 / (2 sigma^2))."""

    kind: Literal["continuous"] = "continuous"
    unit: Annotated[str, Field(max_length=20)]
    """Unit, for people; one that begins with "year" also reads the de-identified age 90+ as 90."""
    lower: float
    """Smallest plausible value."""
    upper: float
    """Largest plausible value."""
    sigma: Positive
    """Width of the similarity kernel, in the unit, or in log units when log is true. A public constant."""
    log: bool = False
    """Compare log(1 + value) instead of value."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.lower >= self.upper:
            raise ValueError(f"lower ({self.lower:g}) must be below upper ({self.upper:g})")
        if self.log and self.lower <= -1:
            raise ValueError(f"log: true compares log(1 + value), so lower must be above -1, not {self.lower:g}")
        return self


def fold(word: str) -> str:
    """A word as it is compared: without outer blanks and capitals, inner blanks single."""
    return " ".join(word.split()).casefold()


class _Levels(_Variable):
    levels: Annotated[tuple[str, ...], Field(min_length=2)]
    """All levels; those of an ordinal variable from lowest to highest."""
    synonyms: dict[str, str] = Field(default_factory=dict)
    """From what hospitals write to a level; compared, as levels are, without outer blanks and capitals."""

    @model_validator(mode="after")
    def _unambiguous(self) -> Self:
        if len({fold(level) for level in self.levels}) != len(self.levels):
            raise ValueError("levels must differ by more than capitals and outer blanks")
        meant = {fold(level): level for level in self.levels}
        for word, level in self.synonyms.items():
            if level not in self.levels:
                raise ValueError(
                    f"synonyms: {word!r} must point to one of the levels {list(self.levels)}, not {level!r}"
                )
            if not fold(word):
                raise ValueError("synonyms: an empty cell is missing and cannot be a synonym")
            if meant.setdefault(fold(word), level) != level:
                raise ValueError(f"synonyms: {word!r} is ambiguous: {meant[fold(word)]!r} or {level!r}")
        return self

    @property
    def words(self) -> dict[str, str]:
        """Every folded word that is read, levels and synonyms, with its level."""
        return {fold(word): level for word, level in ({level: level for level in self.levels} | self.synonyms).items()}


class OrdinalVariable(_Levels):
    """Ordered levels; similarity 1 - |rank difference| / (levels - 1)."""

    kind: Literal["ordinal"] = "ordinal"


class NominalVariable(_Levels):
    """Unordered levels; similarity 1 when equal."""

    kind: Literal["nominal"] = "nominal"


class FigoVariable(_Variable):
    """FIGO stage of cervical cancer in any usual spelling, on one coarse scale; similarity as of ordinal variables."""

    kind: Literal["figo"] = "figo"
    edition: Literal[2009, 2018] = 2018
    """Edition of stages that name none themselves."""
    edition_column: VariableName | None = None
    """Column of clinical.csv with the edition of each row; empty cells take ``edition``."""

    @property
    def levels(self) -> tuple[str, ...]:
        """The coarse scale."""
        return FIGO_LEVELS


ClinicalVariable = Annotated[
    ContinuousVariable | OrdinalVariable | NominalVariable | FigoVariable, Field(discriminator="kind")
]
