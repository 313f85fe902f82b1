"""The two kinds of settings: a job says what is learned, a site config where data and GPUs are and what is permitted.

Both are frozen and strict. An unknown key is refused with its nearest match; every message has the key's full name,
what is allowed and what came. A job holds no path (it travels to every site); a site config never travels.
"""

import difflib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from parametrium.errors import Code, ConfigError

VOCABULARY = ("CT", "CBCT", "PET", "T1", "T1c", "T2", "FLAIR", "DWI", "ADC", "DCE")
"""Modalities whose intensity rule is built in; a job may declare further ones together with their rule."""

_NAME = r"^[a-z0-9][a-z0-9_-]{0,39}$"
_MODALITY = r"^[A-Za-z][A-Za-z0-9]{0,15}$"
_VARIABLE = r"^[a-z][a-z0-9_]{0,39}$"
_LOOKS_LIKE_PATH = re.compile(r"[/\\~]|^\.|\.(nii|gz|csv|ya?ml|dcm|pt)$")

Name = Annotated[str, Field(pattern=_NAME)]
Modality = Annotated[str, Field(pattern=_MODALITY)]
Positive = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Extent = tuple[Count, Count, Count]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)


# ---------------------------------------------------------------------------------------------------------- job


class WindowRule(_Strict):
    """Clip to [lower, upper], then (value - centre) / scale. For calibrated units: HU."""

    kind: Literal["window"] = "window"
    lower: float
    """Values below are set to this."""
    upper: float
    """Values above are set to this."""
    centre: float
    """Subtracted after clipping."""
    scale: Positive
    """Divided by after centring."""


class LogRule(_Strict):
    """Clip to [0, upper], then (log(1 + value) - centre) / scale. For uptake: SUV body weight."""

    kind: Literal["log"] = "log"
    upper: Positive = 20.0
    """Values above are set to this (METHODS 8.1: SUV 20)."""
    centre: float = 0.6
    """Subtracted after the logarithm."""
    scale: Positive = 0.6
    """Divided by after centring."""


class ForegroundRule(_Strict):
    """Clip to foreground percentiles, then z-score in the foreground, then clip to +-limit. For MR and CBCT."""

    kind: Literal["foreground"] = "foreground"
    percentiles: tuple[float, float] = (0.5, 99.5)
    """Lower and upper percentile of the foreground (METHODS 8.1)."""
    limit: Positive = 5.0
    """Bound of the z-score."""


IntensityRule = Annotated[WindowRule | LogRule | ForegroundRule, Field(discriminator="kind")]


class PreparationConfig(_Strict):
    """How a volume becomes an array in the cache. Any change here makes a new cache."""

    spacing_mm: tuple[Positive, Positive, Positive] = (3.0, 3.0, 3.0)
    """Voxel spacing after resampling, millimetres along right, anterior, superior (RAS+)."""
    intensity: dict[Modality, IntensityRule] = Field(default_factory=dict)
    """Intensity rule for modalities outside the vocabulary, or instead of the built-in rule."""


class ModelConfig(_Strict):
    """The encoder: a preset, and what differs from it."""

    preset: Literal["tiny", "small", "base"] = "tiny"
    """Named sizes, see model/presets.py."""
    patch: Annotated[int, Field(ge=2, le=32)] = 8
    """Edge of a cubic patch, voxels."""
    width: Annotated[int, Field(ge=12)] | None = None
    """Embedding channels; None keeps the preset's."""
    depth: Count | None = None
    """Encoder blocks; None keeps the preset's."""
    heads: Count | None = None
    """Attention heads; None keeps the preset's."""
    decoder_width: Annotated[int, Field(ge=12)] | None = None
    """Channels of the reconstruction decoders; None keeps the preset's."""
    decoder_depth: Count | None = None
    """Blocks of the reconstruction decoders; None keeps the preset's."""


class _Objective(_Strict):
    weight: Positive = 1.0
    """Factor of this objective's loss."""


class MaskedReconstructionConfig(_Objective):
    """Masked reconstruction with true token drop (METHODS 8.3, L_mae)."""

    kind: Literal["masked_reconstruction"] = "masked_reconstruction"
    mask_ratio: Annotated[float, Field(gt=0, lt=1)] = 0.75
    """Share of the patches that the encoder does not see."""
    target: Literal["raw", "patch_normalised"] = "raw"
    """Predict prepared intensities, or intensities standardised within each patch."""


class CrossModalReconstructionConfig(_Objective):
    """Masked patches filled by another registered modality of the patient (METHODS 8.3, L_cmr; after BrainMVP)."""

    kind: Literal["cross_modal_reconstruction"] = "cross_modal_reconstruction"
    mask_ratio: Annotated[float, Field(gt=0, lt=1)] = 0.75
    """Share of the patches that are filled from the other modality and reconstructed."""
    target: Literal["raw", "patch_normalised"] = "raw"
    """Predict prepared intensities, or intensities standardised within each patch."""


