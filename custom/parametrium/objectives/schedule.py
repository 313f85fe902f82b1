"""Which objectives a step trains."""

from parametrium.config import JobConfig, ObjectiveConfig
from parametrium.data.batch import CropRequest
from parametrium.objectives.registry import PretrainingModel


def objectives_at(step: int, job: JobConfig) -> tuple[ObjectiveConfig, ...]:
    """cyclic: one objective a mini-batch, in turn (METHODS 0, S2); summed: all of them."""
    if job.schedule == "summed":
        return job.objectives
    return (job.objectives[step % len(job.objectives)],)


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
        for config in objectives_at(step, self.job):
            new = self.requests[config.kind]
            old = joined.get(new.layout, new)
            joined[new.layout] = CropRequest(new.layout, max(old.patients, new.patients), max(old.volumes, new.volumes))
        return tuple(joined.values())
