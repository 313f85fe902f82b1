"""The run folder: what was done can be read from it, and ``judge`` believes nothing else."""

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from parametrium.config import JobConfig, parse_job
from parametrium.errors import Code, FederationError, TrainingError
from parametrium.model.modality import Owner
from parametrium.training.checkpoint import TENSORS, load_checkpoint, save_checkpoint
from parametrium.training.run_folder import (
    COLUMNS,
    Contribution,
    RunFolder,
    best_model,
    contribution_of,
    final_model,
    judge,
    read_lines,
    unused,
)
from parametrium.training.update import Update

MakeJob = Callable[..., JobConfig]

ACCEPTED = Contribution("alpha", "accepted", "", 40, 12, 0.5, {"shared": 40, "embed/CT": 40})
REJECTED = Contribution("beta", "rejected", 'PM501 beta: x is not finite, "quoted"')
MODEL = {"x": torch.ones(2, 3)}


def good_run(path: Path, job: JobConfig) -> RunFolder:
    run = RunFolder(path, job)
    run.create()
    run.save_model(0, MODEL)
    for number in range(job.rounds):
        run.add_round(number, [REJECTED, ACCEPTED], {"alpha": {"train/loss/x": 1.0 / (number + 1)}}, 0.25)
        run.save_model(number + 1, {"x": torch.full((2, 3), float(number))})
    run.finish(job.rounds, ["beta", "alpha"])
    return run


def test_a_whole_run_is_good(tmp_path: Path, make_job: MakeJob) -> None:
    good_run(tmp_path / "run", make_job())
    assert judge(tmp_path / "run") == (True, [])
    assert final_model(tmp_path / "run")["x"].tolist() == [[1.0] * 3] * 2


def test_the_manifest_says_what_happened(tmp_path: Path, make_job: MakeJob) -> None:
    good_run(tmp_path / "run", make_job())
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    digest = manifest.pop("sha256")
    assert len(digest) == 64
    assert manifest.pop("best_sha256") == digest
    assert manifest == {
        "run": "tiny",
        "status": "complete",
        "start": None,
        "rounds_done": 2,
        "rounds_planned": 2,
        "stopped": None,
        "sites": ["alpha", "beta"],
        "checkpoint": "round_0002",
        "best_round": 2,
        "best_checkpoint": "round_0002",
        "error": None,
    }


def test_the_job_comes_back_as_it_was(tmp_path: Path, make_job: MakeJob) -> None:
    job = make_job(seed=7)
    good_run(tmp_path / "run", job)
    assert parse_job(yaml.safe_load((tmp_path / "run" / "job.yaml").read_text())) == job


def test_contributions_say_who_gave_what_and_who_was_rejected_why(tmp_path: Path, make_job: MakeJob) -> None:
    good_run(tmp_path / "run", make_job())
    with (tmp_path / "run" / "contributions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    assert [(row["round"], row["site"], row["status"]) for row in rows] == [
        ("0", "alpha", "accepted"),
        ("0", "beta", "rejected"),
        ("1", "alpha", "accepted"),
        ("1", "beta", "rejected"),
    ]
    assert rows[1]["reason"] == REJECTED.reason
    assert (rows[0]["samples"], rows[0]["tensors"], rows[0]["norm"]) == ("40", "12", "0.5")


def test_rounds_and_evaluations_are_lines_of_json(tmp_path: Path, make_job: MakeJob) -> None:
    run = good_run(tmp_path / "run", make_job())
    run.add_evaluation(2, "alpha", {"evaluation/x": 0.5})
    rounds = read_lines(tmp_path / "run" / "rounds.jsonl")
    assert [record["round"] for record in rounds] == [0, 1]
    assert rounds[1]["scalars"] == {"alpha": {"train/loss/x": 0.5}}
    assert rounds[0]["sites"][0]["owners"] == {"shared": 40, "embed/CT": 40}
    assert read_lines(tmp_path / "run" / "evaluation.jsonl") == [
        {"round": 2, "site": "alpha", "scalars": {"evaluation/x": 0.5}}
    ]
    assert read_lines(tmp_path / "run" / "absent.jsonl") == []
    assert list((tmp_path / "run" / "tensorboard" / "alpha").iterdir())


