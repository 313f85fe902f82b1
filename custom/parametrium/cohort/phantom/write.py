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

from parametrium.cohort.phantom.body import STRUCTURES, Body, draw_body
from parametrium.cohort.phantom.canvas import Field, table_of
from parametrium.cohort.phantom.chance import stream
from parametrium.cohort.phantom.clinical import COLUMNS, Profile, clinical_row, sample_latent
from parametrium.cohort.phantom.render import Pose, render, sample_tissue
from parametrium.cohort.phantom.scanner import grid_affine, site_scanner
from parametrium.cohort.phantom.tissue import MODALITIES, Tissue
from parametrium.cohort.phantom.visit import displacement, present_modalities, setup_pose
from parametrium.errors import Code, CohortError

COHORT_COLUMNS = ("patient", "study", "day", "modality", "path", "frame", "split")
MASK_COLUMNS = ("patient", "study", "structure", "path", "frame")

_COURSE_DAYS = 28
"""Days from the first to the last study of a treatment."""

_MIDDLE = {
    **dict.fromkeys(("CT", "PET"), (0.0, 0.0, 17.0)),
    **dict.fromkeys(("T1", "T2", "ADC"), (0.0, 0.0, 14.0)),
    "CBCT": (0.0, -8.0, 8.0),
}
"""Middle of the field of view from the middle between the femoral heads, mm."""

_Row = dict[str, str]


@dataclass(frozen=True)
class _Plan:
    """What is the same for all patients of a cohort."""

    folder: Path
    modalities: tuple[str, ...]
    seed: int
    site: str
    studies: int
    misregistration_mm: float
    missing: float
    incomplete: float


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
    plan = _Plan(folder, tuple(modalities), seed, site, studies, misregistration_mm, missing, incomplete)
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
    order = stream(plan.seed, plan.site, "split").permutation(patients)
    return frozenset(int(index) for index in order[patients - round(fraction * patients) :])


def _write_patient(plan: _Plan, index: int) -> tuple[int, _Rows]:
    name = f"p{index:03d}"
    latent = sample_latent(plan.seed, plan.site, index)
    rows = _Rows([], [], {})
    first_volume_ml = 0.0
    for study in range(plan.studies):
        body = draw_body(latent, plan.seed, plan.site, index, study, plan.studies)
        first_volume_ml = body.tumour_ml if study == 0 else first_volume_ml
        _write_study(plan, body, latent.profile, (name, index, study), rows)
    rng = stream(plan.seed, plan.site, index, "missing")
    rows.clinical.update(clinical_row(latent, name, first_volume_ml, plan.missing, rng))
    return index, rows


def _write_study(plan: _Plan, body: Body, profile: Profile, who: tuple[str, int, int], rows: _Rows) -> None:
    name, index, study = who
    visit = f"s{study}"
    place = f"{name}/{visit}"
    (plan.folder / place).mkdir(parents=True)
    day = str(round(_COURSE_DAYS * study / max(1, plan.studies - 1)))
    key = (plan.seed, plan.site, index, study)
    setup = setup_pose(*key)
    for order, modality in enumerate(present_modalities(plan.modalities, plan.incomplete, *key)):
        scanner = site_scanner(plan.site, modality)
        grid = grid_affine(scanner, (setup @ (*_MIDDLE[modality], 1.0))[:3])
        moved = order > 0 and plan.misregistration_mm > 0
        pose = Pose(setup @ displacement(plan.misregistration_mm, modality, *key) if moved else setup, grid)
        rng = stream(plan.seed, plan.site, index, "noise", study, modality)
        image = render(body, profile, modality, scanner, pose, rng)
        path = f"{place}/{modality}.nii.gz"
        _write_volume(plan.folder / path, image, modality, pose)
        row = {"patient": name, "study": visit, "day": day, "modality": modality, "path": path}
        rows.volumes.append({**row, "frame": f"{visit}-{modality}" if moved else visit})
        if order == 0:
            rows.masks.extend(_write_masks(plan.folder, sample_tissue(body, scanner, pose), pose, name, visit))


def _write_volume(path: Path, image: Field, modality: str, pose: Pose) -> None:
    """Stores integers; PET with a slope, as scanners do."""
    slope = max(float(image.max()), 1e-3) / 32000 if modality == "PET" else 1.0
    _write_nifti(path, np.clip(np.rint(image / np.float32(slope)), -32768, 32767).astype(np.int16), pose, slope)


def _write_masks(
    folder: Path, tissue: NDArray[np.uint8], pose: Pose, name: str, visit: str
) -> Iterator[dict[str, str]]:
    """Writes the masks that are not empty and yields their rows."""
    (folder / name / visit / "masks").mkdir()
    body = tuple(kind for kind in Tissue if kind is not Tissue.AIR)
    for structure, tissues in {"body": body, **STRUCTURES}.items():
        mask = table_of(tissues)[tissue]
        if mask.any():
            path = f"{name}/{visit}/masks/{structure}.nii.gz"
            _write_nifti(folder / path, mask.astype(np.uint8), pose, 1.0)
            yield {"patient": name, "study": visit, "structure": structure, "path": path, "frame": visit}


def _write_nifti(path: Path, stored: NDArray[np.int16] | NDArray[np.uint8], pose: Pose, slope: float) -> None:
    """A gzipped NIfTI-1 file with nothing in its header but geometry and scale; the same bytes every time."""
    image = nibabel.Nifti1Image(stored, pose.grid)
    image.set_qform(pose.grid, code=1)
    image.set_sform(pose.grid, code=1)
    image.header.set_xyzt_units("mm")
    image.header.set_slope_inter(slope, 0.0)
    path.write_bytes(gzip.compress(image.to_bytes(), compresslevel=1, mtime=0))
