"""Everything the quality page shows, as plain data; the template and the script only lay it out."""

import base64
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from parametrium import __version__
from parametrium.report.quality.completeness import clinical_table
from parametrium.report.quality.distribution import distributions
from parametrium.report.quality.findings import KINDS, PLURALS, Findings
from parametrium.report.quality.measure import Measured
from parametrium.report.quality.reduced import read_viewer_file
from parametrium.report.quality.rows import count_of, number, script_data
from parametrium.report.quality.suspicion import FAR, MARGIN, MINIMUM_CLASS, MINIMUM_PEERS
from parametrium.report.quality.use import objectives_table
from parametrium.report.quality.words import is_as_it_should_be, meaning, remedy, shown, unit
from parametrium.report.tables import Table

MOST_SUSPICIOUS = 36
"""Montages of volumes to look at; all are in the list, each with its viewer."""
SAMPLE = 6
"""Montages of other volumes, a modality."""
MOST_MONTAGES = 96
MOST_OVERLAYS = 24


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
        "name": shown(found.name),
        "status": "; ".join(words) or "Nothing suspected, nothing left out by this check",
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
        "no_clinical": not any(patient.clinical for patient in found.cohort.patients),
        "clinical": clinical_table(found.cohort.patients, found.job),
        "footer": f"Written by parametrium {__version__}.",
        "data": script_data(found),
    }


def _facts(found: Findings) -> list[tuple[str, str]]:
    usable = [found.surveyed[n].volume for n in found.measured]
    by_patient = Counter(len(names) for names in _modalities_of(found).values())
    several = ", ".join(f"{count} with {n}" for n, count in sorted(by_patient.items()))
    days = [volume.day for volume in usable]
    facts = [
        ("Patients", str(len(_modalities_of(found)))),
        ("Studies", str(len({(v.patient, v.study) for v in usable}))),
        ("Volumes", str(len(usable))),
        ("Patients by number of modalities", several or "none"),
        ("Days since a patient's first study", f"{min(days)} to {max(days)}" if days else "none"),
        ("Compared with", "the job's modalities and clinical schema" if found.job else "no job: check with --job"),
    ]
    if found.imported.rows:
        facts.append(("Left out by the import before", _left_before(found.imported.rows)))
    return facts


def _left_before(rows: Sequence[Mapping[str, str]]) -> str:
    count = sum(count_of(row) for row in rows)
    worth = sum(count_of(row) for row in rows if not is_as_it_should_be(row.get("reason", "")))
    return f"{count:,} files, {worth:,} of them worth a look"


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
    odd = Counter(found.surveyed[n].volume.modality for n in found.flags)
    rows = []
    for name in sorted({*found.volumes, *(m for m in left if m)}):
        own = [found.surveyed[n].volume for n in found.measured if found.surveyed[n].volume.modality == name]
        patients, studies = {v.patient for v in own}, {(v.patient, v.study) for v in own}
        numbers = (len(patients), len(studies), len(own), left[name], odd[name])
        rows.append([shown(name), *map(str, numbers)])
    header = ["modality", "patients", "studies", "volumes", "left out", "to look at"]
    return Table("By modality", header, rows[:100], numeric=(1, 2, 3, 4, 5))


def _reasons(found: Findings) -> Table:
    """Counts by who left it out and why."""
    counts = Counter(("this check", problem.reason.value) for problem in found.problems)
    for row in found.imported.rows:
        counts["the import", shown(row.get("reason", ""))] += count_of(row)
    ordered = sorted(counts.items(), key=lambda item: (is_as_it_should_be(item[0][1]), item[0]))
    rows = [[who, r.replace("_", " "), meaning(r), remedy(r), str(n)] for (who, r), n in ordered]
    note = "Of the import, these are files; they are told once more here and do not count as findings of this check."
    header = ["left out by", "reason", "meaning", "what to do", "number"]
    return Table("Left out, by reason", header, rows[:100], note if found.imported.rows else "", numeric=(4,))


def _montages(found: Findings, viewer: Path) -> list[dict[str, str]]:
    """The suspicious volumes first, then a sample of each modality, evenly over the table."""
    why = {n: flags[0] for n, flags in found.flags.items()}
    chosen = list(why)[:MOST_SUSPICIOUS]
    for name in sorted(found.volumes):
        own = [n for n in found.measured if found.surveyed[n].volume.modality == name and n not in why]
        chosen += [own[i * len(own) // min(SAMPLE, len(own))] for i in range(min(SAMPLE, len(own)))]
    montages = []
    for n in chosen[:MOST_MONTAGES]:
        try:
            reduced, picture = read_viewer_file(viewer / f"{found.surveyed[n].key}.js")
        except (OSError, ValueError):
            continue
        window = f"{number(reduced.window[0])} to {number(reduced.window[1])} {unit(found.surveyed[n].volume.modality)}"
        montages.append({**found.named(n), "why": why.get(n, ""), "window": window.strip(), "uri": _uri(picture)})
    return montages


def _overlays(found: Findings) -> list[dict[str, str]]:
    """Half the worst overlaps, half evenly over the others."""
    drawn = [pair for pair in found.pairs if pair.picture]
    worst, rest = drawn[: MOST_OVERLAYS // 2], drawn[MOST_OVERLAYS // 2 :]
    least = min(MOST_OVERLAYS - len(worst), len(rest))
    chosen = worst + [rest[i * len(rest) // least] for i in range(least)]
    return [
        {
            **found.named(pair.other),
            "on": shown(found.surveyed[pair.anchor].volume.modality),
            "overlap": f"{pair.overlap:.2f}",
            "uri": _uri(pair.picture),
        }
        for pair in chosen
    ]


def _uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()
