"""What a job says of each pretext task. A new one is a class here, and one in the room of objectives."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from parametrium.config.values import Count, Fraction, Positive, Strict

Share = Annotated[float, Field(gt=0, le=1)]
Compared = Annotated[int, Field(ge=2)]


class _Objective(Strict):
    weight: Positive = 1.0
    """Factor of this objective's loss."""
    start: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the run's steps after which this objective begins; at least one objective begins at 0."""
    ramp: Fraction = 0.0
    """Share of the run's steps over which the weight rises linearly to its value, from where the objective begins."""
    turns: Annotated[int, Field(ge=1, le=1000)] = 1
    """cyclic schedule: mini-batches of this objective in each cycle."""

    needs_two_modalities: ClassVar[bool] = False
    """Whether one of a patient's modalities is shown or asked for in the place of another."""
    compares_patients: ClassVar[bool] = False
    """Whether it needs two patients in a mini-batch."""
    hides_patches: ClassVar[bool] = False
    """Whether it needs a crop of more than one patch."""

    @model_validator(mode="after")
    def _rises_within_the_run(self) -> Self:
        if self.start + self.ramp > 1 + 1e-9:
            raise ValueError(f"start + ramp must be at most 1, or the weight never reaches {self.weight:g}")
        return self

    @property
    def reads_clinical(self) -> bool:
        """Whether training depends on what the clinical rows hold."""
        return False


class ReconstructionConfig(_Objective):
    """What the reconstructions have in common."""

    hides_patches: ClassVar[bool] = True
    mask_ratio: Annotated[float, Field(gt=0, lt=1)] = 0.75
    """Share of the patches that the encoder does not see, or that are filled, and that are reconstructed."""
    mask_unit: Literal[1, 2] = 1
    """Edge, in patches, of the cubes that are masked together."""
    target: Literal["raw", "patch_normalised"] = "raw"
    """Predict prepared intensities, or intensities standardised within each patch."""
    spectral: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the mean absolute difference between the magnitudes of the patches' 3D spectra, against lost texture
    (METHODS 4.3); 0 leaves it out, .1 is usual."""


class MaskedReconstructionConfig(ReconstructionConfig):
    """Masked reconstruction with true token drop (METHODS 8.3, L_mae)."""

    kind: Literal["masked_reconstruction"] = "masked_reconstruction"


class CrossModalReconstructionConfig(ReconstructionConfig):
    """Masked patches filled by another registered modality of the patient (METHODS 8.3, L_cmr; after BrainMVP)."""

    needs_two_modalities: ClassVar[bool] = True
    kind: Literal["cross_modal_reconstruction"] = "cross_modal_reconstruction"


class CrossModalSynthesisConfig(_Objective):
    """A scan is turned into another registered modality of the patient, voxel by voxel.

    By a U-Net around the encoder, which segmentation takes over; the patch must be a power of two.
    """

    needs_two_modalities: ClassVar[bool] = True
    kind: Literal["cross_modal_synthesis"] = "cross_modal_synthesis"


class TemplateReconstructionConfig(ReconstructionConfig):
    """Masked patches filled by the learned template of their modality (METHODS 8.3, L_tmpl; after BrainMVP)."""

    kind: Literal["template_reconstruction"] = "template_reconstruction"
    likeness: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the squared difference between the template itself and the filled patches. Without it (0, as in
    BrainMVP) only its use for the reconstruction shapes a template, and it may turn out as a negative, say."""


class SoftContrastiveConfig(_Objective):
    """Soft contrast between a patient's modalities with clinical similarity (METHODS 3.2 and 3.3)."""

    compares_patients: ClassVar[bool] = True
    kind: Literal["soft_contrastive"] = "soft_contrastive"
    form: Literal["softmax", "sigmoid", "weighted_negatives"] = "softmax"
    """softmax: the target is a distribution over the batch's patients. sigmoid: each pair of patients has a target of
    its own, which needs fewer patients at once. weighted_negatives: InfoNCE in which similar patients count less."""
    mask_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Share of the patches that the encoder does not see."""
    patients: Compared | None = None
    """Patients in a mini-batch, each a negative of all others; None takes batch.patients."""
    crops: Count = 4
    """Crops of a volume that make one view of the patient: one crop tells more of the place than of the patient."""
    softness: Fraction = 0.2
    """alpha: how much clinical similarity S counts; 0 is the hard contrast, InfoNCE for softmax and weighted_negatives.
    softmax: share of the target that goes to similar patients. sigmoid: the target of two patients is alpha S^gamma.
    weighted_negatives: a patient counts 1 - alpha S as a negative; below 1 this orders patients little."""
    similarity_temperature: Positive = 0.1
    """tau_s of the softmax form: temperature of the softmax over clinical similarities."""
    similarity_power: Positive = 4.0
    """gamma of the sigmoid form: the higher, the fewer patients count as similar."""
    temperature: Positive = 0.2
    """tau: initial temperature of the (learned) scores of embeddings; its inverse is clamped to 100."""

    @property
    def reads_clinical(self) -> bool:
        """Similar patients are held off less."""
        return self.softness > 0


class TextContrastiveConfig(_Objective):
    """Contrast of a patient's scans with a short text of hers, a report or her clinical row; needs a site's encoder."""

    compares_patients: ClassVar[bool] = True
    kind: Literal["text_contrastive"] = "text_contrastive"
    channels: Annotated[int, Field(ge=2, le=8192)] = 256
    """Channels of the text encoder, the same at every site."""
    mask_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Share of the patches that the encoder does not see."""
    patients: Compared | None = None
    """Patients in a mini-batch; None takes batch.patients."""
    crops: Count = 4
    """Crops of a volume that make one view of the patient."""
    softness: Fraction = 0.2
    """alpha: share of the target that goes to clinically similar patients; 0 is CLIP's contrast."""
    similarity_temperature: Positive = 0.1
    """tau_s: temperature of the softmax over clinical similarities."""
    temperature: Positive = 0.2
    """tau: initial temperature of the (learned) softmax over embeddings; its inverse is clamped to 100."""

    @property
    def reads_clinical(self) -> bool:
        """A text may be the row in words."""
        return True


