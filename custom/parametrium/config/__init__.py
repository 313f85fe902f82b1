"""The two kinds of settings: a job says what is learned, a site config where data and GPUs are and what is permitted.

Both are frozen and strict. An unknown key is refused with its nearest match; every message has the key's full name,
what is allowed and what came. A job holds no path (it travels to every site); a site config never travels.
"""

from parametrium.config.job import (
    VOCABULARY,
    AggregationConfig,
    BatchConfig,
    ClinicalVariable,
    ContinuousVariable,
    EvaluationConfig,
    FigoVariable,
    ForegroundRule,
    IntensityRule,
    JobConfig,
    LogRule,
    ModelConfig,
    NominalVariable,
    OptimiserConfig,
    OrdinalVariable,
    PreparationConfig,
    WindowRule,
)
from parametrium.config.objectives import (
    CrossModalReconstructionConfig,
    MaskedReconstructionConfig,
    ObjectiveConfig,
    ObjectiveKind,
    ReconstructionConfig,
    SoftContrastiveConfig,
    TemplateReconstructionConfig,
)
from parametrium.config.reading import job_schema, load_job, load_site, parse_job, site_schema
from parametrium.config.site import DefacingConfig, PolicyConfig, SeriesRule, SiteConfig
from parametrium.config.values import Count, Extent, Fraction, Modality, Name, Positive

__all__ = [
    "VOCABULARY",
    "AggregationConfig",
    "BatchConfig",
    "ClinicalVariable",
    "ContinuousVariable",
    "Count",
    "CrossModalReconstructionConfig",
    "DefacingConfig",
    "EvaluationConfig",
    "Extent",
    "FigoVariable",
    "ForegroundRule",
    "Fraction",
    "IntensityRule",
    "JobConfig",
    "LogRule",
    "MaskedReconstructionConfig",
    "Modality",
    "ModelConfig",
    "Name",
    "NominalVariable",
    "ObjectiveConfig",
    "ObjectiveKind",
    "OptimiserConfig",
    "OrdinalVariable",
    "PolicyConfig",
    "Positive",
    "PreparationConfig",
    "ReconstructionConfig",
    "SeriesRule",
    "SiteConfig",
    "SoftContrastiveConfig",
    "TemplateReconstructionConfig",
    "WindowRule",
    "job_schema",
    "load_job",
    "load_site",
    "parse_job",
    "site_schema",
]
