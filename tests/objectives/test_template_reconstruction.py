"""Reconstruction from templates: what is filled, what learns from it and who is counted (METHODS 8.3, 9.8, 10)."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from memory_volumes import memory_patients
from parametrium.config import JobConfig
from parametrium.data.batch import Batch, CropRequest
from parametrium.data.loader import CropLoader
from parametrium.model.masking import draw_mask
from parametrium.model.modality import tensor_owners
from parametrium.model.patch_embed import gather, patchify
from parametrium.objectives import reconstruction
from parametrium.objectives.registry import PretrainingModel, build_model
from parametrium.objectives.schedule import CropPlan
from parametrium.objectives.target import standardise
from parametrium.objectives.template import TemplateReconstruction
from parametrium.training.step import new_state, train_step

MakeJob = Callable[..., JobConfig]
MakeBatch = Callable[..., Batch]

PATCH, GRID = 4, 4  # 16 voxels a side: 64 patches of 64 voxels
KIND = "template_reconstruction"
CELLS = (5, 7, 6)
MODEL = {"patch": 4, "width": 24, "depth": 2, "heads": 2, "decoder_width": 24, "decoder_depth": 1, "template": CELLS}


def seeded(seed: int = 5) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def model_for(make_job: MakeJob, **settings: Any) -> tuple[PretrainingModel, TemplateReconstruction]:
    """A model whose templates hold noise."""
    model = build_model(make_job(objectives=[{"kind": KIND, **settings}], model=MODEL)).eval()
    for name, parameter in model.named_parameters():
        if name.endswith(".values"):
            parameter.data = torch.randn(CELLS, generator=seeded(len(name)))
    objective = model.objective(KIND)
    assert isinstance(objective, TemplateReconstruction)
    return model, objective


def placed(batch: Batch, seed: int = 0) -> Batch:
    """The batch with crops at different places of boxes of different size, and ragged bodies."""
    n = len(batch.images)
    low = torch.randint(-20, 20, (n, 3), generator=seeded(seed))
    size = torch.randint(12, 40, (n, 3), generator=seeded(seed + 1))
    corner = low + torch.randint(-4, 20, (n, 3), generator=seeded(seed + 2))
    share = torch.rand(n, GRID, GRID, GRID, generator=seeded(seed + 3)) * 1.4 - 0.4
    for axis in (1, 2, 3):
        share = share.repeat_interleave(PATCH, axis)
    body = torch.rand(share.shape, generator=seeded(seed + 4)) < share
    return replace(batch, corner=corner, box=torch.stack([low, low + size], dim=1).float(), body=body)


def voxels_of(patch: int) -> tuple[slice, slice, slice]:
    i, j, k = patch // GRID**2, patch // GRID % GRID, patch % GRID
    return tuple(slice(n * PATCH, (n + 1) * PATCH) for n in (i, j, k))  # type: ignore[return-value]


def counting(body: Tensor, patch: int) -> bool:
    return int(body[voxels_of(patch)].sum()) >= 0.2 * PATCH**3


def test_it_asks_for_any_crops(make_job: MakeJob) -> None:
    assert model_for(make_job)[1].request(4, 1) == CropRequest("aligned", 4, 1)


@torch.no_grad()
@pytest.mark.parametrize("target", ["raw", "patch_normalised"])
def test_the_loss_equals_crops_filled_and_decoded_one_by_one(
    make_job: MakeJob, make_batch: MakeBatch, target: str
) -> None:
    model, objective = model_for(make_job, target=target, likeness=0.0)
    batch = placed(make_batch([[0, 1], [2], [1]]))
    outcome = objective(model.encoder, batch, seeded())
    assert outcome is not None
    visible, masked = draw_mask(4, (GRID,) * 3, 0.75, seeded())
    errors = []
    for row in range(4):
        one = slice(row, row + 1)
        shown = model.encoder.templates.crops(batch.modality[one], batch.corner[one], batch.box[one], (16, 16, 16))[0]
        fill = torch.stack([shown[voxels_of(patch)].flatten() for patch in masked[row].tolist()])[None]
        predicted, true = objective.predict(
            model.encoder, batch.images[one], batch.modality[one], fill, visible[one], masked[one]
        )
        for n, patch in enumerate(masked[row].tolist()):
            if counting(batch.body[row], patch):
                wanted = batch.images[row][voxels_of(patch)].flatten()[None, None]
                assert torch.equal(true[0, n], standardise(wanted, wanted, target)[0, 0])  # type: ignore[arg-type]
                errors.append(float((predicted[0, n] - true[0, n]).double().square().mean()))
    assert len(errors) > 20
    assert float(outcome.loss) == pytest.approx(sum(errors) / len(errors), rel=1e-4)


@torch.no_grad()
def test_masked_voxels_do_not_leak_and_the_template_is_seen(make_job: MakeJob, make_batch: MakeBatch) -> None:
    model, objective = model_for(make_job)
    batch = placed(make_batch([[0]]))
    visible, masked = draw_mask(1, (GRID,) * 3, 0.75, seeded())

    def predict() -> Tensor:
        shown = model.encoder.templates.crops(batch.modality, batch.corner, batch.box, (16, 16, 16))
        fill = gather(patchify(shown, PATCH), masked)
        return objective.predict(model.encoder, batch.images, batch.modality, fill, visible, masked)[0]

    before = predict()
    for patch in masked[0].tolist():
        batch.images[0][voxels_of(patch)] += 50
    assert torch.equal(predict(), before)
    model.encoder.templates.template("T1").values.add_(1)
    assert torch.equal(predict(), before)
    model.encoder.templates.template("CT").values.add_(1)
    assert not torch.allclose(predict(), before)


def test_the_gradient_reaches_exactly_the_template_voxels_under_filled_patches_that_count(
    make_job: MakeJob, make_batch: MakeBatch
) -> None:
    model, objective = model_for(make_job, mask_ratio=0.3)
    batch = placed(make_batch([[0]]), seed=11)
    batch.corner[:] = batch.box[:, 0].long() - 3  # partly beyond the body's box
    batch.body[:, 8:] = False
    outcome = objective(model.encoder, batch, seeded())
    assert outcome is not None
    outcome.loss.backward()
    _, masked = draw_mask(1, (GRID,) * 3, 0.3, seeded())
    expected = torch.zeros(CELLS, dtype=torch.bool)
    for patch in masked[0].tolist():
        if not counting(batch.body[0], patch):
            continue
        box = voxels_of(patch)
        for i in range(box[0].start, box[0].stop):
            for j in range(box[1].start, box[1].stop):
                for k in range(box[2].start, box[2].stop):
                    expected[near(batch, (i, j, k))] = True
    gradient = model.encoder.templates.template("CT").values.grad
    assert expected.any()
    assert not expected.all()
    assert torch.equal(gradient != 0, expected)
    others = (model.encoder.templates.template(m).values.grad for m in ("T1", "PET"))
    assert all(grad is None for grad in others)


def near(batch: Batch, voxel: tuple[int, int, int]) -> tuple[slice, slice, slice]:
    """The template's voxels that a crop's voxel is interpolated from."""
    parts = []
    for axis in range(3):
        low, high = batch.box[0, :, axis].tolist()
        share = (int(batch.corner[0, axis]) + voxel[axis] + 0.5 - low) / (high - low)
        at = min(max(share * CELLS[axis] - 0.5, 0), CELLS[axis] - 1)
        first = int(at)
        parts.append(slice(first, first + 1 + (at - first > 1e-6)))
    return tuple(parts)  # type: ignore[return-value]


def test_a_patient_with_one_modality_trains_and_one_without_body_does_not(
    make_job: MakeJob, make_batch: MakeBatch
) -> None:
    model, objective = model_for(make_job)
    batch = placed(make_batch([[0], [2]]))
    batch.body[1] = False
    outcome = objective(model.encoder, batch, seeded())
    assert outcome is not None
    assert outcome.samples == 1
    assert outcome.filled == outcome.embedded == outcome.decoded == {"CT": 1}
    batch.body[:] = False
    assert objective(model.encoder, batch, seeded()) is None


@pytest.mark.parametrize("sets", [[[0, 1], [2], [1, 2, 0]], [[0], [0], [1]]])
def test_contributions_count_the_crops_with_a_gradient_path(
    make_job: MakeJob, make_batch: MakeBatch, monkeypatch: pytest.MonkeyPatch, sets: list[list[int]]
) -> None:
    model, objective = model_for(make_job)
    batch = placed(make_batch(sets))
    batch.body[-1] = False
    every = reconstruction.counting_patches
    expected: Counter[str] = Counter()
    for row in range(len(batch.images)):
        alone = torch.arange(len(batch.images)) == row
        monkeypatch.setattr(reconstruction, "counting_patches", lambda body, a=alone: every(body) & a[:, None])
        outcome = objective(model.encoder, batch, seeded())
        if outcome is not None:
            outcome.loss.backward()
            expected.update(name for name, p in model.named_parameters() if p.grad is not None)
        model.zero_grad(set_to_none=True)
    monkeypatch.setattr(reconstruction, "counting_patches", every)
    outcome = objective(model.encoder, batch, seeded())
    assert outcome is not None
    outcome.loss.backward()
    owners = tensor_owners(model)
    found = {n: outcome.contribution(owners[n]) for n, p in model.named_parameters() if p.grad is not None}
    assert found == expected
    assert found["encoder.templates.of.CT.values"] == sum(row.count(0) for row in sets[:-1]) + sets[-1][:-1].count(0)


def test_other_objectives_of_a_step_do_not_count_for_the_templates(make_job: MakeJob) -> None:
    job = make_job(objectives=[{"kind": KIND}, {"kind": "masked_reconstruction"}], schedule="summed", precision="fp32")
    state = new_state(job, torch.device("cpu"))
    loader = CropLoader(memory_patients([["CT", "T1"]] * 4), job, "alpha", CropPlan(job, state.model))
    before = {name: p.detach().clone() for name, p in state.model.named_parameters()}
    report = train_step(state, loader[0], job, "alpha")
    assert report.contributions["encoder.patch_embed.of.CT.weight"] == 8
    assert report.contributions["encoder.templates.of.CT.values"] == 4
    assert report.contributions["encoder.templates.of.CT.token.vector"] == 4
    moved = {name for name, p in state.model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == report.contributions.keys()
    assert not any("PET" in name for name in moved)


def test_a_template_learns_what_the_patients_have_in_common(make_job: MakeJob) -> None:
    """Noisy copies of one anatomy, crops at random places: reconstruction alone would as soon learn its negative."""
    body = torch.randn(6, 8, 7, generator=seeded(0))
    anatomy = body.repeat_interleave(4, 0).repeat_interleave(4, 1).repeat_interleave(4, 2)
    job = make_job(objectives=[{"kind": KIND}], model={**MODEL, "template": [6, 8, 7]}, rounds=1, local_steps=60)
    state = new_state(job, torch.device("cpu"))
    slots = torch.arange(8)
    for step in range(60):
        i, j, k = (torch.randint(0, n - 15, (8,), generator=seeded(step + axis)) for axis, n in enumerate((24, 32, 28)))
        places = torch.stack([i, j, k], dim=1)
        crops = [anatomy[a : a + 16, b : b + 16, c : c + 16] for a, b, c in places.tolist()]
        noise = 0.3 * torch.randn(8, 16, 16, 16, generator=seeded(step))
        batch = Batch(
            images=torch.stack(crops) + noise,
            body=torch.ones_like(noise, dtype=torch.bool),
            patient=slots,
            modality=torch.zeros_like(slots),
            frame=slots,
            corner=places + 50,
            box=torch.tensor([[50.0] * 3, [74.0, 82.0, 78.0]]).repeat(8, 1, 1),
            clinical=torch.zeros(8, 3),
            observed=torch.zeros(8, 3, dtype=torch.bool),
            identity=slots,
        )
        train_step(state, {"aligned": batch}, job, "alpha")
    learned = state.model.encoder.templates.template("CT").volume().detach()
    assert float(torch.corrcoef(torch.stack([learned.flatten(), body.flatten()]))[0, 1]) > 0.6


@torch.no_grad()
def test_likeness_adds_the_error_of_the_template_itself(make_job: MakeJob, make_batch: MakeBatch) -> None:
    batch = placed(make_batch([[0, 1], [2]]))
    outcomes = []
    for likeness in (0.0, 0.5):
        model, objective = model_for(make_job, likeness=likeness, target="patch_normalised")
        outcomes.append(objective(model.encoder, batch, seeded()))
    _, masked = draw_mask(3, (GRID,) * 3, 0.75, seeded())
    shown = model.encoder.templates.crops(batch.modality, batch.corner, batch.box, (16, 16, 16))
    errors = [
        float((shown[row] - batch.images[row])[voxels_of(patch)].double().square().mean())
        for row in range(3)
        for patch in masked[row].tolist()
        if counting(batch.body[row], patch)
    ]
    without, with_half = outcomes
    assert without is not None
    assert with_half is not None
    error = with_half.scalars["template_error"]
    assert error == without.scalars["template_error"] == pytest.approx(sum(errors) / len(errors), rel=1e-4)
    assert float(with_half.loss - without.loss) == pytest.approx(0.5 * error, rel=1e-4)
