"""A simulation that does not end by itself is ended: it leaves a manifest that says so, and no process."""

import os
import signal
import subprocess
import time
import uuid
from pathlib import Path

import psutil
import pytest
from hospitals import PARAMETRIUM, run_command, write_job, write_site

from parametrium.training.run_folder import judge

pytestmark = pytest.mark.multiprocess


def marked(mark: str) -> list[int]:
    """All processes whose environment holds the mark, whoever their parent is by now."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("PARAMETRIUM_TEST_MARK") == mark:
                found.append(process.pid)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def test_time_runs_out(tmp_path: Path) -> None:
    mark = uuid.uuid4().hex
    site, job = write_site(tmp_path, "alpha", ["CT"]), write_job(tmp_path / "job.yaml", rounds=1000)
    env = {**os.environ, "PARAMETRIUM_TEST_MARK": mark, "TMPDIR": str(tmp_path)}
    command = run_command("simulate", job, site, "--out", tmp_path / "run", "--timeout", "6", env=env)
    assert command.returncode == 1
    assert b"PM505 the simulator ended without finishing the run" in command.stdout
    assert judge(tmp_path / "run")[0] is False
    assert marked(mark) == []
    assert list(tmp_path.glob("parametrium-*")) == []


def test_the_user_interrupts(tmp_path: Path) -> None:
    mark = uuid.uuid4().hex
    site, job = write_site(tmp_path, "alpha", ["CT"]), write_job(tmp_path / "job.yaml", rounds=1000)
    env = {**os.environ, "PARAMETRIUM_TEST_MARK": mark, "TMPDIR": str(tmp_path)}
    arguments = [PARAMETRIUM, "simulate", job, site, "--out", tmp_path / "run"]
    with subprocess.Popen(arguments, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 60
        while len(marked(mark)) < 3 and time.monotonic() < deadline:
            time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) != 0
    assert marked(mark) == []
    assert list(tmp_path.glob("parametrium-*")) == []
