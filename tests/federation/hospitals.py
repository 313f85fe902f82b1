"""Hospitals for tests of the federation: small cohorts, a sentinel wherever something could leak, and the search."""

import base64
import io
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel
import yaml

from cohort_files import ct, grid_affine, row, write_rows

SENTINEL = "QuixotryZephyrSentinel"
"""Letters only: it survives in file names, codes and headers alike."""

FAULTS = Path(__file__).parent / "faults"
PARAMETRIUM = str(Path(sys.executable).with_name("parametrium"))

JOB: dict[str, Any] = {
    "name": "tiny",
    "seed": 3,
    "modalities": ["CT", "T1", "PET", "ADC"],
    "preparation": {"spacing_mm": [3.0, 3.0, 3.0]},
    "crop": [16, 16, 16],
    "model": {"patch": 8, "width": 24, "depth": 2, "heads": 2, "decoder_width": 24, "decoder_depth": 1},
    "objectives": [{"kind": "masked_reconstruction"}, {"kind": "soft_contrastive"}],
    "clinical": [
        {"kind": "continuous", "name": "age", "unit": "years", "lower": 18.0, "upper": 100.0, "sigma": 10.0},
        {"kind": "nominal", "name": "histology", "levels": ["a", "b"]},
    ],
    "batch": {"patients": 3},
    "rounds": 2,
    "local_steps": 4,
    "minimum_sites": 1,
    "round_timeout_s": 120.0,
    "evaluation": {"crops": 1, "pictures": False, "probe": "age"},
}


def write_job(path: Path, **changes: Any) -> Path:
    path.write_text(yaml.safe_dump({**JOB, **changes}), encoding="utf-8")
    return path


def write_site(folder: Path, name: str, modalities: Sequence[str], patients: int = 4) -> Path:
    """A hospital whose folders, files, headers and tables all hold the sentinel; gives its config."""
    home = folder / f"{SENTINEL}-{name}"
    rows, clinical = [], []
    for p in range(patients):
        patient = f"{SENTINEL}{p}"
        for m, modality in enumerate(modalities):
            file = home / "scans" / patient / f"{SENTINEL}_{modality}.nii.gz"
            save(file, seed=len(name) * 100 + 10 * p + m, shift=1100.0 if modality != "CT" else 0.0)
            changes = {"study": SENTINEL, "modality": modality, "frame": SENTINEL, "split": "train" if p else "test"}
            rows.append(row(patient, file.relative_to(home / "scans"), **changes))
        clinical.append({"patient": patient, "age": str(40 + p), "histology": SENTINEL, SENTINEL: SENTINEL})
    broken = {"modality": f"{SENTINEL}X", "split": "train", "study": SENTINEL, "frame": SENTINEL}
    rows.append(row(f"{SENTINEL}9", f"{SENTINEL}_absent.nii.gz", **{**broken, "modality": modalities[0]}))
    rows.append(row(f"{SENTINEL}0", f"{SENTINEL}_other.nii.gz", **broken))
    write_rows(home / "scans" / "cohort.csv", rows)
    write_rows(home / "scans" / "clinical.csv", clinical)
    return write_config(folder, name, home)


def write_config(folder: Path, name: str, home: Path) -> Path:
    site = {"site": name, "cohort": str(home / "scans"), "cache": str(home / "cache"), "state": str(home / "state")}
    policy = {"minimum_patients": 1, "minimum_local_steps": 1}
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({**site, "device": "cpu", "policy": policy}), encoding="utf-8")
    return path


def save(path: Path, seed: int, shift: float) -> None:
    """A NIfTI whose header says who it is."""
    image = nibabel.Nifti1Image(ct(seed=seed) + shift, grid_affine())
    image.header["descrip"] = f"{SENTINEL} 1950".encode()
    image.header["aux_file"] = SENTINEL.encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(image, path)


def environment(folder: Path, faults: Mapping[str, Mapping[int, str]]) -> dict[str, str]:
    """Environment for a command whose trainers misbehave as planned and record their honest updates in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    plan = {"faults": faults, "sentinel": SENTINEL, "record": str(folder)}
    return {**os.environ, "PYTHONPATH": str(FAULTS), "PARAMETRIUM_TEST_FAULTS": json.dumps(plan)}


def run_command(*arguments: str | Path, env: Mapping[str, str]) -> subprocess.CompletedProcess[bytes]:
    """The command line, as a user types it."""
    command = [PARAMETRIUM, *map(str, arguments)]
    return subprocess.run(command, env=dict(env), capture_output=True, timeout=240, check=False)


# ---------------------------------------------------------------------------------------------------------- search


def spellings(text: str) -> list[bytes]:
    """A text as it could stand in a file: utf-8, utf-16 in both orders, base64 at its three alignments, hexadecimal."""
    found = [text.encode(), text.encode("utf-16-le"), text.encode("utf-16-be"), text.encode().hex().encode()]
    for offset in range(3):
        raw = b"\0" * offset + text.encode()
        inner = base64.b64encode(raw[: len(raw) // 3 * 3])
        found.append(inner[4:] if offset else inner)
    return found


def leaks(*places: Path) -> list[str]:
    """Files below the places that hold the sentinel, in their names or in what they say; archives are looked into."""
    needles = [needle.lower() for needle in spellings(SENTINEL)]
    found = []
    for place in places:
        for name, content in _contents(place):
            if any(needle in name.lower().encode() or needle in content.lower() for needle in needles):
                found.append(name)
    return found


def _contents(place: Path) -> Iterator[tuple[str, bytes]]:
    assert place.exists(), place
    for path in [place] if place.is_file() else sorted(place.rglob("*")):
        name = str(path.relative_to(place)) if path != place else path.name
        content = path.read_bytes() if path.is_file() else b""
        yield name, content
        if content[:4] == b"PK\x03\x04":
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                yield from ((f"{name}/{member}", archive.read(member)) for member in archive.namelist())