def test_a_checkpoint_describes_itself(tmp_path: Path, make_job: MakeJob) -> None:
    job = make_job()
    good_run(tmp_path / "run", job)
    _, meta = load_checkpoint(tmp_path / "run" / "checkpoints" / "round_0001")
    assert meta["round"] == 1
    assert meta["modalities"] == ["CT", "T1", "PET"]
    assert parse_job(meta["job"]) == job
    assert meta["rng"] == {"seed": 0, "step": 4}


def test_a_used_folder_is_refused(tmp_path: Path, make_job: MakeJob) -> None:
    good_run(tmp_path / "run", make_job())
    with pytest.raises(FederationError, match="PM503 the run folder already holds a run") as caught:
        RunFolder(tmp_path / "run", make_job()).create()
    assert str(tmp_path) not in str(caught.value)


def test_the_owners_are_summarised_by_group() -> None:
    counts = {"a": 7, "b": 9, "c": 4, "d": 5}
    owners = {
        "a": Owner("shared", None),
        "b": Owner("shared", None),
        "c": Owner("embed", "CT"),
        "d": Owner("decode", "PET"),
        "unused": Owner("embed", "T1"),
    }
    update = Update("alpha", 0, {name: torch.tensor(3.0) for name in counts}, counts, counts, 9, {})
    found = contribution_of(update, owners)
    assert found == Contribution("alpha", "accepted", "", 9, 4, 6.0, {"shared": 9, "embed/CT": 4, "decode/PET": 5})


# ----------------------------------------------------------------------------------------------------- judge finds it


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def judged(path: Path, *reasons: str) -> None:
    good, found = judge(path)
    assert not good
    assert len(found) == len(reasons), found
    for wanted, reason in zip(reasons, found, strict=True):
        assert wanted in reason
        assert str(path) not in reason


def test_judge_misses_the_manifest(tmp_path: Path, make_job: MakeJob) -> None:
    good_run(tmp_path / "run", make_job())
    (tmp_path / "run" / "manifest.json").unlink()
    judged(tmp_path / "run", "the run has no manifest")
    judged(tmp_path / "nowhere", "the run has no manifest")


