"""A folder per patient with one NIfTI file a modality, beside ``subjects.csv``, becomes a cohort table.

``subjects.csv`` has a column ``subject`` (the folder's name) and optionally site, split, modalities (names joined by
semicolons), mask (file name), labels, label and label_name. Images are not copied: the table points to them.
"""

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import nibabel
import numpy as np

from parametrium.cohort.deidentify import pseudonym, remember, site_secret
from parametrium.cohort.importers.advice import advice
from parametrium.cohort.manifest import COHORT_COLUMNS, MASK_COLUMNS, Problem, Reason
from parametrium.cohort.table import Table, read_table, write_table
from parametrium.errors import Code, CohortError

_STUDY = "baseline"  # the form knows one visit
_SUFFIXES = (".nii.gz", ".nii")
_MODALITY = re.compile(r"[A-Za-z][A-Za-z0-9]{0,15}")
_SPLITS = ("", "train", "test")

_Rows = list[dict[str, str]]


@dataclass(frozen=True)
class Options:
    """What the site asked for; see ``import_folders``."""

    rename: Mapping[str, str]
    drop: Collection[str]
    rescale: Mapping[str, tuple[float, float]]
    vocabulary: Collection[str]


@dataclass(frozen=True)
class ImportReport:
    """What was taken, and what was not.

    Attributes:
        patients: subjects with at least one volume.
        volumes: number of volumes by modality.
        masks: number of masks.
        problems: by pseudonym; for the site's eyes.
        warnings: sentences with a remedy.
    """

    patients: int
    volumes: Mapping[str, int]
    masks: int
    problems: tuple[Problem, ...]
    warnings: tuple[str, ...]

    def summary(self) -> dict[str, int]:
        """Counts without any name of a patient."""
        counts = {"patients": self.patients} | dict(self.volumes) | {"masks": self.masks}
        reasons = Counter(problem.reason.value for problem in self.problems)
        return counts | {f"left out: {reason}": count for reason, count in sorted(reasons.items())}


@dataclass
class _Tables:
    """The tables while they grow, in the order of the source, so that nothing depends on the secret."""

    cohort: _Rows = field(default_factory=list)
    masks: _Rows = field(default_factory=list)
    clinical: _Rows = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def import_folders(
    source: Path,
    cohort: Path,
    *,
    site: str | None = None,
    rename: Mapping[str, str] | None = None,
    drop: Collection[str] = (),
    rescale: Mapping[str, tuple[float, float]] | None = None,
    secret: Path | None = None,
    vocabulary: Collection[str],
) -> ImportReport:
    """Writes cohort.csv, masks.csv and clinical.csv for a source folder; the same call twice writes the same bytes.

    Args:
        source: folder with subjects.csv and a folder a subject.
        cohort: folder to write the tables to, made where absent.
        site: take only subjects whose column ``site`` holds this.
        rename: from a file's modality name to the cohort's.
        drop: file modality names to leave out.
        rescale: slope and intercept by (cohort) modality: value = slope * stored + intercept.
        secret: the site's secret for pseudonyms, made on first use; None puts it beside the cohort folder.
        vocabulary: modality names that need no ``rename``.

    Raises:
        CohortError: PM201 subjects.csv is unreadable; PM204 a modality is unknown and neither renamed nor dropped, no
            subject is of the site, or nothing is left.
    """
    source = source.resolve()
    options = Options(rename or {}, drop, rescale or {}, vocabulary)
    table = read_table(source / "subjects.csv", what="the subject table", required=("subject",))
    rows = _of_site(table, site)
    _refuse_unknown(source, rows, options)
    secret_path = secret or cohort.absolute().with_name(f"{cohort.absolute().name}.secret")
    key = site_secret(secret_path)
    names = {subject: pseudonym(key, subject) for row in table.rows if (subject := row["subject"])}
    tables = _Tables()
    tables.problems.extend(Problem("", "", Reason.BAD_ROW) for _ in table.ragged)
    for row in _sound(rows, names, tables):
        _add_subject(source / row["subject"], names[row["subject"]], row, options, tables)
    _report_folders(source, names, key, tables)
    if not tables.cohort:
        raise CohortError(Code.COHORT_IMPORT, "the source holds no volume to import", site_detail=str(source))
    tables.warnings.extend(advice(tables.cohort, rescaled=options.rescale))
    _write(cohort, tables)
    remember(secret_path, {row["subject"]: names[row["subject"]] for row in rows if row["subject"]})
    return _report(tables)


