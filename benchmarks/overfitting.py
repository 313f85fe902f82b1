"""What overfitting looks like in the monitors: few patients for too long, against four times as many.

    python benchmarks/overfitting.py --out overfitting

One phantom hospital. The same held-out patients judge a run on 6 training patients and a run on 24, with the demo's job
and equally many steps; a third run is the small one again with the stopping rule on, and the rule is asked what it
would have done to the second. The script draws attention outside the body, held-out loss and training loss over the
rounds into OUT/overfitting.png, and prints a table.

    --rounds 6 --steps 4 --patients 2 6 --held-out 4       runs through in a minute or two, and shows nothing

It goes on where it was interrupted: a run that is complete is not repeated.
"""

import argparse
import csv
import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
import yaml
from matplotlib.figure import Figure

from parametrium.cohort.phantom import write_phantom
from parametrium.config import JobConfig, PolicyConfig, SiteConfig, parse_job
from parametrium.monitor.stopping import Measurement, judged, measurements
from parametrium.site.local import train_locally
from parametrium.training.run_folder import judge, read_lines

JOB = Path(__file__).parent.parent / "jobs" / "pretrain.yaml"
SITE = "north"
MODALITIES = ("CT", "T1", "T2")
STOPPING = {"background": {"factor": 1.2, "patience": 3}, "held_out_loss": {"patience": 4}}


