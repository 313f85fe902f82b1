"""The quality page as a file: template, style and script in one HTML, the viewer and the volumes beside it.

    quality/index.html            opens from the disk, without a network
    quality/niivue.js             the 3D viewer, loaded when the first volume is opened
    quality/volumes/<key>.js      one volume for the viewer
    quality/measured/<key>.json   what was measured, for the next check

The page's content security policy names the digests of its one script and its one style; nothing else runs, nothing is
fetched. What the script loads beside itself are the two kinds of file above, by names that hold no letter of a table.
"""

import base64
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from parametrium.cohort.manifest import read_cohort
from parametrium.cohort.problem import Problem, Reason
from parametrium.cohort.table import read_table
from parametrium.config import VOCABULARY, JobConfig
from parametrium.errors import Code, CohortError, DataError
from parametrium.report.html import TEMPLATES, render, write_at_once
from parametrium.report.quality.completeness import outside_schema
from parametrium.report.quality.content import page_content
from parametrium.report.quality.findings import KINDS, Findings, Side
from parametrium.report.quality.pairs import registered_pairs
from parametrium.report.quality.survey import VIEWER, Progress, survey, sweep
from parametrium.report.quality.suspicion import Suspicion, misaligned, suspicions

FOLDER = "quality"
"""Name of the page's folder in the cohort."""

_HERE = Path(__file__).parent


@dataclass(frozen=True)
class Quality:
    """What a check found.

    Attributes:
        page: the page.
        patients: with at least one volume that could be measured.
        studies: likewise.
        volumes: that could be measured, by modality.
        problems: what was left out by this check; what an import left out before is only on the page.
        suspicions: what looks wrong.
        clinical: cells outside the job's schema.
        looks: the suspicions in words, by pseudonym, for the site's own terminal.
    """

    page: Path
    patients: int
    studies: int
    volumes: dict[str, int]
    problems: tuple[Problem, ...]
    suspicions: tuple[Suspicion, ...]
    clinical: int
    looks: tuple[str, ...] = ()

    @property
    def clean(self) -> bool:
        """Whether nothing was left out and nothing is suspected."""
        return not (self.problems or self.suspicions or self.clinical)


def check_cohort(
    cohort: Path,
    *,
    job: JobConfig | None = None,
    out: Path | None = None,
    jobs: int = 1,
    progress: Progress | None = None,
) -> Quality:
    """Measures a cohort and writes its quality page.

    The page holds pictures and pseudonyms of patients: it stays at the site, in a folder that its owner alone may open.
    A second check measures only what is new.

    Args:
        cohort: folder with cohort.csv.
        job: decides which modalities count and what the clinical columns should hold; the vocabulary without one.
        out: folder of the page; COHORT/quality by default.
        jobs: processes; each holds one volume at a time.
        progress: called with volumes, then pairs, done and in all.

    Raises:
        CohortError: PM201 a table is unreadable, PM202 no volume with a usable header.
        DataError: PM301 the page's folder cannot be written.
    """
    folder = cohort / FOLDER if out is None else out
    told = read_cohort(cohort, VOCABULARY if job is None else job.modalities)
    surveyed = survey(told.volumes, folder, jobs=jobs, progress=progress)
    pairs, pair_keys = registered_pairs(surveyed, folder, jobs=jobs, progress=progress)
    unmeasured = [
        Problem(item.volume.patient, item.volume.modality, item.found)
        for item in surveyed
        if isinstance(item.found, Reason)
    ]
    findings = Findings(
        cohort=told,
        surveyed=surveyed,
        problems=[*told.problems, *unmeasured],
        suspicions=[*suspicions(surveyed), *misaligned(pairs)],
        pairs=pairs,
        imported=_side_table(cohort / "problems.csv", ("reason",)),
        registration=_side_table(cohort / "registration.csv", ("patient",)),
        job=job,
        name=cohort.absolute().name,
    )
    try:
        page = _write(folder, page_content(findings, folder / VIEWER))
        sweep(folder, {item.key for item in surveyed} | pair_keys)
    except OSError as error:
        raise DataError(
            Code.DATA_CACHE, "the folder of the quality page cannot be written", site_detail=str(error)
        ) from error
    measured = findings.measured
    return Quality(
        page=page,
        patients=len({surveyed[n].volume.patient for n in measured}),
        studies=len({(surveyed[n].volume.patient, surveyed[n].volume.study) for n in measured}),
        volumes=findings.volumes,
        problems=tuple(findings.problems),
        suspicions=tuple(findings.suspicions),
        clinical=outside_schema(told.patients, job),
        looks=tuple(_look(findings, suspicion) for suspicion in findings.suspicions),
    )


def _look(found: Findings, suspicion: Suspicion) -> str:
    own = found.named(suspicion.volume)
    return f"{own['patient']} {own['study']} {own['modality']}: {KINDS[suspicion.kind]}; {suspicion.text}"


def _side_table(path: Path, required: tuple[str, ...]) -> Side:
    """A table that an import may have left; unreadable is a note on the page, not an error."""
    if not path.is_file():
        return Side()
    try:
        table = read_table(path, what="a table beside the cohort's", required=required)
    except CohortError:
        return Side(unreadable=True)
    return Side(table.columns, table.rows, unreadable=bool(table.ragged))


def _write(folder: Path, content: dict[str, Any]) -> Path:
    script = (TEMPLATES / "quality.js").read_text(encoding="utf-8")
    style = "\n".join((TEMPLATES / name).read_text(encoding="utf-8") for name in ("report.css", "quality.css"))
    data = json.dumps(content.pop("data"), separators=(",", ":"))
    for mark in "<>&":  # no text of a table can end the script element or begin another
        data = data.replace(mark, f"\\u{ord(mark):04x}")
    text = render(
        "quality.html",
        page=content,
        data=Markup(data),  # noqa: S704 - without a mark of HTML
        script=Markup(script),  # noqa: S704 - our own file
        style=Markup(style),  # noqa: S704 - our own files
        script_digest=_digest(script),
        style_digest=_digest(style),
    )
    write_at_once(folder / "niivue.js", (_HERE / "vendor" / "niivue.umd.js").read_bytes(), private=True)
    return write_at_once(folder / "index.html", text.encode("utf-8", "replace"), private=True)


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
