"""The checkpoint that a run starts from: written by ``warm-start``, or any checkpoint of the same model."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from parametrium.config import JobConfig
from parametrium.errors import Code, TrainingError
from parametrium.objectives.registry import initial_tensors
from parametrium.training.checkpoint import load_checkpoint, save_checkpoint
from parametrium.training.run_folder import final_checkpoint
from parametrium.training.warm_start.ledger import LoadReport
from parametrium.training.warm_start.own import other_rules

_REMEDY = "parametrium warm-start SOURCE JOB.yaml --out FOLDER"


class Start(NamedTuple):
    """What the rounds begin with.

    Attributes:
        tensors: all tensors of the job's model.
        digest: SHA-256 of the file of tensors, for the run's manifest; None for the job's own initial values.
    """

    tensors: dict[str, Tensor]
    digest: str | None


def open_start(job: JobConfig, folder: Path | None) -> Start:
    """The job's own initial values, or a checkpoint that fits the job exactly.

    Args:
        job: the job.
        folder: a checkpoint, or a run folder whose last checkpoint is taken; None: start afresh.

    Raises:
        TrainingError: PM403 when the checkpoint is damaged, not finite, of another model than the job's or trained on
            volumes that were prepared otherwise, or when there is none and the job needs one.
        FederationError: PM503 when the folder holds a run without a checkpoint.
    """
    fresh = initial_tensors(job)
    if folder is None:
        if job.needs_start:
            raise TrainingError(
                Code.CHECKPOINT_INVALID,
                "the job says needs_start: true, and there is no checkpoint to start from; give one as --start, "
                "or lay it into the server's folder of starts under the job's name",
            )
        return Start(fresh, None)
    place = final_checkpoint(folder) if (folder / "manifest.json").is_file() else folder
    tensors, meta = load_checkpoint(place)
    fitting = [name for name in fresh if name in tensors and tensors[name].shape == fresh[name].shape]
    if len(fitting) != len(fresh) or len(tensors) != len(fresh):
        raise TrainingError(
            Code.CHECKPOINT_INVALID,
            f"the start has {len(tensors)} tensors, this job's model {len(fresh)}, {len(fitting)} fit; "
            f"make a start for this job with: {_REMEDY}",
            site_detail=str(folder),
        )
    others = _differences(job, meta)
    if others:
        raise TrainingError(
            Code.CHECKPOINT_INVALID,
            f"the start was trained with another {', '.join(others)} than the job's; its tensors fit and would compute "
            f"something else. Change the job, or convert the start with: {_REMEDY}",
            site_detail=str(folder),
        )
    broken = sum(not bool(torch.isfinite(tensor).all()) for tensor in tensors.values())
    if broken:
        raise TrainingError(
            Code.CHECKPOINT_INVALID, f"{broken} tensors of the start are not finite", site_detail=str(folder)
        )
    return Start({name: tensors[name].to(fresh[name].dtype) for name in fresh}, str(meta["sha256"]))


def _differences(job: JobConfig, meta: Mapping[str, Any]) -> list[str]:
    """Settings that no tensor shows and that differ from those which the checkpoint says it was trained with."""
    theirs, preparation = (meta.get("job") or {}).get("model"), meta.get("preparation")
    if theirs is None or preparation is None:
        return []
    found = [] if theirs.get("reach_mm") == job.model.reach_mm else ["model.reach_mm"]
    if preparation.get("spacing_mm") != list(job.preparation.spacing_mm):
        found.append("preparation.spacing_mm")
    return found + [f"preparation.intensity.{modality}" for modality in other_rules(preparation, job)]


def save_start(folder: Path, job: JobConfig, tensors: dict[str, Tensor], report: LoadReport) -> Path:
    """Writes a checkpoint that ``open_start`` reads.

    Raises:
        TrainingError: PM403 when the folder is there already, as a start is never replaced, or cannot be written.
    """
    if folder.exists():
        raise TrainingError(
            Code.CHECKPOINT_INVALID, "the folder for the start exists; choose another", site_detail=str(folder)
        )
    meta = {
        "modalities": list(job.modalities),
        "preparation": job.preparation.model_dump(mode="json"),
        "job": job.model_dump(mode="json"),
        "warm_start": report.as_json(),
    }
    try:
        return save_checkpoint(folder, tensors, meta)
    except OSError as error:
        raise TrainingError(
            Code.CHECKPOINT_INVALID,
            "the start cannot be written there; name a folder in one that is yours",
            site_detail=f"{folder}: {error}",
        ) from error
