"""``make poc`` as a user runs it: it ends well and leaves nothing."""

import os
import re
import socket
import subprocess
import sys
import uuid
from pathlib import Path

import psutil
import pytest

REHEARSAL = Path(__file__).parent.parent.parent / "poc" / "run.py"
CHECKOUT = REHEARSAL.parent.parent

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


def listing(folder: Path) -> set[str]:
    parts = (path.relative_to(folder) for path in folder.rglob("*") if "__pycache__" not in path.parts)
    return {str(path) for path in parts}


def test_the_rehearsal_is_complete_and_leaves_nothing(tmp_path: Path) -> None:
    mark = uuid.uuid4().hex
    before = listing(REHEARSAL.parent), listing(CHECKOUT / "jobs"), listing(CHECKOUT / "app")
    (tmp_path / "tmp").mkdir()
    (tmp_path / "home").mkdir()
    env = {
        **os.environ,
        "PARAMETRIUM_TEST_MARK": mark,
        "TMPDIR": str(tmp_path / "tmp"),
        "HOME": str(tmp_path / "home"),
    }
    command = subprocess.run(
        [sys.executable, REHEARSAL], env=env, cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False
    )
    assert command.returncode == 0, command.stdout + command.stderr

    assert "submitted: smoke" in command.stdout
    assert "refused: the same job with code in it" in command.stdout
    assert re.search(r"^ *2 +2 ", command.stdout, re.MULTILINE), "both sites contributed to the last round"
    assert "complete: " in command.stdout

    assert marked(mark) == []
    port = re.search(r"server on localhost:(\d+)", command.stdout)
    assert port is not None
    with socket.socket() as client:
        assert client.connect_ex(("localhost", int(port.group(1)))) != 0
    assert listing(tmp_path) == {"tmp", "home"}
    assert before == (listing(REHEARSAL.parent), listing(CHECKOUT / "jobs"), listing(CHECKOUT / "app"))


def test_a_rehearsal_that_fails_says_why_and_leaves_nothing(tmp_path: Path) -> None:
    """Site configs whose cohort is absent: nobody can take part, so the run stops loudly."""
    mark = uuid.uuid4().hex
    sites = []
    for name in ("north", "east"):
        path = tmp_path / f"{name}.yaml"
        path.write_text(f"site: {name}\ncohort: absent\ncache: cache\nstate: state-{name}\n")
        sites += ["--site", path]
    (tmp_path / "tmp").mkdir()
    env = {**os.environ, "PARAMETRIUM_TEST_MARK": mark, "TMPDIR": str(tmp_path / "tmp")}
    command = subprocess.run(
        [sys.executable, REHEARSAL, *sites], env=env, cwd=tmp_path, capture_output=True, text=True, timeout=240
    )
    assert command.returncode == 1
    assert "PM502 only 0 sites could open their cohort; minimum_sites is 2" in command.stderr
    assert "--- server.log" in command.stderr
    assert marked(mark) == []
    assert list((tmp_path / "tmp").iterdir()) == []
