"""The command line: parse, call, print; nothing else.

Exit codes: 0 done; 1 the run or the cohort did not pass; 2 config; 3 cohort or cache; 4 training or checkpoint;
5 federation; 6 the site's policy; 9 unexpected.
"""

import json
import logging
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from parametrium import __version__
from parametrium.config import VOCABULARY, job_schema, load_job, load_site, site_schema
from parametrium.errors import (
    Code,
    CohortError,
    ConfigError,
    DataError,
    FederationError,
    ParametriumError,
    PolicyError,
    TrainingError,
)

EXIT_CODES: dict[type[ParametriumError], int] = {
    ConfigError: 2,
    CohortError: 3,
    DataError: 3,
    TrainingError: 4,
    FederationError: 5,
    PolicyError: 6,
}

app = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode=None, help=__doc__)
cohort_app = typer.Typer(no_args_is_help=True, help="A hospital's images and clinical rows.")
job_app = typer.Typer(no_args_is_help=True, help="What is learned, as a FLARE job folder.")
app.add_typer(cohort_app, name="cohort")
app.add_typer(job_app, name="job")

out = Console()
err = Console(stderr=True)

JobFile = Annotated[Path, typer.Argument(metavar="JOB.yaml", help="the job")]
SiteFile = Annotated[Path, typer.Argument(metavar="SITE.yaml", help="the site config")]
RunFolderOption = Annotated[Path, typer.Option("--out", metavar="RUN", help="run folder, must not exist")]
AsJson = Annotated[bool, typer.Option("--json", help="print one JSON object instead of text")]


@app.callback()
def _root(
    debug: Annotated[bool, typer.Option("--debug", help="show the traceback of an error")] = False,
) -> None:
    """Federated multi-modal pretraining of a 3D vision transformer."""
    if debug:
        os.environ["PARAMETRIUM_DEBUG"] = "1"


@app.command()
def version(as_json: AsJson = False) -> None:
    """Print the version.  Example: parametrium version."""
    _answer({"version": __version__}, as_json, lambda: out.print(__version__))


@app.command()
def schema(kind: Annotated[str, typer.Argument(help="job or site")]) -> None:
    """Print the JSON schema of a config file, for editors.  Example: parametrium schema job > job.schema.json."""
    schemas = {"job": job_schema, "site": site_schema}
    if kind not in schemas:
        raise ConfigError(Code.CONFIG_INVALID_VALUE, f"schema: choose one of {', '.join(schemas)}, got {kind!r}")
    print(json.dumps(schemas[kind](), indent=2))  # noqa: T201 - a document for a file, not a message


# ------------------------------------------------------------------------------------------------------- cohort


@cohort_app.command("import")
def cohort_import(
    source: Annotated[Path, typer.Argument(help="folder per patient, one NIfTI a modality, and subjects.csv")],
    cohort: Annotated[Path, typer.Argument(help="folder for cohort.csv; made when absent")],
    site: Annotated[str | None, typer.Option(help="take only subjects of this site (column site)")] = None,
    rename: Annotated[list[str] | None, typer.Option(help="FILE=MODALITY, e.g. DOSE=RTDOSE")] = None,
    drop: Annotated[list[str] | None, typer.Option(help="leave this modality out, e.g. DOSE")] = None,
    rescale: Annotated[list[str] | None, typer.Option(help="MODALITY=SLOPE,INTERCEPT, e.g. CT=1,-1000")] = None,
    secret: Annotated[Path | None, typer.Option(help="the site's secret for pseudonyms; made on first use")] = None,
    as_json: AsJson = False,
) -> None:
    """Write a cohort table for a folder of NIfTI files; copies nothing.

    Example: parametrium cohort import scans/ cohorts/a --drop DOSE --rescale CT=1,-1000
    """
    from parametrium.cohort.importers.folders import import_folders

    report = import_folders(
        source,
        cohort,
        site=site,
        rename=_pairs(rename, "rename"),
        drop=drop or [],
        rescale={name: _slope(text) for name, text in _pairs(rescale, "rescale").items()},
        secret=secret,
        vocabulary=VOCABULARY,
    )
    _answer(report.summary(), as_json, lambda: _print_counts("imported", report.summary()))


