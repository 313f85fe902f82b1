"""Does box localisation find the same anatomy in another modality? 3D IoU on held-out phantom patients.

    python benchmarks/objective_box.py --out boxes --seed 0

A phantom hospital with CT, T1 and T2; a quarter of its patients is held out. The objective is trained alone, for so
many steps; with --before N after N steps of masked and cross-modal reconstruction, in turn. Measured are boxes that are
cut from another modality than the one in which they are looked for, in held-out patients, at fixed places. Beside it:
the best box that looks at no scan; the box of the query's own size in the middle of the crop (its size is no secret);
and the same head, trained as long, on an encoder that keeps its initial weights. Also the share of boxes with an IoU of
at least .5, and of centres, the mean distance along an axis in millimetres.
"""

import argparse
import time
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import numpy as np
import torch
from starts import NEVER, with_starts
from torch import Tensor

from parametrium.cohort.manifest import read_cohort
from parametrium.cohort.phantom import write_phantom
from parametrium.config import JobConfig, parse_job
from parametrium.data.cache import PreparedPatient
from parametrium.data.crops import draw_aligned
from parametrium.data.loader import CropLoader, read_batch
from parametrium.data.prepare import prepare_cohort
from parametrium.model.encoder import Encoder
from parametrium.objectives.boxes import as_fractions, iou
from parametrium.objectives.localisation import BoxLocalisation
from parametrium.objectives.registry import PretrainingModel
from parametrium.objectives.schedule import CropPlan
from parametrium.site.trainer import split
from parametrium.training.step import TrainState, new_state, train_step

SITE = "north"
MODALITIES = ("CT", "T1", "T2")


class Found(NamedTuple):
    """Predicted and true boxes [B, 6] of held-out patients, as fractions of the crop."""

    predicted: Tensor
    true: Tensor


def job_of(arguments: argparse.Namespace, *, before: bool = False) -> JobConfig:
    """At the size of the demonstration: box localisation alone, or the reconstruction before it."""
    reconstruction = [{"kind": f"{kind}_reconstruction"} for kind in ("masked", "cross_modal")]
    boxes = {"kind": "box_localisation", "layers": arguments.layers}
    objectives = [*reconstruction, boxes] if before else [boxes]
    job = parse_job(
        {
            "name": "boxes",
            "seed": arguments.seed,
            "modalities": list(MODALITIES),
            "preparation": {"spacing_mm": [arguments.spacing] * 3},
            "crop": [arguments.crop] * 3,
            "model": {"preset": "tiny", "patch": arguments.patch},
            "objectives": objectives,
            "batch": {"patients": 8, "volumes_per_patient": 2},
            "optimiser": {"learning_rate": arguments.rate},
            "rounds": 1,
            "local_steps": arguments.before + 1 if before else arguments.steps,
        }
    )
    return with_starts(job, {"box_localisation": NEVER}) if before else job


def objective_of(model: PretrainingModel) -> BoxLocalisation:
    """The objective in its own class."""
    objective = model.objective("box_localisation")
    if not isinstance(objective, BoxLocalisation):
        raise TypeError("box_localisation is registered with another class")
    return objective


