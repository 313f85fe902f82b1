"""Processes that do one task at a time, and whose death costs only the task they held.

``concurrent.futures`` gives up every task when one process dies. An import meets scans that need more memory than the
machine has; the kernel then kills the process, and only that scan may be lost.
"""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Any, TypeVar

from parametrium.errors import ParametriumError, public_text

_AHEAD = 4  # results a process may be ahead of the slowest one: bounds what waits in memory and in staging

Result = TypeVar("Result")


class Lost:
    """Stands for the result of a task whose process died or took too long."""


@dataclass(eq=False)
class _Worker:
    process: BaseProcess
    pipe: Connection
    index: int = -1
    deadline: float = 0.0

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()


class Workers:
    """Up to ``jobs`` spawned processes, started when first needed; used as a context manager.

    Their standard output and error lead nowhere: decoders print what they find in a file, and that may be a name.

    Args:
        jobs: processes at the most; 0 works in the calling process itself.
        limit_s: a task that takes longer is lost and its process ended.
    """

    def __init__(self, jobs: int, limit_s: float = 3600.0) -> None:
        self._jobs = jobs
        self._limit_s = limit_s
        self._idle: list[_Worker] = []
        self._busy: list[_Worker] = []

    def __enter__(self) -> "Workers":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in (*self._busy, *self._idle):
            worker.end()
        self._busy.clear()
        self._idle.clear()

    def in_order(self, function: Callable[..., Result], tasks: Iterable[tuple[Any, ...]]) -> Iterator["Result | Lost"]:
        """``function(*task)`` of every task, in the order of the tasks, which are drawn as they are needed.

        One call at a time. An exception of the function is raised here.
        """
        if self._jobs == 0:
            yield from (function(*task) for task in tasks)
            return
        coming, drawn, told, exhausted = iter(tasks), 0, 0, False
        done: dict[int, Result | Lost] = {}
        try:
            while True:
                while not exhausted and len(self._busy) < self._jobs and drawn - told < self._jobs * _AHEAD:
                    task = next(coming, None)
                    exhausted = task is None
                    if task is not None:
                        self._give(drawn, function, task)
                        drawn += 1
                if told in done:
                    yield done.pop(told)
                    told += 1
                elif self._busy:
                    done.update(self._collect())
                else:
                    return
        finally:  # whoever stops listening must not be answered in the next call
            for worker in self._busy:
                worker.end()
            self._busy.clear()

    def _give(self, index: int, function: Callable[..., Any], task: tuple[Any, ...]) -> None:
        alive = [worker for worker in self._idle if worker.process.is_alive()]
        for worker in set(self._idle) - set(alive):
            worker.end()
        self._idle = alive
        worker = alive.pop() if alive else _start()
        worker.index, worker.deadline = index, time.monotonic() + self._limit_s
        self._busy.append(worker)
        with suppress(OSError):  # it died while idle: the end of its pipe says so when results are collected
            worker.pipe.send((function, task))

    def _collect(self) -> dict[int, Any]:
        """Waits for a result, a death or a deadline; results by index."""
        left = min(worker.deadline for worker in self._busy) - time.monotonic()
        ready = wait([worker.pipe for worker in self._busy], timeout=max(left, 0.0))
        results: dict[int, Any] = {}
        for worker in list(self._busy):
            if worker.pipe in ready:
                results[worker.index] = self._receive(worker)
            elif time.monotonic() >= worker.deadline:
                results[worker.index] = self._lose(worker)
        return results

    def _receive(self, worker: _Worker) -> Any:
        try:
            result, error = worker.pipe.recv()
        except (EOFError, OSError):
            return self._lose(worker)
        self._busy.remove(worker)
        self._idle.append(worker)
        if error is not None:
            raise error
        return result

    def _lose(self, worker: _Worker) -> Lost:
        self._busy.remove(worker)
        worker.end()
        return Lost()


def _start() -> _Worker:
    # Spawned, not forked: the caller may hold threads and an open database.
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs,), daemon=True)
    process.start()
    theirs.close()  # so that only the process holds that end, and its death shows
    return _Worker(process, ours)


def _serve(pipe: Connection) -> None:
    """A worker's life: tasks in, results out."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends its workers itself
    threading.Thread(target=_end_with_parent, daemon=True).start()
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    with suppress(EOFError, OSError):
        while True:
            function, task = pipe.recv()
            try:
                pipe.send((function(*task), None))
            except ParametriumError as error:
                pipe.send((None, error))
            except OSError as error:
                pipe.send((None, OSError(error.errno, error.strerror)))
            except Exception as error:
                pipe.send((None, RuntimeError(public_text(error))))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
    os._exit(1)
