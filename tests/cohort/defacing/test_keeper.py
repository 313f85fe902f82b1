"""Nothing that a command started outlives it, its time, or who asked for it."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from parametrium.cohort.defacing import keeper

PATIENCE_S = 60

TREE = """
import os, subprocess, sys, time
from pathlib import Path
folder, ends = Path(sys.argv[1]), sys.argv[2] == "ends"
sleeper = f"import os, time, pathlib; pathlib.Path({str(folder)!r}, 'N').write_text(str(os.getpid())); time.sleep(3600)"
for name, apart in (("child", False), ("apart", True)):
    subprocess.Popen([sys.executable, "-c", sleeper.replace("'N'", repr(name))], start_new_session=apart)
(folder / "self").write_text(str(os.getpid()))
while not all((folder / name).exists() and (folder / name).read_text() for name in ("child", "apart")):
    time.sleep(0.01)
(folder / "ready").touch()
time.sleep(0 if ends else 3600)
"""


def command(folder: Path, limit_s: float, *words: str) -> list[str]:
    return [sys.executable, "-I", "-S", keeper.__file__, str(limit_s), *words]


def tree(folder: Path, how: str = "stays") -> tuple[str, ...]:
    """A command with a child in its group and one in a session of its own."""
    (folder / "tree.py").write_text(TREE)
    return sys.executable, str(folder / "tree.py"), str(folder), how


@contextmanager
def asked(*words: str) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        yield process


def until_ready(folder: Path) -> list[psutil.Process]:
    """Waits until the whole tree lives, and gives it."""
    deadline = time.monotonic() + PATIENCE_S
    while not (folder / "ready").exists():
        assert time.monotonic() < deadline
        time.sleep(0.005)
    return [psutil.Process(int((folder / name).read_text())) for name in ("self", "child", "apart")]


def left(folder: Path) -> list[int]:
    """Ids of the tree's processes that are there and no zombies."""
    pids = [int((folder / name).read_text()) for name in ("self", "child", "apart")]
    found = [psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)]
    return [process.pid for process in found if process.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("-c", "print('heard')"), keeper.DONE, "heard\n"),
        (("-c", "import sys; print('heard'); sys.exit(7)"), keeper.FAILED, "heard\nexit status 7\n"),
        (("-c", "import os; os.kill(os.getpid(), 9)"), keeper.FAILED, "exit status -9\n"),
        (("-c", "import sys; print(repr(sys.stdin.read()))"), keeper.DONE, "''\n"),
    ],
)
def test_the_end_of_a_command_is_told(tmp_path: Path, words: tuple[str, ...], code: int, said: str) -> None:
    with asked(*command(tmp_path, PATIENCE_S, sys.executable, *words)) as process:
        assert process.stdout is not None
        assert process.stdout.read().decode() == said
        assert process.wait(PATIENCE_S) == code


def test_a_program_that_cannot_be_run_has_failed(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("no program")
    with asked(*command(tmp_path, PATIENCE_S, str(tmp_path / "x"))) as process:
        assert process.wait(PATIENCE_S) == keeper.FAILED


def test_what_a_command_leaves_running_ends_with_it(tmp_path: Path) -> None:
    with asked(*command(tmp_path, PATIENCE_S, *tree(tmp_path, "ends"))) as process:
        assert process.wait(PATIENCE_S) == keeper.DONE
        assert left(tmp_path) == []


def test_at_the_limit_the_command_ends_with_all_that_it_started(tmp_path: Path) -> None:
    began = time.monotonic()
    with asked(*command(tmp_path, 1.5, *tree(tmp_path))) as process:
        assert process.wait(PATIENCE_S) == keeper.LATE
        assert left(tmp_path) == []
    assert time.monotonic() - began >= 1.5


def test_a_command_ends_with_who_asked_for_it(tmp_path: Path) -> None:
    asker = (
        "import subprocess, sys, time\n"
        "subprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE, start_new_session=True)\ntime.sleep(3600)\n"
    )
    words = command(tmp_path, PATIENCE_S, *tree(tmp_path))
    with subprocess.Popen([sys.executable, "-c", asker, *words], start_new_session=True) as process:
        family = until_ready(tmp_path) + psutil.Process(process.pid).children(recursive=True)
        os.kill(process.pid, signal.SIGKILL)
        process.wait(PATIENCE_S)
    assert psutil.wait_procs(family, timeout=PATIENCE_S)[1] == []
