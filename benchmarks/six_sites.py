"""Six hospitals' real scans: per-tensor aggregation beside whole-model averaging and beside training alone.

    python benchmarks/six_sites.py --out six                        # three seeds, 10 rounds of 18 steps
    python benchmarks/six_sites.py --out six --rounds 1 --steps 4 --seeds 0     # only to see that it works

It imports three public cohorts split by their real sites (nothing is copied), prepares one cache a site that all arms
share, and for each seed runs a federation of the six sites twice in FLARE's simulator, every site in its own process,
and each site alone for as many steps. The tables are written to OUT/six_sites.md and printed; every sentence below them
is computed from their numbers. An arm that came to its end is not run again: after an interruption, give the same
command. The scans are looked for in ../shared/data, seen from the checkout; --data names another place.
"""

import argparse
import csv
import shutil
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from parametrium.cohort.importers.folders import ImportReport, import_folders
from parametrium.cohort.manifest import read_cohort
from parametrium.cohort.table import write_table
from parametrium.config import VOCABULARY, JobConfig, load_site, parse_job
from parametrium.data.prepare import prepare_cohort
from parametrium.errors import ParametriumError
from parametrium.federation.simulate import simulate
from parametrium.report.comparison import RECALLS, reconstructions, retrievals
from parametrium.report.record import RunRecord, read_run

CHECKOUT = Path(__file__).resolve().parents[1]
DATA = CHECKOUT.parent / "shared" / "data"
TIMEOUT_S = 2 * 3600.0
MARKS = ("<!-- measured: begin -->", "<!-- measured: end -->")


class Site(NamedTuple):
    """A hospital: its name in the subject table, its cohort, and what the import has to be told."""

    name: str
    cohort: str
    drop: tuple[str, ...] = ()
    rescale: Mapping[str, tuple[float, float]] = {}


SITES = (
    Site("cs", "glioma"),
    Site("du", "glioma"),
    Site("fg", "glioma"),
    Site("ht", "glioma"),
    Site("mcgill", "sarcoma"),
    Site("openkbp", "headneck", drop=("DOSE",), rescale={"CT": (1.0, -1000.0)}),
)

JOB: dict[str, Any] = {
    "name": "six-sites",
    "modalities": ["CT", "PET", "T1", "T1c", "FLAIR"],
    "preparation": {"spacing_mm": [3.0, 3.0, 3.0]},
    "crop": [48, 48, 48],
    "model": {"preset": "tiny", "patch": 8},
    "objectives": [
        {"kind": "masked_reconstruction", "mask_ratio": 0.75},
        {"kind": "cross_modal_reconstruction", "mask_ratio": 0.75},
        {
            "kind": "soft_contrastive",
            "start": 0.4,
            "patients": 8,
            "crops": 2,
            "mask_ratio": 0.5,
            "temperature": 0.5,
        },
    ],
    "schedule": "cyclic",
    "clinical": [
        {"kind": "continuous", "name": "age", "unit": "years", "lower": 14.0, "upper": 100.0, "sigma": 10.0},
        {"kind": "nominal", "name": "sex", "levels": ["FEMALE", "MALE"]},
        {
            "kind": "nominal",
            "name": "histology",
            "levels": ["Astrocytoma", "Oligoastrocytoma", "Oligodendroglioma"],
        },
        {"kind": "ordinal", "name": "grade", "levels": ["G2", "G3"]},
        {"kind": "nominal", "name": "lung_metastasis", "levels": ["0", "1"]},
    ],
    "batch": {"patients": 6, "volumes_per_patient": 2},
    "optimiser": {"learning_rate": 2e-3},
    "rounds": 10,
    "local_steps": 18,
    "minimum_sites": len(SITES),
    "evaluation": {"crops": 8, "retrieval": True, "pictures": False},
}

FEDERATED = {"per_tensor": "per_tensor", "whole_model": "whole_model"}
ARMS = (*FEDERATED, "local_only")
MINIMUM_PATIENTS = 5  # the smallest site, fg, trains on 9


