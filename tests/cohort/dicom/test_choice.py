"""What a stack is: tables of what scanners really write, the order of the rules, and that no header text gets out.

Where combinations come from: rows that say so are the headers of files beside this checkout or of pydicom's own; the
others are composed, from the vendors' sequence names and words of Image Type and from the TR, TE, TI and flip angles
that protocols of pelvic MRI have (ESUR: Manganaro et al., Eur Radiol 2021;31:7802), for no hospital's headers are here.
"""

import re
import time
from dataclasses import fields, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import uid

from parametrium.cohort.dicom.choice import choose
from parametrium.cohort.dicom.facts import Facts
from parametrium.cohort.dicom.header import Instance, read_instance
from parametrium.cohort.dicom.stack import split_stacks
from parametrium.cohort.problem import Reason
from parametrium.config import SeriesRule
from parametrium.config.job import VOCABULARY

MR, CT, PT = uid.MRImageStorage, uid.CTImageStorage, uid.PositronEmissionTomographyImageStorage


def mr(
    name: str = "",
    scanning: tuple[str, ...] = (),
    variant: tuple[str, ...] = (),
    tr: float | None = None,
    te: float | None = None,
    ti: float | None = None,
    flip: float | None = None,
    kind: str = "ORIGINAL\\PRIMARY\\M\\ND",
    **others: object,
) -> Facts:
    return Facts(
        sop_class=MR,
        modality="MR",
        image_type=tuple(kind.split("\\")),
        sequence_name=name,
        scanning_sequence=scanning,
        sequence_variant=variant,
        repetition_time_ms=tr,
        echo_time_ms=te,
        inversion_time_ms=ti,
        flip_angle_deg=flip,
        **others,  # type: ignore[arg-type]
    )


def ct(maker: str, model: str = "", kind: str = "ORIGINAL\\PRIMARY\\AXIAL", **others: object) -> Facts:
    return Facts(
        sop_class=CT,
        modality="CT",
        image_type=tuple(kind.split("\\")),
        manufacturer=maker,
        model=model,
        **others,  # type: ignore[arg-type]
    )


def answer(facts: Facts, *rules: SeriesRule) -> object:
    choice = choose(facts, rules, VOCABULARY)
    return choice.modality or choice.reason


SE, GR, IR, EP = ("SE",), ("GR",), ("SE", "IR"), ("EP",)