@pytest.mark.parametrize("name", ["manifest.json", "job.yaml", "rounds.jsonl"])
def test_judge_sees_a_cut_file(tmp_path: Path, make_job: MakeJob, name: str) -> None:
    good_run(tmp_path / "run", make_job())
    content = (tmp_path / "run" / name).read_text()
    (tmp_path / "run" / name).write_text(content[: len(content) // 2])
    assert not judge(tmp_path / "run")[0]


WHOLE = {"status": "complete", "error": None, "rounds_done": 2, "checkpoint": "round_0002", "sha256": "0"}
OTHER = [{"sha256": None}, {"checkpoint": 3}, {"checkpoint": ["x"]}, {"error": {"a": 1}}, {"rounds_done": "2"}]


@pytest.mark.parametrize(
    "text", ["{}", "[]", "null", '{"status": "complete"}', *(json.dumps(WHOLE | change) for change in OTHER)]
)
def test_judge_refuses_a_manifest_of_something_else(tmp_path: Path, make_job: MakeJob, text: str) -> None:
    good_run(tmp_path / "run", make_job())
    (tmp_path / "run" / "manifest.json").write_text(text)
    good, reasons = judge(tmp_path / "run")
    assert not good
    assert reasons
    assert all(isinstance(reason, str) for reason in reasons)


def test_judge_misses_the_checksum(tmp_path: Path, make_job: MakeJob) -> None:
    run = good_run(tmp_path / "run", make_job())
    manifest = json.loads((run.path / "manifest.json").read_text())
    del manifest["sha256"]
    (run.path / "manifest.json").write_text(json.dumps(manifest))
    judged(run.path, "does not match the manifest's checksum")


def test_judge_counts_missing_rounds(tmp_path: Path, make_job: MakeJob) -> None:
    run = good_run(tmp_path / "run", make_job(rounds=3))
    lines = (run.path / "rounds.jsonl").read_text().splitlines(keepends=True)
    (run.path / "rounds.jsonl").write_text(lines[0] + lines[2])
    judged(run.path, "2 of 3 rounds were done")
    (run.path / "rounds.jsonl").unlink()
    judged(run.path, "0 of 3 rounds were done")


def test_judge_sees_a_round_done_twice(tmp_path: Path, make_job: MakeJob) -> None:
    run = good_run(tmp_path / "run", make_job())
    run.add_round(1, [ACCEPTED], {}, 0.1)
    judged(run.path, "3 of 2 rounds were done")


DAMAGED = [
    '{"seconds": 1.0, "sites": []}',
    '{"round": "1", "sites": []}',
    '{"round": true, "sites": []}',
    '{"round": 1}',
    '{"round": 1, "sites": null}',
    '{"round": 1, "sites": [{"site": "alpha"}]}',
    '{"round": 1, "sites": ["alpha"]}',
    '{"round": 1, "sites": [{"sta',
    "[]",
    "null",
    "",
    "[" * 100_000,
    "\x00\xff",
]


@pytest.mark.parametrize("line", DAMAGED, ids=lambda line: line[:30])
def test_judge_counts_damaged_lines(tmp_path: Path, make_job: MakeJob, line: str) -> None:
    run = good_run(tmp_path / "run", make_job())
    first, _ = (run.path / "rounds.jsonl").read_text().splitlines()
    (run.path / "rounds.jsonl").write_bytes(f"{first}\n{line}\n".encode("latin-1"))
    judged(run.path, "1 lines of rounds.jsonl are damaged", "1 of 2 rounds were done")
    run.finish_abandoned(["alpha", "beta"], FederationError(Code.FLARE_FAILED, "it was killed"))
    judged(run.path, "PM505 it was killed", "1 lines of rounds.jsonl are damaged", "1 of 2 rounds were done")
    assert json.loads((run.path / "manifest.json").read_text())["checkpoint"] == "round_0001"


def test_judge_misses_the_job(tmp_path: Path, make_job: MakeJob) -> None:
    run = good_run(tmp_path / "run", make_job())
    (run.path / "job.yaml").unlink()
    judged(run.path, "the run's job.yaml is missing, damaged, or of a version that took what this one refuses")


def test_judge_counts_the_sites_of_every_round(tmp_path: Path, make_job: MakeJob) -> None:
    good_run(tmp_path / "run", make_job(minimum_sites=2))
    judged(
        tmp_path / "run",
        "round 0 had 1 of at least 2 usable answers",
        "round 1 had 1 of at least 2 usable answers",
    )


IDLE = contribution_of(Update("beta", 0, {}, {}, {}, 0, {}), {})


def test_an_idle_site_is_recorded_with_its_reason() -> None:
    assert IDLE.status == "idle"
    assert IDLE.reason.startswith("this round's objectives found nothing to train on")


def test_an_update_that_was_not_used_counts_no_samples() -> None:
    assert unused(ACCEPTED).status == "unused"
    assert (unused(ACCEPTED).samples, unused(ACCEPTED).owners) == (0, {})
    assert unused(REJECTED) == REJECTED
    assert unused(IDLE) == IDLE


@pytest.mark.parametrize(
    ("rounds", "faults"),
    [
        ([[unused(ACCEPTED), IDLE], [ACCEPTED, replace(ACCEPTED, site="beta")]], []),
        ([[ACCEPTED, IDLE], [ACCEPTED, REJECTED]], ["round 1 had 1 of at least 2 usable answers"]),
        (
            [[unused(ACCEPTED), IDLE], [unused(ACCEPTED), IDLE]],
            ["in no round as many sites trained as the job's minimum: nothing was learned"],
        ),
    ],
)
def test_judge_counts_an_idle_site_as_one_that_answered(
    tmp_path: Path, make_job: MakeJob, rounds: list[list[Contribution]], faults: list[str]
) -> None:
    run = RunFolder(tmp_path / "run", make_job(minimum_sites=2, rounds=2))
    run.create()
    for number, contributions in enumerate(rounds):
        run.add_round(number, contributions, {}, 0.25)
        run.save_model(number + 1, MODEL)
    run.finish(2, ["alpha", "beta"])
    assert judge(run.path) == (not faults, faults)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_judge_sees_a_model_that_is_not_finite(tmp_path: Path, make_job: MakeJob, value: float) -> None:
    run = good_run(tmp_path / "run", make_job())
    run.save_model(2, {"x": torch.tensor([0.0, value]), "y": torch.ones(1)})
    run.finish(2, ["alpha", "beta"])
    judged(run.path, "1 tensors of the final model are not finite")


def test_judge_sees_another_model_under_the_same_name(tmp_path: Path, make_job: MakeJob) -> None:
    run = good_run(tmp_path / "run", make_job())
    save_checkpoint(run.path / "checkpoints" / "round_0002", {"x": torch.zeros(2, 3)}, {})
    judged(run.path, "does not match the manifest's checksum")


def test_judge_sees_a_damaged_model(tmp_path: Path, make_job: MakeJob) -> None:
    run = good_run(tmp_path / "run", make_job())
    path = run.path / "checkpoints" / "round_0002" / TENSORS
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    judged(run.path, "PM403")


def test_judge_misses_the_checkpoint(tmp_path: Path, make_job: MakeJob) -> None:
    run = good_run(tmp_path / "run", make_job())
    edit(run.path / "manifest.json", checkpoint=None, sha256=None)
    judged(run.path, "PM503 the run ended without a checkpoint")
    edit(run.path / "manifest.json", checkpoint="round_0009")
    judged(run.path, "PM403")


def test_judge_believes_no_manifest_that_names_an_earlier_model(tmp_path: Path, make_job: MakeJob) -> None:
    run = good_run(tmp_path / "run", make_job())
    run.finish(1, ["alpha", "beta"])  # complete, it says, with the model of the first round
    judged(run.path, "the final model is that after 1 of 2 rounds")


def test_judge_repeats_the_error_of_the_run(tmp_path: Path, make_job: MakeJob) -> None:
    run = good_run(tmp_path / "run", make_job())
    run.finish(2, ["alpha"], TrainingError(Code.TRAINING_NOT_FINITE, "the loss is not finite", site_detail="/secret"))
    judged(run.path, "PM402 the loss is not finite")
    run.finish(2, ["alpha"], RuntimeError("/secret/patient"))
    judged(run.path, "PM901")
    assert "secret" not in (run.path / "manifest.json").read_text()
    edit(run.path / "manifest.json", error=None)
    judged(run.path, "the run's status is failed")


def test_judge_lists_every_reason(tmp_path: Path, make_job: MakeJob) -> None:
    run = RunFolder(tmp_path / "run", make_job(minimum_sites=2))
    run.create()
    run.save_model(0, {"x": torch.tensor([float("nan")])})
    run.add_round(0, [REJECTED], {}, 0.1)
    run.finish(0, ["beta"], FederationError(Code.ROUND_FAILED, "too few sites"))
    judged(
        run.path,
        "PM502 too few sites",
        "1 of 2 rounds were done",
        "round 0 had 0 of at least 2 usable answers",
        "1 tensors of the final model are not finite",
    )


def test_there_is_no_final_model_without_a_finished_run(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("[]")
    with pytest.raises(FederationError, match="PM503 the folder holds no finished run"):
        final_model(tmp_path)
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(FederationError, match="PM503 the folder holds no finished run") as caught:
        final_model(tmp_path)
    assert str(tmp_path) not in str(caught.value)


# ------------------------------------------------------------------------------------------------------- the best round

RULE = {"stopping": {"held_out_loss": {"patience": 2}}, "evaluation": {"every": 1}, "rounds": 6}
LOSSES = (3.0, 2.0, 1.0, 1.5, 2.5)


def stopped_run(path: Path, job: JobConfig, losses: tuple[float, ...] = LOSSES) -> RunFolder:
    """One round a loss; as a run does, it asks for the verdict after each and ends by it."""
    run = RunFolder(path, job)
    run.create()
    run.save_model(0, MODEL)
    for number, loss in enumerate(losses):
        assert run.verdict().stopped_by is None
        run.add_round(number, [ACCEPTED], {}, 0.25)
        run.save_model(number + 1, {"x": torch.full((2, 3), loss)})
        run.add_evaluation(number + 1, "alpha", {"evaluation/loss/masked_reconstruction": loss})
    run.finish(len(losses), ["alpha"])
    return run


def test_a_run_that_a_rule_stopped_is_good_and_names_its_best_round(tmp_path: Path, make_job: MakeJob) -> None:
    run = stopped_run(tmp_path / "run", make_job(**RULE))
    assert judge(run.path) == (True, [])
    manifest = json.loads((run.path / "manifest.json").read_text())
    assert manifest["stopped"]["after_rounds"] == 5
    assert manifest["stopped"]["rule"] == "held_out_loss"
    assert manifest["stopped"]["reason"].startswith("held-out loss was above 1 times its minimum (1, after 3 rounds)")
    names = [manifest[key] for key in ("rounds_done", "checkpoint", "best_checkpoint")]
    assert names == [5, "round_0005", "round_0003"]
    number, tensors = best_model(run.path)
    assert number == 3
    assert tensors["x"].unique().tolist() == [1.0]
    assert final_model(run.path)["x"].unique().tolist() == [2.5]
    assert run.model(4)["x"].unique().tolist() == [1.5]


def test_the_history_is_read_from_the_folder_after_an_interruption(tmp_path: Path, make_job: MakeJob) -> None:
    run = stopped_run(tmp_path / "run", make_job(**RULE))
    again = RunFolder(run.path, make_job(**RULE))
    assert again.verdict() == run.verdict()
    with (run.path / "evaluation.jsonl").open("a") as file:
        file.write('{"round": 1, "site": "alpha", "scal')  # a crash
    assert again.verdict() == run.verdict()


def test_a_run_that_ends_by_itself_has_a_best_round_too(tmp_path: Path, make_job: MakeJob) -> None:
    run = stopped_run(tmp_path / "run", make_job(**RULE | {"rounds": 4}), LOSSES[:4])
    assert judge(run.path) == (True, [])
    assert json.loads((run.path / "manifest.json").read_text())["stopped"] is None
    assert best_model(run.path)[0] == 3
    late = stopped_run(tmp_path / "late", make_job(**RULE | {"rounds": 5}))  # the rule fires when all is done anyway
    assert json.loads((late.path / "manifest.json").read_text())["stopped"] is None


def test_judge_asks_the_rule_again(tmp_path: Path, make_job: MakeJob) -> None:
    run = stopped_run(tmp_path / "run", make_job(**RULE))
    manifest = json.loads((run.path / "manifest.json").read_text())
    edit(run.path / "manifest.json", stopped=None)
    judged(run.path, "the final model is that after 5 of 6 rounds", "5 of 6 rounds were done")
    edit(run.path / "manifest.json", stopped=manifest["stopped"], best_round=5)
    judged(run.path, "the best round of the manifest is not that of the run's measurements")
    edit(run.path / "manifest.json", best_round=3, best_sha256="0")
    judged(run.path, "the best model does not match the manifest's checksum")
    edit(run.path / "manifest.json", best_sha256=manifest["best_sha256"])
    assert judge(run.path) == (True, [])
    lines = (run.path / "evaluation.jsonl").read_text().splitlines(keepends=True)
    (run.path / "evaluation.jsonl").write_text("".join(lines[:-1]))
    judged(run.path, "the manifest says that a rule stopped the run, and the run's measurements do not")


def test_a_run_that_failed_was_not_stopped_by_rule(tmp_path: Path, make_job: MakeJob) -> None:
    run = stopped_run(tmp_path / "run", make_job(**RULE))
    run.finish(5, ["alpha"], FederationError(Code.ROUND_FAILED, "too few sites"))
    assert json.loads((run.path / "manifest.json").read_text())["stopped"] is None
    assert not judge(run.path)[0]
