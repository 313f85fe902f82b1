"""FIGO stages in every usual spelling, both editions, and the stages of the TCGA."""

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parametrium.clinical.check import check_rows
from parametrium.clinical.figo import FigoStage, read_stage
from parametrium.clinical.problem import ClinicalProblem
from parametrium.clinical.schema import encode
from parametrium.cohort.table import read_table
from parametrium.config import parse_job
from parametrium.config.clinical import FIGO_LEVELS, FigoVariable

BOTH = {
    "I": ("I", "IA", "IA1", "IA2"),
    "IB": ("IB", "IB1", "IB2"),
    "IIA": ("IIA", "IIA1", "IIA2"),
    "IIB": ("IIB",),
    "III": ("III", "IIIA", "IIIB"),
    "IV": ("IV", "IVA", "IVB"),
}
SINCE_2018 = {"IB": ("IB3",), "III": ("IIIC", "IIIC1", "IIIC2")}
ALL = [(stage, level) for scale in (BOTH, SINCE_2018) for level, stages in scale.items() for stage in stages]


@pytest.mark.parametrize("edition", [2009, 2018])
@pytest.mark.parametrize(("level", "stages"), BOTH.items())
def test_stages_of_both_editions_have_one_level(edition: int, level: str, stages: tuple[str, ...]) -> None:
    for stage in stages:
        assert read_stage(stage, edition) == FigoStage(stage, level, edition)


@pytest.mark.parametrize(("level", "stages"), SINCE_2018.items())
def test_a_stage_of_2018_is_a_problem_in_2009(level: str, stages: tuple[str, ...]) -> None:
    for stage in stages:
        assert read_stage(stage, 2018) == FigoStage(stage, level, 2018)
        assert read_stage(stage, 2009) is ClinicalProblem.STAGE_NOT_IN_EDITION
        assert read_stage(f"{stage} (2009)", 2018) is ClinicalProblem.STAGE_NOT_IN_EDITION
        assert read_stage(stage, 2009, "FIGO 2018") == FigoStage(stage, level, 2018)


@pytest.mark.parametrize(
    ("cell", "stage"),
    [
        ("IIB", "IIB"),
        ("2b", "IIB"),
        ("Stage IIb", "IIB"),
        ("FIGO IIB (2018)", "IIB"),
        ("FIGO2018 IIB", "IIB"),
        ("FIGO-Stadium II B", "IIB"),
        ("\u2161B", "IIB"),
        ("IB3", "IB3"),
        ("1b3", "IB3"),
        ("I B-3", "IB3"),
        ("IIIC1r", "IIIC1"),
        ("IIIC1 (p)", "IIIC1"),
        ("3c2 r", "IIIC2"),
        ("stage 4a", "IVA"),
        ("III", "III"),
        ("3", "III"),
    ],
)
def test_spellings(cell: str, stage: str) -> None:
    found = read_stage(cell, 2018)
    assert isinstance(found, FigoStage)
    assert (found.stage, found.edition) == (stage, 2018)


@pytest.mark.parametrize(
    "cell", ["0", "V", "IIC", "IB4", "IIB1", "IVC", "IIBr", "T2b", "5", "IIA-IIB", "II?", "x" * 10**5]
)
def test_what_is_no_stage_is_not_guessed(cell: str) -> None:
    assert read_stage(cell, 2018) is ClinicalProblem.UNKNOWN_LEVEL


def test_ii_alone_lies_on_two_levels() -> None:
    assert read_stage("Stage II", 2009) is ClinicalProblem.INCOMPLETE_STAGE


@pytest.mark.parametrize(
    ("cell", "column", "expected"),
    [
        ("IIB", "", 2018),
        ("IIB", "2009", 2009),
        ("IIB", "FIGO 2014", 2009),
        ("IIB (2009)", "", 2009),
        ("IIB 2009", "2009", 2009),
        ("IIB (2009)", "2018", ClinicalProblem.CONFLICTING_EDITION),
        ("IIB", "1850", ClinicalProblem.UNKNOWN_EDITION),
        ("IIB", "old", ClinicalProblem.UNKNOWN_EDITION),
        ("IIB (1994)", "", ClinicalProblem.UNKNOWN_EDITION),
    ],
)
def test_the_edition_is_the_cells_or_the_columns_or_the_default(cell: str, column: str, expected: object) -> None:
    found = read_stage(cell, 2018, column)
    assert (found.edition if isinstance(found, FigoStage) else found) == expected


@given(
    st.sampled_from(ALL),
    st.sampled_from(["{}", "Stage {}", "FIGO {}", "FIGO {} (2018)", "stage: {}", "{} (FIGO 2018)", "[{}]"]),
    st.booleans(),
    st.booleans(),
)
def test_any_stage_in_any_dress(stage: tuple[str, str], dress: str, digits: bool, small: bool) -> None:
    name, level = stage
    roman = name.rstrip("ABC123")
    written = f"{('I', 'II', 'III', 'IV').index(roman) + 1}{name[len(roman) :]}" if digits else name
    cell = dress.format(written)
    assert read_stage(cell.lower() if small else cell, 2018) == FigoStage(name, level, 2018)


@given(st.text(), st.sampled_from([2009, 2018]), st.text())
def test_any_text_gives_a_stage_or_a_problem(cell: str, edition: int, column: str) -> None:
    found = read_stage(cell, edition, column)
    assert isinstance(found, ClinicalProblem) or found.level in FIGO_LEVELS


def test_the_edition_is_kept_beside_the_rank_and_out_of_the_similarity() -> None:
    variable = FigoVariable(name="stage", edition=2018, edition_column="edition")
    rows = encode(
        [{"stage": "IB1", "edition": "2009"}, {"stage": "IB3"}, {"stage": "IB3", "edition": "2009"}], [variable]
    )
    assert rows.values[:, 0].tolist() == [1, 1, 0]
    assert rows.observed[:, 0].tolist() == [True, True, False]
    assert rows.editions[:, 0].tolist() == [2009, 2018, 0]


def test_a_job_declares_a_figo_stage_beside_others() -> None:
    job = parse_job(
        {
            "name": "j",
            "modalities": ["CT"],
            "objectives": [{"kind": "masked_reconstruction"}],
            "clinical": [{"kind": "figo", "name": "stage", "edition": 2009, "edition_column": "edition"}],
        }
    )
    assert job.clinical == (FigoVariable(name="stage", edition=2009, edition_column="edition"),)


@pytest.mark.realdata
def test_the_stages_of_the_tcga(real_data: Path) -> None:
    table = read_table(real_data / "clinical" / "tcga_cesc_clinical_core.csv", what="the table", required=())
    variable = FigoVariable(name="clinical_stage", edition=2009)
    rows = encode(table.rows, [variable])
    levels = Counter(FIGO_LEVELS[int(rank)] for rank in rows.values[rows.observed])
    assert levels == {"I": 8, "IB": 155, "IIA": 22, "IIB": 44, "III": 46, "IV": 21}
    (report,) = check_rows(table.rows, [variable])
    assert (report.observed, report.missing) == (296, 7)
    assert report.problems == {ClinicalProblem.INCOMPLETE_STAGE: 5}  # five women with "Stage II" and no letter
    assert report.editions == {2009: 296}
    # A second, dumber reading: the first character behind "Stage" in the table's own coarse column.
    own = Counter(row["clinical_stage_combined"].removeprefix("Stage ") for row in table.rows)
    assert own["I"] == levels["I"] + levels["IB"]
    assert own["II"] == levels["IIA"] + levels["IIB"] + 5
    assert (own["III"], own["IV"]) == (levels["III"], levels["IV"])