class SoftContrastiveConfig(_Objective):
    """Soft contrast between a patient's modalities with clinical similarity (METHODS 3.2 and 3.3)."""

    kind: Literal["soft_contrastive"] = "soft_contrastive"
    mask_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Share of the patches that the encoder does not see."""
    softness: Fraction = 0.2
    """alpha: share of the target that goes to clinically similar patients; 0 is InfoNCE."""
    similarity_temperature: Positive = 0.1
    """tau_s: temperature of the softmax over clinical similarities."""
    temperature: Positive = 0.2
    """tau: initial temperature of the (learned) softmax over embeddings; its inverse is clamped to 100."""


ObjectiveConfig = Annotated[
    MaskedReconstructionConfig | CrossModalReconstructionConfig | SoftContrastiveConfig, Field(discriminator="kind")
]
ObjectiveKind = Literal["masked_reconstruction", "cross_modal_reconstruction", "soft_contrastive"]


class _Variable(_Strict):
    name: Annotated[str, Field(pattern=_VARIABLE)]
    """Column of clinical.csv."""
    weight: Positive = 1.0
    """Weight in the Gower similarity."""


class ContinuousVariable(_Variable):
    """A number with unit and bounds; similarity exp(-(difference)^2 / (2 sigma^2))."""

    kind: Literal["continuous"] = "continuous"
    unit: Annotated[str, Field(max_length=20)]
    """Unit, for people."""
    lower: float
    """Smallest plausible value."""
    upper: float
    """Largest plausible value."""
    sigma: Positive
    """Width of the similarity kernel, in the unit, or in log units when log is true. A public constant."""
    log: bool = False
    """Compare log(1 + value) instead of value."""


class OrdinalVariable(_Variable):
    """Ordered levels; similarity 1 - |rank difference| / (levels - 1)."""

    kind: Literal["ordinal"] = "ordinal"
    levels: Annotated[tuple[str, ...], Field(min_length=2)]
    """Levels from lowest to highest."""


class NominalVariable(_Variable):
    """Unordered levels; similarity 1 when equal."""

    kind: Literal["nominal"] = "nominal"
    levels: Annotated[tuple[str, ...], Field(min_length=2)]
    """All levels."""


ClinicalVariable = Annotated[ContinuousVariable | OrdinalVariable | NominalVariable, Field(discriminator="kind")]


class BatchConfig(_Strict):
    """What one mini-batch holds."""

    patients: Count = 8
    """Patients in a mini-batch."""
    volumes_per_patient: Count = 2
    """At most so many volumes (of different modality) of each patient."""
    foreground_fraction: Fraction = 0.8
    """Share of the crops that are centred on a voxel of the body; the others lie anywhere in the volume."""
    intensity_jitter: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Intensities of a training crop are scaled and shifted by up to this, at random."""


class OptimiserConfig(_Strict):
    """AdamW and its schedule (METHODS 8.4): warm-up, then cosine, a pure function of the global step."""

    learning_rate: Positive = 1e-3
    """Peak learning rate."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.95)
    """Decay of the first and second moments."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    """Decoupled weight decay of matrices; vectors, embeddings and tokens have none."""
    warmup_fraction: Fraction = 0.05
    """Share of all steps of the run that warm up linearly."""
    final_fraction: Fraction = 0.02
    """Learning rate at the end of the run, as a share of the peak."""
    clip_norm: Positive = 1.0
    """Gradient norm is clipped to this."""


class AggregationConfig(_Strict):
    """How the server joins the sites' updates (METHODS 5.2)."""

    rule: Literal["per_tensor", "whole_model"] = "per_tensor"
    """per_tensor weighs every tensor by the samples that trained it; whole_model is plain FedAvg, the baseline."""
    server_learning_rate: Positive = 1.0
    """Factor of the aggregated difference."""
    max_update_norm: Positive | None = None
    """An update whose L2 norm is larger is rejected; None accepts any finite norm."""


class EvaluationConfig(_Strict):
    """What sites measure on held-out patients, under the global model."""

    holdout_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.25
    """Share of the patients that are never trained on, where the cohort table has no split column."""
    every: Annotated[int, Field(ge=0)] = 0
    """Measure the reconstruction error every so many rounds; 0 measures before the first and after the last only."""
    crops: Count = 8
    """Crops of each held-out volume."""
    patients: Count = 64
    """At most so many held-out patients are measured, and as many training patients set the scale of features."""
    retrieval: bool = True
    """Cross-modal retrieval of the same patient, with its controls."""
    probe: Annotated[str, Field(pattern=_VARIABLE)] | None = None
    """Clinical variable that a linear probe on frozen features predicts; None runs no probe."""
    pictures: bool = True
    """Sites draw pictures into their own folder; they never travel."""


