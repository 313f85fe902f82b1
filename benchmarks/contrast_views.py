"""What a view of a patient must be for the contrast to learn: how much is hidden, how many crops, how many patients.

    python benchmarks/contrast_views.py --out views

One phantom hospital (120 patients, CT, T1, T2; 36 of them train, 30 are held out). The encoder is first trained by
masked and cross-modal reconstruction for 200 steps; from there each variant trains the contrast alone for 100 steps.
The table gives the loss of the last 20 steps beside its chance level, retrieval of held-out patients (means over the
ordered pairs of modalities) and the time of a step, all of one seed: differences of .05 are noise.
"""

import argparse
import time
from pathlib import Path
from statistics import fmean

import torch
import yaml
from starts import NEVER, with_starts

from parametrium.cohort.manifest import read_cohort
from parametrium.cohort.phantom import write_phantom
from parametrium.config import JobConfig, parse_job
from parametrium.data.cache import PreparedPatient
from parametrium.data.loader import CropLoader
from parametrium.data.prepare import prepare_cohort
from parametrium.evaluation.measure import measure_features
from parametrium.objectives.schedule import CropPlan
from parametrium.site.trainer import split
from parametrium.training.step import TrainState, new_state, train_step

JOB = Path(__file__).parent.parent / "jobs" / "pretrain.yaml"
SITE = "north"
BEFORE, STEPS, TRAINING = 200, 100, 36
VARIANTS = (
    {"mask_ratio": 0.75, "crops": 4, "patients": 16},
    {"mask_ratio": 0.5, "crops": 4, "patients": 16},
    {"mask_ratio": 0.0, "crops": 4, "patients": 16},
    {"mask_ratio": 0.0, "crops": 2, "patients": 16},
    {"mask_ratio": 0.0, "crops": 1, "patients": 16},
    {"mask_ratio": 0.0, "crops": 3, "patients": 12},
    {"mask_ratio": 0.0, "crops": 4, "patients": 8},
)


def job_with(seed: int, steps: int, **contrast: object) -> JobConfig:
    """The demo's job: reconstruction first, and the contrast alone when its settings are given."""
    data = yaml.safe_load(JOB.read_text(encoding="utf-8"))
    for objective in data["objectives"]:
        objective["start"] = 0.0
        if objective["kind"] == "soft_contrastive":
            objective.update(contrast)
    job = parse_job({**data, "seed": seed, "rounds": 1, "local_steps": steps})
    others = (o.kind for o in job.objectives if (o.kind == "soft_contrastive") != bool(contrast))
    return with_starts(job, dict.fromkeys(others, NEVER))


def train(state: TrainState, job: JobConfig, patients: list[PreparedPatient], steps: int) -> tuple[float, float, float]:
    """Last loss of the contrast and its chance level (0 where it was not trained), and seconds a step."""
    loader = CropLoader(patients, job, SITE, CropPlan(job, state.model))
    reports = []
    started = time.perf_counter()
    for step in range(steps):
        reports.append(train_step(state, loader[step], job, SITE))
    seconds = (time.perf_counter() - started) / steps
    last = reports[-20:]
    loss = fmean(r.losses.get("soft_contrastive", 0.0) for r in last)
    return loss, fmean(r.scalars.get("chance/soft_contrastive", 0.0) for r in last), seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for cohort and cache")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if not (arguments.out / "cohort").exists():
        write_phantom(arguments.out / "cohort", patients=120, modalities=("CT", "T1", "T2"), seed=1, site=SITE)
    before = job_with(arguments.seed, BEFORE + 1)
    cohort = read_cohort(arguments.out / "cohort", before.modalities)
    patients = prepare_cohort(cohort, before.preparation, arguments.out / "cache", jobs=2).patients
    training, held_out = split(patients, before)
    training = training[:TRAINING]
    start = new_state(before, torch.device("cpu"))
    train(start, before, training, BEFORE)
    print("| hidden | crops a view | patients | loss | chance | R@1 | R@5 | untrained R@5 | chance R@5 | s/step |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for variant in VARIANTS:
        job = job_with(arguments.seed, STEPS, **variant)
        state = new_state(job, torch.device("cpu"))
        state.model.load_state_dict(start.model.state_dict())
        loss, chance, seconds = train(state, job, training, STEPS)
        scalars = measure_features(state.model, training, held_out, job, SITE)

        def mean(recall: str, features: str, scalars: dict[str, float] = scalars) -> float:
            return fmean(v for k, v in scalars.items() if k.endswith(f"/{recall}/{features}"))

        recalls = [mean("r1", "model"), mean("r5", "model"), mean("r5", "untrained"), mean("r5", "chance")]
        shown = " | ".join(f"{value:.3f}" for value in (loss, chance, *recalls, seconds))
        print(f"| {variant['mask_ratio']:.0%} | {variant['crops']} | {variant['patients']} | {shown} |", flush=True)


if __name__ == "__main__":
    main()
