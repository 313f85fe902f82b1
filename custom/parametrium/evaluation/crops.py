"""The crops that evaluation looks at: fixed by the job's seed, the same for every model and every round."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from parametrium.config import JobConfig
from parametrium.data.batch import Batch
from parametrium.data.cache import PreparedPatient, PreparedVolume
from parametrium.data.crops import Crop, draw_corner, draw_inner_corner
from parametrium.data.loader import read_batch, stable_number


class VolumeCrops(NamedTuple):
    """Crops of one volume.

    Attributes:
        patient: index in the sequence that was asked for.
        modality: its modality.
        day: days since the patient's own reference date.
        batch: the crops, all of this volume, without intensity jitter.
    """

    patient: int
    modality: str
    day: int
    batch: Batch


def volume_crops(
    patients: Sequence[PreparedPatient], job: JobConfig, site: str, purpose: str, *, inner: bool = False
) -> Iterator[VolumeCrops]:
    """Random crops of every volume, centred on body voxels, drawn for each volume by itself.

    Two modalities of a patient are therefore seen at independent places: what they share is the patient, not the field
    of view (METHODS 10).

    Args:
        patients: whose volumes; at most ``job.evaluation.patients`` of them.
        job: crop, seed, number of crops.
        site: name of the site.
        purpose: crops of different purposes are independent.
        inner: prefer places inside the body, where the outline does not give the patient away.
    """
    for p, patient in enumerate(patients[: job.evaluation.patients]):
        for v, volume in enumerate(patient.volumes):
            seeds = [job.seed, stable_number(site), stable_number(purpose), p, v]
            yield VolumeCrops(p, volume.modality, volume.day, _crops(volume, job, np.random.default_rng(seeds), inner))


def _crops(volume: PreparedVolume, job: JobConfig, rng: np.random.Generator, inner: bool) -> Batch:
    draw = draw_inner_corner if inner else draw_corner
    drawn = [Crop(volume, 0, n, draw(rng, volume, job.crop)) for n in range(job.evaluation.crops)]
    nothing = np.zeros((1, len(job.clinical)), dtype=np.float32)
    return read_batch(drawn, job, (nothing, nothing > 0))
