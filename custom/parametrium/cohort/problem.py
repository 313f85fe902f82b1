"""What can be wrong with a cohort, in words that hold nothing of a patient."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from parametrium.errors import Code, CohortError


class Reason(Enum):
    """Why something was left out or needs a look. These words may travel as counts."""

    MISSING_FILE = "missing_file"
    MISSING_FOLDER = "missing_folder"
    FOLDER_WITHOUT_ROW = "folder_without_row"
    UNREADABLE = "unreadable"
    NOT_3D = "not_3d"
    ONE_SLICE = "one_slice"
    AFFINE_SINGULAR = "affine_singular"
    IMPLAUSIBLE_GEOMETRY = "implausible_geometry"
    TOO_LARGE = "too_large"
    UNKNOWN_MODALITY = "unknown_modality"
    DUPLICATE = "duplicate"
    ALL_ZERO = "all_zero"
    CONSTANT = "constant"
    NOT_FINITE = "not_finite"
    NO_BODY = "no_body"
    FAILED = "failed"
    BAD_ROW = "bad_row"
    CONFLICTING_SPLIT = "conflicting_split"
    NO_CLINICAL_ROW = "no_clinical_row"
    CLINICAL_ROW_WITHOUT_PATIENT = "clinical_row_without_patient"


@dataclass(frozen=True)
class Problem:
    """Something left out or odd. The pseudonym stays at the site; only counts by reason may travel."""

    patient: str
    modality: str
    reason: Reason


def empty_cohort(problems: Sequence[Problem]) -> CohortError:
    """The error of a site without any usable volume, with its counts by reason."""
    counts = Counter(problem.reason.value for problem in problems)
    told = ", ".join(f"{count} {reason}" for reason, count in sorted(counts.items())) or "the table has no rows"
    detail = "; ".join(f"{problem.patient} {problem.modality}: {problem.reason.value}" for problem in problems)
    return CohortError(Code.COHORT_EMPTY, f"no usable volume is left in the cohort ({told})", site_detail=detail)