def job_of(**changes: Any) -> JobConfig:
    """The job, with some settings replaced."""
    return parse_job({**JOB, **changes})


# ------------------------------------------------------------------------------------------------------- hospitals


def import_site(site: Site, data: Path, out: Path) -> ImportReport:
    """Writes a site's cohort tables to OUT/cohorts/<site>; the glioma sites' clinical rows come from TCGA's table."""
    cohort = out / "cohorts" / site.name
    source = data / "cohorts" / site.cohort
    report = import_folders(source, cohort, site=site.name, drop=site.drop, rescale=site.rescale, vocabulary=VOCABULARY)
    table = data / "clinical" / "lgg_tcga_clinical.csv"
    if site.cohort == "glioma" and table.is_file():
        _join_clinical(cohort, table)
    return report


def _join_clinical(cohort: Path, table: Path) -> None:
    """Adds age, sex and histology to a cohort's clinical rows, as a hospital would: by its own table of pseudonyms."""
    key = cohort.with_name(f"{cohort.name}.secret.patients.csv")
    pseudonyms = {row["subject"]: row["pseudonym"] for row in _rows(key)}
    taken = {row["patient"] for row in _rows(cohort / "cohort.csv")}
    known = {row["patient"]: row for row in _rows(cohort / "clinical.csv")}
    for row in _rows(table):
        patient = pseudonyms.get(row["Tumor"].replace("-", "_"))
        if patient in taken:
            found = {
                "age": row["age_at_initial_pathologic"],
                "sex": row["gender"],
                "histology": row["histological_type"],
            }
            cells = {name: cell for name, cell in found.items() if cell != "NA"}
            known[patient] = known.get(patient, {"patient": patient}) | cells
    rows = [known[patient] for patient in sorted(known)]
    write_table(cohort / "clinical.csv", ("patient", "grade", "age", "sex", "histology"), rows)


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def write_site(site: Site, out: Path, minimum_patients: int = MINIMUM_PATIENTS) -> Path:
    """Writes a site's config, which all arms and seeds share; a run keeps the site's state in its own folder."""
    config = {
        "site": site.name,
        "cohort": str(Path("..") / "cohorts" / site.name),
        "cache": str(Path("..") / "cache" / site.name),
        "state": str(Path("..") / "state" / site.name),
        "device": "cpu",
        "threads": 1,
        "policy": {"minimum_patients": minimum_patients},
    }
    path = out / "sites" / f"{site.name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    return path


def prepare(sites: Sequence[Path], job: JobConfig) -> None:
    """Makes every site's cache before the first arm, so that no arm's seconds hold it."""
    for path in sites:
        site = load_site(path)
        started = time.monotonic()
        cohort = read_cohort(Path(site.cohort), job.modalities)
        prepared = prepare_cohort(cohort, job.preparation, Path(site.cache), jobs=2)
        count = sum(len(patient.volumes) for patient in prepared.patients)
        seconds = time.monotonic() - started
        say(f"{site.site}: {len(prepared.patients)} patients, {count} volumes ready in {seconds:.0f} s")


# ------------------------------------------------------------------------------------------------------------ arms


def run_arms(seeds: Sequence[int], sites: Sequence[Path], runs: Path, changes: Mapping[str, Any]) -> bool:
    """Every arm of every seed; False where one did not come to its end."""
    good = True
    for seed in seeds:
        folder = runs / f"seed_{seed}"
        for arm, rule in FEDERATED.items():
            job = job_of(**changes, seed=seed, aggregation={"rule": rule})
            good &= _timed(
                folder / arm, job, f"seed {seed} {arm}", lambda j, run: simulate(j, [*sites], run, TIMEOUT_S)
            )
        good &= _run_alone(seed, sites, folder / "local_only", changes)
    return good


