"""The quality page's long tables as plain rows; the script pages through them."""

from collections.abc import Mapping, Sequence
from typing import Any

from parametrium.report.quality.findings import KINDS, REMEDIES, Findings, Side
from parametrium.report.quality.words import is_as_it_should_be, shown, unit, verdict

_MIDDLE = 4  # the median among the kept quantiles


def count_of(row: Mapping[str, str]) -> int:
    """How many files a row of the import's problems.csv stands for."""
    try:
        return max(1, min(int(row.get("count", "1") or 1), 10**9))
    except ValueError:
        return 1


def script_data(found: Findings) -> dict[str, Any]:
    """The long tables, which the script pages through, and the files of the viewer, by place in the survey."""
    return {
        "keys": {str(n): found.surveyed[n].key for n in found.measured},
        "names": {str(n): " \N{MIDDLE DOT} ".join(list(found.named(n).values())[1:]) for n in found.measured},
        "units": {str(n): unit(found.surveyed[n].volume.modality) for n in found.measured},
        "tables": {
            "suspicions": _suspicion_rows(found),
            "left": _left_rows(found),
            "overlaps": _overlap_rows(found),
            "registration": _registration_rows(found.registration),
            "volumes": _volume_rows(found),
        },
    }


def _long(
    header: list[str], numeric: Sequence[int], rows: list[list[str]], volumes: Sequence[int | None]
) -> dict[str, Any]:
    return {"header": header, "numeric": list(numeric), "rows": rows, "volumes": list(volumes)}


def _suspicion_rows(found: Findings) -> dict[str, Any]:
    rows, volumes = [], []
    for s in found.suspicions:
        names = [found.named(n) for n in (s.volume, *s.others)]
        others = "; ".join(f"{o['patient']} {o['study']} {o['modality']}" for o in names[1:6])
        others += f"; and {len(names) - 6} more" if len(names) > 6 else ""
        first = names[0]
        rows.append(
            [KINDS[s.kind], first["patient"], first["study"], first["modality"], s.text, others, REMEDIES[s.kind]]
        )
        volumes.append(s.volume)
    return _long(["what", "patient", "study", "modality", "why", "with", "what to do"], (), rows, volumes)


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
            str(count_of(row)),
        ]
        for row in sorted(found.imported.rows, key=lambda row: is_as_it_should_be(row.get("reason", "")))
    ]
    return _long(["left out by", "patient", "modality", "reason", "rule", "number"], (5,), rows, [None] * len(rows))


def _overlap_rows(found: Findings) -> dict[str, Any]:
    rows = []
    for pair in found.pairs:
        anchor, other = found.named(pair.anchor), found.named(pair.other)
        overlap = "no common place" if pair.overlap is None else f"{pair.overlap:.3f}"
        frame = shown(found.surveyed[pair.anchor].volume.frame)
        rows.append([anchor["patient"], frame, anchor["modality"], other["modality"], overlap])
    header = ["patient", "frame", "first", "laid on it", "overlap of the bodies"]
    return _long(header, (4,), rows, [pair.other for pair in found.pairs])


_FOR_PROGRAMS = ("path", "frame", "target", "moved")
_DIGITS = {"_mm": 1, "_deg": 1, "before": 3, "after": 3, "mirrored": 3}
"""Of the registration's numbers, by the end of their column's name."""


def _registration_rows(side: Side) -> dict[str, Any]:
    """Without what is for programs only."""
    columns = [name for name in side.columns if name not in _FOR_PROGRAMS]
    rows = [[_registration_cell(name, row.get(name, "")) for name in columns] for row in side.rows]
    numeric = [n for n, name in enumerate(columns) if name.endswith(tuple(_DIGITS))]
    return _long([shown(name).replace("_", " ") for name in columns], numeric, rows, [None] * len(rows))


def _registration_cell(column: str, text: str) -> str:
    if column == "verdict":
        return verdict(text)
    digits = next((count for end, count in _DIGITS.items() if column.endswith(end)), None)
    try:
        return shown(text) if digits is None else f"{float(text):.{digits}f}"
    except ValueError:
        return shown(text)


def _volume_rows(found: Findings) -> dict[str, Any]:
    rows = []
    for n, m in found.measured.items():
        volume = found.surveyed[n].volume
        rows.append(
            [
                found.named(n)["patient"],
                found.named(n)["study"],
                str(volume.day),
                found.named(n)["modality"],
                ", ".join(dict.fromkeys(found.flags.get(n, ()))),
                shown(volume.frame),
                _times(m.shape, "d"),
                _times(m.spacing_mm, ".2f"),
                _times(m.extent_mm, ".0f"),
                number(m.body[_MIDDLE]),
                f"{number(m.body[0])} to {number(m.body[-1])}",
                unit(volume.modality),
                f"{m.body_litres:.1f}",
            ]
        )
    header = [
        "patient",
        "study",
        "day",
        "modality",
        "look at",
        "frame",
        "voxels",
        "voxel size, mm",
        "field of view, mm",
    ]
    header += ["median", "0.1 to 99.9 percentile", "unit", "body, l"]
    return _long(header, (2, 6, 7, 8, 9, 10, 12), rows, list(found.measured))


def number(value: float) -> str:
    """An intensity in few digits."""
    return f"{value:.0f}" if 100 <= abs(value) < 1e6 else f"{value:.3g}"


def _times(numbers: Sequence[float], form: str) -> str:
    return " \N{MULTIPLICATION SIGN} ".join(format(number, form) for number in numbers)
