"""What may leave besides tensors: names from one list, finite numbers; the refusal itself tells nothing."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parametrium.config import JobConfig
from parametrium.errors import Code, FederationError, public_text
from parametrium.federation.payload import read_scalars, scalars_message
from parametrium.privacy.egress import check_scalars

MakeJob = Callable[..., JobConfig]

GOOD = {
    "train/loss/masked_reconstruction": 1.5,
    "train/samples": 32,
    "site/volumes/PET": 4.0,
    "site/problems/not_3d": 1.0,
    "evaluation/reconstruction/CT/model": 0.25,
    "evaluation/retrieval/CT-PET/r1/body_mask": 0.5,
}


def test_what_is_on_the_list_passes_as_plain_floats(make_job: MakeJob) -> None:
    passed = check_scalars(make_job(), GOOD)
    assert passed == GOOD
    assert all(type(value) is float for value in passed.values())


@pytest.mark.parametrize(
    "name",
    [
        "train/loss/unknown",
        "train/loss/soft_contrastive",  # an objective, but not of this job
        "site/volumes/CBCT",  # a modality, but not of this job
        "site/volumes/CT/p001",
        "site/patients/p001",
        "site/problems/p001",
        "/scans/p001/CT.nii.gz",
        "C:\\scans\\p001",
        "../site/patients",
        "site/patients\n",
        " site/patients",
        "SITE/PATIENTS",
        "evaluation/retrieval/CT/r1/model",
        "",
    ],
)
def test_any_other_name_is_refused_and_not_repeated(make_job: MakeJob, name: str) -> None:
    with pytest.raises(FederationError, match=r"^PM506 1 scalars are not on the list") as caught:
        check_scalars(make_job(), {"site/patients": 3, name: 123.0})
    assert caught.value.code is Code.EGRESS_REFUSED
    assert not name.strip() or name.strip() not in public_text(caught.value).replace("privacy/egress.py", "")
    assert repr(name) in caught.value.site_detail


NOT_FINITE = [float("nan"), float("inf"), -float("inf"), "p001", None, [1.0], {"a": 1}, b"x", True, False, 1j]
HUGE = [10**400, -(10**400), 2**1024]  # no float holds them, and every digit could be a message


@pytest.mark.parametrize("value", [*NOT_FINITE, *HUGE], ids=lambda value: repr(value)[:20])
def test_any_other_value_is_refused_and_not_repeated(make_job: MakeJob, value: Any) -> None:
    with pytest.raises(FederationError, match=r"^PM506 1 scalars are not finite numbers$") as caught:
        check_scalars(make_job(), {"site/patients": value})
    assert public_text(caught.value) == "PM506 1 scalars are not finite numbers"
    assert caught.value.site_detail == "site/patients"


def test_whole_numbers_pass_as_floats(make_job: MakeJob) -> None:
    assert check_scalars(make_job(), {"site/patients": 2**1023}) == {"site/patients": 2.0**1023}


@given(st.dictionaries(st.text(), st.floats(), min_size=1))
def test_no_invented_name_passes(scalars: dict[str, float]) -> None:
    job = JobConfig.model_validate(
        {"name": "x", "modalities": ("CT",), "objectives": ({"kind": "masked_reconstruction"},)}
    )
    with pytest.raises(FederationError):
        check_scalars(job, scalars)


def test_the_server_checks_again_what_a_site_let_pass(make_job: MakeJob) -> None:
    """A site with other software could send anything: the server's record takes nothing off the list."""
    received = read_scalars(scalars_message({"/scans/p001": 1.0}), "north")
    with pytest.raises(FederationError, match="PM506"):
        check_scalars(make_job(), received)
