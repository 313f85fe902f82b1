"""Three phantom hospitals, one federation, one report: the whole way on one machine, in minutes."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from parametrium.cohort.phantom import write_phantom
from parametrium.config import SiteConfig, load_job, load_site
from parametrium.config.plain import write_plain
from parametrium.errors import Code, FederationError
from parametrium.federation.simulate import simulate
from parametrium.report.comparison import comparisons
from parametrium.report.federation import write_report
from parametrium.report.tables import Table, reconstruction_table, retrieval_summary_table
from parametrium.training.run_folder import judge

HOSPITALS = {"north": ("CT", "T1", "T2"), "east": ("CT", "CBCT"), "south": ("T2", "ADC", "PET")}
"""What the demonstration hospitals have; each shares a modality with another one."""

PATIENTS = 30
"""Patients of each hospital."""

HELD_OUT = 1 / 3
"""Share of them that is never trained on."""

MARKER = "parametrium-demo.txt"
TIMEOUT_S = 1800.0


@dataclass(frozen=True)
class DemoResult:
    """What the demonstration showed.

    Attributes:
        tables: short tables for a terminal.
        summary: in how many comparisons the federated encoder won.
        report: the page.
        problems: why the run did not pass; empty when it did.
    """

    tables: tuple[Table, ...]
    summary: tuple[str, ...]
    report: Path
    problems: tuple[str, ...]


def run_demo(
    folder: Path, job_file: Path, sites_folder: Path, seed: int | None, say: Callable[[str], None]
) -> DemoResult:
    """Draws the hospitals, runs the federation, writes the report.

    Args:
        folder: for everything; an earlier demonstration in it is replaced, anything else is left alone.
        job_file: the job.
        sites_folder: holds the hospitals' site configs, ``north.yaml`` and so on.
        seed: of patients and job; None takes the job's.
        say: is told what happens now.

    Raises:
        ConfigError: the job or a site config is wrong.
        FederationError: PM503 when the folder holds something else.
    """
    job = load_job(job_file)
    job = job if seed is None else job.model_copy(update={"seed": seed})
    _make_room(folder)
    sites = []
    for name, modalities in HOSPITALS.items():
        say(f"drawing {PATIENTS} patients of {name}: {', '.join(modalities)}")
        site, file = _hospital(folder, sites_folder / f"{name}.yaml", name)
        write_phantom(
            Path(site.cohort),
            patients=PATIENTS,
            modalities=modalities,
            seed=job.seed,
            site=name,
            test_fraction=HELD_OUT,
        )
        sites.append(file)
    say(f"federation of {len(sites)} hospitals: {job.rounds} rounds of {job.local_steps} steps in FLARE's simulator")
    run = simulate(job, sites, folder / "run", TIMEOUT_S)
    good, reasons = judge(run)
    page = write_report(run, with_sites=True)
    if not good:
        return DemoResult((), (), page, tuple(reasons))
    tables = (
        _narrow(reconstruction_table(run), ("volumes", "after rounds", "before training", "best")),
        _narrow(retrieval_summary_table(run), ("pairs", "candidates", "best")),
    )
    return DemoResult(tables, _summary(run), page, ())


def _make_room(folder: Path) -> None:
    """An empty folder with our marker; only a folder with the marker is emptied."""
    if (folder / MARKER).exists():
        shutil.rmtree(folder)
    elif folder.exists() and any(folder.iterdir()):
        raise FederationError(
            Code.RUN_INVALID,
            "the demonstration's folder holds something else; choose an empty or absent one with --out",
            site_detail=str(folder),
        )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARKER).write_text("Made by `parametrium demo`, which may remove this folder.\n", encoding="utf-8")


def _hospital(folder: Path, file: Path, name: str) -> tuple[SiteConfig, Path]:
    """The hospital's config with its own folders below ``folder``, and the file that holds it."""
    home = (folder / "hospitals" / name).resolve()
    places = {part: str(home / part) for part in ("cohort", "cache", "state")}
    site = load_site(file).model_copy(update={"site": name, **places})
    home.mkdir(parents=True)
    placed = home / "site.yaml"
    placed.write_text(write_plain(site.model_dump(mode="json")), encoding="utf-8")
    return site, placed


def _narrow(table: Table, without: tuple[str, ...]) -> Table:
    """The table without these columns and without its last one, so that it fits a terminal."""
    keep = [n for n, name in enumerate(table.header[:-1]) if name not in without]
    rows = [[row[n] for n in keep] for row in table.rows]
    return replace(table, header=[table.header[n] for n in keep], rows=rows, best=(), numeric=())


def _summary(run: Path) -> tuple[str, ...]:
    """One sentence for each control: how often the federated encoder was better."""
    lines = []
    found = comparisons(run)
    for kind, name in (("reconstruction", "reconstruction error"), ("retrieval", "retrieval")):
        of_kind = [c for c in found if c.what.startswith(kind)]
        for control in dict.fromkeys(c.control for c in of_kind):
            against = [c.better for c in of_kind if c.control == control]
            lines.append(f"{name}: better than {control.replace('_', ' ')} in {sum(against)} of {len(against)}")
    return tuple(lines)
