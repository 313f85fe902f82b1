"""Batches as a pure function of seed, site and step: the same with workers, and after any interruption.

Loader processes are spawned, not forked: the trainer holds threads (its listener, the array codec, a GPU), and a fork
would copy their locks as they stand. Starting one costs seconds, so they live over all rounds of a run.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import cast

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from parametrium.clinical.schema import encode
from parametrium.config import JobConfig
from parametrium.data.batch import Batch, CropRequest, Layout
from parametrium.data.cache import PreparedPatient, keep_unpacked
from parametrium.data.crops import Crop, draw_aligned, draw_contrast, draw_views
from parametrium.errors import Code, DataError, ParametriumError

Batches = Mapping[Layout, Batch]
Plan = Callable[[int], Sequence[CropRequest]]


class CropLoader:
    """Random crops of a site's patients.

    Args:
        patients: the patients to draw from, at least one, each with at least one volume.
        job: crop, batch, seed, clinical schema.
        site: name of the site; sites draw differently.
        plan: what a step wants; with workers a picklable one.
        workers: loader processes, started at the first step and kept until ``close``; 0 reads in this process.
    """

    def __init__(
        self, patients: Sequence[PreparedPatient], job: JobConfig, site: str, plan: Plan, workers: int = 0
    ) -> None:
        self.patients = tuple(patients)
        self.job = job
        self.plan = plan
        self.workers = workers
        self._site = stable_number(site)
        self.keep_unpacked()
        self._clinical = encode([patient.clinical for patient in patients], job.clinical)
        self._text = _stacked([patient.text for patient in patients])
        self._starts: dict[Layout, list[int]] = {}
        self._processes: _Processes | None = None

    def __getitem__(self, step: int) -> Batches:
        """The batches of one step, by layout; a layout for which the site has nothing is left out."""
        batches: dict[Layout, Batch] = {}
        for request in self.plan(step):
            rng = np.random.default_rng([self.job.seed, self._site, step, stable_number(request.layout)])
            taken, crops = self._draw(request, step, rng)
            if crops:
                batches[request.layout] = self._read(taken, crops, rng)
        return batches

    def steps(self, start: int, stop: int) -> Iterator[Batches]:
        """The batches of steps start .. stop - 1, in order.

        Raises:
            DataError: PM301 a prepared volume is damaged or gone; PM303 a loader process was killed.
        """
        if self.workers == 0:
            yield from (self[step] for step in range(start, stop))
            return
        if self._processes is None:
            self._processes = _Processes(self)
        yield from self._processes.steps(range(start, stop))

    def close(self) -> None:
        """Ends the loader processes; the next step would start them again."""
        self._processes = None

    def keep_unpacked(self) -> None:
        """Keeps the patients' volumes in this process's memory, where they fit."""
        keep_unpacked(volume for patient in self.patients for volume in patient.volumes)

    def _draw(self, request: CropRequest, step: int, rng: np.random.Generator) -> tuple[list[int], list[Crop]]:
        if request.layout == "contrast":
            return draw_contrast(rng, self.patients, self.job.crop, request.patients, request.crops)
        taken = self._stream(request.layout, self._start(request.layout, step), request.patients)
        chosen = [self.patients[index] for index in taken]
        fraction = self.job.batch.foreground_fraction
        if request.layout == "views":
            return taken, draw_views(rng, chosen, self.job.crop, fraction)
        return taken, draw_aligned(rng, chosen, self.job.crop, request.volumes, fraction)

    def _start(self, layout: Layout, step: int) -> int:
        """How many patients all earlier steps of the plan took from the layout's stream, drawn here or not."""
        starts = self._starts.setdefault(layout, [0])
        while len(starts) <= step:
            wanted = [request.patients for request in self.plan(len(starts) - 1) if request.layout == layout]
            starts.append(starts[-1] + sum(wanted))
        return starts[step]

    def _stream(self, layout: Layout, start: int, count: int) -> list[int]:
        """Entries of an endless sequence of shuffled epochs: every patient once before any comes again."""
        total = len(self.patients)
        own = () if layout == "aligned" else (stable_number(layout),)
        seed = (self.job.seed, self._site, *own)
        epochs = range(start // total, (start + count - 1) // total + 1)
        order = np.concatenate([np.random.default_rng([*seed, epoch]).permutation(total) for epoch in epochs])
        first = start - epochs[0] * total
        return [int(index) for index in order[first : first + count]]

    def _read(self, taken: Sequence[int], crops: Sequence[Crop], rng: np.random.Generator) -> Batch:
        clinical = self._clinical.values[list(taken)], self._clinical.observed[list(taken)]
        batch = read_batch(crops, self.job, clinical, rng if self.job.batch.intensity_jitter else None)
        text = None if self._text is None else torch.from_numpy(self._text[list(taken)])
        return replace(batch, identity=torch.tensor(taken), text=text)


class _Processes:
    """Loader processes of one ``CropLoader``, kept over rounds."""

    def __init__(self, loader: CropLoader) -> None:
        self._round = _Round()
        self._loader: DataLoader[Batches | ParametriumError] = DataLoader(
            _Reading(loader),
            sampler=self._round,
            batch_size=None,
            num_workers=loader.workers,
            prefetch_factor=2,
            multiprocessing_context="spawn",
            persistent_workers=True,
            worker_init_fn=_keep_unpacked,
        )

    def steps(self, steps: range) -> Iterator[Batches]:
        """Batches of these steps in order; what an abandoned round left behind is dropped."""
        self._round.steps = steps
        try:
            for found in self._loader:
                if isinstance(found, ParametriumError):
                    raise found
                yield found
        except RuntimeError as error:  # how torch tells that one of its processes is gone
            raise DataError(
                Code.DATA_LOADER,
                "a loader process was killed, as a rule for lack of memory or shared memory; lower site.workers",
                site_detail=str(error),
            ) from error


class _Round(Sampler[int]):
    """The steps that are read next; changed from round to round under a living ``DataLoader``."""

    def __init__(self) -> None:
        self.steps = range(0)

    def __iter__(self) -> Iterator[int]:
        return iter(self.steps)

    def __len__(self) -> int:
        return len(self.steps)


class _Reading(Dataset[Batches | ParametriumError]):
    """What a loader process holds. An error is handed over as it is: torch would make another one of it, uncoded."""

    def __init__(self, loader: CropLoader) -> None:
        self.loader = loader

    def __getitem__(self, step: int) -> Batches | ParametriumError:
        try:
            return self.loader[step]
        except ParametriumError as error:
            return error


def _keep_unpacked(worker: int) -> None:
    """In a fresh loader process; what the trainer keeps unpacked it does not have."""
    cast(_Reading, get_worker_info().dataset).loader.keep_unpacked()  # type: ignore[union-attr]


def read_batch(
    crops: Sequence[Crop],
    job: JobConfig,
    clinical: tuple[np.ndarray, np.ndarray],
    jitter: np.random.Generator | None = None,
) -> Batch:
    """Reads crops from the cache.

    Args:
        crops: which, ordered by slot.
        job: crop extent, modalities and the range of the intensity jitter.
        clinical: [P, F] values and [P, F] observed; every row is taken for a patient of its own.
        jitter: with a generator, intensities are scaled and shifted at random, each crop by itself.
    """
    images, bodies = [], []
    for crop in crops:
        image, body = crop.volume.read(crop.corner, job.crop)
        if jitter is not None:
            scale, shift = jitter.uniform(-job.batch.intensity_jitter, job.batch.intensity_jitter, 2)
            image = (image * (1 + scale) + shift * body).astype(np.float32)
        images.append(image)
        bodies.append(body)
    values, observed = clinical
    return Batch(
        images=torch.from_numpy(np.stack(images)),
        body=torch.from_numpy(np.stack(bodies)),
        patient=torch.tensor([crop.slot for crop in crops]),
        modality=torch.tensor([job.modalities.index(crop.volume.modality) for crop in crops]),
        frame=torch.tensor([crop.frame for crop in crops]),
        corner=torch.tensor([crop.corner for crop in crops]),
        box=torch.tensor([crop.volume.box for crop in crops], dtype=torch.float32),
        clinical=torch.from_numpy(values),
        observed=torch.from_numpy(observed),
        identity=torch.arange(len(values)),
    )


def _stacked(vectors: Sequence[np.ndarray | None]) -> np.ndarray | None:
    """[N, D], 0 for who has none; None where nobody has one."""
    known = [vector for vector in vectors if vector is not None]
    if not known:
        return None
    return np.stack([np.zeros_like(known[0]) if vector is None else vector for vector in vectors])


def stable_number(text: str) -> int:
    """A number for a name that is the same in every process and on every machine."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
