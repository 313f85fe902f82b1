"""From a cohort to its cache: every volume prepared once, in parallel, whatever interrupts it."""

import logging
import multiprocessing
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path

from parametrium.cohort.manifest import Cohort, Problem, Reason, Volume
from parametrium.cohort.problem import empty_cohort
from parametrium.config import PreparationConfig
from parametrium.data.cache import (
    Entry,
    PreparedCohort,
    PreparedPatient,
    PreparedVolume,
    body_box,
    write_entry,
    write_volume,
)
from parametrium.data.recipe import Prepared, Recipe, load_volume, prepare_arrays, recipe_for
from parametrium.data.store import Cache, entry_key, writable
from parametrium.errors import Code, DataError

_log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class _Task:
    """All that a worker needs for one volume."""

    source: Path
    recipe: Recipe
    defaced: Path | None

    @property
    def files(self) -> tuple[Path, ...]:
        """All whose bytes decide the result."""
        return (self.source,) if self.defaced is None else (self.source, self.defaced)


@dataclass(frozen=True)
class _Found:
    """An entry of the cache, good or remembered as bad."""

    folder: Path
    entry: Entry


_Outcome = _Found | Reason


def prepare_cohort(
    cohort: Cohort,
    preparation: PreparationConfig,
    cache: Path,
    *,
    jobs: int = 1,
    progress: Progress | None = None,
) -> PreparedCohort:
    """Makes the cache entries that are missing and gives the prepared cohort.

    The result does not depend on ``jobs``, on interruptions or on other processes that prepare the same cache.

    Args:
        cohort: from ``read_cohort``.
        preparation: the job's settings.
        cache: the site's cache folder, made where absent; readable by its owner only.
        jobs: processes; each holds one volume at a time.
        progress: called with volumes done and volumes in all.

    Raises:
        ConfigError: PM103 a modality has no intensity rule.
        CohortError: PM202 no usable volume is left.
        DataError: PM301 the cache cannot be written, or a worker process was killed.
    """
    volumes = cohort.volumes
    tasks = [
        _Task(v.path, recipe_for(preparation, v.modality, v.slope, v.intercept, v.moved), v.defaced) for v in volumes
    ]
    store = Cache(cache)
    outcomes = {index: found for index, task in enumerate(tasks) if (found := _existing(task, store))}
    missing = {index: task for index, task in enumerate(tasks) if index not in outcomes}
    report = progress or (lambda done, total: None)
    report(len(outcomes), len(tasks))
    if missing:
        with store.attempt() as staging:
            for index, outcome in _make(missing, cache, staging, jobs):
                outcomes[index] = outcome
                report(len(outcomes), len(tasks))
    return _assemble(cohort, [outcomes[index] for index in range(len(tasks))])


def _existing(task: _Task, store: Cache) -> _Outcome | None:
    digests = [digest for path in task.files if (digest := store.known_digest(path))]
    return _find(store, _key(digests, task.recipe)) if len(digests) == len(task.files) else None


def _key(digests: Sequence[str], recipe: Recipe) -> str:
    return entry_key("+".join(digests), recipe.key)


def _find(store: Cache, key: str) -> _Found | None:
    entry = store.entry(key)
    return None if entry is None else _Found(store.folder_of(key), entry)


def _make(tasks: dict[int, _Task], cache: Path, staging: Path, jobs: int) -> Iterator[tuple[int, _Outcome]]:
    """Index and outcome of each task, in order of completion."""
    jobs = min(jobs, len(tasks))
    if jobs == 1:
        yield from ((index, _prepare(task, cache, staging)) for index, task in tasks.items())
        return
    # Spawned, not forked: the trainer that prepares may hold threads and a GPU.
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        futures = {pool.submit(_prepare, task, cache, staging): index for index, task in tasks.items()}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BrokenProcessPool as error:
            raise DataError(
                Code.DATA_CACHE,
                "a process that prepared volumes was killed, as a rule for lack of memory; lower prepare_jobs",
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _prepare(task: _Task, cache: Path, staging: Path) -> _Outcome:
    """Makes one entry, or says why there can be none. Runs in a worker."""
    store = Cache(cache)
    try:
        digests = [store.digest(path, staging) for path in task.files]
    except OSError:
        return Reason.UNREADABLE
    key = _key(digests, task.recipe)
    found = _find(store, key)  # another process may have made it meanwhile, or the same bytes lie at a second path
    if found is not None:
        return found
    loaded = load_volume(task.source)
    if isinstance(loaded, Reason):
        return loaded
    hidden = None if task.defaced is None else load_volume(task.defaced)
    if isinstance(hidden, Reason):
        return hidden
    try:
        result = prepare_arrays(*loaded, task.recipe, None if hidden is None else hidden[0])
    except Exception as error:  # one odd volume must not stop its site; a fault of ours hits all and ends as PM202
        _log.warning("a volume could not be prepared: %s", type(error).__name__)
        return Reason.TOO_LARGE if isinstance(error, MemoryError) else Reason.FAILED
    staged = staging / uuid.uuid4().hex
    with writable(cache):
        _write(staged, result, digests[0], task.recipe)
    store.publish(key, staged)
    found = _find(store, key)
    if found is None:
        raise DataError(Code.DATA_CACHE, "a cache entry vanished while it was made", site_detail=str(cache))
    return found


def _write(staged: Path, result: Prepared | Reason, digest: str, recipe: Recipe) -> None:
    """Writes what came out: arrays, or why there are none, since the same bytes would fail again."""
    made = Entry(recipe.spacing_mm, recipe.modality, digest, recipe.key)
    if isinstance(result, Reason):
        write_entry(staged, replace(made, problem=result))
    else:
        write_volume(staged, result.image, result.body, replace(made, offset=result.offset))


def _assemble(cohort: Cohort, outcomes: Sequence[_Outcome]) -> PreparedCohort:
    """Puts the outcomes, which are in the order of the cohort's volumes, back to their patients."""
    problems = list(cohort.problems)
    patients: list[PreparedPatient] = []
    following = iter(outcomes)
    for patient in cohort.patients:
        prepared: list[PreparedVolume] = []
        for volume in patient.volumes:
            outcome = next(following)
            reason = outcome if isinstance(outcome, Reason) else outcome.entry.problem
            if isinstance(outcome, Reason) or reason is not None:
                problems.append(Problem(volume.patient, volume.modality, reason or Reason.UNREADABLE))
            else:
                prepared.append(_volume(volume, len(patients), outcome))
        if prepared:
            volumes = tuple(_with_frame_boxes(prepared))
            patients.append(PreparedPatient(patient.name, patient.split, volumes, patient.clinical, patient.masks))
    if not patients:
        raise empty_cohort(problems)
    return PreparedCohort(tuple(patients), tuple(problems))


def _with_frame_boxes(volumes: Sequence[PreparedVolume]) -> Iterator[PreparedVolume]:
    """One patient's volumes, each with the body's box in all volumes of its frame."""
    by_frame: dict[str, list[PreparedVolume]] = {}
    for volume in volumes:
        by_frame.setdefault(volume.frame, []).append(volume)
    boxes = {frame: body_box(same) for frame, same in by_frame.items()}
    for volume in volumes:
        yield replace(volume, frame_box=boxes[volume.frame])


def _volume(volume: Volume, patient: int, found: _Found) -> PreparedVolume:
    return PreparedVolume(
        patient=patient,
        study=volume.study,
        day=volume.day,
        modality=volume.modality,
        frame=volume.frame,
        folder=found.folder,
        offset=found.entry.offset,
        shape=found.entry.shape,
    )
