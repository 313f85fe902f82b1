"""When a run ends before its last round, and which measured round is the best: a pure function of what was measured.

The poster that this follows (METHODS 0, S1) saw attention rollout leak into the background when training went on for
too long. Here that is a number, the held-out loss is a second, and both are judged in the same way: a *rise* is so many
measurements in a row above a factor times the lowest one before them.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from parametrium.config import JobConfig, RiseRule, StoppingConfig

Measure = Literal["background", "held_out_loss"]

SMALLEST_RISE: dict[Measure, float] = {"background": 0.01, "held_out_loss": 0.0}
"""Least difference that counts as a rise: a hundredth of the attention, where next to none lay outside the body."""

_WORDS: dict[Measure, str] = {"background": "attention outside the body", "held_out_loss": "held-out loss"}
_ORDER: tuple[Measure, ...] = ("held_out_loss", "background")


class Measurement(NamedTuple):
    """The federation's numbers under the global model after so many rounds; None where no site measured one.

    Attributes:
        rounds: finished rounds.
        background: share of the attention rollout outside the body.
        held_out_loss: weighted sum of the objectives' losses; None until all of them have begun, since what is not
            trained yet may rise by itself.
    """

    rounds: int
    background: float | None = None
    held_out_loss: float | None = None


class Verdict(NamedTuple):
    """What the rule says of a run.

    Attributes:
        best_round: the measured round with the lowest number of the rule that stops the run, or of the first rule that
            is on (held-out loss before background); None where no rule is on or nothing was measured.
        stopped_by: the rule that ends the run after its last measurement; None: it goes on.
        reason: one public sentence; empty where it goes on.
    """

    best_round: int | None = None
    stopped_by: Measure | None = None
    reason: str = ""


def measurements(records: Iterable[Mapping[str, Any]], job: JobConfig) -> list[Measurement]:
    """Means over the sites, weighted by their held-out volumes, or patients where the job's monitors are off.

    A site that misses a measurement counts with its last one, or with its first where it has none yet: otherwise the
    mean would move with who answered, and not with the model.

    Args:
        records: of ``evaluation.jsonl``: round, site and scalars, in any order of the rounds. Of a number that a site
            measured twice after one round the first counts: what is measured again at the end decides nothing.
        job: the objectives' weights.
    """
    by_round: dict[int, dict[str, dict[str, float]]] = {}
    for record in records:
        own = by_round.setdefault(int(record["round"]), {}).setdefault(str(record["site"]), {})
        for name, value in record["scalars"].items():
            own.setdefault(name, value)
    first: dict[str, dict[str, float]] = {}
    for number in sorted(by_round, reverse=True):
        for site, scalars in by_round[number].items():
            first[site] = first.get(site, {}) | scalars
    known: dict[str, dict[str, float]] = {}
    most = job.evaluation.patients
    begun = max(objective.start for objective in job.objectives) * job.rounds
    found = []
    for number in sorted(by_round):
        for site, scalars in by_round[number].items():
            known[site] = known.get(site, {}) | scalars
        filled = {site: scalars | known.get(site, {}) for site, scalars in first.items()}
        background = _over_sites(_background, known, filled, most)
        loss = None
        if number >= begun:
            loss = _over_sites(lambda scalars: _total_loss(scalars, job), known, filled, most)
        found.append(Measurement(number, background, loss))
    return [m for m in found if m.background is not None or m.held_out_loss is not None]


def judged(history: Sequence[Measurement], stopping: StoppingConfig) -> Verdict:
    """What the rule says after the last measurement of a history.

    The untrained model (round 0), and what was measured before ``stopping.after`` rounds, is neither a minimum nor a
    candidate: attention on a few bright voxels lies in the body too.

    Args:
        history: in any order.
        stopping: the job's rules.
    """
    rules: dict[Measure, RiseRule | None] = {
        "held_out_loss": stopping.held_out_loss,
        "background": stopping.background,
    }
    counted = sorted(m for m in history if m.rounds >= max(stopping.after, 1))
    on = [(measure, rule) for measure in _ORDER if (rule := rules[measure]) is not None]
    for measure, rule in on:
        values = _values(counted, measure)
        if (reason := _rise(values, measure, rule)) and values[-1][0] == counted[-1].rounds:
            return Verdict(_lowest(values), measure, reason)
    for measure, _ in on:
        if values := _values(counted, measure):
            return Verdict(_lowest(values))
    return Verdict()


Values = list[tuple[int, float]]
"""Finished rounds and the number measured then, ascending."""


def _rise(values: Values, measure: Measure, rule: RiseRule) -> str:
    """The sentence that says that there was one, or nothing."""
    before, last = values[: -rule.patience], values[-rule.patience :]
    if not before:
        return ""
    lowest = min(value for _, value in before)
    limit = max(rule.factor * lowest, lowest + SMALLEST_RISE[measure])
    if not all(value > limit for _, value in last):
        return ""
    return (
        f"{_WORDS[measure]} was above {rule.factor:g} times its minimum ({lowest:.4g}, after {_lowest(before)} rounds) "
        f"in {rule.patience} measurements in a row, the last {last[-1][1]:.4g}"
    )


def _values(history: Iterable[Measurement], measure: Measure) -> Values:
    found = ((m.rounds, m.background if measure == "background" else m.held_out_loss) for m in history)
    return [(rounds, value) for rounds, value in found if value is not None]


def _lowest(values: Values) -> int:
    """The round of the lowest value; of several the first."""
    return min(values, key=lambda pair: (pair[1], pair[0]))[0]


def _total_loss(scalars: Mapping[str, float], job: JobConfig) -> float | None:
    losses = [(o.weight, scalars.get(f"evaluation/loss/{o.kind}")) for o in job.objectives]
    known = [weight * loss for weight, loss in losses if loss is not None]
    return sum(known) if known else None


def _background(scalars: Mapping[str, float]) -> float | None:
    return scalars.get("monitor/attention/background")


def _weight(scalars: Mapping[str, float], most: int) -> float:
    """Of a site: its measured volumes, or patients where the job's monitors are off and count no volumes."""
    return scalars.get("monitor/volumes", min(scalars.get("site/held_out_patients", 1.0), most))


def _over_sites(
    number_of: Callable[[Mapping[str, float]], float | None],
    known: Mapping[str, Mapping[str, float]],
    filled: Mapping[str, Mapping[str, float]],
    most: int,
) -> float | None:
    """Mean of a number over the sites, with what is measured later only where one of them has measured it by now."""
    if all(number_of(scalars) is None for scalars in known.values()):
        return None
    pairs = [(number_of(scalars), _weight(scalars, most)) for scalars in filled.values()]
    measured = [(value, volumes) for value, volumes in pairs if value is not None]
    weight = sum(volumes for _, volumes in measured)
    return sum(value * volumes for value, volumes in measured) / weight if weight > 0 else None
