"""Does the representation transfer? A positive control on the phantom, with its controls beside it.

    python benchmarks/transfer.py --patients 300 --seeds 0 1 2 --out transfer

Draws a phantom cohort a seed, pretrains on all but the test patients without labels, then, with few labelled patients:
segments organs and tumour by fine-tuning (pretrained, the same network from scratch, a small CNN; the same crops, steps
and patients for all; and the CNN once more with ten times the labels: how much labels can add at all); finds the same
structures from frozen tokens by one ridge regression (pretrained, untrained, the patches' own voxels); and probes the
tumour's clinical variables on frozen features (pretrained, untrained, coarse voxels, body mask). Prints means over
seeds with their range, and the paired differences to the rivals with a t interval of 95 %. Cohorts and models are
written below ``--out``; what is there is not made again.
"""

import argparse
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from scipy import stats
from sklearn.metrics import average_precision_score

from parametrium.cohort.manifest import read_cohort
from parametrium.cohort.phantom import write_phantom
from parametrium.config import JobConfig, load_job
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
from parametrium.evaluation.segmentation import (
    FineTuning,
    Labelled,
    dice_scores,
    fine_tune,
    labelled_crop,
    labelled_volumes,
    segmenter_of,
    small_cnn,
)
from parametrium.model.encoder import Encoder
from parametrium.model.patch_embed import patchify
from parametrium.objectives.registry import PretrainingModel, build_model
from parametrium.objectives.schedule import CropPlan
from parametrium.training.checkpoint import load_checkpoint, save_checkpoint
from parametrium.training.round import tensors_of
from parametrium.training.step import new_state, train_step

STRUCTURES = ("bladder", "rectum", "uterus", "tumour")
MORE_LABELS = "cnn, ten times the labels"
VARIABLES = ("tumour_volume", "figo_stage")

Scores = dict[str, dict[str, float]]
"""Arm to measure to score."""


def cohort_of(folder: Path, job: JobConfig, patients: int, seed: int, jobs: int) -> tuple[PreparedPatient, ...]:
    """The prepared phantom of a seed."""
    if not (folder / "cohort" / "cohort.csv").exists():
        write_phantom(folder / "cohort", patients=patients, modalities=job.modalities, seed=seed, jobs=jobs)
    cohort = read_cohort(folder / "cohort", job.modalities)
    return prepare_cohort(cohort, job.preparation, folder / "cache", jobs=jobs).patients


def pretrained(folder: Path, job: JobConfig, patients: Sequence[PreparedPatient]) -> PretrainingModel:
    """The job's model after all of its steps on these patients, trained here or by an earlier run."""
    state = new_state(job, torch.device("cpu"))
    if not (folder / "model").exists():
        loader, started = CropLoader(patients, job, "phantom", CropPlan(job, state.model)), time.monotonic()
        for step, batches in enumerate(loader.steps(0, job.total_steps)):
            report = train_step(state, batches, job, "phantom")
            if step % 100 == 0:
                losses = ", ".join(f"{kind} {loss:.3f}" for kind, loss in report.losses.items())
                print(f"  step {step} of {job.total_steps}, {time.monotonic() - started:.0f} s: {losses}", flush=True)
        save_checkpoint(folder / "model", tensors_of(state), {"steps": job.total_steps})
    tensors, _ = load_checkpoint(folder / "model")
    state.model.load_state_dict(tensors)
    return state.model.eval()


