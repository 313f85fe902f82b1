"""Nothing that was started is left, wherever it hid."""

import subprocess
import sys
import time

import psutil
import pytest

from parametrium.federation import processes
from parametrium.federation.processes import Family

GRANDCHILD = "import subprocess,sys,time; subprocess.Popen([sys.executable, '-c', {child!r}], start_new_session=True)"
STUBBORN = "import signal,time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(99)"


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "PATIENCE_S", 0.5)


def started(code: str) -> subprocess.Popen[bytes]:
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    return process


def test_a_process_that_ignores_sigterm_is_killed() -> None:
    process = started(STUBBORN)
    family = Family()
    family.adopt(process.pid)
    family.end()
    with process:
        assert not psutil.pid_exists(process.pid)


def test_a_descendant_in_its_own_session_is_found_also_when_its_parent_has_gone() -> None:
    parent = started(GRANDCHILD.format(child=STUBBORN) + "; time.sleep(2)")
    family = Family()
    family.adopt(parent.pid)
    family.look()
    children = psutil.Process(parent.pid).children()
    assert len(children) == 1
    parent.kill()
    with parent:
        parent.wait()
        family.end()
    deadline = time.monotonic() + 5
    while children[0].is_running() and children[0].status() != psutil.STATUS_ZOMBIE and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not children[0].is_running() or children[0].status() == psutil.STATUS_ZOMBIE


def test_a_process_that_has_gone_already_is_no_error() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    family = Family()
    family.adopt(process.pid)
    family.look()
    family.end()
