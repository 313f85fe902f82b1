"""The measures of one body, drawn from the patient's causes, and of its hollow organs on one day.

Lengths are mm in the body before its own scaling; typical values follow anatomy atlases and pelvimetry of adult women.
"""

import math
from dataclasses import dataclass

import numpy as np

from parametrium.cohort.phantom.canvas import Point
from parametrium.cohort.phantom.chance import around, between, happens, stream
from parametrium.cohort.phantom.clinical import Latent


@dataclass(frozen=True)
class Anatomy:
    """What stays the same over a treatment.

    Attributes:
        scale: factor of the whole body along X, Y, Z.
        fat: thickness of subcutaneous fat at the hip.
        belly: extra depth of the abdomen by visceral fat.
        muscle: factor of muscle thickness.
        gaps: how far fat parts the bundles of the gluteal muscles, 0 to 1.
        cortex: thickness of cortical bone.
        flare: how far the iliac crests stand out to the side, beside the average.
        hip: distance of the femoral heads' centres from the midline.
        head: radius of the femoral head.
        neck_drop: drop of the femoral neck over its length: high is a steep (valgus) neck.
        sacrum_tilt: how much further back the sacrum's lower half lies.
        version: angle of the uterine body to the vertical, degrees; positive leans forward, negative backward.
        uterus: (length, half-width, half-depth) of the uterine body.
        endometrium: half-thickness of the endometrium.
        ovary: factor of the ovaries' size.
        cervix: radius of the cervix.
        calcified: share of the arteries' length that is calcified.
        sideways: sideways lean of the uterus, mm at the fundus.
    """

    scale: Point
    fat: float
    belly: float
    muscle: float
    gaps: float
    cortex: float
    flare: float
    hip: float
    head: float
    neck_drop: float
    sacrum_tilt: float
    version: float
    uterus: Point
    endometrium: float
    ovary: float
    cervix: float
    calcified: float
    sideways: float


@dataclass(frozen=True)
class Filling:
    """What changes from day to day.

    Attributes:
        bladder_ml: volume of the bladder.
        rectum: radius of the rectum.
        rectum_gas: share of the rectum's diameter that is gas, above the stool in a patient on her back.
        tumour_left: share of the tumour's volume that is left.
    """

    bladder_ml: float
    rectum: float
    rectum_gas: float
    tumour_left: float


def sample_anatomy(latent: Latent, seed: int, site: str, index: int) -> Anatomy:
    """Draws the measures of a body."""
    rng = stream(seed, site, index, "anatomy")
    old = latent.menopause
    overall = around(rng, 1.0, 0.035)
    obesity = float(np.clip(math.exp(around(rng, 0.0, 0.42)), 0.45, 2.3))
    length = around(rng, 57 - 19 * old, 6)
    backward = happens(rng, 0.22)
    return Anatomy(
        scale=(overall * around(rng, 1, 0.025), overall * around(rng, 1, 0.03), overall * around(rng, 1, 0.03)),
        fat=20 * obesity,
        belly=7 * obesity + between(rng, 0, 8),
        muscle=float(np.clip(around(rng, 1.04 - 0.004 * (latent.age - 50), 0.07), 0.8, 1.2)),
        gaps=float(np.clip(latent.profile.muscle_fat / 0.3, 0, 1)),
        cortex=2.2 + 1.5 * latent.profile.bone_density,
        flare=around(rng, 0, 5),
        hip=around(rng, 88, 3),
        head=around(rng, 22.5, 1.2),
        neck_drop=around(rng, 30, 4),
        sacrum_tilt=around(rng, 0, 6),
        version=around(rng, -35, 12) if backward else around(rng, 48, 15),
        uterus=(length, length * between(rng, 0.45, 0.54), length * between(rng, 0.37, 0.44)),
        endometrium=between(rng, 2.5, 5.5) * (1 - old) + 1.4 * old,
        ovary=(1.0 - 0.4 * old) * between(rng, 0.85, 1.2),
        cervix=around(rng, 14.5 - 2 * old, 1.2),
        calcified=float(np.clip(around(rng, (latent.age - 60) / 60, 0.12), 0.0, 0.6)),
        sideways=around(rng, 0, 9),
    )


def sample_filling(latent: Latent, seed: int, site: str, index: int, study: int, studies: int) -> Filling:
    """Draws the day of a study; the tumour shrinks towards its response over the studies."""
    rng = stream(seed, site, index, "filling", study)
    course = study / max(1, studies - 1)
    return Filling(
        bladder_ml=float(np.clip(math.exp(around(rng, math.log(165), 0.5)), 50, 420)),
        rectum=between(rng, 11, 19),
        rectum_gas=between(rng, 0.0, 0.8) if happens(rng, 0.7) else 0.0,
        tumour_left=latent.response**course,
    )
