"""Any number of volumes, in any order, become one feature."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from parametrium.model.study_pooler import StudyPooler, days_code

Studies = tuple[Tensor, Tensor, Tensor, Tensor]


def pooler(seed: int = 0) -> StudyPooler:
    """One that has learned something."""
    torch.manual_seed(seed)
    made = StudyPooler(6, modalities=3, days=True)
    torch.nn.init.normal_(made.query)
    return made


def studies(volumes: int, seed: int, patients: int = 2) -> Studies:
    generator = torch.Generator().manual_seed(seed)
    present = torch.rand(patients, volumes, generator=generator) < 0.7
    present[:, 0] = True
    modality = torch.randint(3, (patients, volumes), generator=generator)
    days = torch.randint(0, 400, (patients, volumes), generator=generator).float()
    return torch.randn(patients, volumes, 6, generator=generator), present, modality, days


@given(st.integers(1, 7), st.integers(0, 1000))
def test_the_order_of_volumes_does_not_matter(volumes: int, seed: int) -> None:
    given_ = studies(volumes, seed)
    order = torch.randperm(volumes, generator=torch.Generator().manual_seed(seed))
    net = pooler()
    assert torch.allclose(net(*given_), net(*(part[:, order] for part in given_)), atol=1e-5)


@given(st.integers(1, 7), st.integers(0, 1000))
def test_absent_volumes_are_as_if_they_were_not_there(volumes: int, seed: int) -> None:
    """Against a loop that hands over only what is there; what stands in the empty places does not count."""
    features, present, modality, days = studies(volumes, seed)
    net = pooler()
    found = net(features.masked_fill(~present[..., None], torch.nan), present, modality, days)
    for p in range(len(features)):
        kept = present[p]
        alone = net(
            features[p, kept][None], torch.ones(1, int(kept.sum())).bool(), modality[p, kept][None], days[p, kept][None]
        )
        assert torch.allclose(found[p], alone[0], atol=1e-5)


def test_what_stands_in_empty_places_reaches_no_gradient() -> None:
    features, present, modality, days = studies(5, 1)
    assert not present.all()
    net = pooler()
    net(features.masked_fill(~present[..., None], torch.nan), present, modality, days).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in net.parameters() if p.grad is not None)


def test_weights_sum_to_one_and_a_single_volume_is_itself() -> None:
    features, _, modality, days = studies(1, 0)
    present = torch.ones(2, 1).bool()
    assert torch.allclose(pooler()(features, present, modality, days), features[:, 0])
    many = studies(5, 1)
    weights = pooler().weights(*many)
    assert torch.allclose(weights.sum(1), torch.ones(2))
    assert (weights[~many[1]] == 0).all()


def test_before_anything_is_learned_it_is_the_mean() -> None:
    features, present, modality, days = studies(5, 2)
    found = StudyPooler(6, 3, days=True)(features, present, modality, days)
    assert torch.allclose(found, torch.stack([features[p, present[p]].mean(0) for p in range(2)]), atol=1e-6)


def test_a_patient_without_a_volume_is_zero_and_harms_no_gradient() -> None:
    features, present, modality, days = studies(3, 3)
    present[1] = False
    net = pooler()
    found = net(features, present, modality, days)
    assert (found[1] == 0).all()
    found.sum().backward()
    assert all(bool(torch.isfinite(p.grad).all()) for p in net.parameters() if p.grad is not None)


@pytest.mark.parametrize("part", [2, 3])
def test_modality_and_day_count_only_where_they_are_asked_for(part: int) -> None:
    given_ = list(studies(4, 4))
    other = list(given_)
    other[part] = (given_[part] + 1) % 3 if part == 2 else given_[part] * torch.tensor([1.0, 3.0, 5.0, 9.0]) + 1
    given_[1] = other[1] = torch.ones_like(given_[1])
    assert not torch.allclose(pooler()(*given_), pooler()(*other))
    torch.manual_seed(0)
    plain = StudyPooler(6)
    torch.nn.init.normal_(plain.query)
    assert torch.equal(plain(*given_), plain(*other))


def test_days_have_distinct_codes_of_fixed_size() -> None:
    codes = days_code(torch.arange(0.0, 2000.0))
    assert codes.shape == (2000, 16)
    assert codes.abs().max() <= 1
    assert (torch.cdist(codes, codes) + 10 * torch.eye(2000)).min() > 1e-3
