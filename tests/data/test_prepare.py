"""Preparing a cohort: what comes out, what is left out, and that nothing interrupts it into a half cache."""

import gzip
import multiprocessing
import os
import pickle
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st

from cohort_files import ct, grid_affine, row, save, small_cohort, write_rows
from parametrium.cohort.importers.folders import import_folders
from parametrium.cohort.manifest import Cohort, Problem, Reason, read_cohort
from parametrium.config import VOCABULARY, PreparationConfig, WindowRule
from parametrium.data import cache, prepare
from parametrium.data.cache import OCCUPANCY, PreparedCohort, PreparedVolume, keep_unpacked
from parametrium.data.prepare import prepare_cohort
from parametrium.data.recipe import Prepared, prepare_arrays, recipe_for
from parametrium.errors import CohortError, DataError

THREE_MM = PreparationConfig()


def _prepared(folder: Path, **options: Any) -> PreparedCohort:
    preparation = options.pop("preparation", THREE_MM)
    return prepare_cohort(read_cohort(folder, VOCABULARY), preparation, folder / "cache", **options)


def _only(cohort: PreparedCohort) -> PreparedVolume:
    (patient,) = cohort.patients
    (volume,) = patient.volumes
    return volume


def _whole(volume: PreparedVolume) -> tuple[np.ndarray, np.ndarray]:
    return volume.read(volume.offset, volume.shape)


def _entries(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "cache" / "volumes").iterdir())


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> PreparedVolume:
    folder = tmp_path_factory.mktemp("one")
    save(folder / "x.nii.gz", ct((40, 38, 36)), grid_affine((3.0, 3.0, 3.0), (-60.0, 30.0, 0.0)))
    write_rows(folder / "cohort.csv", [row("p", "x.nii.gz")])
    return _only(_prepared(folder))


def test_the_image_is_on_the_lattice_in_prepared_units(volume: PreparedVolume) -> None:
    image, body = _whole(volume)
    source = np.clip(ct((40, 38, 36)), -280, 400) / 150
    i, j, k = np.subtract(volume.offset, (-20, 10, 0))
    d, h, w = volume.shape
    np.testing.assert_allclose(image, source[i : i + d, j : j + h, k : k + w], atol=2e-3)
    assert image.dtype == np.float32
    assert 0.3 < body.mean() < 0.5
    assert image[body].mean() > 0.2
    assert not body[0].any()  # the margin


@given(low=st.tuples(*[st.integers(-25, 25)] * 3), shape=st.tuples(*[st.integers(1, 50)] * 3))
@settings(max_examples=60, deadline=None)
def test_a_crop_is_a_slice_of_the_whole(
    volume: PreparedVolume, low: tuple[int, int, int], shape: tuple[int, int, int]
) -> None:
    whole = _whole(volume)
    start = tuple(a + b for a, b in zip(volume.offset, low, strict=True))
    for crop, full in zip(volume.read(start, shape), whole, strict=True):
        padded = np.pad(full, 80)
        box = tuple(slice(80 + a, 80 + a + n) for a, n in zip(low, shape, strict=True))
        np.testing.assert_array_equal(crop, padded[box])


def test_a_crop_far_outside_is_empty(volume: PreparedVolume) -> None:
    image, body = volume.read((10**6, 0, 0), (4, 4, 4))
    assert not image.any()
    assert not body.any()


def test_foreground_positions_are_body(volume: PreparedVolume) -> None:
    positions = volume.foreground()
    _, body = _whole(volume)
    assert positions.shape == (2048, 3)
    assert body[tuple((positions - volume.offset).T)].all()
    assert len(np.unique(positions, axis=0)) == 2048
    np.testing.assert_array_equal(positions, volume.foreground())
    spread = positions.mean(axis=0) - volume.offset - np.argwhere(body).mean(axis=0)
    assert np.abs(spread).max() < 1.0


@given(low=st.tuples(*[st.integers(-25, 25)] * 3), shape=st.tuples(*[st.integers(1, 50)] * 3))
@settings(max_examples=60, deadline=None)
def test_the_share_of_body_is_counted_in_blocks(
    volume: PreparedVolume, low: tuple[int, int, int], shape: tuple[int, int, int]
) -> None:
    _, body = _whole(volume)
    first = [round(a / OCCUPANCY) * OCCUPANCY for a in low]
    last = [round((a + n) / OCCUPANCY) * OCCUPANCY for a, n in zip(low, shape, strict=True)]
    box = tuple(slice(max(a, 0), max(b, 0)) for a, b in zip(first, last, strict=True))
    corner = np.array([volume.offset]) + low
    assert volume.body_shares(corner, shape)[0] == pytest.approx(body[box].sum() / np.prod(shape))


