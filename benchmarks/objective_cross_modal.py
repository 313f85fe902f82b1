"""Does cross-modal reconstruction use what the other modality shows? Errors on held-out phantom patients.

    python benchmarks/objective_cross_modal.py --out cross_modal               # three seeds
    python benchmarks/objective_cross_modal.py --out cross_modal --seeds 0 --steps 20 --patients 24   # to see it work

A phantom hospital with CT, T2 and PET; a quarter of its patients is held out. One model learns masked and cross-modal
reconstruction in turn. Of held-out crops the same masked patches are predicted four times: cross-modal, from what
another modality shows there; within the modality, from its visible patches alone (the same model's masked
reconstruction); by copying the fill, scaled and shifted by the best line for this pair of modalities over training
patients; and by the modality's mean. Mean squared error over masked patches that are body in both, and over those of
them with tumour: PET shows it, CT hardly does.
"""

import argparse
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from parametrium.cohort.manifest import read_cohort
from parametrium.cohort.phantom import write_phantom
from parametrium.config import JobConfig, parse_job
from parametrium.data.batch import Batch
from parametrium.data.cache import PreparedPatient
from parametrium.data.crops import draw_aligned
from parametrium.data.labels import label_map
from parametrium.data.lattice import cut
from parametrium.data.loader import CropLoader, read_batch
from parametrium.data.prepare import prepare_cohort
from parametrium.model.patch_embed import gather, patchify
from parametrium.objectives.reconstruction import CrossModalReconstruction, MaskedReconstruction
from parametrium.objectives.registry import PretrainingModel
from parametrium.objectives.schedule import CropPlan
from parametrium.objectives.target import patch_errors
from parametrium.site.trainer import split
from parametrium.training.step import new_state, train_step

SITE = "north"
MODALITIES = ("CT", "T2", "PET")
PREDICTORS = ("cross-modal", "within", "copied fill", "mean")
TUMOUR_SHARE = 0.2  # of a patch's voxels, from which it counts as one with tumour

Pair = tuple[int, int]
"""Modality that is predicted, modality that fills."""


class Line(NamedTuple):
    """The best line from a fill's voxels to the true ones, and the true ones' mean."""

    slope: float
    offset: float
    mean: float


def job_of(arguments: argparse.Namespace, seed: int) -> JobConfig:
    """Both reconstructions in turn, raw intensities."""
    return parse_job(
        {
            "name": "cross-modal",
            "seed": seed,
            "modalities": list(MODALITIES),
            "preparation": {"spacing_mm": [4.0] * 3},
            "crop": [32] * 3,
            "model": {"preset": "tiny", "patch": 4},
            "objectives": [{"kind": "masked_reconstruction"}, {"kind": "cross_modal_reconstruction"}],
            "batch": {"patients": 4, "volumes_per_patient": 2},
            "rounds": 1,
            "local_steps": arguments.steps,
        }
    )


def trained(job: JobConfig, patients: Sequence[PreparedPatient]) -> PretrainingModel:
    """The model after all steps."""
    state = new_state(job, torch.device("cpu"))
    loader = CropLoader(patients, job, SITE, CropPlan(job, state.model))
    for batches in loader.steps(0, job.total_steps):
        train_step(state, batches, job, SITE)
    return state.model.eval()


def aligned_crops(
    patients: Sequence[PreparedPatient], job: JobConfig, each: int, seed: int
) -> Iterator[tuple[Batch, NDArray[np.bool_]]]:
    """For every patient so many places, each seen in all of its modalities, with the crops' tumour voxels."""
    rng = np.random.default_rng(seed)
    for patient in patients:
        spacing = job.preparation.spacing_mm
        maps = {id(volume): label_map(patient, volume, ("tumour",), spacing) for volume in patient.volumes}
        for _ in range(each):
            crops = draw_aligned(rng, [patient], job.crop, len(MODALITIES), 1.0)
            nothing = np.zeros((1, 0), dtype=np.float32)
            drawn = [(crop, labels) for crop in crops if (labels := maps[id(crop.volume)]) is not None]
            if len(drawn) == len(crops) > 1:
                tumour = [cut(labels, crop.volume.offset, crop.corner, job.crop) > 0 for crop, labels in drawn]
                yield read_batch(crops, job, (nothing, nothing > 0)), np.stack(tumour)


def pairs(batch: Batch) -> Iterator[tuple[int, int, Pair]]:
    """Every ordered pair of a place's crops."""
    modality = batch.modality.tolist()
    for a, predicted in enumerate(modality):
        for b, fill in enumerate(modality):
            if predicted != fill:
                yield a, b, (predicted, fill)


