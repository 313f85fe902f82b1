"""What a hospital permits: a job that asks for more is refused by name, and too few steps are never sent."""

from collections.abc import Callable
from typing import Any

import pytest

from parametrium.config import JobConfig, PolicyConfig
from parametrium.errors import PolicyError
from parametrium.privacy.policy import check_job, check_patients, enough_steps

MakeJob = Callable[..., JobConfig]


def test_the_default_policy_permits_an_ordinary_job(make_job: MakeJob) -> None:
    check_job(make_job(), PolicyConfig())


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"rounds": 1001}, "at most 1000 for job.rounds; the job asks for 1001"),
        ({"local_steps": 3}, "at least 4 for job.local_steps; the job asks for 3"),
        ({"batch": {"patients": 1}}, "at least 2 for job.batch.patients .* the job asks for 1"),
        ({"objectives": [{"kind": "box_localisation"}]}, "for job.objectives; the job asks for box_localisation"),
    ],
)
def test_a_job_that_asks_for_more_is_refused_by_name(make_job: MakeJob, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(PolicyError, match=f"PM601 .*{says}"):
        check_job(make_job(**changes), PolicyConfig())


def test_the_patients_that_an_objective_asks_for_count(make_job: MakeJob) -> None:
    policy = PolicyConfig(minimum_batch_patients=4)
    contrast = {"kind": "soft_contrastive", "patients": 2}
    with pytest.raises(PolicyError, match=r"PM601 .*patients of soft_contrastive.* asks for 2"):
        check_job(make_job(objectives=[{"kind": "masked_reconstruction"}, contrast], batch={"patients": 8}), policy)
    check_job(make_job(objectives=[{**contrast, "patients": 8}], batch={"patients": 2}), policy)


def test_a_site_of_few_patients_does_not_say_how_few() -> None:
    check_patients(5, PolicyConfig())
    with pytest.raises(PolicyError, match=r"PM601 .*minimum_patients \(5\)") as caught:
        check_patients(3, PolicyConfig())
    assert "3" not in str(caught.value)


@pytest.mark.parametrize(("steps", "permitted"), [({}, False), ({"a": 3, "b": 1}, False), ({"a": 4, "b": 1}, True)])
def test_a_round_counts_the_steps_that_trained_something(steps: dict[str, int], permitted: bool) -> None:
    assert enough_steps(steps, PolicyConfig(minimum_local_steps=4)) is permitted
