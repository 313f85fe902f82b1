"""Masked and cross-modal reconstruction against loops over patches (METHODS 8.3, 9.6, 9.7)."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from parametrium.config import JobConfig
from parametrium.data.batch import Batch, CropRequest
from parametrium.model.masking import draw_mask
from parametrium.model.modality import tensor_owners
from parametrium.model.position import grid_positions
from parametrium.objectives import contrastive, reconstruction
from parametrium.objectives.contrastive import SoftContrastive
from parametrium.objectives.reconstruction import CrossModalReconstruction, MaskedReconstruction, draw_pairs
from parametrium.objectives.registry import PretrainingModel, build_model
from parametrium.objectives.target import standardise

MakeJob = Callable[..., JobConfig]
MakeBatch = Callable[..., Batch]

PATCH, GRID = 4, 4  # 16 voxels a side: 64 patches of 64 voxels
KINDS = ["masked_reconstruction", "cross_modal_reconstruction", "soft_contrastive"]


def seeded(seed: int = 5) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def model_for(make_job: MakeJob, kind: str, **settings: Any) -> tuple[PretrainingModel, Any]:
    model = build_model(make_job(objectives=[{"kind": kind, **settings}])).eval()
    return model, model.objective(kind)


def voxels_of(patch: int) -> tuple[slice, slice, slice]:
    """The box of a patch in its crop."""
    i, j, k = patch // GRID**2, patch // GRID % GRID, patch % GRID
    return tuple(slice(n * PATCH, (n + 1) * PATCH) for n in (i, j, k))  # type: ignore[return-value]


def changed(images: Tensor, row: int, patches: list[int]) -> Tensor:
    """The same images, with those patches of one row disturbed."""
    result = images.clone()
    for patch in patches:
        result[row][voxels_of(patch)] += 50 * torch.randn(PATCH, PATCH, PATCH, generator=seeded(patch))
    return result


def ragged_body(batch: Batch, seed: int = 0) -> Batch:
    """The batch with bodies of every size in its patches, from none of the voxels to all of them."""
    share = torch.rand(len(batch.images), GRID, GRID, GRID, generator=seeded(seed)) * 1.4 - 0.4
    for axis in (1, 2, 3):
        share = share.repeat_interleave(PATCH, axis)
    return replace(batch, body=torch.rand(share.shape, generator=seeded(seed + 1)) < share)


def counts(body: Tensor, row: int, patch: int) -> bool:
    """At least a fifth of the voxels, counted one by one."""
    return sum(bool(v) for v in body[row][voxels_of(patch)].flatten()) >= 0.2 * PATCH**3


class Silence(nn.Module):
    """Predicts zeros, so that the loss shows its targets alone."""

    def forward(self, context: Tensor, modality: Tensor, context_mm: Tensor, wanted: Tensor, *_: Tensor) -> Tensor:
        return torch.zeros(len(context), wanted.shape[1], PATCH**3)


# -------------------------------------------------------------------------------------------- masked reconstruction


@torch.no_grad()
@pytest.mark.parametrize("target", ["raw", "patch_normalised"])
def test_the_loss_equals_a_loop_over_patches(make_job: MakeJob, make_batch: MakeBatch, target: str) -> None:
    model, objective = model_for(make_job, "masked_reconstruction", target=target)
    batch = ragged_body(make_batch([[0, 1], [2], [1, 2]]))
    outcome = objective(model.encoder, batch, seeded())
    visible, masked = draw_mask(5, (GRID,) * 3, 0.75, seeded())
    errors = []
    for row in range(5):
        one = slice(row, row + 1)
        predicted, _ = objective.predict(
            model.encoder, batch.images[one], batch.modality[one], visible[one], masked[one]
        )
        for n, patch in enumerate(masked[row].tolist()):
            if not counts(batch.body, row, patch):
                continue
            true = batch.images[row][voxels_of(patch)].flatten().double()
            if target == "patch_normalised":
                mean = sum(true.tolist()) / len(true)
                variance = sum((v - mean) ** 2 for v in true.tolist()) / len(true)
                true = (true - mean) / max(variance**0.5, 0.1)
            errors.append(float((predicted[0, n].double() - true).square().sum()) / PATCH**3)
    assert 20 < len(errors) < 5 * 48
    assert float(outcome.loss) == pytest.approx(sum(errors) / len(errors), rel=1e-4)


@torch.no_grad()
def test_the_loss_ignores_visible_and_background_and_sees_the_rest(make_job: MakeJob, make_batch: MakeBatch) -> None:
    model, objective = model_for(make_job, "masked_reconstruction")
    objective.decoder = Silence()
    batch = ragged_body(make_batch([[0], [1]]))
    visible, masked = draw_mask(2, (GRID,) * 3, 0.75, seeded())
    background = [patch for patch in masked[0].tolist() if not counts(batch.body, 0, patch)]
    foreground = [patch for patch in masked[0].tolist() if counts(batch.body, 0, patch)]
    assert background
    assert foreground

    def loss(images: Tensor) -> Tensor:
        return objective(model.encoder, replace(batch, images=images), seeded()).loss

    before = loss(batch.images)
    assert torch.equal(loss(changed(batch.images, 0, visible[0].tolist())), before)
    assert torch.equal(loss(changed(batch.images, 0, background)), before)
    for patch in foreground[:5]:
        assert not torch.allclose(loss(changed(batch.images, 0, [patch])), before)


@torch.no_grad()
def test_masked_voxels_do_not_leak_into_the_prediction(make_job: MakeJob, make_batch: MakeBatch) -> None:
    model, objective = model_for(make_job, "masked_reconstruction")
    batch = make_batch([[0], [1]])
    visible, masked = draw_mask(2, (GRID,) * 3, 0.75, seeded())

    def predict(images: Tensor) -> Tensor:
        return objective.predict(model.encoder, images, batch.modality, visible, masked)[0]

    before = predict(batch.images)
    assert torch.equal(predict(changed(batch.images, 0, masked[0].tolist())), before)
    after = predict(changed(batch.images, 0, visible[0, :1].tolist()))
    assert not torch.allclose(after[0], before[0])
    assert torch.equal(after[1], before[1])


@torch.no_grad()
def test_what_the_network_predicts_for_a_place_does_not_depend_on_the_other_wanted_places(
    make_job: MakeJob, make_batch: MakeBatch
) -> None:
    model, objective = model_for(make_job, "masked_reconstruction")
    batch = make_batch([[0]])
    visible, masked = draw_mask(1, (GRID,) * 3, 0.75, seeded())
    few = masked[:, 3:5]
    full = objective.predict(model.encoder, batch.images, batch.modality, visible, masked)[0]
    alone = objective.predict(model.encoder, batch.images, batch.modality, visible, few)[0]
    assert torch.allclose(alone, full[:, 3:5], atol=1e-5)


@pytest.mark.parametrize(("voxels", "expected"), [(12, 0), (13, 1), (64, 1)])
def test_a_patch_counts_from_a_fifth_of_body(
    make_job: MakeJob, make_batch: MakeBatch, voxels: int, expected: int
) -> None:
    model, objective = model_for(make_job, "masked_reconstruction")
    batch = make_batch([[0]])
    _, masked = draw_mask(1, (GRID,) * 3, 0.75, seeded())
    body = torch.zeros_like(batch.body)
    body[0][voxels_of(int(masked[0, 0]))] = torch.arange(PATCH**3).reshape(PATCH, PATCH, PATCH) < voxels
    outcome = objective(model.encoder, replace(batch, body=body), seeded())
    assert (0 if outcome is None else outcome.samples) == expected


def test_without_any_body_there_is_nothing_to_learn(make_job: MakeJob, make_batch: MakeBatch) -> None:
    model, objective = model_for(make_job, "masked_reconstruction")
    batch = make_batch([[0], [1]])
    nothing = replace(batch, body=torch.zeros_like(batch.body))
    assert objective(model.encoder, nothing, seeded()) is None


def test_crops_without_body_are_not_counted(make_job: MakeJob, make_batch: MakeBatch) -> None:
    model, objective = model_for(make_job, "masked_reconstruction")
    batch = make_batch([[0, 1], [1], [2]])
    batch.body[1] = False
    outcome = objective(model.encoder, batch, seeded())
    assert outcome.samples == 3
    assert outcome.embedded == outcome.decoded == {"CT": 1, "T1": 1, "PET": 1}


@given(st.floats(-5, 5), st.floats(0, 1e-3), st.integers(0, 1000))
def test_flat_patches_do_not_explode(level: float, ripple: float, seed: int) -> None:
    flat = level + ripple * torch.randn(1, 2, PATCH**3, generator=seeded(seed))
    assert float(standardise(flat, flat, "patch_normalised").abs().max()) <= 0.1


@given(st.floats(-3, 3), st.floats(0.2, 5), st.integers(0, 1000))
def test_normalised_patches_have_mean_zero_and_deviation_one(level: float, scale: float, seed: int) -> None:
    patches = level + scale * torch.randn(2, 3, PATCH**3, generator=seeded(seed))
    normal = standardise(patches, patches, "patch_normalised")
    assert torch.allclose(normal.mean(-1), torch.zeros(2, 3), atol=1e-4)
    assert torch.allclose(normal.std(-1, unbiased=False), torch.ones(2, 3), atol=1e-3)
    assert torch.equal(standardise(patches, patches, "raw"), patches)


# --------------------------------------------------------------------------------------- cross-modal reconstruction


def test_it_asks_for_two_registered_volumes(make_job: MakeJob) -> None:
    _, objective = model_for(make_job, "cross_modal_reconstruction")
    assert objective.request(4, 1) == CropRequest("aligned", 4, 2)
    assert objective.request(4, 3) == CropRequest("aligned", 4, 3)


modality_sets = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=4), min_size=1, max_size=4)


@given(modality_sets, st.booleans(), st.integers(0, 2**20))
def test_a_crop_is_filled_by_another_modality_at_the_same_place_or_not_at_all(
    sets: list[list[int]], aligned: bool, seed: int
) -> None:
    modality = torch.tensor([m for row in sets for m in row])
    patient = torch.tensor([p for p, row in enumerate(sets) for _ in row])
    frame = patient if aligned else torch.arange(len(patient))
    nothing = torch.zeros(0)
    batch = Batch(
        nothing, nothing, patient, modality, frame, nothing, nothing, nothing, nothing, torch.arange(len(sets))
    )
    anchor, source = draw_pairs(batch, seeded(seed))
    drawn = dict(zip(anchor.tolist(), source.tolist(), strict=True))
    assert len(drawn) == len(anchor)
    for n in range(len(modality)):
        possible = [m for m in range(len(modality)) if frame[m] == frame[n] and modality[m] != modality[n]]
        assert drawn[n] in possible if possible else n not in drawn


def test_the_source_is_drawn_for_every_crop_by_itself(make_batch: MakeBatch) -> None:
    batch = make_batch([[0, 1, 2]] * 8)
    draws = [draw_pairs(batch, seeded(seed))[1] for seed in range(20)]
    assert any(len({int(m) for m in batch.modality[draw][::3]}) == 2 for draw in draws)
    seen = Counter((n, int(draw[n])) for draw in draws for n in range(24))
    assert len(seen) == 48  # each of the 24 crops met both of the other modalities


class EmbedRecorder:
    """Stands in for ``encoder.embed`` and keeps what it was given."""

    def __init__(self, embed: Callable[..., Tensor]) -> None:
        self.embed = embed
        self.calls: list[tuple[Tensor, Tensor, Tensor]] = []

    def __call__(self, patches: Tensor, modality: Tensor, positions: Tensor) -> Tensor:
        self.calls.append((patches, modality, positions))
        return self.embed(patches, modality, positions)


@torch.no_grad()
def test_masked_patches_are_filled_voxel_by_voxel_from_the_source(
    make_job: MakeJob, make_batch: MakeBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, objective = model_for(make_job, "cross_modal_reconstruction")
    batch = make_batch([[0, 1], [2], [1, 2, 0]])
    recorder = EmbedRecorder(model.encoder.embed)
    monkeypatch.setattr(model.encoder, "embed", recorder)
    objective(model.encoder, batch, seeded())
    generator = seeded()
    anchor, source = draw_pairs(batch, generator)
    visible, masked = draw_mask(len(anchor), (GRID,) * 3, 0.75, generator)
    assert anchor.tolist() == [0, 1, 3, 4, 5]  # patient 1 has nothing to be filled with
    (own, own_modality, own_mm), (filled, filled_modality, filled_mm) = recorder.calls
    places = grid_positions((16, 16, 16), PATCH, (3.0, 3.0, 3.0))
    for row, (a, s) in enumerate(zip(anchor.tolist(), source.tolist(), strict=True)):
        assert own_modality[row] == batch.modality[a]
        assert filled_modality[row] == batch.modality[s]
        assert sorted([*visible[row].tolist(), *masked[row].tolist()]) == list(range(GRID**3))
        for n, patch in enumerate(visible[row].tolist()):
            assert torch.equal(own[row, n], batch.images[a][voxels_of(patch)].flatten())
            assert torch.equal(own_mm[row, n], places[patch])
        for n, patch in enumerate(masked[row].tolist()):
            assert torch.equal(filled[row, n], batch.images[s][voxels_of(patch)].flatten())
            assert torch.equal(filled_mm[row, n], places[patch])


@torch.no_grad()
@pytest.mark.parametrize("target", ["raw", "patch_normalised"])
def test_the_cross_modal_loss_equals_a_loop_over_patches(make_job: MakeJob, make_batch: MakeBatch, target: str) -> None:
    model, objective = model_for(make_job, "cross_modal_reconstruction", target=target)
    batch = ragged_body(make_batch([[0, 1], [2], [1, 2, 0]]))
    outcome = objective(model.encoder, batch, seeded())
    generator = seeded()
    anchor, source = draw_pairs(batch, generator)
    visible, masked = draw_mask(len(anchor), (GRID,) * 3, 0.75, generator)
    errors = []
    for row, (a, s) in enumerate(zip(anchor.tolist(), source.tolist(), strict=True)):
        predicted, true = objective.predict(
            model.encoder,
            batch.images[a, None],
            batch.modality[a, None],
            batch.images[s, None],
            batch.modality[s, None],
            visible[row, None],
            masked[row, None],
        )
        for n, patch in enumerate(masked[row].tolist()):
            both = batch.body[a] & batch.body[s]
            if counts(both[None], 0, patch):
                wanted = batch.images[a][voxels_of(patch)].flatten()[None, None]
                assert torch.equal(true[0, n], standardise(wanted, wanted, target)[0, 0])  # type: ignore[arg-type]
                errors.append(float((predicted[0, n] - true[0, n]).double().square().mean()))
    assert len(errors) > 20
    assert float(outcome.loss) == pytest.approx(sum(errors) / len(errors), rel=1e-4)


@torch.no_grad()
def test_masked_voxels_do_not_leak_into_the_cross_modal_prediction(make_job: MakeJob, make_batch: MakeBatch) -> None:
    model, objective = model_for(make_job, "cross_modal_reconstruction")
    batch = make_batch([[0, 1]])
    visible, masked = draw_mask(1, (GRID,) * 3, 0.75, seeded())

    def predict(image: Tensor, fill: Tensor) -> Tensor:
        one, other = batch.modality[:1], batch.modality[1:]
        return objective.predict(model.encoder, image, one, fill, other, visible, masked)[0]

    image, fill = batch.images[:1], batch.images[1:]
    before = predict(image, fill)
    assert torch.equal(predict(changed(image, 0, masked[0].tolist()), fill), before)
    assert torch.equal(predict(image, changed(fill, 0, visible[0].tolist())), before)
    assert not torch.allclose(predict(image, changed(fill, 0, masked[0, :1].tolist())), before)


def test_single_modality_patients_have_nothing_to_fill_with(make_job: MakeJob, make_batch: MakeBatch) -> None:
    model, objective = model_for(make_job, "cross_modal_reconstruction")
    assert objective(model.encoder, make_batch([[0], [1], [0]]), seeded()) is None
    mixed = objective(model.encoder, make_batch([[0], [0, 1]]), seeded())
    assert mixed.samples == 2
    assert mixed.decoded == {"CT": 1, "T1": 1}
    assert objective(model.encoder, make_batch([[0, 1]], aligned=False), seeded()) is None


def test_bodies_that_do_not_overlap_have_nothing_to_compare(make_job: MakeJob, make_batch: MakeBatch) -> None:
    model, objective = model_for(make_job, "cross_modal_reconstruction")
    batch = make_batch([[0, 1]])
    batch.body[0, 8:] = False
    batch.body[1, :8] = False
    assert objective(model.encoder, batch, seeded()) is None


# ---------------------------------------------------------------------- contributions: who had a gradient path to what


def touched(model: PretrainingModel) -> set[str]:
    names = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad(set_to_none=True)
    return names


def paths_of_each_reconstructed_crop(
    model: PretrainingModel, kind: str, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> list[set[str]]:
    """For every crop alone in the loss, the parameters that got a gradient."""
    every = reconstruction.counting_patches
    found = []
    for row in range(len(batch.images)):

        def only(body: Tensor, row: int = row) -> Tensor:
            chosen = (torch.arange(len(body)) == row)[:, None]
            return every(body) & chosen

        monkeypatch.setattr(reconstruction, "counting_patches", only)
        outcome = model.objective(kind)(model.encoder, batch, seeded())
        if outcome is not None:
            outcome.loss.backward()
            found.append(touched(model))
    monkeypatch.setattr(reconstruction, "counting_patches", every)
    return found


@pytest.mark.parametrize("kind", KINDS[:2])
@pytest.mark.parametrize("sets", [[[0, 1], [2], [1, 2, 0]], [[0, 1], [0, 1]], [[0, 1, 2], [1]]])
def test_contributions_count_the_crops_with_a_gradient_path(
    make_job: MakeJob, make_batch: MakeBatch, monkeypatch: pytest.MonkeyPatch, kind: str, sets: list[list[int]]
) -> None:
    model, objective = model_for(make_job, kind)
    batch = ragged_body(make_batch(sets))
    batch.body[-1] = False
    paths = paths_of_each_reconstructed_crop(model, kind, batch, monkeypatch)
    outcome = objective(model.encoder, batch, seeded())
    outcome.loss.backward()
    owners = tensor_owners(model)
    expected = Counter(name for path in paths for name in path)
    assert {name: outcome.contribution(owners[name]) for name in touched(model)} == expected
    assert outcome.samples == len(paths)


@pytest.mark.parametrize("pairs", [[[0, 1]] * 3, [[2, 2]] * 2])
def test_contrast_counts_both_views_and_no_decoder(
    make_job: MakeJob, make_batch: MakeBatch, monkeypatch: pytest.MonkeyPatch, pairs: list[list[int]]
) -> None:
    model, objective = model_for(make_job, "soft_contrastive", crops=1)
    batch = make_batch(pairs, aligned=False)
    together = SoftContrastive.views
    paths = []
    for alone in range(len(batch.images)):

        def views(
            self: SoftContrastive,
            encoder: Any,
            images: Tensor,
            modality: Tensor,
            visible: Tensor,
            number: int,
            alone: int = alone,
        ) -> Tensor:
            assert number == len(images)
            rows = [
                together(self, encoder, images[n, None], modality[n, None], visible[n, None], 1)
                for n in range(len(images))
            ]
            return torch.cat([row if n == alone else row.detach() for n, row in enumerate(rows)])

        monkeypatch.setattr(contrastive.SoftContrastive, "views", views)
        objective(model.encoder, batch, seeded()).loss.backward()
        paths.append(touched(model))
    monkeypatch.setattr(contrastive.SoftContrastive, "views", together)
    outcome = objective(model.encoder, batch, seeded())
    outcome.loss.backward()
    owners = tensor_owners(model)
    expected = Counter(name for path in paths for name in path)
    assert {name: outcome.contribution(owners[name]) for name in touched(model)} == expected
    assert outcome.samples == 2 * len(pairs)
    assert not outcome.decoded


def test_the_classes_are_registered_under_their_kinds(make_job: MakeJob) -> None:
    model = build_model(make_job(objectives=[{"kind": kind} for kind in KINDS]))
    kinds = [MaskedReconstruction, CrossModalReconstruction, SoftContrastive]
    assert [type(model.objective(kind)) for kind in KINDS] == kinds
    assert all(model.objective(kind).kind == kind for kind in KINDS)
