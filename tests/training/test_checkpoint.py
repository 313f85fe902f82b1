"""Checkpoints: whole or absent, checked when read, and never a program."""

import hashlib
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save
from torch import Tensor

from parametrium import __version__
from parametrium.errors import TrainingError
from parametrium.training import checkpoint
from parametrium.training.checkpoint import (
    DESCRIPTION,
    TENSORS,
    checkpoint_names,
    file_digest,
    find_checkpoint,
    load_checkpoint,
    remove_checkpoint,
    save_checkpoint,
)

OLD = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(2.5)}
NEW = {"a": torch.ones(2, 3), "b": torch.tensor(-1.0)}
META = {"round": 3, "job": {"name": "tiny"}}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def refused(folder: Path) -> None:
    with pytest.raises(TrainingError, match="PM403") as caught:
        load_checkpoint(folder)
    assert str(folder) not in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.bool])
def test_what_is_saved_is_loaded_to_the_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = {"x.y/z": torch.randn(3, 4).to(dtype), "scalar": torch.tensor(1).to(dtype), "none": torch.zeros(0, 2)}
    assert save_checkpoint(tmp_path / "deep" / "c", tensors, META) == tmp_path / "deep" / "c"
    loaded, meta = load_checkpoint(tmp_path / "deep" / "c")
    assert same(loaded, tensors)
    assert {name: t.dtype for name, t in loaded.items()} == {name: t.dtype for name, t in tensors.items()}
    assert {key: meta[key] for key in META} == META
    assert meta["format"] == 1
    assert meta["parametrium"] == __version__
    assert meta["sha256"] == file_digest(tmp_path / "deep" / "c" / TENSORS)


def test_a_transposed_parameter_is_saved_as_it_looks(tmp_path: Path) -> None:
    tensor = torch.nn.Parameter(torch.arange(6.0).reshape(2, 3).T)
    save_checkpoint(tmp_path / "c", {"t": tensor}, {})
    assert torch.equal(load_checkpoint(tmp_path / "c")[0]["t"], tensor.detach())


def test_a_checkpoint_replaces_one_of_its_name_as_a_whole(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "c", OLD | {"more": torch.zeros(1)}, META)
    save_checkpoint(tmp_path / "c", NEW, {"round": 4})
    loaded, meta = load_checkpoint(tmp_path / "c")
    assert same(loaded, NEW)
    assert meta["round"] == 4
    assert [path.name for path in tmp_path.iterdir()] == ["c"]
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == sorted([TENSORS, DESCRIPTION])


class Crash(BaseException):
    """The machine goes down: nothing of ours may catch this."""


def crash_at(monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    """Crashes within ``save_checkpoint``, with half of the file written where a file is being written."""
    renames: list[Path] = []
    rename = Path.rename

    def half_written(tensors: dict[str, Tensor], path: Path) -> None:
        path.write_bytes(save(tensors)[:20])
        raise Crash

    def half_described(self: Path, text: str, **_: Any) -> None:
        self.write_bytes(text.encode()[:20])
        raise Crash

    def before_rename(self: Path, target: Path) -> Path:
        renames.append(target)
        if len(renames) == (1 if where == "first rename" else 2):
            raise Crash
        return rename(self, target)

    if where == "tensors":
        monkeypatch.setattr(checkpoint, "save_file", half_written)
    elif where == "description":
        monkeypatch.setattr(Path, "write_text", half_described)
    else:
        monkeypatch.setattr(Path, "rename", before_rename)


@pytest.mark.parametrize("where", ["tensors", "description", "first rename", "second rename"])
def test_a_crash_while_saving_leaves_the_old_checkpoint_readable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    save_checkpoint(tmp_path / "c", OLD, META)
    with monkeypatch.context() as patch:
        crash_at(patch, where)
        with pytest.raises(Crash):
            save_checkpoint(tmp_path / "c", NEW, {"round": 4})
    loaded, meta = load_checkpoint(tmp_path / "c")
    assert same(loaded, OLD)
    assert meta["round"] == 3
    assert checkpoint_names(tmp_path) == {"c"}


def test_the_save_after_a_crash_between_the_renames_leaves_only_the_new_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_checkpoint(tmp_path / "c", OLD, META)
    with monkeypatch.context() as patch:
        crash_at(patch, "second rename")
        with pytest.raises(Crash):
            save_checkpoint(tmp_path / "c", NEW, {"round": 4})
    assert find_checkpoint(tmp_path / "c") == tmp_path / ".c.retired"
    with monkeypatch.context() as patch:
        crash_at(patch, "first rename")
        with pytest.raises(Crash):
            save_checkpoint(tmp_path / "c", NEW, {"round": 4})
    assert same(load_checkpoint(tmp_path / "c")[0], OLD), "a second crash must not cost the old one"
    save_checkpoint(tmp_path / "c", NEW, {"round": 4})
    assert same(load_checkpoint(tmp_path / "c")[0], NEW)
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


def test_what_dead_processes_left_is_removed_and_what_a_live_one_writes_is_not(tmp_path: Path) -> None:
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    save_checkpoint(tmp_path / "other", OLD, META)
    left = [f".c.{int(dead.stdout)}.partial", f".gone.{int(dead.stdout)}.partial", ".other.retired"]
    kept = [f".c.{os.getppid()}.partial", ".alone.retired", ".notes.partial", "mine"]
    for name in left + kept:
        (tmp_path / name / "inner").mkdir(parents=True)
    save_checkpoint(tmp_path / "c", NEW, META)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*kept, "c", "other"])


