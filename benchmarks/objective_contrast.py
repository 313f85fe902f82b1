"""Do soft targets order patients by clinical similarity? Each form of the contrast beside hard InfoNCE, on the phantom.

    python benchmarks/objective_contrast.py --out contrast                     # three seeds, hours of one CPU
    python benchmarks/objective_contrast.py --out contrast --short --seeds 1   # only to see that it works, minutes

One phantom hospital with CT, T1 and T2; a quarter of its patients is held out. For each seed the encoder is trained by
masked and cross-modal reconstruction, and from there once with each variant alone. Over the pairs of held-out patients
of whom at least half the clinical variables are known, the table gives the rank correlation (Spearman) of the distance
of their embeddings with their clinical distance, behind the objective's head and in the encoder; and retrieval of the
same patient in another modality (means over ordered pairs of modalities). Controls: reconstruction only, the untrained
network, coarse voxels, the body's outline, chance. The clinical rows of held-out patients are used to measure only.
"""

import argparse
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

import numpy as np
import torch
import yaml
from scipy.stats import spearmanr

from parametrium.clinical.schema import encode
from parametrium.clinical.similarity import gower
from parametrium.cohort.manifest import read_cohort
from parametrium.cohort.phantom import write_phantom
from parametrium.config import JobConfig, parse_job
from parametrium.data.cache import PreparedPatient
from parametrium.data.loader import CropLoader
from parametrium.data.prepare import prepare_cohort
from parametrium.evaluation.features import (
    Extractor,
    Features,
    body_mask_features,
    compared_features,
    encoder_features,
    patient_features,
    standardised,
    voxel_features,
)
from parametrium.evaluation.retrieval import retrieval
from parametrium.objectives.registry import PretrainingModel
from parametrium.objectives.schedule import CropPlan
from parametrium.site.trainer import split
from parametrium.training.step import new_state, train_step

JOB = Path(__file__).parent.parent / "jobs" / "pretrain.yaml"
SITE = "north"
HARD = "InfoNCE (hard)"
VIEW = {"kind": "soft_contrastive", "mask_ratio": 0.0, "temperature": 0.5}
VARIANTS: dict[str, dict[str, Any]] = {
    HARD: {**VIEW, "form": "softmax", "softness": 0.0},
    "softmax, alpha .3": {**VIEW, "form": "softmax", "softness": 0.3},
    "softmax, alpha .8": {**VIEW, "form": "softmax", "softness": 0.8},
    "sigmoid (hard)": {**VIEW, "form": "sigmoid", "softness": 0.0},
    "sigmoid, alpha .3": {**VIEW, "form": "sigmoid", "softness": 0.3},
    "weighted negatives, alpha 1": {**VIEW, "form": "weighted_negatives", "softness": 1.0},
    "global and local views": {"kind": "global_local"},
}


VISIBLE = ("age", "tumour_volume", "figo_stage")
"""The clinical variables that a picture of the phantom can show: what is not to be seen, as HPV, cannot be ordered."""


class Size(NamedTuple):
    """How much is drawn, trained and looked at.

    Attributes:
        patients: of the cohort.
        before: steps of reconstruction.
        steps: of each variant.
        batch: patients in a step.
        crops: that make a view of a patient in training.
        seen: crops of a volume in evaluation.
    """

    patients: int
    before: int
    steps: int
    batch: int
    crops: int
    seen: int


FULL, SHORT = Size(240, 400, 400, 16, 4, 12), Size(40, 30, 40, 12, 2, 4)


class Cohort(NamedTuple):
    """Patients of the hospital, and the clinical distance of the held-out ones with the pairs that count, [P, P]."""

    training: list[PreparedPatient]
    held_out: list[PreparedPatient]
    distance: np.ndarray
    counts: np.ndarray


def job_with(seed: int, steps: int, objectives: list[dict[str, Any]], size: Size) -> JobConfig:
    """The demo's job with other objectives."""
    data = yaml.safe_load(JOB.read_text(encoding="utf-8"))
    batch = {"patients": size.batch, "volumes_per_patient": 2}
    evaluation = {"crops": size.seen, "patients": 1000, "probe": None}
    objectives = [{**o, "crops": size.crops} if o["kind"] == "soft_contrastive" else o for o in objectives]
    clinical = [{**variable, "weight": 1.0} for variable in data["clinical"] if variable["name"] in VISIBLE]
    changed = {"objectives": objectives, "batch": batch, "evaluation": evaluation, "clinical": clinical}
    return parse_job({**data, **changed, "seed": seed, "rounds": 1, "local_steps": steps})


def prepared(out: Path, size: Size) -> Cohort:
    """The phantom hospital, drawn once for all seeds."""
    folder = out / f"cohort_{size.patients}"
    if not folder.exists():
        write_phantom(folder, patients=size.patients, modalities=("CT", "T1", "T2"), seed=1, site=SITE)
    job = job_with(0, 1, [VARIANTS[HARD]], size)
    cohort = read_cohort(folder, job.modalities)
    training, held_out = split(prepare_cohort(cohort, job.preparation, out / "cache", jobs=2).patients, job)
    rows = encode([patient.clinical for patient in held_out], job.clinical)
    alike = gower(torch.from_numpy(rows.values), torch.from_numpy(rows.observed), job.clinical)
    counts = np.triu(alike.coverage.numpy() >= 0.5, 1)
    return Cohort(training, held_out, 1 - alike.gower.numpy(), counts)


