"""Intensity rules and where the patient is."""

from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from cohort_files import ct
from parametrium.cohort import intensity
from parametrium.cohort.intensity import body_mask, normalise, rule_for
from parametrium.config import VOCABULARY, ForegroundRule, LogRule, WindowRule
from parametrium.errors import ConfigError

SHAPE = (24, 22, 20)


def _ball(
    shape: tuple[int, int, int] = SHAPE, radius: float = 8.0, centre: tuple[float, ...] | None = None
) -> np.ndarray:
    grid = np.indices(shape)
    middle = [(n - 1) / 2 for n in shape] if centre is None else centre
    return sum((axis - c) ** 2 for axis, c in zip(grid, middle, strict=True)) < radius**2


def _overlap(a: np.ndarray, b: np.ndarray) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


def test_every_modality_of_the_vocabulary_has_a_rule_and_a_job_may_replace_it() -> None:
    assert all(rule_for(modality, {}) for modality in VOCABULARY)
    own = WindowRule(lower=0.0, upper=80.0, centre=40.0, scale=40.0)
    assert rule_for("CT", {"CT": own}) is own
    assert rule_for("RTDOSE", {"RTDOSE": own}) is own
    with pytest.raises(ConfigError, match=r"preparation\.intensity\.RTDOSE"):
        rule_for("RTDOSE", {})


def test_known_values() -> None:
    image = np.array([[[-1000.0, -280.0, 0.0, 150.0, 3000.0]]], dtype=np.float32)
    everywhere = np.ones(image.shape, dtype=bool)
    window = normalise(image, everywhere, rule_for("CT", {}))
    np.testing.assert_allclose(window.ravel(), [-280 / 150, -280 / 150, 0, 1, 400 / 150], rtol=1e-6)
    log = normalise(image, everywhere, LogRule(upper=20.0, centre=0.5, scale=2.0))
    np.testing.assert_allclose(log.ravel()[[0, 4]], [-0.25, (np.log(21.0) - 0.5) / 2], rtol=1e-6)
    assert window.dtype == log.dtype == np.float32


@given(scale=st.floats(1e-3, 1e4), shift=st.floats(0, 1e3), seed=st.integers(0, 9))
def test_foreground_rule_forgets_the_scanners_unit(scale: float, shift: float, seed: int) -> None:
    body = _ball()
    image = np.random.default_rng(seed).gamma(4.0, 1.0, SHAPE).astype(np.float32)
    plain = normalise(image, body, ForegroundRule())
    other = normalise(
        (image * np.float32(scale) + np.float32(shift * scale)).astype(np.float32), body, ForegroundRule()
    )
    np.testing.assert_allclose(plain, other, atol=2e-2)
    assert abs(plain[body].mean()) < 1e-3
    assert abs(plain[body].std() - 1) < 1e-3
    assert np.abs(plain).max() <= 5.0


def test_degenerate_foregrounds_stay_finite() -> None:
    image = np.full(SHAPE, 7.0, dtype=np.float32)
    assert not normalise(image, np.zeros(SHAPE, dtype=bool), ForegroundRule()).any()
    assert np.isfinite(normalise(image, _ball(), ForegroundRule())).all()


@pytest.mark.parametrize("modality", VOCABULARY)
def test_an_empty_volume_has_no_body(modality: str) -> None:
    assert not body_mask(np.zeros(SHAPE, dtype=np.float32), modality).any()


@pytest.mark.parametrize(
    ("modality", "air", "tissue"),
    [("CT", -1000, 40), ("CBCT", -950, 80), ("PET", 0.01, 1.0), ("T1", 8, 300), ("ADC", 0, 1.2)],
)
def test_body_is_found_in_every_unit(modality: str, air: float, tissue: float) -> None:
    ball = _ball()
    noise = np.random.default_rng(0).normal(0, 0.03 * abs(tissue - air), SHAPE)
    image = (np.where(ball, tissue, air) + noise).astype(np.float32)
    assert _overlap(body_mask(image, modality), ball) > 0.9


def test_gas_is_body_and_a_couch_is_not() -> None:
    ball = _ball((40, 40, 20), 14)
    image = np.where(ball, 40.0, -1000.0).astype(np.float32)
    image[18:22, 18:22, :] = -1000.0
    image[:, 2, :] = 100.0
    body = body_mask(image, "CT")
    assert body[20, 20, 10]
    assert not body[:, 2, :].any()


def test_both_legs_are_body() -> None:
    legs = _ball((50, 24, 20), 9, (12, 12, 10)) | _ball((50, 24, 20), 8, (37, 12, 10))
    body = body_mask(np.where(legs, 40.0, -1000.0).astype(np.float32), "CT")
    assert _overlap(body, legs) > 0.95


def test_a_field_of_view_inside_the_patient_is_all_body() -> None:
    fat = _ball(radius=6)
    image = np.where(fat, 900.0, 350.0) + np.random.default_rng(0).normal(0, 30, SHAPE)
    assert body_mask(image.astype(np.float32), "T1").mean() > 0.99


def test_body_ends_with_the_field_of_view() -> None:
    seen = np.zeros(SHAPE, dtype=bool)
    seen[6:18] = True
    image = np.where(seen, ct(SHAPE), 0.0).astype(np.float32)
    body = body_mask(image, "CT", seen)
    assert body.any()
    assert not (body & ~seen).any()


@pytest.mark.realdata
@pytest.mark.parametrize("modality", ["PET", "T1"])
def test_a_patients_outline_agrees_between_modalities(real_data: Path, modality: str) -> None:
    """CT, whose units are calibrated, is the judge of the guessed thresholds."""
    overlaps = []
    for folder in sorted((real_data / "cohorts" / "sarcoma").glob("STS_00*")):
        images = {
            name: nibabel.load(folder / f"{name}.nii.gz").get_fdata(dtype=np.float32) for name in ("CT", modality)
        }
        overlaps.append(_overlap(body_mask(images["CT"], "CT"), body_mask(images[modality], modality)))
    assert np.median(overlaps) > 0.93
    assert min(overlaps) > 0.8


@given(seed=st.integers(0, 2**16), shape=st.tuples(*[st.integers(1, 7)] * 3), share=st.floats(0.2, 0.95))
def test_erosion_and_dilation_are_those_of_ndimage(seed: int, shape: tuple[int, int, int], share: float) -> None:
    mask = np.random.default_rng(seed).random(shape) < share
    for cube in (False, True):
        structure = ndimage.generate_binary_structure(3, 3 if cube else 1)
        assert np.array_equal(intensity._eroded(mask, cube=cube), ndimage.binary_erosion(mask, structure))
        assert np.array_equal(intensity._dilated(mask, cube=cube), ndimage.binary_dilation(mask, structure))
