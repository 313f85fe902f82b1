"""Jobs of which an objective never trains: its tensors are there from the beginning, for a later stage.

A job file that says so is refused, since nobody could want it; a benchmark in stages does.
"""

from collections.abc import Mapping

from parametrium.config import JobConfig

NEVER = 1 - 1e-9
"""Share of a run after which no step is left."""


def with_starts(job: JobConfig, starts: Mapping[str, float]) -> JobConfig:
    """The job with other starts of some objectives, by kind."""
    objectives = (o.model_copy(update={"start": starts.get(o.kind, o.start)}) for o in job.objectives)
    return job.model_copy(update={"objectives": tuple(objectives)})
