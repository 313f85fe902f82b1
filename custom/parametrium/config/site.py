"""What one hospital decides: where data and GPUs are, and what is permitted. It never leaves the site."""

from typing import Annotated

from pydantic import Field

from parametrium.config.job import ObjectiveKind
from parametrium.config.values import Count, Name, Strict


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
    workers: Annotated[int, Field(ge=0, le=64)] = 0
    """Loader processes; 0 loads in the trainer itself."""
    prepare_jobs: Annotated[int, Field(ge=1, le=128)] = 1
    """Processes that build the cache."""
    policy: PolicyConfig = PolicyConfig()
