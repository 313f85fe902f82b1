"""A run folder as the report reads it: finished, failed or cut off in the middle of a line.

``training.run_folder`` says what the files hold. Nothing here raises for a file that is absent or damaged: a report on
a run that went wrong is the one that is needed most.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from parametrium.config import JobConfig, load_job
from parametrium.errors import Code, FederationError, ParametriumError
from parametrium.training.run_folder import judge

State = Literal["complete", "failed", "unfinished"]
Scalars = Mapping[str, float]


@dataclass(frozen=True)
class RunRecord:
    """What is known of a run.

    Attributes:
        path: the run folder.
        job: the job; None where its file is absent or damaged.
        manifest: the manifest's fields; empty where the run has not ended.
        rounds: the records of ``rounds.jsonl``, ascending by round.
        evaluations: by site, then by finished rounds: everything the site measured then.
        state: complete by ``judge``; failed with a manifest, unfinished without.
        reasons: why it is not complete.
        damaged: lines that could not be read.
    """

    path: Path
    job: JobConfig | None = None
    manifest: Mapping[str, Any] = field(default_factory=dict)
    rounds: tuple[Mapping[str, Any], ...] = ()
    evaluations: Mapping[str, Mapping[int, Scalars]] = field(default_factory=dict)
    state: State = "unfinished"
    reasons: tuple[str, ...] = ()
    damaged: int = 0

    @property
    def sites(self) -> list[str]:
        """Every site that any file names."""
        named = {str(site) for site in self.manifest.get("sites") or []} | set(self.evaluations)
        return sorted(named | {site["site"] for record in self.rounds for site in record["sites"]})

    @property
    def rounds_planned(self) -> int:
        """As the job says; 0 where that is not known."""
        return self.job.rounds if self.job else int(self.manifest.get("rounds_planned") or 0)

    def facts(self, site: str) -> Scalars:
        """What a site said of its cohort when it opened it: ``site/...``."""
        return {k: v for k, v in self.evaluations.get(site, {}).get(0, {}).items() if k.startswith("site/")}

    def before(self, site: str) -> Scalars:
        """What a site measured before the first round."""
        return self.evaluations.get(site, {}).get(0, {})

    @property
    def stopped(self) -> str:
        """Why a rule ended the run before its last round; empty where none did."""
        stopped = self.manifest.get("stopped")
        return str(stopped.get("reason", "")) if isinstance(stopped, dict) else ""

    @property
    def best_round(self) -> int | None:
        """The round whose model the job's stopping rule found best; None where no rule was on or nothing was found."""
        rules = self.job.stopping if self.job else None
        best = self.manifest.get("best_round")
        return best if isinstance(best, int) and rules and (rules.background or rules.held_out_loss) else None

    def after(self, site: str) -> tuple[int, Scalars]:
        """A site's measurement of the best round, or else its last after a round, and after how many rounds.

        (0, nothing) where there is none.
        """
        if self.best_round and self.best_round in self.evaluations.get(site, {}):
            return self.best_round, self.evaluations[site][self.best_round]
        last = max((n for n in self.evaluations.get(site, {}) if n > 0), default=0)
        return (last, self.evaluations[site][last]) if last else (0, {})

    def scalar(self, site: str, name: str) -> dict[int, float]:
        """One training scalar of a site, by round."""
        found = ((record["round"], record["scalars"].get(site, {}).get(name)) for record in self.rounds)
        return {number: value for number, value in found if isinstance(value, int | float)}


def read_run(run: Path | RunRecord) -> RunRecord:
    """Reads a run folder; a record that was read already comes back as it is.

    Raises:
        FederationError: PM503 when the folder is not there or holds nothing of a run.
    """
    if isinstance(run, RunRecord):
        return run
    files = ("job.yaml", "rounds.jsonl", "evaluation.jsonl", "manifest.json")
    if not any((run / name).is_file() for name in files):
        raise FederationError(
            Code.RUN_INVALID, "the folder holds no run; give the folder named by --out", site_detail=str(run)
        )
    rounds, damaged_rounds = _read_rounds(run)
    evaluations, damaged_evaluations = _read_evaluations(run)
    good, reasons = _judged(run)
    state: State = "complete" if good else ("failed" if (run / "manifest.json").is_file() else "unfinished")
    return RunRecord(
        path=run,
        job=_read_job(run),
        manifest=_read_manifest(run),
        rounds=rounds,
        evaluations=evaluations,
        state=state,
        reasons=tuple(reasons),
        damaged=damaged_rounds + damaged_evaluations,
    )


def _judged(run: Path) -> tuple[bool, list[str]]:
    """As ``judge``; a record that lacks its fields is a reason too."""
    try:
        return judge(run)
    except (AttributeError, KeyError, TypeError, ValueError):
        return False, ["the run's records are damaged"]


def _read_job(run: Path) -> JobConfig | None:
    try:
        return load_job(run / "job.yaml")
    except ParametriumError:
        return None


def _read_manifest(run: Path) -> Mapping[str, Any]:
    try:
        manifest = json.loads((run / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return manifest if isinstance(manifest, dict) else {}


def _read_rounds(run: Path) -> tuple[tuple[Mapping[str, Any], ...], int]:
    """Good records by round, and how many lines were not good."""
    lines, damaged = _objects(run / "rounds.jsonl")
    found: dict[int, Mapping[str, Any]] = {}
    for line in lines:
        try:
            record = {
                "round": int(line["round"]),
                "seconds": float(line["seconds"]),
                "sites": [_contribution(site) for site in line["sites"]],
                "scalars": dict(line["scalars"]),
                "templates_kept": [str(modality) for modality in line.get("templates_kept", ())],
            }
        except (KeyError, TypeError, ValueError):
            damaged += 1
            continue
        found[int(line["round"])] = record
    return tuple(found[number] for number in sorted(found)), damaged


def _contribution(site: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "site": str(site["site"]),
        "status": str(site["status"]),
        "reason": str(site.get("reason", "")),
        "samples": int(site.get("samples", 0)),
        "tensors": int(site.get("tensors", 0)),
        "norm": float(site.get("norm", 0.0)),
        "owners": {str(group): int(n) for group, n in dict(site.get("owners", {})).items()},
    }


def _read_evaluations(run: Path) -> tuple[dict[str, dict[int, Scalars]], int]:
    """By site and finished rounds; a site has several lines for round 0, its cohort and its first measurement."""
    lines, damaged = _objects(run / "evaluation.jsonl")
    found: dict[str, dict[int, Scalars]] = {}
    for line in lines:
        try:
            site, number = str(line["site"]), int(line["round"])
            scalars = {str(name): float(value) for name, value in dict(line["scalars"]).items()}
        except (KeyError, TypeError, ValueError):
            damaged += 1
            continue
        by_round = found.setdefault(site, {})
        by_round[number] = {**by_round.get(number, {}), **scalars}
    return found, damaged


def _objects(path: Path) -> tuple[list[Mapping[str, Any]], int]:
    """The JSON objects of a file of lines; a line that was cut off by a crash is counted and passed over."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return [], 0
    good: list[Mapping[str, Any]] = []
    for line in lines:
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            good.append(value)
    return good, len(lines) - len(good)