class JobConfig(_Strict):
    """What is learned: the same for every site, and without any path."""

    name: Name
    """Name of the job; also the identifier of its run."""
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = 0
    """Seed of weights, crops, masks and held-out patients."""
    modalities: Annotated[tuple[Modality, ...], Field(min_length=1)]
    """Modalities that the model has tensors for; a site may hold any subset."""
    preparation: PreparationConfig = PreparationConfig()
    crop: Extent = (48, 48, 48)
    """Voxels of a crop along right, anterior, superior; multiples of the patch."""
    model: ModelConfig = ModelConfig()
    objectives: Annotated[tuple[ObjectiveConfig, ...], Field(min_length=1)]
    """Pretext tasks with their weights."""
    schedule: Literal["cyclic", "summed"] = "cyclic"
    """cyclic: one objective a mini-batch, in turn; summed: every objective in every step."""
    batch: BatchConfig = BatchConfig()
    optimiser: OptimiserConfig = OptimiserConfig()
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """bf16 autocasts the forward pass; auto does so where the device multiplies bf16 faster."""
    rounds: Count = 10
    """Rounds of the run."""
    local_steps: Count = 20
    """Optimiser steps of each site in a round."""
    minimum_sites: Count = 1
    """Fewer accepted updates in a round stop the run."""
    round_timeout_s: Positive = 3600.0
    """A round closes after so many seconds with the updates it has."""
    aggregation: AggregationConfig = AggregationConfig()
    clinical: tuple[ClinicalVariable, ...] = ()
    """Schema of the clinical variables that make patients alike."""
    evaluation: EvaluationConfig = EvaluationConfig()

    @field_validator("modalities")
    @classmethod
    def _distinct(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) != len(value):
            raise ValueError("modalities must differ from each other")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for modality in self.modalities:
            if modality not in VOCABULARY and modality not in self.preparation.intensity:
                raise ValueError(
                    f"modality {modality} is not in the vocabulary ({', '.join(VOCABULARY)}); "
                    f"give it a rule in preparation.intensity.{modality}"
                )
        if any(extent % self.model.patch for extent in self.crop):
            raise ValueError(f"crop {list(self.crop)} must be a multiple of model.patch ({self.model.patch})")
        kinds = [objective.kind for objective in self.objectives]
        if len(set(kinds)) != len(kinds):
            raise ValueError("objectives: each kind may be listed once")
        names = [variable.name for variable in self.clinical]
        if len(set(names)) != len(names):
            raise ValueError("clinical: each name may be listed once")
        if self.evaluation.probe is not None and self.evaluation.probe not in names:
            raise ValueError(f"evaluation.probe must be one of the clinical variables {names}")
        return self

    @property
    def total_steps(self) -> int:
        """Optimiser steps of one site in the whole run."""
        return self.rounds * self.local_steps


# ---------------------------------------------------------------------------------------------------------- site


class PolicyConfig(_Strict):
    """What the hospital permits. A job asks, this decides, the stricter wins."""

    minimum_patients: Count = 5
    """With fewer usable patients this site does not train: an update would describe individuals."""
    minimum_local_steps: Count = 4
    """A job with fewer local steps is refused: single-step updates can be inverted (METHODS 10)."""
    maximum_rounds: Count = 1000
    """A job with more rounds is refused."""
    objectives: tuple[ObjectiveKind, ...] = ("masked_reconstruction", "cross_modal_reconstruction", "soft_contrastive")
    """Objectives that may run on this site's scans."""


class SiteConfig(_Strict):
    """What one hospital decides. Never leaves the site."""

    site: Name
    """The site's name in the federation (its FLARE client name)."""
    cohort: str
    """Folder with cohort.csv; relative to this file."""
    cache: str
    """Folder for prepared volumes; relative to this file."""
    state: str
    """Folder for the trainer's own state (optimiser, logs, pictures), kept between jobs; relative to this file."""
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")] = "auto"
    """auto takes the GPU where there is one."""
    threads: Count = 1
    """CPU threads of the trainer."""
    workers: Annotated[int, Field(ge=0, le=64)] = 0
    """Loader processes; 0 loads in the trainer itself."""
    prepare_jobs: Annotated[int, Field(ge=1, le=128)] = 1
    """Processes that build the cache."""
    policy: PolicyConfig = PolicyConfig()


# ---------------------------------------------------------------------------------------------------------- reading

_Config = TypeVar("_Config", bound=_Strict)


