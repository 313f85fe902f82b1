"""The cohort's own copies of a source's volumes: scrubbed NIfTI under neutral names."""

import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from parametrium.cohort.nifti import write_nifti
from parametrium.cohort.problem import Problem
from parametrium.cohort.volume_file import VolumeFileError, read_stored, source_files
from parametrium.errors import Code, CohortError

_SPARE = 1.5  # the copies are packed more lightly than a source may be

Row = dict[str, str]


def copy_volumes(cohort: Path, rows: Sequence[Row], problems: list[Problem]) -> list[Row]:
    """Copies what the rows of cohort.csv or masks.csv name, one volume in memory at a time.

    A volume becomes ``images/<patient>/<study>/<MODALITY>.nii.gz``, a second of its kind ``<MODALITY>_2.nii.gz``, a
    mask ``images/<patient>/<study>/masks/<number>.nii.gz``. Stored numbers and their scaling stay as they are.

    Args:
        cohort: the cohort's folder.
        rows: with absolute paths.
        problems: gets those whose voxels cannot be read.

    Returns:
        The rows with paths that count from the cohort's folder, without the unreadable.

    Raises:
        CohortError: PM204 the disk is too small or cannot be written.
    """
    numbers: Counter[tuple[str, ...]] = Counter()
    copied: list[Row] = []
    try:
        cohort.mkdir(mode=0o700, parents=True, exist_ok=True)
        _refuse_full_disk(cohort, rows)
        for row in rows:
            place = _place(row, numbers)
            try:
                _copy(Path(row["path"]), cohort / place)
            except VolumeFileError as error:
                problems.append(Problem(row["patient"], row.get("modality", "mask"), error.reason))
                continue
            copied.append(row | {"path": place.as_posix()})
    except OSError as error:
        raise CohortError(
            Code.COHORT_IMPORT, "the copies cannot be written to the cohort folder", site_detail=f"{cohort}: {error}"
        ) from error
    return copied


def _place(row: Row, numbers: Counter[tuple[str, ...]]) -> Path:
    folder = Path("images", row["patient"], row["study"])
    modality = row.get("modality")
    key = (row["patient"], row["study"], modality or "")
    numbers[key] += 1
    if modality is None:
        return folder / "masks" / f"{numbers[key]:02d}.nii.gz"
    return folder / (f"{modality}.nii.gz" if numbers[key] == 1 else f"{modality}_{numbers[key]}.nii.gz")


def _copy(source: Path, target: Path) -> None:
    stored = read_stored(source)
    voxels = stored.voxels
    if voxels.dtype.kind == "f":
        with np.errstate(all="ignore"):  # values beyond float32 become infinite and are refused as such
            voxels = voxels.astype(np.float32, copy=False)
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_nifti(target, voxels, stored.affine, slope=stored.slope, intercept=stored.intercept)


def _refuse_full_disk(cohort: Path, rows: Sequence[Row]) -> None:
    needed = 0
    for row in rows:
        try:
            needed += sum(path.stat().st_size for path in source_files(Path(row["path"])))
        except (OSError, VolumeFileError):  # reported when it is copied
            continue
    free = shutil.disk_usage(cohort).free
    if _SPARE * needed > free:
        raise CohortError(
            Code.COHORT_IMPORT,
            f"the copies may need {_SPARE * needed / 1e9:.1f} GB and the disk of the cohort has {free / 1e9:.1f} GB "
            "free; import without --copy, which only writes the table",
        )
