"""From foreign weights to a run that starts from them, as it is typed."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from cohort_files import ct, row, save, write_rows
from parametrium.cli import main
from parametrium.training.checkpoint import TENSORS, file_digest, load_checkpoint

JOB: dict[str, Any] = {
    "name": "tiny",
    "modalities": ["CT", "T1"],
    "preparation": {"spacing_mm": [3.0, 3.0, 3.0]},
    "crop": [16, 16, 16],
    "model": {"patch": 8, "width": 24, "depth": 1, "heads": 2, "decoder_width": 24, "decoder_depth": 1},
    "objectives": [{"kind": "masked_reconstruction"}],
    "batch": {"patients": 2},
    "rounds": 1,
    "local_steps": 2,
    "evaluation": {"crops": 1, "pictures": False, "holdout_fraction": 0.0},
}


def typed(*words: str | Path) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    assert isinstance(ended.value.code, int)
    return ended.value.code


@pytest.fixture
def job(tmp_path: Path) -> Path:
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(JOB))
    return tmp_path / "job.yaml"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """What a timm-like encoder of two channels has, saved by torch."""
    c, block = 24, "backbone.blocks.0."
    shapes: dict[str, tuple[int, ...]] = {"backbone.patch_embed.proj.weight": (c, 2, 8, 8, 8), "head.weight": (2, c)}
    shapes |= {f"backbone.norm.{s}": (c,) for s in ("weight", "bias")} | {"backbone.patch_embed.proj.bias": (c,)}
    shapes |= {f"{block}{norm}.{s}": (c,) for norm in ("norm1", "norm2") for s in ("weight", "bias")}
    sizes = {"attn.qkv": (3 * c, c), "attn.proj": (c, c), "mlp.fc1": (4 * c, c), "mlp.fc2": (c, 4 * c)}
    for name, size in sizes.items():
        shapes |= {f"{block}{name}.weight": size, f"{block}{name}.bias": size[:1]}
    generator = torch.Generator().manual_seed(0)
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    torch.save({"state_dict": tensors}, tmp_path / "vit.pth")
    return tmp_path / "vit.pth"


def test_a_job_starts_from_foreign_weights_and_its_run_says_so(
    tmp_path: Path, job: Path, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = tmp_path / "start"
    assert typed("warm-start", source, job, "--channels", "T1,FLAIR", "--out", start, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["left"] == ["head.weight"]
    assert report["adapted"]["encoder.patch_embed.of.T1.weight"]["how"] == "channel 0"
    tensors = load_checkpoint(start)[0]
    theirs = torch.load(source, weights_only=True)["state_dict"]["backbone.patch_embed.proj.weight"]
    assert torch.equal(tensors["encoder.patch_embed.of.T1.weight"], theirs[:, 0].flatten(1))

    rows = [row(f"p{p}", save(tmp_path / f"CT{p}.nii.gz", ct(seed=p)), modality="CT") for p in range(3)]
    write_rows(tmp_path / "cohort" / "cohort.csv", rows)
    policy = {"minimum_patients": 1, "minimum_local_steps": 1}
    site = {"site": "north", "cohort": "cohort", "cache": "cache", "state": "state", "device": "cpu", "policy": policy}
    (tmp_path / "site.yaml").write_text(yaml.safe_dump(site))
    assert typed("train", job, tmp_path / "site.yaml", "--start", start, "--out", tmp_path / "run") == 0
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["start"] == file_digest(start / TENSORS)
    first = load_checkpoint(tmp_path / "run" / "checkpoints" / "round_0000")[0]
    assert all(torch.equal(first[name], tensors[name]) for name in tensors)


def test_people_read_what_became_of_the_tensors(
    tmp_path: Path, job: Path, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert typed("warm-start", source, job, "--out", tmp_path / "start") == 0
    said = capsys.readouterr().out
    for words in ("recognised as timm-like ViT", "mean of 2 channels", "left: the source's", "head.weight", "note: "):
        assert words in said


def test_a_source_that_cannot_be_used_is_one_sentence_and_nothing_is_written(
    tmp_path: Path, job: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.pt").write_bytes(b"not an archive")
    assert typed("warm-start", tmp_path / "bad.pt", job, "--out", tmp_path / "start") == 4
    assert "PM403 the file is no zip archive" in capsys.readouterr().err
    assert not (tmp_path / "start").exists()


def test_a_start_that_does_not_fit_stops_before_the_run_folder_is_made(
    tmp_path: Path, job: Path, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert typed("warm-start", source, job, "--out", tmp_path / "start") == 0
    (tmp_path / "other.yaml").write_text(yaml.safe_dump({**JOB, "modalities": ["CT"]}))
    site = {"site": "n", "cohort": "c", "cache": "x", "state": "s", "policy": {}}
    (tmp_path / "site.yaml").write_text(yaml.safe_dump(site))
    for command in ("train", "simulate"):
        words = (command, tmp_path / "other.yaml", tmp_path / "site.yaml", "--start", tmp_path / "start")
        assert typed(*words, "--out", tmp_path / "run") == 4
        assert "PM403 the start has" in capsys.readouterr().err
        assert not (tmp_path / "run").exists()
