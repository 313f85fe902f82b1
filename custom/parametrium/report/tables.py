"""The report's tables as plain text: the page shows them, and so does a terminal.

Every table has a bounded number of rows, however many rounds and sites a run has: where one row a site and modality
would be too many, rows are summarised over the sites, or over the rounds.
"""

import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from parametrium.config import JobConfig
from parametrium.report.comparison import (
    FEATURE_CONTROLS,
    RECONSTRUCTION_CONTROLS,
    Measurement,
    all_sites,
    over_pairs,
    over_sites,
    probes,
    reconstructions,
    retrievals,
)
from parametrium.report.record import RunRecord, read_run

Run = Path | RunRecord

MOST_ROWS = 60
"""Rows that are still read one by one; longer tables are summarised."""

MOST_LINES = 400
"""Rows of a summary that are shown; the run folder's own files have them all."""

MISSING = "-"
_TEXT = ("site", "modality", "from", "to", "recall", "variable", "score", "best")
WORDS = {
    "before": "before training",
    "modality_mean": "modality mean",
    "neighbour_mean": "neighbour mean",
    "body_mask": "body mask",
}


@dataclass(frozen=True)
class Table:
    """A table of text.

    Attributes:
        title: one line.
        header: names of the columns.
        rows: as many cells as the header has.
        note: how to read it; may be empty.
        best: for each row, the columns of the best value; empty where nothing is compared.
        numeric: columns that hold numbers, for alignment.
    """

    title: str
    header: list[str]
    rows: list[list[str]]
    note: str = ""
    best: tuple[tuple[int, ...], ...] = ()
    numeric: tuple[int, ...] = ()


def reconstruction_table(run: Run) -> Table:
    """Held-out reconstruction error by site and modality; lower is better."""
    found = reconstructions(read_run(run))
    note = (
        "Mean squared error of the masked patches of held-out patients, on the scale of the job's target; lower is "
        "better. Modality mean and neighbour mean learned nothing: they are the mean intensity of the training "
        "patients, and the mean of the visible patches around."
    )
    leading = ["site", "modality", "volumes", "after rounds"]
    return _compared("Reconstruction error", leading, found, RECONSTRUCTION_CONTROLS, note, _reconstruction_cells)


def retrieval_table(run: Run) -> Table:
    """Recall of the same patient across modalities, by site and ordered pair; higher is better."""
    found = retrievals(read_run(run))
    note = (
        "Share of held-out patients whose scan in the first modality finds their own scan in the second as the "
        "nearest candidate (R@1) or among the five nearest (R@5); higher is better. With n candidates one patient is "
        "worth 1/n. Body mask and voxels see only the outline of the body and coarse intensities."
    )
    leading = ["site", "from", "to", "recall", "candidates"]
    return _compared("Retrieval of the same patient", leading, found, FEATURE_CONTROLS, note, _retrieval_cells)


def retrieval_summary_table(run: Run) -> Table:
    """Recall of the same patient, by site: means over its ordered pairs of modalities; higher is better."""
    found = over_pairs(retrievals(read_run(run)))
    found = [*found, *all_sites(found)]
    note = (
        "Means over the site's ordered pairs of modalities, and over the sites; higher is better. One patient more or "
        "less is 1/candidates for a single pair: the last rows say most."
    )
    leading = ["site", "pairs", "recall", "candidates"]
    return _compared("Retrieval, all pairs of a site", leading, found, FEATURE_CONTROLS, note, _pairs_cells)


def probe_table(run: Run) -> Table:
    """The linear probe on frozen features, by site; higher is better."""
    note = (
        "A linear map from the frozen features to a clinical variable, scored on those held-out patients that have it; "
        "higher is better. Of the mean over a patient's modalities; of pooled volumes: attention says which ones count."
    )
    leading = ["site", "variable", "score", "held-out patients"]
    return _compared("Linear probe", leading, probes(read_run(run)), FEATURE_CONTROLS, note, _probe_cells)