def segmentation(
    model: PretrainingModel,
    job: JobConfig,
    training: Sequence[PreparedPatient],
    test: Sequence[PreparedPatient],
    arguments: argparse.Namespace,
    how: FineTuning,
) -> Scores:
    """Mean Dice of each structure on the test patients, for each arm."""
    spacing, seed = job.preparation.spacing_mm, job.seed
    many = training[: 10 * arguments.labelled]
    more, held_out = (labelled_volumes(group, arguments.modality, STRUCTURES, spacing) for group in (many, test))
    train = more[: arguments.labelled]
    results: Scores = {}
    for arm in ("pretrained", "scratch", "cnn", MORE_LABELS):
        torch.manual_seed(seed)  # the decoder begins alike
        if arm in ("cnn", MORE_LABELS):
            network: torch.nn.Module = small_cnn(len(STRUCTURES))
        else:
            start = model if arm == "pretrained" else None
            network = segmenter_of(job, arguments.modality, len(STRUCTURES), start)
        fine_tune(network, more if arm == MORE_LABELS else train, how, seed)
        dice = dice_scores(network, held_out, STRUCTURES, how.crop)
        results[arm] = {name: statistics.mean(scores) for name, scores in dice.items()}
        results[arm]["mean"] = statistics.mean(results[arm].values())
    return results


def token_probe(
    model: PretrainingModel,
    job: JobConfig,
    training: Sequence[PreparedPatient],
    test: Sequence[PreparedPatient],
    arguments: argparse.Namespace,
) -> Scores:
    """Average precision of patches that are mostly one structure, ranked by a ridge regression on frozen tokens."""
    spacing, index = job.preparation.spacing_mm, job.modalities.index(arguments.modality)
    seen, unseen = (
        crops_of(labelled_volumes(group, arguments.modality, STRUCTURES, spacing), job, each, job.seed)
        for group, each in ((training[: arguments.labelled], 16), (test, 8))
    )
    results: Scores = {}
    for name, found in (
        ("pretrained", model.encoder),
        ("untrained", build_model(job).encoder.eval()),
        ("voxels", None),
    ):
        known, asked = (tokens_of(found, images, index, job) for images, _ in (seen, unseen))
        mean, deviation = known.mean(0), known.std(0) + 1e-3
        known, asked = (known - mean) / deviation, (asked - mean) / deviation
        gram = known.T @ known / len(known) + 0.03 * torch.eye(known.shape[1])
        weights = torch.linalg.solve(gram, known.T @ (seen[1] - seen[1].mean(0)) / len(known))
        ranked, true = (asked @ weights).numpy(), (unseen[1] > 0.5).numpy()
        results[name] = {
            structure: float(average_precision_score(true[:, n], ranked[:, n]))
            for n, structure in enumerate(STRUCTURES)
        }
        results[name]["mean"] = statistics.mean(results[name].values())
    return results


