"""Commands of the researcher: runs on this machine, and their report."""

import re
import shlex
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from parametrium.cli.options import AsJson, JobFile, SiteFile, example
from parametrium.cli.printing import answer, err, out, print_table, progress, say
from parametrium.config import load_job, load_site
from parametrium.errors import Code, ConfigError

SIX_HOURS_S = 21600.0

runs_app = typer.Typer()

RunFolderOption = Annotated[Path, typer.Option("--out", metavar="RUN", file_okay=False, help="must not hold a run")]
StartOption = Annotated[
    Path | None,
    typer.Option("--start", metavar="FOLDER", file_okay=False, help="checkpoint to start from, made by warm-start"),
]


@runs_app.command(epilog=example("train jobs/pretrain.yaml site_configs/north.yaml --out runs/local"))
def train(
    job_file: JobFile, site_file: SiteFile, run: RunFolderOption, start: StartOption = None, as_json: AsJson = False
) -> None:
    """Train the job's rounds at one site, without a federation.

    The job's minimum_sites is taken as 1.
    """
    from parametrium.site.local import train_locally

    job, site = load_job(job_file).model_copy(update={"minimum_sites": 1}), load_site(site_file)
    with _rounds(run, job.rounds):
        train_locally(job, site, run, start)
    _finish(run, as_json)


@runs_app.command(
    epilog=example("simulate jobs/pretrain.yaml site_configs/north.yaml site_configs/east.yaml --out runs/one")
)
def simulate(
    job_file: JobFile,
    site_files: Annotated[list[Path], typer.Argument(metavar="SITE.yaml", help="one config a site")],
    run: RunFolderOption,
    timeout: Annotated[
        float, typer.Option(metavar="SECONDS", min=1, help="after which the simulator is ended")
    ] = SIX_HOURS_S,
    start: StartOption = None,
    as_json: AsJson = False,
) -> None:
    """Run a federation on this machine, in FLARE's simulator.

    Every site has its own process.
    """
    from parametrium.federation.simulate import simulate as run_simulation

    job = load_job(job_file)
    if len(site_files) < job.minimum_sites:
        raise ConfigError(
            Code.CONFIG_INVALID_VALUE,
            f"the job's minimum_sites is {job.minimum_sites}, got {len(site_files)} site configs",
        )
    with _rounds(run, job.rounds):
        run_simulation(job, site_files, run, timeout, start)
    _finish(run, as_json)


@runs_app.command(epilog=example("demo --out demo"))
def demo(
    run: Annotated[
        Path, typer.Option("--out", metavar="FOLDER", file_okay=False, help="folder for hospitals, run and report")
    ] = Path("demo"),
    job_file: Annotated[Path, typer.Option("--job", metavar="JOB.yaml", help="the job")] = Path("jobs/pretrain.yaml"),
    sites: Annotated[
        Path, typer.Option("--sites", metavar="FOLDER", help="folder with the hospitals' site configs")
    ] = Path("site_configs"),
    seed: Annotated[int | None, typer.Option(metavar="N", min=0, help="another seed for phantom and job")] = None,
    as_json: AsJson = False,
) -> None:
    """Three phantom hospitals, one federation, one report.

    On this machine, in minutes.
    """
    from parametrium.demo import run_demo

    # Into the log of a machine that wants JSON, and out of its one object.
    result = run_demo(run, job_file, sites, seed, lambda text: say(text, err if as_json else out))

    def show() -> None:
        for table in result.tables:
            print_table(table.title, table.header, table.rows)
        for line in (*result.summary, f"report: {result.report}"):
            say(line)
        for problem in result.problems:
            say(problem, err)

    tables = [{"title": table.title, "header": table.header, "rows": table.rows} for table in result.tables]
    data = {"report": str(result.report), "summary": list(result.summary), "tables": tables}
    answer(data | {"problems": list(result.problems)}, as_json, show)
    if result.problems:
        raise typer.Exit(1)


@runs_app.command(epilog=example("report runs/one"))
def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="a run folder")],
    with_sites: Annotated[
        bool, typer.Option("--with-sites", help="add the sites' pictures found in RUN/sites (this machine only)")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write RUN/report.html.

    Losses, contributions, and the evaluation with its controls.
    """
    from parametrium.report.federation import write_report

    page = str(write_report(run, with_sites=with_sites))
    answer({"report": page}, as_json, lambda: say(page))


@runs_app.command(epilog=example("rollout runs/one scan.nii.gz --modality CT --out rollout.png"))
def rollout(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="a run folder")],
    volume: Annotated[Path, typer.Argument(metavar="VOLUME", help="a scan in a format that a cohort may hold")],
    target: Annotated[Path, typer.Option("--out", metavar="FILE.png", help="the picture")],
    modality: Annotated[
        str | None, typer.Option(metavar="NAME", help="of the scan; may be left out where the job has one")
    ] = None,
    number: Annotated[
        int | None, typer.Option("--round", metavar="N", min=0, help="the model after N rounds; the best by default")
    ] = None,
    slope: Annotated[float, typer.Option(metavar="X", help="value = slope * stored + intercept")] = 1.0,
    intercept: Annotated[float, typer.Option(metavar="X", help="see --slope")] = 0.0,
    as_json: AsJson = False,
) -> None:
    """Draw where the model looks in a scan: the picture shows a patient and is for this machine.

    Numbers are means over crops of the scan that overlap by half; docs/monitors.md says what they mean.
    """
    from parametrium.report.volume_rollout import draw_volume_rollout

    with progress("crops") as update:
        found = draw_volume_rollout(run, volume, target, modality, number, (slope, intercept), update)

    def show() -> None:
        say(f"{target}: {found.modality}, after {found.rounds} rounds")
        for name, value in found.numbers.items():
            say(f"  {name}: {value:.4g}")

    data = {"picture": str(target), "modality": found.modality, "round": found.rounds, "numbers": dict(found.numbers)}
    answer(data, as_json, show)


def _finish(folder: Path, as_json: bool) -> None:
    """Prints what the run's own manifest says, and exits by it."""
    from parametrium.training.run_folder import judge

    ok, reasons = judge(folder)
    logs = [folder / "simulator.log", *sorted(folder.glob("sites/*/trainer.log"))]

    def show() -> None:
        say("complete" if ok else "failed: " + "; ".join(reasons))
        if ok:
            say(f"run folder: {folder}; next: parametrium report {shlex.quote(str(folder))}")
        for log in [] if ok else logs:
            if log.is_file():
                say(f"  here: {log}{last_error(log) if log.name == 'trainer.log' else ''}")

    answer({"run": str(folder), "complete": ok, "reasons": list(reasons)}, as_json, show)
    if not ok:
        raise typer.Exit(1)


def last_error(log: Path) -> str:
    """The last coded error of a log on this machine, so that nobody has to search for it; empty where there is none."""
    found = re.findall(r"\bPM\d{3} [^\n]{1,300}", log.read_text(encoding="utf-8", errors="replace"))
    return f": {found[-1]}" if found else ""


@contextmanager
def _rounds(run: Path, total: int) -> Iterator[None]:
    """Progress over the rounds of a run, as its folder tells of them."""
    over = threading.Event()
    with progress("rounds") as update:

        def follow() -> None:
            while not over.wait(1.0):
                try:
                    update((run / "rounds.jsonl").read_bytes().count(b"\n"), total)
                except OSError:  # not there yet
                    update(0, total)

        if err.is_terminal:
            threading.Thread(target=follow, daemon=True).start()
        try:
            yield
        finally:
            over.set()
