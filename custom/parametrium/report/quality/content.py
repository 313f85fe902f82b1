"""Everything the quality page shows, as plain data; the template and the script only lay it out."""

import base64
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from parametrium import __version__
from parametrium.cohort.manifest import Cohort
from parametrium.cohort.problem import Problem
from parametrium.config import JobConfig
from parametrium.report.quality.completeness import clinical_table
from parametrium.report.quality.distribution import distributions
from parametrium.report.quality.measure import Measured
from parametrium.report.quality.pairs import Pair
from parametrium.report.quality.reduced import read_viewer_file
from parametrium.report.quality.survey import Surveyed
from parametrium.report.quality.suspicion import FAR, MARGIN, MINIMUM_CLASS, MINIMUM_PEERS, Suspicion
from parametrium.report.quality.use import objectives_table
from parametrium.report.quality.words import meaning, shown
from parametrium.report.tables import Table

MOST_SUSPICIOUS = 36
"""Montages of volumes to look at; all are in the list, each with its viewer."""
SAMPLE = 6
"""Montages of other volumes, a modality."""
MOST_MONTAGES = 96
MOST_OVERLAYS = 24

_MIDDLE = 4  # the median among the kept quantiles
KINDS = {
    "mislabelled": "name that does not fit",
    "duplicate": "duplicate",
    "outlier": "outlier",
    "misaligned": "not aligned",
}
PLURALS = KINDS | {"mislabelled": "names that do not fit", "duplicate": "duplicates", "outlier": "outliers"}


@dataclass(frozen=True)
class Side:
    """A table beside the cohort's: its columns and rows, and whether some of it could not be read."""

    columns: tuple[str, ...] = ()
    rows: tuple[Mapping[str, str], ...] = ()
    unreadable: bool = False


@dataclass(frozen=True)
class Findings:
    """What a check found, before it is put into words.

    Attributes:
        cohort: as its tables say.
        surveyed: its volumes with usable headers, measured.
        problems: what was left out.
        suspicions: what looks wrong.
        pairs: registered volumes, worst overlap first.
        imported: the import's own problems.csv.
        registration: the registration's own table.
        job: whose modalities and clinical schema count; None for the vocabulary.
    """

    cohort: Cohort
    surveyed: Sequence[Surveyed]
    problems: list[Problem]
    suspicions: list[Suspicion]
    pairs: Sequence[Pair]
    imported: Side = field(default_factory=Side)
    registration: Side = field(default_factory=Side)
    job: JobConfig | None = None

    @cached_property
    def measured(self) -> dict[int, Measured]:
        """The volumes that could be measured, by place in the survey."""
        return {n: item.found for n, item in enumerate(self.surveyed) if isinstance(item.found, Measured)}

    @cached_property
    def volumes(self) -> dict[str, int]:
        """How many of them, by modality, in the order of their first appearance."""
        return dict(Counter(self.surveyed[n].volume.modality for n in self.measured))


def page_content(found: Findings, viewer: Path) -> dict[str, Any]:
    """What the template shows; ``data`` is for the script.

    Args:
        found: what a check found.
        viewer: folder of the viewer's files, which hold the montages.
    """
    left, suspected = len(found.problems), Counter(s.kind for s in found.suspicions)
    words = [f"{left} left out"] if left else []
    words += [f"{count} {PLURALS[kind] if count > 1 else KINDS[kind]}" for kind, count in suspected.items()]
    return {
        "status": "; ".join(words) or "Nothing left out, nothing suspected",
        "clean": not words,
        "facts": _facts(found),
        "modalities": _modalities(found),
        "reasons": _reasons(found),
        "unreadable": [
            name
            for name, side in (("problems.csv", found.imported), ("registration.csv", found.registration))
            if side.unreadable
        ],
        "suspected": bool(found.suspicions),
        "limits": {"margin": MARGIN, "least": MINIMUM_CLASS, "far": f"{FAR:g}", "peers": MINIMUM_PEERS},
        "charts": [(m, distributions(m, own)) for m, own in _by_modality(found).items()],
        "montages": _montages(found, viewer),
        "overlays": _overlays(found),
        "pairs": len(found.pairs),
        "objectives": objectives_table(found.surveyed),
        "clinical": clinical_table(found.cohort.patients, found.job),
        "footer": f"Written by parametrium {__version__}.",
        "data": _data(found),
    }


