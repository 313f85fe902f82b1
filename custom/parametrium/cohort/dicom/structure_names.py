"""Names of structures that may be written: a small vocabulary instead of what somebody typed.

A structure's own name is free text and can hold a patient's. It is only compared with the words below, in English,
German and French as planning systems are seen to hold them; what is written is a word of ``VOCABULARY`` or a number.
"""

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence

_TARGETS = {
    "hrctv": ("hrctv", "hr ctv", "ctv hr", "ctvhr", "high risk ctv"),
    "irctv": ("irctv", "ir ctv", "ctv ir", "ctvir", "intermediate risk ctv"),
    "gtv_nodes": ("gtvn", "gtv n", "gtv ln", "gtvln", "gtv nodes", "gtv node", "gtv lk"),
    "ctv_nodes": ("ctvn", "ctv n", "ctv ln", "ctvln", "ctv nodes", "ctv node", "ctv lk", "ctv e"),
    "ptv_nodes": ("ptvn", "ptv n", "ptv ln", "ptvln", "ptv nodes", "ptv node", "ptv lk"),
    "edema": ("edema", "oedema", "oedem", "odem", "oedeme", "gtv edema"),
    "gtv": ("gtv", "gtvp", "gtvt"),
    "ctv": ("ctv", "ctvp", "ctvt"),
    "itv": ("itv",),
    "ptv": ("ptv", "ptvp", "ptvt"),
    "nodes": ("lymph node", "lymph nodes", "lymphnode", "nodes", "node", "lymphknoten", "ganglion", "ganglions"),
    "necrosis": ("necrosis", "nekrose", "necrose"),
    "tumour": ("tumour", "tumor", "tumeur", "neoplasm", "neoplasm primary", "lesion", "lasion"),
    "mass": ("mass",),
}
"""Targets, from the narrower to the wider: a name that fits several is the first of them."""

_ORGANS = {
    "bladder": ("bladder", "urinary bladder", "blase", "harnblase", "vessie"),
    "rectum": ("rectum", "rektum"),
    "sigmoid": ("sigmoid", "sigmoid colon", "colon sigmoid", "sigma", "sigmoide"),
    "anal_canal": ("anal canal", "analcanal", "analkanal", "canal anal", "anus"),
    "bowel": (
        *("bowel", "bowelbag", "bowel bag", "bowel small", "small bowel", "smallbowel", "bowel large", "large bowel"),
        *("bowel loops", "intestine", "small intestine", "large intestine", "colon", "darm", "dunndarm", "dickdarm"),
        *("intestin", "grele", "intestin grele", "sac intestinal"),
    ),
    "duodenum": ("duodenum",),
    "stomach": ("stomach", "magen", "estomac"),
    "liver": ("liver", "leber", "foie"),
    "spleen": ("spleen", "milz"),
    "pancreas": ("pancreas", "pankreas"),
    "uterus": ("uterus", "uteruscorpus", "gebarmutter"),
    "cervix": ("cervix", "cervix uteri", "uterine cervix", "zervix", "col uterin", "col de l uterus"),
    "vagina": ("vagina", "vagin"),
    "parametrium": ("parametrium", "parametria", "parametrien", "parametre", "parametres"),
    "prostate": ("prostate", "prostata"),
    "seminal_vesicles": ("seminal vesicle", "seminal vesicles", "seminalvesicle", "samenblase", "samenblasen"),
    "penile_bulb": ("penile bulb", "penilebulb", "bulbus penis"),
    "sacrum": ("sacrum",),
    "bones": ("bones", "bone", "pelvic bones", "bone pelvic", "knochen", "os"),
    "bone_marrow": ("bone marrow", "bonemarrow", "knochenmark", "moelle osseuse"),
    "body": (
        *("body", "external", "externe", "outline", "body outline", "patient outline", "patient", "korper", "koerper"),
        *("aussenkontur", "korperkontur", "contour externe", "corps"),
    ),
    "skin": ("skin", "haut", "peau"),
    "heart": ("heart", "herz", "coeur"),
    "aorta": ("aorta", "aorte"),
    "esophagus": ("esophagus", "oesophagus", "osophagus", "speiserohre", "oesophage", "esophage"),
    "trachea": ("trachea", "trachee"),
    "cord": (
        *("cord", "spinal cord", "spinalcord", "ruckenmark", "rueckenmark", "myelon", "moelle"),
        *("moelle epiniere",),
    ),
    "brainstem": ("brainstem", "brain stem", "hirnstamm", "tronc cerebral"),
    "brain": ("brain", "hirn", "gehirn", "cerveau", "encephale"),
    "larynx": ("larynx",),
    "mandible": ("mandible", "mandibula", "unterkiefer", "mandibule"),
    "thyroid": ("thyroid", "schilddruse", "thyroide"),
    "oral_cavity": ("oral cavity", "oralcavity", "cavity oral", "mundhohle", "cavite buccale"),
}
_PAIRED = {
    "lung": ("lung", "lungs", "lunge", "lungen", "poumon", "poumons"),
    "kidney": ("kidney", "kidneys", "niere", "nieren", "rein", "reins"),
    "ovary": ("ovary", "ovaries", "ovar", "ovarien", "ovaire", "ovaires"),
    "femoral_head": (
        *("femoral head", "femoral heads", "femoralhead", "femoralheads", "femur head", "femurhead", "head femur"),
        *("femheads", "femhead", "fem head", "fem heads", "femurkopf", "huftkopf", "hueftkopf", "caput femoris"),
        *("tete femorale", "tetes femorales", "femur head neck"),
    ),
    "femur": ("femur", "femurs", "femora"),
    "parotid": ("parotid", "parotids", "parotid gland", "glnd parotid", "parotis", "parotide", "parotides"),
    "submandibular": ("submandibular", "submandibular gland", "glnd submand", "submand"),
    "breast": ("breast", "breasts", "brust", "mamma", "sein"),
    "eye": ("eye", "eyes", "auge", "augen", "oeil"),
    "lens": ("lens", "lenses", "linse", "cristallin"),
    "optic_nerve": ("optic nerve", "opticnerve", "optic nrv", "opticnrv", "sehnerv", "nerf optique"),
    "cochlea": ("cochlea", "cochlee"),
}
_SIDES = {
    "left": ("left", "l", "lt", "li", "links", "linke", "linker", "gauche", "g"),
    "right": ("right", "r", "rt", "re", "rechts", "rechte", "rechter", "droit", "droite", "d"),
}
_CHANGED = (  # words that make another structure of an organ: its wall, a margin around it, what is left of it
    *("wall", "wand", "paroi", "prv", "ring", "minus", "without", "ohne", "sans", "not", "opt", "avoid", "sub", "eval"),
    *("cropped", "dose", "isodose", "isodosis", "shell", "margin", "couch", "bolus", "air", "gas"),
)
_INTERPRETED = {"EXTERNAL": "body", "GTV": "gtv", "CTV": "ctv", "PTV": "ptv"}