def _run_alone(seed: int, sites: Sequence[Path], folder: Path, changes: Mapping[str, Any]) -> bool:
    """Each site by itself with the same job, two sites at a time, each in a process of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    job = job_of(**changes, seed=seed, minimum_sites=1)
    job_file = folder / "job.yaml"
    job_file.write_text(yaml.safe_dump(job.model_dump(mode="json"), sort_keys=False), encoding="utf-8")

    def train(site: Path) -> bool:
        def start(_: JobConfig, run: Path) -> None:
            command = [str(Path(sys.executable).with_name("parametrium")), "train", str(job_file), str(site)]
            with run.with_suffix(".log").open("wb") as log:
                subprocess.run([*command, "--out", str(run)], stdout=log, stderr=subprocess.STDOUT, check=False)

        return _timed(folder / site.stem, job, f"seed {seed} local_only {site.stem}", start)

    with ThreadPoolExecutor(2) as pool:
        return all(list(pool.map(train, sites)))


def _timed(run: Path, job: JobConfig, title: str, start: Any) -> bool:
    """Runs one arm, unless it is there already; remembers its seconds beside it and says one line."""
    record = _finished(run, job)
    if record is not None:
        say(f"{title}: there already ({_seconds(run):.0f} s)")
        return True
    if run.exists():  # cut off, or of other settings: it cannot be continued
        shutil.rmtree(run)
    run.parent.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    failure = ""
    try:
        start(job, run)
    except ParametriumError as error:
        failure = str(error)
    seconds = time.monotonic() - started
    run.with_suffix(".seconds").write_text(f"{seconds:.1f}\n", encoding="utf-8")
    good = _finished(run, job) is not None
    if not good and not failure:
        failure = "; ".join(read_run(run).reasons) if run.exists() else "no run folder; see the log beside it"
    say(f"{title}: {'complete' if good else 'FAILED: ' + failure} in {seconds:.0f} s")
    return good


def _finished(run: Path, job: JobConfig) -> RunRecord | None:
    """The run, where it is complete by ``judge`` and of this very job."""
    try:
        record = read_run(run)
    except ParametriumError:
        return None
    return record if record.state == "complete" and record.job == job else None


def _seconds(run: Path) -> float:
    path = run.with_suffix(".seconds")
    return float(path.read_text(encoding="utf-8")) if path.is_file() else float("nan")


def say(text: str) -> None:
    print(text, flush=True)


# --------------------------------------------------------------------------------------------------------- results

BySeed = dict[int, float]
Cell = tuple[str, str]
"""Site and modality."""

CONTROLS = ("before", "neighbour_mean", "modality_mean")
FEATURES = ("untrained", "body_mask", "voxels", "chance")
ERROR_COLUMNS = ("before", *ARMS, "neighbour_mean", "modality_mean")
RECALL_COLUMNS = (*ARMS, *FEATURES)


@dataclass
class Results:
    """Everything measured, by seed.

    Attributes:
        seeds: those that were asked for.
        errors: by cell, then column of the table.
        recalls: by site and recall, then column: sum of hits over queries, see ``queries``.
        queries: by site and recall, then seed: how many queries there were; each has its own candidates.
        candidates: by site and recall, the smallest and the largest number of candidates.
        facts: by site, what it said of its cohort.
        seconds: by arm.
    """

    seeds: tuple[int, ...]
    errors: dict[Cell, dict[str, BySeed]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(dict)))
    recalls: dict[Cell, dict[str, BySeed]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(dict)))
    queries: dict[Cell, BySeed] = field(default_factory=lambda: defaultdict(dict))
    candidates: dict[Cell, tuple[int, int]] = field(default_factory=dict)
    facts: dict[str, Mapping[str, float]] = field(default_factory=dict)
    seconds: dict[str, BySeed] = field(default_factory=lambda: defaultdict(dict))

    @property
    def owners(self) -> dict[str, int]:
        """How many sites hold a modality."""
        held = [modality for _, modality in self.errors]
        return {name: held.count(name) for name in JOB["modalities"] if name in held}


def collect(runs: Path, seeds: Sequence[int], names: Sequence[str]) -> Results:
    """Reads every run that is complete."""
    results = Results(tuple(seeds))
    for seed in seeds:
        folder = runs / f"seed_{seed}"
        for arm in ARMS:
            places = [folder / arm] if arm in FEDERATED else [folder / arm / name for name in names]
            for run in places:
                _add_run(results, seed, arm, run)
    return results


def _add_run(results: Results, seed: int, arm: str, run: Path) -> None:
    try:
        record = read_run(run)
    except ParametriumError:
        return
    if record.state != "complete":
        return
    results.seconds[arm][seed] = results.seconds[arm].get(seed, 0.0) + _seconds(run)
    for m in reconstructions(record):
        columns = results.errors[m.site, m.subject]
        if m.model is not None:
            columns[arm][seed] = m.model
        if arm == "per_tensor":
            for name in CONTROLS:
                columns[name][seed] = m.controls[name]
    for m in retrievals(record):
        if m.decidable and m.model is not None:
            _add_recall(results, seed, arm, m.site, m.score, {"": m.model} | m.controls, m.size)
    if arm == "per_tensor":
        results.facts |= {site: record.facts(site) for site in record.sites}


def _add_recall(
    results: Results, seed: int, arm: str, site: str, score: str, values: Mapping[str, float], size: int
) -> None:
    """Adds one ordered pair of modalities as hits: a query counts the same whatever pair it belongs to."""
    columns = {arm: values[""]}
    if arm == "per_tensor":
        columns |= {name: values[name] for name in FEATURES if name in values}
        results.queries[site, score][seed] = results.queries[site, score].get(seed, 0) + size
        low, high = results.candidates.get((site, score), (size, size))
        results.candidates[site, score] = min(low, size), max(high, size)
    for name, value in columns.items():
        sums = results.recalls[site, score][name]
        sums[seed] = sums.get(seed, 0.0) + value * size


def mean_over_cells(results: Results, column: str, cells: Iterable[Cell]) -> BySeed:
    """By seed, where every cell was measured."""
    values = [results.errors[cell].get(column, {}) for cell in cells]
    return {
        seed: statistics.fmean(v[seed] for v in values)
        for seed in results.seeds
        if values and all(seed in v for v in values)
    }


def difference(first: BySeed, second: BySeed) -> BySeed:
    """First minus second, where both were measured."""
    return {seed: first[seed] - second[seed] for seed in first if seed in second}


def recall(results: Results, sites: Iterable[str], score: str, column: str) -> BySeed:
    """Share of hits among all queries of these sites."""
    held = [(site, score) for site in sites if (site, score) in results.candidates]
    found = {}
    for seed in results.seeds:
        total = sum(results.queries[key].get(seed, 0.0) for key in held)
        if total and all(seed in results.recalls[key].get(column, {}) for key in held):
            found[seed] = sum(results.recalls[key][column][seed] for key in held) / total
    return found


# ---------------------------------------------------------------------------------------------------------- tables


def shown(values: BySeed, sign: bool = False) -> str:
    """Mean and standard deviation over seeds."""
    if not values:
        return "-"
    form = "+.3f" if sign else ".3f"
    mean = format(statistics.fmean(values.values()), form)
    return mean + (f" ± {statistics.stdev(values.values()):.3f}" if len(values) > 1 else "")


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return ["| " + " | ".join(row) + " |" for row in (header, ["---"] * len(header), *rows)]


def error_table(results: Results) -> list[str]:
    """Reconstruction error by site and modality, then the means."""
    order = JOB["modalities"]
    cells = sorted(results.errors, key=lambda cell: (cell[0], order.index(cell[1])))
    rows = [
        [site, modality, *(shown(results.errors[site, modality].get(c, {})) for c in ERROR_COLUMNS)]
        for site, modality in cells
    ]
    for modality, count in results.owners.items():
        own = [cell for cell in cells if cell[1] == modality]
        means = (shown(mean_over_cells(results, c, own)) for c in ERROR_COLUMNS)
        rows.append([f"*mean of {count}*", modality, *means])
    means = (shown(mean_over_cells(results, c, cells)) for c in ERROR_COLUMNS)
    rows.append([f"**mean of {len(cells)}**", "all", *means])
    return table(["site", "modality", *(name.replace("_", " ") for name in ERROR_COLUMNS)], rows)


def paired_table(results: Results) -> list[str]:
    """What per-tensor aggregation gains, paired by cell and seed."""
    rows = []
    for modality, count in [*results.owners.items(), ("all", 0)]:
        cells = [cell for cell in results.errors if modality in (cell[1], "all")]
        row = [modality, str(count or "")]
        for peer in ("whole_model", "local_only"):
            gain = _gain(results, peer, cells)
            lower, total = _cells_lower(results, "per_tensor", peer, cells)
            row += [shown(gain, sign=True), f"{lower} of {total}"]
        rows.append(row)
    header = [
        "modality",
        "sites that hold it",
        "whole model minus per tensor",
        "cells where per tensor is lower",
        "local only minus per tensor",
        "cells where per tensor is lower",
    ]
    return table(header, rows)


def _gain(results: Results, peer: str, cells: Sequence[Cell]) -> BySeed:
    return difference(mean_over_cells(results, peer, cells), mean_over_cells(results, "per_tensor", cells))


def _cells_lower(results: Results, column: str, peer: str, cells: Sequence[Cell]) -> tuple[int, int]:
    """In how many cells the mean over seeds of a column is below that of another."""
    pairs = [difference(results.errors[c].get(peer, {}), results.errors[c].get(column, {})) for c in cells]
    known = [statistics.fmean(pair.values()) for pair in pairs if pair]
    return sum(value > 0 for value in known), len(known)


def recall_groups(results: Results) -> dict[str, list[str]]:
    """Sites by title of the row: each alone, then the sites of a cohort together where there are several."""
    measured = {name for name, _ in results.candidates}
    having = [site for site in SITES if site.name in measured]
    groups = {site.name: [site.name] for site in having}
    for cohort in dict.fromkeys(site.cohort for site in having):
        members = [site.name for site in having if site.cohort == cohort]
        if len(members) > 1:
            groups[f"all {cohort} sites"] = members
    return groups


def recall_table(results: Results) -> list[str]:
    """Retrieval by site, beside its controls."""
    rows = []
    for title, sites in recall_groups(results).items():
        for score in RECALLS.values():
            held = [(site, score) for site in sites if (site, score) in results.candidates]
            if not held:
                continue
            low = min(results.candidates[key][0] for key in held)
            high = max(results.candidates[key][1] for key in held)
            queries = sum(max(results.queries[key].values()) for key in held)
            values = (shown(recall(results, sites, score, column)) for column in RECALL_COLUMNS)
            rows.append([title, score, f"{low}-{high}" if low < high else str(low), str(queries), *values])
    return table(["site", "", "candidates", "queries", *(name.replace("_", " ") for name in RECALL_COLUMNS)], rows)


def cohort_table(results: Results) -> list[str]:
    """Patients, volumes and problems by site."""
    rows = []
    for site, facts in sorted(results.facts.items()):
        volumes = _named(facts, "site/volumes/")
        problems = _named(facts, "site/problems/")
        counts = [f"{facts.get(f'site/{name}', 0):.0f}" for name in ("patients", "held_out_patients")]
        rows.append([site, *counts, volumes, problems or "none"])
    return table(["site", "training patients", "held out", "training volumes", "problems"], rows)


def _named(facts: Mapping[str, float], prefix: str) -> str:
    return ", ".join(f"{k.removeprefix(prefix)} {v:.0f}" for k, v in facts.items() if k.startswith(prefix))


def time_table(results: Results) -> list[str]:
    """Seconds an arm took, by seed."""
    rows = [
        [
            arm.replace("_", " "),
            *(f"{results.seconds[arm][s]:.0f}" if s in results.seconds[arm] else "-" for s in results.seeds),
        ]
        for arm in ARMS
    ]
    return table(["seconds", *(f"seed {seed}" for seed in results.seeds)], rows)


# ---------------------------------------------------------------------------------------------------------- claims


def claims(results: Results) -> list[str]:
    """Which of the expected results the numbers bear out; each sentence is decided here, from the numbers."""
    cells = list(results.errors)
    found = [
        _everywhere(results, "the held-out error falls at every site and modality, in every seed", ("before",)),
        _everywhere(results, "it ends below both trivial predictors everywhere", ("neighbour_mean", "modality_mean")),
        _in_every_seed(results, "per tensor has a lower mean error than whole model", "whole_model"),
        _rare_gain_most(results),
        _in_every_seed(results, "per tensor has a lower mean error than local only", "local_only"),
    ]
    missing = [arm for arm in ARMS if set(mean_over_cells(results, arm, cells)) != set(results.seeds)]
    found += [_above_controls(results, title, sites) for title, sites in recall_groups(results).items()]
    note = [f"- Incomplete: {', '.join(missing)} lack a seed or a cell."] if missing else []
    return [f"- {sentence}" for sentence in found] + note


def _verdict(holds: bool, claim: str, evidence: str) -> str:
    return f"**{'Holds' if holds else 'Does not hold'}:** {claim}. {evidence[:1].upper()}{evidence[1:]}."


def _everywhere(results: Results, claim: str, peers: Sequence[str]) -> str:
    """Per tensor below its peers, in every cell and every seed."""
    told, all_below = [], True
    for peer in peers:
        gains = {
            f"{site} {modality}": difference(columns.get(peer, {}), columns.get("per_tensor", {}))
            for (site, modality), columns in sorted(results.errors.items())
        }
        total = sum(len(by_seed) for by_seed in gains.values())
        failed = [cell for cell, by_seed in gains.items() if any(gain <= 0 for gain in by_seed.values())]
        lost = sum(gain <= 0 for by_seed in gains.values() for gain in by_seed.values())
        all_below &= total > 0 and not lost
        where = f" (not always: {', '.join(failed)})" if failed and len(failed) < len(gains) else ""
        told.append(f"below {peer.replace('_', ' ')} in {total - lost} of {total} comparisons{where}")
    return _verdict(all_below, claim, "; ".join(told))


def _in_every_seed(results: Results, claim: str, peer: str) -> str:
    cells = list(results.errors)
    gains = _gain(results, peer, cells)
    lower, total = _cells_lower(results, "per_tensor", peer, cells)
    evidence = f"Difference {shown(gains, sign=True)}; lower in {lower} of {total} cells by the mean over seeds"
    return _verdict(bool(gains) and min(gains.values()) > 0, f"{claim}, in every seed", evidence)


def _rare_gain_most(results: Results) -> str:
    """Whether whole-model averaging costs most where few sites hold a modality."""
    gains = {m: _gain(results, "whole_model", [c for c in results.errors if c[1] == m]) for m in results.owners}
    means = {m: statistics.fmean(gain.values()) for m, gain in gains.items() if gain}
    rare = {m: v for m, v in means.items() if results.owners[m] <= 2}
    common = {m: v for m, v in means.items() if results.owners[m] > 2}
    told = ", ".join(f"{m} (held by {results.owners[m]}) {v:+.3f}" for m, v in means.items())
    holds = bool(rare and common) and min(rare.values()) > max(common.values())
    claim = "every modality that at most two sites hold gains more from per tensor than every other"
    return _verdict(holds, claim, f"Whole model minus per tensor: {told or 'not measured'}")


def _above_controls(results: Results, title: str, sites: Sequence[str]) -> str:
    """The model's retrieval against each control, by the mean over seeds."""
    verdicts, all_above = [], True
    for score in RECALLS.values():
        model = recall(results, sites, score, "per_tensor")
        if not model:
            continue
        lost = []
        for control in FEATURES:
            gain = difference(model, recall(results, sites, score, control))
            if not gain or statistics.fmean(gain.values()) <= 0:
                lost.append(control.replace("_", " "))
        all_above &= not lost
        verdicts.append(f"{score} {shown(model)} is " + (f"not above {', '.join(lost)}" if lost else "above all four"))
    claim = f"retrieval, {title}: per tensor is above chance, the untrained network, body mask and voxels"
    return _verdict(bool(verdicts) and all_above, claim, "; ".join(verdicts) or "Not measured")