SIEMENS = {
    "T2 TSE sagittal, the backbone of pelvic MRI": (
        mr("*TSE2D1_21", SE, ("SK", "SP", "OSP"), 4500, 101, flip=150),
        "T2",
    ),
    "T2 SPACE, 3D with restore": (mr("*SPCR3D1_65NS", SE, ("SK", "SP", "OSP"), 1300, 128, flip=110), "T2"),
    "T2 HASTE: TR is the time between slices": (mr("*H2D1_256", SE, ("SK", "SP"), 1000, 92, flip=160), "T2"),
    "T1 TSE axial": (mr("*TSE2D1_3", SE, ("SK", "SP"), 623, 11, flip=150), "T1"),
    "T1 SE": (mr("*SE2D1", SE, ("SP",), 500, 7.7, flip=90), "T1"),
    "T1 TSE with agent": (mr("*TSE2D1_3", SE, ("SK", "SP"), 650, 11, contrast_agent=True), "T1c"),
    "VIBE": (mr("*FL3D1", GR, ("SP",), 4.1, 1.8, flip=9), "T1"),
    "VIBE Dixon, water": (mr("*FL3D2", GR, ("SP",), 5.9, 2.5, flip=9, kind="DERIVED\\PRIMARY\\DIXON\\WATER"), "T1"),
    "VIBE Dixon, fat": (
        mr("*FL3D2", GR, ("SP",), 5.9, 2.5, flip=9, kind="DERIVED\\PRIMARY\\DIXON\\FAT"),
        Reason.DERIVED,
    ),
    "VIBE Dixon, in phase": (mr("*FL3D2", GR, ("SP",), 5.9, 2.5, flip=9, kind="ORIGINAL\\PRIMARY\\M\\IN_PHASE"), "T1"),
    "VIBE Dixon, opposed": (
        mr("*FL3D2", GR, ("SP",), 5.9, 1.3, flip=9, kind="ORIGINAL\\PRIMARY\\M\\OPP_PHASE"),
        Reason.DERIVED,
    ),
    "VIBE with agent": (mr("*FL3D1", GR, ("SP",), 4.1, 1.8, flip=9, contrast_agent=True), "T1c"),
    "TWIST": (mr("*FLDYN3D1", GR, ("SP",), 4.1, 1.6, flip=12, contrast_agent=True, time_points=35), "DCE"),
    "MPRAGE": (mr("*TFL3D1_16NS", ("GR", "IR"), ("SK", "SP", "MP"), 2300, 2.98, 900, 9), "T1"),
    "FLAIR": (mr("*TIR2D1_16", IR, ("SK", "SP", "MP"), 9000, 81, 2500, 150), "FLAIR"),
    "3D FLAIR": (mr("*SPCIR_278NS", IR, ("SK", "SP", "MP"), 5000, 387, 1800, 120), "FLAIR"),
    "STIR is not FLAIR": (mr("*TIR2D1_11", IR, ("SK", "SP", "MP"), 4500, 38, 160, 150), Reason.NO_MODALITY),
    "STIR with long TE neither": (mr("*TIR2D1_11", IR, ("SK", "SP", "MP"), 5000, 70, 220, 150), Reason.NO_MODALITY),
    "DWI b 800": (mr("*EP_B800T", EP, ("SK", "SP"), 6500, 66, b_value=800.0), "DWI"),
    "DWI b 50": (mr("*EP_B50T", EP, ("SK", "SP"), 6500, 66, b_value=50.0), "DWI"),
    "DWI reference": (mr("*EP_B0", EP, ("SK", "SP"), 6500, 66, b_value=0.0), Reason.NO_MODALITY),
    "RESOLVE": (mr("*RE_B1000_0", EP, ("SK", "SP"), 5200, 62, b_value=1000.0), "DWI"),
    "DWI, mean of directions": (
        mr("*EP_B800T", EP, tr=6500, te=66, b_value=800.0, kind="DERIVED\\PRIMARY\\DIFFUSION\\TRACEW\\ND"),
        "DWI",
    ),
    "trace without a b-value": (
        mr("EP2D_DIFF", EP, tr=6500, te=66, kind="DERIVED\\PRIMARY\\DIFFUSION\\TRACEW\\ND"),
        "DWI",
    ),
    "trace of b 0": (
        mr("*EP_B0", EP, tr=6500, te=66, b_value=0.0, kind="DERIVED\\PRIMARY\\DIFFUSION\\TRACEW"),
        Reason.NO_MODALITY,
    ),
    "ADC": (mr("*EP_B0_1000", EP, tr=6500, te=66, kind="DERIVED\\PRIMARY\\DIFFUSION\\ADC\\ND"), "ADC"),
    "fractional anisotropy": (mr("EP_B0", EP, kind="DERIVED\\PRIMARY\\DIFFUSION\\FA\\ND"), Reason.DERIVED),
    "computed b-value": (
        mr("*EP_B1400", EP, b_value=1400.0, kind="DERIVED\\PRIMARY\\DIFFUSION\\CALC_BVALUE\\TRACEW"),
        Reason.DERIVED,
    ),
    "BOLD (beside this checkout)": (mr("EPFID2D1_72", EP, ("SK",), 2435, 50, flip=75), Reason.NO_MODALITY),
    "TrueFISP": (mr("*TFI2D1_137", GR, ("SS",), 4.3, 2.1, flip=60), Reason.NO_MODALITY),
    "MEDIC": (mr("*ME2D1R4", GR, ("SP",), 700, 17, flip=30), Reason.NO_MODALITY),
    "SWI": (mr("*SWI3D1R", GR, ("SP",), 28, 20, flip=15), Reason.NO_MODALITY),
    "proton density": (mr("*TSE2D1_7", SE, ("SK", "SP"), 3000, 33, flip=150), Reason.NO_MODALITY),
    "T1 mapping at 3 degrees": (mr("*FL3D1", GR, ("SP",), 15, 2.2, flip=3), Reason.NO_MODALITY),
    "localiser": (
        mr("*FL2D1", GR, ("SP",), 7.5, 3.7, flip=20, description="localizer_haste_3_plane"),
        Reason.LOCALISER,
    ),
    "reformation (pydicom)": (
        mr("*FL3D1", GR, ("SP",), 5.53, 2.81, flip=10, kind="DERIVED\\SECONDARY\\MPR\\CSA MPR\\\\CSAPARALLEL\\M"),
        Reason.DERIVED,
    ),
    "subtraction": (mr("*FL3D1", GR, tr=4, te=2, flip=9, kind="DERIVED\\PRIMARY\\M\\SUB\\ND"), Reason.DERIVED),
    "MIP": (mr("*FL3D1", GR, tr=4, te=2, flip=9, kind="DERIVED\\SECONDARY\\PROJECTION IMAGE\\MIP"), Reason.DERIVED),
    "phase": (mr("*FL2D1", GR, tr=400, te=7, flip=60, kind="ORIGINAL\\PRIMARY\\P\\ND"), Reason.DERIVED),
}

