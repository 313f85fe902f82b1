"""The command that makes a cohort of what a hospital has."""

import math
import shlex
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from parametrium.cli.options import AsJson, example
from parametrium.cli.printing import answer, err, print_counts, progress, say
from parametrium.cli.problems import print_problems, problem_rows
from parametrium.config import VOCABULARY, DefacingConfig, SeriesRule, load_site
from parametrium.errors import Code, ConfigError

_FORMS = ("dicom", "bids", "nnunet", "datalist", "folders")
_TABLES = ("bids", "nnunet", "datalist", "folders")

_OPTIONS = {
    "site": ("folders",),
    "rename": _TABLES,
    "rescale": _TABLES,
    "copy": _TABLES,
    "clinical": ("bids",),
    "patient-key": ("datalist",),
    "fold": ("datalist",),
    "site-config": ("dicom",),
    "patient-folders": ("dicom",),
}
"""Options that not every form has, and whose they are."""


def register(app: typer.Typer) -> None:
    """Adds ``import`` to the commands of a cohort."""
    app.command(
        "import",
        epilog=example(
            "cohort import export/ cohorts/a --site-config site_configs/north.yaml --jobs 4",
            "cohort import scans/ cohorts/a --drop DOSE --rescale CT=1,-1000",
        ),
    )(cohort_import)