@cohort_app.command("phantom")
def cohort_phantom(
    cohort: Annotated[Path, typer.Argument(help="folder to write; must be empty or absent")],
    patients: Annotated[int, typer.Option(min=1, help="how many")] = 24,
    modalities: Annotated[str, typer.Option(help="comma-separated: CT CBCT T1 T2 ADC PET")] = "CT,T2,PET",
    seed: Annotated[int, typer.Option(min=0)] = 0,
    site: Annotated[str, typer.Option(help="its scanners look different from those of other names")] = "phantom",
    studies: Annotated[int, typer.Option(min=1, help="studies over the treatment")] = 1,
    misregistration: Annotated[float, typer.Option(min=0, help="millimetres between modalities")] = 0.0,
    incomplete: Annotated[float, typer.Option(min=0, max=1, help="chance that a modality is missing")] = 0.0,
    jobs: Annotated[int, typer.Option(min=1, help="processes")] = 2,
    as_json: AsJson = False,
) -> None:
    """Draw a synthetic pelvic cohort from one seed.

    Example: parametrium cohort phantom cohorts/p --patients 24 --modalities CT,T2,PET --seed 1
    """
    from parametrium.cohort.phantom import write_phantom

    with _progress("phantom") as progress:
        write_phantom(
            cohort,
            patients=patients,
            modalities=modalities.split(","),
            seed=seed,
            site=site,
            studies=studies,
            misregistration_mm=misregistration,
            incomplete=incomplete,
            jobs=jobs,
            progress=progress,
        )
    _answer({"patients": patients}, as_json, lambda: out.print(f"{patients} patients written"))


@cohort_app.command("prepare")
def cohort_prepare(
    site_file: SiteFile,
    job_file: Annotated[Path, typer.Option("--job", metavar="JOB.yaml", help="the job")],
    as_json: AsJson = False,
) -> None:
    """Build the cache of a site for a job; rounds do it on their own when needed.

    Example: parametrium cohort prepare site_configs/north.yaml --job jobs/pretrain.yaml
    """
    from parametrium.cohort.manifest import read_cohort
    from parametrium.data.prepare import prepare_cohort

    job, site = load_job(job_file), load_site(site_file)
    cohort = read_cohort(Path(site.cohort), job.modalities)
    with _progress("prepare") as progress:
        prepared = prepare_cohort(cohort, job.preparation, Path(site.cache), jobs=site.prepare_jobs, progress=progress)
    counts: dict[str, int] = {"patients": len(prepared.patients)}
    for patient in prepared.patients:
        for volume in patient.volumes:
            counts[f"volumes {volume.modality}"] = counts.get(f"volumes {volume.modality}", 0) + 1
    for problem in prepared.problems:
        name = f"left out: {problem.reason.value}"
        counts[name] = counts.get(name, 0) + 1

    def show() -> None:
        _print_counts("prepared", counts)
        for problem in prepared.problems:
            out.print(f"  {problem.patient} {problem.modality}: {problem.reason.value}", markup=False)

    _answer(counts, as_json, show)


# ------------------------------------------------------------------------------------------------------- runs


@app.command()
def train(job_file: JobFile, site_file: SiteFile, run: RunFolderOption, as_json: AsJson = False) -> None:
    """Train the job's rounds at one site, without a federation.

    Example: parametrium train jobs/pretrain.yaml site_configs/north.yaml --out runs/local
    """
    from parametrium.site.local import train_locally

    folder = train_locally(load_job(job_file), load_site(site_file), run)
    _finish(folder, as_json)


@app.command()
def simulate(
    job_file: JobFile,
    site_files: Annotated[list[Path], typer.Argument(metavar="SITE.yaml...", help="one config a site")],
    run: RunFolderOption,
    timeout: Annotated[float, typer.Option(min=1, help="seconds after which the simulator is ended")] = 6 * 3600.0,
    as_json: AsJson = False,
) -> None:
    """Run a federation in FLARE's simulator, every site in its own process.

    Example: parametrium simulate jobs/pretrain.yaml site_configs/north.yaml site_configs/east.yaml --out runs/one
    """
    from parametrium.federation.simulate import simulate as run_simulation

    _finish(run_simulation(load_job(job_file), site_files, run, timeout), as_json)


@app.command()
def demo(
    run: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="folder for hospitals, run and report")] = Path(
        "demo"
    ),
    job_file: Annotated[Path, typer.Option("--job", help="the job")] = Path("jobs/pretrain.yaml"),
    sites: Annotated[Path, typer.Option("--sites", help="folder with the hospitals' site configs")] = Path(
        "site_configs"
    ),
    seed: Annotated[int | None, typer.Option(min=0, help="another seed for phantom and job")] = None,
) -> None:
    """Three phantom hospitals, one federation, one report: on this machine, in minutes.

    Example: parametrium demo --out demo
    """
    from parametrium.demo import run_demo

    result = run_demo(run, job_file, sites, seed, lambda text: out.print(text, markup=False))
    for table in result.tables:
        _print_table(table.title, table.header, table.rows)
    out.print(f"report: {result.report}", markup=False, soft_wrap=True)
    if result.problems:
        for problem in result.problems:
            err.print(problem, markup=False)
        raise typer.Exit(1)


