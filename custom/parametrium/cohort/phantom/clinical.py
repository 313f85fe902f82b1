"""The patient behind the picture: latent causes, the FIGO stage that follows from them, and the clinical row.

Age, tumour volume and spread are drawn first; the body is drawn from them and the row is written from them, so that
what a clinician notes is what a radiologist sees. Frequencies are near those of published cervical cancer series;
the exact numbers are our choice.
"""

import math
from dataclasses import dataclass

import numpy as np

from parametrium.cohort.phantom.chance import around, between, happens, logistic, stream

COLUMNS = ("patient", "age", "figo_stage", "histology", "grade", "nodal_status", "hpv", "tumour_volume")
FIGO_STAGES = ("IA", "IB", "IIA", "IIB", "IIIA", "IIIB", "IIIC", "IVA", "IVB")
HISTOLOGIES = ("squamous", "adenocarcinoma", "adenosquamous", "other")
GRADES = ("G1", "G2", "G3")
NODAL_STATUS = ("none", "pelvic", "para_aortic")
HPV = ("negative", "positive")

MICROSCOPIC_ML = 0.5
"""A tumour up to this volume is stage IA: found by the microscope, hardly seen in a picture."""
_MICROSCOPIC_SHARE = 0.05

_NO_ROW_SHARE = 0.3
"""Of the rate of missing values, the share that loses its whole row: referred from elsewhere, no record."""


@dataclass(frozen=True)
class Spread:
    """Where the tumour has grown, as it will be drawn.

    Attributes:
        parametrium: reach beyond the cervix to the patient's (right, left), 0 none to 1 the pelvic side wall.
        vagina: reach down the vagina, 0 none, up to 1 the introitus; above 0.66 is the lower third.
        bladder: grows through the bladder wall.
        rectum: grows through the rectal wall.
        nodes: none, pelvic or para_aortic.
        bone: a metastasis in the pelvic bones.
    """

    parametrium: tuple[float, float]
    vagina: float
    bladder: bool
    rectum: bool
    nodes: str
    bone: bool


@dataclass(frozen=True)
class Profile:
    """What makes one patient's tissues differ from the textbook (see tissue.py for units).

    Attributes:
        bone_density: factor of the bone's HU, 1 in a young woman.
        muscle_fat: share of fat in muscle, 0 to 0.3.
        tumour_t2: factor of the tumour's T2 signal.
        tumour_adc: 10^-6 mm^2/s.
        tumour_suv: SUV.
        urine_suv: SUV of the bladder.
        bowel_uptake: factor of the bowel wall's SUV.
    """

    bone_density: float
    muscle_fat: float
    tumour_t2: float
    tumour_adc: float
    tumour_suv: float
    urine_suv: float
    bowel_uptake: float


@dataclass(frozen=True)
class Latent:
    """One patient's causes.

    Attributes:
        age: years.
        tumour_ml: intended tumour volume at diagnosis; what was drawn is measured afterwards.
        response: share of the tumour that is left after four weeks of treatment.
    """

    age: float
    histology: str
    grade: str
    hpv: str
    tumour_ml: float
    spread: Spread
    response: float
    profile: Profile

    @property
    def menopause(self) -> float:
        """0 before, 1 after; the years around 51 lie between."""
        return logistic((self.age - 51.0) / 2.0)

    @property
    def figo_stage(self) -> str:
        """FIGO 2018 (IIIC1 and IIIC2 joined), read from the spread as it is drawn."""
        spread = self.spread
        sideways = max(spread.parametrium)
        found = (
            ("IVB", spread.bone),
            ("IVA", spread.bladder or spread.rectum),
            ("IIIC", spread.nodes != "none"),
            ("IIIB", sideways > 0.9),
            ("IIIA", spread.vagina > 0.66),
            ("IIB", sideways > 0),
            ("IIA", spread.vagina > 0),
            ("IB", self.tumour_ml > MICROSCOPIC_ML),
        )
        return next((stage for stage, present in found if present), "IA")


