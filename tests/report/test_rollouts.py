"""Rollouts as pictures: kept along the rounds, drawn where they lie, and slid over a whole volume."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cohort_files import small_cohort
from memory_volumes import memory_patients, memory_volume
from parametrium.config import JobConfig, SiteConfig
from parametrium.objectives.registry import PretrainingModel, build_model, initial_tensors
from parametrium.report.pictures import ROLLOUTS, draw_pictures, keep_rollouts, rollout_items, rollouts_of
from parametrium.report.rollouts import (
    EDGE_SHARE,
    Overlay,
    edge_corner,
    heat_of,
    load_overlays,
    overlay_of,
    overlay_of_volume,
    save_overlays,
    shown_rounds,
)
from parametrium.report.scene import Scene
from parametrium.site.trainer import SiteTrainer

MakeJob = Callable[..., JobConfig]
SETS = [["CT", "T1"], ["CT"], ["T1", "PET"], ["CT", "T1"]]


def scene_of(make_job: MakeJob, rounds: int = 0) -> Scene:
    job = make_job()
    return Scene(build_model(job).eval(), job, "alpha", memory_patients(SETS), rounds)


def random_model(job: JobConfig) -> PretrainingModel:
    model = build_model(job).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.encoder.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return model


def test_what_is_kept_comes_back(tmp_path: Path) -> None:
    maps = np.random.default_rng(0).random((2, 2, 3, 4), dtype=np.float32)
    overlays = {name: Overlay(own, {"background": 0.25}) for name, own in zip(("CT-1", "CT-12"), maps, strict=True)}
    save_overlays(tmp_path / "r", 7, overlays)
    (tmp_path / "r" / "round_0008.npz").write_bytes(b"PK\x03\x04 cut")
    save_overlays(tmp_path / "r", 9, {"CT-1": Overlay(np.zeros((2, 2, 2), dtype=np.float32), {})})  # another crop
    found = load_overlays(tmp_path / "r", (2, 3, 4))
    assert set(found) == {7, 9}
    assert found[9] == {}
    assert all(np.array_equal(found[7][name].relative, overlays[name].relative) for name in overlays)
    assert found[7]["CT-12"].numbers == {"background": 0.25}
    assert load_overlays(tmp_path / "absent", (2, 3, 4)) == {}


@pytest.mark.parametrize("count", [1, 4, 5, 6, 7, 50])
def test_few_rounds_are_shown_with_the_first_and_the_last(count: int) -> None:
    rounds = list(range(0, 3 * count, 3))
    shown = shown_rounds(rounds)
    assert len(shown) == len(set(shown)) == min(count, 5)
    assert (shown[0], shown[-1]) == (rounds[0], rounds[-1])
    assert shown == sorted(shown)


def test_the_crop_is_at_the_edge_of_the_body_and_in_the_volume() -> None:
    for seed, extent in ((0, (16, 16, 16)), (1, (8, 12, 8))):
        volume = memory_volume("CT", seed=seed, offset=(3, -5, 7), shape=(30, 28, 26))
        corner = edge_corner(volume, extent)
        assert all(o <= c <= o + n - e for c, o, n, e in zip(corner, volume.offset, volume.shape, extent, strict=True))
        assert volume.read(corner, extent)[1].mean() == pytest.approx(EDGE_SHARE, abs=0.06)
    everywhere = memory_volume("CT", body=np.ones((24, 20, 22), dtype=bool))
    assert everywhere.read(edge_corner(everywhere, (8, 8, 8)), (8, 8, 8))[1].all()
    small = memory_volume("CT", shape=(9, 8, 20), offset=(2, 2, 2))
    corner = edge_corner(small, (16, 16, 16))
    assert all(c <= 2 and c + 16 >= 2 + n for c, n in zip(corner[:2], small.shape, strict=False))


def test_only_more_than_even_attention_is_coloured_where_its_patch_lies() -> None:
    relative = np.ones((2, 3, 4), dtype=np.float32)
    assert not heat_of(relative, (8, 12, 16)).any()
    relative[1, 0, 3] = 5
    heat = heat_of(relative, (8, 12, 16))
    assert np.unravel_index(int(heat.argmax()), heat.shape)[0] >= 4
    assert heat[6, 1, 14] == heat.max() > 3
    assert not heat[:2].any()


def test_a_page_shows_the_rounds_in_order_with_their_numbers(make_job: MakeJob, tmp_path: Path) -> None:
    scene = scene_of(make_job, rounds=6)
    overlays = rollouts_of(scene)
    assert set(overlays) == {"CT-1", "CT-2", "T1-1", "T1-3", "PET-3"}
    early = {name: o._replace(numbers={**o.numbers, "background": 0.125}) for name, o in overlays.items()}
    items = rollout_items(scene, overlays, {4: early, 2: early})
    assert len(items) == 5
    titles = [panel.title for panel in items[0].panels]
    share = 100 * overlays["CT-1"].numbers["background"]
    assert titles == ["crop", "round 2: 12 % outside", "round 4: 12 % outside", f"round 6: {share:.0f} % outside"]
    assert items[0].title.startswith("CT, patient 1 (even: ")


def test_every_measured_round_is_kept_and_the_page_at_the_end_has_them(make_job: MakeJob, tmp_path: Path) -> None:
    for rounds in (0, 2, 4):
        drawn = keep_rollouts(scene_of(make_job, rounds), tmp_path / "p")
        assert drawn is not None
        assert drawn.shape[2] == 3
        assert 0 <= drawn.min() < drawn.max() <= 1
    assert sorted(path.stem for path in (tmp_path / "p" / ROLLOUTS).iterdir()) == [
        "round_0000",
        "round_0002",
        "round_0004",
    ]
    scene = scene_of(make_job)
    draw_pictures(scene.model, scene.patients, scene.job, "alpha", tmp_path / "p", 4)
    draw_pictures(scene.model, scene.patients, scene.job, "alpha", tmp_path / "q", 4)
    wide, narrow = (imread(tmp_path / name / "attention_rollout.png").shape for name in ("p", "q"))
    assert wide[0] > narrow[0]  # more rounds: one item a row
    for folder in (tmp_path / "p", tmp_path / "p" / ROLLOUTS):
        assert folder.stat().st_mode & 0o077 == 0


def test_a_site_without_held_out_patients_keeps_nothing(make_job: MakeJob, tmp_path: Path) -> None:
    scene = scene_of(make_job)
    assert keep_rollouts(replace(scene, patients=[]), tmp_path / "p") is None
    assert not (tmp_path / "p").exists()
    (tmp_path / "file").write_text("")
    assert keep_rollouts(scene, tmp_path / "file") is None  # cannot be written: no picture, and no failure


def test_a_site_puts_every_measured_round_into_its_own_tensorboard(make_job: MakeJob, tmp_path: Path) -> None:
    small_cohort(tmp_path / "cohort", patients=14)
    job = make_job(modalities=["CT"], crop=[8, 8, 8], evaluation={"holdout_fraction": 0.4, "crops": 1})
    folders = {key: str(tmp_path / key) for key in ("cohort", "cache", "state")}
    trainer = SiteTrainer(job, SiteConfig(site="alpha", **folders), "run", tmp_path / "run")
    trainer.open()
    for number in (0, 1):
        scalars = trainer.evaluate(number, initial_tensors(job), final=False)
        assert not any("rollout" in name for name in scalars)
    trainer.close()
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    assert [image.step for image in events.Images("attention_rollout")] == [0, 1]
    assert not (tmp_path / "run" / "pictures" / "attention_rollout.png").exists()  # at the end of the run


# ------------------------------------------------------------------------------------------------------ a whole volume


def volume_of(shape: Sequence[int], seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator), torch.rand(*shape, generator=generator) < 0.7


def test_a_volume_of_a_crops_size_is_one_crop(make_job: MakeJob) -> None:
    job = make_job()
    encoder = random_model(job).encoder
    image, body = volume_of(job.crop)
    whole, crop = (function(encoder, image, body, 1, job) for function in (overlay_of_volume, overlay_of))
    assert np.allclose(whole.relative, crop.relative)
    assert whole.numbers == pytest.approx({**crop.numbers, "crops": 1}, rel=1e-6)
    assert crop.relative.mean() == pytest.approx(1)


def test_a_larger_volume_is_the_mean_over_overlapping_crops(make_job: MakeJob) -> None:
    job = make_job()  # crops of 16, patches of 4: a crop begins at every second patch, and at the last that fits
    encoder = random_model(job).encoder
    image, body = volume_of((16, 29, 16))
    calls: list[tuple[int, int]] = []
    whole = overlay_of_volume(encoder, image, body, 0, job, lambda done, total: calls.append((done, total)))
    image, body = (torch.cat([x, torch.zeros(16, 3, 16, dtype=x.dtype)], 1) for x in (image, body))
    crops = [overlay_of(encoder, image[:, y : y + 16], body[:, y : y + 16], 0, job) for y in (0, 8, 16)]
    wanted = np.zeros((4, 8, 4))
    wanted[:, :2], wanted[:, 6:] = crops[0].relative[:, :2], crops[2].relative[:, 2:]
    wanted[:, 2:4] = (crops[0].relative[:, 2:] + crops[1].relative[:, :2]) / 2
    wanted[:, 4:6] = (crops[1].relative[:, 2:] + crops[2].relative[:, :2]) / 2
    assert np.allclose(whole.relative, wanted, atol=1e-5)
    mean = sum(crop.numbers["background"] for crop in crops) / 3
    assert whole.numbers["background"] == pytest.approx(mean)
    assert whole.numbers["crops"] == 3
    assert calls == [(1, 3), (2, 3), (3, 3)]


def test_a_volume_smaller_than_a_crop_is_filled_up(make_job: MakeJob) -> None:
    job = make_job()
    image, body = volume_of((9, 7, 16))
    found = overlay_of_volume(random_model(job).encoder, image, body, 0, job)
    assert found.relative.shape == (4, 4, 4)
    assert found.numbers["crops"] == 1
    assert found.numbers["background_share"] > 0.7


def test_crops_without_the_body_are_not_looked_at(make_job: MakeJob) -> None:
    job = make_job()
    image, body = volume_of((16, 16, 40))
    body[..., 12:] = False
    found = overlay_of_volume(random_model(job).encoder, image, body, 0, job)
    assert found.numbers["crops"] == 2  # those that begin at 0 and at 8
    assert not found.relative[..., 6:].any()
    assert found.relative[..., :6].all()
