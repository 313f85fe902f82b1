"""``parametrium rollout``: a scan prepared as the cohort was, drawn with the attention of the run's best model."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from matplotlib.image import imread

from cohort_files import ct, grid_affine, save
from parametrium.cli import main
from parametrium.config import JobConfig
from parametrium.data.recipe import Prepared, load_volume, prepare_arrays, recipe_for
from parametrium.errors import CohortError, ConfigError, FederationError, ParametriumError, TrainingError
from parametrium.objectives.registry import build_model, initial_tensors
from parametrium.report.rollouts import overlay_of_volume
from parametrium.report.volume_rollout import draw_volume_rollout
from parametrium.training.run_folder import Contribution, RunFolder

MakeJob = Callable[..., JobConfig]
RULE = {"stopping": {"held_out_loss": {"patience": 2}}, "evaluation": {"every": 1}, "rounds": 3}


def run_of(path: Path, job: JobConfig) -> Path:
    """Three rounds with other weights each; the second is the best by the job's rule, where it has one."""
    run = RunFolder(path, job)
    run.create()
    tensors = initial_tensors(job)
    for number, loss in enumerate((2.0, 1.0, 3.0)):
        run.add_round(number, [Contribution("alpha", "accepted", "", 8, 1, 0.5)], {}, 1.0)
        torch.manual_seed(number)
        run.save_model(number + 1, {name: t + 0.2 * torch.randn_like(t) for name, t in tensors.items()})
        run.add_evaluation(number + 1, "alpha", {"evaluation/loss/masked_reconstruction": loss})
    run.finish(3, ["alpha"])
    return path


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    return save(tmp_path / "secret-name" / "scan.nii.gz", ct(shape=(40, 30, 36)))


