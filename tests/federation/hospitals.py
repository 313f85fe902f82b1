"""Hospitals for tests of the federation: small cohorts, and a sentinel wherever something could leak."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel
import yaml

from cohort_files import ct, grid_affine, row, write_rows
from sentinel import SENTINEL

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
        {
            "kind": "continuous",
            "name": "age",
            "unit": "years",
            "lower": 18.0,
            "upper": 100.0,
            "sigma": 10.0,
            "weight": 0.0,  # probed
        },
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


def write_site(
    folder: Path, name: str, modalities: Sequence[str], patients: int = 4, objectives: Sequence[str] = ()
) -> Path:
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
    return write_config(folder, name, home, objectives)


def write_config(folder: Path, name: str, home: Path, objectives: Sequence[str] = ()) -> Path:
    site = {"site": name, "cohort": str(home / "scans"), "cache": str(home / "cache"), "state": str(home / "state")}
    policy: dict[str, Any] = {"minimum_patients": 1, "minimum_local_steps": 1, "minimum_template_patients": 1}
    if objectives:
        policy["objectives"] = list(objectives)
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
    path = os.pathsep.join([str(FAULTS), *filter(None, [os.environ.get("PYTHONPATH")])])
    plan = {"faults": faults, "sentinel": SENTINEL, "record": str(folder)}
    return {**os.environ, "PYTHONPATH": path, "PARAMETRIUM_TEST_FAULTS": json.dumps(plan)}


def run_command(*arguments: str | Path, env: Mapping[str, str]) -> subprocess.CompletedProcess[bytes]:
    """The command line, as a user types it."""
    command = [PARAMETRIUM, *map(str, arguments)]
    return subprocess.run(command, env=dict(env), capture_output=True, timeout=240, check=False)