def lines(patients: Sequence[PreparedPatient], job: JobConfig, each: int) -> dict[Pair, Line]:
    """The best line of every pair over body voxels of training patients."""
    voxels: defaultdict[Pair, list[NDArray[np.float64]]] = defaultdict(list)
    for batch, _ in aligned_crops(patients, job, each, job.seed + 1):
        for a, b, pair in pairs(batch):
            both = batch.body[a] & batch.body[b]
            drawn = torch.stack([batch.images[b][both], batch.images[a][both]])
            voxels[pair].append(drawn.double().numpy()[:, ::50])
    found = {}
    for pair, parts in voxels.items():
        fill, true = np.concatenate(parts, axis=1)
        slope, offset = np.polyfit(fill, true, 1)
        found[pair] = Line(float(slope), float(offset), float(true.mean()))
    return found


class Errors:
    """Squared errors of patches, by pair, predictor and whether the patch has tumour."""

    def __init__(self) -> None:
        self._found: defaultdict[tuple[Pair, str, bool], list[float]] = defaultdict(list)

    def add(self, pair: Pair, predictor: str, errors: Tensor, tumour: Tensor) -> None:
        """Takes errors [Q] of patches, of which those with tumour [Q] bool."""
        for has in (True, False):
            self._found[pair, predictor, has] += errors[tumour == has].tolist()

    def mean(self, pair: Pair, predictor: str, *, tumour: bool) -> float:
        """Over patches with tumour, or over all."""
        values = self._found[pair, predictor, True] + ([] if tumour else self._found[pair, predictor, False])
        return fmean(values) if values else float("nan")

    @property
    def pairs(self) -> list[Pair]:
        """All that were measured, in order."""
        return sorted({pair for pair, _, _ in self._found})


@torch.no_grad()
def measured(
    model: PretrainingModel, held_out: Sequence[PreparedPatient], known: dict[Pair, Line], job: JobConfig, each: int
) -> Errors:
    """All predictors at the same patches."""
    masked = cast(MaskedReconstruction, model.find(MaskedReconstruction))
    cross = cast(CrossModalReconstruction, model.find(CrossModalReconstruction))
    errors, generator = Errors(), torch.Generator().manual_seed(job.seed)
    patch = model.encoder.shape.patch
    for batch, tumour in aligned_crops(held_out, job, each, job.seed):
        for a, b, pair in pairs(batch):
            one, fill, modality = batch.images[a : a + 1], batch.images[b : b + 1], batch.modality
            places = cross.draw_places(batch.body[a : a + 1] & batch.body[b : b + 1], patch, generator)
            if places is None:
                continue
            visible, hidden = places.visible, places.masked
            own, other = modality[a : a + 1], modality[b : b + 1]
            crossed, true = cross.predict(model.encoder, one, own, fill, other, visible, hidden)
            within, _ = masked.predict(model.encoder, one, own, visible, hidden)
            copied = gather(patchify(fill, patch), hidden) * known[pair].slope + known[pair].offset
            guesses = (crossed, within, copied, torch.full_like(true, known[pair].mean))
            drawn = gather(patchify(torch.from_numpy(tumour[a : a + 1]).float(), patch), hidden)
            has = drawn.mean(-1)[places.counts] >= TUMOUR_SHARE
            for name, guess in zip(PREDICTORS, guesses, strict=True):
                errors.add(pair, name, patch_errors(guess, true)[places.counts], has)
    return errors


def main() -> None:
    """Prints a table of each seed and their means."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for cohort and cache")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--patients", type=int, default=120)
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--crops", type=int, default=8, help="places of each patient that are looked at")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found: defaultdict[tuple[Pair, bool], list[list[float]]] = defaultdict(list)
    for seed in arguments.seeds:
        job, folder = job_of(arguments, seed), arguments.out / f"seed-{seed}-{arguments.patients}"
        if not (folder / "cohort" / "cohort.csv").exists():
            write_phantom(folder / "cohort", patients=arguments.patients, modalities=MODALITIES, seed=seed, site=SITE)
        cohort = read_cohort(folder / "cohort", job.modalities)
        training, held_out = split(prepare_cohort(cohort, job.preparation, folder / "cache", jobs=2).patients, job)
        known = lines(training[:20], job, arguments.crops)
        errors = measured(trained(job, training), held_out, known, job, arguments.crops)
        print(f"\nseed {seed}, {len(training)} patients trained, {len(held_out)} held out")
        for pair in errors.pairs:
            for tumour in (False, True):
                values = [errors.mean(pair, name, tumour=tumour) for name in PREDICTORS]
                found[pair, tumour].append(values)
                print(row(pair, tumour, [[value] for value in values]), flush=True)
    print(f"\n| predicted | filled from | patches | {' | '.join(PREDICTORS)} |\n|---|---|---|{'---|' * 4}")
    for (pair, tumour), rows in found.items():
        print(row(pair, tumour, list(zip(*rows, strict=True))))


def row(pair: Pair, tumour: bool, by_predictor: Sequence[Sequence[float]]) -> str:
    """A line of the table: means over seeds with their range."""
    cells = [f"{fmean(v):.3f}" + (f" ({min(v):.3f}-{max(v):.3f})" if len(v) > 1 else "") for v in by_predictor]
    what = "with tumour" if tumour else "all"
    return f"| {MODALITIES[pair[0]]} | {MODALITIES[pair[1]]} | {what} | {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
