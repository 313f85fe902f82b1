"""Batches as a pure function of seed, site and step: the same with workers, and after any interruption."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from parametrium.clinical.schema import encode
from parametrium.config import JobConfig
from parametrium.data.batch import Batch, CropRequest, Layout
from parametrium.data.cache import PreparedPatient, keep_unpacked
from parametrium.data.crops import Crop, draw_aligned, draw_contrast

Batches = Mapping[Layout, Batch]
Plan = Callable[[int], Sequence[CropRequest]]


class CropLoader(Dataset[Batches]):
    """Random crops of a site's patients.

    Args:
        patients: the patients to draw from, at least one, each with at least one volume.
        job: crop, batch, seed, clinical schema.
        site: name of the site; sites draw differently.
        plan: what a step wants.
        workers: loader processes; 0 reads in this process.
    """

    def __init__(
        self, patients: Sequence[PreparedPatient], job: JobConfig, site: str, plan: Plan, workers: int = 0
    ) -> None:
        self.patients = tuple(patients)
        self.job = job
        self.plan = plan
        self.workers = workers
        self._site = stable_number(site)
        keep_unpacked(volume for patient in self.patients for volume in patient.volumes)
        self._clinical = encode([patient.clinical for patient in patients], job.clinical)
        self._starts = [0]

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
        """The batches of steps start .. stop - 1, in order."""
        self._start(stop)  # here, so that workers inherit the sums instead of each making them
        loader = DataLoader(
            self,
            sampler=range(start, stop),
            batch_size=None,
            num_workers=self.workers,
            prefetch_factor=2 if self.workers else None,
        )
        yield from loader

    def _draw(self, request: CropRequest, step: int, rng: np.random.Generator) -> tuple[list[int], list[Crop]]:
        if request.layout == "contrast":
            return draw_contrast(rng, self.patients, self.job.crop, request.patients, request.crops)
        taken = self._stream(self._start(step), request.patients)
        chosen = [self.patients[index] for index in taken]
        fraction = self.job.batch.foreground_fraction
        return taken, draw_aligned(rng, chosen, self.job.crop, request.volumes, fraction)

    def _start(self, step: int) -> int:
        """How many patients all earlier steps of the plan took from the stream, whether they were drawn here or not."""
        while len(self._starts) <= step:
            wanted = [request.patients for request in self.plan(len(self._starts) - 1) if request.layout == "aligned"]
            self._starts.append(self._starts[-1] + sum(wanted))
        return self._starts[step]

    def _stream(self, start: int, count: int) -> list[int]:
        """Entries of an endless sequence of shuffled epochs: every patient once before any comes again."""
        total = len(self.patients)
        epochs = range(start // total, (start + count - 1) // total + 1)
        order = np.concatenate(
            [np.random.default_rng([self.job.seed, self._site, epoch]).permutation(total) for epoch in epochs]
        )
        first = start - epochs[0] * total
        return [int(index) for index in order[first : first + count]]

    def _read(self, taken: Sequence[int], crops: Sequence[Crop], rng: np.random.Generator) -> Batch:
        clinical = self._clinical.values[list(taken)], self._clinical.observed[list(taken)]
        return read_batch(crops, self.job, clinical, rng if self.job.batch.intensity_jitter else None)


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
        clinical: [P, F] values and [P, F] observed.
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
        clinical=torch.from_numpy(values),
        observed=torch.from_numpy(observed),
    )


def stable_number(text: str) -> int:
    """A number for a name that is the same in every process and on every machine."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
