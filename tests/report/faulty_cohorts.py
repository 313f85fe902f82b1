"""Phantom cohorts with planted faults, and texts that try to break out of a page."""

import csv
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np

from parametrium.cohort.phantom import write_phantom

Rows = list[dict[str, str]]

HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(2)>',
    "</script><script>alert(3)</script>",
    "{{7*7}}${7*7}",
    "a\nb\rc\x1b[31m",
    "\u202egpj.exe\u2066",
    "'+alert(4)+'",
    "__proto__",
    "<!--",
    "L" * 10_000,
    "javascript:alert(5)",
    "\ud83d\ude00".encode("utf-16", "surrogatepass").decode("utf-16"),
)
"""Names that a table may hold."""


def phantom(folder: Path, patients: int = 8, modalities: tuple[str, ...] = ("CT", "T2", "PET"), seed: int = 1) -> Path:
    """A good cohort."""
    write_phantom(folder, patients=patients, modalities=list(modalities), seed=seed, jobs=1)
    return folder


def change_rows(path: Path, change: Callable[[Rows], Rows]) -> None:
    """Rewrites a table."""
    with path.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    rows = change(rows)
    columns = list(dict.fromkeys(column for row in rows for column in row))
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)


def swap_names(folder: Path, patient: str, first: str, second: str) -> None:
    """The table calls one modality of a patient by the other's name."""
    names = {first: second, second: first}

    def swap(rows: Rows) -> Rows:
        for row in rows:
            if row["patient"] == patient:
                row["modality"] = names.get(row["modality"], row["modality"])
        return rows

    change_rows(folder / "cohort.csv", swap)


def copy_flipped(source: Path, target: Path) -> None:
    """The same voxels, the other way round along the first axis and at another place, as another export has them."""
    image = nibabel.load(source)
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj)[::-1].copy(), affine), target)


def plant(folder: Path) -> None:
    """Plants one fault of each kind into a phantom cohort of eight patients with CT, T2 and PET."""
    swap_names(folder, "p000", "CT", "T2")
    copy_flipped(folder / "p001/s0/T2.nii.gz", folder / "p002/s0/T2.nii.gz")
    image = nibabel.load(folder / "p003/s0/PET.nii.gz")
    voxels = image.get_fdata(dtype=np.float32)
    voxels[5, 5, 5] = np.nan
    nibabel.save(nibabel.Nifti1Image(voxels, image.affine), folder / "p003/s0/PET.nii.gz")
    (folder / "p004/s0/CT.nii.gz").unlink()
    whole = (folder / "p005/s0/CT.nii.gz").read_bytes()
    (folder / "p005/s0/CT.nii.gz").write_bytes(whole[: len(whole) // 2])
    shift(folder / "p006/s0/PET.nii.gz", (90.0, -60.0, 20.0))
    image = nibabel.load(folder / "p007/s0/CT.nii.gz")
    thick = image.affine @ np.diag([1.0, 1.0, 3.0, 1.0])
    nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj)[:, :, ::3], thick), folder / "p007/s0/CT.nii.gz")
    (folder / "problems.csv").write_text(
        "patient,modality,reason,rule,count\np000,,localiser,facts: image type,3\n,,not_dicom,,17\n", encoding="utf-8"
    )
    (folder / "registration.csv").write_text(
        "patient,study,modality,frame,target_frame,metric_before,metric_after,overlap_before,overlap_after,"
        "translation_mm,rotation_deg,verdict\n"
        "p001,s0,PET,s0-f2,s0-f1,-0.31,-0.52,0.81,0.95,12.4,1.2,accepted\n"
        "p002,s0,PET,s0-f2,s0-f1,-0.44,-0.41,0.92,0.80,55.0,9.0,worse\n",
        encoding="utf-8",
    )


def shift(path: Path, millimetres: tuple[float, float, float]) -> None:
    """Moves a volume in its header."""
    image = nibabel.load(path)
    affine = image.affine.copy()
    affine[:3, 3] += millimetres
    nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj), affine), path)


def plant_hostile_names(folder: Path) -> None:
    """Every name that a table may hold becomes hostile: patients, studies, frames, structures, columns and cells."""
    with (folder / "cohort.csv").open(newline="", encoding="utf-8") as stream:
        patients = list(dict.fromkeys(row["patient"] for row in csv.DictReader(stream)))
    names = {name: HOSTILE[n % len(HOSTILE)] + str(n) for n, name in enumerate(patients)}

    def rename(rows: Rows) -> Rows:
        for n, row in enumerate(rows):
            row["patient"] = names[row["patient"]]
            if "study" in row:
                row["study"] = HOSTILE[(n + 3) % len(HOSTILE)]
                row["frame"] = HOSTILE[(n + 5) % len(HOSTILE)]
            if "structure" in row:
                row["structure"] = HOSTILE[n % len(HOSTILE)]
            if "histology" in row:
                row["histology"] = HOSTILE[n % len(HOSTILE)]
                row[HOSTILE[0]] = HOSTILE[1]
                row[HOSTILE[1]] = "x"
                row["{{7*7}}"] = HOSTILE[4]
        return rows

    for table in ("cohort.csv", "masks.csv", "clinical.csv"):
        change_rows(folder / table, rename)

    def add(rows: Rows) -> Rows:
        hostile_file = folder / "<img src=x onerror=alert(6)>.nii.gz"
        shutil.copy(folder / rows[0]["path"], hostile_file)
        first = rows[0] | {"patient": HOSTILE[0], "path": hostile_file.name}
        return [*rows, first, *(rows[0] | {"modality": text, "path": f"x{n}"} for n, text in enumerate(HOSTILE))]

    change_rows(folder / "cohort.csv", add)
    for name in ("problems.csv", "registration.csv"):
        with (folder / name).open("w", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream)
            writer.writerow(["patient", "study", "modality", "reason", "rule", "count", HOSTILE[1], HOSTILE[3]])
            for n in range(60):
                writer.writerow([HOSTILE[(n + k) % len(HOSTILE)] for k in range(8)])
