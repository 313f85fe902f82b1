"""What a hospital is told of its clinical table: counts by column and kind, units, and never a value."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parametrium.clinical.check import check_rows, unused_columns
from parametrium.clinical.problem import ClinicalProblem
from parametrium.clinical.schema import encode
from parametrium.cohort.table import read_table
from parametrium.config import ContinuousVariable, NominalVariable
from parametrium.config.clinical import FigoVariable

AGE = ContinuousVariable(name="age", unit="years", lower=18.0, upper=100.0, sigma=10.0)
VOLUME = ContinuousVariable(name="volume", unit="ml", lower=0.0, upper=300.0, sigma=1.0, log=True)
DOSE = ContinuousVariable(name="dose", unit="Gy", lower=20.0, upper=100.0, sigma=5.0)
HISTOLOGY = NominalVariable(name="histology", levels=("squamous", "other"))
STAGE = FigoVariable(name="stage", edition_column="edition")

wrong = ClinicalProblem.UNIT_LOOKS_WRONG
outside = ClinicalProblem.OUT_OF_BOUNDS


def column(variable: ContinuousVariable, numbers: list[float]) -> tuple[dict[ClinicalProblem, int], float | None]:
    (report,) = check_rows([{variable.name: f"{number:g}"} for number in numbers], [variable])
    return dict(report.problems), report.factor


def test_counts_by_column_and_kind() -> None:
    rows = [
        {"age": "40", "histology": "squamous", "stage": "IIB", "edition": "2009"},
        {"age": "40,5", "histology": "lobular", "stage": "IB3", "edition": "2009"},
        {"age": "unknown", "histology": "Squamous", "stage": "II"},
        {"age": "old", "stage": "2b"},
        {"age": "4"},
    ]
    age, histology, stage = check_rows(rows, [AGE, HISTOLOGY, STAGE])
    assert (age.column, age.observed, age.missing, age.factor) == ("age", 1, 1, None)
    assert age.problems == {ClinicalProblem.DECIMAL_COMMA: 1, ClinicalProblem.NOT_A_NUMBER: 1, outside: 1}
    assert (histology.observed, histology.missing, histology.problems) == (2, 2, {ClinicalProblem.UNKNOWN_LEVEL: 1})
    assert (stage.observed, stage.missing) == (2, 1)
    assert stage.problems == {ClinicalProblem.STAGE_NOT_IN_EDITION: 1, ClinicalProblem.INCOMPLETE_STAGE: 1}
    assert stage.editions == {2009: 1, 2018: 1}


@pytest.mark.parametrize(
    ("variable", "factor"),
    [(AGE, 1 / 12), (AGE, 1 / 365.25), (VOLUME, 1 / 1000), (DOSE, 1 / 100), (DOSE, 10.0)],
    ids=["age in months", "age in days", "volume in mm3", "dose in cGy", "dose in tens"],
)
def test_a_column_in_another_unit_is_told_with_its_factor(variable: ContinuousVariable, factor: float) -> None:
    true = np.random.default_rng(0).uniform(30, 90, 40)
    problems, found = column(variable, list(true / factor))
    assert found == pytest.approx(factor)
    assert problems == {wrong: 40}


def test_one_wrong_number_is_no_wrong_unit() -> None:
    assert column(VOLUME, [20, 40, 60, 45000]) == ({outside: 1}, None)


def test_numbers_that_no_factor_mends_are_out_of_bounds() -> None:
    assert column(DOSE, [1e-9, 3e7, 500, 0, -4]) == ({outside: 5}, None)


def test_two_numbers_make_no_column() -> None:
    assert column(VOLUME, [40000, 50000]) == ({outside: 2}, None)


def test_columns_that_no_variable_reads_are_counted() -> None:
    rows = [
        {"patient": "p1", "age": "40", "notes": "x", "edition": "2018"},
        {"patient": "p2", "notes": " ", "bmi": "22"},
    ]
    assert unused_columns(rows, [AGE, STAGE]) == {"notes": 1, "bmi": 1}
    assert unused_columns(rows, [AGE]) == {"notes": 1, "bmi": 1, "edition": 1}


cells = (
    st.sampled_from(["", "NA", "40", "17", "4000", "90+", "4,5", "IIB", "IB3 (2009)", "II", "squamous", "x"])
    | st.text()
)
tables = st.lists(
    st.fixed_dictionaries({"age": cells, "volume": cells, "histology": cells, "stage": cells}), max_size=12
)


@given(tables)
def test_every_cell_is_observed_or_missing_or_a_problem(rows: list[dict[str, str]]) -> None:
    variables = [AGE, VOLUME, HISTOLOGY, STAGE]
    encoded = encode(rows, variables)
    for f, report in enumerate(check_rows(rows, variables)):
        assert report.observed + report.missing + sum(report.problems.values()) == len(rows)
        assert report.observed == encoded.observed[:, f].sum()
        assert sum(report.problems.values()) == encoded.problems[report.column]
        assert all(count > 0 for count in report.problems.values())


def test_no_value_is_in_a_report() -> None:
    rows = [{"age": "SENTINEL", "histology": "SENTINEL", "stage": "SENTINEL"}]
    assert "SENTINEL" not in repr(check_rows(rows, [AGE, HISTOLOGY, STAGE]))


@pytest.mark.realdata
def test_the_clinical_table_of_the_tcga(real_data: Path) -> None:
    table = read_table(real_data / "clinical" / "tcga_cesc_clinical_core.csv", what="the table", required=())
    dose = ContinuousVariable(name="rt_pelvis_administered_total_dose", unit="Gy", lower=5.0, upper=100.0, sigma=5.0)
    histology = NominalVariable(
        name="histological_type",
        levels=("squamous", "adenocarcinoma", "adenosquamous"),
        synonyms={
            "Cervical squamous cell carcinoma": "squamous",
            "Endocervical type of adenocarcinoma": "adenocarcinoma",
            "Mucinous adenocarcinoma of endocervical type": "adenocarcinoma",
            "Endocervical adenocarcinoma of the usual type": "adenocarcinoma",
            "Endometrioid adenocarcinoma of endocervix": "adenocarcinoma",
        },
    )
    age = AGE.model_copy(update={"name": "age_at_initial_pathologic_diagnosis"})
    of_age, of_dose, of_histology = check_rows(table.rows, [age, dose, histology])
    assert (of_age.observed, of_age.missing, of_age.problems) == (308, 0, {})
    assert (of_histology.observed, of_histology.problems) == (308, {})
    # Everything but one dose is in cGy: the one in Gy is used, the others are not, and the hospital is told the factor.
    assert (of_dose.observed, of_dose.missing) == (1, 225)
    assert of_dose.factor == pytest.approx(1 / 100)
    assert of_dose.problems == {wrong: 82}
    assert len(unused_columns(table.rows, [age, dose, histology])) == 31


@pytest.mark.realdata
def test_the_risk_factor_table_is_missing_where_it_has_question_marks(real_data: Path) -> None:
    path = real_data / "clinical" / "risk_factors_cervical_cancer.csv"
    table = read_table(path, what="the table", required=())
    names = {name: f"c{index}" for index, name in enumerate(table.columns)}
    rows = [{names[name]: cell for name, cell in row.items()} for row in table.rows]
    variables = [ContinuousVariable(name=name, unit="any", lower=-1e6, upper=1e6, sigma=1.0) for name in names.values()]
    reports = check_rows(rows, variables)
    assert (
        sum(report.missing for report in reports)
        == Counter(path.read_text().replace("\n", ",").split(","))["?"]
        == 3622
    )
    assert sum(report.observed for report in reports) == 858 * 36 - 3622
    assert not any(report.problems for report in reports)
