"""Rigid transforms in a table's cell."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from parametrium.cohort.rigid import IDENTITY, composed, format_rigid, matrix_of, parse_rigid, rigid_of, turn_degrees

angles = st.floats(-180, 180)
shifts = st.floats(-2000, 2000)


def _matrix(turn: tuple[float, ...], shift: tuple[float, ...]) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("xyz", turn, degrees=True).as_matrix()
    matrix[:3, 3] = shift
    return matrix


@given(st.tuples(angles, angles, angles), st.tuples(shifts, shifts, shifts))
def test_what_is_written_is_read(turn: tuple[float, ...], shift: tuple[float, ...]) -> None:
    matrix = _matrix(turn, shift)
    rigid = rigid_of(matrix)
    assert parse_rigid(format_rigid(rigid)) == rigid
    np.testing.assert_allclose(matrix_of(rigid), matrix, atol=1e-8)
    expected = np.degrees(np.linalg.norm(Rotation.from_matrix(matrix[:3, :3]).as_rotvec()))
    assert turn_degrees(matrix) == pytest.approx(expected, abs=1e-6)


@given(st.tuples(angles, angles, angles), st.tuples(shifts, shifts, shifts))
def test_there_and_back_is_nowhere(turn: tuple[float, ...], shift: tuple[float, ...]) -> None:
    matrix = _matrix(turn, shift)
    back = composed(rigid_of(np.linalg.inv(matrix)), rigid_of(matrix))
    np.testing.assert_allclose(back, IDENTITY, atol=2e-5)


def test_nothing_is_the_identity() -> None:
    assert parse_rigid("") == IDENTITY
    assert format_rigid(IDENTITY) == ""
    assert format_rigid(rigid_of(-np.eye(4) * -1)) == ""


@pytest.mark.parametrize(
    "cell",
    [
        "1 0 0 0 0 1 0 0 0 0 1",
        "1 0 0 0 0 1 0 0 0 0 1 0 0",
        "1 0 0 nan 0 1 0 0 0 0 1 0",
        "1 0 0 inf 0 1 0 0 0 0 1 0",
        "1 0 0 1e300 0 1 0 0 0 0 1 0",
        "1e300 0 0 0 0 1 0 0 0 0 1 0",
        "1 0 0 x 0 1 0 0 0 0 1 0",
        "-1 0 0 0 0 1 0 0 0 0 1 0",
        "1.001 0 0 0 0 1 0 0 0 0 1 0",
        "1 0.001 0 0 0 1 0 0 0 0 1 0",
        "0 0 0 0 0 0 0 0 0 0 0 0",
    ],
)
def test_what_is_no_rotation_and_shift_is_refused(cell: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_rigid(cell)
