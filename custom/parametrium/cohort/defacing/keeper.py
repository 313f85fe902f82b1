"""Runs one command, and sees to it that nothing of it is left: not after its end, a time limit, or its asker's death.

Run as a program, ``python -I -S keeper.py SECONDS COMMAND...``, with nothing but the standard library. Standard input
is a pipe that the asker holds open and never writes to: when it can be read, the asker is gone, also by ``kill -9``.
The command reads nothing, leads a process group of its own, and writes where this program writes.
"""

import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

DONE, FAILED, LATE = range(3)
"""Exit codes."""

_SET_CHILD_SUBREAPER = 36  # prctl(2)
_POLL_S = 0.05


def keep(limit_s: float, command: Sequence[str]) -> int:
    """Runs the command to its end or the limit; whatever it started is dead when this returns."""
    deadline = time.monotonic() + limit_s
    if (
        sys.platform == "linux"
    ):  # what the command leaves to itself, in whatever session, becomes a child of this process
        ctypes.CDLL(None).prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)  # noqa: S603
    except OSError as error:
        os.write(1, f"{error.strerror}\n".encode())
        return FAILED
    while process.poll() is None and time.monotonic() < deadline:
        if select.select([0], [], [], _POLL_S)[0]:
            break
    code = process.returncode
    with suppress(ProcessLookupError, PermissionError):  # all that is known where the system lists no children
        os.killpg(process.pid, signal.SIGKILL)
    _end_children()
    if code:
        os.write(1, f"exit status {code}\n".encode())
    return LATE if code is None else FAILED if code else DONE


def _end_children() -> None:
    """Until there are none: an orphan becomes a child only when its own parent is dead."""
    listed = Path(f"/proc/self/task/{os.getpid()}/children")
    while True:
        with suppress(OSError):
            for pid in map(int, listed.read_text(encoding="ascii").split()):
                os.kill(pid, signal.SIGKILL)
        try:
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                time.sleep(_POLL_S / 10)
        except ChildProcessError:
            return


if __name__ == "__main__":
    sys.exit(keep(float(sys.argv[1]), sys.argv[2:]))
