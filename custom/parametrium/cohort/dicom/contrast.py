"""The contrast of an MR volume, from what its sequence did and not from what it was called.

Limits in milliseconds, wider than any one field strength needs. Source of TR and TE: Ridgway, J Cardiovasc Magn Reson
2010;12:71, Table 1 (spin echo: short TR 400 to 800, long TR 1500 to 2500, short TE 6 to 25, long TE 60 to 100; gradient
echo: T2* from TE 7 to 15). An inversion nulls what has T1 = TI / ln 2, somewhat longer at a finite TR: fat (0.25 to
0.4 s) in STIR, fluid (near 4 s) in FLAIR. A spoiled gradient echo turns from proton density to T1 at the Ernst angle,
arccos(exp(-TR / T1)).

===========================  =========================================================================================
T1, spin echo                TR < 1000 (800, and a quarter more for 3 T) and TE <= 30
T2, spin echo                TE >= 60, and TR >= 1500, or >= 1000 for single shot and 3D with driven equilibrium
proton density, spin echo    TR >= 1500 and TE <= 45; no modality of ours
FLAIR                        TI 1600 to 3000, TR >= 4000, TE >= 60
STIR                         inversion with TI 80 to 350; no modality of ours
T1, inversion                TI 350 to 1300 and TE <= 30: T1 FLAIR, MPRAGE, BRAVO, T1 TFE
T1, spoiled gradient echo    TE < 10, TR <= 500, flip angle at least the Ernst angle of tissue with T1 = 1 s
T2*, gradient echo           TE >= 10; no modality of ours, nor is steady-state precession (T2/T1)
===========================  =========================================================================================

What lies between is not decided here.
"""

import math
import re

from parametrium.cohort.dicom.exclusion import image_type_words
from parametrium.cohort.dicom.facts import Choice, Facts
from parametrium.cohort.problem import Reason

_TISSUE_T1 = 1000.0
_LARGEST_B = 20_000.0  # s/mm2; research scanners reach it, and a larger one is another vendor's code

# Families of sequences by the vendors' names in Sequence Name and Pulse Sequence Name; the first that matches counts.
# Siemens: tse2d, spc3d, h2d, tir2d, tfl3d, fl3d, fldyn3d, tfi2d, me2d, ep_b, re_b, ez_b, epfid2d, epse2d. Philips: TSE,
# TIR, FFE, TFE, DwiSE, SEEPI, FEEPI. GE: FSE, FRFSE, SSFSE, CUBE, FSPGR, LAVA, BRAVO, FIESTA, MERGE. Canon: FASE.
_NAMES = (
    ("diffusion", r"^\*?(EP|RE|EZ|EK)_B\d|DIFF|DWI|RESOLVE"),
    ("gradient EPI", r"EPFID|FEEPI|FE-EPI|GRE-?EPI|BOLD"),
    ("EPI", r"EPSE|SEEPI|SE-EPI|EP2D|\bEPI"),
    ("steady state", r"^\*?(TFI|FI|CI|PS|DE)\dD|FIESTA|TRUFI|TRUEFISP|B-?FFE|B-?TFE|SSFP|CISS|DESS|PSIF|COSMIC"),
    ("T2*", r"SWI|SWAN|^\*?ME\dD|MEDIC|MERGE|T2_?STAR|FM\dD|QSM"),
    ("prepared", r"TFL3D|MP2?RAGE|BRAVO|IR-?F?SPGR|T1-?TFE"),
    ("inversion", r"^\*?T?IR(\dD|$|[ _-])|TIRM?\b|SPCIR|FLAIR|STIR"),
    ("single shot", r"HASTE|^\*?H\dD|SS-?FSE|SS-?TSE|SINGLE.?SHOT|FASE"),
    ("spin echo", r"TSE|FSE|^\*?SE(\dD|$)|SPC|SPACE|CUBE|VISTA|\bVIEW\b|RARE|MVOX"),
    ("gradient echo", r"^\*?(Q?FL|TFL|F)(DYN)?\dD|FFE|TFE|FLASH|SPGR|VIBE|LAVA|THRIVE|TWIST|TRICKS|DISCO|\bF?GRE\b"),
)
_FAMILIES = tuple((family, re.compile(pattern)) for family, pattern in _NAMES)

