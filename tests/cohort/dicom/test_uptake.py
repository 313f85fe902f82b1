"""PET to SUVbw: by the reference time that the header means, or refused by what is missing."""

import math
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from dicom_files import item, volume, write_series
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as Items

from parametrium.cohort.dicom.choice import choose
from parametrium.cohort.dicom.convert import convert_series
from parametrium.cohort.dicom.facts import Choice, Converted, Facts, LeftOut
from parametrium.cohort.dicom.header import Uptake
from parametrium.cohort.dicom.uptake import SuvScale, suv_scale
from parametrium.cohort.problem import Reason

INJECTED = datetime(2020, 2, 29, 9, 11, 12)
HALF_LIFE = 6586.2
FULL = Uptake(
    weight_kg=70.0,
    dose_bq=350e6,
    half_life_s=HALF_LIFE,
    injected=INJECTED,
    series=INJECTED + timedelta(hours=1),
    acquired=INJECTED + timedelta(hours=1),
    decay_correction="START",
    corrected=("ATTN", "DECY"),
)


def facts(units: str = "BQML", suv_type: str = "") -> Facts:
    return Facts(modality="PT", units=units, suv_type=suv_type)


def factor(uptake: Uptake, units: str = "BQML", suv_type: str = "") -> float:
    scale = suv_scale(facts(units, suv_type), [uptake])
    assert isinstance(scale, SuvScale)
    return scale.factor


def test_decay_to_the_scan_start() -> None:
    dose_then = 350e6 * 0.5 ** (3600 / HALF_LIFE)
    assert factor(FULL) == pytest.approx(70_000 / dose_then)


def test_activity_corrected_to_the_injection_needs_no_decay() -> None:
    admin = replace(FULL, decay_correction="ADMIN", half_life_s=None, injected=None)
    assert factor(admin) == pytest.approx(70_000 / 350e6)


def test_uniform_activity_has_uptake_one() -> None:
    """A dose spread evenly over the patient's weight, at 1 g/ml, is SUV 1 whenever it is looked at."""
    for minutes in (0, 30, 90):
        start = INJECTED + timedelta(minutes=minutes)
        concentration = 350e6 * 0.5 ** (60 * minutes / HALF_LIFE) / 70_000
        assert concentration * factor(replace(FULL, series=start, acquired=start)) == pytest.approx(1.0)


def test_a_series_time_rewritten_by_a_workstation_is_not_the_scan_start() -> None:
    later = replace(FULL, series=INJECTED + timedelta(hours=30))
    # GE says when the scan began.
    ge = replace(later, scan_start=INJECTED + timedelta(hours=1), acquired=INJECTED + timedelta(hours=1, minutes=9))
    assert factor(ge) == pytest.approx(factor(FULL))
    # Others say when, after the start, the frame's mean count rate was.
    frame, offset = 240.0, 600.0  # a frame of 4 minutes that began 10 minutes after the scan's start
    times = np.linspace(0, frame, 100_001)
    activity = np.exp2(-times / HALF_LIFE)
    mean = -HALF_LIFE * math.log2(np.trapezoid(activity, times) / frame)  # when the rate equals its mean
    began = INJECTED + timedelta(hours=1, seconds=offset)
    siemens = replace(later, acquired=began, frame_reference_s=offset + mean, frame_s=frame)
    assert factor(siemens) == pytest.approx(factor(FULL), rel=1e-6)
    assert suv_scale(facts(), [later]) == Reason.NO_INJECTION_TIME


def test_the_earliest_bed_position_tells_the_start() -> None:
    beds = [replace(FULL, acquired=INJECTED + timedelta(hours=1, minutes=4 * bed)) for bed in (3, 0, 1)]
    scale = suv_scale(facts(), beds)
    assert isinstance(scale, SuvScale)
    assert scale.factor == pytest.approx(factor(FULL))
    assert scale.minutes_after_injection == pytest.approx(60)


def test_an_injection_before_midnight() -> None:
    start = datetime(2020, 3, 1, 0, 20)
    late = replace(FULL, injected=datetime(2020, 3, 1, 23, 50), series=start, acquired=start)  # its day is unknown
    scale = suv_scale(facts(), [late])
    assert isinstance(scale, SuvScale)
    assert scale.minutes_after_injection == pytest.approx(30)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"weight_kg": None}, Reason.NO_WEIGHT),
        ({"weight_kg": 0.0}, Reason.NO_WEIGHT),
        ({"weight_kg": 70_000.0}, Reason.NO_WEIGHT),
        ({"dose_bq": None}, Reason.NO_INJECTED_DOSE),
        ({"dose_bq": 350.0}, Reason.NO_INJECTED_DOSE),  # MBq
        ({"injected": None}, Reason.NO_INJECTION_TIME),
        ({"injected": datetime(2019, 2, 28)}, Reason.NO_INJECTION_TIME),
        ({"half_life_s": None}, Reason.NO_INJECTION_TIME),
        ({"decay_correction": "NONE"}, Reason.UNKNOWN_UNIT),
        ({"decay_correction": ""}, Reason.UNKNOWN_UNIT),
        ({"corrected": ("DECY",)}, Reason.NO_ATTENUATION_CORRECTION),
        ({"corrected": ("NORM", "DTIM")}, Reason.NO_ATTENUATION_CORRECTION),
        ({"corrected": ("ATTN",)}, Reason.UNKNOWN_UNIT),
    ],
)
def test_what_is_missing_is_named(change: dict[str, Any], reason: Reason) -> None:
    assert suv_scale(facts(), [replace(FULL, **change)]) == reason