GE = {
    "FRFSE T2": (mr("", SE, ("SK",), 4200, 102, kind="ORIGINAL\\PRIMARY\\OTHER"), "T2"),
    "FSE T1": (mr("", SE, ("SK",), 640, 8.6, kind="ORIGINAL\\PRIMARY\\OTHER"), "T1"),
    "CUBE: research mode, told by its name": (mr("CUBE", ("RM",), (), 2500, 90), "T2"),
    "research mode without a name": (mr("", ("RM",), (), 2500, 90), Reason.NO_MODALITY),
    "LAVA": (mr("", GR, ("SS", "SP", "SK"), 4.2, 2.0, ti=7, flip=12, kind="ORIGINAL\\PRIMARY\\OTHER"), "T1"),
    "LAVA, phases": (mr("", GR, ("SS", "SP", "SK"), 4.2, 2.0, flip=12, contrast_agent=True, time_points=4), "DCE"),
    "BRAVO": (mr("", ("GR", "IR"), ("SS", "SP", "SK"), 8.2, 3.2, 450, 12), "T1"),
    "T1 FLAIR": (mr("", IR, ("SK",), 2500, 24, 920, 111), "T1"),
    "T2 FLAIR": (mr("", IR, ("SK",), 9002, 120, 2250, 160), "FLAIR"),
    "SSFSE": (mr("SSFSE", SE, ("SK",), 1100, 85), "T2"),
    "DWI": (mr("", ("EP", "SE"), ("NONE",), 6000, 70, b_value=1000.0), "DWI"),
    "DWI reference": (mr("", ("EP", "SE"), ("NONE",), 6000, 70, b_value=0.0), Reason.NO_MODALITY),
    "FIESTA": (mr("", GR, ("SS",), 4.0, 1.8, flip=55), Reason.NO_MODALITY),
    "fMRI (beside this checkout)": (mr("", ("EP", "GR"), ("SS",), 5000, 30, flip=60), Reason.NO_MODALITY),
    "ADC of a workstation": (
        mr("", kind="DERIVED\\SECONDARY", description="Apparent Diffusion Coefficient (mm2/s)"),
        "ADC",
    ),
    "exponential ADC": (mr("", kind="DERIVED\\SECONDARY", description="eADC"), Reason.DERIVED),
    "DWI whose b-value is lost": (mr("", ("EP", "SE"), (), 6000, 70, description="Ax DWI b1000"), "DWI"),
    "scout": (mr("", GR, (), 5, 1.5, flip=30, description="3-Plane Loc"), Reason.LOCALISER),
}

PHILIPS = {
    "T2 TSE: b-value 0 stands in every image": (mr("TSE", SE, ("SK",), 3800, 100, b_value=0.0), "T2"),
    "T1 TSE": (mr("TSE", SE, ("SK",), 580, 8), "T1"),
    "T1 TFE": (mr("TFE", GR, ("SP",), 7.5, 3.5, flip=8, kind="ORIGINAL\\PRIMARY\\M_FFE\\M\\FFE"), "T1"),
    "mDIXON water": (mr("FFE", GR, ("SP",), 5.4, 1.7, flip=15, kind="DERIVED\\PRIMARY\\W\\W\\DERIVED"), "T1"),
    "mDIXON fat": (mr("FFE", GR, ("SP",), 5.4, 1.7, flip=15, kind="DERIVED\\PRIMARY\\F\\F\\DERIVED"), Reason.DERIVED),
    "FLAIR": (mr("TIR", ("IR",), ("SK",), 11000, 125, 2800), "FLAIR"),
    "STIR": (mr("TIR", ("IR",), ("SK",), 5600, 60, 160), Reason.NO_MODALITY),
    "DWI": (mr("DWISE", SE, ("SK",), 4100, 65, b_value=800.0), "DWI"),
    "classic DWI reference, told by its description": (
        mr("", SE, ("SK",), 4100, 65, b_value=0.0, description="DWI_3b"),
        Reason.NO_MODALITY,
    ),
    "ADC": (mr("", SE, kind="DERIVED\\PRIMARY\\ADC_UNSPECIFIED\\ADC\\UNSPECIFIED"), "ADC"),
    "balanced": (mr("BFFE", GR, ("SS",), 3.5, 1.7, flip=60), Reason.NO_MODALITY),
    "enhanced without numbers, T1 declared": (mr("", kind="ORIGINAL\\PRIMARY\\T1\\NONE"), "T1"),
    "enhanced, numbers over what is declared": (mr("TSE", tr=4000, te=90, kind="ORIGINAL\\PRIMARY\\T1\\NONE"), "T2"),
    "enhanced, proton density declared": (mr("", kind="ORIGINAL\\PRIMARY\\PROTON_DENSITY"), Reason.NO_MODALITY),
    "field map": (mr("FFE", tr=3.8, te=0.0, flip=12, kind="ORIGINAL\\PRIMARY\\T1\\FIELD_MAP\\REAL"), Reason.DERIVED),
}

