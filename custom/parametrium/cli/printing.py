"""What commands print: text for people, one JSON object for machines, progress on a terminal only."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

out = Console()
err = Console(stderr=True)


def answer(data: dict[str, Any], as_json: bool, show: Callable[[], None]) -> None:
    """The answer of a command: one JSON object, or what ``show`` prints."""
    if as_json:
        print(json.dumps(data, sort_keys=True))  # noqa: T201 - for machines, without colour or wrapping
    else:
        show()


def say(text: str, console: Console = out) -> None:
    """One line as it is: no markup, no wrapping, no colours by guessing."""
    console.print(text, markup=False, soft_wrap=True, highlight=False)


def print_counts(title: str, counts: dict[str, int]) -> None:
    """A table of numbers by name."""
    print_table(title, ["what", "number"], [[name, str(count)] for name, count in counts.items()])


def print_table(title: str, header: list[str], rows: list[list[str]]) -> None:
    """A table; all columns but the first hold numbers."""
    table = Table(title=title, title_justify="left")
    for name in header:
        table.add_column(name, justify="left" if name == header[0] else "right")
    for row in rows:
        table.add_row(*row)
    out.print(table)


@contextmanager
def progress(title: str) -> Iterator[Callable[[int, int], None]]:
    """Progress on a terminal, silence elsewhere; called as (done, total)."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err, disable=not err.is_terminal) as bar:
        task = bar.add_task(title, total=None)
        # Nothing to do is no bar: 0 of 0 looks like a fault.
        yield lambda done, total: bar.update(task, completed=done, total=total, visible=total > 0)
