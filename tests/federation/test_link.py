"""The trainer as a process: it serves, it dies in every way, and it never outlives who started it."""

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch
import yaml
from hospitals import environment, write_job, write_site

from parametrium.config import JobConfig, load_job
from parametrium.errors import FederationError, public_text
from parametrium.federation.link import TrainerFailedError, TrainerLink
from parametrium.objectives.registry import initial_tensors
from parametrium.site.worker import FAILED, ORPHANED
from parametrium.training.update import check_update
from sentinel import SENTINEL

pytestmark = pytest.mark.multiprocess


class Hospital:
    """A cohort, a job, and trainers for them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.site = write_site(folder, "alpha", ["CT", "T1"])
        self.job_file = write_job(folder / "job.yaml")
        self.job: JobConfig = load_job(self.job_file)
        self.model = initial_tensors(self.job)
        self.links: list[TrainerLink] = []

    def start(self, run: str = "run") -> TrainerLink:
        self.links.append(TrainerLink(self.job_file, self.site, run, self.folder / run))
        return self.links[-1]


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hospital]:
    hospital = Hospital(tmp_path_factory.mktemp("hospital"))
    yield hospital
    for link in hospital.links:
        link.kill()


def going() -> bool:
    return False


def test_a_trainer_opens_trains_measures_and_closes(
    hospital: Hospital, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever a job brought along into FLARE's working directory: it does not pass for a module of the trainer."""
    (tmp_path / "safetensors.py").write_text("raise SystemExit(77)")
    monkeypatch.chdir(tmp_path)
    link = hospital.start("whole")
    facts = link.open(going)
    assert facts["site/patients"] == 3
    assert facts["site/volumes/T1"] == 3
    update = link.train("alpha", 0, hospital.model, going)
    check_update(update, hospital.model, round_number=0)
    assert update.site == "alpha"
    measured = link.evaluate(1, hospital.model, False, going)
    assert "evaluation/reconstruction/CT/model" in measured
    link.close()
    assert link.process.returncode == 0
    assert not link.alive


def test_a_trainer_with_loader_processes_gives_the_same_bits_and_leaves_none(
    hospital: Hospital, tmp_path: Path
) -> None:
    """Over several rounds; a forked loader process once waited for ever for the trainer's own standard input."""
    settings = yaml.safe_load(hospital.site.read_text()) | {"workers": 2}
    site = hospital.site.with_name("with_workers.yaml")
    site.write_text(yaml.safe_dump(settings))
    alone = hospital.start("alone")
    with_workers = TrainerLink(hospital.job_file, site, "run", tmp_path / "state")
    hospital.links.append(with_workers)
    for link in (alone, with_workers):
        link.open(going)
    for number in range(2):
        expected, received = (link.train("alpha", number, hospital.model, going) for link in (alone, with_workers))
        assert expected.contributions == received.contributions
        assert all(expected.tensors[name].equal(received.tensors[name]) for name in expected.tensors)
    started = psutil.Process(with_workers.process.pid).children(recursive=True)
    assert len(started) >= 2
    with_workers.close()
    alone.close()
    assert with_workers.process.returncode == 0
    assert not psutil.wait_procs(started, timeout=30)[1]


def test_a_trainer_keeps_its_state_over_rounds_and_over_its_own_death(hospital: Hospital) -> None:
    """A killed and restarted trainer continues with the optimiser of the last round it finished."""
    steady, restarted = hospital.start("steady"), hospital.start("restarted")
    for link in (steady, restarted):
        link.open(going)
        first = link.train("alpha", 0, hospital.model, going)
    restarted.process.kill()
    with pytest.raises(FederationError, match="PM504 the trainer was killed by signal 9") as caught:
        restarted.train("alpha", 1, hospital.model, going)
    assert str(hospital.folder) not in public_text(caught.value)
    assert not restarted.alive
    restarted.kill()
    again = hospital.start("restarted")
    again.open(going)
    model = {name: t + first.tensors.get(name, torch.zeros(())) for name, t in hospital.model.items()}
    expected, received = (link.train("alpha", 1, model, going) for link in (steady, again))
    assert all(expected.tensors[name].equal(received.tensors[name]) for name in expected.tensors)
    steady.close()
    again.close()


def test_a_trainer_that_raises_tells_its_code_and_ends(hospital: Hospital, monkeypatch: pytest.MonkeyPatch) -> None:
    planned = environment(hospital.folder / "recorded", {"alpha": {0: "raise"}})
    for name in ("PYTHONPATH", "PARAMETRIUM_TEST_FAULTS"):
        monkeypatch.setenv(name, planned[name])
    link = hospital.start("raising")
    link.open(going)
    with pytest.raises(TrainerFailedError) as caught:
        link.train("alpha", 0, hospital.model, going)
    assert public_text(caught.value) == "PM901 an unexpected error; the site's own log has the details (ValueError)"
    assert link.process.wait(10) == FAILED
    link.kill()
    assert SENTINEL in (hospital.folder / "raising" / "trainer.log").read_text(), "the site's own log has the details"


def test_a_site_without_its_cohort_is_an_error_with_its_own_code(hospital: Hospital, tmp_path: Path) -> None:
    site = tmp_path / f"{SENTINEL}.yaml"
    site.write_text(f"site: alpha\ncohort: {SENTINEL}\ncache: c\nstate: s\n")
    link = TrainerLink(hospital.job_file, site, "run", tmp_path / "state")
    with pytest.raises(TrainerFailedError, match="PM201") as caught:
        link.open(going)
    assert SENTINEL not in public_text(caught.value)
    link.kill()


def test_an_aborted_task_ends_the_trainer_at_once(hospital: Hospital) -> None:
    link = hospital.start("aborted")
    started = time.monotonic()
    with pytest.raises(FederationError, match="PM504 the trainer was stopped"):
        link.open(lambda: time.monotonic() - started > 0.3)
    link.kill()
    assert link.process.returncode == -signal.SIGKILL


def test_closing_a_dead_trainer_is_no_error(hospital: Hospital) -> None:
    link = hospital.start("dead")
    link.process.kill()
    link.process.wait()
    link.close()
    link.close()
    assert not link.alive


def test_the_trainers_folder_is_the_owners_alone(hospital: Hospital) -> None:
    link = hospital.start("private")
    link.kill()
    assert (hospital.folder / "private").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("amid_a_round", [False, True])
def test_a_trainer_does_not_outlive_its_parent(hospital: Hospital, amid_a_round: bool) -> None:
    """Assurance R1: no process is left when FLARE's process of the site dies."""
    options = ["--job", hospital.job_file, "--site", hospital.site, "--run", "x", "--state", hospital.folder / "orphan"]
    worker = subprocess.Popen(
        [sys.executable, "-P", "-m", "parametrium.site.worker", *options],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    with worker:
        assert worker.stdin is not None
        assert worker.stdout is not None
        worker.stdin.write(json.dumps({"command": "open"}) + "\n")
        worker.stdin.flush()
        if not amid_a_round:
            assert json.loads(worker.stdout.readline())["ok"]
        worker.stdin.close()
        assert worker.wait(30) == ORPHANED


def test_listeners_end_with_their_trainers(hospital: Hospital) -> None:
    before = threading.active_count()
    link = hospital.start("threads")
    link.kill()
    assert threading.active_count() == before
    assert not psutil.pid_exists(link.process.pid)
