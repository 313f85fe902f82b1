"""What each objective adds on real scans: six sets of objectives with equal steps, and the controls that may beat them.

    python benchmarks/ablation.py --out ablation                                    # three seeds, hours
    python benchmarks/ablation.py --out ablation --steps 12 --fine-tuning 6 --seeds 0   # only to see that it works

The three public cohorts of ``six_sites.py``, their test patients held out. An arm is one set of objectives, trained on
all sites' patients in one process (a step's patients are of one site, sites in proportion to their patients), every arm
for as many steps. Measured on the test patients: reconstruction by modality; retrieval of the same patient in another
modality and a probe of the glioma's grade, beside untrained network, body mask, coarse voxels and chance; the glioma on
FLAIR by fine-tuning with 20 % and 100 % of the labels, beside the same network from scratch and a small CNN. Grade is
not among the variables whose similarity softens the contrast. Every result is written to OUT/results-SEED.json as it
falls, and what is there is not computed again.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from six_sites import CHECKOUT, DATA, JOB, SITES, import_site, write_site

from parametrium.cohort.manifest import read_cohort
from parametrium.config import JobConfig, load_site, parse_job
from parametrium.data.cache import PreparedPatient
from parametrium.data.loader import CropLoader
from parametrium.data.prepare import prepare_cohort
from parametrium.evaluation.features import (
    Extractor,
    body_mask_features,
    encoder_features,
    patient_features,
    standardised,
    voxel_features,
)
from parametrium.evaluation.probe import probe
from parametrium.evaluation.reconstruction import modality_means, reconstruction_errors
from parametrium.evaluation.retrieval import retrieval
from parametrium.evaluation.segmentation import (
    FineTuning,
    dice_scores,
    fine_tune,
    labelled_volumes,
    segmenter_of,
    small_cnn,
)
from parametrium.objectives.registry import PretrainingModel, build_model
from parametrium.objectives.schedule import CropPlan
from parametrium.site.trainer import split
from parametrium.training.checkpoint import load_checkpoint, save_checkpoint
from parametrium.training.round import tensors_of
from parametrium.training.step import new_state, train_step

MASKED = {"kind": "masked_reconstruction", "mask_ratio": 0.75}
CROSS = {"kind": "cross_modal_reconstruction", "mask_ratio": 0.97}  # the positive control's (transfer.yaml)
TEMPLATES = {"kind": "template_reconstruction", "mask_ratio": 0.75}
CONTRAST = {
    "kind": "soft_contrastive",
    "start": 0.3,
    "patients": 8,
    "crops": 2,
    "mask_ratio": 0.5,
    "temperature": 0.5,
    "softness": 0.0,
}
SOFT = {**CONTRAST, "softness": 0.3}
ARMS: dict[str, list[dict[str, Any]]] = {
    "masked": [MASKED],
    "+ cross-modal": [MASKED, CROSS],
    "+ templates": [MASKED, TEMPLATES],
    "+ contrast, hard": [MASKED, CONTRAST],
    "+ contrast, soft": [MASKED, SOFT],
    "all": [MASKED, CROSS, TEMPLATES, SOFT],
}
CONTROLS = ("untrained", "body mask", "voxels")
PROBED = "grade"
FRACTIONS = (0.2, 1.0)
REGION = "glioma"
MODALITY = "FLAIR"
TUMOUR = "1=FLAIR abnormality (tumour)"

Site = str
Patients = dict[Site, tuple[list[PreparedPatient], list[PreparedPatient]]]
"""A site's training and test patients."""
Results = dict[str, dict[str, float]]
"""``<seed>/<arm>`` to measure to number."""


def job_of(arm: str, seed: int, steps: int) -> JobConfig:
    """The six sites' job with the objectives of an arm; the probed variable does not soften the contrast."""
    clinical = [variable for variable in JOB["clinical"] if variable["name"] != PROBED]
    changed = {"objectives": ARMS[arm], "rounds": 1, "local_steps": steps, "seed": seed, "clinical": clinical}
    return parse_job({**JOB, **changed, "evaluation": {"crops": 8}})


def cohorts(out: Path, data: Path) -> Patients:
    """All sites, imported and prepared once."""
    job = parse_job(JOB)
    found: Patients = {}
    for site in SITES:
        if not (out / "cohorts" / site.name / "cohort.csv").exists():
            import_site(site, data, out)
        config = load_site(write_site(site, out))
        cohort = read_cohort(Path(config.cohort), job.modalities)
        found[site.name] = split(prepare_cohort(cohort, job.preparation, Path(config.cache), jobs=2).patients, job)
    return found


