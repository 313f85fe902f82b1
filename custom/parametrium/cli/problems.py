"""How commands tell what was left out of a cohort."""

from collections.abc import Sequence

from parametrium.cli.printing import say
from parametrium.cohort.problem import Problem

MOST_PROBLEMS = 20
"""Problems that are printed one by one; --json has all."""


def problem_rows(problems: Sequence[Problem]) -> list[dict[str, str]]:
    """Problems for a JSON answer."""
    return [{"patient": p.patient, "modality": p.modality, "reason": p.reason.value} for p in problems]


def print_problems(problems: Sequence[Problem]) -> None:
    """The first problems, one a line."""
    for problem in problems[:MOST_PROBLEMS]:
        who = " ".join(word for word in (problem.patient or "without patient", problem.modality) if word)
        say(f"  {who}: {problem.reason.value}")
    if len(problems) > MOST_PROBLEMS:
        say(f"  and {len(problems) - MOST_PROBLEMS} more; --json lists all")
