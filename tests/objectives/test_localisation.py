"""Box localisation: what is cut from where, that its place is not given away, and who is counted (METHODS 2.1)."""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from parametrium.config import JobConfig
from parametrium.data.batch import Batch, CropRequest
from parametrium.model.encoder import Encoded
from parametrium.model.modality import tensor_owners
from parametrium.model.position import grid_positions
from parametrium.objectives.boxes import as_fractions, box_loss, iou
from parametrium.objectives.localisation import SIZES, BoxLocalisation, Drawn, disguise
from parametrium.objectives.registry import PretrainingModel, build_model
from parametrium.training.step import new_state, train_step

MakeJob = Callable[..., JobConfig]
MakeBatch = Callable[..., Batch]

PATCH = 4


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def model_for(make_job: MakeJob, **settings: Any) -> tuple[PretrainingModel, BoxLocalisation]:
    """With one box a crop unless the settings say more."""
    model = build_model(make_job(objectives=[{"kind": "box_localisation", "boxes": 1, **settings}])).eval()
    objective = model.objective("box_localisation")
    assert isinstance(objective, BoxLocalisation)
    return model, objective


class EncodeRecorder:
    """Stands in for ``encoder.encode`` and keeps what it was given."""

    def __init__(self, encode: Callable[..., Encoded]) -> None:
        self.encode = encode
        self.calls: list[tuple[Tensor, Tensor]] = []

    def __call__(self, volumes: Tensor, modality: Tensor, *rest: Any) -> Encoded:
        self.calls.append((volumes, modality))
        return self.encode(volumes, modality, *rest)


def test_it_asks_for_registered_volumes(make_job: MakeJob) -> None:
    _, objective = model_for(make_job)
    assert objective.request(4, 1) == CropRequest("aligned", 4, 2)
    assert objective.request(4, 3) == CropRequest("aligned", 4, 3)


def test_a_box_comes_from_another_modality_of_the_frame_where_there_is_one(
    make_job: MakeJob, make_batch: MakeBatch
) -> None:
    _, objective = model_for(make_job)
    batch = make_batch([[0, 1], [2], [1, 2, 0], [0, 0]])
    seen = set()
    for seed in range(20):
        drawn = objective.draw(batch, 4, seeded(seed))
        assert drawn.row.tolist() == list(range(8))
        assert len(torch.unique(drawn.extents, dim=0)) <= SIZES
        for row, source in zip(drawn.row.tolist(), drawn.source.tolist(), strict=True):
            assert batch.frame[row] == batch.frame[source]
            if row in (2, 6, 7):
                assert source == row
            else:
                assert batch.modality[source] != batch.modality[row]
            seen.add((row, source))
    assert {(3, 4), (3, 5), (4, 3), (4, 5), (5, 3), (5, 4)} <= seen


def test_scans_that_are_not_registered_lend_each_other_no_box(make_job: MakeJob, make_batch: MakeBatch) -> None:
    _, objective = model_for(make_job)
    drawn = objective.draw(make_batch([[0, 1], [1, 2]], aligned=False), 4, seeded())
    assert torch.equal(drawn.source, drawn.row)


