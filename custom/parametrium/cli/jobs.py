"""Commands of the coordinator: jobs as FLARE takes them."""

from pathlib import Path
from typing import Annotated

import typer

from parametrium.cli.options import AsJson, JobFile, example
from parametrium.cli.printing import answer, say
from parametrium.config import load_job
from parametrium.errors import Code, ConfigError

job_app = typer.Typer(no_args_is_help=True, help="What is learned, as a FLARE job folder.")


@job_app.command("export", epilog=example("job export jobs/pretrain.yaml exported"))
def job_export(
    job_file: JobFile,
    folder: Annotated[Path, typer.Argument(metavar="DIR", file_okay=False, help="folder for the job's folder")],
    as_json: AsJson = False,
) -> None:
    """Write a FLARE job folder without code, for the admin console's submit_job."""
    from parametrium.federation.job_folder import export_job

    job = load_job(job_file)
    _require_export(folder / job.name)
    exported = str(export_job(job, folder))
    answer({"job": exported}, as_json, lambda: say(exported))


@job_app.command("export-all", epilog=example("job export-all jobs app"))
def job_export_all(
    jobs: Annotated[Path, typer.Argument(metavar="JOBS", help="folder of job files, *.yaml")],
    folder: Annotated[
        Path,
        typer.Argument(metavar="DIR", file_okay=False, help="folder of exported jobs and nothing else; rewritten"),
    ],
    as_json: AsJson = False,
) -> None:
    """Export every job of a folder; what `make app` runs."""
    from parametrium.federation.job_folder import export_all

    if not any(jobs.glob("*.yaml")):
        raise ConfigError(Code.CONFIG_UNREADABLE, "the folder of jobs holds no *.yaml", site_detail=str(jobs))
    for place in folder.iterdir() if folder.is_dir() else ():
        _require_export(place)
    exported = [str(path) for path in export_all(jobs, folder)]
    answer({"jobs": exported}, as_json, lambda: say("\n".join(exported)))


def _require_export(place: Path) -> None:
    """What an export replaces or removes must be an earlier export: never a folder of the user's own."""
    if place.is_dir() and any(place.iterdir()) and not (place / "app" / "config" / "job.yaml").is_file():
        raise ConfigError(
            Code.CONFIG_INVALID_VALUE,
            "the target holds something other than exported jobs; choose another folder",
            site_detail=str(place),
        )