def test_volumes_kept_unpacked_are_read_alike(volume: PreparedVolume) -> None:
    packed = volume.read(volume.offset, (9, 8, 7))
    bytes_needed = 3 * int(np.prod(volume.shape))
    assert not keep_unpacked([volume], bytes_needed - 1)
    assert keep_unpacked([volume], bytes_needed)
    for before, after in zip(packed, volume.read(volume.offset, (9, 8, 7)), strict=True):
        np.testing.assert_array_equal(before, after)


def test_the_last_call_says_what_is_kept_unpacked(tmp_path: Path) -> None:
    """Several cohorts in one process share the limit: what an earlier one kept is let go, and read as before."""
    first, second, third = (patient.volumes[0] for patient in _prepared(small_cohort(tmp_path)).patients)

    def kept() -> set[Path]:
        for volume in (first, second, third):
            _whole(volume)
        return {path.parent for path in cache._unpacked}

    expected = _whole(first)[0]
    assert keep_unpacked([first, second])
    assert kept() == {first.folder, second.folder}
    unpacked = cache._unpacked[second.folder / "image.b2nd"]
    assert keep_unpacked([second, third, third])
    assert set(cache._unpacked) == {second.folder / "image.b2nd", second.folder / "body.b2nd"}
    assert cache._unpacked[second.folder / "image.b2nd"] is unpacked  # what stays wanted is not read again
    assert kept() == {second.folder, third.folder}
    assert not keep_unpacked([first], limit=1)
    assert kept() == set()
    np.testing.assert_array_equal(_whole(first)[0], expected)


def test_volumes_of_one_frame_meet_by_integers(tmp_path: Path) -> None:
    """Two grids of one blob: the same lattice box holds the same blob."""
    rows = []
    for name, spacing, origin in [
        ("a", (2.0, 2.5, 3.0), (-40.2, -45.1, -30.3)),
        ("b", (3.1, 2.9, 2.2), (-44.0, -40.0, -33.0)),
    ]:
        affine = grid_affine(spacing, origin)
        world = np.indices((40, 36, 30)) * np.reshape(spacing, (3, 1, 1, 1)) + np.reshape(origin, (3, 1, 1, 1))
        blob = 400 * np.exp(-((world - np.reshape((2, 5, -1), (3, 1, 1, 1))) ** 2).sum(axis=0) / 800) - 100
        rows.append(row("p", save(tmp_path / f"{name}.nii.gz", blob.astype(np.float32), affine), study=name))
    write_rows(tmp_path / "cohort.csv", rows)
    first, second = _prepared(tmp_path).patients[0].volumes
    assert first.offset != second.offset
    low, shape = (-6, -5, -6), (12, 12, 10)
    np.testing.assert_allclose(first.read(low, shape)[0], second.read(low, shape)[0], atol=0.03)


def test_volumes_of_one_frame_share_the_box_of_the_body_in_all_of_them(tmp_path: Path) -> None:
    save(tmp_path / "a.nii.gz", ct((40, 38, 36)), grid_affine((3.0, 3.0, 3.0), (-60.0, 30.0, 0.0)))
    save(tmp_path / "b.nii.gz", ct((20, 38, 36)), grid_affine((3.0, 3.0, 3.0), (30.0, 30.0, 0.0)))
    save(tmp_path / "c.nii.gz", ct((30, 38, 36), seed=1), grid_affine((3.0, 3.0, 3.0), (30.0, 30.0, 0.0)))
    rows = [row("p", "a.nii.gz"), row("p", "b.nii.gz", modality="T1"), row("p", "c.nii.gz", frame="other", study="s2")]
    write_rows(tmp_path / "cohort.csv", rows)
    (patient,) = _prepared(tmp_path).patients
    a, b, other = patient.volumes
    assert a.box == b.box != other.box
    for axis in range(3):
        places = [v.foreground()[:, axis] for v in (a, b)]
        low, high = min(p.min() for p in places), max(p.max() for p in places)
        assert low <= a.box[0][axis] <= low + 2
        assert high - 2 <= a.box[1][axis] - 1 <= high


