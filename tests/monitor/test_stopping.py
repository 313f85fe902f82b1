"""The stopping rule: a pure function of what was measured, against a second, dumber one."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parametrium.config import JobConfig, RiseRule, StoppingConfig
from parametrium.errors import ConfigError
from parametrium.monitor.stopping import Measurement, judged, measurements

MakeJob = Callable[..., JobConfig]


def background(*values: float | None, first: int = 1) -> list[Measurement]:
    return [Measurement(first + n, background=value) for n, value in enumerate(values)]


def losses(*values: float) -> list[Measurement]:
    return [Measurement(1 + n, held_out_loss=value) for n, value in enumerate(values)]


LEAK = StoppingConfig(background=RiseRule(factor=1.5, patience=2))
PATIENT = StoppingConfig(held_out_loss=RiseRule(patience=3))


def test_attention_that_leaks_into_the_background_ends_the_run() -> None:
    verdict = judged(background(0.3, 0.2, 0.25, 0.31, 0.35), LEAK)
    assert (verdict.stopped_by, verdict.best_round) == ("background", 2)
    assert verdict.reason == (
        "attention outside the body was above 1.5 times its minimum (0.2, after 2 rounds) in 2 measurements in a row, "
        "the last 0.35"
    )


@pytest.mark.parametrize(
    "values",
    [
        (0.3, 0.2, 0.25, 0.31),  # once is not twice
        (0.3, 0.2, 0.31, 0.25, 0.31),  # not in a row
        (0.3, 0.2, 0.25, 0.29, 0.299),  # not by the factor
        (0.3, 0.28, 0.26, 0.24, 0.22),
        (0.31, 0.35),  # nothing before it to rise from
        (0.001, 0.009, 0.0095),  # nine times nothing is nothing
    ],
)
def test_anything_less_does_not(values: tuple[float, ...]) -> None:
    verdict = judged(background(*values), LEAK)
    assert verdict.stopped_by is None
    assert verdict.reason == ""
    assert verdict.best_round == 1 + values.index(min(values))


def test_a_held_out_loss_without_a_new_minimum_ends_the_run() -> None:
    assert judged(losses(3, 2, 1, 1.1, 1.05, 1.2), PATIENT).stopped_by == "held_out_loss"
    assert judged(losses(3, 2, 1, 1.1, 1.05, 1.2), PATIENT).best_round == 3
    assert judged(losses(3, 2, 1, 1.1, 0.99, 1.2), PATIENT).stopped_by is None
    assert judged(losses(3, 2, 1, 1.1, 1.05), PATIENT).stopped_by is None
    assert judged(losses(2, 2, 2, 2), PATIENT).stopped_by is None  # a plateau is no rise


@given(st.lists(st.floats(0.02, 1), max_size=12), st.floats(1, 2), st.integers(1, 4), st.integers(0, 4))
def test_the_rule_equals_a_walk_through_the_rounds(
    values: list[float], factor: float, patience: int, after: int
) -> None:
    """Value by value, with a minimum that is carried along."""
    rule = RiseRule(factor=factor, patience=patience)
    verdict = judged(losses(*values), StoppingConfig(held_out_loss=rule, after=after))
    walked = [(n, value) for n, value in enumerate(values, 1) if n >= after]
    last_risen = False
    if len(walked) > patience:
        minimum = walked[0][1]
        for _, value in walked[:-patience]:
            minimum = value if value < minimum else minimum
        last_risen = True
        for _, value in walked[-patience:]:
            if value <= factor * minimum:
                last_risen = False
    assert (verdict.stopped_by is not None) == last_risen
    best = None
    for n, value in walked:
        if best is None or value < dict(walked)[best]:
            best = n
    assert verdict.best_round == best


def test_the_untrained_model_is_no_minimum_and_what_is_early_is_not_judged() -> None:
    history = background(0.1, 0.3, 0.32, 0.34, first=0)
    assert judged(history, LEAK).best_round == 1
    assert judged(history, LEAK).stopped_by is None
    history = background(0.1, 0.3, 0.32, 0.31, 0.3)
    assert judged(history, LEAK).stopped_by == "background"
    late = judged(history, LEAK.model_copy(update={"after": 2}))
    assert (late.stopped_by, late.best_round) == (None, 2)


def test_the_best_round_is_by_the_rule_that_stops_and_otherwise_by_the_held_out_loss() -> None:
    both = StoppingConfig(background=LEAK.background, held_out_loss=PATIENT.held_out_loss)
    rows = zip((0.2, 0.1, 0.12, 0.2), (4.0, 3.0, 2.0, 1.0), strict=True)
    history = [Measurement(n, *row) for n, row in enumerate(rows, 1)]
    assert judged(history, both)[:2] == (4, None)
    verdict = judged([*history, Measurement(5, 0.3, 0.5)], both)
    assert (verdict.best_round, verdict.stopped_by) == (2, "background")
    assert judged([Measurement(n, 0.1 * n) for n in range(1, 3)], both).best_round == 1


def test_without_a_rule_or_a_measurement_nothing_is_said() -> None:
    assert judged(background(0.1, 0.9, 0.9, 0.9), StoppingConfig()) == (None, None, "")
    assert judged([], LEAK) == (None, None, "")
    assert judged(losses(1, 2, 3), LEAK) == (None, None, "")
    late = [*background(0.1, 0.3, 0.3), Measurement(4, held_out_loss=1.0)]
    assert judged(late, LEAK).stopped_by is None  # the last measurement has none of the rule's


def record(number: int, site: str, mass: float | None = None, volumes: float = 1, **loss: float) -> dict[str, Any]:
    scalars = {"monitor/volumes": volumes} | {f"evaluation/loss/{kind}": value for kind, value in loss.items()}
    if mass is not None:
        scalars["monitor/attention/background"] = mass
    return {"round": number, "site": site, "scalars": scalars}


def test_sites_count_by_their_volumes_and_objectives_by_their_weights(make_job: MakeJob) -> None:
    job = make_job(objectives=[{"kind": "masked_reconstruction", "weight": 2.0}, {"kind": "soft_contrastive"}])
    records = [
        record(1, "a", 0.1, 30, masked_reconstruction=1.0, soft_contrastive=0.5),
        record(1, "b", 0.5, 10, masked_reconstruction=2.0),
    ]
    (found,) = measurements(records, job)
    assert found == (1, pytest.approx(0.2), pytest.approx((30 * 2.5 + 10 * 4.0) / 40))
    assert measurements(records[::-1], job) == [found]


def test_without_monitors_sites_count_by_their_held_out_patients(make_job: MakeJob) -> None:
    """Which they tell once, when they open their cohort; no more of them than are measured."""
    records = [
        {"round": 0, "site": site, "scalars": {"site/held_out_patients": n}} for site, n in (("a", 30), ("b", 10))
    ]
    for site, loss in (("a", 1.0), ("b", 2.0)):
        records.append({"round": 1, "site": site, "scalars": {"evaluation/loss/masked_reconstruction": loss}})
    assert measurements(records, make_job())[-1] == (1, None, pytest.approx(1.25))
    few = make_job(evaluation={"patients": 10})
    assert measurements(records, few)[-1] == (1, None, pytest.approx(1.5))


def test_a_site_that_is_missing_counts_with_its_nearest_measurement(make_job: MakeJob) -> None:
    records = [
        record(n, site, mass) for n in (1, 2, 3) for site, mass in (("a", 0.1), ("b", 0.5)) if (n, site) != (2, "b")
    ]
    assert [m.background for m in measurements(records, make_job())] == pytest.approx([0.3, 0.3, 0.3])
    late = [record(1, "a", 0.1), record(2, "a", 0.1), record(2, "b", 0.5), record(3, "a", 0.1)]
    assert [m.background for m in measurements(late, make_job())] == pytest.approx([0.3, 0.3, 0.3])


def test_a_loss_that_is_measured_late_is_no_rise(make_job: MakeJob) -> None:
    """Latent prediction has no teacher, hence no loss, before the first round."""
    kinds = [{"kind": "masked_reconstruction"}, {"kind": "latent_prediction"}]
    records = [
        record(1, "a", masked_reconstruction=1.0),
        record(2, "a", masked_reconstruction=0.9, latent_prediction=0.5),
        record(3, "a", masked_reconstruction=0.8, latent_prediction=0.4),
    ]
    found = measurements(records, make_job(objectives=kinds))
    assert [m.held_out_loss for m in found] == pytest.approx([1.5, 1.4, 1.2])


def test_lines_of_one_round_and_site_are_one_measurement(make_job: MakeJob) -> None:
    facts = {"round": 0, "site": "a", "scalars": {"site/patients": 4.0}}
    records = [facts, record(0, "a", 0.2), record(2, "a", 0.3), record(2, "a", 0.4, masked_reconstruction=1.0)]
    assert measurements(records, make_job()) == [(0, 0.2, None), (2, 0.3, 1.0)]
    assert measurements([facts], make_job()) == []


def test_the_held_out_loss_counts_once_every_objective_has_begun(make_job: MakeJob) -> None:
    kinds = [{"kind": "masked_reconstruction"}, {"kind": "soft_contrastive", "start": 0.4}]
    records = [record(n, "a", 0.1, masked_reconstruction=1.0, soft_contrastive=1.0) for n in range(6)]
    found = measurements(records, make_job(objectives=kinds, rounds=5))
    assert [m.held_out_loss for m in found] == [None, None, 2.0, 2.0, 2.0, 2.0]
    assert [m.background for m in found] == [0.1] * 6


def test_a_rule_that_could_never_fire_is_refused(make_job: MakeJob) -> None:
    with pytest.raises(ConfigError, match=r"stopping needs evaluation.every"):
        make_job(stopping={"background": {}})
    with pytest.raises(ConfigError, match=r"stopping.background needs evaluation.monitors"):
        make_job(stopping={"background": {}}, evaluation={"every": 1, "monitors": False})
    assert make_job(stopping={"held_out_loss": {}}, evaluation={"every": 1, "monitors": False})
    assert make_job().stopping == StoppingConfig()
