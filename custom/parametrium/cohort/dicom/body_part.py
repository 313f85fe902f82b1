"""Whether a scan can show a face, as far as its header tells.

Body Part Examined, Series Description and Protocol Name are read; the first is often set by a habit of the protocol, so
any of the three that names a head counts before any that names another part. Words are those that archives are seen to
hold in English, German, French, Spanish, Italian and Dutch. A whole body has a face too.
"""

import re
import unicodedata
from collections.abc import Sequence
from typing import Literal

from parametrium.cohort.dicom.facts import Facts

Region = Literal["head", "elsewhere", "unknown"]

_LENGTH = 64  # of a text in the header (LO, PS3.5 6.2)

# A cervix is no neck: of the cervical only the spine counts. Nor is the head or neck of a bone or an organ.
_HEAD = re.compile(
    r" ((?<!femoral )(?<!femur )(?<!humeral )(?<!humerus )(?<!radial )(?<!bladder )(?<!pancreatic )(?<!pancreas )"
    r"(head(?! first )|neck)\w*|skull\w*|crani\w*|crane|brain\w*|cerebr\w*|encephal\w*|neuro\w*|face|faces|facial"
    r"|maxill\w*|mandib\w*|jaw|tmj|dental|teeth|tongue|orbit\w*|eye|eyes|ear|ears|nose|nasal|nasoph\w*|oroph\w*"
    r"|sinus|sinuses|paranasal|mastoid\w*|petrous|iac|iam|sella\w*|pituitary|hypophys\w*|pharyn\w*|laryn\w*"
    r"|parotid\w*|salivary|thyroid|carotid\w*|carotis|cspine|c spine|cervical spine|spine cervical|hn|h n"
    r"|kopf\w*|hals\w*|schadel\w*|schaedel\w*|hirn\w*|gehirn|gesicht\w*|nnh|hws|cct|tete|cou|cerveau|rachis cervical"
    r"|cabeza|cuello(?!( del)? uter)|cerebro|craneo|cara|testa|collo(?!( dell)? uter)|cervello|encefalo|volto"
    r"|hoofd|hersenen|schedel|gezicht"
    r"|wholebody|whole body|total body|wb|ganzkorper|ganzkoerper|corps entier|cuerpo entero|total ?body) "
)
_ELSEWHERE = re.compile(
    r" (pelvi\w*|abd|abdom\w*|chest\w*|thora\w*|torax|lungs?|heart|cardiac|breasts?|mamma|liver|kidneys?|renal|spleen"
    r"|pancrea\w*|prostat\w*|uter\w*|cervix|vagina\w*|bladder|rect(um|al)|ovar\w*|hips?|femur|femoral|thighs?|knees?"
    r"|legs?|calf|ankles?|f(oo|ee)t|hands?|wrists?|elbows?|arms?|shoulders?|extremit\w*|tspine|t spine|lspine|l spine"
    r"|thoracic spine|lumbar|sacrum|coccyx|becken|bauch|lunge|leber|niere|huftes?|hufte|knie|lws|bws"
    r"|bassin|foie|poumons?|genou|hanche|pelvien|higado|rodilla|bacino|addome|torace|bekken|buik|borst|lever) "
)


def region_of(facts: Facts, words: Sequence[str] = ()) -> Region:
    """``head`` where anything names one, ``elsewhere`` where only other parts are named, ``unknown`` where none is.

    Args:
        facts: of a stack.
        words: a hospital's own for a head, in any writing; found as whole words.
    """
    texts = [_plain(text) for text in (facts.body_part, facts.description, facts.protocol)]
    own = [plain for word in words if (plain := _plain(word)).strip()]
    if any(_HEAD.search(text) or any(word in text for word in own) for text in texts):
        return "head"
    return "elsewhere" if any(_ELSEWHERE.search(text) for text in texts) else "unknown"


def _plain(text: str) -> str:
    """Small letters without accents, words between single blanks."""
    letters = unicodedata.normalize("NFKD", text[:_LENGTH].lower().replace("ß", "ss"))
    bare = "".join(letter for letter in letters if not unicodedata.combining(letter))
    words = re.findall(r"[^\W_]+", bare)
    return f" {' '.join(words)} "