OTHERS = {
    "Canon T2": (mr("FSE2D", SE, ("SK",), 4300, 100), "T2"),
    "Canon FASE": (mr("FASE2D", SE, ("SK",), 12000, 80), "T2"),
    "Siemens CT": (ct("SIEMENS", "SOMATOM DEFINITION EDGE", "ORIGINAL\\PRIMARY\\AXIAL\\CT_SOM5 SPI"), "CT"),
    "GE scout": (ct("GE MEDICAL SYSTEMS", "LIGHTSPEED", "ORIGINAL\\PRIMARY\\LOCALIZER"), Reason.LOCALISER),
    "enhanced scanogram": (ct("CANON", "AQUILION", acquisition_type="CONSTANT_ANGLE"), Reason.LOCALISER),
    "GE reformation": (ct("GE MEDICAL SYSTEMS", "", "DERIVED\\SECONDARY\\REFORMATTED\\AVERAGE"), Reason.DERIVED),
    "Siemens patient protocol": (
        ct("SIEMENS", "", "DERIVED\\SECONDARY\\OTHER\\CT_SOM5 PROT"),
        Reason.SECONDARY_CAPTURE,
    ),
    "derived and nothing else": (ct("PHILIPS", "", "DERIVED\\SECONDARY"), Reason.DERIVED),
    "4D CT, mean": (ct("PHILIPS", "BRILLIANCE BIG BORE", "DERIVED\\PRIMARY\\AXIAL\\AVERAGE"), "CT"),
    "Varian OBI": (ct("VARIAN MEDICAL SYSTEMS", "ON-BOARD IMAGER"), "CBCT"),
    "Varian TrueBeam": (ct("VARIAN MEDICAL SYSTEMS", "TRUEBEAM"), "CBCT"),
    "Varian, model not told": (ct("VARIAN MEDICAL SYSTEMS"), "CBCT"),
    "Varian Halcyon, derived": (ct("VARIAN MEDICAL SYSTEMS", "HALCYON", "DERIVED\\SECONDARY\\AXIAL"), "CBCT"),
    "Varian Ethos": (ct("VARIAN", "ETHOS"), "CBCT"),
    "planning CT sent on by Eclipse": (ct("VARIAN MEDICAL SYSTEMS", "ECLIPSE"), "CT"),
    "Elekta XVI": (ct("ELEKTA", "XVI"), "CBCT"),
    "Elekta Versa HD": (ct("ELEKTA LIMITED", "VERSA HD"), "CBCT"),
    "Synergy of another maker is no linac": (ct("GE MEDICAL SYSTEMS", "SYTEC SYNERGY"), "CT"),
    "tomotherapy": (ct("TOMOTHERAPY INCORPORATED", "HI-ART"), Reason.NO_MODALITY),
    "C-arm": (ct("SIEMENS", "ARTIS ZEE"), "CBCT"),
    "dental": (ct("PLANMECA", "PROMAX 3D MAX"), "CBCT"),
    "dental, by SOP class": (Facts(uid.XRay3DCraniofacialImageStorage, "CT"), "CBCT"),
    "image type says so": (ct("UNKNOWN", "", "ORIGINAL\\PRIMARY\\AXIAL\\CBCT"), "CBCT"),
    "words say so": (ct("", "", description="Pelvis kV CBCT"), "CBCT"),
    "PET": (Facts(PT, "PT", ("ORIGINAL", "PRIMARY"), units="BQML"), "PET"),
    "PET in SUV (beside this checkout)": (Facts(PT, "PT", ("DERIVED", "SECONDARY"), units="GML"), "PET"),
    "PET, uncorrected by its name": (
        Facts(PT, "PT", ("ORIGINAL", "PRIMARY"), description="WB NAC"),
        Reason.NO_ATTENUATION_CORRECTION,
    ),
    "PET, uncorrected": (
        Facts(PT, "PT", ("ORIGINAL", "PRIMARY"), description="WB", attenuation_corrected=False),
        Reason.NO_ATTENUATION_CORRECTION,
    ),
    "PET, corrected": (Facts(PT, "PT", ("ORIGINAL", "PRIMARY"), attenuation_corrected=True), "PET"),
    "enhanced PET": (Facts(uid.EnhancedPETImageStorage, "PT"), "PET"),
    "SPECT": (Facts(uid.NuclearMedicineImageStorage, "NM", ("ORIGINAL", "PRIMARY", "RECON TOMO")), Reason.NOT_AN_IMAGE),
    "dose": (Facts(uid.RTDoseStorage, "RTDOSE"), Reason.DOSE),
    "structures": (Facts(uid.RTStructureSetStorage, "RTSTRUCT"), Reason.NOT_AN_IMAGE),
    "plan": (Facts(uid.RTPlanStorage, "RTPLAN"), Reason.NOT_AN_IMAGE),
    "segmentation": (Facts(uid.SegmentationStorage, "SEG"), Reason.NOT_AN_IMAGE),
    "report": (Facts(uid.ComprehensiveSRStorage, "SR"), Reason.REPORT),
    "dose report": (Facts(uid.XRayRadiationDoseSRStorage, "SR"), Reason.REPORT),
    "PDF": (Facts(uid.EncapsulatedPDFStorage, "DOC"), Reason.REPORT),
    "key objects": (Facts(uid.KeyObjectSelectionDocumentStorage, "KO"), Reason.NOT_AN_IMAGE),
    "presentation state": (Facts(uid.GrayscaleSoftcopyPresentationStateStorage, "PR"), Reason.NOT_AN_IMAGE),
    "screenshot": (Facts(uid.SecondaryCaptureImageStorage, "CT"), Reason.SECONDARY_CAPTURE),
    "screenshots": (Facts(uid.MultiFrameTrueColorSecondaryCaptureImageStorage, "MR"), Reason.SECONDARY_CAPTURE),
    "saved screen as CT": (ct("GE MEDICAL SYSTEMS", "", "DERIVED\\SECONDARY\\SCREEN SAVE"), Reason.SECONDARY_CAPTURE),
    "ultrasound": (Facts(uid.UltrasoundImageStorage, "US"), Reason.NOT_AN_IMAGE),
    "angiography": (Facts(uid.XRayAngiographicImageStorage, "XA"), Reason.NOT_AN_IMAGE),
    "ECG": (Facts(uid.TwelveLeadECGWaveformStorage, "ECG"), Reason.NOT_AN_IMAGE),
    "a vendor's own class": (Facts("1.3.12.2.1107.5.9.1", "MR"), Reason.NOT_AN_IMAGE),
    "no class, modality MR": (Facts("", "MR", sequence_name="TSE2D", repetition_time_ms=4e3, echo_time_ms=90.0), "T2"),
    "no class, dose": (Facts("", "RTDOSE"), Reason.DOSE),
    "nothing": (Facts(), Reason.NOT_AN_IMAGE),
    "contradiction": (Facts(CT, "MR"), Reason.NO_MODALITY),
    "burned in": (ct("SIEMENS", burned_in=True), Reason.BURNED_IN_TEXT),
}