def test_standardised_units() -> None:
    assert factor(Uptake(), "GML") == factor(Uptake(), "GML", "BW") == 1.0
    for suv_type in ("LBM", "BSA", "IBW"):
        assert suv_scale(facts("GML", suv_type), [FULL]) == Reason.UNKNOWN_UNIT
    for units in ("", "PROPCPS", "CM2ML"):
        assert suv_scale(facts(units), [FULL]) == Reason.UNKNOWN_UNIT


@pytest.mark.parametrize("units", ["BQML", "GML", "CNTS"])
def test_pet_without_attenuation_correction_is_left_out_in_every_unit(units: str) -> None:
    plain = replace(FULL, suv_factor=0.002, corrected=("DECY", "RAN"))
    assert suv_scale(facts(units), [FULL, plain]) is Reason.NO_ATTENUATION_CORRECTION
    assert isinstance(suv_scale(facts(units), [replace(plain, corrected=())]), SuvScale)  # not told is not said


@pytest.mark.parametrize(
    ("corrected", "reason"),
    [(["DECY", "ATTN"], None), ("", None), (["NORM"], Reason.NO_ATTENUATION_CORRECTION)],
)
def test_files_that_lack_attenuation_correction_are_not_decoded(
    tmp_path: Path, corrected: Any, reason: Reason | None
) -> None:
    files = write_pet(tmp_path / "in", CorrectedImage=corrected, **({"PixelData": b"\0\0"} if reason else {}))
    (tmp_path / "out").mkdir()
    (result,) = convert_series(files, lambda own: choose(own, (), ("PET",)), tmp_path / "out")
    assert (result.reason if isinstance(result, LeftOut) else None) is reason


def test_philips_counts() -> None:
    assert factor(Uptake(suv_factor=0.002), "CNTS") == 0.002
    assert factor(replace(FULL, activity_factor=3.0), "CNTS") == pytest.approx(3 * factor(FULL))
    assert suv_scale(facts("CNTS"), [FULL]) == Reason.UNKNOWN_UNIT
    assert suv_scale(facts("CNTS"), [Uptake(suv_factor=0.0)]) == Reason.UNKNOWN_UNIT


def write_pet(folder: Path, **changes: Any) -> list[Path]:
    """A Philips or other PET series with every number that SUV needs."""
    tracer = {"RadionuclideTotalDose": "350000000", "RadionuclideHalfLife": "6586.2"}
    tracer |= {"RadiopharmaceuticalStartTime": "091112"}

    def edit(dataset: Dataset, _k: int) -> None:
        dataset.RadiopharmaceuticalInformationSequence = Items([item(**tracer)])
        if changes.get("Units") == "CNTS":
            block = dataset.private_block(0x7053, "Philips PET Private Group", create=True)
            block.add_new(0x00, "DS", "0.004")

    elements = {"Units": "BQML", "DecayCorrection": "START", "PatientWeight": "70", "CorrectedImage": ["DECY", "ATTN"]}
    stored = volume(low=0, high=30_000)
    line = {"RescaleSlope": "1.5", "RescaleIntercept": "0"}
    return write_series(folder, stored, modality="PT", edit=edit, **(elements | line | changes))


def convert(files: list[Path], staging: Path) -> Converted | LeftOut:
    staging.mkdir()
    (result,) = convert_series(files, lambda facts: Choice("PET", "facts: test"), staging)
    return result


def test_from_files(tmp_path: Path) -> None:
    values = 1.5 * np.sort(volume(low=0, high=30_000), axis=None)
    result = convert(write_pet(tmp_path / "a"), tmp_path / "a_out")
    assert isinstance(result, Converted)
    expected = values * 70_000 / (350e6 * 0.5 ** (3600 / HALF_LIFE))
    np.testing.assert_allclose(np.sort(nibabel.load(result.file).get_fdata(), axis=None), expected, rtol=1e-5)
    assert result.sidecar["minutes_after_injection"] == 60.0
    assert result.sidecar["rescaled"] is True
    result = convert(write_pet(tmp_path / "b", Units="CNTS"), tmp_path / "b_out")
    assert isinstance(result, Converted)
    np.testing.assert_allclose(np.sort(nibabel.load(result.file).get_fdata(), axis=None), values * 0.004, rtol=1e-5)
    result = convert(write_pet(tmp_path / "c", PatientWeight=None), tmp_path / "c_out")
    assert isinstance(result, LeftOut)
    assert (result.reason, result.files) == (Reason.NO_WEIGHT, 5)