def sites_table(run: Run) -> Table:
    """What each site has: patients, volumes, and how many problems of which kind reading them met."""
    record = read_run(run)
    names = record.job.modalities if record.job else ()
    rows = []
    for site in record.sites:
        facts = record.facts(site)
        problems = [
            f"{name.removeprefix('site/problems/').replace('_', ' ')}: {value:.0f}"
            for name, value in facts.items()
            if name.startswith("site/problems/")
        ]
        cells = [_count(facts.get(name)) for name in ("site/patients", "site/held_out_patients")]
        cells += [_count(facts.get(f"site/volumes/{name}", 0 if facts else None)) for name in names]
        rows.append([site, *cells, ", ".join(problems) or ("none" if facts else MISSING)])
    header = ["site", "training patients", "held-out patients", *(f"{name} volumes" for name in names), "problems"]
    note = "Volumes are those of the training patients. A dash: the site did not say, because it could not be opened."
    return limited(Table("Patients and volumes", header, rows, note, numeric=tuple(range(1, 3 + len(names)))))


def losses_table(run: Run) -> Table:
    """First and last training loss by site and objective."""
    record = read_run(run)
    rows = []
    for site in record.sites:
        for kind in [objective.kind for objective in record.job.objectives] if record.job else []:
            losses = record.scalar(site, f"train/loss/{kind}")
            chance = record.scalar(site, f"train/chance/{kind}")
            if losses:
                first, last = min(losses), max(losses)
                ends = [f"{losses[first]:.4f}", f"{losses[last]:.4f}"]
                level = f"{chance[last]:.4f}" if last in chance else MISSING
                rows.append([site, kind.replace("_", " "), str(len(losses)), *ends, level])
    header = ["site", "objective", "rounds", "first loss", "last loss", "chance level"]
    note = "Mean over the steps of a round. At its chance level the contrastive loss tells no patient from another."
    return limited(Table("Training loss", header, rows, note, numeric=(2, 3, 4, 5)))


def contributions_table(run: Run) -> Table:
    """Who contributed what: one row a round and site in a short run, one row a site in a long one."""
    record = read_run(run)
    if sum(len(r["sites"]) for r in record.rounds) > MOST_ROWS:
        return _contributions_by_site(record)
    rows = []
    for r in record.rounds:
        for c in r["sites"]:
            accepted = c["status"] == "accepted"
            cells = [str(c["samples"]), str(c["tensors"]), f"{c['norm']:.4g}"] if accepted else [MISSING] * 3
            rows.append([str(r["round"]), c["site"], c["status"], *cells, c["reason"]])
    header = ["round", "site", "status", "samples", "tensors", "update norm", "reason"]
    note = "Rounds are counted from 0. Samples: crops that trained the model; norm: L2 norm of the update."
    return Table("Contributions by round and site", header, rows, note, numeric=(0, 3, 4, 5))


def faults_table(run: Run) -> Table:
    """Contributions that were rejected or missing, consecutive rounds of one reason in one row.

    Then how often a site was idle or its update unused: that is no fault, and may be every other round.
    """
    quiet: Counter[tuple[str, str, str]] = Counter()
    spans: dict[tuple[str, str, str], list[list[int]]] = {}
    for r in read_run(run).rounds:
        for c in r["sites"]:
            if c["status"] == "accepted":
                continue
            if c["status"] in ("idle", "unused"):
                quiet[c["site"], c["status"], c["reason"]] += 1
                continue
            found = spans.setdefault((c["site"], c["status"], c["reason"]), [])
            if found and found[-1][1] == r["round"] - 1:
                found[-1][1] = r["round"]
            else:
                found.append([r["round"], r["round"]])
    rows = [
        (first, [site, str(first) if first == last else f"{first} to {last}", status, reason])
        for (site, status, reason), ranges in spans.items()
        for first, last in ranges
    ]
    ordered = [row for _, row in sorted(rows)]
    ordered += [[site, f"{n} in all", status, reason] for (site, status, reason), n in sorted(quiet.items())]
    return limited(Table("Sites that did not contribute", ["site", "rounds", "status", "reason"], ordered))


def owners_table(run: Run) -> Table:
    """Samples by site and group of tensors: what each site could train."""
    record = read_run(run)
    totals: dict[str, Counter[str]] = {site: Counter() for site in record.sites}
    for r in record.rounds:
        for c in r["sites"]:
            totals[c["site"]].update(c["owners"])
    groups = sorted({group for counter in totals.values() for group in counter}, key=lambda g: (g != "shared", g))
    rows = [[site, *(str(counter[group]) for group in groups)] for site, counter in totals.items()]
    note = (
        "Samples over all rounds. Tensors that embed, decode or fill a modality are trained, counted and averaged only "
        "by the sites that hold it."
    )
    table = Table(
        "Samples by group of tensors", ["site", *groups], rows, note, numeric=tuple(range(1, len(groups) + 1))
    )
    return limited(table)


