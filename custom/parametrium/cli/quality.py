"""The command that checks a cohort and writes its quality page."""

from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from parametrium.cli.options import AsJson, example
from parametrium.cli.printing import answer, print_counts, progress, say
from parametrium.cli.problems import MOST_PROBLEMS, print_problems
from parametrium.config import load_job

DIFFERENT = 1
"""Exit code where something was left out or is suspected."""


def register(app: typer.Typer) -> None:
    """Adds ``check`` to the commands of a cohort."""
    app.command("check", epilog=example("cohort check cohorts/a --job jobs/pretrain.yaml"))(cohort_check)


def cohort_check(
    cohort: Annotated[Path, typer.Argument(metavar="COHORT", help="folder with cohort.csv")],
    job_file: Annotated[
        Path | None, typer.Option("--job", metavar="JOB.yaml", help="whose modalities and clinical schema count")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", file_okay=False, help="folder of the page; COHORT/quality by default")
    ] = None,
    jobs: Annotated[int, typer.Option(metavar="N", min=1, help="processes, each with one volume at a time")] = 2,
    as_json: AsJson = False,
) -> None:
    """Measure every volume and write a quality page.

    The page is for the site's own eyes: open COHORT/quality/index.html in a browser. A second check measures only what
    is new. Exit code 0: nothing was left out and nothing is suspected; 1: something was, see the page. What an import
    left out before is shown and does not count.
    """
    from parametrium.report.quality.page import check_cohort

    job = None if job_file is None else load_job(job_file)
    with progress("check") as update:
        quality = check_cohort(cohort, job=job, out=out, jobs=jobs, progress=update)
    left = Counter(problem.reason.value for problem in quality.problems)
    suspected = Counter(suspicion.kind for suspicion in quality.suspicions)
    data = {
        "page": str(quality.page),
        "patients": quality.patients,
        "studies": quality.studies,
        "volumes": quality.volumes,
        "left_out": dict(left),
        "suspected": dict(suspected),
        "clinical_values_outside_schema": quality.clinical,
    }

    def show() -> None:
        counts = {"patients": quality.patients, "studies": quality.studies, **quality.volumes}
        counts |= {f"left out: {reason}": count for reason, count in sorted(left.items())}
        counts |= {f"suspected: {kind}": count for kind, count in sorted(suspected.items())}
        if quality.clinical:
            counts["clinical values outside the schema"] = quality.clinical
        print_counts("checked", counts)
        for line in quality.looks[:MOST_PROBLEMS]:
            say(f"  {line}")
        if len(quality.looks) > MOST_PROBLEMS:
            say(f"  and {len(quality.looks) - MOST_PROBLEMS} more on the page")
        print_problems(quality.problems)
        if job is None:
            say("Without --job, all known modalities were taken and clinical values were compared with nothing.")
        say(f"page, to open in a browser: {quality.page}")
        say("It holds pictures of patients and must not leave this site.")
        if not quality.clean:
            say("exit code 1: look at the page; the cohort can be used, without what was left out")

    answer(data, as_json, show)
    if not quality.clean:
        raise typer.Exit(DIFFERENT)
