"""Words of the page: what each reason means to the reader, and foreign text made harmless to look at."""

from parametrium.cohort.problem import Reason

MOST_CHARACTERS = 64

MEANING: dict[Reason, str] = {
    Reason.MISSING_FILE: "the table names a file that is not there",
    Reason.MISSING_FOLDER: "the source table names a folder that is not there",
    Reason.FOLDER_WITHOUT_ROW: "a source folder that no row of the source table names",
    Reason.UNREADABLE: "the file is damaged, cut off or of a kind that is not read",
    Reason.NOT_3D: "not one volume: a time series or a single plane",
    Reason.ONE_SLICE: "fewer than two slices along one axis",
    Reason.AFFINE_SINGULAR: "the header's geometry is not a place in space",
    Reason.IMPLAUSIBLE_GEOMETRY: "the field of view is longer than any patient; as a rule a mistake of units",
    Reason.TOO_LARGE: "more voxels than a scan of one patient has",
    Reason.UNKNOWN_MODALITY: "not among the modalities; a job may declare it with an intensity rule",
    Reason.DUPLICATE: "a second row for the same file or patient; the first counts",
    Reason.ALL_ZERO: "every voxel is 0",
    Reason.CONSTANT: "every voxel has the same value",
    Reason.NOT_FINITE: "holds NaN or infinite values",
    Reason.NO_BODY: "no patient was found in it",
    Reason.FAILED: "could not be processed",
    Reason.BAD_ROW: "a row of a table with a missing or impossible cell",
    Reason.CONFLICTING_SPLIT: "rows of one patient disagree on train or test; the patient is held out",
    Reason.NO_CLINICAL_ROW: "the patient has no row in clinical.csv",
    Reason.CLINICAL_ROW_WITHOUT_PATIENT: "a row of clinical.csv without scans",
    Reason.NOT_DICOM: "a file that is not DICOM",
    Reason.NOT_AN_IMAGE: "a DICOM object without an image volume",
    Reason.LOCALISER: "a localiser",
    Reason.SECONDARY_CAPTURE: "a screenshot, not a scan",
    Reason.BURNED_IN_TEXT: "text is burned into the image; it may name the patient",
    Reason.DERIVED: "a computed map that was not asked for",
    Reason.DOSE: "a dose distribution or report",
    Reason.REPORT: "a report",
    Reason.NO_MODALITY: "neither the header nor a rule says which modality it is; write a series rule",
    Reason.MODALITY_NOT_WANTED: "of a modality that was not asked for",
    Reason.NO_PATIENT: "the header names no patient",
    Reason.NO_GEOMETRY: "the header does not say where the voxels lie",
    Reason.MISSING_SLICES: "slices are missing",
    Reason.IRREGULAR_SLICES: "slices are not evenly spaced",
    Reason.GANTRY_TILT: "the gantry was tilted",
    Reason.TIME_SERIES: "several time points of one place",
    Reason.UNDECODABLE: "the pixels cannot be decoded",
    Reason.UNKNOWN_UNIT: "the unit cannot be brought to the modality's own",
    Reason.NO_ATTENUATION_CORRECTION: "PET without attenuation correction: its values are no uptake",
    Reason.NO_WEIGHT: "PET without the patient's weight",
    Reason.NO_INJECTED_DOSE: "PET without the injected dose",
    Reason.NO_INJECTION_TIME: "PET without the time of injection",
    Reason.STRUCTURES_WITHOUT_IMAGE: "structures whose image was not taken",
    Reason.EMPTY_STRUCTURE: "a structure without a voxel",
    Reason.DEFACING_FAILED: "the site's program took no face out of it; see the log beside the site's secret",
}


def meaning(reason: str) -> str:
    """What a reason's word means; empty for a word that is not known."""
    try:
        return MEANING.get(Reason(reason), "")
    except ValueError:
        return ""


def shown(text: str, most: int = MOST_CHARACTERS) -> str:
    """Text from a table or a file name as it may stand on the page.

    Line breaks, control characters and marks that turn the direction of writing are spelled out, and long text is cut,
    so that no name can hide, move or imitate anything. Markup is the template's and the script's affair.
    """
    cut = text[:most]
    plain = "".join(c if c == " " or c.isprintable() else f"\\u{ord(c):04x}" for c in cut)
    return plain if len(text) <= most else f"{plain}... ({len(text):,} characters)"
