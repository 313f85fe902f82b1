"""Run folders with made-up numbers, written by the writer of real ones."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from parametrium.config import JobConfig
from parametrium.training.run_folder import Contribution, RunFolder

MODEL = {"x": torch.ones(2, 3), "y": torch.zeros(5)}
# Hard, as its probe asks for a variable that a soft contrast would be told.
OBJECTIVES = [{"kind": "masked_reconstruction"}, {"kind": "soft_contrastive", "softness": 0.0}]


def evaluation(job: JobConfig, error: float, final: bool) -> dict[str, float]:
    """Errors around ``error``; the model is best for CT and not for T1; retrieval and probe at the end."""
    scalars: dict[str, float] = {}
    for n, modality in enumerate(("CT", "T1")):
        prefix = f"evaluation/reconstruction/{modality}/"
        scalars |= {f"{prefix}model": error + n, f"{prefix}untrained": 1.5 + n}
        scalars |= {f"{prefix}modality_mean": 1.25 + n, f"{prefix}neighbour_mean": 0.75 + 0.1 * n}
        scalars[f"evaluation/reconstruction_volumes/{modality}"] = 7.0 + n
    scalars |= {f"evaluation/loss/{objective.kind}": error + 0.125 for objective in job.objectives}
    scalars |= {"monitor/volumes": 15.0, "monitor/features/rankme": 10 - 5 * error, "monitor/features/spread": 0.4375}
    scalars |= {"monitor/attention/background": 0.1875 * error, "monitor/attention/background_share": 0.3125}
    scalars |= {"monitor/attention/brightness": 0.25, "monitor/attention/entropy": 0.9375}
    if final:
        for pair, own in (("CT-T1", 0.6875), ("T1-CT", 0.1875)):
            for recall, chance in (("r1", 0.125), ("r5", 0.625)):
                prefix = f"evaluation/retrieval/{pair}/{recall}/"
                scalars |= {f"{prefix}model": own, f"{prefix}untrained": 0.3125}
                scalars |= {f"{prefix}body_mask": 0.4375, f"{prefix}voxels": 0.0625, f"{prefix}chance": chance}
            scalars[f"evaluation/retrieval/{pair}/candidates"] = 8.0
        if job.evaluation.probe:
            values = {"model": 0.5125, "untrained": 0.2125, "body_mask": 0.1125, "voxels": -0.3125, "chance": 0.0}
            values |= {"pooled": 0.6125, "pooled_untrained": 0.1875}
            scalars |= {f"evaluation/probe/spearman/{name}": value for name, value in values.items()}
    return scalars


def write_run(
    path: Path,
    job: JobConfig,
    sites: Sequence[str] = ("alpha", "beta"),
    *,
    rejected: dict[tuple[int, str], str] | None = None,
    kept: Mapping[int, Sequence[str]] | None = None,
    rounds: int | None = None,
    finish: bool = True,
    error: BaseException | None = None,
) -> RunFolder:
    """Writes a run.

    Args:
        path: the folder.
        job: what ran.
        sites: who took part.
        rejected: (round, site) to reason.
        kept: round to the modalities whose templates were not passed on.
        rounds: rounds that were done; all by default.
        finish: False leaves the run without a manifest and a final evaluation.
        error: why it failed.
    """
    done = job.rounds if rounds is None else rounds
    run = RunFolder(path, job)
    run._log = lambda *_: None  # type: ignore[method-assign]  # TensorBoard's files are not read here
    run.create()
    run.save_model(0, MODEL)
    for n, site in enumerate(sites):
        run.add_evaluation(0, site, {"site/patients": 30.0 + n, "site/held_out_patients": 8.0, "site/volumes/CT": 29.0})
        run.add_evaluation(0, site, evaluation(job, 1.5, final=False))
    for number in range(done):
        run.add_round(number, *_round(number, sites, rejected or {}), 1.5, (kept or {}).get(number, ()))
    if done:
        run.save_model(done, MODEL)
    if finish:
        for n, site in enumerate(sites):
            run.add_evaluation(done, site, evaluation(job, 0.5 + 0.01 * n, final=True))
        run.finish(done, list(sites), error)
    return run


def _round(
    number: int, sites: Sequence[str], rejected: dict[tuple[int, str], str]
) -> tuple[list[Contribution], dict[str, dict[str, float]]]:
    contributions: list[Contribution] = []
    scalars: dict[str, dict[str, float]] = {}
    for n, site in enumerate(sites):
        if (number, site) in rejected:
            contributions.append(Contribution(site, "rejected", rejected[number, site]))
            continue
        owners = {"shared": 40 + n, "embed/CT": 30 + n, "decode/CT": 20 + n}
        contributions.append(Contribution(site, "accepted", "", 40 + n, 12, 0.625 + n, owners))
        losses: dict[str, Any] = {"train/loss/masked_reconstruction": 2.0 / (number + 1) + n}
        losses |= {"train/loss/soft_contrastive": 1.75, "train/chance/soft_contrastive": 1.875}
        scalars[site] = losses
    return contributions, scalars