def load_job(path: Path) -> JobConfig:
    """Reads a job YAML.

    Raises:
        ConfigError: PM101 unreadable, PM102 unknown key, PM103 invalid value, PM104 a path in the job.
    """
    return parse_job(_read_yaml(path))


def parse_job(data: object) -> JobConfig:
    """Validates plain data (from YAML or JSON) as a job; raises as ``load_job``."""
    for key, value in _strings(data, "job"):
        if _LOOKS_LIKE_PATH.search(value) and not key.endswith(".unit"):
            raise ConfigError(
                Code.CONFIG_PATH_IN_JOB,
                f"{key} looks like a path; a job travels to every site and holds none. Put it into the site config.",
                site_detail=repr(value),
            )
    return _parse(JobConfig, data, "job")


def load_site(path: Path) -> SiteConfig:
    """Reads a site YAML; its folders become absolute, relative ones counted from the file's own folder.

    Raises:
        ConfigError: PM101 unreadable, PM102 unknown key, PM103 invalid value.
    """
    site = _parse(SiteConfig, _read_yaml(path), "site")
    here = path.resolve().parent
    return site.model_copy(update={key: str(here / getattr(site, key)) for key in ("cohort", "cache", "state")})


def job_schema() -> dict[str, Any]:
    """JSON schema of a job file, for editors."""
    return JobConfig.model_json_schema()


def site_schema() -> dict[str, Any]:
    """JSON schema of a site file, for editors."""
    return SiteConfig.model_json_schema()


def _read_yaml(path: Path) -> object:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(
            Code.CONFIG_UNREADABLE, "the config file cannot be read as YAML", site_detail=f"{path}: {error}"
        ) from error


def _parse(model: type[_Config], data: object, root: str) -> _Config:
    # Through JSON: strict validation then takes YAML's lists as tuples, but never a string as a number.
    try:
        text = json.dumps(data)
    except (TypeError, ValueError) as error:
        raise ConfigError(Code.CONFIG_INVALID_VALUE, f"{root}: only plain YAML values are allowed") from error
    try:
        return model.model_validate_json(text)
    except ValidationError as error:
        found = error.errors()
        # A list whose only item failed is also reported as too short; that second report would mislead.
        causes = [problem for problem in found if problem["type"] != "too_short" or len(found) == 1]
        problems = [_describe(model, problem, root) for problem in causes]
        unknown = any(problem["type"] == "extra_forbidden" for problem in causes)
        code = Code.CONFIG_UNKNOWN_KEY if unknown else Code.CONFIG_INVALID_VALUE
        raise ConfigError(code, "; ".join(problems)) from None


def _describe(model: type[BaseModel], problem: Any, root: str) -> str:
    """One sentence for one pydantic error: the key's full name, the allowed, the received."""
    keys, owner = _resolve(model, problem["loc"])
    name = ".".join([root, *keys])
    if problem["type"] == "extra_forbidden":
        fields = sorted(owner.model_fields)
        near = difflib.get_close_matches(keys[-1], fields, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"allowed: {', '.join(fields)}"
        return f"{name} is not a known key; {hint}"
    message = problem["msg"].removeprefix("Value error, ")
    received = problem.get("input")
    shown = f", got {received!r}" if isinstance(received, str | int | float | bool | None) else ""
    if problem["type"] == "missing":
        return f"{name} is missing"
    return f"{name}: {message[0].lower()}{message[1:]}{shown}"


def _resolve(model: type[BaseModel], loc: tuple[int | str, ...]) -> tuple[list[str], type[BaseModel]]:
    """Splits an error location into key names (without union tags) and the model that owns the last key."""
    keys: list[str] = []
    owner, here = model, model
    annotation: Any = model
    for part in loc:
        choices = [m for m in _models(annotation) if "kind" in m.model_fields]
        tagged = [m for m in choices if m.model_fields["kind"].default == part]
        if tagged and len(choices) > 1:
            annotation = here = tagged[0]
            continue
        keys.append(str(part))
        candidates = _models(annotation)
        owner = here if here in candidates else (candidates[0] if candidates else here)
        if isinstance(part, str) and part in owner.model_fields:
            annotation = owner.model_fields[part].annotation
        here = (_models(annotation) or [here])[0]
    return keys, owner


def _models(annotation: Any) -> list[type[BaseModel]]:
    """All config models inside a type annotation, in order."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) in (Union, None) and not get_args(annotation):
        return []
    return [model for argument in get_args(annotation) for model in _models(argument)]


def _strings(value: Any, key: str) -> Iterator[tuple[str, str]]:
    """All strings in plain data, keys included, each with its full name."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, dict):
        for name, item in value.items():
            yield f"{key}.<key>", str(name)
            yield from _strings(item, f"{key}.{name}")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _strings(item, f"{key}.{index}")
