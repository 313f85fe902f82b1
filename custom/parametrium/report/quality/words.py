"""Words for a site's own eyes: what each reason means, what to do about it, and foreign text made harmless."""

from parametrium.cohort.problem import Reason

MOST_CHARACTERS = 64

MEANING: dict[Reason, str] = {
    Reason.MISSING_FILE: "the table names a file that is not there",
    Reason.MISSING_FOLDER: "the source table names a folder that is not there",
    Reason.FOLDER_WITHOUT_ROW: "a source folder that no row of the source table names",
    Reason.UNREADABLE: "the file is damaged, cut off, closed to this user or of a kind that is not read",
    Reason.NOT_3D: "not one volume: a time series or a single plane",
    Reason.ONE_SLICE: "fewer than two slices along one axis",
    Reason.AFFINE_SINGULAR: "the header's geometry is not a place in space",
    Reason.IMPLAUSIBLE_GEOMETRY: "the field of view is longer than any patient; as a rule a mistake of units",
    Reason.TOO_LARGE: "more voxels than a scan of one patient has",
    Reason.UNKNOWN_MODALITY: "its modality is not among those that the check was asked for",
    Reason.DUPLICATE: "the same file, slice or row a second time; the first counts",
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
    Reason.LOCALISER: "a localiser (scout, topogram), for planning the scan",
    Reason.SECONDARY_CAPTURE: "a screenshot, not a scan",
    Reason.BURNED_IN_TEXT: "text is burned into the image; it may name the patient",
    Reason.DERIVED: "an image computed from others (projection, subtraction, map) that was not asked for",
    Reason.DOSE: "a dose distribution or dose report",
    Reason.REPORT: "a written report, not an image",
    Reason.NO_MODALITY: "neither the header nor a rule says which modality it is",
    Reason.MODALITY_NOT_WANTED: "a rule of the site, --drop or the form of the source leaves it out",
    Reason.NO_PATIENT: "the header has no Patient ID",
    Reason.NO_GEOMETRY: "the header does not say where the voxels lie",
    Reason.MISSING_SLICES: "slices are missing",
    Reason.IRREGULAR_SLICES: "slices are not evenly spaced",
    Reason.TIME_SERIES: "further time points of one place, as in functional or perfusion MR",
    Reason.UNDECODABLE: "the pixels cannot be decoded",
    Reason.UNKNOWN_UNIT: "the unit cannot be brought to the modality's own",
    Reason.NO_ATTENUATION_CORRECTION: "PET without attenuation correction: its values are no uptake",
    Reason.NO_WEIGHT: "PET without the patient's weight, so without SUV",
    Reason.NO_INJECTED_DOSE: "PET without the injected dose, so without SUV",
    Reason.NO_INJECTION_TIME: "PET without the time of injection, so without SUV",
    Reason.STRUCTURES_WITHOUT_IMAGE: "structures whose image was not taken",
    Reason.EMPTY_STRUCTURE: "a structure without a voxel",
    Reason.DEFACING_FAILED: "the site's program took no face out of it; see the log beside the site's secret",
}

_EXPORT = "export the series again, complete"
_NOTHING = "nothing: it is left out on purpose"