def _facts(found: Findings) -> list[tuple[str, str]]:
    usable = [found.surveyed[n].volume for n in found.measured]
    by_patient = Counter(len(names) for names in _modalities_of(found).values())
    several = ", ".join(f"{count} with {n}" for n, count in sorted(by_patient.items()))
    days = [volume.day for volume in usable]
    return [
        ("Patients", str(len(_modalities_of(found)))),
        ("Studies", str(len({(v.patient, v.study) for v in usable}))),
        ("Volumes", str(len(usable))),
        ("Modalities of a patient", several or "none"),
        ("Days", f"{min(days)} to {max(days)}" if days else "none"),
        ("Modalities", "those of the job" if found.job else "those of the vocabulary; --job takes a job's"),
    ]


def _modalities_of(found: Findings) -> dict[str, set[str]]:
    held: dict[str, set[str]] = {}
    for n in found.measured:
        held.setdefault(found.surveyed[n].volume.patient, set()).add(found.surveyed[n].volume.modality)
    return held


def _by_modality(found: Findings) -> dict[str, list[Measured]]:
    groups: dict[str, list[Measured]] = {}
    for n, measured in found.measured.items():
        groups.setdefault(found.surveyed[n].volume.modality, []).append(measured)
    return dict(sorted(groups.items()))


def _modalities(found: Findings) -> Table:
    """One row a modality."""
    left = Counter(problem.modality for problem in found.problems)
    odd = Counter(found.surveyed[n].volume.modality for n in {s.volume for s in found.suspicions})
    rows = []
    for name in sorted({*found.volumes, *(m for m in left if m)}):
        own = [found.surveyed[n].volume for n in found.measured if found.surveyed[n].volume.modality == name]
        patients, studies = {v.patient for v in own}, {(v.patient, v.study) for v in own}
        numbers = (len(patients), len(studies), len(own), left[name], odd[name])
        rows.append([shown(name), *map(str, numbers)])
    header = ["modality", "patients", "studies", "volumes", "left out", "suspected"]
    return Table("By modality", header, rows[:100], numeric=(1, 2, 3, 4, 5))


def _reasons(found: Findings) -> Table:
    """Counts by who left it out and why."""
    counts = Counter(("this check", problem.reason.value) for problem in found.problems)
    for row in found.imported.rows:
        counts["the import", shown(row.get("reason", ""))] += _count(row)
    rows = [[who, reason.replace("_", " "), meaning(reason), str(n)] for (who, reason), n in sorted(counts.items())]
    note = "What the import left out is told once more here; it does not count as a finding of this check."
    header = ["left out by", "reason", "meaning", "number"]
    return Table("Left out, by reason", header, rows[:100], note if found.imported.rows else "", numeric=(3,))


def _count(row: Mapping[str, str]) -> int:
    try:
        return max(1, min(int(row.get("count", "1") or 1), 10**9))
    except ValueError:
        return 1


