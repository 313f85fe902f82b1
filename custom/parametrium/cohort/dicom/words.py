"""Words that people use in Series Description and Protocol Name, the last resort of the import.

The description counts before the protocol, which often names a whole examination. Only whole words count: ``t1`` is
found in ``AX_T1_FS`` and not in ``ST1234``.
"""

import re

from parametrium.cohort.dicom.facts import Choice, Facts
from parametrium.cohort.problem import Reason

_LENGTH = 64  # of a text in the header (LO, PS3.5 6.2)

# In this order: a T2* is no T2, a T1 FLAIR no FLAIR, an ADC map of a diffusion series no DWI.
_NAMES = (
    (None, "exponential map", r"eadc|exponential|exp adc"),
    ("ADC", "adc", r"d?adc|apparent diffusion( coefficient)?"),
    (None, "map", r"(t1|t2|t2star|r2|b0|b1|field|fieldmap) ?(map|mapping)|fa map|fieldmap|mapping"),
    (None, "angiography", r"tof|mra|angio\w*|phase contrast"),
    (None, "projection", r"mip|minip|mrcp|urogra\w*|myelogra\w*"),
    (None, "susceptibility", r"swi|swan|venobold|qsm|t2 ?star|t2 ?\*|medic|merge"),
    (None, "functional", r"bold|fmri|resting( state)?|asl|pcasl|spectroscopy|mrs"),
    ("DCE", "dce", r"dce|dyn|dynamic|twist|tricks|disco|perf|perfusion"),
    ("DWI", "dwi", r"dwi|dw|diff|diffusion|resolve|b ?\d{2,4}"),
    (None, "stir", r"stir|tirm"),
    ("T1", "t1 flair", r"t1w? flair"),
    ("FLAIR", "flair", r"flair"),
    (None, "proton density", r"pdw?i?|proton density|proton"),
    ("CBCT", "cbct", r"(kv|mv|i)?cbct|cone beam( ct)?|conebeam"),
)
_PATTERNS = tuple((modality, name, re.compile(rf"(?<= )({pattern})(?= )")) for modality, name, pattern in _NAMES)
_T1 = re.compile(r" (t1|t1w|t1wi|t1c|t1ce|t1gd|t1fs|mprage|bravo|vibe|lava|thrive) ")
_T2 = re.compile(r" (t2|t2w|t2wi|t2fs|haste|ssfse) ")

_LOCALISER = re.compile(
    r" (localizer|localiser|loc|scout|survey|surview|topogram|topo|pilot|plan ?scan|3 ?plane|three plane|tri ?plane"
    r"|calibration|asset cal|ref ?scan|reference scan|smart ?brain|aahead scout|shim\w*) "
)
_UNCORRECTED = re.compile(r" (nac|no ?ac|non ac|uncorrected|without ac|w o ac|ohne ac|noac|nonac) ")
_AGENT = re.compile(
    r" (\+ ?(c|gd|gad|km|cm|gado)|c ?\+|gd|gad|gado|gadolinium|ce|km|kontrast|contrast|contraste|postcontrast|postgd"
    r"|t1c|t1ce|t1gd|enhanced|inj|injected|gadovist|dotarem) "
)
_POST = re.compile(r" post (?!op|rt|treat|radi|chemo|brachy|surg|thera|insert|void|mict|lamp)")
_NO_AGENT = re.compile(
    r" (pre|precontrast|without|w o|wo|no|non|unenhanced|noncontrast|nativ|native|ohne|sans|sin|minus) "
)


def modality_of(facts: Facts) -> Choice | None:
    """What the words say: a modality, or none with ``Reason.NO_MODALITY`` for a contrast that has no name here.

    Words that name both T1 and T2 say nothing.
    """
    return _named(_spaced(facts.description)) or _named(_spaced(facts.protocol))


def modality_of_series(facts: Facts) -> Choice | None:
    """As ``modality_of``, from the series' own text only: a protocol may name the examination."""
    return _named(_own(facts))


def is_localiser(facts: Facts) -> bool:
    """Whether a word says that the series was made to plan others."""
    return bool(_LOCALISER.search(_own(facts)))


def is_attenuation_uncorrected(facts: Facts) -> bool:
    """Whether a word says that PET is without attenuation correction."""
    return bool(_UNCORRECTED.search(_own(facts)))


def is_contrast_enhanced(facts: Facts) -> bool:
    """Whether a word says that an agent was given, and none that it was not."""
    text = _own(facts)
    return bool(_AGENT.search(text) or _POST.search(text)) and not _NO_AGENT.search(text)


def _own(facts: Facts) -> str:
    return _spaced(facts.description if facts.description.strip() else facts.protocol)


def _named(text: str) -> Choice | None:
    for modality, name, pattern in _PATTERNS:
        if pattern.search(text):
            reason = Reason.NO_MODALITY if modality is None else None
            return Choice(modality, f"words: {name}", reason, sure=False)
    first, second = bool(_T1.search(text)), bool(_T2.search(text))
    if first == second:
        return None
    return Choice("T1", "words: t1", sure=False) if first else Choice("T2", "words: t2", sure=False)


def _spaced(text: str) -> str:
    """Small letters, words between single blanks."""
    words = re.sub(r"[^a-z0-9+*]+", " ", text[:_LENGTH].lower()).replace("+", " + ").split()
    return f" {' '.join(words)} "
