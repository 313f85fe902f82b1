"""What a step wants to read, and with what weight its objectives count."""

import math

from parametrium.config import JobConfig, ObjectiveConfig
from parametrium.data.batch import CropRequest
from parametrium.objectives.registry import PretrainingModel


def weight_at(step: int, objective: ObjectiveConfig, job: JobConfig) -> float:
    """The objective's weight: its value, after a linear rise over ``ramp`` of the run's steps from its start."""
    risen = objective.ramp * job.total_steps
    since = step - math.ceil(objective.start * job.total_steps)
    return objective.weight * (min((since + 1) / risen, 1.0) if risen > 0 else 1.0)


class CropPlan:
    """What a step wants to read: the requests of its objectives, those of one layout joined.

    Args:
        job: the job.
        model: its objectives, which know what they need.
    """

    def __init__(self, job: JobConfig, model: PretrainingModel) -> None:
        self.job = job
        batch = job.batch
        self.requests = {
            config.kind: model.objective(config.kind).request(batch.patients, batch.volumes_per_patient)
            for config in job.objectives
        }

    def __call__(self, step: int) -> tuple[CropRequest, ...]:
        """Requests of that step, one a layout."""
        joined: dict[str, CropRequest] = {}
        for config in self.job.objectives_at(step):
            new = self.requests[config.kind]
            old = joined.get(new.layout, new)
            joined[new.layout] = CropRequest(new.layout, *(max(pair) for pair in zip(old[1:], new[1:], strict=True)))
        return tuple(joined.values())
