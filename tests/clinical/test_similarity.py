"""Gower similarity over mixed variables, by hand and by its invariants (METHODS 9.2)."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from parametrium.clinical.schema import encode
from parametrium.clinical.similarity import expected_similarity, gower
from parametrium.config import ContinuousVariable, NominalVariable, OrdinalVariable
from parametrium.config.clinical import FIGO_LEVELS, FigoVariable

AGE = ContinuousVariable(name="age", unit="years", lower=18.0, upper=100.0, sigma=10.0)
STAGE = OrdinalVariable(name="stage", levels=("I", "II", "III"), weight=2.0)
HISTOLOGY = NominalVariable(name="histology", levels=("a", "b"))
SCHEMA = (AGE, STAGE, HISTOLOGY)


def similarity_of(rows: list[dict[str, str]]) -> tuple[torch.Tensor, torch.Tensor]:
    encoded = encode(rows, SCHEMA)
    return gower(torch.from_numpy(encoded.values), torch.from_numpy(encoded.observed), SCHEMA)


def test_three_patients_by_hand() -> None:
    rows = [
        {"age": "40", "stage": "I", "histology": "a"},
        {"age": "50", "stage": "III", "histology": "a"},
        {"age": "", "stage": "II"},
    ]
    gowers, coverage = similarity_of(rows)
    mean = expected_similarity(SCHEMA)
    first_second = (math.exp(-0.5) + 2 * 0.0 + 1.0) / 4
    assert gowers[0, 1] == pytest.approx(first_second, abs=1e-6)
    assert coverage[0, 1] == 1
    # Patients 0 and 2 share the stage alone: weight 2 of 4, similarity 1/2, the rest is the schema's mean.
    assert coverage[0, 2] == pytest.approx(0.5)
    assert gowers[0, 2] == pytest.approx(0.5 * 0.5 + 0.5 * mean, abs=1e-6)


def test_a_variable_without_weight_is_no_part_of_it() -> None:
    probed = (AGE.model_copy(update={"weight": 0.0}), STAGE, HISTOLOGY)
    rows = [{"age": "20", "stage": "I"}, {"age": "90", "stage": "II", "histology": "b"}, {"stage": "III"}]
    encoded = encode(rows, probed)
    values, observed = torch.from_numpy(encoded.values), torch.from_numpy(encoded.observed)
    for found, without in zip(
        gower(values, observed, probed), gower(values[:, 1:], observed[:, 1:], probed[1:]), strict=True
    ):
        assert torch.allclose(found, without)
    nothing = gower(values[:, :1], observed[:, :1], probed[:1])
    assert not nothing.coverage.any()
    assert not nothing.gower.any()


def test_two_empty_rows_are_not_alike() -> None:
    gowers, coverage = similarity_of([{}, {}, {"stage": "I"}])
    assert coverage.max() == pytest.approx(0.5)  # the third patient with itself
    assert coverage[0, 1] == 0
    assert gowers[0, 1] == pytest.approx(expected_similarity(SCHEMA))


def test_the_expected_similarity_is_that_of_uniform_draws() -> None:
    rng = np.random.default_rng(0)
    rows = [
        {"age": str(a), "stage": s, "histology": h}
        for a, s, h in zip(
            rng.uniform(18, 100, 1500), rng.choice(STAGE.levels, 1500), rng.choice(HISTOLOGY.levels, 1500), strict=True
        )
    ]
    gowers, _ = similarity_of(rows)
    off_diagonal = ~torch.eye(1500, dtype=torch.bool)
    assert float(gowers[off_diagonal].mean()) == pytest.approx(expected_similarity(SCHEMA), abs=0.01)


row = st.fixed_dictionaries(
    {
        "age": st.sampled_from(["", "18", "33.5", "100"]),
        "stage": st.sampled_from(["", *STAGE.levels]),
        "histology": st.sampled_from(["", *HISTOLOGY.levels]),
    }
)


@given(st.lists(row, min_size=1, max_size=6))
def test_similarity_is_symmetric_and_bounded(rows: list[dict[str, str]]) -> None:
    gowers, coverage = similarity_of(rows)
    for matrix in (gowers, coverage):
        assert torch.equal(matrix, matrix.T)
        assert float(matrix.min()) >= 0
        assert float(matrix.max()) <= 1 + 1e-6


@given(st.lists(row, min_size=2, max_size=6))
def test_order_of_patients_does_not_matter(rows: list[dict[str, str]]) -> None:
    order = list(range(len(rows)))[::-1]
    direct, _ = similarity_of(rows)
    shuffled, _ = similarity_of([rows[i] for i in order])
    assert torch.allclose(shuffled, direct[order][:, order])


def test_values_outside_the_schema_are_missing_and_counted() -> None:
    encoded = encode([{"age": "17"}, {"age": "old"}, {"stage": "V"}, {"age": "90", "stage": "I"}], SCHEMA)
    assert encoded.problems == {"age": 2, "stage": 1}
    assert encoded.observed.tolist() == [[False] * 3, [False] * 3, [False] * 3, [True, True, False]]


def test_a_logarithmic_variable_is_compared_on_its_log() -> None:
    volume = ContinuousVariable(name="v", unit="ml", lower=0.0, upper=500.0, sigma=1.0, log=True)
    encoded = encode([{"v": "0"}, {"v": str(math.e - 1)}], [volume])
    assert encoded.values[:, 0].tolist() == pytest.approx([0.0, 1.0])


def test_a_figo_stage_is_compared_as_an_ordinal_of_its_coarse_levels() -> None:
    cells = ["IA1", "IB3", "IIA2", "2b", "IIIC1r", "Stage IVB", "IIB (2009)"]
    levels = ["I", "IB", "IIA", "IIB", "III", "IV", "IIB"]
    figo, ordinal = FigoVariable(name="x"), OrdinalVariable(name="x", levels=FIGO_LEVELS)
    found, expected = (
        encode([{"x": cell} for cell in cells], [figo]),
        encode([{"x": level} for level in levels], [ordinal]),
    )
    assert found.values.tolist() == expected.values.tolist()
    pairs = [
        gower(torch.from_numpy(rows.values), torch.from_numpy(rows.observed), [variable])
        for rows, variable in ((found, figo), (expected, ordinal))
    ]
    assert torch.equal(pairs[0].gower, pairs[1].gower)
    assert pairs[0].gower[3, 6] == 1  # the edition makes no difference
    assert expected_similarity([figo]) == expected_similarity([ordinal])