def train(state: TrainState, job: JobConfig, patients: list[PreparedPatient], held_out: list[PreparedPatient]) -> float:
    """Seconds a step; prints the held-out IoU four times on the way."""
    loader = CropLoader(patients, job, SITE, CropPlan(job, state.model))
    started, passed = time.perf_counter(), 0.0
    overlaps: list[float] = []
    for step in range(job.total_steps):
        report = train_step(state, loader[step], job, SITE)
        overlaps.append(report.scalars["iou/box_localisation"])
        if (step + 1) % max(job.total_steps // 4, 1) == 0:
            passed += time.perf_counter() - started
            found = measure(state.model, held_out, job)
            shown = f"{fmean(overlaps[-50:]):.3f}, held out {float(iou(*found).mean()):.3f}"
            print(f"  step {step + 1}: IoU in training, last 50 steps, {shown}", flush=True)
            started = time.perf_counter()
    return passed / job.total_steps


def reconstructing(job: JobConfig, steps: int, patients: list[PreparedPatient]) -> Encoder:
    """An encoder after so many steps of reconstruction."""
    state = new_state(job, torch.device("cpu"))
    loader = CropLoader(patients, job, SITE, CropPlan(job, state.model))
    for step in range(steps):
        train_step(state, loader[step], job, SITE)
    return state.model.encoder


@torch.no_grad()
def measure(model: PretrainingModel, patients: list[PreparedPatient], job: JobConfig, repeats: int = 8) -> Found:
    """Every held-out patient at ``repeats`` places, all three modalities; only boxes from another modality."""
    model.eval()
    objective = objective_of(model)
    rng, generator = np.random.default_rng(0), torch.Generator().manual_seed(0)
    nothing = np.zeros((len(patients), 0), dtype=np.float32)
    predicted, true = [], []
    for _ in range(repeats):
        crops = draw_aligned(rng, patients, job.crop, len(MODALITIES), 1.0)
        batch = read_batch(crops, job, (nothing, nothing > 0))
        drawn = objective.draw(batch, model.encoder.shape.patch, generator)
        other = drawn.source != drawn.row
        found = objective.locate(model.encoder, batch, drawn, generator)
        predicted.append(found[other])
        true.append(as_fractions(drawn.low, drawn.extents, job.crop)[other])
    model.train()
    return Found(torch.cat(predicted), torch.cat(true))


def row(name: str, found: Found, job: JobConfig) -> str:
    """One line of the table."""
    overlap = iou(*found)
    edge = torch.tensor(job.crop) * torch.tensor(job.preparation.spacing_mm)
    distance = ((found.predicted - found.true)[:, :3].abs() * edge).mean()
    return f"| {name} | {float(overlap.mean()):.3f} | {float((overlap >= 0.5).float().mean()):.0%} | {distance:.1f} |"


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for cohort and cache")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--patients", type=int, default=120)
    parser.add_argument("--steps", type=int, default=1600)
    parser.add_argument("--crop", type=int, default=32)
    parser.add_argument("--patch", type=int, default=8)
    parser.add_argument("--spacing", type=float, default=4.0)
    parser.add_argument("--before", type=int, default=300)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--skip-frozen", action="store_true", help="leave out the control with an untrained encoder")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    job = job_of(arguments)
    source = arguments.out / f"cohort-{arguments.patients}"
    if not source.exists():
        write_phantom(source, patients=arguments.patients, modalities=MODALITIES, seed=1, site=SITE)
    cohort = read_cohort(source, job.modalities)
    prepared = prepare_cohort(cohort, job.preparation, arguments.out / "cache", jobs=2)
    training, held_out = split(prepared.patients, job)
    print(f"{len(training)} patients train, {len(held_out)} are held out; {arguments.steps} steps")
    state = new_state(job, torch.device("cpu"))
    if arguments.before:
        encoder = reconstructing(job_of(arguments, before=True), arguments.before, training)
        state.model.encoder.load_state_dict(encoder.state_dict())
    seconds = train(state, job, training, held_out)
    rows = [row("trained", measure(state.model, held_out, job), job)]
    if not arguments.skip_frozen:
        print("untrained encoder:")
        frozen = new_state(job, torch.device("cpu"))
        frozen.model.encoder.requires_grad_(False)
        train(frozen, job, training, held_out)
        rows.append(row("untrained encoder, trained head", measure(frozen.model, held_out, job), job))
    true = measure(state.model, held_out, job).true
    middle = torch.cat([torch.full_like(true[:, :3], 0.5), true[:, 3:]], dim=1)
    constant = torch.tensor(objective_of(state.model).constant).expand_as(true)
    rows += [
        row("own size in the middle", Found(middle, true), job),
        row("best constant box", Found(constant, true), job),
    ]
    print(f"{seconds:.3f} s a step, {len(true)} boxes")
    print("| boxes from another modality | IoU | IoU >= .5 | centre off by, mm |\n|---|---|---|---|")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