@torch.no_grad()
def test_the_encoder_sees_the_crop_and_the_voxels_of_the_box(
    make_job: MakeJob, make_batch: MakeBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, objective = model_for(make_job)
    batch = make_batch([[0, 1], [1, 2, 0]])
    drawn = objective.draw(batch, 4, seeded())
    recorder = EncodeRecorder(model.encoder.encode)
    monkeypatch.setattr(model.encoder, "encode", recorder)
    objective.locate(model.encoder, batch, drawn, seeded())
    (images, modality), *boxes = recorder.calls
    assert torch.equal(images, batch.images)
    assert torch.equal(modality, batch.modality)
    cut = [(box, int(m)) for volumes, kinds in boxes for box, m in zip(volumes, kinds, strict=True)]
    for source, low, extent in zip(drawn.source.tolist(), drawn.low.tolist(), drawn.extents.tolist(), strict=True):
        here = tuple(slice(a, a + n) for a, n in zip(low, extent, strict=True))
        wanted = batch.images[source][here], int(batch.modality[source])
        assert any(m == wanted[1] and torch.equal(box, wanted[0]) for box, m in cut)
    assert len(cut) == len(drawn.row)


@torch.no_grad()
def test_a_box_of_the_same_scan_is_disguised(
    make_job: MakeJob, make_batch: MakeBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, objective = model_for(make_job)
    batch = make_batch([[0], [1]])
    drawn = objective.draw(batch, 4, seeded())
    recorder = EncodeRecorder(model.encoder.encode)
    monkeypatch.setattr(model.encoder, "encode", recorder)
    objective.locate(model.encoder, batch, drawn, seeded())
    for row, (low, extent) in enumerate(zip(drawn.low.tolist(), drawn.extents.tolist(), strict=True)):
        here = tuple(slice(a, a + n) for a, n in zip(low, extent, strict=True))
        true = batch.images[row][here]
        boxes = [box for volumes, _ in recorder.calls[1:] for box in volumes if box.shape == true.shape]
        assert not any(torch.allclose(box, true, atol=0.05) for box in boxes)
        alike = max(abs(float(torch.corrcoef(torch.stack([box.flatten(), true.flatten()]))[0, 1])) for box in boxes)
        assert alike > 0.9, "the anatomy is kept"


def test_a_disguise_turns_half_of_the_boxes_upside_down_and_leaves_the_air() -> None:
    box = torch.randn(200, 4, 4, 4, generator=seeded())
    body = torch.ones_like(box, dtype=torch.bool)
    body[:, 0] = False
    changed = disguise(box, body, seeded(1))
    assert torch.equal(changed[:, 0], box[:, 0])
    slopes = ((changed - changed.mean((1, 2, 3), True)) * box)[:, 1:].sum((1, 2, 3))
    assert 0.35 < float((slopes > 0).float().mean()) < 0.65
    assert torch.equal(changed, disguise(box, body, seeded(1)))
    assert torch.isfinite(disguise(box, torch.zeros_like(body), seeded())).all()


# ------------------------------------------------------------------------------------------ the place is not given away


def at(low: list[int], extent: list[int], rows: int = 2) -> Drawn:
    return Drawn(
        torch.arange(rows),
        torch.arange(rows).flip(0),
        torch.tensor([low] * rows),
        torch.tensor([extent] * rows),
    )


@torch.no_grad()
def test_where_all_looks_alike_nothing_tells_the_place(make_job: MakeJob, make_batch: MakeBatch) -> None:
    """Neither positions nor what fills up the box's last patches: a constant scan gives the same answer everywhere."""
    model, objective = model_for(make_job)
    batch = make_batch([[0, 1]])
    batch = replace(batch, images=torch.full_like(batch.images, 0.7))
    extent = [9, 7, 10]
    places = [[0, 0, 0], [7, 9, 6], [3, 1, 2], [4, 8, 0]]
    answers = [objective.locate(model.encoder, batch, at(low, extent), seeded()) for low in places]
    assert all(torch.equal(answers[0], answer) for answer in answers)
    other = objective.locate(model.encoder, batch, at([0, 0, 0], [9, 8, 10]), seeded())
    assert not torch.equal(other, answers[0]), "size may be seen"


@torch.no_grad()
def test_the_control_of_the_leak_test_sees_a_place_that_is_given_away(
    make_job: MakeJob, make_batch: MakeBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, objective = model_for(make_job)
    batch = make_batch([[0, 1]])
    batch = replace(batch, images=torch.full_like(batch.images, 0.7))
    honest = BoxLocalisation.query

    def leaky(self: BoxLocalisation, encoder: Any, batch: Batch, drawn: Drawn, *rest: Any) -> tuple[Encoded, Tensor]:
        encoded, query_mm = honest(self, encoder, batch, drawn, *rest)
        return encoded, query_mm + 3.0 * drawn.low[0]

    monkeypatch.setattr(BoxLocalisation, "query", leaky)
    first, second = (
        objective.locate(model.encoder, batch, at(low, [9, 7, 10]), seeded()) for low in ([0, 0, 0], [7, 9, 6])
    )
    assert not torch.equal(first, second)


@torch.no_grad()
def test_positions_in_a_box_are_counted_from_its_centre(make_job: MakeJob, make_batch: MakeBatch) -> None:
    model, objective = model_for(make_job)
    batch = make_batch([[0, 1]])
    for extent in ([8, 8, 8], [9, 7, 10]):
        found = [
            objective.query(model.encoder, batch, at(low, extent), torch.arange(2), extent, seeded())[1]
            for low in ([0, 0, 0], [6, 6, 6])
        ]
        assert torch.equal(*found)
    _, even = objective.query(model.encoder, batch, at([1, 2, 3], [8, 8, 8]), torch.arange(2), [8, 8, 8], seeded())
    assert torch.equal(even, -even.flip(0))


@torch.no_grad()
def test_a_box_is_the_same_voxels_wherever_the_rest_changes(make_job: MakeJob, make_batch: MakeBatch) -> None:
    """The query's encoding depends on the box alone, not on what surrounds it."""
    model, objective = model_for(make_job)
    batch = make_batch([[0, 1]])
    drawn = at([3, 4, 5], [8, 9, 7])
    inside = torch.zeros_like(batch.body)
    inside[:, 3:11, 4:13, 5:12] = True
    changed = replace(batch, images=torch.where(inside, batch.images, torch.randn_like(batch.images)))
    one, two = (
        objective.query(model.encoder, b, drawn, torch.arange(2), [8, 9, 7], seeded())[0] for b in (batch, changed)
    )
    assert torch.equal(one.patches, two.patches)


# --------------------------------------------------------------------------------------------- loss and contributions


@torch.no_grad()
def test_the_loss_equals_a_loop_over_boxes(make_job: MakeJob, make_batch: MakeBatch) -> None:
    model, objective = model_for(make_job, boxes=2)
    batch = make_batch([[0, 1], [1, 2, 0]])
    outcome = objective(model.encoder, batch, seeded())
    drawn = objective.draw(batch, 4, seeded())
    assert drawn.row.tolist() == [0, 1, 2, 3, 4] * 2
    losses, overlaps = [], []
    for n in range(len(drawn.row)):
        alone = Drawn(*(part[n, None] for part in drawn))
        true = as_fractions(alone.low, alone.extents, (16, 16, 16))
        predicted = objective.locate(model.encoder, batch, alone, seeded())
        losses.append(float(box_loss(predicted, true)))
        overlaps.append(float(iou(predicted, true)))
    assert float(outcome.loss) == pytest.approx(sum(losses) / len(losses), rel=1e-4)
    assert outcome.scalars["iou"] == pytest.approx(sum(overlaps) / len(overlaps), rel=1e-4)
    assert outcome.scalars.keys() == {"iou", "iou_chance", "chance"}


@torch.no_grad()
@pytest.mark.parametrize("low", [[0, 0, 0], [2, 1, 2], [1, 2, 0]])
def test_tokens_that_are_found_again_vote_for_the_true_centre(make_job: MakeJob, low: list[int]) -> None:
    _, objective = model_for(make_job)
    places = grid_positions((16, 16, 16), PATCH, (3.0, 3.0, 3.0))
    features = 3 * torch.randn(1, 64, 24, generator=seeded())  # directions that hardly resemble each other
    inside = torch.zeros(4, 4, 4, dtype=torch.bool)
    d, h, w = (slice(first, first + 2) for first in low)
    inside[d, h, w] = True
    objective.head.log_sharpness.fill_(math.log(100))
    objective.head.alike.weight.copy_(torch.eye(24))
    objective.head.alike.bias.zero_()
    own_mm = grid_positions((8, 8, 8), PATCH, (3.0, 3.0, 3.0))
    votes = objective.head.votes(features[:, inside.flatten()], own_mm, features, places[None])
    centre = places[inside.flatten()].mean(0)
    assert torch.allclose(votes, centre.expand(1, 8, 3), atol=0.1)


@torch.no_grad()
def test_votes_equal_a_loop_and_stay_in_float32(make_job: MakeJob) -> None:
    _, objective = model_for(make_job)
    query, image = torch.randn(2, 5, 24, generator=seeded()), torch.randn(2, 9, 24, generator=seeded(1))
    query_mm, image_mm = 20 * torch.randn(5, 3, generator=seeded(2)), 50 * torch.randn(2, 9, 3, generator=seeded(3))
    votes = objective.head.votes(query, query_mm, image, image_mm)
    like, own = (objective.head.alike(tokens).double() for tokens in (image, query))
    for b in range(2):
        for q in range(5):
            cosines = [float(own[b, q] @ k / own[b, q].norm() / k.norm()) for k in like[b]]
            weights = torch.tensor([math.exp(10 * cosine) for cosine in cosines], dtype=torch.float64)
            expected = (weights / weights.sum()) @ image_mm[b].double() - query_mm[q].double()
            assert torch.allclose(votes[b, q].double(), expected, atol=1e-3)
    with torch.autocast("cpu", torch.bfloat16):
        assert objective.head.votes(query, query_mm, image, image_mm).dtype == torch.float32


def test_the_image_may_be_masked_but_never_the_box(
    make_job: MakeJob, make_batch: MakeBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, objective = model_for(make_job, mask_ratio=0.75)
    sizes = []
    monkeypatch.setattr(objective.head.context, "forward", lambda x: sizes.append(x.shape[1]) or torch.zeros(*x.shape))
    objective(model.encoder, make_batch([[0, 1]]), seeded())
    assert set(sizes) == {16}


def touched(model: PretrainingModel) -> set[str]:
    """Parameters with a gradient other than zero."""
    names = {n for n, p in model.named_parameters() if p.grad is not None and bool(p.grad.any())}
    model.zero_grad(set_to_none=True)
    return names


@pytest.mark.parametrize("boxes", [1, 3])
@pytest.mark.parametrize("sets", [[[0, 1], [2], [1, 2, 0]], [[0], [0]], [[1, 2], [1, 2]]])
def test_contributions_count_the_crops_with_a_gradient_path(
    make_job: MakeJob, make_batch: MakeBatch, sets: list[list[int]], boxes: int
) -> None:
    model, objective = model_for(make_job, boxes=boxes)
    batch = make_batch(sets)
    batch.body[-1] = False  # whoever needs this crop's body is left out
    expected: Counter[str] = Counter()
    drawn = objective.draw(batch, 4, seeded())
    true = as_fractions(drawn.low, drawn.extents, (16, 16, 16))
    crops = drawn.row.unique()
    for crop in crops:
        predicted = objective.locate(model.encoder, batch, drawn, seeded())
        box_loss(predicted, true)[drawn.row == crop].sum().backward()
        expected.update(touched(model))
    outcome = objective(model.encoder, batch, seeded())
    outcome.loss.backward()
    owners = tensor_owners(model)
    assert {name: outcome.contribution(owners[name]) for name in touched(model)} == expected
    assert outcome.samples == len(crops) < len(batch.images)
    assert not outcome.decoded
    assert all(owner.modality is None for name, owner in owners.items() if name.startswith("objectives."))


def test_a_site_with_one_modality_trains_and_leaves_the_others_alone(make_job: MakeJob, make_batch: MakeBatch) -> None:
    job = make_job(objectives=[{"kind": "box_localisation"}], precision="fp32")
    state = new_state(job, torch.device("cpu"))
    report = train_step(state, {"aligned": make_batch([[1], [1], [1]])}, job, "alpha")
    assert report.samples == 3
    assert not any(".CT." in name or ".PET." in name for name in report.contributions)
    assert {"encoder.patch_embed.of.T1.weight", "objectives.box_localisation.head.box.0.weight"} <= set(
        report.contributions
    )
    assert {"iou/box_localisation", "iou_chance/box_localisation", "chance/box_localisation"} == set(report.scalars)


def test_without_body_there_is_nothing_to_find(make_job: MakeJob, make_batch: MakeBatch) -> None:
    model, objective = model_for(make_job)
    batch = make_batch([[0, 1]])
    batch.body[:] = False
    assert objective(model.encoder, batch, seeded()) is None


def test_boxes_show_the_body(make_job: MakeJob, make_batch: MakeBatch) -> None:
    _, objective = model_for(make_job)
    batch = make_batch([[0, 1]] * 20)
    batch.body[:, :, :10] = False
    drawn = objective.draw(batch, 4, seeded())
    for low, extent in zip(drawn.low.tolist(), drawn.extents.tolist(), strict=True):
        assert low[1] + extent[1] > 10
    assert len(drawn.row) > 30


def test_a_box_is_body_where_it_is_cut_and_where_it_is_looked_for(make_job: MakeJob, make_batch: MakeBatch) -> None:
    _, objective = model_for(make_job)
    for blank in (0, 1):
        batch = make_batch([[0, 1], [2]])
        batch.body[blank] = False
        assert objective.draw(batch, 4, seeded()).row.tolist() == [2]


def field(patients: int, generator: torch.Generator) -> Batch:
    """The same smooth anatomy in two modalities of opposite contrast, with noise: where a box lies can be seen."""
    axis = torch.linspace(-1, 1, 16)
    d, h, w = torch.meshgrid(axis, axis, axis, indexing="ij")
    anatomy = torch.stack([d + 0.5 * h * w + torch.sin(2 * h), -d - torch.cos(2 * w) + h])
    images = anatomy.repeat(patients, 1, 1, 1) + 0.05 * torch.randn(2 * patients, 16, 16, 16, generator=generator)
    slots = torch.arange(patients).repeat_interleave(2)
    return Batch(
        images=images,
        body=torch.ones_like(images, dtype=torch.bool),
        patient=slots,
        modality=torch.tensor([0, 1] * patients),
        frame=slots,
        corner=torch.zeros(2 * patients, 3, dtype=torch.long),
        box=torch.zeros(2 * patients, 2, 3),
        clinical=torch.zeros(patients, 3),
        observed=torch.zeros(patients, 3, dtype=torch.bool),
        identity=torch.arange(patients),
    )


def test_it_learns_to_find_boxes(make_job: MakeJob) -> None:
    job = make_job(
        objectives=[{"kind": "box_localisation", "layers": 1}],
        precision="fp32",
        model={"patch": 4, "width": 48, "depth": 1, "heads": 2, "decoder_width": 48, "decoder_depth": 1},
        optimiser={"learning_rate": 3e-3},
        rounds=1,
        local_steps=120,
    )
    state = new_state(job, torch.device("cpu"))
    generator = seeded(5)
    reports = [train_step(state, {"aligned": field(8, generator)}, job, "alpha") for _ in range(120)]

    def late(name: str) -> float:
        return sum(report.scalars[f"{name}/box_localisation"] for report in reports[-10:]) / 10

    assert late("iou") > late("iou_chance") + 0.1
