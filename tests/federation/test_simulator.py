"""The real simulator with sites that misbehave: who is rejected, what the others learn, what the server may know."""

import csv
import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from hospitals import environment, run_command, write_config, write_job, write_site
from safetensors.torch import load_file
from torch import Tensor

from parametrium.config import load_job
from parametrium.model.modality import Owner, tensor_owners
from parametrium.objectives.registry import build_model
from parametrium.training.checkpoint import load_checkpoint
from parametrium.training.run_folder import judge, read_lines
from sentinel import SENTINEL, leaks, spellings

pytestmark = pytest.mark.multiprocess

FAULTS = {
    "charlie": {0: "nan", 1: "missing_key", 2: "scalar_name"},
    "delta": {0: "wrong_shape", 1: "raise", 2: "kill"},
}
ROUNDS = 4  # in the last one, everybody is well again


@dataclass(frozen=True)
class Run:
    """A finished command, the run it wrote, and the updates that sites honestly computed."""

    command: subprocess.CompletedProcess[bytes]
    folder: Path
    recorded: Path
    job: Path

    def model(self, rounds: int) -> dict[str, Tensor]:
        return load_checkpoint(self.folder / "checkpoints" / f"round_{rounds:04d}")[0]

    def update(self, site: str, number: int) -> tuple[dict[str, Tensor], dict[str, int]]:
        path = self.recorded / f"{site}-{number}"
        contributions: dict[str, int] = json.loads(path.with_suffix(".json").read_text())
        return load_file(path.with_suffix(".safetensors")), contributions

    def contributions(self) -> dict[tuple[int, str], Mapping[str, str]]:
        with (self.folder / "contributions.csv").open(newline="") as file:
            return {(int(row["round"]), row["site"]): row for row in csv.DictReader(file)}


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Two healthy sites with nothing in common, two that fail in six ways, and one whose cohort is not there."""
    folder = tmp_path_factory.mktemp("faulty")
    held = {"alpha": ["CT", "T1"], "bravo": ["PET"], "charlie": ["CT"], "delta": ["PET"]}
    sites = [write_site(folder, name, modalities) for name, modalities in held.items()]
    sites.append(write_config(folder, "echo", folder / f"{SENTINEL}-absent"))
    job = write_job(folder / "job.yaml", rounds=ROUNDS, minimum_sites=2)
    env = environment(folder / "recorded", FAULTS)
    command = run_command("simulate", job, *sites, "--out", folder / "run", "--timeout", "200", env=env)
    return Run(command, folder / "run", folder / "recorded", job)


def test_the_run_goes_on_without_the_sites_that_fail(faulty: Run) -> None:
    assert judge(faulty.folder) == (True, [])
    assert faulty.command.returncode == 0, faulty.command.stderr.decode()
    status = {key: row["status"] for key, row in faulty.contributions().items()}
    for number in range(ROUNDS):
        well = number == ROUNDS - 1
        assert status[number, "alpha"] == status[number, "bravo"] == "accepted"
        assert status[number, "charlie"] == status[number, "delta"] == ("accepted" if well else "rejected")
        assert status[number, "echo"] == "missing"


@pytest.mark.parametrize(
    ("number", "site", "reason"),
    [
        (0, "charlie", "is not finite"),
        (0, "delta", "got [3, 5, 7]"),
        (1, "charlie", "1 declared tensors are missing"),
        (1, "delta", "PM901 an unexpected error; the site's own log has the details (ValueError)"),
        (2, "charlie", "PM506 1 scalars are not on the list"),
        (2, "delta", "PM504 the trainer was killed by signal 9"),
        (0, "echo", "PM201"),
    ],
)
def test_a_site_is_left_out_by_name_and_reason(faulty: Run, number: int, site: str, reason: str) -> None:
    row = faulty.contributions()[number, site]
    assert row["reason"].startswith(f"{site}: ")
    assert reason in row["reason"]
    assert row["samples"] == "0"


def test_shared_tensors_are_the_weighted_mean_and_private_ones_the_owners(faulty: Run) -> None:
    before, after = faulty.model(0), faulty.model(1)
    updates = [faulty.update(site, 0) for site in ("alpha", "bravo")]
    trained_by: dict[str, int] = {}
    for name, tensor in before.items():
        total, weight = np.zeros(tensor.shape), 0
        trained_by[name] = 0
        for tensors, contributions in updates:
            if name in tensors:
                total = total + contributions[name] * tensors[name].numpy().astype(np.float64)
                weight += contributions[name]
                trained_by[name] += 1
        expected = tensor.numpy() + total / weight if weight else tensor.numpy()
        assert np.array_equal(after[name].numpy(), expected.astype(np.float32)), name
    owners = owners_of(faulty.job)
    assert {trained_by[name] for name in owners if owners[name].modality == "ADC"} == {0}
    assert {trained_by[name] for name in owners if owners[name].modality in ("CT", "T1", "PET")} <= {0, 1}
    assert 2 in {trained_by[name] for name in owners if owners[name].modality is None}


def test_what_nobody_trained_keeps_every_bit(faulty: Run) -> None:
    first, last = faulty.model(0), faulty.model(ROUNDS)
    nobody = [name for name, owner in owners_of(faulty.job).items() if owner.modality == "ADC"]
    assert nobody
    assert all(first[name].equal(last[name]) for name in nobody)
    assert not all(first[name].equal(last[name]) for name in first)


def test_a_run_of_a_federation_leaves_its_numbers_in_tensorboard(faulty: Run) -> None:
    assert {path.name for path in (faulty.folder / "tensorboard").iterdir()} >= {"alpha", "bravo"}
    evaluated = {(line["round"], line["site"]) for line in read_lines(faulty.folder / "evaluation.jsonl")}
    assert {(0, "alpha"), (ROUNDS, "bravo")} <= evaluated


def test_nothing_of_a_patient_reaches_the_server(faulty: Run) -> None:
    """Assurance P1. FLARE's simulator writes server and sites into one log: all of it must be clean."""
    assert SENTINEL in (faulty.folder / "sites" / "delta" / "trainer.log").read_text(), "the sentinel was not planted"
    written = [path for path in faulty.folder.iterdir() if path.name != "sites"]
    assert {"simulator.log", "tensorboard", "checkpoints", "contributions.csv", "rounds.jsonl"} <= {
        path.name for path in written
    }
    assert leaks(*written) == []
    printed = (faulty.command.stdout + faulty.command.stderr).lower()
    assert not any(needle.lower() in printed for needle in spellings(SENTINEL))