REMEDY: dict[Reason, str] = {
    Reason.MISSING_FILE: "put the file back, or correct the path in the table",
    Reason.MISSING_FOLDER: "put the folder back, or remove its row",
    Reason.FOLDER_WITHOUT_ROW: "add a row for it where it is wanted",
    Reason.UNREADABLE: "copy the file again from where it came, and look at its rights",
    Reason.NOT_3D: "give one volume a file",
    Reason.ONE_SLICE: "give the whole stack",
    Reason.AFFINE_SINGULAR: "convert it again from its DICOM",
    Reason.IMPLAUSIBLE_GEOMETRY: "correct the voxel size in the header: it is in millimetres",
    Reason.TOO_LARGE: "see whether several scans were joined in one file",
    Reason.UNKNOWN_MODALITY: "nothing where it is not wanted; otherwise the job must declare it",
    Reason.DUPLICATE: "nothing, where the copy was meant to be one",
    Reason.ALL_ZERO: "convert or export it again",
    Reason.CONSTANT: "convert or export it again",
    Reason.NOT_FINITE: "convert it again; a background of NaN becomes a number",
    Reason.NO_BODY: "look at it: an empty scan, a phantom, or another intensity scale",
    Reason.FAILED: "give the command again; with fewer --jobs where memory was short",
    Reason.BAD_ROW: "correct the row",
    Reason.CONFLICTING_SPLIT: "give all rows of a patient the same split",
    Reason.NO_CLINICAL_ROW: "nothing, or add the row; without it the patient counts as unknown",
    Reason.CLINICAL_ROW_WITHOUT_PATIENT: "see whether its pseudonym is right and whether scans are missing",
    Reason.NOT_DICOM: "nothing, unless it is a zip or another archive: unpack it and import again",
    Reason.NOT_AN_IMAGE: _NOTHING,
    Reason.LOCALISER: _NOTHING,
    Reason.SECONDARY_CAPTURE: _NOTHING,
    Reason.BURNED_IN_TEXT: _NOTHING,
    Reason.DERIVED: "nothing; where it is wanted, a series rule with over_facts names it",
    Reason.DOSE: _NOTHING,
    Reason.REPORT: _NOTHING,
    Reason.NO_MODALITY: "write a series rule for its Series Description into the site config and import again",
    Reason.MODALITY_NOT_WANTED: "nothing, unless that was a mistake",
    Reason.NO_PATIENT: "where each patient has a folder, import with --patient-folders",
    Reason.NO_GEOMETRY: _EXPORT,
    Reason.MISSING_SLICES: _EXPORT,
    Reason.IRREGULAR_SLICES: "see whether slices are missing or stacks are mixed; export the series again",
    Reason.TIME_SERIES: _NOTHING,
    Reason.UNDECODABLE: "export it uncompressed",
    Reason.UNKNOWN_UNIT: "export it in a unit with a definition: HU, Bq/ml or SUV by body weight",
    Reason.NO_ATTENUATION_CORRECTION: "nothing; export the corrected series where it is missing",
    Reason.NO_WEIGHT: "correct the weight in the archive and export again",
    Reason.NO_INJECTED_DOSE: "correct the dose in the archive and export again",
    Reason.NO_INJECTION_TIME: "correct the time in the archive and export again",
    Reason.STRUCTURES_WITHOUT_IMAGE: "export the image that they were drawn on, too",
    Reason.EMPTY_STRUCTURE: _NOTHING,
    Reason.DEFACING_FAILED: "see the log beside the site's secret, mend the program and import again",
}
"""What a site can do about it; as a rule it need not do anything."""

AS_IT_SHOULD_BE = frozenset(reason for reason, text in REMEDY.items() if text == _NOTHING)
"""Reasons that no site has to look into."""


def meaning(reason: str) -> str:
    """What a reason's word means; empty for a word that is not known."""
    try:
        return MEANING.get(Reason(reason), "")
    except ValueError:
        return ""


VERDICTS: dict[str, str] = {
    "accepted": "accepted",
    "unusable": "refused: a volume cannot be read or shows no body",
    "no_overlap": "refused: they do not see enough of the same place",
    "large_turn": "refused: turned by more than a patient turns",
    "metric_worse": "refused: the intensities fit worse than before",
    "overlap_worse": "refused: the bodies overlap too little, or less than before",
    "halves_disagree": "refused: halves of the body, aligned alone, go to different places",
    "fits_mirrored": "refused: it fits mirrored nearly as well, as another patient's scan does",
    "failed": "not decided: an error",
}
"""The verdicts of the registration."""

_UNITS = {
    "CT": "HU",
    "CBCT": "HU",
    "PET": "SUV",
    "ADC": "10\N{SUPERSCRIPT MINUS}\N{SUPERSCRIPT SIX} mm\N{SUPERSCRIPT TWO}/s",
}


def verdict(word: str) -> str:
    """What the registration decided, in a sentence; a word that is not known as it may stand on the page."""
    return VERDICTS.get(word) or shown(word)


def unit(modality: str) -> str:
    """The unit that values of a modality should have; empty where the scanner's scale is its own."""
    return _UNITS.get(modality, "")


def is_as_it_should_be(reason: str) -> bool:
    """Whether nobody has to look into a reason; a word that is not known is worth a look."""
    return any(reason == one.value for one in AS_IT_SHOULD_BE)


def remedy(reason: str) -> str:
    """What a site can do about a reason; empty for a word that is not known."""
    try:
        return REMEDY.get(Reason(reason), "")
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
