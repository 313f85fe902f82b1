"""Which DICOM objects are no volume of ours: by SOP class, by Image Type, and because text is burned into them.

Image Type (PS3.3 C.7.6.1.1.2, C.8.3.1.1.1, C.8.16.1) has two standard values and then words of the modality and the
vendor; a word counts wherever it stands behind the first two.
"""

import re

from pydicom.uid import (
    BasicTextSRStorage,
    CTImageStorage,
    EncapsulatedCDAStorage,
    EncapsulatedPDFStorage,
    EnhancedCTImageStorage,
    EnhancedMRImageStorage,
    EnhancedPETImageStorage,
    KeyObjectSelectionDocumentStorage,
    LegacyConvertedEnhancedCTImageStorage,
    LegacyConvertedEnhancedMRImageStorage,
    LegacyConvertedEnhancedPETImageStorage,
    MRImageStorage,
    PositronEmissionTomographyImageStorage,
    RTDoseStorage,
    SecondaryCaptureImageStorage,
    XRay3DAngiographicImageStorage,
    XRay3DCraniofacialImageStorage,
)

from parametrium.cohort.dicom.facts import Choice, Facts
from parametrium.cohort.problem import Reason

_SCANNERS = {
    CTImageStorage: "CT",
    EnhancedCTImageStorage: "CT",
    LegacyConvertedEnhancedCTImageStorage: "CT",
    MRImageStorage: "MR",
    EnhancedMRImageStorage: "MR",
    LegacyConvertedEnhancedMRImageStorage: "MR",
    PositronEmissionTomographyImageStorage: "PT",
    EnhancedPETImageStorage: "PT",
    LegacyConvertedEnhancedPETImageStorage: "PT",
    XRay3DAngiographicImageStorage: "CBCT",
    XRay3DCraniofacialImageStorage: "CBCT",
}
_BY_MODALITY = ("CT", "MR", "PT")

_REPORTS = f"{BasicTextSRStorage.rpartition('.')[0]}."  # every structured report has this root
_DOCUMENTS = (EncapsulatedPDFStorage, EncapsulatedCDAStorage)
_CAPTURES = f"{SecondaryCaptureImageStorage}."  # multi-frame ones have this root

_OTHER_MODALITIES = {
    "RTDOSE": Reason.DOSE,
    "SR": Reason.REPORT,
    "DOC": Reason.REPORT,
    "OT": Reason.SECONDARY_CAPTURE,
    "SC": Reason.SECONDARY_CAPTURE,
}

_CAPTURE_WORDS = frozenset({"SCREEN", "SCREENSHOT", "SCREENSAVE", "CAPTURE", "PROT", "DISPLAY", "DOSE_INFO"})
_LOCALISER_WORDS = frozenset({"LOCALIZER", "LOCALISER", "SCOUT", "TOPOGRAM", "SURVIEW", "SURVEY", "CONSTANT_ANGLE"})
_REFORMATTED_WORDS = frozenset(
    {"MPR", "MPR_RANGE", "REFORMATTED", "REFORMAT", "RESAMPLED", "CPR", "CURVED", "MIP", "MAX_IP", "MIN_IP", "MINIP"}
    | {"MNIP", "PROJECTION", "PROJECTION_IMAGE", "VOLREN", "VOLUME_RENDERED", "VR", "VRT", "SSD", "3D_RENDERING"}
)  # fmt: skip
_COMPUTED_WORDS = frozenset(
    {"SUBTRACTION", "SUBTRACT", "SUB", "DIVISION", "ADDITION", "RATIO", "STDDEV"}
    | {"FA", "COLFA", "RA", "TENSOR", "TENSOR_B0", "EXP", "EADC", "CALC_BVALUE"}
    | {"TTP", "MTT", "CBF", "CBV", "RCBF", "RCBV", "RELCBF", "RELCBV", "RELMTT", "PBP", "KTRANS", "KEP"}
    | {"T1_MAP", "T1MAP", "T2_MAP", "T2MAP", "T2STAR_MAP", "T2_STAR_MAP", "R2_MAP", "R2STAR_MAP", "R2_STAR_MAP", "MAP"}
    | {"B0_MAP", "B1_MAP", "FIELD_MAP", "PHASE_MAP", "VELOCITY", "VELOCITY_MAP", "TEMPERATURE", "METABOLITE_MAP"}
)  # fmt: skip
_PHASE_WORDS = frozenset({"P", "PHASE", "R", "REAL", "I", "IMAGINARY"})
_FAT_WORDS = frozenset({"FAT", "F", "FAT_FRACTION", "FF", "FAT_FRAC"})
_OPPOSED_WORDS = frozenset({"OPP", "OPP_PHASE", "OP", "OUT_PHASE", "OUT_OF_PHASE", "OPPOSED", "OPPOSED_PHASE"})


