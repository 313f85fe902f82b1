"""Do templates become the mean anatomy? On the phantom, whose anatomy is known.

    python benchmarks/objective_template.py --out template --seed 1

One phantom hospital. The encoder learns masked and template reconstruction, once as the job's default has it and once
without ``likeness``, where only its use for the reconstruction shapes a template. The table gives, for each modality,
the correlation of the template with the mean of the training volumes in the same coordinates, over the cells that are
body, beside the same correlation of held-out patients' own volumes (mean and range); and the template's mean squared
error there. ``--out`` gets ``templates.png``: template, mean and one patient.
"""

import argparse
import time
from pathlib import Path
from statistics import fmean

import torch

from parametrium.cohort.manifest import read_cohort
from parametrium.cohort.phantom import write_phantom
from parametrium.config import JobConfig, parse_job
from parametrium.data.cache import PreparedPatient
from parametrium.data.loader import CropLoader
from parametrium.data.prepare import prepare_cohort
from parametrium.evaluation.template import MeanAnatomy, agreement, in_box, mean_anatomy, mean_cell_mm
from parametrium.model.template import Templates
from parametrium.objectives.schedule import CropPlan
from parametrium.report.planes import Item, Panel, draw_items
from parametrium.site.trainer import split
from parametrium.training.step import new_state, train_step

SITE = "north"
MODALITIES = ("CT", "T1", "T2", "PET")
KIND = "template_reconstruction"


def job_with(seed: int, steps: int, likeness: float, target: str) -> JobConfig:
    """The demonstration's sizes: tiny preset, 4 mm, crops of 32 voxels."""
    return parse_job(
        {
            "name": "template",
            "seed": seed,
            "modalities": list(MODALITIES),
            "preparation": {"spacing_mm": [4.0, 4.0, 4.0]},
            "crop": [32, 32, 32],
            "objectives": [
                {"kind": "masked_reconstruction", "target": target},
                {"kind": KIND, "likeness": likeness, "target": target},
            ],
            "batch": {"patients": 8, "volumes_per_patient": 2},
            "optimiser": {"learning_rate": 0.002},
            "rounds": 1,
            "local_steps": steps,
        }
    )


def learn(job: JobConfig, patients: list[PreparedPatient]) -> tuple[Templates, float, float]:
    """Templates after the job's steps, the mean of the last template reconstruction losses, seconds a step."""
    state = new_state(job, torch.device("cpu"))
    loader = CropLoader(patients, job, SITE, CropPlan(job, state.model))
    losses = []
    started = time.perf_counter()
    for step in range(job.total_steps):
        report = train_step(state, loader[step], job, SITE)
        if KIND in report.losses:
            own = job.objectives[1].likeness * report.scalars[f"template_error/{KIND}"]  # type: ignore[union-attr]
            losses.append(report.losses[KIND] - own)
    templates = state.model.encoder.templates
    if templates is None:
        raise TypeError("the job fills from no template")
    seconds = (time.perf_counter() - started) / job.total_steps
    return templates, fmean(losses[-20:]), seconds


def rows_of(templates: Templates, means: dict[str, MeanAnatomy], held_out: list[PreparedPatient], name: str) -> None:
    """Prints one row a modality."""
    for modality, mean in means.items():
        template = templates.template(modality).volume().detach()
        own = [
            agreement(in_box(volume, tuple(mean.image.shape))[0], mean)
            for patient in held_out
            for volume in patient.volumes
            if volume.modality == modality
        ]
        error = float((template - mean.image)[mean.body].square().mean())
        spread = float(mean.image[mean.body].var())
        print(
            f"| {name} | {modality} | {mean.patients} | {agreement(template, mean):.3f} | "
            f"{fmean(own):.3f} ({min(own):.3f} to {max(own):.3f}) | {error:.3f} | {spread:.3f} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for cohort, cache and picture")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--patients", type=int, default=48)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--target", choices=("raw", "patch_normalised"), default="raw")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cohort_folder = arguments.out / f"cohort_{arguments.seed}"
    if not cohort_folder.exists():
        write_phantom(cohort_folder, patients=arguments.patients, modalities=MODALITIES, seed=arguments.seed, site=SITE)
    jobs = {
        name: job_with(arguments.seed, arguments.steps, likeness, arguments.target)
        for name, likeness in (("default", 1.0), ("without likeness", 0.0))
    }
    job = jobs["default"]
    cohort = read_cohort(cohort_folder, job.modalities)
    patients = prepare_cohort(cohort, job.preparation, arguments.out / "cache", jobs=1).patients
    training, held_out = split(patients, job)
    grid = job.model.template
    means = {modality: mean_anatomy(training, modality, grid) for modality in MODALITIES}
    print(
        f"seed {arguments.seed}, {len(training)} training patients, {arguments.steps} steps, target {arguments.target}"
    )
    print("| variant | modality | patients | template | held-out patients | error | variance of the mean |")
    print("|---|---|---|---|---|---|---|")
    learned = {}
    for name, job in jobs.items():
        learned[name], loss, seconds = learn(job, training)
        rows_of(learned[name], means, held_out, name)
        print(f"{name}: reconstruction loss {loss:.4f}, {seconds:.2f} s a step", flush=True)
    items = []
    for modality, mean in means.items():
        low, high = (float(v) for v in torch.quantile(mean.image[mean.body], torch.tensor([0.01, 0.99])))
        volumes = [v for patient in held_out for v in patient.volumes if v.modality == modality]
        shown = {name: templates.template(modality).volume().detach() for name, templates in learned.items()}
        shown |= {f"mean of {mean.patients}": mean.image, "one patient": in_box(volumes[0], grid)[0]}
        panels = tuple(Panel(title, image.numpy(), (low, high)) for title, image in shown.items())
        items.append(Item(modality, panels))
    cell = mean_cell_mm(training, MODALITIES[0], grid, job.preparation.spacing_mm)
    draw_items(arguments.out / "templates.png", items, cell, 2)


if __name__ == "__main__":
    main()
