"""The objectives' losses on held-out patients: with the training losses beside them, overfitting shows."""

import math
from collections import defaultdict
from collections.abc import Sequence

import torch

from parametrium.config import JobConfig
from parametrium.data.cache import PreparedPatient
from parametrium.data.loader import CropLoader
from parametrium.objectives.registry import PretrainingModel
from parametrium.objectives.schedule import CropPlan
from parametrium.training.step import TrainState, autocast, step_generator

FEWEST_BATCHES = 4


class HeldOutLoss:
    """The same batches, masks and draws at every call, so that only the model differs between two measurements.

    A teacher is a part of the model: the loss of ``latent_prediction`` is to targets that move with it.

    Every objective is measured, whether its turn in the schedule has come or not; intensities are not jittered.

    Args:
        held_out: patients that were never trained on; at most ``job.evaluation.patients`` are used.
        job: the job.
        site: name of the site.
        model: its objectives say which crops they want.
    """

    def __init__(self, held_out: Sequence[PreparedPatient], job: JobConfig, site: str, model: PretrainingModel) -> None:
        begun = tuple(objective.model_copy(update={"start": 0.0}) for objective in job.objectives)
        still = job.batch.model_copy(update={"intensity_jitter": 0.0})
        self.job = job.model_copy(update={"objectives": begun, "schedule": "summed", "batch": still})
        self.site = f"{site}, held out"
        patients = list(held_out[: job.evaluation.patients])
        self.batches = max(FEWEST_BATCHES, math.ceil(len(patients) / job.batch.patients))
        self.loader = CropLoader(patients, self.job, self.site, CropPlan(self.job, model)) if patients else None

    @torch.no_grad()
    def measure(self, state: TrainState) -> dict[str, float]:
        """``evaluation/loss/<objective>``, means over the crops that entered.

        An objective that has nothing to measure at this site, or whose loss is not finite, is left out.

        Args:
            state: the model with the weights to measure; left in evaluation mode.
        """
        if self.loader is None:
            return {}
        sums: defaultdict[str, float] = defaultdict(float)
        samples: defaultdict[str, int] = defaultdict(int)
        state.model.eval()
        for step in range(self.batches):
            batches = self.loader[step]
            for config in self.job.objectives_at(step):
                objective = state.model.objective(config.kind)
                layout = objective.request(1, 1).layout
                if layout not in batches:
                    continue
                # What an objective draws by itself is that of the batch, and not of the last training step.
                objective.step = step
                generator = step_generator(self.job.seed, self.site, step, config.kind)
                with autocast(self.job.precision, state.device):
                    outcome = objective(state.model.encoder, batches[layout].to(state.device), generator)
                if outcome is not None:
                    sums[config.kind] += float(outcome.loss) * outcome.samples
                    samples[config.kind] += outcome.samples
        losses = {kind: total / samples[kind] for kind, total in sums.items() if samples[kind]}
        return {f"evaluation/loss/{kind}": loss for kind, loss in losses.items() if math.isfinite(loss)}