def _contributions_by_site(record: RunRecord) -> Table:
    rows = []
    for site in record.sites:
        own = [c for r in record.rounds for c in r["sites"] if c["site"] == site]
        count = Counter(c["status"] for c in own)
        norms = [c["norm"] for c in own if c["status"] == "accepted"]
        numbers = [str(count[status]) for status in ("accepted", "unused", "idle", "rejected", "missing")]
        typical = f"{statistics.median(norms):.4g}" if norms else MISSING
        largest = f"{max(norms):.4g}" if norms else MISSING
        rows.append([site, *numbers, str(sum(c["samples"] for c in own)), typical, largest])
    header = ["site", "accepted", "unused", "idle", "rejected", "missing", "samples", "median norm", "largest norm"]
    note = f"Over {len(record.rounds)} rounds. Samples: crops that trained the model; norm: L2 norm of the update."
    return limited(Table("Contributions by site", header, rows, note, numeric=tuple(range(1, 9))))


def _compared(
    title: str,
    leading: list[str],
    found: Sequence[Measurement],
    controls: Sequence[str],
    note: str,
    cells: Callable[[Measurement], list[str]],
) -> Table:
    """One row a measurement, with the best of every row named; over sites where these are too many."""
    if len(found) > MOST_ROWS:
        wins = sum(m.beats_all for m in found)
        note = (
            f"{note} Medians over the sites; at the sites themselves the model is best in {wins} of {len(found)} rows."
        )
        found = over_sites(found)
    names = ["model", *controls]
    rows, best = [], []
    for m in found:
        values = ({} if m.model is None else {"model": m.model}) | m.controls
        numbers = [f"{values[name]:.4f}" if name in values else MISSING for name in names]
        winners = m.best if m.decidable else []
        rows.append([*cells(m), *numbers, _winner(m), _margin(m)])
        best.append(tuple(len(leading) + names.index(name) for name in winners))
    header = [*leading, *(WORDS.get(name, name) for name in names), "best", "model against best control"]
    numeric = tuple(n for n, name in enumerate(header) if name not in _TEXT)
    return limited(Table(title, header, rows, note, tuple(best), numeric))


def _reconstruction_cells(m: Measurement) -> list[str]:
    return [m.site, m.subject, _count(m.size), str(m.rounds)]


def _retrieval_cells(m: Measurement) -> list[str]:
    first, _, second = m.subject.partition("-")
    return [m.site, first, second, m.score, _count(m.size)]


def _pairs_cells(m: Measurement) -> list[str]:
    return [m.site, m.subject.removesuffix(" pairs"), m.score, _count(m.size)]


def _probe_cells(m: Measurement) -> list[str]:
    return [m.site, m.subject.replace("_", " "), m.score, _count(m.size)]


def _winner(m: Measurement) -> str:
    """Who is best, in words: a page must not say it by colour alone."""
    if not m.decidable:
        return "none: chance is 1"
    names = [WORDS.get(name, name) for name in m.best]
    return " = ".join(names) if len(names) < 3 else f"tie of {len(names)}"


def _margin(m: Measurement) -> str:
    """How far the model is from the best control: in percent of an error, otherwise the difference."""
    if m.model is None or m.best_control is None or not m.decidable:
        return MISSING
    if m.lower_is_better:
        return f"{100 * (m.model / m.best_control - 1):+.1f} %" if m.best_control else MISSING
    return f"{m.model - m.best_control:+.4f}"


def _count(value: float | None) -> str:
    return MISSING if value is None else f"{value:.0f}"


def objectives_fact(job: JobConfig) -> tuple[str, str]:
    """The line of a page's head that lists the objectives."""
    weights = (f"{o.kind.replace('_', ' ')} (weight {o.weight:g})" for o in job.objectives)
    return f"Objectives, {job.schedule}", "; ".join(weights)


def limited(table: Table) -> Table:
    """At most ``MOST_LINES`` rows, and how many there were."""
    left = len(table.rows) - MOST_LINES
    if left <= 0:
        return table
    note = f"{table.note} {left} further rows are not shown; contributions.csv and evaluation.jsonl have them.".strip()
    return replace(table, rows=table.rows[:MOST_LINES], best=table.best[:MOST_LINES], note=note)
