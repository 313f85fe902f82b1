"""What one hospital decides: where data and GPUs are, and what is permitted. It never leaves the site."""

import re
from typing import Annotated

from pydantic import Field, field_validator

from parametrium.config.objectives import ObjectiveKind
from parametrium.config.values import Count, Modality, Name, Strict


class PolicyConfig(Strict):
    """What the hospital permits. A job asks, this decides, the stricter wins."""

    minimum_patients: Count = 5
    """With fewer usable patients this site does not train: an update would describe individuals."""
    minimum_local_steps: Count = 4
    """A job with fewer local steps is refused: single-step updates can be inverted (METHODS 10)."""
    maximum_rounds: Count = 1000
    """A job with more rounds is refused."""
    objectives: tuple[ObjectiveKind, ...] = ("masked_reconstruction", "cross_modal_reconstruction", "soft_contrastive")
    """Objectives that may run on this site's scans."""


class SeriesRule(Strict):
    """A hospital's own word on what a DICOM series is; it is asked after the facts of the header.

    The first rule that matches counts. ``modality`` null leaves the series out.
    """

    match: Annotated[str, Field(min_length=1, max_length=200)]
    """Regular expression, searched in Series Description and Protocol Name, capitals or not."""
    modality: Modality | None
    """What it is, e.g. T2; null leaves it out."""
    scanner: Annotated[str, Field(pattern=r"^[A-Z]{2}$")] | None = None
    """Only for this DICOM Modality, e.g. MR; null for all."""
    over_facts: bool = False
    """Whether the rule also overrules what the header's facts say."""

    @field_validator("match")
    @classmethod
    def _compiles(cls, value: str) -> str:
        try:
            re.compile(value)
        except re.error as error:
            raise ValueError(f"not a regular expression ({error.msg})") from None
        return value


class SiteConfig(Strict):
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
    compile: bool = False
    """Whether torch compiles the encoder: faster steps after minutes at the start; needs a C++ compiler."""
    activation_checkpointing: bool = False
    """Whether activations are computed again in the backward pass: for a GPU with too little memory, at more time."""
    workers: Annotated[int, Field(ge=0, le=64)] = 0
    """Loader processes; 0 loads in the trainer itself."""
    prepare_jobs: Annotated[int, Field(ge=1, le=128)] = 1
    """Processes that build the cache."""
    series_rules: tuple[SeriesRule, ...] = ()
    """What DICOM series are called at this hospital, for the import."""
    policy: PolicyConfig = PolicyConfig()
