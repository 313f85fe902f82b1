"""Processes that do one task at a time."""

import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from parametrium.cohort.workers import Lost, Workers
from parametrium.errors import Code, CohortError

PATIENCE_S = 60


def work(number: int) -> int:
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    sum(range((number * 7919) % 5 * 100_000))  # tasks of different length
    return number * number


def pause() -> None:
    signal.pause()


def fail(public: bool) -> None:
    raise CohortError(Code.COHORT_IMPORT, "told", site_detail="here") if public else ValueError("SENTINEL")


def shout() -> int:
    os.write(1, b"SENTINEL")
    os.write(2, b"SENTINEL")
    return 1


@pytest.mark.parametrize("jobs", [1, 3])
def test_results_come_in_order_and_a_death_costs_its_task_alone(jobs: int) -> None:
    with Workers(jobs) as workers:
        results = list(workers.in_order(work, ((number,) for number in range(9))))
        again = list(workers.in_order(work, [(4,)]))
    assert isinstance(results.pop(3), Lost)
    assert results == [number * number for number in range(9) if number != 3]
    assert again == [16]
    assert multiprocessing.active_children() == []


def test_tasks_are_drawn_as_they_are_needed() -> None:
    drawn = 0

    def tasks() -> Iterator[tuple[int]]:
        nonlocal drawn
        for number in range(10, 110):
            drawn += 1
            yield (number,)

    with Workers(2) as workers:
        for told, _ in enumerate(workers.in_order(work, tasks())):
            assert drawn - told <= 2 * 4 + 1
        assert drawn == 100
        next(workers.in_order(work, [(1,), (2,)]))  # and not listened to further
        assert list(workers.in_order(work, [(5,)])) == [25]


def test_a_task_without_end_is_lost() -> None:
    with Workers(1, limit_s=0.5) as workers:
        assert [type(result) for result in workers.in_order(pause, [()])] == [Lost]


def test_only_public_words_of_an_exception_reach_the_caller() -> None:
    with Workers(1) as workers, pytest.raises(RuntimeError, match="ValueError") as caught:
        list(workers.in_order(fail, [(False,)]))
    assert "SENTINEL" not in str(caught.value)
    with Workers(1) as workers, pytest.raises(CohortError, match="PM204 told") as told:
        list(workers.in_order(fail, [(True,)]))
    assert told.value.site_detail == "here"


def test_what_libraries_print_reaches_no_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    with Workers(1) as workers:
        assert list(workers.in_order(shout, [()])) == [1]
    assert capfd.readouterr() == ("", "")


def test_a_killed_parent_leaves_no_process_behind() -> None:
    script = (
        "import test_workers\n"
        "from parametrium.cohort.workers import Workers\n"
        "if __name__ == '__main__':\n"
        "    with Workers(2) as workers:\n"
        "        print('started', flush=True)\n"
        "        list(workers.in_order(test_workers.pause, [(), ()]))\n"
    )
    here = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, env=here) as parent:
        assert parent.stdout is not None
        parent.stdout.readline()
        family: list[psutil.Process] = []
        while len(family) < 2:
            family = psutil.Process(parent.pid).children(recursive=True)
        parent.kill()
    assert psutil.wait_procs(family, timeout=PATIENCE_S)[1] == []
