"""Writing a phantom cohort: tables, NIfTI volumes and masks, patient by patient in parallel."""

import csv
import gzip
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
from numpy.typing import NDArray

from parametrium.cohort.phantom.canvas import Field
from parametrium.cohort.phantom.chance import stream
from parametrium.cohort.phantom.clinical import COLUMNS, clinical_row, sample_latent
from parametrium.cohort.phantom.render import Pose
from parametrium.cohort.phantom.study import Course, Drawn, draw_study, study_day
from parametrium.cohort.phantom.tissue import MODALITIES
from parametrium.errors import Code, CohortError

COHORT_COLUMNS = ("patient", "study", "day", "modality", "path", "frame", "split")
MASK_COLUMNS = ("patient", "study", "structure", "path", "frame")

_Row = dict[str, str]


@dataclass(frozen=True)
class _Plan:
    """What is the same for all patients of a cohort."""

    folder: Path
    course: Course
    missing: float


@dataclass(frozen=True)
class _Rows:
    """The lines of one patient in the three tables."""

    volumes: list[_Row]
    masks: list[_Row]
    clinical: _Row


def write_phantom(
    folder: Path,
    *,
    patients: int,
    modalities: Sequence[str],
    seed: int,
    site: str = "phantom",
    studies: int = 1,
    misregistration_mm: float = 0.0,
    missing: float = 0.1,
    incomplete: float = 0.0,
    test_fraction: float = 0.25,
    jobs: int = 2,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Writes a cohort folder of drawn female pelves: cohort.csv, masks.csv, clinical.csv and NIfTI files.

    A patient depends only on seed, site and her number, not on the other arguments' order or on ``jobs``. Masks are
    one binary uint8 file a structure, on the grid and in the frame of the study's first volume.

    Args:
        folder: absent or empty.
        patients: how many, 1 to 9999.
        modalities: of CT, CBCT, T1, T2, ADC, PET; the first that a study has is its reference.
        seed: of everything.
        site: its name decides the scanners (grid, resolution, noise, gain) and shifts the case mix.
        studies: visits of each patient over four weeks of treatment.
        misregistration_mm: by how much every volume but the reference is displaced; 0 leaves all in one frame.
        missing: probability in [0, 1] that a clinical value is missing; some patients lose their whole row.
        incomplete: probability in [0, 1] that a study lacks a modality; one always stays.
        test_fraction: share of the patients in [0, 1] that are held out.
        jobs: processes.
        progress: called with (patients done, all patients).

    Raises:
        CohortError: PM204 an argument is out of range, a modality unknown or the folder not empty.
    """
    _check_request(modalities, patients=patients, studies=studies, jobs=jobs)
    _check_numbers(misregistration_mm, missing=missing, incomplete=incomplete, test_fraction=test_fraction)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise _refused("the target folder must be absent or empty", str(folder))
    folder.mkdir(parents=True, exist_ok=True)
    plan = _Plan(folder, Course(tuple(modalities), seed, site, studies, misregistration_mm, incomplete), missing)
    done: dict[int, _Rows] = {}
    for index, rows in _run(plan, patients, jobs):
        done[index] = rows
        if progress is not None:
            progress(len(done), patients)
    _write_tables(plan, [done[index] for index in range(patients)], _held_out(plan, patients, test_fraction))


def _write_tables(plan: _Plan, patients: Sequence[_Rows], test: frozenset[int]) -> None:
    splits = ["test" if index in test else "train" for index in range(len(patients))]
    volumes = [{**row, "split": split} for rows, split in zip(patients, splits, strict=True) for row in rows.volumes]
    _write_csv(plan.folder / "masks.csv", MASK_COLUMNS, [row for rows in patients for row in rows.masks])
    _write_csv(plan.folder / "clinical.csv", COLUMNS, [rows.clinical for rows in patients if rows.clinical])
    _write_csv(plan.folder / "cohort.csv", COHORT_COLUMNS, volumes)  # last: a cohort with this table is complete


def _write_csv(path: Path, columns: Sequence[str], rows: Sequence[_Row]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _refused(message: str, detail: str = "") -> CohortError:
    return CohortError(Code.COHORT_IMPORT, f"phantom: {message}", site_detail=detail)


def _check_request(modalities: Sequence[str], **counts: int) -> None:
    unknown = [modality for modality in modalities if modality not in MODALITIES]
    if unknown:
        raise _refused(f"cannot draw modality {', '.join(unknown)}; allowed: {' '.join(MODALITIES)}")
    if not modalities or len(set(modalities)) != len(modalities):
        raise _refused("modalities must be named, each once")
    for name, count in counts.items():
        if not 1 <= count <= 9999:
            raise _refused(f"{name} must be between 1 and 9999, got {count}")


def _check_numbers(misregistration_mm: float, **shares: float) -> None:
    if not 0 <= misregistration_mm <= 100:
        raise _refused(f"misregistration_mm must be between 0 and 100, got {misregistration_mm}")
    for name, share in shares.items():
        if not 0 <= share <= 1:
            raise _refused(f"{name} must be between 0 and 1, got {share}")


def _run(plan: _Plan, patients: int, jobs: int) -> Iterator[tuple[int, _Rows]]:
    """Patients as they are done."""
    if min(jobs, patients) == 1:
        for index in range(patients):
            yield _write_patient(plan, index)
        return
    # Spawned, not forked: the calling process may run threads (torch), whose locks a fork would copy.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(jobs, patients), mp_context=context) as pool:
        try:
            for future in as_completed([pool.submit(_write_patient, plan, index) for index in range(patients)]):
                yield future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _held_out(plan: _Plan, patients: int, fraction: float) -> frozenset[int]:
    order = stream(plan.course.seed, plan.course.site, "split").permutation(patients)
    return frozenset(int(index) for index in order[patients - round(fraction * patients) :])


def _write_patient(plan: _Plan, index: int) -> tuple[int, _Rows]:
    name, course = f"p{index:03d}", plan.course
    latent = sample_latent(course.seed, course.site, index)
    rows = _Rows([], [], {})
    first_volume_ml = 0.0
    for study in range(course.studies):
        for order, drawn in enumerate(draw_study(course, latent, index, study)):
            _write_drawn(plan, drawn, (name, study), rows, masks=order == 0)
            first_volume_ml = drawn.body.tumour_ml if study == 0 else first_volume_ml
    rng = stream(course.seed, course.site, index, "missing")
    rows.clinical.update(clinical_row(latent, name, first_volume_ml, plan.missing, rng))
    return index, rows


def _write_drawn(plan: _Plan, drawn: Drawn, who: tuple[str, int], rows: _Rows, *, masks: bool) -> None:
    name, study = who
    visit = f"s{study}"
    path = f"{name}/{visit}/{drawn.modality}.nii.gz"
    (plan.folder / path).parent.mkdir(parents=True, exist_ok=True)
    _write_volume(plan.folder / path, drawn.image, drawn.modality, drawn.pose)
    row = {"patient": name, "study": visit, "day": str(study_day(plan.course, study)), "modality": drawn.modality}
    rows.volumes.append({**row, "path": path, "frame": drawn.frame})
    if masks:
        rows.masks.extend(_write_masks(plan.folder, drawn, name, visit))


def _write_volume(path: Path, image: Field, modality: str, pose: Pose) -> None:
    """Stores integers; PET with a slope, as scanners do."""
    slope = max(float(image.max()), 1e-3) / 32000 if modality == "PET" else 1.0
    _write_nifti(path, np.clip(np.rint(image / np.float32(slope)), -32768, 32767).astype(np.int16), pose, slope)


def _write_masks(folder: Path, drawn: Drawn, name: str, visit: str) -> Iterator[_Row]:
    """Writes the masks that are not empty and yields their rows."""
    (folder / name / visit / "masks").mkdir()
    for structure, mask in drawn.masks():
        path = f"{name}/{visit}/masks/{structure}.nii.gz"
        _write_nifti(folder / path, mask.astype(np.uint8), drawn.pose, 1.0)
        yield {"patient": name, "study": visit, "structure": structure, "path": path, "frame": visit}


def _write_nifti(path: Path, stored: NDArray[np.int16] | NDArray[np.uint8], pose: Pose, slope: float) -> None:
    """A gzipped NIfTI-1 file with nothing in its header but geometry and scale; the same bytes every time."""
    image = nibabel.Nifti1Image(stored, pose.grid)
    image.set_qform(pose.grid, code=1)
    image.set_sform(pose.grid, code=1)
    image.header.set_xyzt_units("mm")
    image.header.set_slope_inter(slope, 0.0)
    path.write_bytes(gzip.compress(image.to_bytes(), compresslevel=1, mtime=0))
