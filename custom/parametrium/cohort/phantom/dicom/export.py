"""A folder as it comes out of a PACS: the phantom's patients, studies and series, and what comes with them."""

import multiprocessing
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from parametrium.cohort.phantom.clinical import sample_latent
from parametrium.cohort.phantom.dicom.archive import Exported, Shelf, StudyArchive, Style
from parametrium.cohort.phantom.dicom.header import TRANSFER_SYNTAXES, Visit
from parametrium.cohort.phantom.dicom.identity import invent_person
from parametrium.cohort.phantom.dicom.layout import Orientation, Position
from parametrium.cohort.phantom.study import Course, draw_study, study_day
from parametrium.cohort.phantom.tissue import MODALITIES
from parametrium.errors import Code, CohortError


@dataclass(frozen=True)
class _Plan:
    """What is the same for all patients."""

    folder: Path
    course: Course
    style: Style
    identity: Mapping[str, str] | None


def write_phantom_dicom(
    folder: Path,
    *,
    patients: int,
    modalities: Sequence[str],
    seed: int,
    site: str = "phantom",
    studies: int = 1,
    misregistration_mm: float = 0.0,
    incomplete: float = 0.0,
    orientation: Orientation = "axial",
    turn_deg: tuple[float, float, float] = (0.0, 0.0, 0.0),
    position: Position = "HFS",
    transfer_syntax: str = "explicit",
    enhanced: bool = False,
    structures: bool = True,
    segmentations: bool = False,
    surroundings: bool = True,
    identity: Mapping[str, str] | None = None,
    jobs: int = 2,
    progress: Callable[[int, int], None] | None = None,
) -> list[Exported]:
    """Writes a folder of DICOM files whose volumes are those that ``write_phantom`` writes for the same arguments.

    The same arguments give the same bytes. Every patient's files are nested and named in one of three ways.

    Args:
        folder: absent or empty.
        patients: how many, 1 to 9999.
        modalities: of CT, CBCT, T1, T2, ADC, PET.
        seed: of everything.
        site: its name decides the scanners.
        studies: visits of each patient over four weeks.
        misregistration_mm: by how much every volume but a study's first is displaced; each has its own frame of
            reference then, else all of a study share one.
        incomplete: probability in [0, 1] that a study lacks a modality; one always stays.
        orientation: of the planes.
        turn_deg: the patient lies askew: body and grids are turned together about X, Y, Z of patient coordinates by
            these degrees, which makes the planes oblique to them.
        position: Patient Position, PS3.3 C.7.3.1.1.2.
        transfer_syntax: explicit, implicit, big-endian, rle, jpeg-ls or jpeg-2000 (planes of 32 pixels or more).
        enhanced: one multi-frame file a series of CT and MR.
        structures: an RTSTRUCT of the organs on each study's CT, or else on its first volume.
        segmentations: a SEG of the organs on each study's last volume that is not PET.
        surroundings: localisers, a screenshot, dose, a report, a duplicate and stray files.
        identity: texts to plant in all headers, by DICOM keyword or by ``preamble``, ``private``, ``padding``,
            ``overlay``, ``path``; ``{n}`` becomes the patient's number. None plants an invented person's.
        jobs: processes.
        progress: called with (patients done, all patients).

    Returns:
        What was written, in order of patients; nothing of it is in the folder.

    Raises:
        CohortError: PM204 an argument is out of range or unknown, or the folder not empty.
    """
    _check_words(modalities, orientation, position, transfer_syntax)
    _check_counts(patients=patients, studies=studies, jobs=jobs)
    _check_range("misregistration_mm", misregistration_mm, 100)
    _check_range("incomplete", incomplete, 1)
    invent_person(seed, site, 0, identity)  # refuses unknown names before anything is written
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise _refused("the target folder must be absent or empty", str(folder))
    folder.mkdir(parents=True, exist_ok=True)
    course = Course(tuple(modalities), seed, site, studies, misregistration_mm, incomplete)
    layout = (orientation, turn_deg, position, transfer_syntax, enhanced)
    plan = _Plan(folder, course, Style(*layout, structures, segmentations, surroundings), identity)
    done: dict[int, list[Exported]] = {}
    for index, exported in _run(plan, patients, jobs):
        done[index] = exported
        if progress is not None:
            progress(len(done), patients)
    return [series for index in range(patients) for series in done[index]]


def _refused(message: str, detail: str = "") -> CohortError:
    return CohortError(Code.COHORT_IMPORT, f"phantom: {message}", site_detail=detail)


def _check_words(modalities: Sequence[str], orientation: str, position: str, transfer_syntax: str) -> None:
    if not modalities or len(set(modalities)) != len(modalities):
        raise _refused("modalities must be named, each once")
    for what, words, allowed in (
        ("modality", modalities, MODALITIES),
        ("orientation", [orientation], get_args(Orientation)),
        ("position", [position], get_args(Position)),
        ("transfer_syntax", [transfer_syntax], tuple(TRANSFER_SYNTAXES)),
    ):
        unknown = [word for word in words if word not in allowed]
        if unknown:
            raise _refused(f"unknown {what} {', '.join(unknown)}; allowed: {' '.join(allowed)}")


def _check_counts(**counts: int) -> None:
    for name, count in counts.items():
        if not 1 <= count <= 9999:
            raise _refused(f"{name} must be between 1 and 9999, got {count}")


def _check_range(name: str, value: float, most: float) -> None:
    if not 0 <= value <= most:
        raise _refused(f"{name} must be between 0 and {most}, got {value}")


def _run(plan: _Plan, patients: int, jobs: int) -> Iterator[tuple[int, list[Exported]]]:
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


def _write_patient(plan: _Plan, index: int) -> tuple[int, list[Exported]]:
    course = plan.course
    person = invent_person(course.seed, course.site, index, plan.identity)
    latent = sample_latent(course.seed, course.site, index)
    shelf = Shelf(plan.folder, person)
    exported: list[Exported] = []
    for study in range(course.studies):
        key = (course.seed, course.site, index, study)
        archive = StudyArchive(Visit(person, key, study, study_day(course, study)), plan.style, shelf)
        for drawn in draw_study(course, latent, index, study):
            archive.add(drawn)
        archive.close()
        exported += archive.exported
    return index, exported