def trained(
    job: JobConfig, patients: Sequence[PreparedPatient], start: PretrainingModel | None
) -> tuple[PretrainingModel, float, float]:
    """The model after the job's steps, and loss and chance level of its last objective over the last tenth of them."""
    state = new_state(job, torch.device("cpu"))
    if start is not None:
        state.model.encoder.load_state_dict(start.encoder.state_dict())
    loader = CropLoader(patients, job, SITE, CropPlan(job, state.model))
    kind = job.objectives[-1].kind
    reports = [train_step(state, loader[step], job, SITE) for step in range(job.total_steps)]
    last = [report for report in reports[-max(len(reports) // 10, 1) :] if kind in report.losses]
    return (
        state.model.eval(),
        fmean(report.losses[kind] for report in last) if last else 0.0,
        fmean(report.scalars.get(f"chance/{kind}", 0.0) for report in last) if last else 0.0,
    )


def rank_correlation(features: Features, cohort: Cohort) -> float:
    """Of 1 - cosine of two patients, each the mean over her modalities, with their clinical distance."""
    vectors = []
    for patient in range(len(cohort.held_out)):
        own = [vector / max(np.linalg.norm(vector), 1e-12) for (p, _), vector in features.items() if p == patient]
        vectors.append(np.mean(own, axis=0))
    unit = np.stack([vector / max(np.linalg.norm(vector), 1e-12) for vector in vectors])
    distance = 1 - unit @ unit.T
    return float(spearmanr(distance[cohort.counts], cohort.distance[cohort.counts]).statistic)


def measured(
    name: str, extract: Extractor, cohort: Cohort, job: JobConfig, model: PretrainingModel | None
) -> list[float]:
    """Rank correlation behind the head and without it, R@1 and R@5 where patients are compared."""
    seen = patient_features(cohort.training, {name: extract}, job, SITE, "features")[name]
    unseen = patient_features(cohort.held_out, {name: extract}, job, SITE, "features-held-out")[name]
    features = standardised(unseen, seen)
    compared = features if model is None else compared_features(model, features)
    found = retrieval(compared, job.modalities).values()
    recalls = [fmean(pair[measure] for pair in found) for measure in ("r1", "r5")]
    return [rank_correlation(compared, cohort), rank_correlation(features, cohort), *recalls]


def one_seed(seed: int, size: Size, cohort: Cohort, variants: Sequence[str]) -> dict[str, list[float]]:
    """By variant or control: loss, chance level, and what ``measured`` gives; a row is printed as it falls."""
    rows: dict[str, list[float]] = {}

    def add(name: str, loss: float, chance: float, values: list[float]) -> None:
        rows[name] = [loss, chance, *values]
        print(row(str(seed), name, rows[name]), flush=True)

    reconstruction = [{"kind": "masked_reconstruction"}, {"kind": "cross_modal_reconstruction"}]
    before = job_with(seed, size.before, reconstruction, size)
    fresh = new_state(before, torch.device("cpu")).model.eval()
    add("untrained", 0, 0, measured("untrained", encoder_features(fresh, before), cohort, before, None))
    add("voxels", 0, 0, measured("voxels", voxel_features, cohort, before, None))
    add("body mask", 0, 0, measured("body mask", body_mask_features, cohort, before, None))
    start, loss, _ = trained(before, cohort.training, None)
    add("reconstruction only", loss, 0, measured("before", encoder_features(start, before), cohort, before, None))
    for name in variants:
        job = job_with(seed, size.steps, [VARIANTS[name]], size)
        model, loss, chance = trained(job, cohort.training, start)
        add(name, loss, chance, measured(name, encoder_features(model, job), cohort, job, model))
    return rows


def row(*cells: Any) -> str:
    """A line of the table; numbers with three digits, nothing where there is none."""
    *words, values = cells
    return f"| {' | '.join(words)} | {' | '.join(f'{v:.3f}' if v else '' for v in values)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for cohort and cache")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--short", action="store_true", help="only to see that it works")
    for name in Size._fields:
        parser.add_argument(f"--{name}", type=int, help=f"instead of {getattr(FULL, name)}, or {getattr(SHORT, name)}")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), help="beside hard InfoNCE")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    given = {name: value for name in Size._fields if (value := getattr(arguments, name)) is not None}
    size = (SHORT if arguments.short else FULL)._replace(**given)
    variants = [name for name in VARIANTS if name == HARD or name in arguments.variants]
    cohort = prepared(arguments.out, size)
    print(f"{size.patients} patients, {len(cohort.held_out)} held out, {int(cohort.counts.sum())} pairs that count;")
    print(
        f"{size.before} steps of reconstruction, {size.steps} of each variant, {size.batch} patients each.\n",
        flush=True,
    )
    header = "loss | chance | rho, head | rho, encoder | R@1 | R@5 |"
    print(f"| seed | variant | {header}\n|{'---|' * 8}")
    rows: defaultdict[str, list[list[float]]] = defaultdict(list)
    for seed in arguments.seeds:
        for name, values in one_seed(seed, size, cohort, variants).items():
            rows[name].append(values)
    candidates = len(cohort.held_out)
    print(f"\nChance of retrieval: R@1 {1 / candidates:.3f}, R@5 {5 / candidates:.3f}. rho of chance: 0.\n")
    print(f"| mean over {len(arguments.seeds)} seeds | {header} rho, head - hard |\n|{'---|' * 8}")
    for name, values in rows.items():
        means = [fmean(column) for column in zip(*values, strict=True)]
        apart = [own[2] - hard[2] for own, hard in zip(values, rows[HARD], strict=True)]
        spread = f" ± {stdev(apart):.3f}" if len(apart) > 1 else ""
        print(row(name, means) + f" {fmean(apart):+.3f}{spread} |")


if __name__ == "__main__":
    main()