class ModalityContrastiveConfig(_Objective):
    """Contrast of two differently filled views of one crop (BrainMVP's third, METHODS 1.1); needs templates."""

    compares_patients: ClassVar[bool] = True
    kind: Literal["modality_contrastive"] = "modality_contrastive"
    mask_ratio: Annotated[float, Field(gt=0, lt=1)] = 0.75
    """Share of the patches of each view that are filled."""
    patients: Compared | None = None
    """Patients in a mini-batch, each a negative of all others; None takes batch.patients."""
    softness: Fraction = 0.0
    """alpha: share of the target that goes to clinically similar patients; 0, as in BrainMVP, is InfoNCE."""
    similarity_temperature: Positive = 0.1
    """tau_s: temperature of the softmax over clinical similarities."""
    temperature: Positive = 0.2
    """tau: initial temperature of the (learned) softmax over embeddings; its inverse is clamped to 100."""

    @property
    def reads_clinical(self) -> bool:
        """Similar patients are held off less."""
        return self.softness > 0


class GlobalLocalConfig(_Objective):
    """Global and local views of a patient agree, and patients fill the space evenly (LeJEPA; METHODS 4.2)."""

    compares_patients: ClassVar[bool] = True
    kind: Literal["global_local"] = "global_local"
    local_edges: Annotated[tuple[Share, ...], Field(min_length=1)] = (
        0.5,
        0.5,
        0.33,
        0.33,
    )
    """The small crops of a patient: for each its edges, as a share of the large crop's."""
    isotropy: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """lambda: weight of the isotropy, the same for any number of patients; the views' distance has 1 - lambda."""
    directions: Count = 256
    """Random lines on which the isotropy is measured at each step."""


class IsotropyConfig(_Objective):
    """The patients of each modality fill the space evenly (SIGReg; METHODS 4.2); a weight of .02 to .05 is usual."""

    compares_patients: ClassVar[bool] = True
    kind: Literal["isotropy"] = "isotropy"
    weight: Positive = 0.05
    """Factor of its loss, which grows with the patients of a batch: at 1 it would rule a summed step."""
    directions: Count = 256
    """Random lines on which it is measured in a step."""


class BoxLocalisationConfig(_Objective):
    """Where in the crop does a smaller box lie, seen in another modality (METHODS 2.1, 3D)."""

    kind: Literal["box_localisation"] = "box_localisation"
    mask_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the crop's patches that the encoder does not see; the box is always seen whole."""
    boxes: Count = 3
    """Boxes that are looked for in each crop, which is encoded once for all."""
    size: tuple[Annotated[float, Field(gt=0, le=0.75)], Annotated[float, Field(gt=0, le=0.75)]] = (0.1, 0.4)
    """Smallest and largest edge of a box as a share of the crop's; in small crops at least 2 and 3 patches."""
    aspect: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """Each axis is longer or shorter than the drawn edge by up to this share."""
    layers: Annotated[int, Field(ge=1, le=4)] = 2
    """Cross-attention layers of the head."""

    @field_validator("size")
    @classmethod
    def _ordered(cls, value: tuple[float, float]) -> tuple[float, float]:
        if value[0] > value[1]:
            raise ValueError("the smallest edge comes first")
        return value


class LatentPredictionConfig(_Objective):
    """Hidden blocks are predicted as a slow teacher's features, not as voxels (I-JEPA in 3D; METHODS 4.3, 5.3)."""

    hides_patches: ClassVar[bool] = True
    kind: Literal["latent_prediction"] = "latent_prediction"
    targets: Count = 4
    """Blocks that are hidden and predicted; fewer where they would leave less than a quarter of the crop."""
    target_scale: tuple[Annotated[float, Field(gt=0, le=0.5)], Annotated[float, Field(gt=0, le=0.5)]] = (0.15, 0.2)
    """Smallest and largest share of the crop's patches that one block takes."""
    context_scale: tuple[Annotated[float, Field(gt=0, le=1)], Annotated[float, Field(gt=0, le=1)]] = (0.85, 1.0)
    """Smallest and largest share of the crop that the context block takes, before the hidden blocks are taken out."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.99
    """m of one step: between rounds the teacher keeps m^(steps passed) of itself and takes the rest from the model."""

    @field_validator("target_scale", "context_scale")
    @classmethod
    def _ordered(cls, value: tuple[float, float]) -> tuple[float, float]:
        if value[0] > value[1]:
            raise ValueError("the smallest share comes first")
        return value


ObjectiveConfig = Annotated[
    MaskedReconstructionConfig
    | CrossModalReconstructionConfig
    | CrossModalSynthesisConfig
    | TemplateReconstructionConfig
    | SoftContrastiveConfig
    | TextContrastiveConfig
    | ModalityContrastiveConfig
    | GlobalLocalConfig
    | IsotropyConfig
    | BoxLocalisationConfig
    | LatentPredictionConfig,
    Field(discriminator="kind"),
]
ObjectiveKind = Literal[
    "masked_reconstruction",
    "cross_modal_reconstruction",
    "cross_modal_synthesis",
    "template_reconstruction",
    "soft_contrastive",
    "text_contrastive",
    "modality_contrastive",
    "global_local",
    "isotropy",
    "box_localisation",
    "latent_prediction",
]
