"""Weights from elsewhere are read, and what else a file brings is never run."""

import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from parametrium.errors import FederationError, TrainingError
from parametrium.training.checkpoint import save_checkpoint
from parametrium.training.warm_start import weights
from parametrium.training.warm_start.weights import read_weights

STATE = {"blocks.0.norm1.weight": torch.arange(4.0), "norm.bias": torch.randn(2, 3)}


class Bomb:
    """Unpickled by a reader that runs what it reads, it leaves a file behind."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[[str], Any], tuple[str]]:
        return os.mkdir, (str(self.mark),)


def same(found: dict[str, torch.Tensor]) -> bool:
    return found.keys() == STATE.keys() and all(torch.equal(found[name], STATE[name]) for name in STATE)


def refused(source: Path, words: str) -> None:
    with pytest.raises(TrainingError, match=f"PM403 .*{words}") as caught:
        read_weights(source)
    assert str(source) not in str(caught.value)
    assert str(source) in str(caught.value.site_detail)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".ckpt", ".bin"])
def test_a_state_dict_that_torch_saved_is_read(tmp_path: Path, suffix: str) -> None:
    torch.save(STATE, tmp_path / f"model{suffix}")
    assert same(read_weights(tmp_path / f"model{suffix}").tensors)


@pytest.mark.parametrize("wrapper", ["state_dict", "model", "network_weights", "teacher", "anything"])
def test_a_state_dict_is_found_where_programs_keep_it(tmp_path: Path, wrapper: str) -> None:
    torch.save({"epoch": 3, wrapper: STATE, "optimizer": {"lr": 0.1}}, tmp_path / "model.pt")
    assert same(read_weights(tmp_path / "model.pt").tensors)


def test_of_several_models_the_name_of_each_stands_before_its_tensors(tmp_path: Path) -> None:
    name = "encoder.blocks.0.attn.proj.weight"
    two = {"student": {name: torch.ones(1)}, "teacher": {name: torch.zeros(1)}}
    torch.save({"epoch": torch.tensor(3), "models": two, "center": STATE}, tmp_path / "model.pt")
    found = read_weights(tmp_path / "model.pt").tensors
    assert found == {f"student.{name}": torch.ones(1), f"teacher.{name}": torch.zeros(1)}


@pytest.mark.parametrize(
    "beside",
    [
        {"best": torch.tensor(torch.nan)},
        {"callbacks": {"ModelCheckpoint": {"kth_value": torch.tensor(torch.inf), "best_score": torch.tensor(0.3)}}},
        {"view": torch.zeros(1).expand(10**12)},
        {"optimizer": {"state": {"a": {f"x{n}": torch.full((2,), torch.nan) for n in range(9)}}}},
    ],
)
@pytest.mark.parametrize("wrapped", [True, False])
def test_what_a_training_program_saved_beside_an_encoder_is_passed_over(
    tmp_path: Path, beside: dict[str, object], wrapped: bool
) -> None:
    state = {"model.blocks.0.attn.proj.weight": torch.ones(1), **STATE}
    torch.save({"state_dict": state, **beside} if wrapped else {"hyper": beside, **state}, tmp_path / "model.ckpt")
    assert read_weights(tmp_path / "model.ckpt").tensors.keys() == state.keys()


def test_a_container_that_holds_itself_is_looked_into_once(tmp_path: Path) -> None:
    ring: dict[str, object] = dict(STATE)
    ring |= {f"again {n}": ring for n in range(100)}
    torch.save(ring, tmp_path / "model.pt")
    assert same(read_weights(tmp_path / "model.pt").tensors)


def test_parameters_are_read_as_numbers(tmp_path: Path) -> None:
    torch.save(dict(nn.Linear(2, 2).named_parameters()), tmp_path / "model.pt")
    assert not any(t.requires_grad for t in read_weights(tmp_path / "model.pt").tensors.values())


class Balloon:
    """A few bytes from which torch's restricted reader would make as many as they say."""

    def __init__(self, kind: type) -> None:
        self.kind = kind

    def __reduce__(self) -> tuple[type, tuple[int]]:
        return self.kind, (2**40,)


def test_an_allocator_is_known_by_any_of_its_names(tmp_path: Path) -> None:
    torch.save({"state_dict": STATE, "x": Balloon(torch.UntypedStorage)}, tmp_path / "plain.pt")
    with zipfile.ZipFile(tmp_path / "plain.pt") as source, zipfile.ZipFile(tmp_path / "model.pt", "w") as archive:
        for entry in source.infolist():
            program = source.read(entry).replace(b"ctorch.storage\nUntypedStorage", b"ctorch\nstorage.UntypedStorage")
            archive.writestr(entry.filename, program)
    assert (tmp_path / "model.pt").read_bytes().count(b"ctorch\nstorage.UntypedStorage") == 1
    refused(tmp_path / "model.pt", "what a few bytes make of any size")


