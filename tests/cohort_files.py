"""Small cohorts on disk for tests of reading and preparing them."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray

COLUMNS = ("patient", "study", "day", "modality", "path", "frame")


def grid_affine(spacing: Sequence[float] = (3.0, 3.0, 3.0), origin: Sequence[float] = (0.0, 0.0, 0.0)) -> NDArray[Any]:
    """Straight RAS+ affine."""
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = origin
    return affine


def ct(shape: Sequence[int] = (24, 22, 20), seed: int = 0) -> NDArray[np.float32]:
    """An ellipsoid of soft tissue with a bone and noise in air, HU, never symmetric."""
    rng = np.random.default_rng(seed)
    axes = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij")
    inside = sum((axis * scale) ** 2 for axis, scale in zip(axes, (1.3, 1.5, 1.2), strict=True)) < 1
    bone = sum((axis - centre) ** 2 for axis, centre in zip(axes, (0.3, -0.2, 0.1), strict=True)) < 0.04
    image = np.where(inside, 40.0, -1000.0) + np.where(bone, 500.0, 0.0) + rng.normal(0, 10, shape)
    return image.astype(np.float32)


def save(path: Path, image: NDArray[Any], affine: NDArray[Any] | None = None) -> Path:
    """Writes a NIfTI and gives its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(image, grid_affine() if affine is None else affine), path)
    return path


def row(patient: str, path: Path | str, **changes: str) -> dict[str, str]:
    """A row of cohort.csv."""
    cells = {"patient": patient, "study": "s1", "day": "0", "modality": "CT", "path": str(path), "frame": "f1"}
    return cells | changes


def write_rows(path: Path, rows: Sequence[dict[str, str]], columns: Sequence[str] | None = None) -> None:
    """Writes a table with the columns of its first row."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, columns or list(rows[0]), restval="")
        writer.writeheader()
        writer.writerows(rows)


def small_cohort(folder: Path, patients: int = 3) -> Path:
    """A good cohort of one CT a patient."""
    rows = [row(f"p{i}", save(folder / f"v{i}.nii.gz", ct(seed=i))) for i in range(patients)]
    write_rows(folder / "cohort.csv", rows)
    return folder