def crops_of(samples: Sequence[Labelled], job: JobConfig, each: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Crops [N, D, H, W], and the share of every patch [N L, S] that is of each structure."""
    rng = np.random.default_rng(seed)
    drawn = [labelled_crop(rng, sample, job.crop) for sample in samples for _ in range(each)]
    images, labels = (torch.from_numpy(np.stack(part)) for part in zip(*drawn, strict=True))
    patches = patchify(labels.float(), job.model.patch).flatten(0, 1)
    return images, torch.stack([(patches == n + 1).float().mean(-1) for n in range(len(STRUCTURES))], dim=-1)


@torch.no_grad()
def tokens_of(encoder: Encoder | None, images: torch.Tensor, modality: int, job: JobConfig) -> torch.Tensor:
    """[N L, ...] tokens before, amid and after the blocks, side by side; the patches' voxels without an encoder."""
    if encoder is None:
        return patchify(images, job.model.patch).flatten(0, 1)
    depth, parts = encoder.shape.depth, []
    for few in images.split(8):
        kind = torch.full((len(few),), modality)
        tokens, windows = encoder.tokens(few, kind, job.preparation.spacing_mm)
        parts.append(torch.cat(encoder.intermediate(tokens, windows, (0, depth // 2, depth)), dim=-1).flatten(0, 1))
    return torch.cat(parts)


def probing(
    model: PretrainingModel, job: JobConfig, labelled: Sequence[PreparedPatient], test: Sequence[PreparedPatient]
) -> Scores:
    """Spearman correlation of each tumour variable with a ridge's prediction, for each kind of features."""
    extractors: dict[str, Extractor] = {
        "pretrained": encoder_features(model, job),
        "untrained": encoder_features(build_model(job).eval(), job),
        "voxels": voxel_features,
        "body mask": body_mask_features,
    }
    seen = patient_features(labelled, extractors, job, "phantom", "probe")
    unseen = patient_features(test, extractors, job, "phantom", "probe-test")
    results: Scores = {}
    for name in extractors:
        reference, probed = standardised(seen[name], seen[name]), standardised(unseen[name], seen[name])
        results[name] = {}
        for variable in (v for v in job.clinical if v.name in VARIABLES):
            scores = probe(variable, (labelled, reference), (test, probed))
            results[name][variable.name] = scores.get("spearman", float("nan"))
    return results


def one_seed(out: Path, arguments: argparse.Namespace, seed: int) -> dict[str, Scores]:
    """Everything of one seed, from what is there already where it is."""
    folder = out / f"seed-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    job = load_job(arguments.job).model_copy(update={"seed": seed})
    patients = cohort_of(folder, job, arguments.patients, seed, arguments.jobs)
    test, training = patients[: arguments.test], patients[arguments.test :]
    print(f"seed {seed}: {len(training)} patients without labels, {len(test)} to test", flush=True)
    model = pretrained(folder, job, training)
    how = FineTuning(
        crop=job.crop,
        steps=arguments.steps,
        encoder_rate=arguments.encoder_rate,
        decoder_first=arguments.decoder_first,
    )
    return {
        "segmentation": segmentation(model, job, training, test, arguments, how),
        "tokens": token_probe(model, job, training, test, arguments),
        "probe": probing(model, job, training[: arguments.probed], test),
    }


def table(title: str, by_seed: Sequence[Scores], rivals: Sequence[str]) -> None:
    """Means over seeds with their range, then the paired differences of the pretrained encoder to its rivals."""
    measures = list(by_seed[0]["pretrained"])
    print(f"\n| {title} | {' | '.join(measures)} |\n|---|{'---|' * len(measures)}")
    for arm in by_seed[0]:
        values = [[scores[arm][measure] for scores in by_seed] for measure in measures]
        print(f"| {arm} | {' | '.join(f'{statistics.mean(v):.3f} ({min(v):.3f}-{max(v):.3f})' for v in values)} |")
    for rival in rivals:
        cells = [_interval([scores["pretrained"][m] - scores[rival][m] for scores in by_seed]) for m in measures]
        print(f"| pretrained - {rival} | {' | '.join(cells)} |")


def _interval(differences: Sequence[float]) -> str:
    mean = statistics.mean(differences)
    if len(differences) < 2:
        return f"{mean:+.3f}"
    half = float(stats.t.ppf(0.975, len(differences) - 1)) * statistics.stdev(differences) / len(differences) ** 0.5
    return f"{mean:+.3f} [{mean - half:+.3f}, {mean + half:+.3f}]"


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--job", type=Path, default=Path(__file__).with_name("transfer.yaml"))
    parser.add_argument("--patients", type=int, default=300)
    parser.add_argument("--test", type=int, default=40, help="patients that nobody trains on")
    parser.add_argument("--labelled", type=int, default=10, help="patients whose masks are used")
    parser.add_argument("--probed", type=int, default=100, help="patients whose clinical rows are used")
    parser.add_argument("--modality", default="T2", help="that is segmented")
    parser.add_argument("--steps", type=int, default=300, help="of fine-tuning")
    parser.add_argument("--encoder-rate", type=float, default=0.2)
    parser.add_argument("--decoder-first", type=float, default=0.0)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.jobs)
    results: list[Mapping[str, Scores]] = []
    for seed in arguments.seeds:
        results.append(one_seed(arguments.out, arguments, seed))
        (arguments.out / "results.json").write_text(json.dumps(results, indent=1))
    table("Dice", [result["segmentation"] for result in results], ("scratch", "cnn"))
    table("frozen tokens, average precision", [result["tokens"] for result in results], ("untrained", "voxels"))
    table("Spearman", [result["probe"] for result in results], ("untrained", "voxels"))


if __name__ == "__main__":
    main()
