"""Templates along the rounds: in the site's TensorBoard, kept for a few rounds, drawn beside the mean."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from cohort_files import ct, row, save, write_rows
from memory_volumes import memory_patient, memory_patients, memory_volume
from parametrium.config import JobConfig, SiteConfig
from parametrium.evaluation.template import agreement, in_box, mean_anatomy
from parametrium.model.template import Templates
from parametrium.objectives.registry import build_model, initial_tensors
from parametrium.report.learned_templates import SHOWN_ROUNDS, draw_templates, note_templates
from parametrium.site.trainer import SiteTrainer

MakeJob = Callable[..., JobConfig]
CELLS = (5, 7, 6)


def job(make_job: MakeJob, **changes: Any) -> JobConfig:
    model = {
        "patch": 4,
        "width": 24,
        "depth": 2,
        "heads": 2,
        "decoder_width": 24,
        "decoder_depth": 1,
        "template": CELLS,
    }
    return make_job(objectives=[{"kind": "template_reconstruction"}], model=model, **changes)


def templates_of(wanted: JobConfig, seed: int = 0) -> Templates:
    templates = build_model(wanted).encoder.templates
    assert templates is not None
    for name in wanted.modalities:
        values = templates.template(name).values
        values.data = torch.randn(values.shape, generator=torch.Generator().manual_seed(seed))
    return templates


# ---------------------------------------------------------------------------------------------------- mean anatomy


def test_a_volume_is_averaged_into_the_cells_of_its_body_s_box() -> None:
    """The box is not where the array begins, its axes differ, and it reaches beyond what the volume shows."""
    volume = replace(memory_volume("CT", offset=(-7, 40, 3)), frame_box=((-5, 41, 5), (5, 62, 17)))
    image, share = in_box(volume, CELLS)
    read, inside = volume.read((-5, 41, 5), (10, 21, 12))
    assert tuple(image.shape) == CELLS
    for i, j, k in np.ndindex(*CELLS):
        part = (slice(2 * i, 2 * i + 2), slice(3 * j, 3 * j + 3), slice(2 * k, 2 * k + 2))
        assert float(image[i, j, k]) == pytest.approx(float(read[part].mean()), abs=1e-5)
        assert float(share[i, j, k]) == pytest.approx(float(inside[part].mean()), abs=1e-5)


def test_the_mean_is_over_the_patients_that_have_body_there() -> None:
    patients = memory_patients([["CT", "T1"], ["CT"], ["T1"]])
    mean = mean_anatomy(patients, "CT", CELLS)
    assert mean.patients == 2
    (first, one), (second, two) = (in_box(patient.volumes[0], CELLS) for patient in patients[:2])
    for cell in np.ndindex(*CELLS):
        own = [float(image[cell]) for image, share in ((first, one), (second, two)) if share[cell] >= 0.5]
        assert float(mean.image[cell]) == pytest.approx(sum(own) / len(own) if own else 0.0, abs=1e-5)
        assert bool(mean.body[cell]) == (len(own) >= 1)
    assert agreement(2 * mean.image + 3, mean) == pytest.approx(1)
    assert agreement(-mean.image, mean) == pytest.approx(-1)
    nothing = mean_anatomy(patients, "PET", CELLS)
    assert (nothing.patients, bool(nothing.body.any())) == (0, False)


# -------------------------------------------------------------------------------------------------- along the rounds


def test_tensorboard_shows_every_round_and_the_folder_keeps_a_few(make_job: MakeJob, tmp_path: Path) -> None:
    wanted = job(make_job, rounds=23)
    writer = SummaryWriter(str(tmp_path / "tensorboard"))
    for number in range(23):
        note_templates(templates_of(wanted, number), number, wanted, tmp_path / "pictures", writer)
    writer.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"images": 0}).Reload()
    assert set(events.Tags()["images"]) == {"template/CT", "template/T1", "template/PET"}
    assert [event.step for event in events.Images("template/CT")] == list(range(23))
    kept = sorted((tmp_path / "pictures" / "templates").iterdir())
    assert [path.name for path in kept] == [f"round_{n:04d}.npz" for n in (0, 5, 10, 15, 20)]
    assert len(kept) <= SHOWN_ROUNDS
    assert (tmp_path / "pictures").stat().st_mode & 0o077 == 0
    with np.load(kept[2]) as volumes:
        saved = volumes["T1"]
    assert np.allclose(saved, templates_of(wanted, 10).template("T1").volume().detach(), atol=2e-3)


def test_the_picture_shows_the_modalities_that_the_site_has_and_the_rounds_that_were_kept(
    make_job: MakeJob, tmp_path: Path
) -> None:
    wanted, patients = job(make_job), memory_patients([["CT", "T1"], ["CT"]])
    templates = templates_of(wanted)
    alone, history = tmp_path / "alone" / "templates.png", tmp_path / "history" / "templates.png"
    alone.parent.mkdir()
    assert draw_templates(alone, templates, patients, wanted)
    with SummaryWriter(str(tmp_path / "tensorboard")) as writer:
        for number in (0, 1):
            note_templates(templates, number, wanted, history.parent, writer)
    (history.parent / "templates" / "round_0007.npz").write_bytes(b"torn")
    assert draw_templates(history, templates, patients, wanted)
    assert imread(history).shape[0] > 1.5 * imread(alone).shape[0], "one modality below the other"
    assert not draw_templates(tmp_path / "none.png", templates, memory_patients([["US"]]), wanted)
    flat = memory_volume("CT")
    flat.image[:] = 0
    assert draw_templates(alone, templates, [memory_patient("p", [flat])], wanted)


@pytest.mark.parametrize("pictures", [True, False])
def test_a_site_notes_templates_as_it_trains_unless_the_job_wants_no_pictures(
    make_job: MakeJob, tmp_path: Path, pictures: bool
) -> None:
    folder = tmp_path / "cohort"
    rows = [
        row(f"p{n}", save(folder / f"{n}.nii.gz", ct(seed=n)), split="test" if n == 5 else "train") for n in range(6)
    ]
    write_rows(folder / "cohort.csv", rows)
    folders = {key: str(tmp_path / key) for key in ("cohort", "cache", "state")}
    policy = {"objectives": ("template_reconstruction",), "minimum_template_patients": 5}
    site = SiteConfig(site="alpha", **folders, policy=policy)  # type: ignore[arg-type]
    wanted = job(
        make_job, crop=[8, 8, 8], local_steps=4, evaluation={"crops": 2, "retrieval": False, "pictures": pictures}
    )
    trainer = SiteTrainer(wanted, site, "run", tmp_path / "run")
    trainer.open()
    model = initial_tensors(wanted)
    for number in range(2):
        trainer.train(number, model)
    scalars = trainer.evaluate(2, model, final=True)
    trainer.close()
    drawn = tmp_path / "run" / "pictures" / "templates.png"
    assert drawn.exists() is pictures
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"), size_guidance={"images": 0}).Reload()
    assert ("template/CT" in events.Tags()["images"]) is pictures
    assert {name for name in scalars if "template" in name} == {"evaluation/loss/template_reconstruction"}