def _of_site(table: Table, site: str | None) -> Sequence[Mapping[str, str]]:
    if site is None:
        return table.rows
    if "site" not in table.columns:
        raise CohortError(Code.COHORT_IMPORT, "the subject table has no column site to choose by")
    rows = [row for row in table.rows if row["site"] == site]
    if not rows:
        known = ", ".join(sorted({row["site"] for row in table.rows}))
        raise CohortError(
            Code.COHORT_IMPORT, "the subject table has no subject of the wanted site", site_detail=f"sites: {known}"
        )
    return rows


def _refuse_unknown(source: Path, rows: Sequence[Mapping[str, str]], options: Options) -> None:
    """Names every modality that is neither in the vocabulary nor renamed nor dropped."""
    found = {name for row in rows for name in _modalities(source / row["subject"], row)}
    unknown = sorted(found - set(options.vocabulary) - set(options.rename) - set(options.drop))
    malformed = [name for name in options.rename.values() if not _MODALITY.fullmatch(name)]
    if malformed:
        raise CohortError(
            Code.COHORT_IMPORT,
            "a modality must be renamed to a letter and up to 15 further letters or digits",
            site_detail=", ".join(malformed),
        )
    if unknown:
        # Only what looks like a modality is repeated: anything else in that place may be a file or a patient.
        shown = [name if _MODALITY.fullmatch(name) else "(a name that no modality has)" for name in unknown]
        example = shown[0] if _MODALITY.fullmatch(unknown[0]) else "NAME"
        raise CohortError(
            Code.COHORT_IMPORT,
            f"not a modality: {', '.join(shown)}; known are {', '.join(options.vocabulary)}. "
            f"Leave it out with --drop {example} or give it a name with --rename {example}=MODALITY",
            site_detail=", ".join(unknown),
        )


def _modalities(folder: Path, row: Mapping[str, str]) -> list[str]:
    """Names of a subject's modalities: from the table, or else from the files other than the mask."""
    if row.get("modalities"):
        return [name.strip() for name in row["modalities"].split(";") if name.strip()]
    files = sorted(folder.glob("*.nii")) + sorted(folder.glob("*.nii.gz"))
    return [file.name.partition(".")[0] for file in files if file.name != row.get("mask")]


def _sound(rows: Sequence[Mapping[str, str]], names: Mapping[str, str], tables: _Tables) -> Iterator[Mapping[str, str]]:
    """Rows that name a folder, once, and a split that exists."""
    seen: set[str] = set()
    for row in rows:
        subject = row["subject"]
        reason = None
        if not subject or Path(subject).name != subject or row.get("split", "") not in _SPLITS:
            reason = Reason.BAD_ROW
        elif subject in seen:
            reason = Reason.DUPLICATE
        if reason is not None:
            tables.problems.append(Problem(names.get(subject, ""), "", reason))
            continue
        seen.add(subject)
        yield row


