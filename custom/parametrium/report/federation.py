"""The run as one page for people: RUN/report.html, offline, without a script, also for a run that failed.

The page holds what the coordinator may see: numbers whose names are on the list of ``privacy/egress.py``, and public
reasons. With the sites' pictures, which are only at hand where all sites of a run are on one machine, it must not
leave that machine; the page says so and is readable by its owner alone.
"""

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from parametrium import __version__
from parametrium.config import JobConfig
from parametrium.report.chart import Chart, line_chart
from parametrium.report.comparison import Measurement, over_pairs, probes, reconstructions, retrievals
from parametrium.report.html import render, write_at_once
from parametrium.report.monitors import by_rounds, held_out_charts, monitor_charts, monitors_table
from parametrium.report.record import RunRecord, read_run
from parametrium.report.site_leak import site_leak_table
from parametrium.report.site_pictures import collect_pictures
from parametrium.report.tables import (
    contributions_table,
    faults_table,
    losses_table,
    objectives_fact,
    owners_table,
    probe_table,
    reconstruction_table,
    retrieval_summary_table,
    retrieval_table,
    sites_table,
)
from parametrium.training.checkpoint import TENSORS

STATES = {"complete": "Complete", "failed": "Failed", "unfinished": "Not finished"}

MOST_ITEMS = 20
"""Reasons and gaps that are listed one by one."""


def write_report(run: Path, with_sites: bool = False) -> Path:
    """Writes RUN/report.html.

    Args:
        run: a run folder, finished or not.
        with_sites: adds the pictures of RUN/sites; the page must then stay on this machine.

    Returns:
        The page.

    Raises:
        FederationError: PM503 when the folder holds no run.
    """
    record = read_run(run)
    pictures = collect_pictures(run) if with_sites else []
    leak = site_leak_table(run) if with_sites else None
    text = render("report.html", page=_page(record), pictures=pictures, leak=leak)
    return write_at_once(run / "report.html", text.encode(), private=bool(pictures))


def _page(run: RunRecord) -> dict[str, Any]:
    """Everything the template shows of the federation."""
    done, planned = len(run.rounds), run.rounds_planned
    return {
        "name": run.job.name if run.job else "Unknown job",
        "state": run.state,
        "status": f"{STATES[run.state]}: {done} of {planned or 'an unknown number of'} rounds"
        + (", stopped by rule" if run.stopped else ""),
        "reasons": _listed(run.reasons),
        "missing": _listed(_gaps(run)),
        "facts": _facts(run),
        "answers": _answers(run),
        "sites": sites_table(run),
        "losses": _loss_charts(run),
        "loss_table": losses_table(run),
        "contributions": contributions_table(run),
        "faults": faults_table(run),
        "owners": owners_table(run),
        "reconstruction": reconstruction_table(run),
        "curves": _evaluation_charts(run),
        "held_out": held_out_charts(run),
        "monitors": monitors_table(run),
        "monitor_charts": monitor_charts(run),
        "retrieval_summary": retrieval_summary_table(run),
        "retrieval": retrieval_table(run),
        "probe": probe_table(run),
        "no_probe": _no_probe(run.job),
        "footer": f"Written by parametrium {__version__}. Rounds are counted from 0; evaluations by finished rounds.",
    }


def _facts(run: RunRecord) -> list[tuple[str, str]]:
    """What was run, for the head of the page."""
    sites, seconds = run.sites, sum(record["seconds"] for record in run.rounds)
    shown = ", ".join(sites[:12]) + (f" and {len(sites) - 12} more" if len(sites) > 12 else "")
    facts = [
        ("Rounds", f"{len(run.rounds)} of {run.rounds_planned or 'unknown'}, {_duration(seconds)}"),
        ("Sites", f"{len(sites)}: {shown}" if sites else "none"),
        ("Model", _model_text(run)),
    ]
    if run.job is None:
        return facts
    job = run.job
    if run.stopped:
        facts.append(("Stopped by rule", run.stopped))
    if run.best_round is not None:
        facts.append(("Best round", f"the model after {run.best_round} rounds; what follows was measured under it"))
    kept = Counter(modality for record in run.rounds for modality in record["templates_kept"])
    if kept:
        done, few = len(run.rounds), f"fewer sites than {job.aggregation.minimum_template_sites} trained them"
        rounds = (f"{modality} in {count} of {done} rounds" for modality, count in sorted(kept.items()))
        facts.append(("Templates not passed on", "; ".join([*rounds, few])))
    size = [n * s for n, s in zip(job.crop, job.preparation.spacing_mm, strict=True)]
    return [
        *facts,
        ("Modalities", ", ".join(job.modalities)),
        objectives_fact(job),
        ("Crop", f"{_times(job.crop)} voxels, {_times(size)} mm; patch {job.model.patch} voxels"),
        ("Local training", f"{job.local_steps} steps a round, {job.batch.patients} patients a step; seed {job.seed}"),
        ("Aggregation", f"{job.aggregation.rule.replace('_', ' ')}, minimum sites {job.minimum_sites}"),
    ]