_TRACE_WORDS = frozenset({"TRACEW", "TRACE", "ISODWI", "ISO_DWI", "ISOTROPIC"})
_DECLARED = (  # PS3.3 C.8.13.3.1.1, and Philips' classic images
    ("FLUID_ATTENUATED", "FLAIR"),
    ("T1", "T1"),
    ("T2", "T2"),
)
_DECLARED_OUTSIDE = frozenset({"PROTON_DENSITY", "STIR", "T2_STAR", "TOF", "PERFUSION", "FMRI", "FLOW_ENCODED"})


def is_diffusion_coefficient(facts: Facts) -> bool:
    """Whether Image Type or the unit says ADC; exponential maps and averages of them are not."""
    words = image_type_words(facts)
    named = any(word == "ADC" or word.startswith(("ADC_", "ADC-")) for word in words)
    return (named or "MM2/S" in facts.units or "UM2/S" in facts.units) and not words & {"EXP", "EADC"}


def contrast(facts: Facts) -> Choice | None:
    """The contrast of one MR stack.

    Returns:
        A modality; or none with ``Reason.NO_MODALITY`` for a contrast that the vocabulary has no word for; or None
        where the header does not tell.
    """
    family = sequence_family(facts)
    diffusion = _diffusion(facts, family)
    if diffusion is not None:
        return diffusion
    if family in ("gradient EPI", "T2*"):
        return _outside("facts: gradient echo with T2* weighting")
    if family == "steady state":
        return _outside("facts: steady-state free precession")
    if family in ("EPI", "diffusion"):
        return None  # spin-echo EPI is diffusion or perfusion, and without a b-value nobody knows
    decided = _inversion(facts, family)
    if decided is None and family in ("spin echo", "single shot"):
        decided = _spin_echo(facts, family)
    if decided is None and family in ("gradient echo", "prepared"):
        decided = _gradient_echo(facts)
    if decided is None and facts.echo_time_ms is None:
        decided = _declared(facts)
    return enhanced(decided, facts) if decided is not None else None


def enhanced(choice: Choice, facts: Facts) -> Choice:
    """T1 with an agent is T1c, and DCE when it shows several time points; every other contrast keeps its name."""
    if choice.modality != "T1" or not facts.contrast_agent:
        return choice
    if facts.contrast_phase or facts.time_points > 1:
        return Choice("DCE", f"{choice.rule}, agent, several times", sure=choice.sure)
    return Choice("T1c", f"{choice.rule}, agent", sure=choice.sure)


def sequence_family(facts: Facts) -> str:
    """Which of the families in ``_NAMES`` made it: by Scanning Sequence, refined by the name; empty where unknown."""
    name = facts.sequence_name[:64]
    named = next((family for family, pattern in _FAMILIES if pattern.search(name)), "")
    kinds = set(facts.scanning_sequence)
    if "EP" in kinds:
        return named if named in ("diffusion", "gradient EPI") else ("gradient EPI" if "GR" in kinds else "EPI")
    if named in ("", "spin echo", "gradient echo"):
        named = _by_scanning_sequence(kinds, facts) or named
    if "IR" in kinds and named in ("", "spin echo", "gradient echo"):
        return "prepared" if named == "gradient echo" else "inversion"
    return named


def _by_scanning_sequence(kinds: set[str], facts: Facts) -> str:
    """PS3.3 C.8.3.1.1.1: SE, GR; both together is a hybrid that is not told here."""
    if ("SE" in kinds) == ("GR" in kinds):
        return ""
    if "SE" in kinds:
        return "spin echo"
    steady = "SS" in facts.sequence_variant and not {"SP", "MP"} & set(facts.sequence_variant)
    return "steady state" if steady else "gradient echo"