TABLE = [
    pytest.param(facts, expected, id=f"{vendor}: {what}")
    for vendor, rows in (("Siemens", SIEMENS), ("GE", GE), ("Philips", PHILIPS), ("other", OTHERS))
    for what, (facts, expected) in rows.items()
]


@pytest.mark.parametrize(("facts", "expected"), TABLE)
def test_what_scanners_write(facts: Facts, expected: object) -> None:
    assert answer(facts) == expected


@pytest.mark.parametrize(
    ("description", "protocol", "expected"),
    [
        ("AX_T1_FS", "", "T1"),
        ("IBSI_1_STS_001_MR_T1_image", "", "T1"),
        ("t2_tse_sag", "MRA pelvis", "T2"),
        ("", "T2W_TSE", "T2"),
        ("sag", "pelvis T2", "T2"),
        ("T1 +C FS", "", "T1c"),
        ("T1W POST GD", "", "T1c"),
        ("T1 post op", "", "T1"),
        ("T1 without contrast", "", "T1"),
        ("T1 pre gd", "", "T1"),
        ("T1 nativ", "", "T1"),
        ("T1 FLAIR sag", "", "T1"),
        ("FLAIR ax", "", "FLAIR"),
        ("T2 FLAIR", "", "FLAIR"),
        ("dynamic pelvis", "", "DCE"),
        ("ep2d_diff_b50_800", "", "DWI"),
        ("dADC map", "", "ADC"),
        ("T2* gre", "", Reason.NO_MODALITY),
        ("T1 map", "", Reason.NO_MODALITY),
        ("STIR cor", "", Reason.NO_MODALITY),
        ("T1 and T2", "", Reason.NO_MODALITY),
        ("ST1234 T12 spine", "", Reason.NO_MODALITY),
        ("scout t1", "", Reason.LOCALISER),
        ("", "", Reason.NO_MODALITY),
    ],
)
def test_words_are_the_last_resort_and_unsure(description: str, protocol: str, expected: object) -> None:
    choice = choose(Facts(MR, "MR", description=description, protocol=protocol), (), VOCABULARY)
    assert (choice.modality or choice.reason) == expected
    assert choice.sure == (choice.rule == "no rule")


def test_facts_win_over_words() -> None:
    t2 = mr("TSE2D", SE, tr=4500, te=100, description="T1 ax", protocol="T1")
    assert choose(t2, (), VOCABULARY).modality == "T2"
    assert choose(t2, (), VOCABULARY).sure