def _add_subject(folder: Path, patient: str, row: Mapping[str, str], options: Options, tables: _Tables) -> None:
    if not folder.is_dir():
        tables.problems.append(Problem(patient, "", Reason.MISSING_FOLDER))
        return
    frames: dict[object, str] = {}
    taken = False
    for name in _modalities(folder, row):
        if name in options.drop:
            continue
        modality = options.rename.get(name, name)
        path = _image(folder, name)
        if path is None:
            tables.problems.append(Problem(patient, modality, Reason.MISSING_FILE))
            continue
        slope, intercept = options.rescale.get(modality, (1.0, 0.0))
        cells = (patient, _STUDY, "0", modality, str(path), _frame(path, frames))
        tables.cohort.append(
            dict(zip(COHORT_COLUMNS, cells, strict=True))
            | {"split": row.get("split", ""), "slope": repr(slope), "intercept": repr(intercept)}
        )
        taken = True
    if taken:
        _add_mask(folder, patient, row, frames, tables)
        tables.clinical.extend(_clinical(patient, row))


def _image(folder: Path, name: str) -> Path | None:
    return next((path for suffix in _SUFFIXES if (path := folder / f"{name}{suffix}").is_file()), None)


def _frame(path: Path, frames: dict[object, str]) -> str:
    """Same grid, same frame: volumes on one grid were put there, others are not known to be registered."""
    try:
        image = nibabel.load(path)
        grid: object = (image.shape[:3], np.round(image.affine, 3).tobytes())
    except Exception:  # a damaged header is reported when the cohort is read
        grid = path
    return frames.setdefault(grid, f"grid{len(frames) + 1}")


def _add_mask(folder: Path, patient: str, row: Mapping[str, str], frames: dict[object, str], tables: _Tables) -> None:
    name = row.get("mask", "")
    if not name:
        return
    path = folder / name
    if Path(name).name != name or not path.is_file():
        tables.problems.append(Problem(patient, "mask", Reason.MISSING_FILE))
        return
    cells = (patient, _STUDY, row.get("labels", "") or "mask", str(path), _frame(path, frames))
    tables.masks.append(dict(zip(MASK_COLUMNS, cells, strict=True)))


def _clinical(patient: str, row: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """The clinical row from ``label``, named and translated by ``label_name``, as ``grade(1=G2,2=G3)``.

    No other column is taken over: a subject table may hold names and dates of birth.
    """
    label = row.get("label", "")
    name, _, levels = row.get("label_name", "").partition("(")
    column = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
    if not label or not re.match(r"[a-z]", column):
        return
    pairs = (level.partition("=") for level in levels.rstrip(")").split(","))
    words = {key.strip(): word.strip() for key, _, word in pairs}
    yield {"patient": patient, column: words.get(label, label)}


def _report_folders(source: Path, names: Mapping[str, str], key: bytes, tables: _Tables) -> None:
    """Folders that no row of the subject table names, whatever the site."""
    folders = sorted(path.name for path in source.iterdir() if path.is_dir() and not path.name.startswith("."))
    tables.problems.extend(
        Problem(pseudonym(key, name), "", Reason.FOLDER_WITHOUT_ROW) for name in folders if name not in names
    )


def _write(cohort: Path, tables: _Tables) -> None:
    """Writes the tables, cohort.csv last: where it exists, the others do."""
    columns = dict.fromkeys(column for row in tables.clinical for column in row)
    try:
        cohort.mkdir(mode=0o700, parents=True, exist_ok=True)
        if tables.masks:
            write_table(cohort / "masks.csv", MASK_COLUMNS, tables.masks)
        if tables.clinical:
            write_table(cohort / "clinical.csv", tuple(columns), tables.clinical)
        write_table(cohort / "cohort.csv", (*COHORT_COLUMNS, "split", "slope", "intercept"), tables.cohort)
    except OSError as error:
        raise CohortError(
            Code.COHORT_IMPORT, "the cohort folder cannot be written", site_detail=f"{cohort}: {error}"
        ) from error


def _report(tables: _Tables) -> ImportReport:
    return ImportReport(
        patients=len({row["patient"] for row in tables.cohort}),
        volumes=Counter(row["modality"] for row in tables.cohort),
        masks=len(tables.masks),
        problems=tuple(tables.problems),
        warnings=tuple(tables.warnings),
    )
