"""Commands of a site: its images and clinical rows."""

import shlex
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from parametrium.cli import importing, quality
from parametrium.cli.options import AsJson, SiteFile, example
from parametrium.cli.printing import answer, print_counts, progress, say
from parametrium.cli.problems import print_problems, problem_rows
from parametrium.config import load_job, load_site

cohort_app = typer.Typer(no_args_is_help=True, help="A hospital's images and clinical rows.")


importing.register(cohort_app)
quality.register(cohort_app)


@cohort_app.command("phantom", epilog=example("cohort phantom cohorts/p --patients 24 --modalities CT,T2,PET --seed 1"))
def cohort_phantom(
    cohort: Annotated[Path, typer.Argument(metavar="COHORT", help="folder to write; must be empty or absent")],
    patients: Annotated[int, typer.Option(metavar="N", min=1, help="how many")] = 24,
    modalities: Annotated[
        str, typer.Option(metavar="NAMES", help="comma-separated, of CT CBCT T1 T2 ADC PET")
    ] = "CT,T2,PET",
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="of everything")] = 0,
    site: Annotated[
        str, typer.Option(metavar="NAME", help="its scanners look different from those of other names")
    ] = "phantom",
    studies: Annotated[int, typer.Option(metavar="N", min=1, help="studies over the treatment")] = 1,
    misregistration: Annotated[float, typer.Option(metavar="MM", min=0, help="between modalities")] = 0.0,
    incomplete: Annotated[
        float, typer.Option(metavar="SHARE", min=0, max=1, help="chance that a modality is missing")
    ] = 0.0,
    jobs: Annotated[int, typer.Option(metavar="N", min=1, help="processes")] = 2,
    as_dicom: Annotated[
        bool, typer.Option("--as-dicom", help="write what a hospital's archive would export, to try the import with")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Draw a synthetic pelvic cohort from one seed."""
    from parametrium.cohort.phantom import write_phantom

    write: Callable[..., object] = write_phantom
    if as_dicom:
        from parametrium.cohort.phantom.dicom import write_phantom_dicom

        write = write_phantom_dicom
    with progress("phantom") as update:
        write(
            cohort,
            patients=patients,
            modalities=[name.strip() for name in modalities.split(",") if name.strip()],
            seed=seed,
            site=site,
            studies=studies,
            misregistration_mm=misregistration,
            incomplete=incomplete,
            jobs=jobs,
            progress=update,
        )

    def show() -> None:
        say(f"{patients} patients written into {cohort}")
        if as_dicom:
            say(f"next: parametrium cohort import {shlex.quote(str(cohort))} COHORT")

    answer({"cohort": str(cohort), "patients": patients}, as_json, show)


@cohort_app.command("prepare", epilog=example("cohort prepare site_configs/north.yaml --job jobs/pretrain.yaml"))
def cohort_prepare(
    site_file: SiteFile,
    job_file: Annotated[Path, typer.Option("--job", metavar="JOB.yaml", help="the job")],
    as_json: AsJson = False,
) -> None:
    """Build the cache of a site for a job.

    Rounds do it on their own when needed; done before, it shows what is left out.
    """
    from parametrium.cohort.manifest import read_cohort
    from parametrium.data.prepare import prepare_cohort

    job, site = load_job(job_file), load_site(site_file)
    cohort = read_cohort(Path(site.cohort), job.modalities)
    with progress("prepare") as update:
        prepared = prepare_cohort(cohort, job.preparation, Path(site.cache), jobs=site.prepare_jobs, progress=update)
    volumes = Counter(volume.modality for patient in prepared.patients for volume in patient.volumes)
    reasons = Counter(f"left out: {problem.reason.value}" for problem in prepared.problems)
    counts = {"patients": len(prepared.patients), **volumes, **dict(sorted(reasons.items()))}

    def show() -> None:
        print_counts("prepared", counts)
        print_problems(prepared.problems)

    problems = problem_rows(prepared.problems)
    answer({"patients": len(prepared.patients), "volumes": dict(volumes), "problems": problems}, as_json, show)