@pytest.mark.parametrize("what", [what for what, (_, expected) in SIEMENS.items() if expected is Reason.NO_MODALITY])
def test_words_do_not_name_what_the_facts_know_to_have_no_name(what: str) -> None:
    choice = choose(replace(SIEMENS[what][0], description="T2 ax"), (), VOCABULARY)
    assert choice.reason is Reason.NO_MODALITY
    assert choice.rule.startswith("facts: ")


def test_a_description_tells_of_an_agent_that_the_header_does_not_name() -> None:
    choice = choose(mr("FL3D1", GR, ("SP",), 4, 2, flip=9, description="t1_vibe_fs post KM"), (), VOCABULARY)
    assert (choice.modality, choice.sure) == ("T1c", False)


@pytest.mark.parametrize(("description", "expected"), [("vibe", Reason.NO_MODALITY), ("t1 dyn", "DCE")])
def test_t1_at_several_times_without_an_agent_needs_a_word(description: str, expected: object) -> None:
    facts = mr("FL3D1", GR, ("SP",), 4, 2, flip=9, time_points=30, description=description)
    assert answer(facts) == expected


@pytest.mark.parametrize(("description", "agent"), [("TOF_3D", False), ("CE-MRA pelvis", True)])
def test_angiography_has_the_parameters_of_t1_and_is_none(description: str, agent: bool) -> None:
    facts = mr("FL3D1R", GR, ("SP",), 22, 3.6, flip=18, description=description, contrast_agent=agent)
    assert answer(facts) is Reason.NO_MODALITY


def test_a_flair_whose_inversion_time_is_lost_is_told_by_its_name() -> None:
    facts = mr("TSE2D", SE, tr=9000, te=90, description="FLAIR ax")
    assert choose(facts, (), VOCABULARY).modality == "FLAIR"
    assert not choose(facts, (), VOCABULARY).sure


def rule(match: str, modality: str | None, **others: object) -> SeriesRule:
    return SeriesRule(match=match, modality=modality, **others)  # type: ignore[arg-type]


T2 = mr("TSE2D", SE, tr=4500, te=100, description="Becken tra", protocol="Uterus")
UNKNOWN = Facts(MR, "MR", description="Becken tra", protocol="Uterus t1")


def test_a_rule_decides_where_facts_do_not_and_before_words() -> None:
    choice = choose(UNKNOWN, (rule("knie", "T2"), rule("UTERUS", "FLAIR"), rule("becken", "T2")), VOCABULARY)
    assert (choice.modality, choice.rule, choice.sure) == ("FLAIR", "series_rules[1]", True)


def test_facts_win_over_a_rule_unless_it_is_over_them() -> None:
    assert choose(T2, (rule("becken", "T1"),), VOCABULARY).modality == "T2"
    choice = choose(T2, (rule("becken", "FLAIR"), rule("becken", "T1", over_facts=True)), VOCABULARY)
    assert (choice.modality, choice.rule) == ("T1", "series_rules[1]")


def test_a_rule_names_what_the_vocabulary_has_no_word_for() -> None:
    stir = mr("*TIR2D", IR, tr=4500, te=38, ti=160, description="Becken")
    choice = choose(stir, (rule("becken", "STIR"),), (*VOCABULARY, "STIR"))
    assert (choice.modality, choice.rule) == ("STIR", "series_rules[0]")


def test_a_rule_without_modality_leaves_out() -> None:
    choice = choose(UNKNOWN, (rule("becken", None),), VOCABULARY)
    assert (choice.reason, choice.rule) == (Reason.MODALITY_NOT_WANTED, "series_rules[0]")
    assert answer(T2, rule("becken", None, over_facts=True)) is Reason.MODALITY_NOT_WANTED


def test_a_rule_for_one_scanner_leaves_others_alone() -> None:
    assert answer(UNKNOWN, rule("becken", "T2", scanner="CT")) == "T1"
    assert answer(UNKNOWN, rule("becken", "T2", scanner="MR")) == "T2"


def test_a_rule_over_facts_takes_a_reformation() -> None:
    facts = ct("SIEMENS", "", "DERIVED\\SECONDARY\\MPR", description="planning cor")
    assert answer(facts) is Reason.DERIVED
    assert answer(facts, rule("planning", "CT")) is Reason.DERIVED
    assert answer(facts, rule("planning", "CT", over_facts=True)) == "CT"


@pytest.mark.parametrize(
    "facts",
    [
        ct("SIEMENS", burned_in=True),
        Facts(uid.SecondaryCaptureImageStorage, "MR"),
        Facts(uid.ComprehensiveSRStorage, "SR"),
        ct("", "", "DERIVED\\SECONDARY\\SCREEN SAVE"),
    ],
)
def test_no_rule_lets_in_what_may_hold_text_in_its_pixels(facts: Facts) -> None:
    choice = choose(facts, (rule(".*", "T2", over_facts=True), rule(".*", "T2")), VOCABULARY)
    assert choice.modality is None
    assert choice.reason is not Reason.MODALITY_NOT_WANTED