def cohort_import(
    source: Annotated[
        Path, typer.Argument(metavar="SOURCE", help="a folder of DICOM, BIDS, nnU-Net or NIfTI files, or a datalist")
    ],
    cohort: Annotated[
        Path, typer.Argument(metavar="COHORT", file_okay=False, help="folder for cohort.csv; made when absent")
    ],
    form: Annotated[
        str | None, typer.Option("--as", metavar="FORM", help=f"one of {' '.join(_FORMS)}; recognised when not given")
    ] = None,
    jobs: Annotated[int, typer.Option(metavar="N", min=1, help="processes, each with one volume at a time")] = 2,
    site_config: Annotated[
        Path | None, typer.Option(metavar="SITE.yaml", help="for DICOM: its series_rules and its defacing")
    ] = None,
    registered: Annotated[
        bool | None,
        typer.Option("--register/--no-register", help="align the volumes of a patient; by default for DICOM"),
    ] = None,
    again: Annotated[
        bool, typer.Option("--register-again", help="also try the registrations that an earlier run refused")
    ] = False,
    patient_folders: Annotated[
        bool, typer.Option(help="DICOM without Patient ID: the folder below SOURCE says by its name who it is")
    ] = False,
    drop: Annotated[
        list[str] | None, typer.Option(metavar="MODALITY", help="leave it out, e.g. DOSE; may be repeated")
    ] = None,
    rename: Annotated[
        list[str] | None, typer.Option(metavar="FILE=MODALITY", help="e.g. DOSE=RTDOSE; may be repeated")
    ] = None,
    rescale: Annotated[
        list[str] | None,
        typer.Option(metavar="MODALITY=SLOPE,INTERCEPT", help="e.g. CT=1,-1000; may be repeated"),
    ] = None,
    copy: Annotated[
        bool, typer.Option("--copy", help="give the cohort its own scrubbed files; DICOM always does")
    ] = False,
    site: Annotated[
        str | None, typer.Option(metavar="NAME", help="folders: take only subjects of this site (column site)")
    ] = None,
    clinical: Annotated[
        list[str] | None, typer.Option(metavar="COLUMN", help="BIDS: of participants.tsv, besides age and sex")
    ] = None,
    patient_key: Annotated[
        str | None, typer.Option(metavar="KEY", help="datalist: the key that names an entry's patient")
    ] = None,
    fold: Annotated[int | None, typer.Option(metavar="N", help="datalist: hold out the entries of this fold")] = None,
    secret: Annotated[
        Path | None, typer.Option(metavar="FILE", help="the site's secret for pseudonyms; made on first use")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make a cohort of DICOM, BIDS, nnU-Net or NIfTI files.

    A MONAI datalist is read, too; what a source is, is seen by looking at it. DICOM is converted into the cohort
    without identity; run it again to add what is new, or to go on after an interruption. Other forms only get a table
    that points to their files. What could not be taken is told by pseudonym and reason; the table of pseudonyms lies
    beside the site's secret.
    """
    from parametrium.cli.source import form_of

    if form is not None and form not in _FORMS:
        raise ConfigError(Code.CONFIG_INVALID_VALUE, f"--as must be one of {', '.join(_FORMS)}, got {form!r}")
    told: dict[str, Any] = {
        "site": site,
        "rename": _pairs(rename, "rename"),
        "rescale": {name: _slope(text) for name, text in _pairs(rescale, "rescale").items()},
        "copy": copy,
        "clinical": clinical or [],
        "patient-key": patient_key,
        "fold": fold,
        "site-config": site_config,
        "patient-folders": patient_folders,
    }
    its_site = None if site_config is None else load_site(site_config)
    rules, defacing = ((), None) if its_site is None else (its_site.series_rules, its_site.defacing)
    if again and registered is False:
        raise ConfigError(
            Code.CONFIG_INVALID_VALUE, "--register-again and --no-register contradict each other; drop one"
        )
    try:
        form = form or form_of(source)
        _require_fitting(form, told)
        if form == "dicom":
            report = _import_dicom(source, cohort, rules, defacing, drop or [], told, secret=secret, jobs=jobs)
        else:
            names = {"patient-key": "patient"}
            own = {names.get(name, name): told[name] for name, forms in _OPTIONS.items() if form in forms}
            report = _importer(form)(source, cohort, drop=drop or [], secret=secret, vocabulary=VOCABULARY, **own)
        wanted = again or registered or (registered is None and form == "dicom")
        aligned = _register(cohort, jobs, again=again) if wanted else {}
    except KeyboardInterrupt:
        say("interrupted; nothing half done is left in the cohort, and the same command goes on from here", err)
        raise
    warnings = [*report.warnings, *strange_names(rules)]
    data = {
        "form": form,
        "patients": report.patients,
        "volumes": dict(report.volumes),
        "masks": report.masks,
        "counts": report.summary(),
        "registration": dict(aligned),
        "warnings": warnings,
        "problems": problem_rows(report.problems),
    }

    def show() -> None:
        print_counts("imported", report.summary() | {f"registration: {name}": n for name, n in aligned.items() if n})
        for warning in warnings:
            say(f"warning: {warning}")
        print_problems(report.problems)
        _tell_where(cohort, secret)

    answer(data, as_json, show)


def _tell_where(cohort: Path, secret: Path | None) -> None:
    """What was written, what must stay, and what comes next."""
    secret = secret or cohort.with_name(f"{cohort.absolute().name}.secret")
    if (cohort / "problems.csv").is_file():
        say(f"all that was left out, by pseudonym: {cohort / 'problems.csv'}")
    say(f"cohort: {cohort}")
    say(f"keep at this site, out of the cohort: {secret} and {secret}.*, which lead from pseudonyms to patients")
    say(f"next: parametrium cohort check {shlex.quote(str(cohort))} --job JOB.yaml")


def strange_names(rules: tuple[SeriesRule, ...]) -> Iterator[str]:
    """A modality that only a rule knows is allowed, since a job may declare it, but is more often a slip."""
    strange = sorted({rule.modality for rule in rules if rule.modality} - set(VOCABULARY))
    if strange:
        yield (
            f"series_rules name {', '.join(strange)}, which is none of {', '.join(VOCABULARY)}; "
            "a job that does not declare it leaves such volumes out"
        )


def _require_fitting(form: str, told: Mapping[str, Any]) -> None:
    for name, forms in _OPTIONS.items():
        given = bool(told[name]) or (name == "fold" and told[name] is not None)  # 0 is a fold
        if given and form not in forms:
            raise ConfigError(
                Code.CONFIG_INVALID_VALUE,
                f"--{name} is for a source of form {', '.join(forms)}; this one is {form} (--as says otherwise)",
            )


def _import_dicom(
    source: Path,
    cohort: Path,
    rules: tuple[SeriesRule, ...],
    defacing: DefacingConfig | None,
    drop: list[str],
    told: Mapping[str, Any],
    *,
    secret: Path | None,
    jobs: int,
) -> Any:
    from parametrium.cohort.importers.dicom import import_dicom

    known = dict.fromkeys((*VOCABULARY, *(rule.modality for rule in rules if rule.modality)))
    unknown = sorted(set(drop) - set(known))
    if unknown:
        raise ConfigError(Code.CONFIG_INVALID_VALUE, f"--drop must be one of {', '.join(known)}, got {unknown[0]!r}")
    wanted = [name for name in known if name not in drop]
    return import_dicom(
        source,
        cohort,
        secret=secret,
        rules=rules,
        wanted=wanted,
        defacing=defacing,
        jobs=jobs,
        patient_folders=told["patient-folders"],
        progress=progress,
    )


def _importer(form: str) -> Callable[..., Any]:
    from parametrium.cohort.importers.bids import import_bids
    from parametrium.cohort.importers.datalist import import_datalist
    from parametrium.cohort.importers.folders import import_folders
    from parametrium.cohort.importers.nnunet import import_nnunet

    importers: dict[str, Callable[..., Any]] = {
        "bids": import_bids,
        "nnunet": import_nnunet,
        "datalist": import_datalist,
        "folders": import_folders,
    }
    return importers[form]


def _register(cohort: Path, jobs: int, *, again: bool) -> dict[str, int]:
    from parametrium.cohort.registration.register import register_cohort

    with progress("registration") as update:
        return register_cohort(cohort, jobs=jobs, progress=update, again=again).summary()


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