def _montages(found: Findings, viewer: Path) -> list[dict[str, str]]:
    """The suspicious volumes first, then a sample of each modality, evenly over the table."""
    why: dict[int, str] = {}
    for suspicion in found.suspicions:
        for n in (suspicion.volume, *suspicion.others):
            why.setdefault(n, KINDS[suspicion.kind])
    chosen = list(why)[:MOST_SUSPICIOUS]
    for name in sorted(found.volumes):
        own = [n for n in found.measured if found.surveyed[n].volume.modality == name and n not in why]
        chosen += [own[i * len(own) // min(SAMPLE, len(own))] for i in range(min(SAMPLE, len(own)))]
    montages = []
    for n in chosen[:MOST_MONTAGES]:
        try:
            _, picture = read_viewer_file(viewer / f"{found.surveyed[n].key}.js")
        except (OSError, ValueError):
            continue
        montages.append({**_named(found, n), "why": why.get(n, ""), "uri": _uri(picture)})
    return montages


def _overlays(found: Findings) -> list[dict[str, str]]:
    """Half the worst overlaps, half evenly over the others."""
    drawn = [pair for pair in found.pairs if pair.picture]
    worst, rest = drawn[: MOST_OVERLAYS // 2], drawn[MOST_OVERLAYS // 2 :]
    least = min(MOST_OVERLAYS - len(worst), len(rest))
    chosen = worst + [rest[i * len(rest) // least] for i in range(least)]
    return [
        {
            **_named(found, pair.other),
            "on": shown(found.surveyed[pair.anchor].volume.modality),
            "overlap": f"{pair.overlap:.2f}",
            "uri": _uri(pair.picture),
        }
        for pair in chosen
    ]


def _named(found: Findings, n: int) -> dict[str, str]:
    volume = found.surveyed[n].volume
    names = {"patient": volume.patient, "study": volume.study, "modality": volume.modality}
    return {"n": str(n), **{key: shown(text) for key, text in names.items()}}


def _uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()


def _data(found: Findings) -> dict[str, Any]:
    """The long tables, which the script pages through, and the files of the viewer, by place in the survey."""
    flags: dict[int, list[str]] = {}
    for suspicion in found.suspicions:
        for n in (suspicion.volume, *suspicion.others):
            flags.setdefault(n, []).append(KINDS[suspicion.kind])
    return {
        "keys": {str(n): found.surveyed[n].key for n in found.measured},
        "names": {str(n): " \N{MIDDLE DOT} ".join(list(_named(found, n).values())[1:]) for n in found.measured},
        "tables": {
            "suspicions": _suspicion_rows(found),
            "left": _left_rows(found),
            "overlaps": _overlap_rows(found),
            "registration": _side_rows(found.registration),
            "volumes": _volume_rows(found, flags),
        },
    }


def _long(
    header: list[str], numeric: Sequence[int], rows: list[list[str]], volumes: Sequence[int | None]
) -> dict[str, Any]:
    return {"header": header, "numeric": list(numeric), "rows": rows, "volumes": list(volumes)}


def _suspicion_rows(found: Findings) -> dict[str, Any]:
    rows, volumes = [], []
    for s in found.suspicions:
        names = [_named(found, n) for n in (s.volume, *s.others)]
        others = "; ".join(f"{o['patient']} {o['study']} {o['modality']}" for o in names[1:6])
        others += f"; and {len(names) - 6} more" if len(names) > 6 else ""
        first = names[0]
        rows.append([KINDS[s.kind], first["patient"], first["study"], first["modality"], s.text, others])
        volumes.append(s.volume)
    return _long(["what", "patient", "study", "modality", "why", "with"], (), rows, volumes)


def _left_rows(found: Findings) -> dict[str, Any]:
    rows = [
        ["this check", shown(p.patient), shown(p.modality), p.reason.value.replace("_", " "), "", "1"]
        for p in found.problems
    ]
    rows += [
        [
            "the import",
            *(shown(row.get(name, "")) for name in ("patient", "modality")),
            shown(row.get("reason", "")).replace("_", " "),
            shown(row.get("rule", "")),
            str(_count(row)),
        ]
        for row in found.imported.rows
    ]
    return _long(["left out by", "patient", "modality", "reason", "rule", "number"], (5,), rows, [None] * len(rows))


def _overlap_rows(found: Findings) -> dict[str, Any]:
    rows = []
    for pair in found.pairs:
        anchor, other = _named(found, pair.anchor), _named(found, pair.other)
        overlap = "no common place" if pair.overlap is None else f"{pair.overlap:.3f}"
        frame = shown(found.surveyed[pair.anchor].volume.frame)
        rows.append([anchor["patient"], frame, anchor["modality"], other["modality"], overlap])
    header = ["patient", "frame", "first", "laid on it", "overlap of the bodies"]
    return _long(header, (4,), rows, [pair.other for pair in found.pairs])


def _side_rows(side: Side) -> dict[str, Any]:
    rows = [[shown(row.get(name, "")) for name in side.columns] for row in side.rows]
    words = ("before", "after", "_mm", "_deg")
    numeric = [n for n, name in enumerate(side.columns) if name.endswith(words)]
    return _long([shown(name).replace("_", " ") for name in side.columns], numeric, rows, [None] * len(rows))


def _volume_rows(found: Findings, flags: Mapping[int, list[str]]) -> dict[str, Any]:
    rows = []
    for n, m in found.measured.items():
        volume = found.surveyed[n].volume
        rows.append(
            [
                shown(volume.patient),
                shown(volume.study),
                str(volume.day),
                shown(volume.modality),
                ", ".join(dict.fromkeys(flags.get(n, ()))),
                shown(volume.frame),
                _times(m.shape, "d"),
                _times(m.spacing_mm, ".2f"),
                _times(m.extent_mm, ".0f"),
                _number(m.body[_MIDDLE]),
                f"{_number(m.body[0])} to {_number(m.body[-1])}",
                f"{m.body_litres:.1f}",
            ]
        )
    header = ["patient", "study", "day", "modality", "look at", "frame", "voxels", "voxel mm", "extent mm"]
    header += ["median", "range in body", "litres"]
    return _long(header, (2, 6, 7, 8, 9, 10, 11), rows, list(found.measured))


def _number(value: float) -> str:
    return f"{value:.0f}" if 100 <= abs(value) < 1e6 else f"{value:.3g}"


def _times(numbers: Sequence[float], form: str) -> str:
    return " \N{MULTIPLICATION SIGN} ".join(format(number, form) for number in numbers)