VOCABULARY = (
    *_TARGETS,
    *_ORGANS,
    *_PAIRED,
    *(f"{organ}_{side}" for organ in _PAIRED for side in _SIDES),
)
"""Every word that a structure can be named by, beside ``structure01``, ``structure02``, ..."""

_LONGEST_LABEL = 256


def safe_names(labels: Iterable[Sequence[str]], interpreted: Iterable[str] = ()) -> list[str]:
    """One name a structure, each different from the others.

    Args:
        labels: for each structure its texts, the most telling first: its label, then meanings of its codes.
        interpreted: for each structure its RT ROI Interpreted Type (PS3.3 C.8.8.8), empty where there is none.
    """
    kinds = list(interpreted)
    names: list[str] = []
    seen: dict[str, int] = {}
    for place, texts in enumerate(labels):
        word = next((word for text in texts if (word := vocabulary_word(text))), None)
        word = word or _INTERPRETED.get(kinds[place] if place < len(kinds) else "")
        if word is None:
            names.append(f"structure{place + 1:02d}")
            continue
        seen[word] = seen.get(word, 0) + 1
        names.append(word if seen[word] == 1 else f"{word}_{seen[word]}")
    return names


def vocabulary_word(label: str) -> str | None:
    """The word of ``VOCABULARY`` that a label means; None where it means none, or more than one of different organs."""
    tokens = _tokens(label)
    text = f" {' '.join(tokens)} "
    if any(f" {word} " in text for word in _CHANGED):
        return None
    target = next(_found(text, _TARGETS), None)
    organs = set(_widest(text))
    if target is not None:
        return None if organs - {"cervix", "uterus"} else target
    if len(organs) != 1:
        return None
    organ = organs.pop()
    sides = [side for side, words in _SIDES.items() if not set(words).isdisjoint(tokens)]
    return f"{organ}_{sides[0]}" if organ in _PAIRED and len(sides) == 1 else organ


def _found(text: str, table: dict[str, tuple[str, ...]]) -> Iterator[str]:
    return (word for word, phrases in table.items() if any(f" {phrase} " in text for phrase in phrases))


def _widest(text: str) -> Iterator[str]:
    """Organs of the longest phrases: bone marrow is no bone, and a femoral head is no femur."""
    phrases = [(phrase, organ) for table in (_ORGANS, _PAIRED) for organ, words in table.items() for phrase in words]
    for phrase, organ in sorted(phrases, key=lambda pair: -len(pair[0])):
        if f" {phrase} " in text:
            text = text.replace(f" {phrase} ", " ")
            yield organ


def _tokens(label: str) -> list[str]:
    """Lower-case words without accents; ``RParotid`` and ``PTV45`` are two words each."""
    label = label[:_LONGEST_LABEL].replace("œ", "oe").replace("Œ", "Oe").replace("ß", "ss")
    plain = "".join(c for c in unicodedata.normalize("NFKD", label) if not unicodedata.combining(c))
    parts = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z]{2})|(?<=[A-Za-z])(?=\d)", " ", plain)
    return re.findall(r"[a-z]+|\d+", parts.lower())