def image_type_words(facts: Facts) -> frozenset[str]:
    """What Image Type says behind its first two values: whole values with blanks as underscores, and their parts."""
    words: set[str] = set()
    for value in facts.image_type[2:]:
        words.add(re.sub(r"\s+", "_", value.strip()))
        words.update(value.split())
    return frozenset(words)


def scanner_of(facts: Facts) -> str:
    """CT, CBCT (by its own SOP class), MR or PT; empty for everything else."""
    if facts.sop_class:
        return _SCANNERS.get(facts.sop_class, "")
    return facts.modality if facts.modality in _BY_MODALITY else ""


def no_volume(facts: Facts) -> Choice | None:
    """What no rule of a site can make a volume: objects without tomographic pixels, and pixels with text in them.

    Captures and burned-in text hold names: a rule about modalities must not let them in.
    """
    if facts.burned_in:
        return Choice(None, "facts: burned-in annotation", Reason.BURNED_IN_TEXT)
    if scanner_of(facts):
        if image_type_words(facts) & _CAPTURE_WORDS:
            return Choice(None, "facts: image type of a screen", Reason.SECONDARY_CAPTURE)
        return None
    if not facts.sop_class:
        reason = _OTHER_MODALITIES.get(facts.modality, Reason.NOT_AN_IMAGE)
        return Choice(None, "facts: modality of no volume", reason)
    return Choice(None, "facts: SOP class of no volume", _reason_of_class(facts.sop_class))


def left_out(facts: Facts) -> Choice | None:
    """What the header itself calls a localiser or a computed image; None for everything that may be a volume.

    A bare DERIVED and SECONDARY counts as computed in CT and MR, where it comes from reformations. PET keeps it:
    workstations write it when they turn counts into SUV; so do cone-beam systems for their reconstructions. Hence it
    is asked by ``is_secondary`` alone.
    """
    words = image_type_words(facts)
    if words & _LOCALISER_WORDS or facts.acquisition_type == "CONSTANT_ANGLE":
        return Choice(None, "facts: image type of a localiser", Reason.LOCALISER)
    if words & _REFORMATTED_WORDS:
        return Choice(None, "facts: image type of a reformation or projection", Reason.DERIVED)
    if words & _COMPUTED_WORDS:
        return Choice(None, "facts: image type of a computed map", Reason.DERIVED)
    if scanner_of(facts) == "MR" and (reason := _component(words)):
        return Choice(None, reason, Reason.DERIVED)
    return None


def is_secondary(facts: Facts) -> bool:
    """Whether Image Type begins with DERIVED and SECONDARY."""
    return tuple(word.strip() for word in facts.image_type[:2]) == ("DERIVED", "SECONDARY")


def _component(words: frozenset[str]) -> str:
    """Parts of complex or Dixon images that are no contrast of ours.

    Water and in-phase images have the contrast of the sequence that made them and stay.
    """
    if words & _PHASE_WORDS:
        return "facts: image type of phase, real or imaginary part"
    if words & _FAT_WORDS:
        return "facts: image type of a fat image"
    if words & _OPPOSED_WORDS:
        return "facts: image type of an opposed-phase image"
    return ""


def _reason_of_class(sop_class: str) -> Reason:
    if sop_class == RTDoseStorage:
        return Reason.DOSE
    if sop_class == KeyObjectSelectionDocumentStorage:
        return Reason.NOT_AN_IMAGE
    if sop_class.startswith(_REPORTS) or sop_class in _DOCUMENTS:
        return Reason.REPORT
    if sop_class == SecondaryCaptureImageStorage or sop_class.startswith(_CAPTURES):
        return Reason.SECONDARY_CAPTURE
    return Reason.NOT_AN_IMAGE
