"""What a job may say: the same for every site, and without any path."""

import math
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from parametrium.config.clinical import ClinicalVariable
from parametrium.config.objectives import ObjectiveConfig
from parametrium.config.values import Count, Extent, Fraction, Modality, Name, Positive, Strict, VariableName

VOCABULARY = ("CT", "CBCT", "PET", "T1", "T1c", "T2", "FLAIR", "DWI", "ADC", "DCE")
"""Modalities whose intensity rule is built in; a job may declare further ones together with their rule."""


class WindowRule(Strict):
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

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.lower >= self.upper:
            raise ValueError(f"lower ({self.lower:g}) must be below upper ({self.upper:g})")
        return self

    @property
    def bound(self) -> float:
        """Largest magnitude of a prepared intensity."""
        return max(abs(self.lower - self.centre), abs(self.upper - self.centre)) / self.scale


class LogRule(Strict):
    """Clip to [0, upper], then (log(1 + value) - centre) / scale. For uptake: SUV body weight."""

    kind: Literal["log"] = "log"
    upper: Positive = 20.0
    """Values above are set to this (METHODS 8.1: SUV 20)."""
    centre: float = 0.6
    """Subtracted after the logarithm."""
    scale: Positive = 0.6
    """Divided by after centring."""

    @property
    def bound(self) -> float:
        """Largest magnitude of a prepared intensity."""
        return max(abs(self.centre), abs(math.log1p(self.upper) - self.centre)) / self.scale


