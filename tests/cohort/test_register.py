"""Registering a cohort: what is known comes back, what must not be believed is refused, and tables stay sound."""

import hashlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from cohort_files import COLUMNS, ct, grid_affine, row, save, write_rows
from parametrium.cohort.manifest import Volume, read_cohort
from parametrium.cohort.phantom import write_phantom
from parametrium.cohort.phantom.visit import displacement, rigid, setup_pose
from parametrium.cohort.problem import Reason
from parametrium.cohort.registration import RegistrationReport, Verdict, applied, read_decisions, register_cohort
from parametrium.cohort.registration import register as register_module
from parametrium.cohort.registration.frames import MOST_PARTNERS
from parametrium.cohort.registration.scan import GRID_MM, Scan, load_scan, scan_of
from parametrium.cohort.registration.verdict import Judgement, judge
from parametrium.cohort.rigid import matrix_of, rigid_of, turn_degrees
from parametrium.cohort.table import read_table
from parametrium.config import VOCABULARY
from parametrium.errors import CohortError

SEED, SITE, DISPLACED_MM = 5, "reg", 12.0
MODALITIES = ("CT", "CBCT", "T2")
TABLES = ("cohort.csv", "masks.csv", "registration.csv")


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two patients, every volume but the CT displaced."""
    folder = tmp_path_factory.mktemp("phantom") / "cohort"
    write_phantom(
        folder,
        patients=2,
        modalities=MODALITIES,
        seed=SEED,
        site=SITE,
        misregistration_mm=DISPLACED_MM,
        jobs=1,
    )
    rows = [cells for cells in _rows(folder) if cells["path"] != "p001/s0/T2.nii.gz"]  # three pairs tell enough
    write_rows(folder / "cohort.csv", rows)
    return folder


@pytest.fixture(scope="module")
def registered(untouched: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RegistrationReport]:
    folder = tmp_path_factory.mktemp("registered") / "cohort"
    shutil.copytree(untouched, folder)
    return folder, register_cohort(folder, jobs=0)


def _volume(folder: Path, patient: int, modality: str) -> Volume:
    name = f"p{patient:03d}"
    return Volume(name, "s0", 0, modality, folder / name / "s0" / f"{modality}.nii.gz", "f")


def _scan(folder: Path, patient: int, modality: str) -> Scan:
    scan = load_scan(_volume(folder, patient, modality))
    assert isinstance(scan, Scan)
    return scan


def _contents(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _tables(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in TABLES if (folder / name).exists()]


def _organs(folder: Path, patient: str) -> np.ndarray:
    """Centroids of the organs, mm [4, N], from the masks, which lie in the CT's frame."""
    points = []
    for path in sorted((folder / patient / "s0" / "masks").glob("*.nii.gz")):
        image = nibabel.load(path)
        points.append(image.affine @ (*ndimage.center_of_mass(np.asarray(image.dataobj)), 1.0))
    return np.array(points).T


def test_every_displaced_volume_comes_back_to_its_organs(registered: tuple[Path, RegistrationReport]) -> None:
    folder, report = registered
    assert report.summary() == {"accepted": 3, "skipped": 0, "lost": 0}
    for patient in read_cohort(folder, VOCABULARY).patients:
        index = int(patient.name[1:])
        setup = setup_pose(SEED, SITE, index, 0)
        organs = _organs(folder, patient.name)
        assert {volume.frame for volume in patient.volumes} == {"s0"}
        for volume in patient.volumes:
            if volume.modality == "CT":
                continue
            away = setup @ displacement(DISPLACED_MM, volume.modality, SEED, SITE, index, 0) @ np.linalg.inv(setup)
            before = np.linalg.norm((away @ organs - organs)[:3], axis=0)
            after = np.linalg.norm((matrix_of(volume.moved) @ away @ organs - organs)[:3], axis=0)
            assert before.mean() > 6
            assert after.max() < 1.0, volume.modality