def _model_text(run: RunRecord) -> str:
    """Tensors and parameters of the last checkpoint, read from its header, and its checksum."""
    folders = sorted(path for path in run.path.glob("checkpoints/round_*") if (path / TENSORS).is_file())
    if not folders:
        return "no checkpoint"
    try:
        with safe_open(folders[-1] / TENSORS, framework="pt") as file:
            names = list(file.keys())
            shapes = [file.get_slice(name).get_shape() for name in names]
    except (OSError, SafetensorError):
        return "the last checkpoint cannot be read"
    parameters = sum(math.prod(shape) for shape in shapes)
    digest = str(run.manifest.get("sha256") or "")[:12]
    checksum = f"; SHA-256 {digest}..." if digest else ""
    preset = f"{run.job.model.preset}: " if run.job else ""
    return f"{preset}{len(names)} tensors, {parameters:,} parameters; {folders[-1].name}{checksum}"


def _gaps(run: RunRecord) -> list[str]:
    """What a reader would look for and not find."""
    gaps = []
    if run.job is None:
        gaps.append("the job's file is absent or damaged: objectives and modalities are not known")
    if run.state == "unfinished":
        gaps.append("the run is still going on, or was cut off: this page shows what was written so far")
    if run.damaged:
        gaps.append(f"lines of the run's records that could not be read and are left out: {run.damaged}")
    planned = len(run.rounds) if run.stopped else run.rounds_planned
    if len(run.rounds) < planned:
        gaps.append(f"{run.rounds_planned - len(run.rounds)} of {run.rounds_planned} rounds were not done")
    for site in run.sites:
        measured = run.after(site)[0]
        if not run.facts(site):
            gaps.append(f"{site} did not open its cohort")
        elif not measured:
            gaps.append(f"{site} has no evaluation of a trained model")
        elif measured < planned and not (run.state == "complete" and measured == run.best_round):
            gaps.append(f"{site} has no final evaluation; its last is after {measured} of {run.rounds_planned} rounds")
    return gaps


def _answers(run: RunRecord) -> list[dict[str, object]]:
    """How often the model is better than every control, by kind of measurement."""
    found: Sequence[Measurement] = [*reconstructions(run), *over_pairs(retrievals(run)), *probes(run)]
    groups: dict[str, list[Measurement]] = {}
    for m in found:
        if m.model is not None and m.decidable:
            groups.setdefault("reconstruction" if m.kind == "reconstruction" else f"{m.kind}, {m.score}", []).append(m)
    return [
        {
            "title": title,
            "wins": sum(m.beats_all for m in group),
            "total": len(group),
            "text": "lower error than before training, untrained, modality mean and neighbour mean"
            if group[0].lower_is_better
            else "higher than untrained, body mask, voxels and chance",
        }
        for title, group in groups.items()
    ]


def _loss_charts(run: RunRecord) -> list[Chart]:
    """One chart an objective."""
    charts = []
    for kind in [objective.kind for objective in run.job.objectives] if run.job else []:
        losses = {site: run.scalar(site, f"train/loss/{kind}") for site in run.sites}
        chance = {site: run.scalar(site, f"train/chance/{kind}") for site in run.sites}
        title = f"Training loss: {kind.replace('_', ' ')}"
        charts.append(line_chart(title, "round", "loss", losses, chance, "chance level"))
    return [chart for chart in charts if chart is not None]


def _evaluation_charts(run: RunRecord) -> list[Chart]:
    """One chart a modality, where the error was measured in between as well."""
    if run.job is None or not run.job.evaluation.every:
        return []
    charts = []
    for modality in run.job.modalities:
        prefix = f"evaluation/reconstruction/{modality}/"
        values, trivial = (by_rounds(run, prefix + name) for name in ("model", "neighbour_mean"))
        title = f"Reconstruction error on held-out patients: {modality}"
        step = run.job.evaluation.every
        charts.append(
            line_chart(title, "finished rounds", "mean squared error", values, trivial, "neighbour mean", step)
        )
    return [chart for chart in charts if chart is not None]


def _no_probe(job: JobConfig | None) -> str:
    if job is None or job.evaluation.probe is None:
        return "The job asks for no probe."
    return f"No site has enough patients with {job.evaluation.probe} for a probe, or the run ended before it."


def _listed(items: Sequence[str]) -> list[str]:
    left = len(items) - MOST_ITEMS
    return [*items[:MOST_ITEMS], f"and {left} more"] if left > 0 else list(items)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _times(numbers: Sequence[float]) -> str:
    return " \N{MULTIPLICATION SIGN} ".join(f"{number:g}" for number in numbers)