def test_a_site_rule_keeps_a_series_that_our_word_would_call_a_localiser() -> None:
    facts = mr("TSE2D", SE, tr=4500, te=100, description="T2 pilot study")
    assert answer(facts) is Reason.LOCALISER
    assert answer(facts, rule("pilot study", "T2")) == "T2"


def test_what_is_not_wanted_is_said_so_with_its_rule() -> None:
    choice = choose(T2, (), ("CT",))
    assert (choice.modality, choice.reason) == (None, Reason.MODALITY_NOT_WANTED)
    assert choice.rule.startswith("facts: ")


def test_an_expression_sees_only_the_length_that_the_standard_allows() -> None:
    facts = Facts(MR, "MR", description="x" * 64 + "t2weighted")
    assert answer(facts, rule("t2weighted", "T2")) is Reason.NO_MODALITY


numbers = st.none() | st.floats() | st.sampled_from([0.0, 4.0, 10.0, 90.0, 500.0, 900.0, 2500.0, 9000.0])
words = st.sampled_from(
    [
        "ORIGINAL",
        "DERIVED",
        "PRIMARY",
        "SECONDARY",
        "M",
        "P",
        "ADC",
        "TRACEW",
        "MPR",
        "LOCALIZER",
        "T1",
        "WATER",
        "\\",
        "",
    ]
)
texts = st.text(max_size=80) | st.sampled_from(["T1 +C", "t2 tse", "localizer", "DWI b1000", "ADC", "a" * 5000])
facts_of_any_kind = st.builds(
    Facts,
    sop_class=st.sampled_from([MR, CT, PT, uid.RTDoseStorage, uid.SecondaryCaptureImageStorage, "", "1.2.3"]),
    modality=st.sampled_from(["MR", "CT", "PT", "NM", "SR", "RTDOSE", ""]) | texts,
    image_type=st.lists(words | texts, max_size=6).map(tuple),
    description=texts,
    protocol=texts,
    sequence_name=st.sampled_from(["*TSE2D1", "FL3D1", "EP_B0", "TIR2D", "TFL3D", ""]) | texts,
    scanning_sequence=st.lists(st.sampled_from(["SE", "GR", "IR", "EP", "RM"]), max_size=3).map(tuple),
    sequence_variant=st.lists(st.sampled_from(["SS", "SP", "SK", "MP"]), max_size=3).map(tuple),
    repetition_time_ms=numbers,
    echo_time_ms=numbers,
    inversion_time_ms=numbers,
    flip_angle_deg=numbers,
    b_value=numbers,
    contrast_agent=st.booleans(),
    contrast_phase=st.booleans(),
    units=texts,
    manufacturer=st.sampled_from(["SIEMENS", "VARIAN MEDICAL SYSTEMS", "ELEKTA"]) | texts,
    model=texts,
    burned_in=st.booleans(),
    acquisition_type=st.sampled_from(["", "CONSTANT_ANGLE", "SPIRAL"]),
    time_points=st.integers(-1, 50),
)
some_rules = st.lists(
    st.builds(
        rule,
        st.sampled_from(["t1", ".", "^$", "(a|b)+", "becken"]),
        st.sampled_from([*VOCABULARY, "STIR", None]),
        over_facts=st.booleans(),
        scanner=st.sampled_from([None, "MR", "CT"]),
    ),
    max_size=4,
)


@given(facts_of_any_kind, some_rules, st.sets(st.sampled_from(VOCABULARY)))
def test_any_header_gives_exactly_one_answer(facts: Facts, rules: list[SeriesRule], wanted: set[str]) -> None:
    choice = choose(facts, rules, wanted)
    assert (choice.modality is None) != (choice.reason is None)
    assert choice.modality is None or choice.modality in wanted
    assert choose(facts, rules, wanted) == choice


@given(facts_of_any_kind, some_rules, st.sets(st.sampled_from(VOCABULARY)), st.sampled_from(VOCABULARY))
def test_wanting_more_changes_nothing_else(facts: Facts, rules: list[SeriesRule], wanted: set[str], more: str) -> None:
    before, after = choose(facts, rules, wanted), choose(facts, rules, wanted | {more})
    assert after.rule == before.rule
    if before.modality is not None:
        assert after == before
    elif after.modality is not None:
        assert (after.modality, before.reason) == (more, Reason.MODALITY_NOT_WANTED)