def test_the_record_says_by_which_numbers(registered: tuple[Path, RegistrationReport]) -> None:
    folder, report = registered
    assert read_decisions(folder) == report.decisions
    for decision in report.decisions:
        number = {name: float(cell) for name, cell in decision.numbers.items()}
        assert number["metric_after"] > number["metric_before"] > 1
        assert number["metric_after"] > number["metric_mirrored"]
        assert number["overlap_after"] >= number["overlap_before"] > 0.9
        assert 5 < number["translation_mm"] < 25
        assert number["rotation_deg"] == pytest.approx(turn_degrees(matrix_of(decision.moved)), abs=1e-3)
        assert number["halves_mm"] < 2
        assert decision.names["target_modality"] == "CT"


def test_no_file_but_the_tables_is_changed(untouched: Path, registered: tuple[Path, RegistrationReport]) -> None:
    before, after = _contents(untouched), _contents(registered[0])
    assert {name for name in after if after[name] != before.get(name)} == {"cohort.csv", "registration.csv"}
    assert before.keys() <= after.keys()


def test_a_second_run_changes_nothing(registered: tuple[Path, RegistrationReport]) -> None:
    before = _contents(registered[0])
    assert register_cohort(registered[0], jobs=0).decisions == ()
    assert _contents(registered[0]) == before


def test_processes_do_not_change_a_bit(
    untouched: Path, registered: tuple[Path, RegistrationReport], tmp_path: Path
) -> None:
    shutil.copytree(untouched, tmp_path / "cohort")
    told: list[tuple[int, int]] = []
    report = register_cohort(tmp_path / "cohort", jobs=2, progress=lambda done, total: told.append((done, total)))
    assert report == registered[1]
    assert _tables(tmp_path / "cohort") == _tables(registered[0])
    assert told == [(0, 2), (1, 2), (2, 2)]


def test_a_pair_that_is_aligned_already_stays(untouched: Path) -> None:
    setup = setup_pose(SEED, SITE, 0, 0)
    back = setup @ np.linalg.inv(displacement(DISPLACED_MM, "T2", SEED, SITE, 0, 0)) @ np.linalg.inv(setup)
    aligned = load_scan(replace(_volume(untouched, 0, "T2"), moved=rigid_of(back)))
    assert isinstance(aligned, Scan)
    judgement = judge(_scan(untouched, 0, "CT"), aligned, 0)
    assert (judgement.verdict, judgement.shift_mm) == (Verdict.ACCEPTED, pytest.approx(0.0, abs=0.5))


def test_two_different_patients_are_refused(untouched: Path) -> None:
    assert judge(_scan(untouched, 0, "CT"), _scan(untouched, 1, "T2"), 0).verdict is not Verdict.ACCEPTED


def test_a_mirrored_volume_is_refused(untouched: Path) -> None:
    stored = nibabel.load(_volume(untouched, 0, "T2").path)
    voxels = np.asarray(stored.dataobj, dtype=np.float32)[::-1]  # left and right exchanged, as a wrong header has it
    mirrored = scan_of(voxels, stored.affine, "T2")
    assert isinstance(mirrored, Scan)
    judgement = judge(_scan(untouched, 0, "CT"), mirrored, 0)
    assert judgement.verdict in (Verdict.FITS_MIRRORED, Verdict.HALVES_DISAGREE)


def test_another_region_of_the_body_is_refused(untouched: Path) -> None:
    lower, upper = _scan(untouched, 0, "CT"), _scan(untouched, 0, "T2")
    cut = lower.image.shape[2] // 2 - 3
    lower = Scan("CT", lower.image[:, :, :cut], lower.body[:, :, :cut], lower.seen[:, :, :cut], lower.origin)
    cut = upper.image.shape[2] // 2 + 3
    raised = upper.origin + np.array([0, 0, GRID_MM * cut])
    upper = Scan("T2", upper.image[:, :, cut:], upper.body[:, :, cut:], upper.seen[:, :, cut:], raised)
    assert judge(lower, upper, 0).verdict is not Verdict.ACCEPTED


