"""What the coordinator downloads is enough to judge the run and to take its model."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from parametrium.config import JobConfig
from parametrium.errors import Code, FederationError
from parametrium.federation.download import downloaded_run, offer_download
from parametrium.training.run_folder import Contribution, RunFolder, best_model, final_model, judge

MakeJob = Callable[..., JobConfig]


def finished(path: Path, job: JobConfig) -> Path:
    run = RunFolder(path, job)
    run.create()
    for number in range(job.rounds):
        run.add_round(
            number, [Contribution("north", "accepted", "", 8, 1, 0.5)], {"north": {"train/samples": 8.0}}, 1.0
        )
        run.save_model(number + 1, {"x": torch.full((2,), float(number))})
    run.finish(job.rounds, ["north"])
    (path / "sites" / "north").mkdir()
    (path / "sites" / "north" / "trainer.log").write_text("stays")
    return path


def test_a_download_is_judged_like_the_run_and_holds_its_model(tmp_path: Path, make_job: MakeJob) -> None:
    run = finished(tmp_path / "run", make_job())
    offer_download(run, tmp_path / "result" / "workspace")
    downloaded = downloaded_run(tmp_path / "result")
    assert judge(downloaded) == (True, [])
    assert final_model(downloaded)["x"].equal(final_model(run)["x"])
    assert not (downloaded / "sites").exists()
    assert [path.name for path in (downloaded / "checkpoints").iterdir()] == ["round_0002"]


def test_a_failed_run_is_offered_with_its_reason(tmp_path: Path, make_job: MakeJob) -> None:
    run = RunFolder(tmp_path / "run", make_job())
    run.create()
    run.finish(0, ["north"], FederationError(Code.ROUND_FAILED, "nobody came"))
    offer_download(tmp_path / "run", tmp_path / "workspace")
    complete, reasons = judge(tmp_path / "workspace" / "parametrium_run")
    assert not complete
    assert "PM502 nobody came" in reasons


def test_a_run_that_cannot_be_offered_is_still_a_run(
    tmp_path: Path, make_job: MakeJob, caplog: pytest.LogCaptureFixture
) -> None:
    run = finished(tmp_path / "run", make_job())
    (tmp_path / "workspace").touch()
    offer_download(run, tmp_path / "workspace")
    assert judge(run) == (True, [])
    assert "cannot be offered for download" in caplog.text
    assert str(tmp_path) not in caplog.text


def test_the_best_model_comes_along_where_it_is_not_the_last(tmp_path: Path, make_job: MakeJob) -> None:
    rule = {"stopping": {"held_out_loss": {"patience": 1}}, "evaluation": {"every": 1}}
    run = RunFolder(tmp_path / "run", make_job(rounds=3, **rule))
    run.create()
    for number, loss in enumerate((1.0, 2.0)):
        run.add_round(number, [Contribution("north", "accepted", "", 8, 1, 0.5)], {}, 1.0)
        run.save_model(number + 1, {"x": torch.full((2,), loss)})
        run.add_evaluation(number + 1, "north", {"evaluation/loss/masked_reconstruction": loss})
    run.finish(2, ["north"])
    offer_download(run.path, tmp_path / "result" / "workspace")
    downloaded = downloaded_run(tmp_path / "result")
    assert judge(downloaded) == (True, [])
    number, tensors = best_model(downloaded)
    assert (number, tensors["x"].tolist()) == (1, [1.0, 1.0])
