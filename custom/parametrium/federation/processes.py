"""Processes that were started from here, and everything that they started: none of them outlives its user."""

from collections.abc import Callable

import psutil

PATIENCE_S = 5.0
"""How long a process may take to end after SIGTERM, and again after SIGKILL."""


class Family:
    """Remembers processes by id; psutil checks that an id was not given to another process since."""

    def __init__(self) -> None:
        self._members: dict[int, psutil.Process] = {}

    def adopt(self, pid: int) -> None:
        """Adds a process that was started from here."""
        try:
            self._members.setdefault(pid, psutil.Process(pid))
        except psutil.NoSuchProcess:
            return

    def look(self) -> None:
        """Adds all descendants: once its parent is gone, a process can no longer be found from here."""
        for member in list(self._members.values()):
            try:
                for child in member.children(recursive=True):
                    self._members.setdefault(child.pid, child)
            except psutil.NoSuchProcess:
                continue

    def end(self) -> None:
        """Ends whoever is left, first asking, then killing, until nobody starts another one."""
        self.look()
        left = self._left()
        for member in left:
            _signal(member, member.terminate)
        psutil.wait_procs(left, timeout=PATIENCE_S)
        self.look()
        left = self._left()
        for member in left:
            _signal(member, member.kill)
        psutil.wait_procs(left, timeout=PATIENCE_S)

    def _left(self) -> list[psutil.Process]:
        return [member for member in self._members.values() if member.is_running()]


def _signal(member: psutil.Process, send: Callable[[], None]) -> None:
    try:
        send()
    except psutil.NoSuchProcess:
        return
