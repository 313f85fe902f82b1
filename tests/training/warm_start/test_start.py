"""What a run may start from, and that the run says so."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from parametrium.config import JobConfig
from parametrium.errors import TrainingError
from parametrium.objectives.registry import initial_tensors
from parametrium.training.checkpoint import TENSORS, file_digest, load_checkpoint, save_checkpoint
from parametrium.training.run_folder import RunFolder
from parametrium.training.warm_start.start import open_start, save_start
from parametrium.training.warm_start.transfer import transfer
from parametrium.training.warm_start.weights import Weights

MakeJob = Callable[..., JobConfig]


def made(folder: Path, job: JobConfig) -> Path:
    tensors, report = transfer(job, Weights(initial_tensors(job.model_copy(update={"seed": 9}))))
    return save_start(folder, job, tensors, report)


def described(job: JobConfig) -> dict[str, object]:
    """What a run writes beside its model."""
    return {"job": job.model_dump(mode="json"), "preparation": job.preparation.model_dump(mode="json")}


def test_without_a_start_the_job_begins_with_its_own_values(make_job: MakeJob) -> None:
    start = open_start(make_job(), None)
    assert start.digest is None
    assert all(torch.equal(start.tensors[name], t) for name, t in initial_tensors(make_job()).items())


def test_a_job_that_needs_a_start_is_refused_without_one(make_job: MakeJob, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"PM403.*needs_start.*--start"):
        open_start(make_job(needs_start=True), None)
    tensors = initial_tensors(make_job())
    assert open_start(make_job(needs_start=True), save_checkpoint(tmp_path / "start", tensors, {})).digest


def test_a_start_is_read_with_its_checksum_and_describes_where_it_comes_from(tmp_path: Path, make_job: MakeJob) -> None:
    folder = made(tmp_path / "start", make_job())
    start = open_start(make_job(), folder)
    assert start.digest == file_digest(folder / TENSORS)
    expected = initial_tensors(make_job(seed=9))
    assert start.tensors.keys() == expected.keys()
    assert all(torch.equal(start.tensors[name], expected[name]) for name in expected)
    described = load_checkpoint(folder)[1]["warm_start"]
    assert described["source"] == "a checkpoint of this package"
    assert described["loaded"].keys() == expected.keys()


def test_a_finished_run_of_the_same_model_is_a_start(tmp_path: Path, make_job: MakeJob) -> None:
    job = make_job(rounds=1)
    run = RunFolder(tmp_path / "run", job)
    run.create()
    last = initial_tensors(make_job(seed=5))
    run.save_model(0, initial_tensors(job))
    run.save_model(1, last)
    run.finish(1, ["a"])
    start = open_start(make_job(), tmp_path / "run")
    assert all(torch.equal(start.tensors[name], last[name]) for name in last)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model": {"reach_mm": None}}, "model.reach_mm"),
        ({"preparation": {"spacing_mm": [1.0, 1.0, 1.0]}}, "preparation.spacing_mm"),
        ({"preparation": {"intensity": {"CT": {"kind": "foreground"}}}}, "intensity"),
    ],
)
def test_a_start_that_fits_and_computes_something_else_is_refused_with_the_remedy(
    tmp_path: Path, make_job: MakeJob, changes: dict[str, dict[str, object]], named: str
) -> None:
    sizes = {"patch": 4, "width": 24, "depth": 2, "heads": 2, "decoder_width": 24, "decoder_depth": 1}
    other = make_job(**{**changes, "model": sizes | changes.get("model", {})})
    folder = save_checkpoint(tmp_path / "run", initial_tensors(other), described(other))
    with pytest.raises(TrainingError, match=f"PM403 .*{named}.*parametrium warm-start"):
        open_start(make_job(), folder)
    tensors, report = transfer(make_job(), Weights(*load_checkpoint(folder)))
    assert open_start(make_job(), save_start(tmp_path / "start", make_job(), tensors, report)).digest


def test_a_rule_that_is_written_out_is_no_other_rule(tmp_path: Path, make_job: MakeJob) -> None:
    written = {"kind": "foreground", "percentiles": [0.5, 99.5], "limit": 5.0}
    other = make_job(preparation={"intensity": {"T1": written}})
    assert open_start(make_job(), save_checkpoint(tmp_path / "run", initial_tensors(other), described(other))).digest


def test_a_converted_start_says_what_was_different(tmp_path: Path, make_job: MakeJob) -> None:
    other = make_job(preparation={"intensity": {"CT": {"kind": "foreground"}}, "spacing_mm": [1.0, 1.0, 1.0]})
    _, report = transfer(make_job(), Weights(initial_tensors(other), described(other)))
    assert len(report.notes) == 2
    assert "spacing is [1.0, 1.0, 1.0] mm" in report.notes[0]
    assert report.notes[1].endswith("another intensity rule: CT")


def test_a_start_that_cannot_be_written_is_told_with_a_code(tmp_path: Path, make_job: MakeJob) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(TrainingError, match="PM403 the start cannot be written there"):
        made(tmp_path / "file" / "start", make_job())


def test_a_start_is_never_replaced(tmp_path: Path, make_job: MakeJob) -> None:
    folder = made(tmp_path / "start", make_job())
    before = file_digest(folder / TENSORS)
    with pytest.raises(TrainingError, match="PM403 the folder for the start exists"):
        made(tmp_path / "start", make_job(seed=2))
    assert file_digest(folder / TENSORS) == before


@pytest.mark.parametrize(
    "changes", [{"modalities": ["CT"]}, {"objectives": [{"kind": "soft_contrastive"}]}, {"model": {"patch": 4}}]
)
def test_a_start_for_another_model_is_refused_with_the_remedy(
    tmp_path: Path, make_job: MakeJob, changes: dict[str, object]
) -> None:
    folder = made(tmp_path / "start", make_job())
    with pytest.raises(TrainingError, match=r"PM403 .* parametrium warm-start") as caught:
        open_start(make_job(**changes), folder)
    assert str(tmp_path) not in str(caught.value)


def test_a_start_that_is_not_finite_or_damaged_is_refused(tmp_path: Path, make_job: MakeJob) -> None:
    tensors = initial_tensors(make_job())
    tensors["encoder.norm.bias"][0] = torch.inf
    with pytest.raises(TrainingError, match="PM403 1 tensors of the start are not finite"):
        open_start(make_job(), save_checkpoint(tmp_path / "start", tensors, {}))
    folder = made(tmp_path / "good", make_job())
    (folder / TENSORS).write_bytes((folder / TENSORS).read_bytes()[:-1])
    with pytest.raises(TrainingError, match="PM403"):
        open_start(make_job(), folder)


def test_the_manifest_names_the_start(tmp_path: Path, make_job: MakeJob) -> None:
    run = RunFolder(tmp_path / "run", make_job())
    run.create()
    run.start = "ab" * 32
    run.finish(0, [])
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["start"] == "ab" * 32
