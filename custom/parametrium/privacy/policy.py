"""The site's policy against the job: a job asks, the policy decides, the stricter wins."""

from collections.abc import Mapping

from parametrium.config import JobConfig, PolicyConfig
from parametrium.errors import Code, PolicyError


def check_job(job: JobConfig, policy: PolicyConfig) -> None:
    """Refuses a job that asks for more than the site permits; before any scan is opened.

    Raises:
        PolicyError: PM601, naming the setting, what is permitted and what the job asks.
    """
    if job.rounds > policy.maximum_rounds:
        raise _refused("rounds", f"at most {policy.maximum_rounds}", job.rounds)
    if job.local_steps < policy.minimum_local_steps:
        raise _refused("local_steps", f"at least {policy.minimum_local_steps}", job.local_steps)
    for objective in job.objectives:
        patients = job.patients_of(objective)
        if patients < policy.minimum_batch_patients:
            raise _refused(
                f"batch.patients (or the patients of {objective.kind})",
                f"at least {policy.minimum_batch_patients}",
                patients,
            )
        if objective.kind not in policy.objectives:
            raise _refused("objectives", f"only {', '.join(policy.objectives)}", objective.kind)


def check_patients(patients: int, policy: PolicyConfig) -> None:
    """Refuses to train on so few patients that an update would describe them.

    Raises:
        PolicyError: PM601; the message does not say how many there are.
    """
    if patients < policy.minimum_patients:
        raise PolicyError(
            Code.POLICY_REFUSED,
            f"the site has fewer training patients than its policy's minimum_patients ({policy.minimum_patients})",
            site_detail=f"{patients} training patients",
        )


def enough_steps(steps: Mapping[str, int], policy: PolicyConfig) -> bool:
    """Whether a round's update may be sent: a job may ask for many steps of which few find something to train on.

    Args:
        steps: optimiser steps by tensor that they moved.
        policy: the site's.
    """
    return max(steps.values(), default=0) >= policy.minimum_local_steps


def templates_to_leave(patients: Mapping[str, int], policy: PolicyConfig) -> list[str]:
    """The modalities whose templates this site must neither train nor send: templates are images (METHODS 10).

    Args:
        patients: training patients by modality.
        policy: the site's.
    """
    return [modality for modality, number in patients.items() if number < policy.minimum_template_patients]


def _refused(setting: str, permitted: str, asked: object) -> PolicyError:
    return PolicyError(
        Code.POLICY_REFUSED, f"the site's policy permits {permitted} for job.{setting}; the job asks for {asked}"
    )
