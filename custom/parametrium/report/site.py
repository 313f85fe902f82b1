"""A site's own page of a run: its patients, what was measured, and its pictures. It never leaves the site."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from parametrium import __version__
from parametrium.cohort.problem import Problem
from parametrium.config import JobConfig
from parametrium.data.cache import PreparedPatient
from parametrium.report.html import render, write_at_once
from parametrium.report.site_pictures import pictures_of
from parametrium.report.tables import Table, limited, objectives_fact

PAGE = "report.html"


def write_site_page(
    folder: Path,
    job: JobConfig,
    site: str,
    rounds: int,
    training: Sequence[PreparedPatient],
    held_out: Sequence[PreparedPatient],
    problems: Sequence[Problem],
    scalars: Mapping[str, float],
) -> Path:
    """Writes the page into the site's folder of the run, readable by its owner alone.

    Args:
        folder: the site's folder of this run, with its ``pictures``.
        job: the job.
        site: name of the site.
        rounds: finished rounds of the model that was measured.
        training: patients that were trained on.
        held_out: patients that were measured.
        problems: what was left out of the cohort.
        scalars: what was measured, by public name.

    Returns:
        The page.
    """
    page = {
        "name": f"{job.name} at {site}",
        "facts": [
            ("Model", f"after {rounds} of {job.rounds} rounds"),
            ("Patients", f"{len(training)} trained on, {len(held_out)} held out"),
            objectives_fact(job),
        ],
        "volumes": _volumes(job, training, held_out),
        "problems": _problems(problems),
        "measured": _measured(scalars),
        "pictures": pictures_of(folder / "pictures"),
        "footer": f"Written by parametrium {__version__}.",
    }
    return write_at_once(folder / PAGE, render("site.html", page=page).encode(), private=True)


def _volumes(job: JobConfig, training: Sequence[PreparedPatient], held_out: Sequence[PreparedPatient]) -> Table:
    counts = [Counter(v.modality for patient in group for v in patient.volumes) for group in (training, held_out)]
    rows = [[modality, *(str(count[modality]) for count in counts)] for modality in job.modalities]
    return Table("Volumes", ["modality", "trained on", "held out"], rows, numeric=(1, 2))


def _problems(problems: Sequence[Problem]) -> Table:
    count = Counter((problem.modality, problem.reason.value.replace("_", " ")) for problem in problems)
    rows = [[modality, reason, str(number)] for (modality, reason), number in sorted(count.items())]
    note = "Each by its pseudonym in problems.csv beside this page; parametrium cohort check says what to do about it."
    return limited(Table("Left out", ["modality", "reason", "entries"], rows, note, numeric=(2,)))


def _measured(scalars: Mapping[str, float]) -> Table:
    rows = [[name, f"{value:.4g}"] for name, value in sorted(scalars.items())]
    note = (
        "On held-out patients. In a federation the coordinator has these numbers, as each round's losses; nothing else."
    )
    return limited(Table("Measured at the end", ["number", "value"], rows, note, numeric=(1,)))
