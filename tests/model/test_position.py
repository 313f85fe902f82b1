"""The fixed position code: distinct, bounded, in millimetres (METHODS 2.2, 9.5)."""

import math

import pytest
import torch

from parametrium.model.position import HIGHEST, UNIT_MM, grid_positions, position_code


def test_every_patch_of_a_grid_has_its_own_finite_code() -> None:
    code = position_code(grid_positions((96, 96, 96), 8, (1.5, 1.5, 1.5)), 96)
    assert torch.isfinite(code).all()
    assert float(code.abs().max()) <= 1
    distance = torch.cdist(code, code) + 1e3 * torch.eye(len(code))
    assert float(distance.min()) > 1e-2


@pytest.mark.parametrize("width", [24, 96, 100, 384])
def test_the_code_fills_the_width(width: int) -> None:
    code = position_code(torch.tensor([[10.0, 20.0, 30.0]]), width)
    assert code.shape == (1, width)
    assert (code[0, width // 6 * 6 :] == 0).all()


def test_frequencies_are_log_spaced_from_low_to_high() -> None:
    bands = 16
    offset = 1e-3  # millimetres: sin(x) = x
    code = position_code(torch.tensor([[offset, 0.0, 0.0]]), 6 * bands)
    frequencies = code[0, :bands] / (offset / UNIT_MM)
    assert float(frequencies[0]) == pytest.approx(math.pi / 2, rel=1e-3)
    assert float(frequencies[-1]) == pytest.approx(math.pi * HIGHEST / 2, rel=1e-3)
    ratios = frequencies[1:] / frequencies[:-1]
    assert torch.allclose(ratios, ratios[:1].expand_as(ratios), rtol=1e-3)


def test_the_code_depends_on_millimetres_not_on_voxels() -> None:
    fine = grid_positions((32, 32, 32), 8, (1.0, 1.0, 1.0))
    coarse = grid_positions((16, 16, 16), 4, (2.0, 2.0, 2.0))
    assert torch.equal(fine, coarse)


def test_positions_follow_the_order_of_patches() -> None:
    positions = grid_positions((8, 8, 16), 8, (1.0, 2.0, 3.0))
    assert positions.tolist() == [[0.0, 0.0, -12.0], [0.0, 0.0, 12.0]]