@pytest.mark.parametrize(("spacing", "turn"), [((3.0, 3.0, 3.0), 0.0), ((1.3, 2.0, 5.5), 0.3), ((6.0, 4.1, 3.9), -2.0)])
def test_the_coarse_grid_keeps_a_point_where_it_is(spacing: Sequence[float], turn: float) -> None:
    """A bright ball in a body, on any grid: its middle is found in the same world place."""
    affine = rigid(np.array([30.0, -20.0, 400.0]), np.array([turn, 0.1, -turn])) @ grid_affine(spacing)
    shape = [round(200 / step) for step in spacing]
    world = np.moveaxis(np.indices(shape), 0, -1) @ affine[:3, :3].T + affine[:3, 3]
    middle = (affine @ (*(np.array(shape) / 2), 1.0))[:3] + np.array([8.0, -5.0, 6.0])
    distance = np.linalg.norm(world - middle, axis=-1)
    voxels = np.where(distance < 80, np.where(distance < 25, 300.0, 0.0), -1000.0).astype(np.float32)
    scan = scan_of(voxels, affine, "CT")
    assert isinstance(scan, Scan)
    np.testing.assert_allclose(scan.centre, middle, atol=0.6)
    ball = ndimage.center_of_mass(scan.image > 1)
    np.testing.assert_allclose(scan.origin + GRID_MM * np.asarray(ball), middle, atol=0.6)


# From here on the pairs are judged by a stand-in: what matters is what becomes of the tables.


def _fake(
    verdicts: Mapping[str | tuple[str, str], Verdict], seen: list[tuple[str, str]] | None = None
) -> Callable[..., Judgement]:
    """Judges by target and moving modality, else by the moving one; shifts what it accepts by 1 mm along x."""
    step = np.eye(4)
    step[0, 3] = 1.0

    def judged(target: Scan, moving: Scan, seed: int) -> Judgement:
        if seen is not None:
            seen.append((target.modality, moving.modality))
        alone = verdicts.get(moving.modality, Verdict.ACCEPTED)
        return Judgement(verdicts.get((target.modality, moving.modality), alone), step)

    return judged


def _load(volume: Volume) -> Scan:
    """Nothing of a scan but its modality and study."""
    empty = np.zeros((1, 1, 1))
    return Scan(f"{volume.study}-{volume.modality}", empty, empty > 0, empty > 0, np.zeros(3))  # type: ignore[arg-type]


@pytest.fixture
def faked(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[tuple[str, str]]]:
    def install(verdicts: Mapping[str | tuple[str, str], Verdict] | None = None) -> list[tuple[str, str]]:
        seen: list[tuple[str, str]] = []
        monkeypatch.setattr(register_module, "judge", _fake(verdicts or {}, seen))
        monkeypatch.setattr(register_module, "load_scan", _load)
        return seen

    return install


def _cohort(
    folder: Path, *volumes: str, patients: Sequence[str] = ("p",), extra: Sequence[dict[str, str]] = ()
) -> Path:
    """Volumes named study-MODALITY-frame, s1 on day 0, s2 on day 10 and so on, with a mask in each frame."""
    rows, masks = [], []
    for patient in patients:
        for text in volumes:
            study, modality, frame = text.split("-")
            name = f"{patient}-{study}-{modality}.nii.gz"
            save(folder / name, ct())
            day = str(10 * int(study[1:]) - 10)
            rows.append(row(patient, name, study=study, modality=modality, frame=frame, day=day))
        for frame in dict.fromkeys(cells["frame"] for cells in rows if cells["patient"] == patient):
            cells = {
                "patient": patient,
                "study": "s1",
                "structure": "x",
                "path": f"{patient}{frame}.nii",
                "frame": frame,
            }
            save(folder / cells["path"], np.ones((4, 4, 4), np.uint8))
            masks.append(cells)
    write_rows(folder / "cohort.csv", [*rows, *extra], COLUMNS)
    write_rows(folder / "masks.csv", masks)
    return folder


def _rows(folder: Path, table: str = "cohort.csv") -> list[dict[str, str]]:
    return [dict(cells) for cells in read_table(folder / table, what="the table", required=()).rows]


