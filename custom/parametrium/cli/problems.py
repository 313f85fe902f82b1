"""How commands tell what was left out of a cohort."""

from collections.abc import Iterable, Sequence

from parametrium.cli.printing import say
from parametrium.cohort.problem import Problem, Reason

MOST_PROBLEMS = 20
"""Problems that are printed one by one; --json has all."""


def problem_rows(problems: Sequence[Problem]) -> list[dict[str, str]]:
    """Problems for a JSON answer."""
    return [{"patient": p.patient, "modality": p.modality, "reason": p.reason.value} for p in problems]


def print_problems(problems: Sequence[Problem]) -> None:
    """The first problems, one a line, and what their reasons mean; those that are as they should be only in a word."""
    from parametrium.report.quality.words import AS_IT_SHOULD_BE

    worth = [problem for problem in problems if problem.reason not in AS_IT_SHOULD_BE]
    for problem in worth[:MOST_PROBLEMS]:
        who = " ".join(word for word in (problem.patient or "without patient", problem.modality) if word)
        say(f"  {who}: {problem.reason.value}")
    if len(worth) > MOST_PROBLEMS:
        say(f"  and {len(worth) - MOST_PROBLEMS} more; --json lists all")
    _print_meanings({problem.reason for problem in worth})
    fine = sorted({problem.reason.value for problem in problems if problem.reason in AS_IT_SHOULD_BE})
    if fine:
        say(f"left out on purpose: {', '.join(fine)}")


def _print_meanings(reasons: Iterable[Reason]) -> None:
    from parametrium.report.quality.words import MEANING, REMEDY

    for reason in sorted(reasons, key=lambda reason: reason.value):
        say(f"{reason.value}: {MEANING[reason]}. What to do: {REMEDY[reason]}.")
