"""Does the representation transfer? A positive control on the phantom, with its controls beside it.

    python benchmarks/transfer.py --patients 360 --seeds 0 1 2 --out transfer

Draws a phantom cohort a seed, pretrains on all but the test patients without labels (transfer.yaml, and the jobs of
--then from its model), then, with few labelled patients: segments organs and tumour by fine-tuning (pretrained, the
same network from scratch, a small CNN; the same crops, steps and patients for all); finds the same structures from
frozen tokens by one ridge regression (pretrained, untrained, the patches' own voxels; and what the CNN says of each
patch); and asks all of these how large the tumour is, beside the clinical rows of further patients (``volumetry.py``).
Two more arms, which --rivals-only leaves out, tell what a failure means: the CNN with ten times the labels, how much
labels can add at all; and an encoder that was told all masks (``told.py``), how much pretraining could give. Prints
means over seeds with their range, and the paired differences to the rivals with a t interval of 95 %. Cohorts and
models are written below ``--out``; what is there is not made again, and a pretraining that was interrupted goes on
after its last round.
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
from token_probe import Scores, crops_of, token_probe
from told import told
from torch import nn
from volumetry import FrozenReader, expected_volumes, noted

from parametrium.cohort.manifest import read_cohort
from parametrium.cohort.phantom import write_phantom
from parametrium.config import JobConfig, load_job
from parametrium.data.cache import PreparedPatient
from parametrium.data.loader import CropLoader
from parametrium.data.prepare import prepare_cohort
from parametrium.evaluation.segmentation import (
    FineTuning,
    Labelled,
    dice_scores,
    fine_tune,
    labelled_volumes,
    segmenter_of,
    small_cnn,
)
from parametrium.model.encoder import Encoder
from parametrium.objectives.registry import PretrainingModel, build_model
from parametrium.objectives.schedule import CropPlan
from parametrium.site.moments import Moments
from parametrium.training.checkpoint import load_checkpoint, save_checkpoint
from parametrium.training.round import tensors_of
from parametrium.training.step import new_state, train_step
from parametrium.training.warm_start.transfer import transfer
from parametrium.training.warm_start.weights import Weights

STRUCTURES = ("bladder", "rectum", "uterus", "tumour")
CNN = "cnn"
MORE_LABELS = "cnn, ten times the labels"
VARIABLES = ("tumour_volume", "figo_stage")
SHOWN = 8  # crops of each labelled patient that tell frozen tokens what a structure is
FURTHER = 1000  # the seed of a cohort's further patients lies so much higher


def cohort_of(folder: Path, job: JobConfig, patients: int, seed: int, jobs: int) -> tuple[PreparedPatient, ...]:
    """The prepared phantom of a seed."""
    if not (folder / "cohort" / "cohort.csv").exists():
        write_phantom(folder / "cohort", patients=patients, modalities=job.modalities, seed=seed, jobs=jobs)
    cohort = read_cohort(folder / "cohort", job.modalities)
    return prepare_cohort(cohort, job.preparation, folder / "cache", jobs=jobs).patients


def pretrained(folder: Path, jobs: Sequence[JobConfig], patients: Sequence[PreparedPatient]) -> PretrainingModel:
    """The last job's model, each job begun from the model of the one before."""
    model = trained(folder, jobs[0], patients, None)
    for job in jobs[1:]:
        model = trained(folder, job, patients, model)
    return model


