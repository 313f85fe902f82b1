"""The house: imports go one way, FLARE stays in one room, and nobody unpickles."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "custom" / "parametrium"

ALLOWED = {
    "errors": set(),
    "config": {"errors"},
    "cohort": {"config", "errors"},
    "clinical": {"config", "errors"},
    "model": {"config", "errors"},
    "data": {"cohort", "clinical", "config", "errors"},
    "objectives": {"model", "data", "clinical", "config", "errors"},
    "monitor": {"model", "data", "config", "errors"},
    "privacy": {"cohort", "config", "errors"},
    "training": {"objectives", "monitor", "model", "data", "clinical", "config", "errors"},
    "evaluation": {"objectives", "monitor", "model", "data", "clinical", "training", "config", "errors"},
    "report": {
        *("evaluation", "objectives", "monitor", "model", "data", "training", "cohort", "clinical", "config", "errors"),
    },
    "site": {"report", "evaluation", "training", "privacy", "objectives", "data", "cohort", "config", "errors"},
    "federation": {"site", "report", "training", "privacy", "objectives", "model", "cohort", "config", "errors"},
    "demo": {"cohort", "federation", "report", "training", "config", "errors"},
    "cli": {"demo", "federation", "site", "report", "training", "data", "cohort", "config", "errors"},
}
"""Room to the rooms it may import. ``objectives -> data`` is for the types of a batch; ``site`` is what runs at a
hospital; ``evaluation`` and ``report`` use of ``training`` only its run folder and checkpoints; ``training`` uses of
``monitor`` only the rule that ends a run."""


def modules() -> list[Path]:
    return [path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "__init__.py"]


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports_of(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_only_the_rooms_below_its_own(path: Path) -> None:
    room = room_of(path)
    rooms = {
        name.split(".")[1]
        for name in imports_of(path)
        if name.startswith("parametrium.") and name != "parametrium.__version__"
    }
    assert rooms - {room} <= ALLOWED[room], f"{room} may not import {sorted(rooms - {room} - ALLOWED[room])}"


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_outside_libraries_stay_in_their_rooms(path: Path) -> None:
    outside = {name.split(".")[0] for name in imports_of(path)}
    if room_of(path) != "federation":
        assert "nvflare" not in outside
    if room_of(path) != "cli":
        assert not outside & {"typer", "rich"}
    assert not outside & {"pickle", "dill", "cloudpickle", "marshal", "shelve"}


def test_the_rules_have_no_cycle() -> None:
    done: set[str] = set()
    while len(done) < len(ALLOWED):
        ready = {room for room, below in ALLOWED.items() if room not in done and below <= done}
        assert ready, f"cycle among {sorted(set(ALLOWED) - done)}"
        done |= ready


def test_files_can_be_held_in_mind() -> None:
    long = {path.name: lines for path in modules() if (lines := len(path.read_text().splitlines())) > 460}
    assert not long
