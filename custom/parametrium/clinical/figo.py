"""FIGO stages of cervical cancer, editions 2009 and 2018, on one coarse scale.

Sources: Pecorelli, Int J Gynecol Obstet 2009;105:103 (2009); Bhatla et al., Int J Gynecol Obstet 2018;143 Suppl 2:22,
and its corrigendum 2019;147:279 (2018); both side by side in Int J Gynecol Pathol 2021;40:S92, Table 1.

=======  =========================  =========================================  =======================================
level    2009                       2018                                       what it is
=======  =========================  =========================================  =======================================
``I``    IA, IA1, IA2, I            IA, IA1, IA2, I                            microscopic (depth up to 5 mm)
``IB``   IB, IB1, IB2               IB, IB1, IB2, IB3                          confined to the cervix
``IIA``  IIA, IIA1, IIA2            IIA, IIA1, IIA2                            upper vagina, no parametrium
``IIB``  IIB                        IIB                                        parametrium
``III``  III, IIIA, IIIB            III, IIIA, IIIB, IIIC, IIIC1, IIIC2        lower vagina, pelvic wall, kidney; nodes
``IV``   IV, IVA, IVB               IV, IVA, IVB                               bladder, rectum; distant
=======  =========================  =========================================  =======================================

The editions differ where the scale does not look: 2018 cuts IB at 2 and 4 cm (IB1 of 2009 is IB1 or IB2 of 2018, IB2
is IB3), drops the width of IA (a few IB1 become IA), and moves every patient with positive nodes to IIIC, whatever the
stage was before. The last cannot be undone from a stage alone: the edition is kept, so that it can be looked at.
``I`` alone is the name of the lowest level and is read as that; ``II`` alone lies on two levels and is incomplete.
"""

import re
import unicodedata
from typing import NamedTuple

from parametrium.clinical.problem import ClinicalProblem

_EDITIONS = {"2009": 2009, "2014": 2009, "2018": 2018, "2019": 2018}  # 2014 repeats 2009, 2019 corrects 2018
_SINCE_2018 = re.compile(r"IB3|IIIC[12]?")
_STAGES = frozenset(
    {"I", "IA", "IA1", "IA2", "IB", "IB1", "IB2", "IB3", "II", "IIA", "IIA1", "IIA2", "IIB"}
    | {"III", "IIIA", "IIIB", "IIIC", "IIIC1", "IIIC2", "IV", "IVA", "IVB"}
)  # fmt: skip
_LEVELS = re.compile(r"IV|III|IIB|IIA|IB|I")
_SPELLING = re.compile(r"(?P<number>IV|I{1,3}|[1-4])(?P<letter>[ABC]?)(?P<digit>[1-3]?)(?P<method>[RP]{0,2})")
_YEAR = re.compile(r"(?<!\d)(?:19|20)\d\d(?!\d)", re.ASCII)
_NUMBERS = {"1": "I", "2": "II", "3": "III", "4": "IV"}
_LONGEST = 60  # characters; a longer cell is a sentence


class FigoStage(NamedTuple):
    """A stage that was understood.

    Attributes:
        stage: as the edition writes it, without the method (r, p) of finding nodes.
        level: of ``FIGO_LEVELS``.
        edition: 2009 or 2018.
    """

    stage: str
    level: str
    edition: int


def read_stage(cell: str, edition: int, edition_cell: str = "") -> FigoStage | ClinicalProblem:
    """Reads one stage: ``IIB``, ``2b``, ``Stage IIb``, ``FIGO IIB (2018)``, ``IB-3``, ``IIIC1r``.

    Args:
        cell: not empty.
        edition: of a stage that names none itself and has none in its row.
        edition_cell: the row's own edition; empty where unknown.
    """
    text = unicodedata.normalize("NFKC", cell).upper()  # the one character of a Roman number becomes its letters
    named = _YEAR.findall(text) + ([edition_cell] if edition_cell.strip() else [])
    told = {_edition_of(word) for word in named}
    if None in told:
        return ClinicalProblem.UNKNOWN_EDITION
    if len(told) > 1:
        return ClinicalProblem.CONFLICTING_EDITION
    return _stage(_YEAR.sub(" ", text), next((year for year in told if year is not None), edition))


def _edition_of(word: str) -> int | None:
    years = _YEAR.findall(word)
    return _EDITIONS.get(years[0]) if len(years) == 1 else None


def _stage(text: str, edition: int) -> FigoStage | ClinicalProblem:
    bare = re.sub(r"STAGE|STADIUM|STADE|ESTADIO|FIGO|CLINICAL|[\s()\[\]._,:;-]+", "", text)
    spelled = _SPELLING.fullmatch(bare) if len(text) <= _LONGEST else None
    if spelled is None:
        return ClinicalProblem.UNKNOWN_LEVEL
    number = _NUMBERS.get(spelled["number"], spelled["number"])
    stage = f"{number}{spelled['letter']}{spelled['digit']}"
    if stage not in _STAGES or (spelled["method"] and not stage.startswith("IIIC")):
        return ClinicalProblem.UNKNOWN_LEVEL
    if edition < 2018 and _SINCE_2018.fullmatch(stage):
        return ClinicalProblem.STAGE_NOT_IN_EDITION
    if stage == "II":
        return ClinicalProblem.INCOMPLETE_STAGE
    level = _LEVELS.match(stage)
    return FigoStage(stage, level[0], edition) if level else ClinicalProblem.UNKNOWN_LEVEL