def test_the_best_round_is_drawn_and_its_numbers_are_told(make_job: MakeJob, tmp_path: Path, scan: Path) -> None:
    job = make_job(modalities=["CT", "T1"], **RULE)
    run = run_of(tmp_path / "run", job)
    found = draw_volume_rollout(run, scan, tmp_path / "new" / "x.png", "CT")
    assert (found.modality, found.rounds) == ("CT", 2)
    loaded = load_volume(scan)
    assert isinstance(loaded, tuple)
    prepared = prepare_arrays(*loaded, recipe_for(job.preparation, "CT"))
    assert isinstance(prepared, Prepared)
    model = build_model(job).eval()
    model.load_state_dict(RunFolder(run, job).model(2))
    again = overlay_of_volume(model.encoder, torch.from_numpy(prepared.image), torch.from_numpy(prepared.body), 0, job)
    assert found.numbers == pytest.approx(again.numbers)
    assert found.numbers["crops"] > 1
    picture = imread(tmp_path / "new" / "x.png")[..., :3]
    assert picture.shape[0] > picture.shape[1]
    coloured = (picture.max(-1) - picture.min(-1)) > 0.1
    left, right = coloured[:, : coloured.shape[1] // 2], coloured[:, coloured.shape[1] // 2 :]
    assert right.mean() > 0.02 > left.mean()  # the attention stands beside the scan
    assert (tmp_path / "new" / "x.png").stat().st_mode & 0o077 == 0
    (tmp_path / "new" / "x.png").chmod(0o644)  # a picture that is drawn over is no more open than a new one
    draw_volume_rollout(run, scan, tmp_path / "new" / "x.png", "CT")
    assert (tmp_path / "new" / "x.png").stat().st_mode & 0o077 == 0


def test_any_round_can_be_named_and_without_a_rule_it_is_the_last(
    make_job: MakeJob, tmp_path: Path, scan: Path
) -> None:
    run = run_of(tmp_path / "run", make_job(modalities=["CT"], rounds=3))
    last = draw_volume_rollout(run, scan, tmp_path / "x.png")
    first = draw_volume_rollout(run, scan, tmp_path / "y.png", rounds=1)
    assert (last.rounds, first.rounds) == (3, 1)
    assert last.numbers != first.numbers


def test_a_scan_is_rescaled_as_the_cohort_table_would(make_job: MakeJob, tmp_path: Path, scan: Path) -> None:
    run = run_of(tmp_path / "run", make_job(modalities=["CT"], rounds=3))
    image = nibabel.load(scan)
    stored = (np.asanyarray(image.dataobj) + 1000) / 2
    other = tmp_path / "stored.nii.gz"
    nibabel.save(nibabel.Nifti1Image(stored.astype(np.float32), grid_affine()), other)
    one = draw_volume_rollout(run, scan, tmp_path / "x.png")
    two = draw_volume_rollout(run, other, tmp_path / "y.png", rescale=(2.0, -1000.0))
    assert one.numbers == pytest.approx(two.numbers, rel=1e-3)


def fault(tmp_path: Path, job: JobConfig, scan: Path, name: str) -> ParametriumError:
    """The error of one mistake."""
    run, target, options = run_of(tmp_path / "run", job), tmp_path / "x.png", {"modality": "CT"}
    if name == "no run":
        run = tmp_path
    elif name == "no scan":
        scan = tmp_path / "secret-name" / "absent.nii.gz"
    elif name == "no image":
        scan.write_bytes(b"text")
    elif name == "modality":
        options = {"modality": "PET"}
    elif name == "no modality":
        options = {}
    elif name == "suffix":
        target = tmp_path / "x.jpg"
    elif name == "folder":
        target = tmp_path / "held.png"
        target.mkdir()
    elif name == "below a file":
        (tmp_path / "file").touch()
        target = tmp_path / "file" / "x.png"
    elif name == "unfinished":
        (run / "manifest.json").unlink()
    elif name == "round":
        options["rounds"] = 9  # type: ignore[assignment]
    elif name == "other model":
        RunFolder(run, job).save_model(3, {"x": torch.zeros(2)})
    elif name == "not finite":
        broken = {key: torch.full_like(t, torch.nan) for key, t in initial_tensors(job).items()}
        RunFolder(run, job).save_model(3, broken)
    with pytest.raises(ParametriumError) as caught:
        draw_volume_rollout(run, scan, target, **options)  # type: ignore[arg-type]
    assert not target.is_file()
    return caught.value


@pytest.mark.parametrize(
    ("name", "kind", "text"),
    [
        ("no run", FederationError, "PM503 the folder holds no run"),
        ("no scan", CohortError, "PM203 the volume cannot be used: missing_file"),
        ("no image", CohortError, "PM203 the volume cannot be used: unreadable"),
        ("modality", ConfigError, "PM103 --modality: choose one of CT, T1; got 'PET'"),
        ("no modality", ConfigError, "PM103 --modality: choose one of CT, T1; none was given"),
        ("suffix", ConfigError, "PM103 --out: must end in .png, got '.jpg'"),
        ("folder", ConfigError, "PM103 --out: no picture can be written there"),
        ("below a file", ConfigError, "PM103 --out: no picture can be written there"),
        ("unfinished", FederationError, "PM503 the run has not come to a good end; name a round with --round"),
        ("round", TrainingError, "PM403 the checkpoint is absent or incomplete"),
        ("other model", TrainingError, "PM401 the checkpoint is not of the model"),
        ("not finite", TrainingError, "PM402 the attention of the model after 3 rounds is not finite"),
    ],
)
def test_a_mistake_is_told_in_one_sentence_without_a_path(
    make_job: MakeJob, tmp_path: Path, scan: Path, name: str, kind: type[ParametriumError], text: str
) -> None:
    error = fault(tmp_path, make_job(modalities=["CT", "T1"], rounds=3), scan, name)
    assert isinstance(error, kind)
    assert str(error).startswith(text)
    assert "secret" not in str(error)
    assert str(tmp_path) not in str(error)


def test_the_command_prints_the_numbers_or_one_object(
    make_job: MakeJob, tmp_path: Path, scan: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_of(tmp_path / "run", make_job(modalities=["CT"], rounds=3))
    words = ["rollout", str(run), str(scan), "--out", str(tmp_path / "x.png")]
    with pytest.raises(SystemExit) as ended:
        main([*words, "--json"])
    assert ended.value.code == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["modality"], told["round"], told["picture"]) == ("CT", 3, str(tmp_path / "x.png"))
    with pytest.raises(SystemExit):
        main(words)
    printed = capsys.readouterr().out
    assert re.search(rf"background: {told['numbers']['background']:.4g}$", printed, re.MULTILINE)
    with pytest.raises(SystemExit) as ended:
        main([*words, "--round", "9"])
    assert ended.value.code == 4