def pretrained(folder: Path, job: JobConfig, patients: Patients) -> tuple[PretrainingModel, dict[str, float]]:
    """The arm's model, trained here or by an earlier run; losses, chance levels and seconds of its last tenth."""
    state = new_state(job, torch.device("cpu"))
    if not folder.exists():
        sites = {name: training for name, (training, _) in patients.items() if training}
        loaders = {name: CropLoader(group, job, name, CropPlan(job, state.model)) for name, group in sites.items()}
        share = np.array([len(group) for group in sites.values()]) / sum(map(len, sites.values()))
        order = np.random.default_rng(job.seed).choice(list(sites), size=job.total_steps, p=share)
        started, last = time.monotonic(), []
        for step, name in enumerate(order):
            report = train_step(state, loaders[name][step], job, name)
            if step >= 0.9 * job.total_steps:
                last.append(report.losses | {k: v for k, v in report.scalars.items() if k.startswith("chance/")})
        names = sorted({name for report in last for name in report})
        ends = {f"end/{name}": statistics.fmean(r[name] for r in last if name in r) for name in names}
        ends["seconds"] = time.monotonic() - started
        save_checkpoint(folder, tensors_of(state), {"steps": job.total_steps, "ends": ends})
    tensors, about = load_checkpoint(folder)
    state.model.load_state_dict(tensors)
    return state.model.eval(), dict(about["ends"])


def reconstructed(model: PretrainingModel, job: JobConfig, patients: Patients) -> dict[str, float]:
    """Held-out error of masked patches by modality, mean over the sites that hold it, and of the two trivial ones."""
    found: dict[str, list[float]] = {}
    for name, (training, test) in patients.items():
        if not test:
            continue
        errors = reconstruction_errors({"model": model}, test, modality_means(training, job, name), job, name)
        for measure, error in errors.items():
            if measure.startswith("evaluation/reconstruction/"):
                found.setdefault(measure.removeprefix("evaluation/"), []).append(error)
    return {measure: statistics.fmean(errors) for measure, errors in found.items()}


def compared(extract: Extractor, job: JobConfig, patients: Patients) -> dict[str, float]:
    """Retrieval by cohort, and the probe of the grade, of one kind of features."""
    scores: dict[str, float] = {}
    for cohort in ("glioma", "sarcoma"):
        own = [patients[site.name] for site in SITES if site.cohort == cohort]
        training, test = ([p for groups in own for p in groups[part]] for part in (0, 1))
        seen = patient_features(training, {"it": extract}, job, cohort, "features")["it"]
        unseen = patient_features(test, {"it": extract}, job, cohort, "features-held-out")["it"]
        reference, features = standardised(seen, seen), standardised(unseen, seen)
        pairs = retrieval(features, job.modalities).values()
        for measure in ("r1", "chance_r1"):
            scores[f"retrieval/{cohort}/{measure}"] = statistics.fmean(pair[measure] for pair in pairs)
        if cohort == REGION:
            grade = next(v for v in parse_job(JOB).clinical if v.name == PROBED)
            found = probe(grade, (training, reference), (test, features))
            scores |= {f"probe/{PROBED}/{name}": score for name, score in found.items()}
    return scores


def segmented(
    name: str, model: PretrainingModel | None, job: JobConfig, patients: Patients, how: FineTuning
) -> dict[str, float]:
    """Mean Dice of the glioma on the test patients by share of the labels; subsets are nested, the same for all."""
    own = [patients[site.name] for site in SITES if site.cohort == REGION]
    training, test = ([p for groups in own for p in groups[part]] for part in (0, 1))
    spacing = job.preparation.spacing_mm
    labelled, unseen = (labelled_volumes(group, MODALITY, (TUMOUR,), spacing) for group in (training, test))
    order = np.random.default_rng(job.seed).permutation(len(labelled))
    scores = {}
    for fraction in FRACTIONS:
        torch.manual_seed(job.seed)  # decoders begin alike
        network = small_cnn(1) if name == "cnn" else segmenter_of(job, MODALITY, 1, model)
        fine_tune(network, [labelled[i] for i in order[: round(fraction * len(order))]], how, job.seed)
        scores[f"dice/{fraction:.0%}"] = statistics.fmean(dice_scores(network, unseen, (TUMOUR,), how)[TUMOUR])
    return scores


