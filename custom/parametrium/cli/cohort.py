"""Commands of a site: its images and clinical rows."""

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from parametrium.cli.options import AsJson, SiteFile, example
from parametrium.cli.printing import answer, print_counts, progress, say
from parametrium.cohort.problem import Problem
from parametrium.config import VOCABULARY, load_job, load_site
from parametrium.errors import Code, ConfigError

MOST_PROBLEMS = 20
"""Problems that are printed one by one; --json has all."""

cohort_app = typer.Typer(no_args_is_help=True, help="A hospital's images and clinical rows.")


@cohort_app.command("import", epilog=example("cohort import scans/ cohorts/a --drop DOSE --rescale CT=1,-1000"))
def cohort_import(
    source: Annotated[
        Path, typer.Argument(metavar="SOURCE", help="folder per patient, one NIfTI a modality, and subjects.csv")
    ],
    cohort: Annotated[
        Path, typer.Argument(metavar="COHORT", file_okay=False, help="folder for cohort.csv; made when absent")
    ],
    site: Annotated[
        str | None, typer.Option(metavar="NAME", help="take only subjects of this site (column site)")
    ] = None,
    rename: Annotated[
        list[str] | None, typer.Option(metavar="FILE=MODALITY", help="e.g. DOSE=RTDOSE; may be repeated")
    ] = None,
    drop: Annotated[
        list[str] | None, typer.Option(metavar="MODALITY", help="leave it out, e.g. DOSE; may be repeated")
    ] = None,
    rescale: Annotated[
        list[str] | None,
        typer.Option(metavar="MODALITY=SLOPE,INTERCEPT", help="e.g. CT=1,-1000; may be repeated"),
    ] = None,
    secret: Annotated[
        Path | None, typer.Option(metavar="FILE", help="the site's secret for pseudonyms; made on first use")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write a cohort table for a folder of NIfTI files; copies nothing.

    What could not be taken is told by pseudonym and reason; the table of pseudonyms lies beside the site's secret.
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
    data = {
        "patients": report.patients,
        "volumes": dict(report.volumes),
        "masks": report.masks,
        "warnings": list(report.warnings),
        "problems": _problems(report.problems),
    }

    def show() -> None:
        print_counts("imported", report.summary())
        for warning in report.warnings:
            say(f"warning: {warning}")
        _print_problems(report.problems)

    answer(data, as_json, show)


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
    as_json: AsJson = False,
) -> None:
    """Draw a synthetic pelvic cohort from one seed."""
    from parametrium.cohort.phantom import write_phantom

    with progress("phantom") as update:
        write_phantom(
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
    answer({"cohort": str(cohort), "patients": patients}, as_json, lambda: say(f"{patients} patients written"))


@cohort_app.command("prepare", epilog=example("cohort prepare site_configs/north.yaml --job jobs/pretrain.yaml"))
def cohort_prepare(
    site_file: SiteFile,
    job_file: Annotated[Path, typer.Option("--job", metavar="JOB.yaml", help="the job")],
    as_json: AsJson = False,
) -> None:
    """Build the cache of a site for a job; rounds do it on their own when needed."""
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
        _print_problems(prepared.problems)

    problems = _problems(prepared.problems)
    answer({"patients": len(prepared.patients), "volumes": dict(volumes), "problems": problems}, as_json, show)


def _problems(problems: Sequence[Problem]) -> list[dict[str, str]]:
    return [{"patient": p.patient, "modality": p.modality, "reason": p.reason.value} for p in problems]


def _print_problems(problems: Sequence[Problem]) -> None:
    for problem in problems[:MOST_PROBLEMS]:
        who = " ".join(word for word in (problem.patient or "a row without patient", problem.modality) if word)
        say(f"  {who}: {problem.reason.value}")
    if len(problems) > MOST_PROBLEMS:
        say(f"  and {len(problems) - MOST_PROBLEMS} more; --json lists all")


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
        slope = intercept = math.nan
    if not (math.isfinite(slope) and math.isfinite(intercept) and slope):
        raise ConfigError(
            Code.CONFIG_INVALID_VALUE,
            f"--rescale must look like CT=SLOPE,INTERCEPT with finite numbers and a slope other than 0, got {text!r}",
        )
    return slope, intercept
