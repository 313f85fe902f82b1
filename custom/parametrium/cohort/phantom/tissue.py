"""Tissues and how bright each is in each modality.

Values are round numbers in the range that radiology textbooks give for a female pelvis: CT at 120 kV in HU, ADC in
10^-6 mm^2/s at 1.5 to 3 T, PET as body-weight SUV one hour after FDG, T1 and T2 as the relative signal of a fast spin
echo sequence without fat suppression (thousandths of the brightest tissue). Which value in the range is our choice.
"""

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from parametrium.cohort.phantom.clinical import Profile


class Tissue(IntEnum):
    """What a voxel of the drawn body is made of."""

    AIR = 0
    SKIN = 1
    SUBCUTANEOUS_FAT = 2
    VISCERAL_FAT = 3
    MUSCLE = 4
    CORTEX = 5
    RED_MARROW = 6
    YELLOW_MARROW = 7
    CARTILAGE = 8
    CSF = 9
    ARTERY = 10
    VEIN = 11
    BOWEL_WALL = 12
    BOWEL_FLUID = 13
    STOOL = 14
    GAS = 15
    RECTUM_WALL = 16
    RECTUM_STOOL = 17
    RECTUM_GAS = 18
    BLADDER_WALL = 19
    URINE = 20
    URETER = 21
    MYOMETRIUM = 22
    JUNCTIONAL_ZONE = 23
    ENDOMETRIUM = 24
    CERVIX = 25
    CERVICAL_CANAL = 26
    VAGINA = 27
    PARAMETRIUM = 28
    OVARY = 29
    FOLLICLE = 30
    NODE = 31
    TUMOUR = 32
    NECROSIS = 33
    METASTATIC_NODE = 34
    BONE_METASTASIS = 35


class Grain(IntEnum):
    """The texture that a tissue shows."""

    FINE = 0
    SEPTA = 1
    FIBRES = 2
    COARSE = 3


MODALITIES = ("CT", "CBCT", "T1", "T2", "ADC", "PET")
"""Modalities that can be rendered."""

_T = Tissue
_ROWS: dict[Tissue, tuple[Grain, tuple[float, float, float, float, float]]] = {
    # tissue: grain, (CT HU, T1, T2, ADC, PET SUV)
    _T.AIR: (Grain.FINE, (-1000, 0, 0, 0, 0.0)),
    _T.SKIN: (Grain.FINE, (10, 380, 260, 700, 0.6)),
    _T.SUBCUTANEOUS_FAT: (Grain.SEPTA, (-108, 920, 640, 130, 0.25)),
    _T.VISCERAL_FAT: (Grain.SEPTA, (-102, 880, 620, 150, 0.4)),
    _T.MUSCLE: (Grain.FIBRES, (58, 330, 165, 1350, 0.75)),
    _T.CORTEX: (Grain.COARSE, (850, 70, 45, 150, 0.6)),
    _T.RED_MARROW: (Grain.COARSE, (165, 520, 330, 380, 1.5)),
    _T.YELLOW_MARROW: (Grain.COARSE, (190, 800, 480, 220, 0.55)),
    _T.CARTILAGE: (Grain.FINE, (80, 300, 300, 1300, 0.6)),
    _T.CSF: (Grain.FINE, (12, 170, 930, 2900, 0.5)),
    _T.ARTERY: (Grain.FINE, (50, 120, 60, 1500, 1.7)),
    _T.VEIN: (Grain.FINE, (48, 220, 150, 1500, 1.6)),
    _T.BOWEL_WALL: (Grain.FINE, (45, 340, 230, 1400, 1.6)),
    _T.BOWEL_FLUID: (Grain.COARSE, (18, 260, 640, 2000, 1.1)),
    _T.STOOL: (Grain.COARSE, (30, 380, 280, 1000, 1.0)),
    _T.GAS: (Grain.FINE, (-940, 5, 5, 20, 0.2)),
    _T.RECTUM_WALL: (Grain.FINE, (45, 340, 240, 1400, 1.5)),
    _T.RECTUM_STOOL: (Grain.COARSE, (30, 400, 280, 1000, 0.9)),
    _T.RECTUM_GAS: (Grain.FINE, (-940, 5, 5, 20, 0.2)),
    _T.BLADDER_WALL: (Grain.FINE, (40, 330, 190, 1500, 1.2)),
    _T.URINE: (Grain.FINE, (6, 170, 1000, 2900, 25.0)),
    _T.URETER: (Grain.FINE, (15, 220, 850, 2500, 14.0)),
    _T.MYOMETRIUM: (Grain.COARSE, (68, 360, 390, 1450, 1.7)),
    _T.JUNCTIONAL_ZONE: (Grain.FINE, (60, 345, 200, 1200, 1.7)),
    _T.ENDOMETRIUM: (Grain.FINE, (45, 340, 820, 1300, 2.2)),
    _T.CERVIX: (Grain.FINE, (62, 345, 180, 1450, 1.6)),
    _T.CERVICAL_CANAL: (Grain.FINE, (40, 320, 820, 1900, 1.6)),
    _T.VAGINA: (Grain.FINE, (52, 340, 260, 1450, 1.3)),
    _T.PARAMETRIUM: (Grain.SEPTA, (-35, 640, 520, 900, 0.8)),
    _T.OVARY: (Grain.FINE, (42, 340, 470, 1500, 1.3)),
    _T.FOLLICLE: (Grain.FINE, (12, 200, 930, 2600, 0.9)),
    _T.NODE: (Grain.FINE, (45, 350, 380, 1150, 1.0)),
    _T.TUMOUR: (Grain.COARSE, (56, 360, 500, 920, 10.0)),
    _T.NECROSIS: (Grain.COARSE, (28, 260, 760, 1900, 2.5)),
    _T.METASTATIC_NODE: (Grain.COARSE, (52, 355, 470, 900, 7.5)),
    _T.BONE_METASTASIS: (Grain.COARSE, (55, 330, 520, 900, 8.0)),
}