def _where(folder: Path, table: str = "cohort.csv") -> dict[str, tuple[str, float]]:
    """Frame and shift along x by path."""
    return {
        cells["path"]: (cells["frame"], float((cells["moved"] or "1 0 0 0").split()[3]))
        for cells in _rows(folder, table)
    }


VISITS = ("s1-CT-a", "s1-PET-a", "s1-T2-b", "s1-ADC-b", "s2-T2-c", "s2-CBCT-d", "s3-CT-e", "s3-CBCT-f")


def test_within_a_visit_first_then_over_the_days(tmp_path: Path, faked: Callable[..., list[tuple[str, str]]]) -> None:
    seen = faked()
    register_cohort(_cohort(tmp_path, *VISITS), jobs=0)
    assert seen == [
        ("s1-CT", "s1-T2"),
        ("s2-T2", "s2-CBCT"),
        ("s3-CT", "s3-CBCT"),
        ("s1-T2", "s2-T2"),
        ("s1-CT", "s3-CT"),
    ]


def test_a_frame_moves_as_one_with_its_masks_and_all_that_joined_it(
    tmp_path: Path, faked: Callable[..., list[tuple[str, str]]]
) -> None:
    faked()
    register_cohort(_cohort(tmp_path, *VISITS), jobs=0)
    shifts = {"CT": 0, "PET": 0, "T2": 1, "ADC": 1}
    expected = {f"p-s1-{modality}.nii.gz": ("a", float(shift)) for modality, shift in shifts.items()}
    expected |= {"p-s2-T2.nii.gz": ("a", 1.0), "p-s2-CBCT.nii.gz": ("a", 2.0)}
    expected |= {"p-s3-CT.nii.gz": ("a", 1.0), "p-s3-CBCT.nii.gz": ("a", 2.0)}
    assert _where(tmp_path) == expected
    masks = {f"p{frame}.nii": ("a", float(shift)) for frame, shift in zip("abcdef", (0, 1, 1, 2, 1, 2), strict=True)}
    assert _where(tmp_path, "masks.csv") == masks
    assert all(volume.frame == "a" for volume in read_cohort(tmp_path, VOCABULARY).volumes)


def test_a_refused_frame_stays_and_is_tried_again_only_when_asked(
    tmp_path: Path, faked: Callable[..., list[tuple[str, str]]]
) -> None:
    faked({"s1-T2": Verdict.HALVES_DISAGREE})
    first = register_cohort(_cohort(tmp_path, *VISITS), jobs=0)
    assert first.summary() == {"accepted": 4, "halves_disagree": 1, "skipped": 0, "lost": 0}
    assert _where(tmp_path)["p-s1-T2.nii.gz"] == ("b", 0.0)
    before = _tables(tmp_path)
    seen = faked()
    assert register_cohort(tmp_path, jobs=0).summary() == {"skipped": 1, "lost": 0}
    assert (seen, _tables(tmp_path)) == ([], before)
    assert register_cohort(tmp_path, jobs=0, again=True).summary() == {"accepted": 1, "skipped": 0, "lost": 0}
    assert _where(tmp_path)["p-s1-ADC.nii.gz"] == ("a", 1.0)
    assert [decision.verdict for decision in read_decisions(tmp_path)] == [Verdict.ACCEPTED] * 5


def test_where_the_first_partner_is_refused_another_of_the_frame_is_tried(
    tmp_path: Path, faked: Callable[..., list[tuple[str, str]]]
) -> None:
    seen = faked({("s1-CT", "s1-ADC"): Verdict.METRIC_WORSE})
    folder = _cohort(tmp_path, "s1-CT-a", "s1-PET-a", "s1-T2-b", "s1-ADC-c")
    report = register_cohort(folder, jobs=0)
    assert seen == [("s1-CT", "s1-T2"), ("s1-CT", "s1-ADC"), ("s1-T2", "s1-ADC")]
    assert report.summary() == {"accepted": 2, "skipped": 0, "lost": 0}
    assert [(d.names["target_modality"], d.verdict.value) for d in read_decisions(folder)] == [
        ("CT", "accepted"),
        ("CT", "metric_worse"),
        ("T2", "accepted"),
    ]
    assert {frame for frame, _ in _where(folder).values()} == {"a"}
    before = _tables(folder)
    assert register_cohort(folder, jobs=0).decisions == ()
    assert _tables(folder) == before


