"""The monitors over the rounds, as charts and a table: where the model looks, how features spread, overfitting."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from parametrium.report.chart import Chart, line_chart
from parametrium.report.record import RunRecord
from parametrium.report.tables import MISSING, Table, limited

PREFIX = "monitor/"
_FIRST_AND_LAST = " \N{RIGHTWARDS ARROW} "


@dataclass(frozen=True)
class _Monitor:
    """One number as a chart: its scalar, its title, its unit, and what it is drawn beside."""

    scalar: str
    title: str
    unit: str
    beside: str = ""
    reference: str = ""


_MONITORS = (
    _Monitor(
        "attention/background",
        "Attention outside the body",
        "share of the attention",
        "attention/background_share",
        "share of the patches outside the body",
    ),
    _Monitor("attention/brightness", "Attention and brightness in the body", "correlation"),
    _Monitor("attention/entropy", "Evenness of attention", "entropy, share of the largest"),
    _Monitor("attention/registers", "Attention on registers", "share of the attention"),
    _Monitor("features/rankme", "Effective rank of the features", "RankMe"),
    _Monitor("features/spread", "Spread of a feature", "1: even in all directions"),
    _Monitor("features/alignment", "Distance between a patient's modalities", "alignment"),
    _Monitor("features/uniformity", "Uniformity of patients", "0: all the same"),
)


def monitor_charts(run: RunRecord) -> list[Chart]:
    """One chart a number that was measured in between, a line a site."""
    if run.job is None or not run.job.evaluation.every:
        return []
    charts = []
    for monitor in _MONITORS:
        values = by_rounds(run, PREFIX + monitor.scalar)
        beside = by_rounds(run, PREFIX + monitor.beside) if monitor.beside else {}
        step = run.job.evaluation.every
        chart = line_chart(monitor.title, "finished rounds", monitor.unit, values, beside, monitor.reference, step)
        charts.append(chart)
    return [chart for chart in charts if chart is not None]


def held_out_charts(run: RunRecord) -> list[Chart]:
    """One chart an objective: its loss on held-out patients, beside that of training."""
    if run.job is None or not run.job.evaluation.every:
        return []
    charts = []
    for kind in [objective.kind for objective in run.job.objectives]:
        held_out = by_rounds(run, f"evaluation/loss/{kind}")
        # A round's training loss belongs to the model that it ends with.
        training = {
            site: {n + 1: loss for n, loss in run.scalar(site, f"train/loss/{kind}").items()} for site in run.sites
        }
        title = f"Loss on held-out patients: {kind.replace('_', ' ')}"
        step = run.job.evaluation.every
        charts.append(line_chart(title, "finished rounds", "loss", held_out, training, "training loss", step))
    return [chart for chart in charts if chart is not None]


def monitors_table(run: RunRecord) -> Table:
    """First and last value of every monitor, by site."""
    names = ["attention/background", "attention/background_share", *(m.scalar for m in _MONITORS[1:])]
    words = ["outside the body", "patches there", "brightness", "entropy", "registers", "RankMe"]
    rows = []
    for site in run.sites:
        cells = [_first_and_last(by_rounds(run, PREFIX + name).get(site, {})) for name in names]
        if any(cell != MISSING for cell in cells):
            volumes = list(by_rounds(run, f"{PREFIX}volumes").get(site, {}).values())
            rows.append([site, f"{volumes[-1]:.0f}" if volumes else MISSING, *cells])
    header = ["site", "volumes", *words, "spread", "alignment", "uniformity"]
    note = (
        "First and last measurement on held-out volumes. Outside the body: share of the attention rollout that lies "
        "there, to be compared with the share of the patches there, which even attention would give. docs/monitors.md "
        "says what each number means and when to worry."
    )
    return limited(Table("Monitors", header, rows, note, numeric=tuple(range(1, len(header)))))


def by_rounds(run: RunRecord, name: str) -> Mapping[str, Mapping[int, float]]:
    """By site, one evaluation scalar by finished rounds."""
    return {
        site: {number: scalars[name] for number, scalars in run.evaluations.get(site, {}).items() if name in scalars}
        for site in run.sites
    }


def _first_and_last(series: Mapping[int, float]) -> str:
    ends: Sequence[float] = [series[n] for n in sorted(series)]
    if not ends:
        return MISSING
    return _FIRST_AND_LAST.join(f"{value:.3g}" for value in (ends[:1] if len(ends) == 1 else (ends[0], ends[-1])))