def test_too_few_healthy_sites_stop_the_run_loudly(tmp_path: Path) -> None:
    sites = [write_site(tmp_path, "alpha", ["CT"]), write_site(tmp_path, "bravo", ["CT"])]
    job = write_job(tmp_path / "job.yaml", minimum_sites=2)
    env = environment(tmp_path / "recorded", {"bravo": {1: "raise"}})
    command = run_command("simulate", job, *sites, "--out", tmp_path / "run", "--timeout", "120", env=env)
    assert command.returncode == 1
    assert b"PM502 only 1 sites gave an answer to round 1 that can be used; minimum_sites is 2" in command.stdout
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert (manifest["status"], manifest["rounds_done"], manifest["checkpoint"]) == ("failed", 1, "round_0001")
    assert SENTINEL not in command.stdout.decode() + command.stderr.decode()


def test_one_site_alone_learns_the_same_with_and_without_a_federation(tmp_path: Path) -> None:
    """With every kind of state: moments, and a teacher that is kept at the site."""
    kinds = ["masked_reconstruction", "soft_contrastive", "latent_prediction", "box_localisation"]
    site = write_site(tmp_path, "alpha", ["CT", "T1"], objectives=kinds)
    job = write_job(tmp_path / "job.yaml", objectives=[{"kind": kind} for kind in kinds])
    env = environment(tmp_path / "recorded", {})
    federated = run_command("simulate", job, site, "--out", tmp_path / "one", "--timeout", "120", env=env)
    local = run_command("train", job, site, "--out", tmp_path / "two", env=env)
    assert (federated.returncode, local.returncode) == (0, 0), federated.stderr + local.stderr
    for number in range(3):
        one, two = (
            load_checkpoint(tmp_path / run / "checkpoints" / f"round_{number:04d}")[0] for run in ("one", "two")
        )
        assert one.keys() == two.keys()
        assert all(one[name].equal(two[name]) for name in one)


