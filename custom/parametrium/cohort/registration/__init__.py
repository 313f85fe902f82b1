"""Rigid registration of a patient's volumes: measured, refused when it cannot be believed, never resampled."""

from parametrium.cohort.registration.decisions import Decision, applied, read_decisions
from parametrium.cohort.registration.register import RegistrationReport, register_cohort
from parametrium.cohort.registration.verdict import Verdict

__all__ = ["Decision", "RegistrationReport", "Verdict", "applied", "read_decisions", "register_cohort"]
