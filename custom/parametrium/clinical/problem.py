"""What can be wrong with a clinical cell, in words that hold nothing of a patient. Counts of them may be shown."""

from enum import Enum


class ClinicalProblem(Enum):
    """Why a cell is not used. A cell with a problem is missing; none is guessed."""

    UNKNOWN_LEVEL = "unknown_level"
    NOT_A_NUMBER = "not_a_number"
    DECIMAL_COMMA = "decimal_comma"
    OUT_OF_BOUNDS = "out_of_bounds"
    UNIT_LOOKS_WRONG = "unit_looks_wrong"  # out of bounds, and so is most of the column by one factor
    INCOMPLETE_STAGE = "incomplete_stage"  # II alone is IIA or IIB
    STAGE_NOT_IN_EDITION = "stage_not_in_edition"
    UNKNOWN_EDITION = "unknown_edition"
    CONFLICTING_EDITION = "conflicting_edition"