def test_a_refused_frame_may_join_another_that_was_refused(
    tmp_path: Path, faked: Callable[..., list[tuple[str, str]]]
) -> None:
    """The two MR scans lie on each other, and neither on the CT: they stay together, beside it."""
    seen = faked({("s1-CT", "s1-T2"): Verdict.HALVES_DISAGREE, ("s1-CT", "s1-ADC"): Verdict.HALVES_DISAGREE})
    report = register_cohort(_cohort(tmp_path, "s1-CT-a", "s1-T2-b", "s1-ADC-c"), jobs=0)
    assert seen == [("s1-CT", "s1-T2"), ("s1-CT", "s1-ADC"), ("s1-T2", "s1-ADC")]
    assert report.summary() == {"accepted": 1, "halves_disagree": 1, "skipped": 0, "lost": 0}
    assert _where(tmp_path) == {
        "p-s1-CT.nii.gz": ("a", 0.0),
        "p-s1-T2.nii.gz": ("b", 0.0),
        "p-s1-ADC.nii.gz": ("b", 1.0),
    }
    fresh = _rows(tmp_path)
    for cells in fresh:
        cells |= {"frame": {"CT": "a", "T2": "b", "ADC": "c"}[cells["modality"]], "moved": ""}
    assert applied(read_decisions(tmp_path), tmp_path, fresh, [])[0] == _rows(tmp_path)


def test_the_patients_reference_is_the_last_resort_and_what_joined_a_frame_follows_it(
    tmp_path: Path, faked: Callable[..., list[tuple[str, str]]]
) -> None:
    seen = faked({("s2-T2", "s2-CBCT"): Verdict.NO_OVERLAP})
    register_cohort(_cohort(tmp_path, "s1-CT-a", "s2-T2-b", "s2-DCE-b", "s2-CBCT-c"), jobs=0)
    assert seen == [("s2-T2", "s2-CBCT"), ("s2-DCE", "s2-CBCT"), ("s1-CT", "s2-T2")]
    (tmp_path / "second").mkdir()
    refused = {(f"s2-{word}", "s2-CBCT"): Verdict.NO_OVERLAP for word in ("T2", "DCE")}
    seen = faked(refused)
    folder = _cohort(tmp_path / "second", "s1-CT-a", "s2-T2-b", "s2-DCE-b", "s2-CBCT-c")
    register_cohort(folder, jobs=0)
    assert seen == [("s2-T2", "s2-CBCT"), ("s2-DCE", "s2-CBCT"), ("s1-CT", "s2-CBCT"), ("s1-CT", "s2-T2")]
    assert {frame for frame, _ in _where(folder).values()} == {"a"}


def test_no_more_than_a_few_partners_are_tried_and_each_is_recorded(
    tmp_path: Path, faked: Callable[..., list[tuple[str, str]]]
) -> None:
    names = ("s1-CT-a", "s1-T1-a", "s1-T1c-a", "s1-FLAIR-a", "s1-PET-a", "s1-T2-b")
    seen = faked({"s1-T2": Verdict.FITS_MIRRORED})
    report = register_cohort(_cohort(tmp_path, *names), jobs=0)
    assert len(seen) == len(set(seen)) == MOST_PARTNERS
    assert len(report.decisions) == len(read_decisions(tmp_path)) == MOST_PARTNERS
    assert report.summary() == {"fits_mirrored": 1, "skipped": 0, "lost": 0}
    seen = faked()
    assert register_cohort(tmp_path, jobs=0).summary() == {"skipped": 1, "lost": 0}
    assert register_cohort(tmp_path, jobs=0, again=True).summary() == {"accepted": 1, "skipped": 0, "lost": 0}
    assert [decision.verdict for decision in read_decisions(tmp_path)] == [Verdict.ACCEPTED]


