"""CT or cone-beam CT: both come as CT Image Storage, and only the maker and the model tell them apart."""

import re

from parametrium.cohort.dicom.exclusion import image_type_words, scanner_of
from parametrium.cohort.dicom.facts import Facts

# Makers of treatment machines build no fan-beam kV CT: what they reconstruct is cone-beam. Their planning systems
# send other makers' CT on, and are told by the model.
_LINAC_MAKERS = re.compile(r"\b(VARIAN|ELEKTA)\b")
_PLANNING = re.compile(r"\b(ECLIPSE|ARIA|VELOCITY|VISION|SOMAVISION|MONACO|XIO|MOSAIQ|FOCAL|PROKNOW|ONCENTRA)\b")

_LINACS = re.compile(
    r"\b(OBI|ON-?BOARD IMAGER|TRUEBEAM|HALCYON|ETHOS|HYPERSIGHT|CLINAC|TRILOGY|XVI|VERSA ?HD|ARTISTE|ONCOR|PRIMUS)\b"
)
_ARMS = re.compile(
    r"\b(ARTIS\w*|AXIOM-ARTIS|ALLURA\w*|AZURION|INNOVA\w*|DISCOVERY IGS\w*|INFINIX\w*|CIOS\w*|ZIEHM\w*|O-?ARM\w*"
    r"|LOOP-?X|ARCADIS\w*|VERADIUS|XPERCT|DYNACT)\b"
)
_DENTAL = re.compile(
    r"\b(NEWTOM\w*|QR ?SRL|I-?CAT\w*|IMAGING SCIENCES|PLANMECA|PROMAX\w*|GALILEOS|ORTHOPHOS\w*|AXEOS|CARESTREAM DENTAL"
    r"|CS ?9\d{3}|CS ?8\d{3}|KODAK 9\d{3}|MORITA|ACCUITOMO\w*|VERAVIEW\w*|VATECH|PAX-?\w+|KAVO|SOREDEX|SCANORA\w*"
    r"|CRANEX\w*|GENDEX|ORTHOPANTOMOGRAPH|OP ?300|OP3D|ACTEON|PREXION|HDX|KONING)\b"
)
_LENGTH = 64  # of a text in the header (LO, PS3.5 6.2)
_WORDS = frozenset({"CBCT", "CONE_BEAM", "CONEBEAM", "KVCBCT", "MVCBCT", "CONE-BEAM"})


def is_cone_beam(facts: Facts) -> bool:
    """Whether the header's facts say cone-beam: SOP class, Image Type, or a maker or model known for it.

    Any CT object of Varian or Elekta (OBI, TrueBeam, Edge, Halcyon, Ethos; XVI on Synergy, Infinity, Versa HD; Gamma
    Knife Icon) that no planning system wrote; treatment machines of Siemens; C-arms; dental and breast systems. Names
    that fan-beam CT bear too (Edge, Synergy) count with their maker only.
    """
    if scanner_of(facts) == "CBCT":
        return True
    if scanner_of(facts) != "CT":
        return False
    if image_type_words(facts) & _WORDS:
        return True
    if _LINAC_MAKERS.search(facts.manufacturer[:_LENGTH]):
        return not _PLANNING.search(facts.model[:_LENGTH])
    device = f"{facts.manufacturer[:_LENGTH]} {facts.model[:_LENGTH]}"
    return any(pattern.search(device) for pattern in (_LINACS, _ARMS, _DENTAL))


def is_megavoltage(facts: Facts) -> bool:
    """Helical megavoltage CT of tomotherapy: neither CT nor cone-beam in contrast."""
    return "TOMOTHERAPY" in facts.manufacturer or "HI-ART" in facts.model or "HI ART" in facts.model
