"""Templates: aligned with the crop of the patient, bounded, and trained only where a crop reaches (METHODS 9.8)."""

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from parametrium.cohort.intensity import rule_for
from parametrium.config import VOCABULARY, JobConfig
from parametrium.model.modality import Owner, tensor_owners
from parametrium.model.position import grid_positions
from parametrium.model.template import LIMIT, Template, Templates
from parametrium.objectives.registry import build_model

GRID = (5, 7, 4)
Triple = tuple[int, int, int]

triples = st.tuples(*[st.integers(-40, 40)] * 3)
extents = st.tuples(*[st.integers(1, 6)] * 3)
sizes = st.tuples(*[st.integers(1, 30)] * 3)


def learned(modalities: list[str] | None = None, grid: Triple = GRID) -> Templates:
    """Templates that hold noise."""
    torch.manual_seed(1)
    templates = Templates(modalities or ["CT", "T1"], grid, 12)
    for parameter in templates.parameters():
        parameter.data = torch.randn(parameter.shape)
    return templates


def boxes(low: Triple, size: Triple) -> Tensor:
    return torch.tensor([low, [a + n for a, n in zip(low, size, strict=True)]], dtype=torch.float32)[None]


def by_loop(volume: Tensor, corner: Triple, low: Triple, size: Triple, extent: Triple) -> Tensor:
    """Trilinear interpolation from the eight voxels around, voxel by voxel."""
    result = torch.zeros(extent)
    for place in itertools.product(*(range(n) for n in extent)):
        near = []
        for axis in range(3):
            share = (corner[axis] + place[axis] + 0.5 - low[axis]) / size[axis]
            at = min(max(share * volume.shape[axis] - 0.5, 0.0), volume.shape[axis] - 1.0)
            first = min(math.floor(at), volume.shape[axis] - 1)
            near.append(((first, 1 - (at - first)), (min(first + 1, volume.shape[axis] - 1), at - first)))
        for (i, a), (j, b), (k, c) in itertools.product(*near):
            result[place] += a * b * c * float(volume[i, j, k])
    return result