def test_pet_is_no_second_opinion_and_an_unusable_volume_is_tried_once(
    tmp_path: Path, faked: Callable[..., list[tuple[str, str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = faked({"s1-T2": Verdict.OVERLAP_WORSE})
    register_cohort(_cohort(tmp_path, "s1-CT-a", "s1-PET-a", "s1-T2-b"), jobs=0)
    assert seen == [("s1-CT", "s1-T2")]
    monkeypatch.setattr(register_module, "load_scan", lambda volume: Reason.NO_BODY)
    (tmp_path / "second").mkdir()
    report = register_cohort(_cohort(tmp_path / "second", "s1-CT-a", "s1-CBCT-a", "s1-T2-b"), jobs=0)
    assert [decision.verdict for decision in report.decisions] == [Verdict.UNUSABLE]


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_whatever_is_refused_no_pair_is_tried_twice_and_all_can_be_told_again(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Random visits and verdicts: the decisions alone make the registered tables from the source's own."""
    words = [f"s{n}-{m}" for n in (1, 2, 3) for m in ("CT", "T2", "ADC", "PET", "CBCT")]
    chosen = data.draw(st.lists(st.sampled_from(words), min_size=2, max_size=9, unique=True))
    names = [f"{word}-{word[:2]}{data.draw(st.sampled_from('abc'))}" for word in chosen]
    folder = _cohort(tmp_path_factory.mktemp("random"), *names)
    fresh = _rows(folder)
    refused = data.draw(st.sets(st.tuples(st.sampled_from(chosen), st.sampled_from(chosen))))
    seen: list[tuple[str, str]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(register_module, "judge", _fake(dict.fromkeys(refused, Verdict.METRIC_WORSE), seen))
        patch.setattr(register_module, "load_scan", _load)
        register_cohort(folder, jobs=0)
        tables = _tables(folder)
        assert register_cohort(folder, jobs=0).decisions == ()
    assert _tables(folder) == tables
    assert len(seen) == len(set(seen))
    registered = _rows(folder)
    again, _ = applied(read_decisions(folder), folder, fresh, [])
    assert [cells | {"moved": cells.get("moved", "")} for cells in again] == [
        cells | {"moved": cells.get("moved", "")} for cells in registered
    ]
    assert {cells["path"] for cells in registered if cells.get("moved")} <= {cells["path"] for cells in registered}


def test_a_visit_stays_together_where_the_step_over_the_days_is_refused(
    tmp_path: Path, faked: Callable[..., list[tuple[str, str]]]
) -> None:
    faked({"s3-CT": Verdict.FITS_MIRRORED})
    register_cohort(_cohort(tmp_path, *VISITS), jobs=0)
    where = _where(tmp_path)
    assert (where["p-s3-CT.nii.gz"], where["p-s3-CBCT.nii.gz"]) == (("e", 0.0), ("e", 1.0))


def test_tables_written_anew_get_their_registration_back(
    tmp_path: Path, faked: Callable[..., list[tuple[str, str]]]
) -> None:
    faked()
    _cohort(tmp_path, *VISITS, patients=("p", "q"))
    fresh = _rows(tmp_path), _rows(tmp_path, "masks.csv")
    register_cohort(tmp_path, jobs=0)
    registered = _rows(tmp_path), _rows(tmp_path, "masks.csv")
    decisions = read_decisions(tmp_path)

    def with_column(rows: list[dict[str, str]]) -> list[dict[str, str]]:
        return [cells | {"moved": cells.get("moved", "")} for cells in rows]

    for start in (fresh, registered, (registered[0], fresh[1]), (fresh[0], registered[1])):
        volumes, masks = applied(decisions, tmp_path, *start)
        assert with_column(volumes) == registered[0]
        assert with_column(masks) == registered[1]


def test_a_volume_that_comes_later_follows_its_frame(
    tmp_path: Path, faked: Callable[..., list[tuple[str, str]]]
) -> None:
    _cohort(tmp_path, *VISITS)
    faked()
    register_cohort(tmp_path, jobs=0)
    late = row("p", save(tmp_path / "late.nii.gz", ct()), study="s2", day="10", modality="ADC", frame="c")
    write_rows(tmp_path / "cohort.csv", [*_rows(tmp_path), late], (*COLUMNS, "moved"))
    seen = faked()
    assert register_cohort(tmp_path, jobs=0).decisions == ()
    where = _where(tmp_path)
    assert (seen, where[str(tmp_path / "late.nii.gz")]) == ([], where["p-s2-T2.nii.gz"])


def test_a_lead_that_joined_its_visit_may_still_lead_it_over_the_days(
    tmp_path: Path, faked: Callable[..., list[tuple[str, str]]]
) -> None:
    """The T2 joins a frame of two dull modalities and is from then on its sharpest volume."""
    seen = faked()
    register_cohort(_cohort(tmp_path, "s1-CT-a", "s2-ADC-b", "s2-PET-b", "s2-T2-c"), jobs=0)
    assert seen == [("s2-ADC", "s2-T2"), ("s1-CT", "s2-T2")]
    assert _where(tmp_path)["p-s2-T2.nii.gz"] == ("a", 2.0)
    assert register_cohort(tmp_path, jobs=0).decisions == ()


def test_a_run_that_died_between_the_tables_is_completed(
    tmp_path: Path, faked: Callable[..., list[tuple[str, str]]]
) -> None:
    seen = faked()
    old = _cohort(tmp_path, *VISITS) / "cohort.csv"
    content = old.read_bytes()
    register_cohort(tmp_path, jobs=0)
    before = _tables(tmp_path)
    old.write_bytes(content)
    seen.clear()
    assert register_cohort(tmp_path, jobs=0).decisions == ()
    assert (seen, _tables(tmp_path)) == ([], before)


def test_frames_that_were_named_anew_are_not_mistaken(
    tmp_path: Path, faked: Callable[..., list[tuple[str, str]]]
) -> None:
    faked()
    _cohort(tmp_path, "s1-CT-grid1", "s1-T2-grid2")
    register_cohort(tmp_path, jobs=0)
    fresh = [row("p", "p-s1-CT.nii.gz", frame="grid2"), row("p", "p-s1-T2.nii.gz", modality="T2", frame="grid1")]
    assert applied(read_decisions(tmp_path), tmp_path, fresh, []) == (fresh, [])


def test_a_volume_that_cannot_be_read_is_one_word(
    tmp_path: Path, faked: Callable[..., list[tuple[str, str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    _cohort(tmp_path, "s1-CT-a", "s2-CT-b", patients=("p", "q", "r"))
    for name in ("p-s1-CT", "p-s2-CT", "q-s1-CT", "q-s2-CT", "r-s1-CT", "r-s2-CT"):
        save(tmp_path / f"{name}.nii.gz", ct((48, 44, 40)))
    whole = (tmp_path / "p-s2-CT.nii.gz").read_bytes()
    (tmp_path / "p-s2-CT.nii.gz").write_bytes(whole[: len(whole) // 2])
    save(tmp_path / "q-s1-CT.nii.gz", ct((48, 44, 40)) * 0)
    faked()
    monkeypatch.setattr(register_module, "load_scan", load_scan)
    assert register_cohort(tmp_path, jobs=0).summary() == {"accepted": 1, "unusable": 2, "skipped": 0, "lost": 0}


def test_a_pair_that_breaks_the_method_is_one_word(
    tmp_path: Path, faked: Callable[..., list[tuple[str, str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaking(*_: Any) -> Judgement:
        raise RuntimeError("SENTINEL")

    faked()
    monkeypatch.setattr(register_module, "judge", breaking)
    _cohort(tmp_path, "s1-CT-a", "s1-T2-b")
    assert register_cohort(tmp_path, jobs=0).summary() == {"failed": 1, "skipped": 0, "lost": 0}
    assert b"SENTINEL" not in b"".join(_tables(tmp_path))


def test_a_line_that_nobody_can_read_stays_reported(
    tmp_path: Path, faked: Callable[..., list[tuple[str, str]]]
) -> None:
    faked()
    _cohort(tmp_path, "s1-CT-a", "s1-T2-b")
    with (tmp_path / "cohort.csv").open("a") as stream:
        stream.write("r,s1\nq,s1,0,T2,p-s1-T2.nii.gz,a,too,many\n")
    before = read_cohort(tmp_path, VOCABULARY).problems
    register_cohort(tmp_path, jobs=0)
    assert set(read_cohort(tmp_path, VOCABULARY).problems) == set(before)
    assert len(before) == 2


def test_an_interrupted_run_keeps_what_was_decided(tmp_path: Path, faked: Callable[..., list[tuple[str, str]]]) -> None:
    seen = faked()

    def stop(done: int, total: int) -> None:
        if done == 1:
            raise KeyboardInterrupt

    _cohort(tmp_path, "s1-CT-a", "s1-T2-b", patients=("p", "q", "r"))
    with pytest.raises(KeyboardInterrupt):
        register_cohort(tmp_path, jobs=0, progress=stop)
    assert [decision.names["patient"] for decision in read_decisions(tmp_path)] == ["p"]
    seen.clear()
    assert register_cohort(tmp_path, jobs=0).summary()["accepted"] == 2
    assert len(seen) == 2


def test_tables_that_cannot_be_written_are_an_error_without_names(
    tmp_path: Path, faked: Callable[..., list[tuple[str, str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left", "SENTINEL")

    faked()
    monkeypatch.setattr(register_module, "write_decisions", full)
    _cohort(tmp_path, "s1-CT-a", "s1-T2-b")
    with pytest.raises(CohortError, match="PM204") as caught:
        register_cohort(tmp_path, jobs=0)
    assert "SENTINEL" not in str(caught.value)


def _there_and_back(target: Volume, moving: Volume) -> tuple[Judgement, float]:
    """A volume that lies on its target is moved by 15 mm and 7 degrees; the verdict and the body's distance to home."""
    onto, home = load_scan(target), load_scan(moving)
    assert isinstance(onto, Scan)
    assert isinstance(home, Scan)
    middle = np.eye(4)
    middle[:3, 3] = home.centre
    away = middle @ rigid(np.array([9.0, -12.0, 4.0]), np.radians([4.0, -3.0, 5.0])) @ np.linalg.inv(middle)
    moved = load_scan(replace(moving, moved=rigid_of(away)))
    assert isinstance(moved, Scan)
    judgement = judge(onto, moved, 0)
    if judgement.there is None:
        return judgement, np.inf
    points = home.origin + GRID_MM * np.argwhere(home.body)
    error = (judgement.there @ away - np.eye(4))[:3] @ np.c_[points, np.ones(len(points))].T
    return judgement, float(np.linalg.norm(error, axis=0).mean())


@pytest.mark.realdata
@pytest.mark.parametrize(("modality", "limit_mm"), [("FLAIR", 1.0), ("T1c", 2.0)])
def test_a_real_head_comes_back_within_a_voxel(real_data: Path, modality: str, limit_mm: float) -> None:
    """Voxels are 2 x 2 x 7.5 mm; one patient's FLAIR to itself, and T1c to FLAIR."""
    folder = real_data / "cohorts" / "glioma" / "TCGA_CS_4944"
    flair, moving = (Volume("p", "s", 0, name, folder / f"{name}.nii.gz", "f") for name in ("FLAIR", modality))
    judgement, error = _there_and_back(flair, moving)
    assert judgement.verdict is Verdict.ACCEPTED
    assert error < limit_mm


@pytest.mark.realdata
@pytest.mark.parametrize("patient", ["STS_014", "STS_037"])
def test_a_piece_of_a_limb_that_fits_anywhere_is_refused(real_data: Path, patient: str) -> None:
    """Cropped around a tumour: 10 cm of a thigh tell PET neither its height nor its turn."""
    folder = real_data / "cohorts" / "sarcoma" / patient
    ct_, pet = (Volume("p", "s", 0, name, folder / f"{name}.nii.gz", "f") for name in ("CT", "PET"))
    judgement, error = _there_and_back(ct_, pet)
    assert judgement.verdict is not Verdict.ACCEPTED, error