@app.command()
def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="a run folder")],
    with_sites: Annotated[
        bool, typer.Option(help="add the sites' pictures found in RUN/sites (this machine only)")
    ] = False,
) -> None:
    """Write RUN/report.html: losses, contributions, evaluation with its controls.

    Example: parametrium report runs/one
    """
    from parametrium.report.federation import write_report

    out.print(str(write_report(run, with_sites=with_sites)), markup=False, soft_wrap=True)


# ------------------------------------------------------------------------------------------------------- jobs


@job_app.command("export")
def job_export(job_file: JobFile, folder: Annotated[Path, typer.Argument(metavar="DIR")]) -> None:
    """Write a FLARE job folder without code, for the admin console's submit_job.

    Example: parametrium job export jobs/pretrain.yaml exported
    """
    from parametrium.federation.job_folder import export_job

    out.print(str(export_job(load_job(job_file), folder)), markup=False, soft_wrap=True)


@job_app.command("export-all")
def job_export_all(
    jobs: Annotated[Path, typer.Argument(help="folder of job files")],
    folder: Annotated[Path, typer.Argument(help="folder of exported jobs, rewritten")],
) -> None:
    """Export every job of a folder; what `make app` runs.

    Example: parametrium job export-all jobs app
    """
    from parametrium.federation.job_folder import export_all

    for path in export_all(jobs, folder):
        out.print(str(path), markup=False, soft_wrap=True)


# ------------------------------------------------------------------------------------------------------- printing


def main() -> None:
    """Entry point: runs the command; a known error becomes one sentence and an exit code."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    try:
        app()
    except ParametriumError as error:
        if os.environ.get("PARAMETRIUM_DEBUG"):
            traceback.print_exc()
        err.print(f"error {error}", markup=False, soft_wrap=True, highlight=False)
        if error.site_detail:
            err.print(f"  here: {error.site_detail}", markup=False, soft_wrap=True, highlight=False)
        sys.exit(EXIT_CODES.get(type(error), 9))


def _finish(folder: Path, as_json: bool) -> None:
    """Prints what the run's own manifest says, and exits by it."""
    from parametrium.training.run_folder import judge

    ok, reasons = judge(folder)
    answer = {"run": str(folder), "complete": ok, "reasons": list(reasons)}
    _answer(answer, as_json, lambda: out.print("complete" if ok else "failed: " + "; ".join(reasons), markup=False))
    if not ok:
        raise typer.Exit(1)


def _answer(data: dict[str, Any], as_json: bool, show: Callable[[], None]) -> None:
    if as_json:
        print(json.dumps(data, sort_keys=True))  # noqa: T201 - for machines, without colour or wrapping
    else:
        show()


def _print_counts(title: str, counts: dict[str, int]) -> None:
    _print_table(title, ["what", "number"], [[name, str(count)] for name, count in counts.items()])


def _print_table(title: str, header: list[str], rows: list[list[str]]) -> None:
    table = Table(title=title, title_justify="left")
    for name in header:
        table.add_column(name, justify="left" if name == header[0] else "right")
    for row in rows:
        table.add_row(*row)
    out.print(table)


def _pairs(texts: list[str] | None, option: str) -> dict[str, str]:
    pairs = {}
    for text in texts or []:
        name, separator, value = text.partition("=")
        if not separator or not name or not value:
            raise ConfigError(Code.CONFIG_INVALID_VALUE, f"--{option} must look like NAME=VALUE, got {text!r}")
        pairs[name] = value
    return pairs


def _slope(text: str) -> tuple[float, float]:
    try:
        slope, intercept = (float(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(
            Code.CONFIG_INVALID_VALUE, f"--rescale must look like CT=SLOPE,INTERCEPT, got {text!r}"
        ) from None
    return slope, intercept


class _progress:  # noqa: N801 - reads as a verb in a with statement
    """Progress on a terminal, silence elsewhere; calls as (done, total)."""

    def __init__(self, title: str) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self.progress = Progress(*columns, console=err, disable=not err.is_terminal)
        self.task = self.progress.add_task(title, total=None)

    def __enter__(self) -> Callable[[int, int], None]:
        self.progress.start()
        return lambda done, total: self.progress.update(self.task, completed=done, total=total)

    def __exit__(self, *_: object) -> None:
        self.progress.stop()