@given(triples, triples, sizes, extents)
def test_a_crop_equals_a_trilinear_loop(corner: Triple, low: Triple, size: Triple, extent: Triple) -> None:
    templates = learned()
    volume = templates.template("T1").volume().detach()
    found = templates.crops(torch.tensor([1]), torch.tensor([corner]), boxes(low, size), extent)[0]
    assert torch.allclose(found, by_loop(volume, corner, low, size, extent), atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("low", [(0, 0, 0), (-30, 12, 400)])
def test_the_crop_at_a_corner_of_the_body_is_that_corner_of_the_template(low: Triple) -> None:
    """With as many template voxels as body voxels; the axes differ in length, so that no two can be exchanged."""
    templates = learned()
    volume = templates.template("CT").volume()
    extent = (2, 3, 3)
    for ends in itertools.product((0, 1), repeat=3):
        start = [n - e if end else 0 for n, e, end in zip(GRID, extent, ends, strict=True)]
        corner = torch.tensor([[a + s for a, s in zip(low, start, strict=True)]])
        found = templates.crops(torch.tensor([0]), corner, boxes(low, GRID), extent)[0]
        i, j, k = (slice(s, s + e) for s, e in zip(start, extent, strict=True))
        assert torch.allclose(found, volume[i, j, k], atol=1e-4)


@torch.no_grad()
def test_two_patients_of_different_size_see_the_same_place_of_the_body() -> None:
    templates = learned()
    i, j, k = torch.meshgrid(*[torch.arange(n) for n in GRID], indexing="ij")
    ramp = 0.3 * i - 0.2 * j + 0.5 * k
    templates.template("CT").values.copy_(LIMIT * torch.atanh(ramp / LIMIT))
    one = templates.crops(torch.tensor([0]), torch.tensor([[0, 0, 0]]), boxes((0, 0, 0), (10, 14, 8)), (10, 14, 8))
    large = boxes((5, -7, 90), (20, 28, 16))
    two = templates.crops(torch.tensor([0]), torch.tensor([[5, -7, 90]]), large, (20, 28, 16))
    # A voxel of the small patient is eight of the large one, and interpolation of a ramp is exact away from the faces.
    means = two[0].reshape(10, 2, 14, 2, 8, 2).mean((1, 3, 5))
    inner = (slice(1, -1),) * 3
    assert torch.allclose(one[0][inner], means[inner], atol=1e-4)


@torch.no_grad()
def test_rows_of_different_modalities_see_their_own_template() -> None:
    templates = learned(["CT", "T1", "PET"])
    modality = torch.tensor([2, 0, 2, 1])
    corner = torch.tensor([[0, 0, 0], [1, 2, 0], [3, 3, 1], [-2, 0, 4]])
    box = torch.cat([boxes((0, 0, 0), (6, 9, 5)), boxes((-1, 2, 0), (7, 7, 7))] * 2)
    together = templates.crops(modality, corner, box, (3, 2, 4))
    for row in range(4):
        one = slice(row, row + 1)
        alone = templates.crops(modality[one], corner[one], box[one], (3, 2, 4))
        assert torch.allclose(together[one], alone, atol=1e-6)
        assert together.dtype == torch.float32


def test_a_fresh_template_is_zero_and_its_gradient_is_alive() -> None:
    templates = Templates(["CT", "T1"], GRID, 12)
    crops = templates.crops(torch.tensor([0]), torch.zeros(1, 3), boxes((0, 0, 0), GRID), GRID)
    assert not crops.any()
    crops.sum().backward()
    assert torch.allclose(templates.template("CT").values.grad, torch.ones(GRID))
    assert templates.template("T1").values.grad is None


@given(st.floats(-1e4, 1e4), st.sampled_from([0.5, 5.0, 40.0]))
def test_a_template_stays_within_the_range_of_intensities(value: float, limit: float) -> None:
    template = Template((1, 1, 1), limit, 12)
    template.values.data.fill_(value)
    assert abs(float(template.volume().detach())) <= limit
    if abs(value) < limit / 100:
        assert float(template.volume().detach()) == pytest.approx(value, rel=1e-3, abs=1e-6)


def test_the_gradient_is_that_of_interpolation() -> None:
    templates = learned(["CT"]).double()
    values = templates.template("CT").values

    def crop(changed: Tensor) -> Tensor:
        values.data = changed.data
        volume = LIMIT * torch.tanh(changed / LIMIT)
        return by_loop(volume, (1, -2, 0), (0, 0, 0), (6, 5, 9), (3, 4, 3))

    crops = templates.crops(torch.tensor([0]), torch.tensor([[1, -2, 0]]), boxes((0, 0, 0), (6, 5, 9)), (3, 4, 3))
    weights = torch.randn(3, 4, 3, dtype=torch.float64)
    (crops[0] * weights).sum().backward()
    gradient = values.grad.clone()
    start = values.detach().clone()
    for place in [(0, 0, 0), (2, 3, 1), (4, 6, 3), (1, 2, 0)]:
        step = torch.zeros(GRID, dtype=torch.float64)
        step[place] = 1e-2
        change = ((crop(start + step) - crop(start - step)) * weights).sum() / 2e-2
        assert float(gradient[place]) == pytest.approx(float(change), abs=2e-3)


# ---------------------------------------------------------------------------------------------------- in the encoder


def filled_model(make_job: Callable[..., JobConfig], **changes: object):  # type: ignore[no-untyped-def]
    return build_model(make_job(objectives=[{"kind": "template_reconstruction"}], **changes)).eval()


def test_only_a_job_that_fills_from_templates_has_them(make_job: Callable[..., JobConfig]) -> None:
    assert build_model(make_job()).encoder.templates is None
    assert not any("templates" in name for name, _ in build_model(make_job()).named_parameters())
    templates = filled_model(make_job, model={"patch": 4, "template": [3, 4, 5]}).encoder.templates
    assert [tuple(templates.template(m).values.shape) for m in ("CT", "T1", "PET")] == [(3, 4, 5)] * 3


def test_a_template_belongs_to_its_modality_as_fill(make_job: Callable[..., JobConfig]) -> None:
    owners = tensor_owners(filled_model(make_job))
    own = {name: owner for name, owner in owners.items() if "templates" in name}
    assert own == {
        f"encoder.templates.of.{modality}.{part}": Owner("fill", modality)
        for modality in ("CT", "T1", "PET")
        for part in ("values", "token.vector")
    }


def test_every_built_in_rule_stays_within_the_limit_and_a_wider_rule_widens_it(
    make_job: Callable[..., JobConfig],
) -> None:
    assert all(rule_for(modality, {}).bound <= LIMIT for modality in VOCABULARY)
    wide = {"kind": "window", "lower": -1000.0, "upper": 500.0, "centre": 0.0, "scale": 50.0}
    templates = filled_model(make_job, preparation={"intensity": {"CT": wide}}).encoder.templates
    assert (templates.template("CT").limit, templates.template("T1").limit) == (20.0, LIMIT)


@torch.no_grad()
def test_a_filled_patch_carries_the_token_of_the_template_instead_of_the_modality(
    make_job: Callable[..., JobConfig],
) -> None:
    encoder = filled_model(make_job).encoder
    patches, modality = torch.randn(2, 64, 64), torch.tensor([0, 2])
    places = grid_positions((16, 16, 16), 4, (3.0, 3.0, 3.0))
    own, filled = encoder.embed(patches, modality, places), encoder.embed_template(patches, modality, places)
    for row, name in enumerate(("CT", "PET")):
        difference = encoder.templates.template(name).token.vector - encoder.modality_token.of[name].vector
        assert torch.allclose(filled[row] - own[row], difference.expand(64, -1), atol=1e-5)
    with pytest.raises(ValueError, match="without templates"):
        build_model(make_job()).encoder.embed_template(patches, modality, places)
