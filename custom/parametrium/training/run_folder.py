"""The run folder: what happened, round by round, and whether the run is good.

    RUN/
        job.yaml                    the job, as it ran
        rounds.jsonl                one JSON object a round: sites, statuses, scalars, seconds, templates kept
        contributions.csv           who contributed what to which round, and who did not, why
        evaluation.jsonl            one JSON object an evaluation: round, site, scalars
        checkpoints/round_0003/     the global model after that round
        tensorboard/<site>/         the scalars that travelled
        manifest.json               status, rounds done, final and best checkpoint, checksums: the witness of success
        sites/<site>/               in a simulation on one machine: the sites' own folders; they never travel

Everything is keyed by round and only appended; a line is on the disk before the next round begins.
"""

import csv
import io
import json
import os
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from parametrium.config import JobConfig, load_job
from parametrium.config.plain import write_plain
from parametrium.errors import Code, FederationError, ParametriumError, public_text
from parametrium.model.modality import Owner
from parametrium.monitor.stopping import Verdict, judged, measurements
from parametrium.training.checkpoint import (
    TENSORS,
    file_digest,
    find_checkpoint,
    flush,
    load_checkpoint,
    save_checkpoint,
)
from parametrium.training.update import Update

Status = Literal["accepted", "unused", "idle", "rejected", "missing"]
IDLE = "this round's objectives found nothing to train on, or trained in fewer steps than the site's policy permits"
IDLE_REMEDY = "give the job an objective for these modalities, fewer turns, or more local_steps"
TOO_FEW = "fewer than minimum_sites trained in this round: the model stayed as it was"
COLUMNS = ("round", "site", "status", "reason", "samples", "tensors", "norm")


@dataclass(frozen=True)
class Contribution:
    """One site in one round.

    Attributes:
        site: name of the site.
        status: accepted; unused: accepted, but fewer sites than the job's minimum trained, so that the model stayed;
            idle: the round's objectives found nothing to train on there; rejected: it answered, with an
            error of its own or with an update that failed a check; missing: no answer in time, or absent from the
            start, because it could not open its cohort.
        reason: public text; empty when accepted.
        samples: n_k.
        tensors: how many tensors it changed.
        norm: L2 norm of its update.
        owners: samples by group of tensors, for instance ``embed/CT``.
    """

    site: str
    status: Status
    reason: str = ""
    samples: int = 0
    tensors: int = 0
    norm: float = 0.0
    owners: dict[str, int] = field(default_factory=dict)