@given(facts_of_any_kind, some_rules)
def test_rules_that_do_not_match_change_nothing(facts: Facts, rules: list[SeriesRule]) -> None:
    never = [rule("(?!)", "T1", over_facts=True), rule("(?!)", None)]
    padded = choose(facts, [*rules, *never], VOCABULARY)
    assert padded == choose(facts, rules, VOCABULARY)


TOLD = re.compile(
    r"((facts|words): [A-Za-z0-9 ,;:*-]{2,80}|series_rules\[\d+\]|no rule)(; series_rules\[\d+\] ran too long)*"
)


@given(facts_of_any_kind, some_rules, st.sampled_from(["T2 tse", "t1 +c", "localizer", ""]))
def test_no_text_of_a_header_gets_out(facts: Facts, rules: list[SeriesRule], words: str) -> None:
    hostile = "SENTINELDOE^Jane<script>alert(1)</script>../../x"
    dirty = {
        field.name: f"{value} {words} {hostile}"
        for field in fields(Facts)
        if isinstance(value := getattr(facts, field.name), str) and field.name not in ("sop_class", "modality")
    }
    for image_type in (facts.image_type, (*facts.image_type, hostile)):
        choice = choose(replace(facts, **dirty, image_type=image_type), rules, VOCABULARY)
        assert TOLD.fullmatch(choice.rule)
        assert "SENTINEL" not in f"{choice}"
        assert choice.modality is None or choice.modality in VOCABULARY


@pytest.mark.parametrize("expression", [r"(a|a)+b", r"(a|aa)+$", r"^(\w|a)+(\w|a)+[^a]{2}$"])
def test_an_expression_without_end_counts_as_no_match_and_is_told(expression: str) -> None:
    description = "a" * 63 + "-"
    facts = replace(UNKNOWN, description=description)
    endless = rule(expression, "T2", over_facts=True)
    started = time.process_time()
    choice = choose(facts, (rule("knie", "T2"), endless, rule("a{9}", "FLAIR")), VOCABULARY)
    assert (choice.modality, choice.rule) == ("FLAIR", "series_rules[2]; series_rules[1] ran too long")
    choice = choose(facts, (endless, endless), VOCABULARY)
    assert (choice.modality, choice.sure) == ("T1", False)
    assert choice.rule == "words: t1; series_rules[0] ran too long; series_rules[1] ran too long"
    assert time.process_time() - started < 0.5  # asked once a text, and given up soon
    assert answer(replace(facts, description="ab"), rule(r"(a|a)+b", "T2")) == "T2"


@given(st.sampled_from(["t2.*tse.*(sag|tra|cor)", "scout|survey", r"\bdyn\b", "^$", "(a|b)+", "[^0-9]{3}$"]), texts)
def test_expressions_mean_what_the_standard_library_says(expression: str, text: str) -> None:
    facts = replace(UNKNOWN, description=text[:64], protocol="knie")
    found = any(re.search(expression, own, re.IGNORECASE) for own in (facts.description, facts.protocol))
    assert (choose(facts, (rule(expression, "STIR"),), ("STIR",)).rule == "series_rules[0]") is found


def test_endless_texts_take_no_time() -> None:
    for text in ("a" * 10**6, "t1 " * 10**5, "+c" * 10**5, "\0" * 10**5, "\u00f8" * 10**5, "no " * 10**5):
        facts = Facts(
            MR, "MR", description=text, protocol=text, sequence_name=text, manufacturer=text, model=text, units=text
        )
        started = time.process_time()
        choose(facts, (rule("a.*b.*c", "T2"), rule("(x|a)*y", "T2")), VOCABULARY)
        choose(replace(facts, sop_class=CT, modality="CT"), (), VOCABULARY)
        assert time.process_time() - started < 1


@pytest.mark.realdata
def test_the_public_scans_are_what_they_are(real_data: Path) -> None:
    expected = {"CT": "CT", "PET": "PET", "MR_T1": "T1"}
    for folder in sorted((real_data / "dicom" / "sarcoma").glob("STS_*/*/image")):
        read = [read_instance(path) for path in sorted(folder.glob("*.dcm"))]
        stacks = split_stacks([instance for instance in read if isinstance(instance, Instance)])
        assert [answer(stack.facts) for stack in stacks] == [expected[folder.parent.name]]


@pytest.mark.realdata
def test_the_public_functional_series_are_no_modality_until_the_site_names_them(real_data: Path) -> None:
    folders = sorted(path for path in (real_data / "dicom" / "vendors_ge_siemens" / "In").glob("*/mr_*"))
    assert len(folders) == 8
    for folder in folders:
        instance = read_instance(min(folder.glob("*.dcm")))
        assert isinstance(instance, Instance)
        assert answer(instance.facts) is Reason.NO_MODALITY
        choice = choose(instance.facts, (rule("epi", "BOLD"),), ("BOLD",))
        assert (choice.modality, choice.rule) == ("BOLD", "series_rules[0]")