class ForegroundRule(Strict):
    """Clip to foreground percentiles, then z-score in the foreground, then clip to +-limit. For MR and CBCT."""

    kind: Literal["foreground"] = "foreground"
    percentiles: tuple[float, float] = (0.5, 99.5)
    """Lower and upper percentile of the foreground (METHODS 8.1)."""
    limit: Positive = 5.0
    """Bound of the z-score."""

    @field_validator("percentiles")
    @classmethod
    def _ordered(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0 <= value[0] < value[1] <= 100:
            raise ValueError("the lower percentile comes first, and both lie between 0 and 100")
        return value

    @property
    def bound(self) -> float:
        """Largest magnitude of a prepared intensity."""
        return self.limit


IntensityRule = Annotated[WindowRule | LogRule | ForegroundRule, Field(discriminator="kind")]


class PreparationConfig(Strict):
    """How a volume becomes an array in the cache. Any change here makes a new cache."""

    spacing_mm: tuple[Positive, Positive, Positive] = (3.0, 3.0, 3.0)
    """Voxel spacing after resampling, millimetres along right, anterior, superior (RAS+)."""
    intensity: dict[Modality, IntensityRule] = Field(default_factory=dict)
    """Intensity rule for modalities outside the vocabulary, or instead of the built-in rule."""


class ModelConfig(Strict):
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
    mlp_width: Count | None = None
    """Hidden channels of the encoder's MLPs; None: four times the width. For weights that have others."""
    decoder_width: Annotated[int, Field(ge=12)] | None = None
    """Channels of the reconstruction decoders; None keeps the preset's."""
    decoder_depth: Count | None = None
    """Blocks of the reconstruction decoders; None keeps the preset's."""
    reach_mm: Positive | None = 16.0
    """How far the encoder's first attention head looks; each further head looks twice as far. None: heads know nothing
    of distance, as those of weights from elsewhere."""
    template: Extent = (24, 24, 24)
    """Voxels of each modality's template along right, anterior, superior, over the box of the body; templates are made
    where an objective fills from them."""


Decay = Annotated[float, Field(ge=0, lt=1)]


class BatchConfig(Strict):
    """What one mini-batch holds."""

    patients: Count = 8
    """Patients in a mini-batch."""
    volumes_per_patient: Count = 2
    """At most so many volumes (of different modality) of each patient."""
    foreground_fraction: Fraction = 0.8
    """Share of the crops that are centred on a voxel of the body; the others lie anywhere in the volume."""
    intensity_jitter: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Intensities of a training crop are scaled and shifted by up to this, at random."""


class OptimiserConfig(Strict):
    """Muon and AdamW, and their schedule (METHODS 8.4): warm-up, then cosine, a pure function of the global step."""

    learning_rate: Positive = 1e-3
    """Peak learning rate of AdamW, which trains all but the blocks' matrices."""
    matrix_learning_rate: Positive | None = 0.02
    """Peak learning rate of Muon, which trains the matrices of transformer blocks; None: AdamW trains them, too."""
    betas: tuple[Decay, Decay] = (0.9, 0.95)
    """AdamW's decay of the first and second moments."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    """Decoupled weight decay of matrices; vectors, embeddings and tokens have none."""
    warmup_fraction: Fraction = 0.05
    """Share of all steps of the run that warm up linearly."""
    final_fraction: Fraction = 0.02
    """Learning rate at the end of the run, as a share of the peak."""
    clip_norm: Positive = 1.0
    """Gradient norm is clipped to this."""


class AggregationConfig(Strict):
    """How the server joins the sites' updates (METHODS 5.2)."""

    rule: Literal["per_tensor", "whole_model"] = "per_tensor"
    """per_tensor weighs every tensor by the samples that trained it; whole_model is plain FedAvg, the baseline."""
    server_learning_rate: Positive = 1.0
    """Factor of the aggregated difference."""
    max_update_norm: Positive | None = None
    """An update whose L2 norm is larger is rejected; None accepts any finite norm."""
    minimum_template_sites: Count = 2
    """A template is an image: in a federation it stays as it is in rounds in which fewer sites train it."""


class EvaluationConfig(Strict):
    """What sites measure on held-out patients, under the global model."""

    holdout_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.25
    """Share of the patients that are never trained on, where the cohort table has no split column."""
    every: Annotated[int, Field(ge=0)] = 0
    """Measure reconstruction, held-out loss and monitors every so many rounds; 0: before the first, after the last."""
    crops: Count = 8
    """Crops of each held-out volume."""
    patients: Count = 64
    """At most so many held-out patients are measured, and as many training patients set the scale of features."""
    retrieval: bool = True
    """Cross-modal retrieval of the same patient, with its controls."""
    probe: VariableName | None = None
    """Clinical variable that a linear probe on frozen features predicts; None runs no probe."""
    missing: Literal["nothing", "template"] = "nothing"
    """What the patient-level probe sees of a modality that a patient lacks: nothing, or what its template shows in the
    place of her first volume's crops."""
    monitors: bool = True
    """Attention rollout against the body mask, and signs of collapsed features, each time something is measured."""
    pictures: bool = True
    """Sites draw pictures into their own folder, for their own page; they never travel."""


class RiseRule(Strict):
    """A rise ends the run: so many measurements in a row above a factor times the lowest one before them."""

    factor: Annotated[float, Field(ge=1)] = 1.0
    """Measurements above this times the lowest one before count as risen; 1: any that is higher."""
    patience: Count = 3
    """So many risen measurements in a row end the run."""


class StoppingConfig(Strict):
    """When the run ends before its last round, by what sites measure every ``evaluation.every`` rounds.

    Judged are means over the sites, weighted by their held-out volumes (patients, where monitors are off). Both rules
    are off by default; the run ends by the first that finds a rise. The best round is the measured one with the lowest
    number of that rule.
    """

    background: RiseRule | None = None
    """Attention rollout outside the body (monitor/attention/background): overfitting leaks into the background."""
    held_out_loss: RiseRule | None = None
    """Sum of the objectives' losses on held-out patients (evaluation/loss/...), with the objectives' weights."""
    after: Annotated[int, Field(ge=0)] = 0
    """Measurements before so many rounds are not judged: the first ones say little."""


class JobConfig(Strict):
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
    needs_start: bool = False
    """Whether the run must start from a checkpoint, made by warm-start, and is refused where there is none."""
    rounds: Count = 10
    """Rounds of the run."""
    local_steps: Count = 20
    """Optimiser steps of each site in a round."""
    minimum_sites: Count = 1
    """Fewer sites that answer a round stop the run; where fewer of them had something to train on, the model stays."""
    round_timeout_s: Positive = 3600.0
    """A round closes after so many seconds with the updates it has."""
    aggregation: AggregationConfig = AggregationConfig()
    clinical: tuple[ClinicalVariable, ...] = ()
    """Schema of the clinical variables that make patients alike."""
    evaluation: EvaluationConfig = EvaluationConfig()
    stopping: StoppingConfig = StoppingConfig()

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
        unused = sorted(self.preparation.intensity.keys() - set(self.modalities))
        if unused:
            raise ValueError(
                f"preparation.intensity: not among the modalities ({', '.join(self.modalities)}): {', '.join(unused)}"
            )
        if any(extent % self.model.patch for extent in self.crop):
            raise ValueError(f"crop {list(self.crop)} must be a multiple of model.patch ({self.model.patch})")
        kinds = [objective.kind for objective in self.objectives]
        if len(set(kinds)) != len(kinds):
            raise ValueError("objectives: each kind may be listed once")
        if "modality_contrastive" in kinds and "template_reconstruction" not in kinds:
            raise ValueError(
                "objectives: modality_contrastive fills from templates, which only template_reconstruction trains; "
                "list that, too"
            )
        if "cross_modal_synthesis" in kinds:
            self._synthesis_fits()
        if all(objective.start > 0 for objective in self.objectives):
            raise ValueError("objectives: at least one must have start 0")
        self._each_can_train()
        self._each_has_a_turn()
        names = [variable.name for variable in self.clinical]
        if len(set(names)) != len(names):
            raise ValueError("clinical: each name may be listed once")
        if self.evaluation.probe is not None and self.evaluation.probe not in names:
            raise ValueError(f"evaluation.probe must be one of the clinical variables {names}")
        self._probe_apart()
        if self.evaluation.missing == "template" and "template_reconstruction" not in kinds:
            raise ValueError(
                "evaluation.missing: template needs the objective template_reconstruction, which trains them"
            )
        weighed = not names or any(variable.weight > 0 for variable in self.clinical)
        soft = [objective.kind for objective in self.objectives if getattr(objective, "softness", 0) > 0]
        if soft and not weighed:
            raise ValueError(
                f"clinical: all variables have weight 0, and {soft[0]} compares patients by them; give one of them "
                "weight, or the objective softness 0"
            )
        if self.stopping.background or self.stopping.held_out_loss:
            if self.stopping.after >= self.rounds:
                raise ValueError(
                    f"stopping.after ({self.stopping.after}) must be below rounds ({self.rounds}), or nothing is judged"
                )
            if not self.evaluation.every:
                raise ValueError("stopping needs evaluation.every: with 0 nothing is measured before the last round")
            if self.stopping.background and not self.evaluation.monitors:
                raise ValueError("stopping.background needs evaluation.monitors: true")
        return self

    def _each_can_train(self) -> None:
        """What no site's scans could ever be used for."""
        for objective in self.objectives:
            kind = objective.kind
            if objective.needs_two_modalities and len(self.modalities) < 2:
                raise ValueError(f"objectives: {kind} needs two modalities; the job has {self.modalities[0]} alone")
            if objective.compares_patients and self.patients_of(objective) < 2:
                raise ValueError(f"objectives: {kind} compares patients; batch.patients must be at least 2")
            if objective.hides_patches and all(extent == self.model.patch for extent in self.crop):
                raise ValueError(
                    f"objectives: {kind} hides patches of a crop, which must have more than one; crop is "
                    f"{list(self.crop)}, model.patch {self.model.patch}"
                )

    def _each_has_a_turn(self) -> None:
        """Of the steps after each beginning, a cycle's worth tells all."""
        cycle = sum(objective.turns for objective in self.objectives)
        begins = {math.ceil(objective.start * self.total_steps) for objective in self.objectives}
        steps = (step for begin in begins for step in range(begin, min(begin + cycle, self.total_steps)))
        trained = {objective.kind for step in steps for objective in self.objectives_at(step)}
        idle = [objective.kind for objective in self.objectives if objective.kind not in trained]
        if idle:
            raise ValueError(
                f"objectives: no step of this run of {self.total_steps} trains {', '.join(idle)}; let it start "
                "earlier, give the others fewer turns, or give the run more rounds"
            )

    def patients_of(self, objective: ObjectiveConfig) -> int:
        """Patients in a mini-batch of this objective."""
        own: int | None = getattr(objective, "patients", None)
        return self.batch.patients if own is None else own

    def objectives_at(self, step: int) -> tuple[ObjectiveConfig, ...]:
        """cyclic: one objective a mini-batch, in turn (METHODS 0, S2); summed: all of them that have begun."""
        begun = tuple(objective for objective in self.objectives if step >= objective.start * self.total_steps)
        if self.schedule == "summed":
            return begun
        turn = step % sum(objective.turns for objective in begun)
        for objective in begun:
            turn -= objective.turns
            if turn < 0:
                return (objective,)
        raise AssertionError("a turn lies within its cycle")

    def _synthesis_fits(self) -> None:
        if self.model.patch & (self.model.patch - 1):
            raise ValueError(
                "objectives: cross_modal_synthesis doubles its resolution step by step, from patches to voxels; "
                f"model.patch must be a power of two, not {self.model.patch}"
            )
        if any(extent == self.model.patch for extent in self.crop):
            raise ValueError(
                "objectives: cross_modal_synthesis needs a crop of more than one patch along each axis; "
                f"crop is {list(self.crop)}, model.patch {self.model.patch}"
            )

    def _probe_apart(self) -> None:
        """What the probe asks must not have been told in training."""
        told = {variable.name for variable in self.clinical if variable.weight > 0}
        readers = [objective.kind for objective in self.objectives if objective.reads_clinical]
        if readers and self.evaluation.probe in told:
            raise ValueError(
                f"evaluation.probe: {self.evaluation.probe} is a part of what {readers[0]} is told of patients, so its "
                "score would say nothing of scans; give the variable weight 0, or probe another one"
            )

    @property
    def total_steps(self) -> int:
        """Optimiser steps of one site in the whole run."""
        return self.rounds * self.local_steps
