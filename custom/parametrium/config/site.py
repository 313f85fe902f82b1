"""What one hospital decides: where data and GPUs are, and what is permitted. It never leaves the site."""

from typing import Annotated, Literal

import regex
from pydantic import Field, field_validator

from parametrium.config.objectives import ObjectiveKind
from parametrium.config.values import Count, Modality, Name, Strict, VariableName

Folder = Annotated[str, Field(min_length=1)]


class PolicyConfig(Strict):
    """What the hospital permits. A job asks, this decides, the stricter wins."""

    minimum_patients: Count = 5
    """With fewer usable patients this site does not train: an update would describe individuals."""
    minimum_template_patients: Count = 50
    """With fewer training patients of a modality this site neither trains nor sends that modality's template: it is an
    image, and the fewer patients it is learned from, the more it shows of each (METHODS 8.5)."""
    minimum_local_steps: Count = 4
    """A job with fewer local steps is refused, and nothing is sent of a round in which fewer steps found something to
    train on: single-step updates can be inverted (METHODS 10)."""
    minimum_batch_patients: Count = 2
    """A job with fewer patients in a mini-batch is refused, for the same reason."""
    maximum_rounds: Count = 1000
    """A job with more rounds is refused."""
    objectives: tuple[ObjectiveKind, ...] = ("masked_reconstruction", "cross_modal_reconstruction", "soft_contrastive")
    """Objectives that may run on this site's scans."""


class SeriesRule(Strict):
    """A hospital's own word on what a DICOM series is; it is asked after the facts of the header.

    The first rule that matches counts. ``modality`` null leaves the series out.
    """

    match: Annotated[str, Field(min_length=1, max_length=200)]
    """Regular expression, searched in Series Description and Protocol Name, capitals or not. One that takes longer than
    a tenth of a second on a text, as nested repetition like (a+)+ can, counts as no match and is reported."""
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
            regex.compile(value, regex.IGNORECASE)
        except regex.error as error:
            raise ValueError(f"not a regular expression ({error})") from None
        return value


class DefacingConfig(Strict):
    """A program of the hospital's own that takes faces out of head scans while DICOM is imported."""

    command: Annotated[tuple[Annotated[str, Field(pattern=r"^[^\x00]+$")], ...], Field(min_length=2, max_length=64)]
    """Program and arguments, never through a shell. {input} and {output} stand for files, {modality} for its name."""
    when: Literal["head", "head_or_unknown", "always"] = "head_or_unknown"
    """Volumes whose header names a head; those and the ones whose header names no part of the body; or all."""
    words: tuple[Annotated[str, Field(min_length=2, max_length=64)], ...] = ()
    """More words that mean a head in Body Part Examined, Series Description or Protocol Name."""
    environment: tuple[Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")], ...] = ()
    """Environment variables that the program needs beside PATH, HOME, LANG, LC_ALL and LD_LIBRARY_PATH."""
    timeout_s: Annotated[int, Field(ge=1, le=86400)] = 900
    """For one volume; then the program and all that it started are killed, and the volume is left out."""

    @field_validator("command")
    @classmethod
    def _has_its_files(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not all(any(file in part for part in value[1:]) for file in ("{input}", "{output}")):
            raise ValueError("the arguments must name {input} and {output}")
        if "/" in value[0][1:] and not value[0].startswith("/"):
            raise ValueError("the program must be a name on the PATH or an absolute path")
        return value


class TextConfig(Strict):
    """Short texts of patients for the objective text_contrastive; neither texts nor their vectors leave the site."""

    encoder: Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$", max_length=200)]
    """module:function of an installed package: a list of N texts to an array [N, channels]. For the package wordllama:
    parametrium.data.text:wordllama (channels 256)."""
    column: VariableName | None = None
    """Column of clinical.csv with a report; null: the row's values of the job's clinical variables, in words."""


class SiteConfig(Strict):
    """What one hospital decides. Never leaves the site."""

    site: Name
    """The site's name in the federation (its FLARE client name)."""
    cohort: Folder
    """Folder with cohort.csv; relative to this file."""
    cache: Folder
    """Folder for prepared volumes; relative to this file."""
    state: Folder
    """Folder for the trainer's own state (optimiser, logs, pictures, their page), kept between jobs; relative to this
    file."""
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d{1,3})?)$")] = "auto"
    """auto takes the GPU where there is one."""
    threads: Count = 1
    """CPU threads of the trainer."""
    compile: bool = False
    """Whether torch compiles the encoder: faster steps after minutes at the start; needs a C++ compiler.
    cross_modal_synthesis, which reads single blocks, runs them as they are."""
    activation_checkpointing: bool = False
    """Whether activations are computed again in the backward pass: for a GPU with too little memory, at more time."""
    workers: Annotated[int, Field(ge=0, le=64)] = 0
    """Loader processes; 0 loads in the trainer itself."""
    prepare_jobs: Annotated[int, Field(ge=1, le=128)] = 1
    """Processes that build the cache."""
    series_rules: tuple[SeriesRule, ...] = ()
    """What DICOM series are called at this hospital, for the import."""
    defacing: DefacingConfig | None = None
    """How faces are taken out of head scans, for the import of DICOM; null leaves them."""
    text: TextConfig | None = None
    """How this site's texts become vectors; null: the site skips text_contrastive."""
    policy: PolicyConfig = PolicyConfig()