class RunFolder:
    """Writes a run folder.

    Args:
        path: the folder.
        job: the job that runs.

    Attributes:
        start: SHA-256 of the tensors that the run started from; None: of the job's own initial values.
    """

    def __init__(self, path: Path, job: JobConfig) -> None:
        self.path = path
        self.job = job
        self.start: str | None = None
        self._writers: dict[str, SummaryWriter] = {}

    def require_new(self) -> None:
        """Refuses a folder that holds a run.

        Raises:
            FederationError: PM503.
        """
        if any((self.path / name).exists() for name in ("job.yaml", "rounds.jsonl", "manifest.json")):
            raise FederationError(
                Code.RUN_INVALID,
                "the run folder already holds a run; choose another folder, or another job.name",
                site_detail=str(self.path),
            )

    def create(self) -> None:
        """Makes a new run folder.

        Raises:
            FederationError: PM503 when it holds a run, or cannot be made.
        """
        self.require_new()
        try:
            for part in ("checkpoints", "tensorboard", "sites"):
                (self.path / part).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FederationError(
                Code.RUN_INVALID,
                "the run folder cannot be made there; name one in a folder that is yours",
                site_detail=f"{self.path}: {error}",
            ) from error
        text = write_plain(self.job.model_dump(mode="json"))
        _write(self.path / "job.yaml", text)
        _append(self.path / "contributions.csv", ",".join(COLUMNS) + "\n")

    def add_round(
        self,
        number: int,
        contributions: Sequence[Contribution],
        scalars: Mapping[str, Mapping[str, float]],
        seconds: float,
        templates_kept: Collection[str] = (),
    ) -> None:
        """Appends one finished round.

        Args:
            number: counted from 0.
            contributions: every site of the run, in any order.
            scalars: by site.
            seconds: wall time of the round.
            templates_kept: modalities whose templates were trained and yet stay as they are; too few sites did.
        """
        ordered = sorted(contributions, key=lambda c: c.site)
        _append(self.path / "contributions.csv", _csv_rows(number, ordered))
        record = {
            "round": number,
            "seconds": round(seconds, 3),
            "sites": [asdict(c) for c in ordered],
            "scalars": {site: dict(values) for site, values in sorted(scalars.items())},
            "templates_kept": sorted(templates_kept),
        }
        _append(self.path / "rounds.jsonl", json.dumps(record) + "\n")
        for site, values in scalars.items():
            self._log(site, values, number)

    def add_evaluation(self, number: int, site: str, scalars: Mapping[str, float]) -> None:
        """Appends what a site measured under the global model that entered round ``number``."""
        record = {"round": number, "site": site, "scalars": dict(scalars)}
        _append(self.path / "evaluation.jsonl", json.dumps(record) + "\n")
        self._log(site, scalars, number)

    def save_model(self, number: int, model: Mapping[str, Tensor]) -> Path:
        """Writes the global model after ``number`` finished rounds; 0 is the initial model."""
        meta = {
            "run": self.job.name,
            "round": number,
            "modalities": list(self.job.modalities),
            "preparation": self.job.preparation.model_dump(mode="json"),
            "job": self.job.model_dump(mode="json"),
            "rng": {"seed": self.job.seed, "step": number * self.job.local_steps},
        }
        return save_checkpoint(self.path / "checkpoints" / _checkpoint(number), model, meta)

    def model(self, number: int) -> dict[str, Tensor]:
        """The global model after so many rounds; raises as ``load_checkpoint``."""
        return load_checkpoint(self.path / "checkpoints" / _checkpoint(number))[0]

    def verdict(self) -> Verdict:
        """What the job's stopping rule says of everything that was measured so far."""
        return _verdict(self.path, self.job)

    def finish(self, rounds_done: int, sites: Sequence[str], error: BaseException | None = None) -> None:
        """Writes the manifest: the run is complete, or why it is not; whether a rule ended it; which round is best.

        Without a rule, or where nothing was measured, the last round counts as the best.
        """
        for writer in self._writers.values():
            writer.close()
        name = _checkpoint(rounds_done)
        final = find_checkpoint(self.path / "checkpoints" / name)
        verdict = self.verdict()
        best = rounds_done if verdict.best_round is None else verdict.best_round
        kept = find_checkpoint(self.path / "checkpoints" / _checkpoint(best))
        stopped = verdict.stopped_by is not None and error is None and rounds_done < self.job.rounds
        manifest: dict[str, Any] = {
            "run": self.job.name,
            "status": "failed" if error else "complete",
            "rounds_done": rounds_done,
            "rounds_planned": self.job.rounds,
            "stopped": {"after_rounds": rounds_done, "rule": verdict.stopped_by, "reason": verdict.reason}
            if stopped
            else None,
            "sites": sorted(sites),
            "start": self.start,
            "checkpoint": name if final else None,
            "sha256": file_digest(final / TENSORS) if final else None,
            "best_round": best if kept else None,
            "best_checkpoint": _checkpoint(best) if kept else None,
            "best_sha256": file_digest(kept / TENSORS) if kept else None,
            "error": public_text(error) if error else None,
        }
        _write(self.path / "manifest.json", json.dumps(manifest, indent=1))

    def finish_abandoned(self, sites: Sequence[str], error: BaseException) -> None:
        """Writes the manifest for a run whose server ended without one."""
        self.finish(len(_read_rounds(self.path / "rounds.jsonl")[0]), sites, error)

    def _log(self, site: str, scalars: Mapping[str, float], number: int) -> None:
        if site not in self._writers:
            self._writers[site] = SummaryWriter(str(self.path / "tensorboard" / site))
        for name, value in scalars.items():
            self._writers[site].add_scalar(name, value, number)
        self._writers[site].flush()