class Book:
    """Results on disk, written as they fall."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.results: Results = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}

    def add(self, seed: int, arm: str, kind: str, make: Callable[[], dict[str, float]]) -> None:
        """Computes an arm's measures of a kind (the first word of their names) where they are missing."""
        key = f"{seed}/{arm}"
        entry = self.results.setdefault(key, {})
        if not any(measure.startswith(f"{kind}/") for measure in entry):
            started, found = time.monotonic(), make()
            entry |= found
            self.path.write_text(json.dumps(self.results, indent=1), encoding="utf-8")
            print(f"{key}, {time.monotonic() - started:.0f} s: {found}", flush=True)


def one_seed(book: Book, arguments: argparse.Namespace, patients: Patients, seed: int) -> None:
    """Controls and arms of a seed."""
    plain = job_of("masked", seed, arguments.steps)
    fresh = build_model(plain).eval()
    features = {"untrained": encoder_features(fresh, plain), "body mask": body_mask_features, "voxels": voxel_features}
    # So few steps are too few to move a pretrained encoder at the rate that keeps what it knows: all have the same.
    how = FineTuning(
        crop=plain.crop,
        steps=arguments.fine_tuning,
        batch=2,
        kept_rate=FineTuning.matrix_rate,
        precision=arguments.precision,
    )
    for name in ("cnn", "scratch"):
        book.add(seed, name, "dice", lambda name=name: segmented(name, None, plain, patients, how))
    for name, extract in features.items():
        book.add(seed, name, "retrieval", lambda extract=extract: compared(extract, plain, patients))
    for arm in arguments.arms:
        job = job_of(arm, seed, arguments.steps)
        model, ends = pretrained(arguments.out / f"seed-{seed}" / arm.replace(" ", "_"), job, patients)
        book.add(seed, arm, "end", lambda ends=ends: ends)
        book.add(seed, arm, "reconstruction", lambda m=model, j=job: reconstructed(m, j, patients))
        book.add(seed, arm, "retrieval", lambda m=model, j=job: compared(encoder_features(m, j), j, patients))
        book.add(seed, arm, "dice", lambda arm=arm, m=model, j=job: segmented(arm, m, j, patients, how))


def tables(results: Results, arms: Sequence[str], seeds: Sequence[int]) -> str:
    """Means over the seeds that are there, with their range: a table for each kind of measure, an arm in each row."""
    rows: dict[str, list[Mapping[str, float]]] = {
        arm: [results[f"{seed}/{arm}"] for seed in seeds if f"{seed}/{arm}" in results] for arm in arms
    }
    measures = sorted({m for found in rows.values() for scores in found for m in scores})
    lines = []
    for kind in dict.fromkeys(measure.split("/")[0] for measure in measures):
        own = [measure for measure in measures if measure.split("/")[0] == kind]
        names = [measure.partition("/")[2] or measure for measure in own]
        lines.append(f"\n| {kind} | {' | '.join(names)} |\n|---|{'---|' * len(own)}")
        for arm, found in rows.items():
            cells = [cell([scores[measure] for scores in found if measure in scores]) for measure in own]
            if any(cells):
                lines.append(f"| {arm} | {' | '.join(cells)} |")
    return "\n".join(lines)


def cell(values: Sequence[float]) -> str:
    """Mean and range; empty where there is nothing."""
    if not values:
        return ""
    spread = f" ({min(values):.3f} to {max(values):.3f})" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.3f}{spread}"


def main() -> None:
    """Runs what is missing, prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=DATA, help="folder with the public cohorts")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--steps", type=int, default=800, help="of pretraining, the same for every arm")
    parser.add_argument("--fine-tuning", type=int, default=300, help="steps")
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="bf16", help="of fine-tuning")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    if not arguments.data.is_dir():
        raise SystemExit(f"no folder {arguments.data}: the public cohorts are no part of {CHECKOUT.name}; see --data")
    torch.set_num_threads(arguments.threads)
    arguments.out.mkdir(parents=True, exist_ok=True)
    patients = cohorts(arguments.out, arguments.data)
    print({name: (len(training), len(test)) for name, (training, test) in patients.items()}, flush=True)
    for seed in arguments.seeds:
        book = Book(arguments.out / f"results-{seed}.json")
        one_seed(book, arguments, patients, seed)
    results: Results = {}
    for seed in arguments.seeds:
        results |= Book(arguments.out / f"results-{seed}.json").results
    print(tables(results, ["cnn", "scratch", *CONTROLS, *arguments.arms], arguments.seeds))


if __name__ == "__main__":
    main()