def page(results: Results, rounds: int, steps: int) -> str:
    """The tables and what they say, as markdown."""
    seeds = ", ".join(map(str, results.seeds))
    crop, spacing = JOB["crop"][0], JOB["preparation"]["spacing_mm"][0]
    parts = [
        f"Six sites, {rounds} rounds of {steps} local steps, seeds {seeds}; preset {JOB['model']['preset']}, crops of "
        f"{crop}³ voxels of {spacing:g} mm, on CPU. Mean ± standard deviation over seeds; a seed changes weights, "
        "training crops and evaluation crops alike, so that differences within a seed are paired.",
        "",
        "### Held-out reconstruction error (mean squared error, lower is better)",
        "",
        *error_table(results),
        "",
        "Paired differences (positive: per tensor is better):",
        "",
        *paired_table(results),
        "",
        "### Retrieval of the same patient across modalities, held-out patients (higher is better)",
        "",
        "Hits over all ordered pairs of modalities; R@5 only where there are more than five candidates.",
        "",
        *recall_table(results),
        "",
        "### What holds and what does not",
        "",
        *claims(results),
        "",
        "### Cohorts and time",
        "",
        *cohort_table(results),
        "",
        "Wall time of a federation; for local only the sum over the six sites, which ran two at a time:",
        "",
        *time_table(results),
    ]
    return "\n".join(parts) + "\n"


