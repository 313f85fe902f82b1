"""Pictures of a small cohort: drawn in full, oriented as a radiologist sees, without a trace elsewhere."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from numpy.typing import NDArray

from cohort_files import small_cohort
from memory_volumes import MemoryVolume, memory_patient, memory_patients, memory_volume
from parametrium.config import JobConfig, SiteConfig
from parametrium.data.cache import PreparedPatient
from parametrium.objectives.registry import build_model, initial_tensors
from parametrium.objectives.target import standardise
from parametrium.report import pictures, reconstructions, scene
from parametrium.report.compared_patients import order
from parametrium.report.embedding import Point, components, load_points
from parametrium.report.pictures import ABOUT, draw_pictures
from parametrium.report.planes import ACROSS, Item, Panel, draw_items, filled, frame_of, plane_of
from parametrium.report.reconstructions import restored
from parametrium.report.scene import Scene, central_corner
from parametrium.report.views import filled_in, same_pair
from parametrium.site.trainer import SiteTrainer

MakeJob = Callable[..., JobConfig]
FOUR = ["masked_reconstruction", "cross_modal_reconstruction", "soft_contrastive", "box_localisation"]
SETS = [["CT", "T1"], ["CT"], ["T1", "PET"], ["CT", "T1"]]
ALL = [
    *({"kind": kind} for kind in (*FOUR, "cross_modal_synthesis")),
    *({"kind": kind} for kind in ("template_reconstruction", "modality_contrastive", "global_local", "isotropy")),
    {"kind": "latent_prediction"},
    {"kind": "text_contrastive", "channels": 8},
]


def told(patients: Sequence[PreparedPatient]) -> list[PreparedPatient]:
    """The patients with a text each."""
    rng = np.random.default_rng(0)
    texts = rng.normal(size=(len(patients), 8)).astype(np.float32)
    return [replace(p, text=t / np.linalg.norm(t)) for p, t in zip(patients, texts, strict=True)]


def job(make_job: MakeJob, kinds: Sequence[str] = FOUR, **changes: Any) -> JobConfig:
    return make_job(objectives=[{"kind": kind} for kind in kinds], evaluation={"crops": 2}, **changes)


def draw(make_job: MakeJob, folder: Path, patients: Sequence[PreparedPatient], **changes: Any) -> list[str]:
    wanted = job(make_job, **changes)
    return draw_pictures(build_model(wanted), patients, wanted, "alpha", folder)


def is_drawn(path: Path) -> bool:
    """A PNG with much more on it than paper and one shade."""
    pixels = imread(path)[..., :3]
    shades = np.unique((pixels @ (1.0, 256.0, 65536.0) * 255).astype(int))
    return bool(pixels.std() > 0.05 and len(shades) > 30)


def test_every_picture_is_drawn(make_job: MakeJob, tmp_path: Path) -> None:
    wanted = make_job(objectives=ALL, rounds=3, evaluation={"crops": 2})
    model = build_model(wanted)
    model.objective("latent_prediction").begin_round(model.encoder, 0)  # from then on there is a teacher
    drawn = draw_pictures(model, told(memory_patients(SETS)), wanted, "alpha", tmp_path / "p")
    assert drawn == list(ABOUT)
    names = sorted(path.name for path in (tmp_path / "p").iterdir())
    assert names == sorted([*(f"{name}.png" for name in ABOUT), "embeddings.json"])
    assert all(is_drawn(path) for path in (tmp_path / "p").glob("*.png"))
    assert (tmp_path / "p").stat().st_mode & 0o077 == 0


def test_no_name_of_a_patient_is_kept(make_job: MakeJob, tmp_path: Path) -> None:
    patients = [memory_patient(f"secret{n}", p.volumes) for n, p in enumerate(memory_patients(SETS))]
    draw(make_job, tmp_path / "p", patients)
    assert not any(b"secret" in path.read_bytes() for path in (tmp_path / "p").iterdir())
    points = load_points(tmp_path / "p" / "embeddings.json", "alpha")
    assert {(p.patient, p.modality) for p in points} == {(n + 1, m) for n, own in enumerate(SETS) for m in own}
    assert len({len(p.vector) for p in points}) == 1


def test_what_a_site_cannot_show_is_left_out(make_job: MakeJob, tmp_path: Path) -> None:
    one = ["masked_reconstruction", "attention_rollout"]
    assert draw(make_job, tmp_path / "a", memory_patients([["CT"]])) == one
    assert draw(make_job, tmp_path / "b", []) == []
    unregistered = [memory_patient("p", [memory_volume("CT", frame="a"), memory_volume("T1", frame="b")])]
    assert "cross_modal_reconstruction" not in draw(make_job, tmp_path / "c", unregistered)
    compared = ["attention_rollout", "soft_contrastive", "embeddings"]
    assert draw(make_job, tmp_path / "d", memory_patients(SETS), kinds=["soft_contrastive"]) == compared
    alone = memory_patients([["CT"], ["T1"], ["CT", "PET"]])  # no two patients have the same two modalities
    kinds = ["soft_contrastive", "global_local", "latent_prediction", "modality_contrastive", "template_reconstruction"]
    kept = ["global_local", "templates", "attention_rollout", "embeddings"]
    assert draw(make_job, tmp_path / "e", alone, kinds=kinds) == kept, "and there is no teacher before a round"


def test_drawing_leaves_no_trace(make_job: MakeJob, tmp_path: Path) -> None:
    wanted = job(make_job)
    for training in (True, False):
        model = build_model(wanted).train(training)
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        torch.manual_seed(3)
        np.random.seed(3)
        states = torch.get_rng_state(), np.random.get_state()[1].copy()
        draw_pictures(model, memory_patients(SETS), wanted, "alpha", tmp_path / "p")
        assert torch.equal(torch.get_rng_state(), states[0])
        assert np.array_equal(np.random.get_state()[1], states[1])
        assert model.training is training
        assert all(module.training is training for module in model.modules())
        assert all(parameter.grad is None for parameter in model.parameters())
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_the_same_model_gives_the_same_pictures(make_job: MakeJob, tmp_path: Path) -> None:
    for folder in ("a", "b"):
        draw(make_job, tmp_path / folder, memory_patients(SETS))
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name


def test_a_picture_that_fails_does_not_fail_the_run(
    make_job: MakeJob, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise OSError("/home/secret/patient7.nii")

    for module, name in ((scene, "central_corner"), (pictures, "edge_corner"), (reconstructions, "central_corner")):
        monkeypatch.setattr(module, name, broken)
    with caplog.at_level(logging.WARNING):
        assert draw(make_job, tmp_path / "p", memory_patients(SETS)) == ["soft_contrastive", "embeddings"]
    assert len(caplog.records) == 4
    assert "the picture masked_reconstruction was not drawn: PM901" in caplog.text
    assert "secret" not in caplog.text


def test_a_folder_that_cannot_be_made_does_not_fail_the_run(make_job: MakeJob, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert draw(make_job, tmp_path / "file" / "p", memory_patients(SETS)) == []


def test_few_patients_are_read_however_many_there_are(make_job: MakeJob, tmp_path: Path) -> None:
    patients = memory_patients([["CT"]] * 40)
    reads: list[int] = []

    class Counting(MemoryVolume):
        def read(self, low: Any, shape: Any) -> Any:
            reads.append(self.patient)
            return super().read(low, shape)

    def counting(volume: Any) -> Counting:
        return Counting(**vars(volume))

    watched = [memory_patient(p.name, [counting(v) for v in p.volumes]) for p in patients]
    draw(make_job, tmp_path / "p", watched)
    assert 0 < len(reads) <= 3 * pictures.SHOWN + 2 * pictures.MAPPED  # two crops of each patient on the map
    assert max(p.patient for p in load_points(tmp_path / "p" / "embeddings.json", "a")) == pictures.MAPPED


@pytest.mark.parametrize("final", [True, False])
@pytest.mark.parametrize("wanted", [True, False])
def test_a_site_draws_at_the_end_of_a_run_when_the_job_asks(
    make_job: MakeJob, tmp_path: Path, final: bool, wanted: bool
) -> None:
    small_cohort(tmp_path / "cohort", patients=14)
    run = make_job(
        modalities=["CT"],
        crop=[8, 8, 8],
        evaluation={"holdout_fraction": 0.4, "pictures": wanted, "crops": 2},
    )
    folders = {key: str(tmp_path / key) for key in ("cohort", "cache", "state")}
    site = SiteConfig(site="alpha", threads=torch.get_num_threads(), **folders)
    trainer = SiteTrainer(run, site, "run", tmp_path / "run")
    trainer.open()
    assert len(trainer.held_out) > 1
    scalars = trainer.evaluate(2, initial_tensors(run), final=final)
    trainer.close()
    assert (tmp_path / "run" / "pictures" / "masked_reconstruction.png").exists() is (final and wanted)
    page = tmp_path / "run" / "report.html"
    assert page.exists() is final
    if final:
        assert ("<figcaption>Masked reconstruction</figcaption>" in page.read_text()) is wanted
    assert not any("picture" in name for name in scalars)


# ------------------------------------------------------------------------------------------------------- orientation


def corner_volume() -> NDArray[np.float32]:
    """Bright where the patient is right, anterior and superior; other corners tell themselves apart by value."""
    volume = np.zeros((4, 6, 8), dtype=np.float32)
    volume[-1, -1, -1] = 9
    volume[0, -1, -1], volume[-1, 0, -1], volume[-1, -1, 0] = 1, 2, 3  # left; posterior; inferior of it
    return volume


def test_planes_are_as_a_radiologist_sees_them() -> None:
    volume = corner_volume()
    axial = plane_of(volume, "axial", 7)
    assert axial.shape == (6, 4), "anterior to posterior down, right to left across"
    assert (axial[0, 0], axial[0, -1], axial[-1, 0]) == (9, 1, 2)
    coronal = plane_of(volume, "coronal", 5)
    assert coronal.shape == (8, 4)
    assert (coronal[0, 0], coronal[0, -1], coronal[-1, 0]) == (9, 1, 3)
    sagittal = plane_of(volume, "sagittal", 3)
    assert sagittal.shape == (8, 6)
    assert (sagittal[0, 0], sagittal[0, -1], sagittal[-1, 0]) == (9, 2, 3)


def test_a_box_is_filled_and_framed_voxel_by_voxel() -> None:
    inside = filled([0.5, 0.3, 0.5, 0.4, 0.4, 1.0], (10, 10, 4))
    assert {tuple(place) for place in np.argwhere(inside).tolist()} == {
        (d, h, w) for d in range(3, 7) for h in range(1, 5) for w in range(4)
    }
    frame = frame_of(filled([0.5] * 3 + [0.6] * 3, (10, 10, 10)))
    assert frame.sum() == 6**3 - 4**3
    assert frame[2, 5, 5] == frame[5, 7, 5] == 1
    assert frame[5, 5, 5] == frame[1, 5, 5] == 0


def test_the_middle_plane_is_taken_unless_another_is_named() -> None:
    volume = np.arange(4 * 6 * 8, dtype=np.float32).reshape(4, 6, 8)
    for plane, axis in ACROSS.items():
        middle = volume.shape[axis] // 2
        assert np.array_equal(plane_of(volume, plane), plane_of(volume, plane, middle))
        assert not np.array_equal(plane_of(volume, plane), plane_of(volume, plane, 0))


def test_a_bright_corner_is_in_the_upper_left_of_every_plane_of_the_file(tmp_path: Path) -> None:
    volume = np.zeros((16, 16, 16), dtype=np.float32)
    volume[8:, 8:, 8:] = 1
    draw_items(tmp_path / "x.png", [Item("x", (Panel("x", volume, (0, 1)),), (12, 12, 12))], (3.0, 3.0, 3.0), 1)
    shades = imread(tmp_path / "x.png")[..., :3].mean(-1)
    height, width = shades.shape
    title = height - 3 * width - 12  # the planes are squares between titles and a margin
    for row in range(3):
        top = title + row * width
        upper, lower = (shades[top + width * n // 4] for n in (1, 3))
        assert upper[width // 4] > 0.95, "the patient's right (or anterior), and anterior or superior"
        assert max(upper[3 * width // 4], lower[width // 4], lower[3 * width // 4]) < 0.05


def test_voxels_that_are_not_cubes_are_drawn_in_proportion(tmp_path: Path) -> None:
    flat = Panel("x", np.zeros((16, 16, 16), dtype=np.float32), (0, 1))
    for name, spacing in (("cube", (3.0, 3.0, 3.0)), ("tall", (3.0, 3.0, 6.0))):
        draw_items(tmp_path / f"{name}.png", [Item("x", (flat,))], spacing, 1)
    cube, tall = (int((imread(tmp_path / f"{n}.png")[..., 0] < 0.02).sum()) for n in ("cube", "tall"))
    assert tall < 0.8 * cube, "two planes of three become half as wide"


# ------------------------------------------------------------------------------------------------------- numbers


@pytest.mark.parametrize("offset", [(0, 0, 0), (-7, 40, 3)])
def test_the_crop_is_around_the_middle_of_the_body_and_in_the_volume(offset: tuple[int, int, int]) -> None:
    body = np.zeros((24, 20, 22), dtype=bool)
    body[14:20, 8:12, 2:6] = True
    volume = memory_volume("CT", offset=offset, body=body)
    low = central_corner(volume, (8, 8, 8))
    assert np.allclose(np.subtract(low, offset), (13, 6, 0), atol=1)
    assert all(o <= c <= o + n - 8 for c, o, n in zip(low, offset, volume.shape, strict=True))
    larger = central_corner(volume, (32, 32, 32))
    assert all(c <= o and c + 32 >= o + n for c, o, n in zip(larger, offset, volume.shape, strict=True))


def test_standardised_predictions_come_back_on_the_scale_of_the_intensities() -> None:
    true = torch.randn(2, 5, 27, generator=torch.Generator().manual_seed(0)) * 3 + 1
    for target in ("raw", "patch_normalised"):
        perfect = standardise(true, true, target)
        assert torch.allclose(restored(perfect, true, target), true, atol=1e-5)


def test_components_do_not_show_what_a_modality_looks_like() -> None:
    rng = np.random.default_rng(0)
    points = [
        Point("a", p + 1, m, tuple(rng.normal(size=5) * (3, 1, 0.1, 0.1, 0.1) + (100 if m == "CT" else 0)))
        for p in range(20)
        for m in ("CT", "T1")
    ]
    positions, shares = components(points)
    assert positions.shape == (40, 2)
    assert shares[0] > 0.6
    assert shares[0] + shares[1] > 0.95
    for modality in ("CT", "T1"):
        own = positions[[n for n, p in enumerate(points) if p.modality == modality]]
        assert np.allclose(own.mean(0), 0, atol=1e-8)
    firsts = np.array([p.vector[0] - (100 if p.modality == "CT" else 0) for p in points])
    assert abs(np.corrcoef(firsts, positions[:, 0])[0, 1]) > 0.95


def test_cosines_and_similarity_are_ranked_over_pairs_of_different_patients() -> None:
    similarity = np.array([[1, 0.1, 0.2], [0.3, 1, 0.4], [0.5, 0.6, 1]], dtype=np.float32)
    cosines = 2 * similarity - 1
    np.fill_diagonal(cosines, -5)  # a patient with herself does not count
    assert order(cosines, similarity) == pytest.approx(1)
    assert order(-cosines, similarity) == pytest.approx(-1)
    assert order(np.ones((3, 3), dtype=np.float32), similarity) == 0


def test_masked_patches_show_what_they_are_filled_with(make_job: MakeJob) -> None:
    wanted = job(make_job)
    scene = Scene(build_model(wanted), wanted, "alpha", [])
    image, fill = torch.zeros(16, 16, 16), torch.ones(16, 16, 16)
    masked = torch.tensor([0, 5, 63])
    found = filled_in(scene, image, fill, masked)
    for d, h, w in np.ndindex(4, 4, 4):
        cube = found[4 * d : 4 * d + 4, 4 * h : 4 * h + 4, 4 * w : 4 * w + 4]
        assert np.all(cube == (16 * d + 4 * h + w in masked.tolist()))


@pytest.mark.parametrize("kind", ["masked_reconstruction", "cross_modal_reconstruction"])
def test_pictures_hide_cubes_where_training_does(make_job: MakeJob, tmp_path: Path, kind: str) -> None:
    contents = []
    for unit in (1, 2):
        wanted = make_job(objectives=[{"kind": kind, "mask_unit": unit}], evaluation={"crops": 2})
        draw_pictures(build_model(wanted), memory_patients([["CT", "T1"]]), wanted, "alpha", tmp_path / str(unit))
        contents.append((tmp_path / str(unit) / f"{kind}.png").read_bytes())
    assert contents[0] != contents[1]


def test_views_are_compared_of_the_pair_that_most_patients_have_registered(make_job: MakeJob) -> None:
    wanted = job(make_job)
    patients = memory_patients([["CT", "PET"], ["T1", "CT"], ["CT", "T1"], ["CT"]])
    patients.append(memory_patient("moved", [memory_volume("CT", frame="a"), memory_volume("T1", frame="b")]))
    chosen = same_pair(Scene(build_model(wanted), wanted, "alpha", patients))
    assert [number for number, _, _ in chosen] == [1, 2]
    assert {(first.modality, second.modality) for _, first, second in chosen} in ({("T1", "CT")}, {("CT", "T1")})


@pytest.mark.parametrize(
    "text", ["", "{", '{"points": [{"patient": 1}]}', '{"points": [{"patient":1,"modality":"CT","vector":[NaN,1]}]}']
)
def test_damaged_features_are_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "embeddings.json").write_text(text)
    assert load_points(tmp_path / "embeddings.json", "a") == []
    assert load_points(tmp_path / "absent.json", "a") == []