def test_an_encrypted_archive_is_refused(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "model.pt")
    data = bytearray((tmp_path / "model.pt").read_bytes())
    for mark, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        place = data.find(mark)
        while place >= 0:
            data[place + flags] |= 1
            place = data.find(mark, place + 4)
    (tmp_path / "model.pt").write_bytes(data)
    refused(tmp_path / "model.pt", "no zip archive of torch's")


@pytest.mark.parametrize("kind", [bytearray, torch.FloatTensor, torch.UntypedStorage])
def test_what_would_fill_the_memory_is_refused_before_it_does(tmp_path: Path, kind: type) -> None:
    torch.save({"state_dict": STATE, "x": Balloon(kind)}, tmp_path / "model.pt")
    refused(tmp_path / "model.pt", "what a few bytes make of any size")


def test_shorter_numbers_are_refused_and_those_of_other_kinds_passed_over(tmp_path: Path) -> None:
    save_file({"x": torch.ones(2).to(torch.float8_e5m2)}, tmp_path / "model.safetensors")
    refused(tmp_path / "model.safetensors", "other numbers than float")
    torch.save({**STATE, "frequencies": torch.ones(2, dtype=torch.complex64)}, tmp_path / "model.pt")
    assert read_weights(tmp_path / "model.pt").tensors.keys() == {*STATE, "frequencies"}


def test_a_tensor_without_numbers_is_refused(tmp_path: Path) -> None:
    torch.save({**STATE, "x": torch.ones(2, device="meta")}, tmp_path / "model.pt")
    refused(tmp_path / "model.pt", "what a few bytes make of any size")


def test_safetensors_are_read(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "model.safetensors")
    assert same(read_weights(tmp_path / "model.safetensors").tensors)


def test_a_checkpoint_of_this_package_brings_its_description(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "start", STATE, {"round": 7})
    found = read_weights(tmp_path / "start")
    assert same(found.tensors)
    assert found.meta is not None
    assert found.meta["round"] == 7


@pytest.mark.parametrize("name", ["bomb.pt", "bomb.pth", "bomb.safetensors", "bomb.pkl", "bomb"])
def test_a_bare_pickle_is_not_run(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(pickle.dumps(Bomb(tmp_path / "mark")))
    refused(tmp_path / name, "")
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("hidden", [False, True])
def test_a_pickle_inside_torchs_archive_is_not_run(tmp_path: Path, hidden: bool) -> None:
    bomb = Bomb(tmp_path / "mark")
    torch.save({"state_dict": STATE, "config": bomb} if hidden else bomb, tmp_path / "model.pt")
    refused(tmp_path / "model.pt", "holds more than tensors, and was not run")
    assert not (tmp_path / "mark").exists()


def test_the_bomb_would_go_off(tmp_path: Path) -> None:
    torch.save(Bomb(tmp_path / "mark"), tmp_path / "model.pt")
    torch.load(tmp_path / "model.pt", weights_only=False)
    assert (tmp_path / "mark").exists()


def test_a_whole_module_is_refused_with_the_remedy(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "model.pt")
    refused(tmp_path / "model.pt", r"save its state_dict\(\) alone")


def test_a_file_that_is_too_large_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(STATE, tmp_path / "model.pt")
    monkeypatch.setattr(weights, "LARGEST_FILE", 100)
    refused(tmp_path / "model.pt", "has more than")


def test_an_archive_that_would_grow_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "model.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model/data.pkl", b"\0" * 10_000_000)
    refused(tmp_path / "model.pt", "is compressed")


def test_a_pickled_part_beyond_all_measure_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(STATE, tmp_path / "model.pt")
    monkeypatch.setattr(weights, "LARGEST_PROGRAM", 10)
    refused(tmp_path / "model.pt", "declares more")


def test_a_tensor_that_repeats_one_number_without_end_is_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1).expand(10**12)}, tmp_path / "model.pt")
    refused(tmp_path / "model.pt", "not stored number by number")


@pytest.mark.parametrize("document", [3, [], {}, {"epoch": 1}, {"state_dict": {}}, [torch.ones(2)]])
def test_a_file_without_a_state_dict_is_refused(tmp_path: Path, document: object) -> None:
    torch.save(document, tmp_path / "model.pt")
    refused(tmp_path / "model.pt", "no state dict|no tensor")


def test_numbers_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    save_file({"a": torch.tensor([1.0, float("nan")]), "b": torch.ones(1)}, tmp_path / "model.safetensors")
    refused(tmp_path / "model.safetensors", "1 tensors are not finite")


def test_what_is_not_there_or_of_no_known_kind_is_refused(tmp_path: Path) -> None:
    refused(tmp_path / "absent.pt", "neither a file nor a folder")
    (tmp_path / "folder").mkdir()
    refused(tmp_path / "folder", "neither a run nor a checkpoint")
    (tmp_path / "model.onnx").write_bytes(b"x")
    refused(tmp_path / "model.onnx", "weights are read from")
    (tmp_path / "cut.safetensors").write_bytes(b"x")
    refused(tmp_path / "cut.safetensors", "no whole safetensors file")


def test_a_run_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(FederationError, match="PM503"):
        read_weights(tmp_path)