def _diffusion(facts: Facts, family: str) -> Choice | None:
    """Diffusion-weighted images, by b-value.

    A b-value of 0 in a diffusion series is its reference: T2-weighted, fat-suppressed and distorted as its EPI, so it
    is neither DWI nor the T2 of the pelvis, and is left to the site's rules. Outside EPI it says nothing: Philips
    writes it into every image.
    """
    words = image_type_words(facts)
    b = facts.b_value
    if b is not None and 0 < b <= _LARGEST_B:
        return Choice("DWI", "facts: b-value above 0")
    if b == 0 and (family in ("diffusion", "EPI") or words & ({"DIFFUSION"} | _TRACE_WORDS)):
        return _outside("facts: b-value 0 of a diffusion series")
    if words & _TRACE_WORDS:
        return Choice("DWI", "facts: image type of trace-weighted diffusion")
    return None


def _inversion(facts: Facts, family: str) -> Choice | None:
    """By the inversion time; one of 0 is absent."""
    inversion = facts.inversion_time_ms
    if inversion is None or inversion <= 0:
        return None
    if _within(inversion, 1600, 3000) and _from(facts.repetition_time_ms, 4000) and _from(facts.echo_time_ms, 60):
        return Choice("FLAIR", "facts: TI, TR and TE long")
    if family == "inversion" and _within(inversion, 80, 350):
        return _outside("facts: inversion with short TI")
    if family in ("inversion", "prepared") and _within(inversion, 350, 1300) and _within(facts.echo_time_ms, 0, 30):
        return Choice("T1", "facts: inversion with medium TI, TE short")
    return None


def _spin_echo(facts: Facts, family: str) -> Choice | None:
    repetition, echo = facts.repetition_time_ms, facts.echo_time_ms
    if family == "single shot":
        return Choice("T2", "facts: TE long, single-shot spin echo") if _from(echo, 60) else None
    if _within(repetition, 50, 1000, below=True) and _within(echo, 0, 30):
        return Choice("T1", "facts: TR and TE short, spin echo")
    long = _from(repetition, 1500) or (_from(repetition, 1000) and _from(echo, 80))
    if long and _from(echo, 60):
        return Choice("T2", "facts: TR and TE long, spin echo")
    if _from(repetition, 1500) and _within(echo, 0, 45):
        return _outside("facts: TR long, TE short, spin echo")
    return None


def _gradient_echo(facts: Facts) -> Choice | None:
    repetition, echo, flip = facts.repetition_time_ms, facts.echo_time_ms, facts.flip_angle_deg
    if _from(echo, 10):
        return _outside("facts: gradient echo with T2* weighting")
    if not (_within(repetition, 0, 500) and _within(echo, 0, 10, below=True)):
        return None
    if repetition is None or flip is None:
        return None
    if flip >= math.degrees(math.acos(math.exp(-repetition / _TISSUE_T1))):
        return Choice("T1", "facts: TR and TE short, spoiled gradient echo")
    return _outside("facts: gradient echo below the Ernst angle")


def _declared(facts: Facts) -> Choice | None:
    """What Image Type itself calls the contrast, asked where the header has no echo time to judge by."""
    words = image_type_words(facts)
    if words & _DECLARED_OUTSIDE:
        return _outside("facts: image type of a contrast without a name")
    found = [modality for word, modality in _DECLARED if word in words]
    return Choice(found[0], "facts: image type names the contrast") if len(found) == 1 else None


def _outside(rule: str) -> Choice:
    return Choice(None, rule, Reason.NO_MODALITY)


def _from(value: float | None, low: float) -> bool:
    return value is not None and low <= value < math.inf


def _within(value: float | None, low: float, high: float, *, below: bool = False) -> bool:
    """Whether ``low`` < value <= ``high``, or < ``high`` with ``below``."""
    return value is not None and low < value and (value < high if below else value <= high)
