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
    NOT_DICOM = "not_dicom"
    NOT_AN_IMAGE = "not_an_image"
    LOCALISER = "localiser"
    SECONDARY_CAPTURE = "secondary_capture"
    BURNED_IN_TEXT = "burned_in_text"
    DERIVED = "derived"
    DOSE = "dose"
    REPORT = "report"
    NO_MODALITY = "no_modality"
    MODALITY_NOT_WANTED = "modality_not_wanted"
    NO_PATIENT = "no_patient"
    NO_GEOMETRY = "no_geometry"
    MISSING_SLICES = "missing_slices"
    IRREGULAR_SLICES = "irregular_slices"
    TIME_SERIES = "time_series"
    UNDECODABLE = "undecodable"
    UNKNOWN_UNIT = "unknown_unit"
    NO_ATTENUATION_CORRECTION = "no_attenuation_correction"
    NO_WEIGHT = "no_weight"
    NO_INJECTED_DOSE = "no_injected_dose"
    NO_INJECTION_TIME = "no_injection_time"
    STRUCTURES_WITHOUT_IMAGE = "structures_without_image"
    EMPTY_STRUCTURE = "empty_structure"
    DEFACING_FAILED = "defacing_failed"


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