def trained(
    folder: Path, job: JobConfig, patients: Sequence[PreparedPatient], start: PretrainingModel | None
) -> PretrainingModel:
    """The job's model after all of its steps on these patients; goes on where an earlier run ended."""
    name = f"{job.name}-{job.total_steps}"
    state, model = new_state(job, torch.device("cpu")), folder / f"model-{name}"
    if start is not None:
        state.model.load_state_dict(transfer(job, Weights(dict(start.named_parameters())))[0], strict=False)
    if model.exists():
        tensors, meta = load_checkpoint(model)
        state.model.load_state_dict(tensors)
        state.step = int(meta["steps"])
    if state.step < job.total_steps:
        moments = Moments(folder / f"moments-{name}", job.name, state)
        loader, started = CropLoader(patients, job, "phantom", CropPlan(job, state.model)), time.monotonic()
        for number in range(state.step // job.local_steps, job.rounds):
            moments.begin(number)
            for batches in loader.steps(state.step, state.step + job.local_steps):
                report = train_step(state, batches, job, "phantom")
            moments.end(number)
            save_checkpoint(model, tensors_of(state), {"steps": state.step})
            losses = ", ".join(f"{kind} {loss:.3f}" for kind, loss in report.losses.items())
            print(
                f"  {job.name}: {state.step} of {job.total_steps} steps, {time.monotonic() - started:.0f} s: {losses}",
                flush=True,
            )
    return state.model.eval()


def segmentation(
    starts: Mapping[str, PretrainingModel | None],
    job: JobConfig,
    labelled: Mapping[str, Sequence[Labelled]],
    test: Sequence[Labelled],
    modality: str,
    how: FineTuning,
) -> tuple[Scores, dict[str, nn.Module]]:
    """Mean Dice of each structure on the test patients for each arm, and the networks that reached it.

    Args:
        starts: where the encoder begins, by arm; None: fresh.
        job: crop, seed.
        labelled: samples with masks by the CNN's arm; the other arms have those of ``CNN``.
        test: samples nobody trained on.
        modality: of the samples.
        how: crops, steps and rates, the same for all.
    """
    results: Scores = {}
    networks: dict[str, nn.Module] = {}
    for arm in (*starts, *labelled):
        torch.manual_seed(job.seed)  # decoders begin alike
        if arm in labelled:
            networks[arm] = small_cnn(len(STRUCTURES))
        else:
            networks[arm] = segmenter_of(job, modality, len(STRUCTURES), starts[arm])
        fine_tune(networks[arm], labelled.get(arm, labelled[CNN]), how, job.seed)
        dice = dice_scores(networks[arm], test, STRUCTURES, how)
        results[arm] = {name: statistics.mean(scores) for name, scores in dice.items()}
        results[arm]["mean"] = statistics.mean(results[arm].values())
        print(f"  {arm}: Dice {results[arm]['mean']:.3f}", flush=True)
    return results, networks


def probing(
    networks: Mapping[str, nn.Module], patients: Sequence[PreparedPatient], job: JobConfig, how: FineTuning
) -> Scores:
    """Spearman correlation of the tumour volume that each network expects with the clinical variables."""
    tumour, results = STRUCTURES.index("tumour"), Scores()
    first = [patient.volumes[0] for patient in patients]
    images = [volume.read(volume.offset, volume.shape)[0] for volume in first]
    for name, network in networks.items():
        results[name] = noted(patients, expected_volumes(network, images, tumour, how), job, VARIABLES)
        print(f"  {name}: {results[name]}", flush=True)
    return results


def one_seed(out: Path, arguments: argparse.Namespace, seed: int) -> dict[str, Scores]:
    """Everything of one seed, from what is there already where it is."""
    folder = out / f"seed-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    job = load_job(arguments.job)
    job = job.model_copy(update={"seed": seed, "rounds": arguments.rounds or job.rounds})
    jobs = [job, *(load_job(path).model_copy(update={"seed": seed}) for path in arguments.then)]
    patients = cohort_of(folder, job, arguments.patients, seed, arguments.jobs)
    unseen, training = patients[: arguments.test], patients[arguments.test :]
    print(f"seed {seed}: {len(training)} patients without labels, {len(unseen)} to test", flush=True)
    test, drawn = (
        labelled_volumes(group, arguments.modality, STRUCTURES, job.preparation.spacing_mm)
        for group in (unseen, training)
    )
    few, index, count = drawn[: arguments.labelled], job.modalities.index(arguments.modality), len(STRUCTURES)
    starts: dict[str, PretrainingModel | None] = {"pretrained": pretrained(folder, jobs, training), "scratch": None}
    labelled = {CNN: few}
    if not arguments.rivals_only:
        starts["told"] = told(folder / f"told-{job.total_steps}", job, index, drawn, count)
        labelled[MORE_LABELS] = drawn[: 10 * arguments.labelled]
    how = FineTuning(
        crop=job.crop,
        steps=arguments.steps,
        encoder_rate=arguments.encoder_rate,
        kept_decoder_rate=arguments.kept_decoder_rate,
        decoder_first=arguments.decoder_first,
        precision=arguments.precision,
    )
    dice, networks = segmentation(starts, job, labelled, test, arguments.modality, how)
    frozen: dict[str, Encoder | None] = {arm: model.encoder for arm, model in starts.items() if model}
    frozen |= {"untrained": build_model(job).eval().encoder, "voxels": None}
    rng = np.random.default_rng(seed)
    crops = crops_of(rng, few, job, 16, count), crops_of(rng, test, job, 8, count)
    segmenters = {arm: networks[arm] for arm in labelled}
    shown = crops_of(rng, few, job, SHOWN, count)
    readers = {arm: FrozenReader(encoder, shown, SHOWN, index, job) for arm, encoder in frozen.items()}
    seen = job.model_copy(update={"modalities": (arguments.modality,)})
    further = cohort_of(folder / "further", seen, arguments.probed, seed + FURTHER, arguments.jobs)
    return {
        "segmentation": dice,
        "tokens": token_probe(frozen, segmenters, crops, index, job, STRUCTURES),
        "probe": probing(networks, further, job, how),
        "frozen probe": probing(readers, further, job, how),
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
    parser.add_argument(
        "--then",
        type=Path,
        nargs="*",
        default=[],
        help="jobs that go on from the first one's model, for instance transfer_decoder.yaml",
    )
    parser.add_argument("--rounds", type=int, help="of the first job, instead of its own")
    parser.add_argument("--patients", type=int, default=360)
    parser.add_argument("--test", type=int, default=60, help="patients that nobody trains on")
    parser.add_argument("--labelled", type=int, default=10, help="patients whose masks are used")
    parser.add_argument("--probed", type=int, default=200, help="further patients, clinical rows")
    parser.add_argument("--modality", default="CBCT", help="that is segmented")
    parser.add_argument("--steps", type=int, default=1000, help="of fine-tuning")
    parser.add_argument("--encoder-rate", type=float, default=0.2)
    parser.add_argument("--kept-decoder-rate", type=float, default=FineTuning.kept_decoder_rate)
    parser.add_argument("--decoder-first", type=float, default=0.0)
    parser.add_argument("--rivals-only", action="store_true", help="not the two arms that explain a failure")
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="bf16", help="of fine-tuning")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.jobs)
    results: list[Mapping[str, Scores]] = []
    for seed in arguments.seeds:
        results.append(one_seed(arguments.out, arguments, seed))
        (arguments.out / "results.json").write_text(json.dumps(results, indent=1))
    table("Dice", [result["segmentation"] for result in results], ("scratch", CNN))
    table("frozen tokens, average precision", [result["tokens"] for result in results], ("untrained", "voxels", CNN))
    table("volume expected by the segmenter, Spearman", [result["probe"] for result in results], ("scratch", CNN))
    table("by frozen tokens", [result["frozen probe"] for result in results], ("untrained", "voxels"))


if __name__ == "__main__":
    main()