def test_a_summed_federation_counts_each_site_for_what_it_trained(tmp_path: Path) -> None:
    """All objectives in every step; bravo has no two registered modalities, and takes no part in one of them."""
    sites = [write_site(tmp_path, name, held) for name, held in {"alpha": ["CT", "T1"], "bravo": ["CT"]}.items()]
    kinds = ["masked_reconstruction", "cross_modal_reconstruction", "soft_contrastive"]
    objectives = [{"kind": kind} for kind in kinds]
    job = write_job(tmp_path / "job.yaml", objectives=objectives, schedule="summed", minimum_sites=2)
    env = environment(tmp_path / "recorded", {})
    command = run_command("simulate", job, *sites, "--out", tmp_path / "run", "--timeout", "200", env=env)
    assert command.returncode == 0, command.stderr.decode()
    run = Run(command, tmp_path / "run", tmp_path / "recorded", job)
    for record in read_lines(run.folder / "rounds.jsonl"):
        number = record["round"]
        told = {
            site: {kind for kind in kinds if f"train/loss/{kind}" in record["scalars"][site]}
            for site in ("alpha", "bravo")
        }
        assert told == {"alpha": set(kinds), "bravo": set(kinds) - {"cross_modal_reconstruction"}}
        before, after = run.model(number), run.model(number + 1)
        (ours, samples), (theirs, others) = run.update("alpha", number), run.update("bravo", number)
        crossed = {name for name in before if name.startswith("objectives.cross_modal_reconstruction")} & ours.keys()
        assert crossed
        assert not crossed & theirs.keys()
        for name in crossed:
            assert np.array_equal(after[name].numpy(), (before[name].double() + ours[name].double()).float().numpy())
        shared = "encoder.norm.weight"
        for counts in (samples, others):  # once for every objective that a crop served
            heads = [own_head(counts, kind, owners_of(job)) for kind in kinds]
            assert counts[shared] == sum(counts[head] for head in heads if head)
        mean = (samples[shared] * ours[shared].double() + others[shared] * theirs[shared].double()) / (
            samples[shared] + others[shared]
        )
        assert np.array_equal(after[shared].numpy(), (before[shared].double() + mean).float().numpy())


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """One of two sites has a single modality. Rounds of two steps: template and cross, cross and cross, and again."""
    folder = tmp_path_factory.mktemp("uneven")
    objectives = [{"kind": "template_reconstruction"}, {"kind": "cross_modal_reconstruction", "turns": 3}]
    kinds = [str(objective["kind"]) for objective in objectives]
    held = {"alpha": ["CT"], "bravo": ["CT", "T1"]}
    sites = [write_site(folder, name, modalities, objectives=kinds) for name, modalities in held.items()]
    job = write_job(folder / "job.yaml", objectives=objectives, rounds=3, local_steps=2)
    env = environment(folder / "recorded", {})
    command = run_command("simulate", job, *sites, "--out", folder / "run", "--timeout", "120", env=env)
    return Run(command, folder / "run", folder / "recorded", job)


def test_a_site_that_finds_nothing_in_a_round_is_idle_and_takes_part_in_the_next(uneven: Run) -> None:
    assert uneven.command.returncode == 0, uneven.command.stderr.decode()
    statuses = {place: row["status"] for place, row in uneven.contributions().items()}
    assert {number: statuses[number, "alpha"] for number in range(3)} == {0: "accepted", 1: "idle", 2: "accepted"}
    assert {statuses[number, "bravo"] for number in range(3)} == {"accepted"}
    assert judge(uneven.folder) == (True, [])
    before, after, (sent, _) = uneven.model(1), uneven.model(2), uneven.update("bravo", 1)
    for name, tensor in before.items():  # the other site's update is the whole round's
        torch.testing.assert_close(after[name], tensor + sent.get(name, torch.zeros(())), rtol=0, atol=1e-6)


def test_a_template_that_one_site_alone_trained_is_not_shown_to_the_other(uneven: Run) -> None:
    run = uneven
    assert run.command.returncode == 0, run.command.stderr.decode()
    before, after, (sent, _) = run.model(0), run.model(1), run.update("bravo", 0)
    names = {modality: f"encoder.templates.of.{modality}.values" for modality in ("CT", "T1")}
    assert set(names.values()) <= sent.keys(), "the site sends both, and the server decides"
    assert not before[names["CT"]].equal(after[names["CT"]])
    assert before[names["T1"]].equal(after[names["T1"]])
    record = read_lines(run.folder / "rounds.jsonl")[0]
    assert record["templates_kept"] == ["T1"]


def own_head(counts: Mapping[str, int], kind: str, owners: Mapping[str, Owner]) -> str | None:
    """A tensor of one objective alone, and of no modality; None where it was not trained."""
    own = (name for name in counts if name.startswith(f"objectives.{kind}.") and owners[name].modality is None)
    return next(own, None)


def owners_of(job: Path) -> dict[str, Owner]:
    return dict(tensor_owners(build_model(load_job(job))))


def test_a_rule_ends_a_federation_as_it_ends_a_site_alone(tmp_path: Path) -> None:
    """So high a learning rate cannot lower the held-out loss in every round."""
    site = write_site(tmp_path, "alpha", ["CT", "T1"])
    rule = {"stopping": {"held_out_loss": {"patience": 1}}, "optimiser": {"learning_rate": 0.3}, "rounds": 12}
    job = write_job(tmp_path / "job.yaml", **rule, evaluation={"crops": 1, "pictures": False, "every": 1})
    env = environment(tmp_path / "recorded", {})
    federated = run_command("simulate", job, site, "--out", tmp_path / "one", "--timeout", "200", env=env)
    local = run_command("train", job, site, "--out", tmp_path / "two", env=env)
    assert (federated.returncode, local.returncode) == (0, 0), federated.stderr + local.stderr
    one, two = (json.loads((tmp_path / name / "manifest.json").read_text()) for name in ("one", "two"))
    assert one == two
    assert one["stopped"]["rule"] == "held_out_loss"
    assert one["best_round"] < one["rounds_done"] < 12
    assert judge(tmp_path / "one") == (True, [])
    last = read_lines(tmp_path / "one" / "evaluation.jsonl")[-1]
    assert last["round"] == one["best_round"]
