"""Which objectives a step trains, and what it wants to read."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parametrium.config import JobConfig, parse_job
from parametrium.data.batch import CropRequest
from parametrium.errors import ConfigError
from parametrium.objectives.registry import build_model
from parametrium.objectives.schedule import CropPlan, weight_at

KINDS = ["masked_reconstruction", "cross_modal_reconstruction", "soft_contrastive"]


def kinds_at(step: int, job: JobConfig) -> list[str]:
    return [config.kind for config in job.objectives_at(step)]


@given(st.lists(st.sampled_from(KINDS), min_size=1, max_size=3, unique=True), st.integers(0, 10**6))
def test_cyclic_objectives_take_turns(kinds: list[str], start: int) -> None:
    job = parse_job({"name": "j", "modalities": ["CT", "T1"], "objectives": [{"kind": kind} for kind in kinds]})
    cycle = [kinds_at(start + n, job) for n in range(len(kinds))]
    assert all(len(step) == 1 for step in cycle)
    assert sorted(kind for (kind,) in cycle) == sorted(kinds)
    assert kinds_at(start + len(kinds), job) == cycle[0]


def test_the_cycle_begins_with_the_first_objective(make_job: Callable[..., JobConfig]) -> None:
    job = make_job(objectives=[{"kind": kind} for kind in KINDS])
    assert [kinds_at(step, job) for step in range(4)] == [[KINDS[0]], [KINDS[1]], [KINDS[2]], [KINDS[0]]]


def test_summed_trains_all_in_every_step(make_job: Callable[..., JobConfig]) -> None:
    job = make_job(objectives=[{"kind": kind} for kind in KINDS], schedule="summed")
    assert all(kinds_at(step, job) == KINDS for step in range(5))


@pytest.mark.parametrize("schedule", ["cyclic", "summed"])
def test_an_objective_begins_after_its_share_of_the_run(make_job: Callable[..., JobConfig], schedule: str) -> None:
    late = {"kind": KINDS[2], "start": 0.5}
    job = make_job(objectives=[{"kind": KINDS[0]}, late], schedule=schedule, rounds=4, local_steps=5)
    seen = [kinds_at(step, job) for step in range(20)]
    assert all(kinds == [KINDS[0]] for kinds in seen[:10])
    assert sum(kinds.count(KINDS[2]) for kinds in seen[10:]) == (5 if schedule == "cyclic" else 10)


def test_a_weight_rises_from_its_start_to_its_value(make_job: Callable[..., JobConfig]) -> None:
    late = {"kind": KINDS[2], "start": 0.25, "ramp": 0.5, "weight": 0.3}
    job = make_job(objectives=[{"kind": KINDS[0], "weight": 2.0}, late], schedule="summed", rounds=4, local_steps=5)
    assert [weight_at(step, job.objectives[0], job) for step in (0, 19)] == [2.0, 2.0]
    found = [weight_at(step, job.objectives[1], job) for step in range(5, 20)]
    assert found == pytest.approx([0.03 * min(n, 10) for n in range(1, 16)])


def test_an_objective_may_have_several_turns_in_a_cycle(make_job: Callable[..., JobConfig]) -> None:
    job = make_job(objectives=[{"kind": KINDS[0]}, {"kind": KINDS[2], "turns": 3}])
    assert [kinds_at(step, job)[0] for step in range(8)] == [KINDS[0], KINDS[2], KINDS[2], KINDS[2]] * 2


def test_a_run_cannot_begin_with_nothing(make_job: Callable[..., JobConfig]) -> None:
    with pytest.raises(ConfigError, match="at least one must have start 0"):
        make_job(objectives=[{"kind": KINDS[0], "start": 0.1}])


@pytest.mark.parametrize("volumes", [1, 3])
def test_requests_of_one_layout_are_joined_to_the_largest(make_job: Callable[..., JobConfig], volumes: int) -> None:
    job = make_job(
        objectives=[{"kind": kind} for kind in KINDS],
        schedule="summed",
        batch={"patients": 5, "volumes_per_patient": volumes},
    )
    wanted = CropPlan(job, build_model(job))(3)
    assert set(wanted) == {CropRequest("aligned", 5, max(volumes, 2)), CropRequest("contrast", 5, 2, 4)}


def test_a_cyclic_step_reads_only_what_its_objective_wants(make_job: Callable[..., JobConfig]) -> None:
    job = make_job(objectives=[{"kind": kind} for kind in KINDS], batch={"patients": 5, "volumes_per_patient": 1})
    plan = CropPlan(job, build_model(job))
    assert [plan(step) for step in range(3)] == [
        (CropRequest("aligned", 5, 1),),
        (CropRequest("aligned", 5, 2),),
        (CropRequest("contrast", 5, 2, 4),),
    ]