def write_cohort(folder: Path, training: int, held_out: int, seed: int) -> Path:
    """A phantom cohort whose first patients are held out, whatever the number of the others."""
    if not (folder / "cohort.csv").exists():
        shutil.rmtree(folder, ignore_errors=True)  # what an interruption left
        write_phantom(folder, patients=training + held_out, modalities=MODALITIES, seed=seed, site=SITE)
    with (folder / "cohort.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    order = {name: n for n, name in enumerate(dict.fromkeys(row["patient"] for row in rows))}
    for row in rows:
        row["split"] = "test" if order[row["patient"]] < held_out else "train"
    kept = [row for row in rows if order[row["patient"]] < held_out + training]
    with (folder / "cohort.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(kept[0]))
        writer.writeheader()
        writer.writerows(kept)
    return folder


def job_of(name: str, arguments: argparse.Namespace, stopping: Mapping[str, object]) -> JobConfig:
    """The demo's job for one hospital, measured every few rounds."""
    data = yaml.safe_load(JOB.read_text(encoding="utf-8"))
    evaluation = {"crops": arguments.crops, "every": arguments.every, "probe": None, "pictures": True}
    settings = {"rounds": arguments.rounds, "local_steps": arguments.steps, "minimum_sites": 1}
    own = {"name": name, "seed": arguments.seed, "evaluation": evaluation, "stopping": dict(stopping)}
    return parse_job({**data, **settings, **own})


def run_once(name: str, patients: int, arguments: argparse.Namespace, stopping: Mapping[str, object]) -> Path:
    """Trains, unless a complete run is there."""
    cohort = write_cohort(arguments.out / f"cohort-{patients}", patients, arguments.held_out, arguments.seed)
    run: Path = arguments.out / name
    if not judge(run)[0]:
        policy = PolicyConfig(minimum_patients=1, minimum_local_steps=1)
        folders = {"cohort": str(cohort), "cache": str(arguments.out / "cache"), "state": str(arguments.out / "state")}
        site = SiteConfig(site=SITE, **folders, device=arguments.device, threads=arguments.threads, policy=policy)
        train_locally(job_of(name, arguments, stopping), site, run)
    return run


def history(run: Path, job: JobConfig) -> list[Measurement]:
    return measurements(read_lines(run / "evaluation.jsonl"), job)


def training_loss(run: Path, job: JobConfig) -> tuple[list[int], list[float]]:
    """Finished rounds, and the weighted sum of the objectives' losses in those rounds that trained all of them."""
    rounds, losses = [], []
    for record in read_lines(run / "rounds.jsonl"):
        scalars = record["scalars"][SITE]
        own = [o.weight * scalars[f"train/loss/{o.kind}"] for o in job.objectives if f"train/loss/{o.kind}" in scalars]
        if len(own) == len(job.objectives):
            rounds.append(record["round"] + 1)
            losses.append(sum(own))
    return rounds, losses


def draw(path: Path, runs: Mapping[str, Path], job: JobConfig) -> None:
    """Three charts side by side, one line a run; a dotted line where a rule ended one."""
    page = Figure(figsize=(13, 4), dpi=110, layout="constrained")
    left, middle, right = page.subplots(1, 3)
    for n, (title, run) in enumerate(runs.items()):
        colour, found = f"C{n}", history(run, job)
        rounds = [m.rounds for m in found]
        left.plot(rounds, [m.background for m in found], color=colour, label=title, marker=".")
        middle.plot(rounds, [m.held_out_loss for m in found], color=colour, marker=".")
        right.plot(*training_loss(run, job), color=colour)
        stopped = json.loads((run / "manifest.json").read_text(encoding="utf-8"))["stopped"]
        for axes in (left, middle, right) if stopped else ():
            axes.axvline(stopped["after_rounds"], color=colour, linestyle=":")
    even = next(
        line["scalars"]["monitor/attention/background_share"]
        for line in read_lines(next(iter(runs.values())) / "evaluation.jsonl")
        if "monitor/attention/background_share" in line["scalars"]
    )
    left.axhline(even, color="grey", linestyle="--", label="share of the patches outside")
    titles = ("attention outside the body", "loss on held-out patients", "training loss, all objectives")
    for axes, name in zip((left, middle, right), titles, strict=True):
        axes.set_title(name)
        axes.set_xlabel("finished rounds")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.spines[["top", "right"]].set_visible(False)
    page.legend(loc="outside lower center", ncols=len(runs) + 1, frameon=False)
    page.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for cohorts, cache, runs and the picture")
    parser.add_argument("--patients", type=int, nargs=2, default=(6, 24), help="training patients of the two runs")
    parser.add_argument("--held-out", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--steps", type=int, default=40, help="optimiser steps of a round")
    parser.add_argument("--every", type=int, default=2, help="rounds between two measurements")
    parser.add_argument("--crops", type=int, default=8, help="crops of each held-out volume")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.out.mkdir(parents=True, exist_ok=True)
    few, many = arguments.patients
    runs = {
        f"{few} patients": run_once(f"few-{few}", few, arguments, {}),
        f"{many} patients": run_once(f"many-{many}", many, arguments, {}),
        f"{few} patients, with the rule": run_once(f"ruled-{few}", few, arguments, STOPPING),
    }
    job = job_of("any", arguments, {})
    # The rule is a function of what was measured: what it would have done to the healthy run needs no further run.
    ruled = job_of("any", arguments, STOPPING)
    healthy = history(runs[f"{many} patients"], ruled)
    verdicts = (judged(healthy[: n + 1], ruled.stopping) for n in range(len(healthy)))
    ended = next((verdict.reason for verdict in verdicts if verdict.stopped_by), "does not end the run")
    draw(arguments.out / "overfitting.png", runs, job)
    header = f"{'run':32}{'rounds':>7}{'best':>6}{'outside: lowest':>17}{'last':>8}{'loss: lowest':>14}{'last':>8}"
    print(f"{header}  stopped")
    for title, run in runs.items():
        manifest = json.loads((run / "manifest.json").read_text(encoding="utf-8"))
        found = [m for m in history(run, job) if m.rounds > 0]
        masses, losses = ([m[n] for m in found if m[n] is not None] for n in (1, 2))
        print(
            f"{title:32}{manifest['rounds_done']:7}{manifest['best_round']:6}{min(masses):17.4f}{masses[-1]:8.4f}"
            f"{min(losses):14.4f}{losses[-1]:8.4f}  {(manifest['stopped'] or {}).get('reason', 'no')}"
        )
    print(f"The rule on {many} patients: {ended}.")


if __name__ == "__main__":
    main()