def put_into(document: Path, text: str) -> None:
    """Replaces what stands between the marks of a document."""
    before, _, rest = document.read_text(encoding="utf-8").partition(MARKS[0])
    _, mark, after = rest.partition(MARKS[1])
    if not mark:
        raise SystemExit(f"{document.name} has no lines {MARKS[0]} and {MARKS[1]}")
    document.write_text(f"{before}{MARKS[0]}\n\n{text}\n{MARKS[1]}{after}", encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for tables, caches and runs")
    parser.add_argument("--data", type=Path, default=DATA, help="folder with cohorts/ and clinical/")
    parser.add_argument("--seeds", type=lambda text: [int(part) for part in text.split(",")], default=[0, 1, 2])
    parser.add_argument("--rounds", type=int, default=JOB["rounds"])
    parser.add_argument("--steps", type=int, default=JOB["local_steps"], help="local steps in a round")
    parser.add_argument("--doc", type=Path, help="also put the tables between the marks of this markdown file")
    arguments = parser.parse_args()
    missing = sorted({s.cohort for s in SITES if not (arguments.data / "cohorts" / s.cohort).is_dir()})
    if missing:
        print(f"the public scans are not there ({', '.join(missing)}); name their folder with --data", file=sys.stderr)
        return 2
    out = arguments.out.resolve()
    changes = {"rounds": arguments.rounds, "local_steps": arguments.steps}
    for site in SITES:
        say(f"{site.name}: imported {import_site(site, arguments.data, out).summary()}")
    sites = [write_site(site, out) for site in SITES]
    prepare(sites, job_of(**changes))
    runs = out / "runs" / f"{arguments.rounds}x{arguments.steps}"
    good = run_arms(arguments.seeds, sites, runs, changes)
    text = page(collect(runs, arguments.seeds, [site.name for site in SITES]), arguments.rounds, arguments.steps)
    (out / "six_sites.md").write_text(text, encoding="utf-8")
    if arguments.doc:
        put_into(arguments.doc, text)
    say("\n" + text)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
