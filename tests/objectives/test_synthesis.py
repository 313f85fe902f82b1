"""Cross-modal synthesis: which pairs, which voxels, who is counted, that it learns, and who takes its decoder over."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from parametrium.config import JobConfig
from parametrium.data.batch import Batch
from parametrium.errors import ConfigError
from parametrium.evaluation.segmentation import segmenter_of
from parametrium.objectives.registry import PretrainingModel, build_model
from parametrium.objectives.synthesis import CrossModalSynthesis

MakeJob = Callable[..., JobConfig]
MakeBatch = Callable[..., Batch]
OBJECTIVES = [{"kind": "cross_modal_synthesis"}]
NO_DRAWS = torch.Generator()


def model_for(make_job: MakeJob, **changes: Any) -> tuple[PretrainingModel, CrossModalSynthesis]:
    model = build_model(make_job(objectives=OBJECTIVES, **changes)).eval()
    objective = model.objective("cross_modal_synthesis")
    assert isinstance(objective, CrossModalSynthesis)
    return model, objective


def with_bodies(batch: Batch, seed: int = 0) -> Batch:
    """Half of the voxels, others in each crop."""
    return replace(batch, body=torch.rand(batch.body.shape, generator=torch.Generator().manual_seed(seed)) < 0.5)


@torch.no_grad()
def test_the_loss_is_that_of_every_ordered_pair_one_by_one(make_job: MakeJob, make_batch: MakeBatch) -> None:
    model, objective = model_for(make_job)
    batch = with_bodies(make_batch([[0, 1, 2], [1], [2, 0], [1, 1]]))
    outcome = objective(model.encoder, batch, NO_DRAWS)
    assert outcome is not None
    total, voxels = 0.0, 0
    by_modality: dict[int, list[float]] = {}
    for a in range(8):
        for b in range(8):
            if batch.patient[a] != batch.patient[b] or batch.modality[a] == batch.modality[b]:
                continue
            one = slice(a, a + 1)
            found = objective.predict(
                model.encoder, batch.images[one], batch.modality[one], torch.tensor([0]), batch.modality[b : b + 1]
            )[0]
            for x, y, counts in zip(
                found.flatten().tolist(),
                batch.images[b].flatten().tolist(),
                (batch.body[a] & batch.body[b]).flatten().tolist(),
                strict=True,
            ):
                if counts:
                    total += (x - y) ** 2
                    voxels += 1
                    by_modality.setdefault(int(batch.modality[b]), []).append(y)
    assert float(outcome.loss) == pytest.approx(total / voxels, rel=1e-4)
    means = {m: sum(values) / len(values) for m, values in by_modality.items()}
    apart = sum((y - means[m]) ** 2 for m, values in by_modality.items() for y in values) / voxels
    assert outcome.scalars["chance"] == pytest.approx(apart, rel=1e-4)
    assert outcome.samples == 5
    assert outcome.embedded == outcome.decoded == Counter(CT=2, T1=1, PET=2)


@torch.no_grad()
def test_what_is_to_be_found_is_not_looked_at(make_job: MakeJob, make_batch: MakeBatch) -> None:
    model, objective = model_for(make_job)
    batch = make_batch([[0, 1]])
    asked = batch.modality, torch.tensor([0]), torch.tensor([1])
    before = objective.predict(model.encoder, batch.images, *asked)
    other = batch.images.clone()
    other[1] *= -20
    torch.testing.assert_close(objective.predict(model.encoder, other, *asked), before)


@torch.no_grad()
def test_voxels_outside_of_either_body_do_not_count(make_job: MakeJob, make_batch: MakeBatch) -> None:
    model, objective = model_for(make_job)
    batch = with_bodies(make_batch([[0, 1]]))
    both = batch.body[0] & batch.body[1]
    outcome = objective(model.encoder, batch, NO_DRAWS)
    found = objective.predict(model.encoder, batch.images, batch.modality, torch.tensor([0, 1]), torch.tensor([1, 0]))
    assert outcome is not None
    expected = torch.stack([(found[i] - batch.images[1 - i])[both].square().mean() for i in (0, 1)]).mean()
    assert float(outcome.loss) == pytest.approx(float(expected), rel=1e-5)


def test_a_crop_without_a_registered_partner_is_left_out(make_job: MakeJob, make_batch: MakeBatch) -> None:
    model, objective = model_for(make_job)
    assert objective(model.encoder, make_batch([[0], [1], [2, 2]]), NO_DRAWS) is None
    assert objective(model.encoder, make_batch([[0, 1]], aligned=False), NO_DRAWS) is None
    nowhere = make_batch([[0, 1]])
    nowhere.body[0, 8:] = False
    nowhere.body[1, :8] = False
    assert objective(model.encoder, nowhere, NO_DRAWS) is None, "no voxel is body in both"
    outcome = objective(model.encoder, make_batch([[0, 1], [2]]), NO_DRAWS)
    assert outcome is not None
    assert (outcome.samples, outcome.decoded) == (2, Counter(CT=1, T1=1))
    outcome.loss.backward()
    touched = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert touched
    assert not any(".PET." in name for name in touched)


def test_one_modality_is_learned_from_another(make_job: MakeJob, make_batch: MakeBatch) -> None:
    """The other modality is the first one turned around, with a border of its own: both kinds of it are found."""
    model, objective = model_for(make_job, modalities=["CT", "T1"])
    model.train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=5e-3)
    losses = []
    for step in range(60):
        batch = make_batch([[0, 1]] * 4, seed=step)
        images = torch.nn.functional.avg_pool3d(batch.images[:, None], 5, 1, 2)[:, 0] * 5
        images[1::2] = -images[0::2] + (images[0::2] > 0.5).float()
        outcome = objective(model.encoder, replace(batch, images=images), NO_DRAWS)
        assert outcome is not None
        optimiser.zero_grad()
        outcome.loss.backward()
        optimiser.step()
        losses.append(float(outcome.loss.detach()) / outcome.scalars["chance"])
    assert sum(losses[-5:]) / 5 < 0.45 < losses[0]


def test_segmentation_takes_over_what_synthesis_learned(make_job: MakeJob) -> None:
    job = make_job(objectives=OBJECTIVES)
    model, objective = model_for(make_job)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1)
    fresh, taken = segmenter_of(job, "T1", 2, None), segmenter_of(job, "T1", 2, model)
    for name, tensor in objective.decoder.state_dict().items():
        assert torch.equal(taken.decoder.state_dict()[name], tensor), name
        assert not torch.equal(fresh.decoder.state_dict()[name], tensor), name
    for name, tensor in objective.stem.of["T1"].state_dict().items():
        assert torch.equal(taken.stem.state_dict()[name], tensor), name
    assert taken.head.weight.shape[0] == 3
    without = build_model(make_job())
    assert segmenter_of(job, "T1", 2, without).pretrained, "a model without synthesis gives its encoder alone"


def test_a_patch_that_cannot_be_doubled_into_is_refused_by_name(make_job: MakeJob) -> None:
    with pytest.raises(ConfigError, match=r"model\.patch must be a power of two, not 6"):
        make_job(objectives=OBJECTIVES, crop=[12, 12, 12], model={"patch": 6, "width": 24, "depth": 2, "heads": 2})
    with pytest.raises(ConfigError, match="more than one patch"):
        make_job(objectives=OBJECTIVES, crop=[16, 16, 4])
    make_job(crop=[12, 12, 12], model={"patch": 6, "width": 24, "depth": 2, "heads": 2})
