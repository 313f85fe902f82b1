"""Names that try to leave a folder or to be told, and the check that they did neither."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from hypothesis import strategies as st

from parametrium.cohort.importers.tables import ImportReport
from parametrium.errors import ParametriumError

MARK = "SENTINEL-1956-02-01"

_SHAPES = (
    "../../{}",
    "/tmp/{}",
    "<script>{}</script>",
    "{}\nsecond line",
    "{}\0",
    "{}\r",
    " {} ",
    "-{}",
    "=cmd|'{}'",
    "{}" + "x" * 300,
    "s\u0443b-{}",  # a Cyrillic letter
    "\u202e{}",
    "{}\udcff",
    "{}; DROP TABLE",
    "..",
    ".",
    "",
    "%s{}%n",
    "${{HOME}}{}",
    "{}\\..\\x",
    'a"{}",b',
)
NAMES = st.sampled_from([shape.format(MARK) for shape in _SHAPES]) | st.text(max_size=12).map(MARK.__add__)
"""Hostile names; each that can be told apart from words of ours holds the mark."""


def files_below(folder: Path) -> set[Path]:
    """Every file and folder below one."""
    return set(folder.rglob("*"))


def can_be_file(name: str) -> bool:
    """Whether a file system takes it as the name of one file."""
    try:
        return bool(name) and name not in (".", "..") and not {"/", "\0"} & set(name) and len(name.encode()) < 200
    except UnicodeEncodeError:
        return len(name) < 200 and not {"/", "\0"} & set(name) and "\udcff" in name


@contextlib.contextmanager
def nothing_told(world: Path, cohort: Path, secret: Path) -> Iterator[Callable[[ImportReport], None]]:
    """Checks that an import writes only its cohort and its private files, and tells no hostile name.

    Give it the report; an error of the package is as good.
    """
    before = files_below(world)
    told: list[str] = []

    def note(report: ImportReport) -> None:
        told.extend((str(report.summary()), str(report.warnings), str(report.problems)))

    try:
        yield note
    except ParametriumError as error:
        told.append(str(error))
    private = {secret, secret.with_name(f"{secret.name}.patients.csv")}
    new = files_below(world) - before - private
    assert all(path == cohort or cohort in path.parents for path in new)
    told.extend(str(path.relative_to(world)) for path in new)
    told.extend(path.read_text(encoding="utf-8") for path in new if path.suffix == ".csv")
    assert not [text for text in told if MARK in text]