def test_a_removed_checkpoint_does_not_come_back(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "c", OLD, META)
    shutil.copytree(tmp_path / "c", tmp_path / ".c.retired")
    remove_checkpoint(tmp_path / "c")
    assert find_checkpoint(tmp_path / "c") is None
    assert checkpoint_names(tmp_path) == set()
    remove_checkpoint(tmp_path / "c")
    assert checkpoint_names(tmp_path / "nowhere") == set()


@pytest.mark.parametrize("key", ["format", "parametrium", "sha256", "description_sha256"])
def test_meta_cannot_speak_for_the_checkpoint_itself(tmp_path: Path, key: str) -> None:
    with pytest.raises(ValueError, match=f"meta must not hold {key}"):
        save_checkpoint(tmp_path / "c", OLD, {"round": 1, key: 1})
    assert not any(tmp_path.iterdir())


def test_meta_comes_back_as_json_has_it(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path / "c", OLD, {"numbers": {2: 0.1, 10: float("inf")}, "pair": (1, "é")})
    meta = load_checkpoint(folder)[1]
    assert meta["numbers"] == {"2": 0.1, "10": float("inf")}
    assert meta["pair"] == [1, "é"]


@pytest.mark.parametrize("where", ["tensors", "description", "first rename"])
def test_a_crash_at_the_first_save_leaves_nothing_under_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    with monkeypatch.context() as patch:
        crash_at(patch, where)
        with pytest.raises(Crash):
            save_checkpoint(tmp_path / "c", NEW, META)
    assert not (tmp_path / "c").exists()
    refused(tmp_path / "c")
    save_checkpoint(tmp_path / "c", NEW, META)
    assert same(load_checkpoint(tmp_path / "c")[0], NEW)
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


@settings(deadline=None, max_examples=40)
@given(position=st.integers(0, 10**6), mask=st.integers(1, 255))
def test_any_flipped_byte_of_the_tensors_is_seen(
    tmp_path_factory: pytest.TempPathFactory, position: int, mask: int
) -> None:
    folder = save_checkpoint(tmp_path_factory.mktemp("flip") / "c", OLD, META)
    content = bytearray((folder / TENSORS).read_bytes())
    content[position % len(content)] ^= mask
    (folder / TENSORS).write_bytes(content)
    refused(folder)


@pytest.mark.parametrize("change", [{"round": 4}, {"job": {"name": "other"}}, {"more": 1}, {"parametrium": "9.9"}])
def test_a_changed_description_is_seen(tmp_path: Path, change: dict[str, Any]) -> None:
    folder = save_checkpoint(tmp_path / "c", OLD, META)
    description = json.loads((folder / DESCRIPTION).read_text())
    (folder / DESCRIPTION).write_text(json.dumps(description, indent=4))
    assert same(load_checkpoint(folder)[0], OLD), "how the JSON is laid out does not matter"
    (folder / DESCRIPTION).write_text(json.dumps(description | change))
    with pytest.raises(TrainingError, match="PM403 the checkpoint's description does not match its checksum"):
        load_checkpoint(folder)


@pytest.mark.parametrize("name", [TENSORS, DESCRIPTION])
@pytest.mark.parametrize("kept", [0.0, 0.5, 0.95])
def test_a_truncated_file_is_seen(tmp_path: Path, name: str, kept: float) -> None:
    folder = save_checkpoint(tmp_path / "c", OLD, META)
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: int(kept * len(content))])
    refused(folder)


@pytest.mark.parametrize("name", [TENSORS, DESCRIPTION])
def test_a_missing_file_is_seen(tmp_path: Path, name: str) -> None:
    folder = save_checkpoint(tmp_path / "c", OLD, META)
    (folder / name).unlink()
    refused(folder)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "null", "3", "{}", '{"format": 1}', '{"format": "1", "sha256": ""}', '{"format": null}', "\ufffe{"],
)
def test_a_description_of_something_else_is_refused(tmp_path: Path, text: str) -> None:
    folder = save_checkpoint(tmp_path / "c", OLD, META)
    (folder / DESCRIPTION).write_text(text, encoding="utf-16" if "\ufffe" in text else "utf-8")
    refused(folder)


def test_a_newer_format_says_what_to_do(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path / "c", OLD, META)
    description = json.loads((folder / DESCRIPTION).read_text())
    (folder / DESCRIPTION).write_text(json.dumps(description | {"format": 2}))
    with pytest.raises(TrainingError, match="PM403 the checkpoint has format 2; this version reads up to 1"):
        load_checkpoint(folder)


class Bomb:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("form", ["pickle", "torch"])
def test_a_pickle_in_place_of_tensors_is_refused_and_never_run(tmp_path: Path, form: str) -> None:
    mark = tmp_path / "exploded"
    folder = save_checkpoint(tmp_path / "c", OLD, META)
    if form == "pickle":
        (folder / TENSORS).write_bytes(pickle.dumps(Bomb(mark)))
    else:
        torch.save({"a": Bomb(mark)}, folder / TENSORS)
    refused(folder)
    # Even one whose checksums were brought into line.
    description = json.loads((folder / DESCRIPTION).read_text()) | {"sha256": file_digest(folder / TENSORS)}
    del description["description_sha256"]
    canonical = json.dumps(description, sort_keys=True, separators=(",", ":")).encode()
    description["description_sha256"] = hashlib.sha256(canonical).hexdigest()
    (folder / DESCRIPTION).write_text(json.dumps(description))
    with pytest.raises(TrainingError, match="PM403 the checkpoint is absent or incomplete"):
        load_checkpoint(folder)
    assert not mark.exists()
    if form == "pickle":  # the bomb is live
        pickle.loads((folder / TENSORS).read_bytes())
        assert mark.exists()


def test_an_absent_folder_is_refused(tmp_path: Path) -> None:
    refused(tmp_path / "nowhere")