def sample_latent(seed: int, site: str, index: int) -> Latent:
    """Draws one patient; the site shifts the case mix (referral centres see older patients and larger tumours)."""
    mix = stream("case mix", site)
    age_shift, size_shift = around(mix, 0, 4), around(mix, 0, 0.35)
    rng = stream(seed, site, index, "latent")
    age = float(np.clip(around(rng, 50 + age_shift, 13, 2.6), 22, 90))
    histology = str(rng.choice(HISTOLOGIES, p=(0.72, 0.17, 0.06, 0.05)))
    hpv = HPV[happens(rng, {"squamous": 0.95, "adenocarcinoma": 0.75, "adenosquamous": 0.85, "other": 0.35}[histology])]
    rank = int(rng.choice(3, p=(0.18, 0.47, 0.35)))
    size = around(rng, math.log(16) + size_shift + 0.3 * (rank - 1) + 0.008 * (age - 50), 1.15, 2.3)
    microscopic = happens(rng, _MICROSCOPIC_SHARE)
    tumour_ml = between(rng, 0.15, MICROSCOPIC_ML) if microscopic else float(np.clip(math.exp(size), 0.6, 130.0))
    return Latent(
        age=round(age, 1),
        histology=histology,
        grade=GRADES[rank],
        hpv=hpv,
        tumour_ml=tumour_ml,
        spread=_spread(rng, tumour_ml, rank),
        response=float(np.clip(around(rng, 0.35 - 0.1 * (hpv == "positive"), 0.12), 0.05, 0.8)),
        profile=_profile(rng, age, histology, rank),
    )


def _spread(rng: np.random.Generator, tumour_ml: float, rank: int) -> Spread:
    """The larger the tumour, the further it grows; a microscopic one stays."""
    size, grade = math.log(tumour_ml), rank - 1
    draws = rng.random(8)
    if tumour_ml <= MICROSCOPIC_ML:
        return Spread((0.0, 0.0), 0.0, False, False, "none", False)
    sideways = draws[0] < logistic(1.2 * (size - math.log(22)))
    wall = sideways and draws[1] < logistic(1.5 * (size - math.log(60)))
    reach = 1.0 if wall else between(rng, 0.35, 0.75)
    right, left = sideways and draws[2] < 0.75, sideways and draws[2] > 0.35
    parametrium = (reach if right else 0.0, reach if left else 0.0)
    vagina = 0.0
    if draws[3] < logistic(0.8 * (size - math.log(18))):
        vagina = between(rng, 0.7, 0.9) if draws[4] < 0.15 else between(rng, 0.15, 0.5)
    through = draws[5] < logistic(1.4 * (size - math.log(110)))
    node_odds = 0.9 * (size - math.log(45)) + 0.5 * grade + 0.6 * sideways
    nodes = "none" if draws[6] > logistic(node_odds) else ("para_aortic" if happens(rng, 0.25) else "pelvic")
    bone = bool(draws[7] < 0.25 * logistic(size - math.log(70)))
    bladder = bool(through and draws[2] < 0.7)
    return Spread(parametrium, vagina, bladder, bool(through and not bladder), nodes, bone)


def _profile(rng: np.random.Generator, age: float, histology: str, rank: int) -> Profile:
    years = (age - 50) / 15
    glandular = histology in ("adenocarcinoma", "other")
    return Profile(
        bone_density=float(np.clip(around(rng, 0.92 - 0.13 * years, 0.08), 0.55, 1.25)),
        muscle_fat=float(np.clip(around(rng, 0.09 + 0.05 * years, 0.04), 0.01, 0.30)),
        tumour_t2=around(rng, 1.12 if glandular else 1.0, 0.06),
        tumour_adc=around(rng, (1060 if glandular else 920) - 70 * (rank - 1), 45),
        tumour_suv=max(3.0, around(rng, (7.0 if glandular else 11.0) + 1.8 * (rank - 1), 1.8)),
        urine_suv=math.exp(around(rng, math.log(22), 0.45)),
        bowel_uptake=math.exp(around(rng, 0.0, 0.4)),
    )


def clinical_row(
    latent: Latent, name: str, tumour_ml: float, missing: float, rng: np.random.Generator
) -> dict[str, str]:
    """The patient's line in the hospital's table; empty where a value is missing at random.

    Args:
        latent: the causes.
        name: pseudonym.
        tumour_ml: volume of the tumour that was drawn in the first study.
        missing: probability in [0, 1] that a value is missing.
        rng: decides what is missing.

    Returns:
        Cells by column, or an empty mapping where the whole row is missing.
    """
    values = (
        f"{latent.age:.1f}",
        latent.figo_stage,
        latent.histology,
        latent.grade,
        latent.spread.nodes,
        latent.hpv,
        f"{tumour_ml:.2f}",
    )
    draws = rng.random(len(values) + 1)
    if draws[0] < _NO_ROW_SHARE * missing:
        return {}
    kept = (value if draw >= missing else "" for value, draw in zip(values, draws[1:], strict=True))
    return {"patient": name, **dict(zip(COLUMNS[1:], kept, strict=True))}
