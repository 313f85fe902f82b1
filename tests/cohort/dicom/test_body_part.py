"""Which scans can show a face, by what their headers say."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parametrium.cohort.dicom.body_part import region_of
from parametrium.cohort.dicom.facts import Facts


@pytest.mark.parametrize(
    "part",
    [
        *("HEAD", "BRAIN", "SKULL", "FACE", "NECK", "HEADNECK", "HEAD_NECK", "HEAD&NECK", "ORBIT", "EAR", "JAW", "TMJ"),
        *("SINUS", "IAC", "CSPINE", "C-SPINE", "CAROTID", "NECKCHESTABDPELV", "WHOLEBODY", "WHOLE BODY", "H&N"),
        *("NEUROCRANIUM", "SCHÄDEL", "Schaedel", "KOPF/HALS", "HWS", "TÊTE", "CABEZA", "CRANIO", "HOOFD", "PET WB"),
    ],
)
def test_a_part_with_a_face_is_a_head_in_any_field(part: str) -> None:
    assert region_of(Facts(body_part=part)) == "head"
    assert region_of(Facts(description=f"AX {part} 3mm")) == "head"
    assert region_of(Facts(protocol=f"routine_{part}")) == "head"


@pytest.mark.parametrize(
    "text",
    [
        *("PELVIS", "ABDOMEN", "CHEST", "Thorax/Abdomen", "Becken", "BASSIN", "PROSTATE", "UTERUS", "CERVIX", "HIP"),
        *("LSPINE", "T-SPINE", "KNEE", "BREAST", "femoral head pelvis", "hip, femoral neck", "BLADDER NECK"),
        *("cuello uterino, pelvis", "collo dell'utero, bacino", "Gebärmutterhals Becken", "PELVIS head first"),
    ],
)
def test_another_part_is_elsewhere(text: str) -> None:
    assert region_of(Facts(body_part=text)) == "elsewhere"
    assert region_of(Facts(description=text)) == "elsewhere"


@pytest.mark.parametrize("text", ["", "   ", "T1 MPRAGE 1mm", "series", "AX T2 FS", "cervical"])
def test_what_names_no_part_is_unknown(text: str) -> None:
    assert region_of(Facts(body_part=text, description=text, protocol=text)) == "unknown"


def test_a_head_in_one_field_counts_against_another_part_in_another() -> None:
    assert region_of(Facts(body_part="CHEST", description="CT neck and chest")) == "head"
    assert region_of(Facts(body_part="HEAD", description="pelvis")) == "head"
    assert region_of(Facts(body_part="PELVIS", description="AX T2", protocol="Brain routine")) == "head"


def test_a_hospitals_own_words_count_in_any_writing() -> None:
    assert region_of(Facts(body_part="PELVIS", description="Hausprotokoll_GLIÖM 3")) == "elsewhere"
    assert region_of(Facts(body_part="PELVIS", description="Hausprotokoll_GLIÖM 3"), ("gliom",)) == "head"
    assert region_of(Facts(description="tumor board x"), ("Tumor-Board",)) == "head"
    assert region_of(Facts(description="tumorboard"), ("tumor board", "  ", "&")) == "unknown"


@given(st.text(max_size=300), st.text(max_size=300), st.lists(st.text(max_size=70), max_size=3))
def test_any_text_is_answered(part: str, description: str, words: list[str]) -> None:
    assert region_of(Facts(body_part=part, description=description), words) in ("head", "elsewhere", "unknown")


@given(st.text(max_size=40))
def test_what_stands_before_a_head_does_not_hide_it(text: str) -> None:
    assert region_of(Facts(description=f"{text} | brain")) == "head"