def test_slope_and_intercept_come_before_the_rule(tmp_path: Path) -> None:
    save(tmp_path / "hu.nii.gz", ct())
    save(tmp_path / "shifted.nii.gz", (ct() + 1000) / 2)
    write_rows(
        tmp_path / "cohort.csv",
        [
            row("p", "hu.nii.gz") | {"slope": "1", "intercept": "0"},
            row("q", "shifted.nii.gz") | {"slope": "2", "intercept": "-1000"},
        ],
    )
    first, second = (patient.volumes[0] for patient in _prepared(tmp_path).patients)
    np.testing.assert_allclose(_whole(first)[0], _whole(second)[0], atol=2e-3)


def test_a_moved_volume_lies_where_its_table_puts_it(tmp_path: Path) -> None:
    """A quarter turn and a shift in the table give what the same turn and shift in the file's affine give."""
    moved = np.array([[0.0, -1.0, 0.0, 12.0], [1.0, 0.0, 0.0, -6.0], [0.0, 0.0, 1.0, 3.0], [0.0, 0.0, 0.0, 1.0]])
    affine = grid_affine((3.0, 2.0, 2.5), (-30.0, 10.0, 5.0))
    save(tmp_path / "plain.nii.gz", ct(), affine)
    save(tmp_path / "copy.nii.gz", ct(), affine)
    save(tmp_path / "turned.nii.gz", ct(), moved @ affine)
    cell = " ".join(str(value) for value in moved[:3].ravel())
    rows = [row(name, f"{name}.nii.gz", moved=cell if name == "copy" else "") for name in ("plain", "turned", "copy")]
    write_rows(tmp_path / "cohort.csv", rows)
    plain, turned, tabled = (patient.volumes[0] for patient in _prepared(tmp_path).patients)
    assert plain.offset != turned.offset
    assert turned.offset == tabled.offset
    for expected, found in zip(_whole(turned), _whole(tabled), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_processes_do_not_change_the_result(tmp_path: Path) -> None:
    small_cohort(tmp_path)
    seen: list[tuple[int, int]] = []
    serial = _prepared(tmp_path, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(0, 3), (1, 3), (2, 3), (3, 3)]
    arrays = [_whole(patient.volumes[0]) for patient in serial.patients]
    (tmp_path / "cache").rename(tmp_path / "old")
    assert _prepared(tmp_path, jobs=2) == serial
    for patient, old in zip(serial.patients, arrays, strict=True):
        new = _whole(patient.volumes[0])
        assert all(np.array_equal(a, b) for a, b in zip(old, new, strict=True))


def test_a_second_run_makes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = _prepared(small_cohort(tmp_path))
    monkeypatch.setattr(prepare, "load_volume", _forbidden)
    monkeypatch.setattr("parametrium.data.store.hashlib.file_digest", _forbidden)
    assert _prepared(tmp_path) == first


def _forbidden(*_: Any) -> None:
    raise AssertionError("a source file was opened")


def test_a_touched_file_is_hashed_but_not_prepared_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = _prepared(small_cohort(tmp_path))
    os.utime(tmp_path / "v0.nii.gz", ns=(1, 1))
    monkeypatch.setattr(prepare, "load_volume", _forbidden)
    assert _prepared(tmp_path) == first


def test_new_content_or_new_settings_make_a_new_entry(tmp_path: Path) -> None:
    first = _prepared(small_cohort(tmp_path, 1))
    save(tmp_path / "v0.nii.gz", ct(seed=7))
    second = _prepared(tmp_path)
    window = WindowRule(lower=-100.0, upper=100.0, centre=0.0, scale=100.0)
    third = _prepared(tmp_path, preparation=PreparationConfig(intensity={"CT": window}))
    fourth = _prepared(tmp_path, preparation=PreparationConfig(spacing_mm=(3.0, 3.0, 4.0)))
    write_rows(tmp_path / "cohort.csv", [row("p0", "v0.nii.gz", moved="1 0 0 0.5 0 1 0 0 0 0 1 0")])
    fifth = _prepared(tmp_path)
    assert len({_only(cohort).folder for cohort in (first, second, third, fourth, fifth)}) == 5
    assert len(_entries(tmp_path)) == 5
    assert _whole(_only(third))[0].max() == 1.0


def test_new_voxels_beside_an_unchanged_header_make_a_new_entry(tmp_path: Path) -> None:
    """A .mhd names the file of its voxels; that file's bytes are the source, too."""
    write_rows(tmp_path / "cohort.csv", [row("p", "x.mhd")])
    for count, seed in enumerate((1, 2), start=1):
        image = sitk.GetImageFromArray(ct((20, 22, 24), seed=seed).transpose(2, 1, 0))
        image.SetSpacing((3.0, 3.0, 3.0))
        sitk.WriteImage(image, str(tmp_path / "x.mhd"))
        _prepared(tmp_path)
        assert len(_entries(tmp_path)) == count


def _defaced_cohort(folder: Path, mask: np.ndarray | None) -> None:
    """One CT, whose mask of what defacing took is given; None: the table names it and it is not there."""
    save(folder / "v.nii.gz", ct())
    if mask is not None:
        save(folder / "m.nii.gz", mask.astype(np.uint8))
    write_rows(folder / "cohort.csv", [row("p", "v.nii.gz"), row("q", save(folder / "other.nii.gz", ct(seed=3)))])
    cells = {"patient": "p", "study": "s1", "structure": "defaced", "path": "m.nii.gz", "frame": "f1"}
    write_rows(folder / "masks.csv", [cells | {"volume": "v.nii.gz"}])


def test_what_defacing_took_is_no_body(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mask = np.zeros(ct().shape, dtype=bool)
    plain = _prepared(_with(tmp_path / "plain", mask)).patients[0].volumes[0]
    mask[:, 14:] = True
    cohort = _prepared(_with(tmp_path / "defaced", mask))
    volume = cohort.patients[0].volumes[0]
    box = (-2, -2, -2), (30, 30, 30)
    whole, cut = plain.read(*box)[1], volume.read(*box)[1]
    assert whole[:, 16:].any()
    whole[:, 16:] = False  # lattice index 0 is voxel 0
    np.testing.assert_array_equal(cut, whole)
    monkeypatch.setattr(prepare, "load_volume", _forbidden)
    assert _prepared(tmp_path / "defaced") == cohort


def test_what_defacing_drew_is_in_no_crop() -> None:
    """Neither a patch that counts nor the encoder sees it: two fillings make the same crops."""
    mask = np.zeros(ct().shape, dtype=np.float32)
    mask[:, 14:17] = 1.0
    fillings = (0.0, 300.0)  # water and bone: body in both, so that the body's outline is the same
    crops = []
    for filling in fillings:
        drawn = np.where(mask > 0, np.float32(filling), ct()).astype(np.float32)
        found = prepare_arrays(drawn, np.diag((3.0, 3.0, 3.0, 1.0)), recipe_for(THREE_MM, "CT"), mask)
        assert isinstance(found, Prepared)
        assert found.image[:, 13 - found.offset[1]].any()
        assert not found.image[:, 14 - found.offset[1] : 17 - found.offset[1]].any()
        crops.append(found)
    assert crops[0].body.any()
    assert crops[0].offset == crops[1].offset
    for one, other in zip(crops[0][:2], crops[1][:2], strict=True):
        np.testing.assert_array_equal(one, other)


def _with(folder: Path, mask: np.ndarray) -> Path:
    folder.mkdir()
    _defaced_cohort(folder, mask)
    return folder


def test_another_mask_of_what_defacing_took_makes_another_entry(tmp_path: Path) -> None:
    folders = set()
    for edge in (14, 15):
        mask = np.zeros(ct().shape, dtype=bool)
        mask[:, edge:] = True
        _defaced_cohort(tmp_path, mask)
        folders.add(_prepared(tmp_path).patients[0].volumes[0].folder)
    assert len(folders) == 2


@pytest.mark.parametrize(
    ("mask", "reason"),
    [(None, Reason.UNREADABLE), (np.ones((24, 22, 19)), Reason.FAILED)],
    ids=["absent", "other grid"],
)
def test_a_defaced_volume_without_its_mask_is_left_out(tmp_path: Path, mask: Any, reason: Reason) -> None:
    _defaced_cohort(tmp_path, mask)
    prepared = _prepared(tmp_path)
    assert [patient.name for patient in prepared.patients] == ["q"]
    assert Problem("p", "CT", reason) in prepared.problems


def test_a_setting_of_another_modality_keeps_the_entry(tmp_path: Path) -> None:
    first = _prepared(small_cohort(tmp_path, 1))
    window = WindowRule(lower=0.0, upper=1.0, centre=0.0, scale=1.0)
    assert _prepared(tmp_path, preparation=PreparationConfig(intensity={"PET": window})) == first


@pytest.mark.parametrize(
    ("reason", "spoil"),
    [
        (Reason.ALL_ZERO, lambda image: image * 0),
        (Reason.CONSTANT, lambda image: image * 0 + 7),
        (Reason.NOT_FINITE, lambda image: np.where(image > 400, np.nan, image)),
        (Reason.NOT_FINITE, lambda image: np.where(image > 400, np.inf, image)),
        (Reason.NO_BODY, lambda image: image / 100 - 1000),
        (Reason.NOT_3D, lambda image: np.stack([image, image], axis=-1)),
        (Reason.ONE_SLICE, lambda image: image[:, :, :1]),
    ],
)
def test_bad_content_is_left_out_and_remembered(
    tmp_path: Path, reason: Reason, spoil: Callable[[np.ndarray], np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = row("bad", save(tmp_path / "bad.nii.gz", spoil(ct()).astype(np.float32)))
    write_rows(tmp_path / "cohort.csv", [bad, row("good", save(tmp_path / "good.nii.gz", ct()))])
    result = _prepared(tmp_path)
    assert result.problems == (Problem("bad", "CT", reason),)
    assert [(patient.name, patient.volumes[0].patient) for patient in result.patients] == [("good", 0)]
    monkeypatch.setattr(prepare, "load_volume", _forbidden)
    assert _prepared(tmp_path) == result


def test_a_truncated_stream_is_reported_and_tried_again(tmp_path: Path) -> None:
    small_cohort(tmp_path)
    whole = (tmp_path / "v1.nii.gz").read_bytes()
    (tmp_path / "v1.nii.gz").write_bytes(whole[: len(whole) // 2])
    assert _prepared(tmp_path).problems == (Problem("p1", "CT", Reason.UNREADABLE),)
    (tmp_path / "v1.nii.gz").write_bytes(whole)
    assert _prepared(tmp_path).problems == ()


@pytest.mark.parametrize(("error", "reason"), [(ValueError, Reason.FAILED), (MemoryError, Reason.TOO_LARGE)])
def test_a_volume_that_breaks_the_recipe_does_not_stop_the_site(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception], reason: Reason
) -> None:
    small_cohort(tmp_path, 2)
    calls = iter([True, False])

    def breaking(*arguments: Any) -> Any:
        if next(calls):
            raise error
        return prepare_arrays(*arguments)

    monkeypatch.setattr(prepare, "prepare_arrays", breaking)
    assert _prepared(tmp_path).problems == (Problem("p0", "CT", reason),)
    monkeypatch.undo()
    assert _prepared(tmp_path).problems == ()


@settings(max_examples=20, deadline=None)
@given(position=st.integers(0, 20000), value=st.integers(0, 255))
def test_no_damaged_byte_raises(tmp_path_factory: pytest.TempPathFactory, position: int, value: int) -> None:
    folder = tmp_path_factory.mktemp("damage")
    content = bytearray(gzip.decompress(save(folder / "x.nii.gz", ct()).read_bytes()))
    content[position] = value
    (folder / "x.nii.gz").write_bytes(gzip.compress(bytes(content), 1))
    write_rows(folder / "cohort.csv", [row("x", "x.nii.gz"), row("y", save(folder / "y.nii.gz", ct()))])
    assert "y" in [patient.name for patient in _prepared(folder).patients]


def test_a_patient_without_clinical_row_is_kept_and_reported(tmp_path: Path) -> None:
    small_cohort(tmp_path, 2)
    (tmp_path / "clinical.csv").write_text("patient,age\np0,60\n")
    result = _prepared(tmp_path)
    assert [dict(patient.clinical) for patient in result.patients] == [{"age": "60"}, {}]
    assert result.problems == (Problem("p1", "", Reason.NO_CLINICAL_ROW),)


def test_nothing_left_is_an_error_of_counts(tmp_path: Path) -> None:
    write_rows(tmp_path / "cohort.csv", [row("SENTINEL", save(tmp_path / "SENTINEL.nii.gz", ct() * 0))])
    with pytest.raises(CohortError, match=r"PM202.*1 all_zero") as caught:
        _prepared(tmp_path)
    assert "SENTINEL" not in str(caught.value)


def test_a_cache_that_cannot_be_written_is_no_fault_of_a_patient(tmp_path: Path) -> None:
    cohort = read_cohort(small_cohort(tmp_path), ["CT"])
    (tmp_path / "SENTINEL").touch()
    with pytest.raises(DataError, match=r"PM301.*free space") as caught:
        prepare_cohort(cohort, THREE_MM, tmp_path / "SENTINEL")
    assert "SENTINEL" not in str(caught.value)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_the_cache_is_private(tmp_path: Path) -> None:
    _prepared(small_cohort(tmp_path, 1))
    for path in (tmp_path / "cache").rglob("*"):
        assert path.stat().st_mode & 0o077 == 0, path.name


@pytest.mark.parametrize("name", ["image.b2nd", "entry.json", "foreground.npy", "occupancy.npy"])
def test_an_entry_cut_by_a_crash_is_made_again(tmp_path: Path, name: str) -> None:
    first = _only(_prepared(small_cohort(tmp_path, 1)))
    expected = _whole(first)[0]
    content = (first.folder / name).read_bytes()
    (first.folder / name).write_bytes(content[: len(content) // 2])
    second = _only(_prepared(tmp_path))
    assert second == first
    assert (first.folder / name).stat().st_size == len(content)
    np.testing.assert_array_equal(_whole(second)[0], expected)


def test_a_removed_entry_is_named_when_read(tmp_path: Path) -> None:
    volume = _only(_prepared(small_cohort(tmp_path, 1)))
    for path in volume.folder.iterdir():
        path.unlink()
    with pytest.raises(DataError, match="PM301") as caught:
        _whole(volume)
    assert volume.folder.name not in str(caught.value)


def _killed_while_writing(cohort: Cohort, cache: Path) -> None:
    """Runs in a process of its own: dies after the second entry's arrays, before its JSON."""
    written: list[Path] = []

    def die(path: Path, content: bytes) -> None:
        written.append(path)
        if len(written) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        path.write_bytes(content)

    from parametrium.data import cache as module

    module.write_private = die
    prepare_cohort(cohort, THREE_MM, cache)


def test_a_killed_run_leaves_no_half_volume_and_is_resumed(tmp_path: Path) -> None:
    cohort = read_cohort(small_cohort(tmp_path), ["CT"])
    process = multiprocessing.get_context("spawn").Process(
        target=_killed_while_writing, args=(cohort, tmp_path / "cache")
    )
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert len(_entries(tmp_path)) == 1
    assert list((tmp_path / "cache" / "attempts").glob("*/*/image.b2nd"))
    (survivor,) = (tmp_path / "cache" / "volumes").iterdir()
    before = survivor.stat().st_mtime_ns
    assert len(_prepared(tmp_path).patients) == 3
    assert survivor.stat().st_mtime_ns == before
    assert [path.name for path in (tmp_path / "cache" / "attempts").iterdir()] == ["sweep"]


def test_two_processes_may_prepare_one_cache(tmp_path: Path) -> None:
    cohort = read_cohort(small_cohort(tmp_path, 6), ["CT"])
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=prepare_cohort, args=(cohort, THREE_MM, tmp_path / "cache")) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert len(_entries(tmp_path)) == 6
    assert [path.name for path in (tmp_path / "cache" / "attempts").iterdir()] == ["sweep"]
    assert len(_prepared(tmp_path).patients) == 6


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("name", "site", "options"),
    [
        ("glioma", "ht", {}),
        ("sarcoma", "mcgill", {}),
        ("headneck", "openkbp", {"drop": ["DOSE"], "rescale": {"CT": (1.0, -1000.0)}}),
    ],
)
def test_real_scans(tmp_path: Path, real_data: Path, name: str, site: str, options: dict[str, Any]) -> None:
    import_folders(
        real_data / "cohorts" / name, tmp_path, site=site, secret=tmp_path / "s", vocabulary=VOCABULARY, **options
    )
    cohort = read_cohort(tmp_path, VOCABULARY)
    few = Cohort(cohort.patients[:3], ())
    result = prepare_cohort(few, THREE_MM, tmp_path / "cache")
    assert result.problems == ()
    for patient in result.patients:
        frames = {volume.frame for volume in patient.volumes}
        assert frames == {"grid1"}
        for volume in patient.volumes:
            image, body = _whole(volume)
            assert 0.1 < body.mean() <= 1
            assert np.isfinite(image).all()
            assert abs(image[body].mean()) < 1.5
            if name == "headneck":  # stored as HU + 1000 with 0 outside: rescaled, the outside is air
                assert np.median(image[~body]) == pytest.approx(-280 / 150, abs=1e-3)
