"""What is suspected: planted faults are found, and a good cohort raises no alarm."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from faulty_cohorts import copy_flipped, phantom

from parametrium.cohort.manifest import read_cohort
from parametrium.report.quality.measure import Measured
from parametrium.report.quality.pairs import Pair
from parametrium.report.quality.survey import Surveyed, survey
from parametrium.report.quality.suspicion import LEAST_OVERLAP, misaligned, suspicions, unphysical

MODALITIES = ("CT", "T1", "T2", "PET")
PATIENTS = 7


@pytest.fixture(scope="module")
def surveyed(tmp_path_factory: pytest.TempPathFactory) -> list[Surveyed]:
    """A good cohort of every modality whose names are told apart."""
    folder = phantom(tmp_path_factory.mktemp("cohort"), PATIENTS, MODALITIES, seed=3)
    return survey(read_cohort(folder, MODALITIES).volumes, tmp_path_factory.mktemp("page"), jobs=2)


def renamed(surveyed: Sequence[Surveyed], names: dict[int, str]) -> list[Surveyed]:
    return [
        replace(item, volume=replace(item.volume, modality=names[n])) if n in names else item
        for n, item in enumerate(surveyed)
    ]


def places(surveyed: Sequence[Surveyed], patient: str) -> dict[str, int]:
    return {item.volume.modality: n for n, item in enumerate(surveyed) if item.volume.patient == patient}


def changed(surveyed: Sequence[Surveyed], n: int, **fields: object) -> list[Surveyed]:
    found = surveyed[n].found
    assert isinstance(found, Measured)
    result = list(surveyed)
    result[n] = replace(surveyed[n], found=replace(found, **fields))  # type: ignore[arg-type]
    return result


def test_a_good_cohort_raises_no_alarm(surveyed: list[Surveyed]) -> None:
    assert len(surveyed) == PATIENTS * len(MODALITIES)
    assert suspicions(surveyed) == []


@pytest.mark.parametrize("pair", list(combinations(MODALITIES, 2)), ids="-".join)
def test_two_swapped_names_are_found_and_nobody_else_is(surveyed: list[Surveyed], pair: tuple[str, str]) -> None:
    first, second = pair
    hits = 0
    for patient in ("p000", "p003", "p006"):
        own = places(surveyed, patient)
        swapped = {own[first]: second, own[second]: first}
        found = {s.volume for s in suspicions(renamed(surveyed, swapped)) if s.kind == "mislabelled"}
        assert found <= set(swapped)
        hits += len(found)
    assert hits >= 5  # of 6: T1 and T2 of one scanner are near each other


def test_a_third_of_a_modality_under_a_wrong_name_is_still_found(surveyed: list[Surveyed]) -> None:
    names = {}
    for patient in ("p001", "p002"):
        own = places(surveyed, patient)
        names |= {own["CT"]: "T2", own["T2"]: "CT"}
    found = {s.volume for s in suspicions(renamed(surveyed, names)) if s.kind == "mislabelled"}
    assert found == set(names)


def test_physics_speaks_where_a_modality_has_one_volume(surveyed: list[Surveyed]) -> None:
    own = places(surveyed, "p000")
    few = [surveyed[own[name]] for name in ("CT", "T2", "PET")]
    assert suspicions(few) == []
    for truth, wrong in (("T2", "CT"), ("CT", "T2"), ("CT", "PET"), ("T2", "PET"), ("PET", "ADC"), ("PET", "CT")):
        volume = surveyed[own[truth]]
        found = suspicions([replace(volume, volume=replace(volume.volume, modality=wrong))])
        assert [s.kind for s in found] == ["mislabelled"], (truth, wrong)


def test_hounsfield_units_without_their_offset_are_told(surveyed: list[Surveyed]) -> None:
    volume = surveyed[places(surveyed, "p000")["CT"]].found
    assert isinstance(volume, Measured)
    assert unphysical(volume, "CT") == ""
    lifted = replace(volume, whole=tuple(value + 1024 for value in volume.whole))
    assert "not rescaled" in unphysical(lifted, "CT")


def test_the_same_voxels_under_two_names_are_one_duplicate(surveyed: list[Surveyed], tmp_path: Path) -> None:
    first = surveyed[places(surveyed, "p001")["T2"]].volume
    copy_flipped(first.path, tmp_path / "again.nii.gz")
    copy = replace(first, patient="p777", path=tmp_path / "again.nii.gz")
    again = survey([copy], tmp_path / "page")
    found = [s for s in suspicions([*surveyed, *again]) if s.kind == "duplicate"]
    assert [(s.volume, s.others) for s in found] == [(surveyed.index(_of(surveyed, first)), (len(surveyed),))]
    assert "other places" in found[0].text


def _of(surveyed: list[Surveyed], volume: object) -> Surveyed:
    return next(item for item in surveyed if item.volume is volume)


@pytest.mark.parametrize(
    ("field", "factor", "word"),
    [("spacing_mm", 3.0, "voxel"), ("body_litres", 0.2, "body"), ("body", 6.0, "percentile")],
)
def test_a_number_far_from_its_peers_is_an_outlier(
    surveyed: list[Surveyed], field: str, factor: float, word: str
) -> None:
    n = places(surveyed, "p005")["PET"]
    value = getattr(surveyed[n].found, field)
    odd = tuple(np.multiply(value, factor)) if isinstance(value, tuple) else value * factor
    found = [s for s in suspicions(changed(surveyed, n, **{field: odd})) if s.kind == "outlier"]
    assert [s.volume for s in found] == [n]
    assert word in found[0].text


def test_bodies_that_do_not_lie_on_each_other_are_told() -> None:
    pairs = [Pair(0, 1, 0.97, b""), Pair(0, 2, LEAST_OVERLAP - 0.01, b""), Pair(3, 4, None, b"")]
    assert [(s.volume, s.others) for s in misaligned(pairs)] == [(2, (0,)), (4, (3,))]


@pytest.mark.realdata
def test_public_scans_raise_no_alarm_and_swaps_among_them_are_found(real_data: Path, tmp_path: Path) -> None:
    from parametrium.cohort.importers.folders import import_folders
    from parametrium.config import VOCABULARY

    import_folders(real_data / "cohorts/sarcoma", tmp_path / "c", secret=tmp_path / "secret", vocabulary=VOCABULARY)
    volumes = read_cohort(tmp_path / "c", VOCABULARY).volumes[:24]
    good = survey(volumes, tmp_path / "page", jobs=2)
    assert suspicions(good) == []
    own = places(good, volumes[0].patient)
    for first, second in combinations(("CT", "PET", "T1"), 2):
        swapped = {own[first]: second, own[second]: first}
        assert {s.volume for s in suspicions(renamed(good, swapped)) if s.kind == "mislabelled"} == set(swapped)
