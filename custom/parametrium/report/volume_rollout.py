"""The attention rollout of one scan, prepared as the run's cohort was, over the scan as a whole."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from parametrium.cohort.problem import Reason
from parametrium.config import JobConfig, load_job
from parametrium.data.recipe import Prepared, load_volume, prepare_arrays, recipe_for
from parametrium.errors import Code, CohortError, ConfigError, FederationError, ParametriumError, TrainingError
from parametrium.model.encoder import Encoder
from parametrium.objectives.registry import build_model
from parametrium.report.planes import Item, Panel, draw_items
from parametrium.report.rollouts import heat_of, overlay_of_volume
from parametrium.training.checkpoint import load_checkpoint
from parametrium.training.run_folder import best_model

_DPI = 250

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class VolumeRollout:
    """What was drawn.

    Attributes:
        modality: of the scan.
        rounds: finished rounds of the model.
        numbers: means over the crops, see ``attention_numbers``, and ``crops``.
    """

    modality: str
    rounds: int
    numbers: Mapping[str, float]


def draw_volume_rollout(
    run: Path,
    volume: Path,
    target: Path,
    modality: str | None = None,
    rounds: int | None = None,
    rescale: tuple[float, float] = (1.0, 0.0),
    progress: Progress | None = None,
) -> VolumeRollout:
    """Draws axial, coronal and sagittal planes through the middle of the body, without and with the attention.

    Args:
        run: a run folder.
        volume: a scan in any format that a cohort may hold.
        target: PNG to write, readable by its owner alone: it shows a patient.
        modality: of the scan; may be left out where the job has one.
        rounds: the model after so many rounds; None takes the best by the job's own rule.
        rescale: slope and intercept of the cohort table: value = slope * stored + intercept.
        progress: called with crops done and crops in all.

    Raises:
        ConfigError: PM103 for a modality that is not the job's, or a target that is no PNG or cannot be written.
        CohortError: PM203 when the scan cannot be used; the message says why.
        FederationError: PM503 when the folder holds no run, or no finished one and ``rounds`` is not given.
        TrainingError: PM403, PM401 when the checkpoint is absent, damaged or of another model.
    """
    _require_place(target)
    job = _job(run)
    modality = _modality(modality, job)
    number, tensors = _tensors(run, rounds)
    encoder = _encoder(job, tensors)
    prepared = _prepared(volume, modality, job, rescale)
    image, body = torch.from_numpy(prepared.image), torch.from_numpy(prepared.body)
    found = overlay_of_volume(encoder, image, body, job.modalities.index(modality), job, progress)
    if "background" not in found.numbers:
        raise TrainingError(Code.TRAINING_NOT_FINITE, f"the attention of the model after {number} rounds is not finite")
    d, h, w = (n * encoder.shape.patch for n in found.relative.shape)
    heat = heat_of(found.relative, (d, h, w))[tuple(slice(n) for n in prepared.image.shape)]
    low, high = (float(x) for x in np.percentile(prepared.image[prepared.body], (1, 99)))
    window = (low, high) if high > low else (low - 0.5, low + 0.5)
    outside, even = (100 * found.numbers[name] for name in ("background", "background_share"))
    panels = (
        Panel(modality, prepared.image, window),
        Panel(f"{outside:.0f} % outside (even {even:.0f} %)", prepared.image, window, overlay=heat),
    )
    i, j, k = (round(float(x)) for x in np.argwhere(prepared.body).mean(0))
    title = f"After {number} rounds"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)  # one that was there may be readable by others
    target.touch(mode=0o600)
    draw_items(target, [Item(title, panels, (i, j, k))], job.preparation.spacing_mm, 1, _DPI)
    return VolumeRollout(modality, number, found.numbers)


def _require_place(target: Path) -> None:
    """Asked before the work and not after it."""
    if target.suffix.lower() != ".png":
        raise ConfigError(Code.CONFIG_INVALID_VALUE, f"--out: must end in .png, got {target.suffix or 'no suffix'!r}")
    place = next(folder for folder in target.absolute().parents if folder.exists())
    if not place.is_dir() or not os.access(place, os.W_OK) or target.is_dir():
        raise ConfigError(
            Code.CONFIG_INVALID_VALUE,
            "--out: no picture can be written there; name a file in a folder that is yours",
            site_detail=str(target),
        )


def _job(run: Path) -> JobConfig:
    try:
        return load_job(run / "job.yaml")
    except ParametriumError as error:
        raise FederationError(
            Code.RUN_INVALID, "the folder holds no run; give the folder named by --out", site_detail=str(run)
        ) from error


def _modality(asked: str | None, job: JobConfig) -> str:
    if asked is None and len(job.modalities) == 1:
        return job.modalities[0]
    if asked not in job.modalities:
        got = f"got {asked!r}" if asked else "none was given"
        raise ConfigError(Code.CONFIG_INVALID_VALUE, f"--modality: choose one of {', '.join(job.modalities)}; {got}")
    return asked


def _tensors(run: Path, rounds: int | None) -> tuple[int, dict[str, Tensor]]:
    if rounds is not None:
        return rounds, load_checkpoint(run / "checkpoints" / f"round_{rounds:04d}")[0]
    try:
        return best_model(run)
    except FederationError as error:
        raise FederationError(
            Code.RUN_INVALID, "the run has not come to a good end; name a round with --round", site_detail=str(run)
        ) from error


def _encoder(job: JobConfig, tensors: dict[str, Tensor]) -> Encoder:
    model = build_model(job)
    named = dict(model.named_parameters())
    if named.keys() != tensors.keys() or any(named[name].shape != tensors[name].shape for name in named):
        raise TrainingError(Code.MODEL_SHAPE, "the checkpoint is not of the model that the run's job.yaml describes")
    with torch.no_grad():
        for name, parameter in named.items():
            parameter.copy_(tensors[name])
    return model.eval().encoder


def _prepared(volume: Path, modality: str, job: JobConfig, rescale: tuple[float, float]) -> Prepared:
    loaded = load_volume(volume)
    recipe = recipe_for(job.preparation, modality, *rescale)
    prepared = loaded if isinstance(loaded, Reason) else prepare_arrays(*loaded, recipe)
    if isinstance(prepared, Reason):
        raise CohortError(Code.COHORT_VOLUME, f"the volume cannot be used: {prepared.value}", site_detail=str(volume))
    return prepared