def contribution_of(update: Update, owners: Mapping[str, Owner]) -> Contribution:
    """The record of an update that passed its checks.

    ``owners`` summarises n_kp: the largest contribution among the tensors of one role and modality.
    """
    if update.idle:
        return Contribution(update.site, "idle", IDLE)
    groups: dict[str, int] = {}
    for name, samples in sorted(update.contributions.items()):
        owner = owners[name]
        group = owner.role if owner.modality is None else f"{owner.role}/{owner.modality}"
        groups[group] = max(groups.get(group, 0), samples)
    return Contribution(update.site, "accepted", "", update.samples, len(update.tensors), update.norm, groups)


def unused(contribution: Contribution) -> Contribution:
    """The record of an accepted update that did not enter a model; others as they are."""
    if contribution.status != "accepted":
        return contribution
    return Contribution(contribution.site, "unused", TOO_FEW)


def judge(path: Path) -> tuple[bool, list[str]]:
    """Whether a run is good, recomputed from its folder; FLARE's word is no evidence.

    Returns:
        True and no reasons, or False and every reason: rounds missing, a round that fewer sites than the minimum
        answered, no round in which as many trained, a model that is not finite, a checksum that differs, or the error
        of the run itself.
    """
    try:
        manifest = _read_manifest(path)
        status, error, done = manifest["status"], manifest["error"], manifest["rounds_done"]
    except (KeyError, FederationError):
        return False, ["the run has no manifest: it did not come to an end"]
    try:
        job = load_job(path / "job.yaml")
    except ParametriumError:
        return False, ["the run's job.yaml is missing, damaged, or of a version that took what this one refuses"]
    reasons = [str(error)] if error else []
    if status != "complete" and not reasons:
        reasons.append(f"the run's status is {status}")
    stopped = manifest.get("stopped") is not None
    planned = done if stopped and isinstance(done, int) else job.rounds
    if status == "complete" and done != planned:
        reasons.append(f"the final model is that after {done} of {job.rounds} rounds")
    reasons += _round_faults(path, job, planned) + _stopping_faults(path, job, manifest)
    reasons += _model_faults(path, manifest)
    return not reasons, reasons


def final_model(path: Path) -> dict[str, Tensor]:
    """The tensors of a run's last checkpoint, as its manifest names it.

    Raises:
        FederationError: PM503 when the run has none.
    """
    return load_checkpoint(final_checkpoint(path))[0]


def final_checkpoint(path: Path) -> Path:
    """Where a run's last checkpoint lies, as its manifest names it.

    Raises:
        FederationError: PM503 when the run has none.
    """
    name = _read_manifest(path).get("checkpoint")
    if not name:
        raise FederationError(Code.RUN_INVALID, "the run ended without a checkpoint", site_detail=str(path))
    return path / "checkpoints" / str(name)


def best_model(path: Path) -> tuple[int, dict[str, Tensor]]:
    """The best round by the job's own rule, as the manifest names it, and its tensors; the last where no rule was on.

    Raises:
        FederationError: PM503 when the run has none.
    """
    manifest = _read_manifest(path)
    number, name = manifest.get("best_round"), manifest.get("best_checkpoint")
    if not isinstance(number, int) or not name:
        raise FederationError(Code.RUN_INVALID, "the run ended without a checkpoint", site_detail=str(path))
    return number, load_checkpoint(path / "checkpoints" / str(name))[0]


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file; an absent file has none."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
        if isinstance(manifest, dict):
            return manifest
    except (OSError, ValueError):
        pass
    raise FederationError(Code.RUN_INVALID, "the folder holds no finished run", site_detail=str(path))


class _Round(NamedTuple):
    number: int
    accepted: int
    answered: int


