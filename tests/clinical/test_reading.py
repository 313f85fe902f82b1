"""Cells as hospitals write them: synonyms, words for missing, numbers that are none, ages above 89."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from parametrium.clinical.problem import ClinicalProblem
from parametrium.clinical.reading import MISSING, Reading, reader_of
from parametrium.clinical.schema import encode
from parametrium.config import ContinuousVariable, NominalVariable, OrdinalVariable, parse_job
from parametrium.config.clinical import MISSING_WORDS, ClinicalVariable
from parametrium.errors import ConfigError

AGE = ContinuousVariable(name="age", unit="years", lower=18.0, upper=100.0, sigma=10.0)
VOLUME = ContinuousVariable(name="volume", unit="ml", lower=0.0, upper=300.0, sigma=1.0, log=True)
GRADE = OrdinalVariable(name="grade", levels=("G1", "G2", "G3"), synonyms={"well differentiated": "G1", "3": "G3"})
HPV = NominalVariable(name="hpv", levels=("negative", "positive"), synonyms={"+": "positive", "-": "negative"})


def read(variable: ClinicalVariable, cell: str) -> Reading:
    return reader_of(variable)({variable.name: cell})


@pytest.mark.parametrize("cell", ["G1", "g1", " G1 ", "Well  Differentiated", "WELL DIFFERENTIATED"])
def test_levels_and_synonyms_are_compared_without_capitals_and_blanks(cell: str) -> None:
    assert read(GRADE, cell) == Reading(0.0)


def test_an_unknown_level_is_a_problem() -> None:
    assert read(GRADE, "G4").problem is ClinicalProblem.UNKNOWN_LEVEL
    assert read(GRADE, "GX").problem is ClinicalProblem.UNKNOWN_LEVEL


def test_a_synonym_may_be_a_sign_that_elsewhere_means_missing() -> None:
    assert read(HPV, "-") == Reading(0.0)
    assert read(HPV, "+") == Reading(1.0)
    assert read(GRADE, "-") == MISSING
    assert read(GRADE, "+").problem is ClinicalProblem.UNKNOWN_LEVEL


@pytest.mark.parametrize("variable", [AGE, GRADE, HPV])
@pytest.mark.parametrize(
    "cell",
    ["", "  ", "?", "??", "--", ".", "\u2013", "NA", "n/a", "N.A.", "NaN", "Unknown", "[Not Available]", "(unk)"],
)
def test_words_for_missing(variable: ClinicalVariable, cell: str) -> None:
    assert read(variable, cell) == MISSING


def test_a_job_may_have_its_own_words_for_missing() -> None:
    variable = AGE.model_copy(update={"missing": ("Nicht Bekannt", "999")})
    assert read(variable, "nicht bekannt") == MISSING
    assert read(variable, "999") == MISSING
    assert read(variable, "NA").problem is ClinicalProblem.NOT_A_NUMBER


def test_a_column_that_the_table_does_not_have_is_missing() -> None:
    assert reader_of(AGE)({}) == MISSING


@pytest.mark.parametrize(
    ("cell", "problem"),
    [
        ("17", ClinicalProblem.OUT_OF_BOUNDS),
        ("1e999", ClinicalProblem.OUT_OF_BOUNDS),
        ("45,5", ClinicalProblem.DECIMAL_COMMA),
        ("1,234.5", ClinicalProblem.NOT_A_NUMBER),
        ("45 years", ClinicalProblem.NOT_A_NUMBER),
        ("<50", ClinicalProblem.NOT_A_NUMBER),
        ("4_5", ClinicalProblem.NOT_A_NUMBER),
        ("inf", ClinicalProblem.NOT_A_NUMBER),
        ("0x20", ClinicalProblem.NOT_A_NUMBER),
        ("\u0664\u0665", ClinicalProblem.NOT_A_NUMBER),
        ("2001-01-01", ClinicalProblem.NOT_A_NUMBER),
    ],
)
def test_numbers_that_are_none(cell: str, problem: ClinicalProblem) -> None:
    assert read(AGE, cell).problem is problem
    assert not read(AGE, cell).observed


@pytest.mark.parametrize("cell", ["90+", "90 +", ">89", "> 89", ">=90", "\u2265 90"])
def test_an_age_above_89_is_read_as_90(cell: str) -> None:
    assert read(AGE, cell) == Reading(90.0)
    assert read(VOLUME, cell).problem is ClinicalProblem.NOT_A_NUMBER
    assert read(AGE.model_copy(update={"upper": 85.0}), cell).problem is ClinicalProblem.OUT_OF_BOUNDS


@given(st.floats(18, 100))
def test_a_number_is_what_python_says(number: float) -> None:
    assert read(AGE, repr(number)) == Reading(number)


@given(st.text(), st.sampled_from([AGE, VOLUME, GRADE, HPV]))
def test_any_text_is_observed_or_missing_or_one_problem(cell: str, variable: ClinicalVariable) -> None:
    reading = read(variable, cell)
    assert reading.observed + (reading == MISSING) + (reading.problem is not None) == 1
    encoded = encode([{variable.name: cell}], [variable])
    assert bool(encoded.observed[0, 0]) == reading.observed
    assert sum(encoded.problems.values()) == (reading.problem is not None)
    assert math.isfinite(encoded.values[0, 0])


@pytest.mark.parametrize("kind", ["ordinal", "nominal"])
@pytest.mark.parametrize(
    ("levels", "synonyms", "told"),
    [
        (["a", "b"], {"x": "c"}, "must point to one of the levels"),
        (["a", "b"], {"X": "a", "x ": "b"}, "is ambiguous"),
        (["a", "b"], {"A": "b"}, "is ambiguous"),
        (["a", "b"], {" ": "b"}, "empty cell"),
        (["a", "A "], {}, "must differ"),
        (["a", "a"], {}, "must differ"),
    ],
)
def test_ambiguous_schemas_are_refused(kind: str, levels: list[str], synonyms: dict[str, str], told: str) -> None:
    job = {
        "name": "j",
        "modalities": ["CT"],
        "objectives": [{"kind": "masked_reconstruction"}],
        "clinical": [{"kind": kind, "name": "x", "levels": levels, "synonyms": synonyms}],
    }
    with pytest.raises(ConfigError, match=told):
        parse_job(job)


def test_a_synonym_that_repeats_its_own_level_is_no_harm() -> None:
    assert NominalVariable(name="x", levels=("a", "b"), synonyms={"A": "a", "x": "b"}).words == {
        "a": "a",
        "b": "b",
        "x": "b",
    }
    with pytest.raises(ValidationError):
        NominalVariable(name="x", levels=("a", "b"), synonyms={"b": "a"})


def test_no_usual_word_for_missing_looks_like_a_path() -> None:
    assert not any("/" in word or word.startswith(".") for word in MISSING_WORDS)