_AMPLITUDE: dict[Grain, tuple[float, float, float, float, float]] = {
    # Septa are thin and of soft tissue: brighter than fat in CT and ADC, darker in MR. Fibres are fat between bundles.
    Grain.FINE: (4, 0.05, 0.07, 0.05, 0.08),
    Grain.SEPTA: (22, -0.12, -0.11, 0.60, 0.25),
    Grain.FIBRES: (-9, 0.09, 0.14, -0.06, -0.08),
    Grain.COARSE: (9, 0.07, 0.10, 0.08, 0.15),
}
_CT_GRAIN = {_T.CORTEX: 90.0, _T.RED_MARROW: 38.0, _T.YELLOW_MARROW: 50.0, _T.STOOL: 75.0, _T.RECTUM_STOOL: 75.0}
"""Texture of bone and stool in CT, HU; MR, ADC and PET textures are shares of the tissue's own value."""

GRAIN: NDArray[np.uint8] = np.array([_ROWS[tissue][0] for tissue in Tissue], dtype=np.uint8)
"""[tissues] the texture of each."""


def tissue_table(modality: str, profile: Profile) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean and texture amplitude of each tissue in one patient.

    Args:
        modality: one of MODALITIES; CBCT shares the CT table, its own errors are the scanner's.
        profile: what makes this patient's tissues differ from the textbook.

    Returns:
        Two arrays [tissues], in the modality's unit.
    """
    column = {"CT": 0, "CBCT": 0, "T1": 1, "T2": 2, "ADC": 3, "PET": 4}[modality]
    mean = np.array([_ROWS[tissue][1][column] for tissue in Tissue], dtype=np.float32)
    amplitude = np.array([_AMPLITUDE[_ROWS[tissue][0]][column] for tissue in Tissue], dtype=np.float32)
    if column == 0:
        for tissue, value in _CT_GRAIN.items():
            amplitude[tissue] = value
        amplitude[[_T.AIR, _T.GAS, _T.RECTUM_GAS]] = 0.0
    else:
        amplitude *= mean
    _CHANGES[column](mean, amplitude, profile)
    # Ageing muscle holds more fat between its bundles: its texture is stronger and its mean moves towards fat.
    share = profile.muscle_fat
    mean[_T.MUSCLE] += 0.6 * share * (mean[_T.SUBCUTANEOUS_FAT] - mean[_T.MUSCLE])
    amplitude[_T.MUSCLE] *= 1.0 + 5.0 * share
    return mean, amplitude


def _change_ct(mean: NDArray[np.float32], amplitude: NDArray[np.float32], profile: Profile) -> None:
    bone = [_T.CORTEX, _T.RED_MARROW, _T.YELLOW_MARROW]
    mean[bone] *= profile.bone_density
    amplitude[bone] *= profile.bone_density


def _change_t1(mean: NDArray[np.float32], amplitude: NDArray[np.float32], profile: Profile) -> None:
    # Red marrow turns to fat with age, as bone thins.
    mean[_T.RED_MARROW] += 260 * (1.0 - profile.bone_density)


def _change_t2(mean: NDArray[np.float32], amplitude: NDArray[np.float32], profile: Profile) -> None:
    mean[_T.TUMOUR] *= profile.tumour_t2
    mean[_T.RED_MARROW] += 150 * (1.0 - profile.bone_density)


def _change_adc(mean: NDArray[np.float32], amplitude: NDArray[np.float32], profile: Profile) -> None:
    mean[_T.TUMOUR] = profile.tumour_adc
    mean[_T.METASTATIC_NODE] = profile.tumour_adc + 30
    mean[_T.BONE_METASTASIS] = profile.tumour_adc - 20


def _change_pet(mean: NDArray[np.float32], amplitude: NDArray[np.float32], profile: Profile) -> None:
    mean[_T.TUMOUR] = profile.tumour_suv
    mean[[_T.METASTATIC_NODE, _T.BONE_METASTASIS]] = 0.75 * profile.tumour_suv
    mean[[_T.URINE, _T.URETER]] = profile.urine_suv, 0.6 * profile.urine_suv
    mean[_T.BOWEL_WALL] *= profile.bowel_uptake


_CHANGES = (_change_ct, _change_t1, _change_t2, _change_adc, _change_pet)
