"""From a job to a model: the encoder and its objectives, from one seed."""

from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from parametrium.config import JobConfig
from parametrium.model.encoder import Encoder
from parametrium.model.presets import architecture
from parametrium.model.template import Templates
from parametrium.objectives.contrastive import SoftContrastive
from parametrium.objectives.global_local import GlobalLocal
from parametrium.objectives.isotropy import Isotropy
from parametrium.objectives.localisation import BoxLocalisation
from parametrium.objectives.modality_contrastive import ModalityContrastive
from parametrium.objectives.objective import Objective
from parametrium.objectives.prediction import LatentPrediction
from parametrium.objectives.reconstruction import CrossModalReconstruction, MaskedReconstruction
from parametrium.objectives.synthesis import CrossModalSynthesis
from parametrium.objectives.template import TemplateReconstruction
from parametrium.objectives.text import TextContrastive

Kind = TypeVar("Kind", bound=Objective)

OBJECTIVES: dict[str, Any] = {
    objective.kind: objective
    for objective in (
        MaskedReconstruction,
        CrossModalReconstruction,
        CrossModalSynthesis,
        TemplateReconstruction,
        SoftContrastive,
        TextContrastive,
        ModalityContrastive,
        GlobalLocal,
        Isotropy,
        BoxLocalisation,
        LatentPrediction,
    )
}
"""Every pretext task by its kind; each is built as ``(config, job, shape)``."""


class PretrainingModel(nn.Module):
    """Everything that is trained: what a round aggregates, tensor by tensor.

    Args:
        job: the job.
    """

    def __init__(self, job: JobConfig) -> None:
        super().__init__()
        shape = architecture(job.model)
        self.encoder = Encoder(job.modalities, shape, _templates(job, shape.width))
        self.objectives = nn.ModuleDict(
            {config.kind: OBJECTIVES[config.kind](config, job, shape) for config in job.objectives},
        )

    def objective(self, kind: str) -> Objective:
        """The objective of that kind."""
        return cast(Objective, self.objectives[kind])

    def find(self, objective: type[Kind]) -> Kind | None:
        """The objective of that class; None where the job has none."""
        return cast(Kind, self.objectives[objective.kind]) if objective.kind in self.objectives else None


def _templates(job: JobConfig, width: int) -> Templates | None:
    if not any(OBJECTIVES[config.kind].fills_from_templates for config in job.objectives):
        return None
    limits = {modality: rule.bound for modality, rule in job.preparation.intensity.items()}
    return Templates(job.modalities, job.model.template, width, limits)


def build_model(job: JobConfig) -> PretrainingModel:
    """The job's model with its initial weights: the same everywhere, a function of ``job.seed`` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(job.seed)
        model = PretrainingModel(job)
        for module in model.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
    return model


def initial_tensors(job: JobConfig) -> dict[str, Tensor]:
    """The initial weights by name."""
    return {name: tensor.detach().clone() for name, tensor in build_model(job).named_parameters()}