def _read_rounds(path: Path) -> tuple[list[_Round], int]:
    """Every round that can be read, and how many lines cannot."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError:
        return [], 0
    rounds = []
    for line in lines:
        try:
            record = json.loads(line)
            count = Counter(str(site["status"]) for site in record["sites"])
            if type(record["round"]) is int:
                answered = sum(count[status] for status in ("accepted", "unused", "idle"))
                rounds.append(_Round(record["round"], count["accepted"], answered))
        except (ValueError, TypeError, KeyError, RecursionError):
            continue
    return rounds, len(lines) - len(rounds)


def _checkpoint(number: int) -> str:
    return f"round_{number:04d}"


def _verdict(path: Path, job: JobConfig) -> Verdict:
    """The rule on ``evaluation.jsonl``; a line that was cut off or holds no numbers is passed over."""
    records = []
    try:
        lines = (path / "evaluation.jsonl").read_bytes().splitlines()
    except OSError:
        lines = []
    for line in lines:
        try:
            record = json.loads(line)
            scalars = {str(name): float(value) for name, value in record["scalars"].items()}
            records.append({"round": int(record["round"]), "site": str(record["site"]), "scalars": scalars})
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            continue
    return judged(measurements(records, job), job.stopping)


def _stopping_faults(path: Path, job: JobConfig, manifest: Mapping[str, Any]) -> list[str]:
    """Whether the rule, asked again, says what the manifest says."""
    verdict, faults = _verdict(path, job), []
    stopped = manifest.get("stopped")
    if stopped is not None and (not isinstance(stopped, dict) or stopped.get("rule") != verdict.stopped_by):
        faults.append("the manifest says that a rule stopped the run, and the run's measurements do not")
    if verdict.best_round is not None and manifest.get("best_round") != verdict.best_round:
        faults.append("the best round of the manifest is not that of the run's measurements")
    return faults


def _round_faults(path: Path, job: JobConfig, planned: int) -> list[str]:
    rounds, damaged = _read_rounds(path / "rounds.jsonl")
    faults = [f"{damaged} lines of rounds.jsonl are damaged"] if damaged else []
    if [found.number for found in rounds] != list(range(planned)):
        faults.append(f"{len(rounds)} of {planned} rounds were done")
    faults += [
        f"round {found.number} had {found.answered} of at least {job.minimum_sites} usable answers"
        for found in rounds
        if found.answered < job.minimum_sites
    ]
    if rounds and not faults and not any(found.accepted >= job.minimum_sites for found in rounds):
        faults.append("in no round as many sites trained as the job's minimum: nothing was learned")
    return faults


def _model_faults(path: Path, manifest: Mapping[str, Any]) -> list[str]:
    """The final model, and the best where that is another round's."""
    faults = _checkpoint_faults(path, "final", manifest.get("checkpoint"), manifest.get("sha256"))
    best = manifest.get("best_checkpoint")
    if best is not None and best != manifest.get("checkpoint"):
        faults += _checkpoint_faults(path, "best", best, manifest.get("best_sha256"))
    return faults


def _checkpoint_faults(path: Path, which: str, name: object, digest: object) -> list[str]:
    if not name:
        return [f"{Code.RUN_INVALID.code} the run ended without a checkpoint"]
    folder = path / "checkpoints" / str(name)
    try:
        tensors = load_checkpoint(folder)[0]
        found = find_checkpoint(folder)
        if found is None or file_digest(found / TENSORS) != digest:
            return [f"the {which} model does not match the manifest's checksum"]
    except ParametriumError as error:
        return [str(error)]
    broken = sum(not bool(torch.isfinite(tensor).all()) for tensor in tensors.values())
    return [f"{broken} tensors of the {which} model are not finite"] if broken else []


def _csv_rows(number: int, contributions: Sequence[Contribution]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for c in contributions:
        writer.writerow([number, c.site, c.status, c.reason, c.samples, c.tensors, f"{c.norm:.6g}"])
    return text.getvalue()


def _append(path: Path, text: str) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _write(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    flush(partial)
    partial.rename(path)
    flush(path.parent)
