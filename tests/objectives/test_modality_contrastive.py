"""Contrast of differently filled views: what is compared with what, and who learns from it (METHODS 1.1, 9.7, 10)."""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from memory_volumes import memory_patients
from parametrium.clinical.similarity import gower
from parametrium.config import JobConfig
from parametrium.data.batch import Batch, CropRequest
from parametrium.data.loader import CropLoader
from parametrium.errors import ConfigError
from parametrium.model.masking import draw_mask
from parametrium.model.modality import tensor_owners
from parametrium.model.position import grid_positions
from parametrium.objectives.contrast_loss import soft_targets
from parametrium.objectives.modality_contrastive import Compared, ModalityContrastive, draw_compared
from parametrium.objectives.registry import PretrainingModel, build_model
from parametrium.objectives.schedule import CropPlan
from parametrium.training.step import new_state, train_step

MakeJob = Callable[..., JobConfig]
MakeBatch = Callable[..., Batch]

PATCH, GRID = 4, (4, 4, 4)
KIND = "modality_contrastive"
TEMPLATES = {"kind": "template_reconstruction"}


def seeded(seed: int = 5) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def model_for(make_job: MakeJob, **settings: Any) -> tuple[PretrainingModel, ModalityContrastive]:
    """A model whose templates hold noise."""
    model = build_model(make_job(objectives=[{"kind": KIND, **settings}, TEMPLATES])).eval()
    for name, parameter in model.named_parameters():
        if name.endswith(".values"):
            parameter.data = torch.randn(parameter.shape, generator=seeded(len(name)))
    objective = model.objective(KIND)
    assert isinstance(objective, ModalityContrastive)
    return model, objective


def test_it_asks_for_two_registered_volumes(make_job: MakeJob) -> None:
    assert model_for(make_job)[1].request(4, 1) == CropRequest("aligned", 4, 2)
    assert model_for(make_job, patients=12)[1].request(4, 3) == CropRequest("aligned", 12, 3)


def test_a_job_that_never_trains_the_templates_is_refused(make_job: MakeJob) -> None:
    with pytest.raises(ConfigError, match="only template_reconstruction trains"):
        make_job(objectives=[{"kind": KIND}])


# ------------------------------------------------------------------------------------------------ who is compared


def batch_of(sets: list[list[int]], aligned: bool = True, people: int | None = None) -> Batch:
    """With ``people`` so many take turns in the batch; else every entry is a patient of its own."""
    modality = torch.tensor([m for row in sets for m in row])
    patient = torch.tensor([p for p, row in enumerate(sets) for _ in row])
    frame = patient if aligned else torch.arange(len(patient))
    nothing = torch.zeros(0)
    return Batch(
        nothing,
        nothing,
        patient,
        modality,
        frame,
        nothing,
        nothing,
        nothing,
        nothing,
        torch.arange(len(sets)) % (people or len(sets)),
    )


modality_sets = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=3), min_size=1, max_size=5)


@given(modality_sets, st.booleans(), st.none() | st.integers(1, 3), st.integers(0, 2**20))
def test_patients_of_one_modality_are_compared_each_once_and_filled_by_their_own(
    sets: list[list[int]], aligned: bool, people: int | None, seed: int
) -> None:
    batch = batch_of(sets, aligned, people)
    drawn = draw_compared(batch, seeded(seed))
    has_other = [
        any(
            batch.frame[n] == batch.frame[o] and batch.modality[n] != batch.modality[o]
            for o in range(len(batch.modality))
        )
        for n in range(len(batch.modality))
    ]
    sizes = [
        len({int(batch.owner[n]) for n in range(len(has_other)) if batch.modality[n] == m and has_other[n] == paired})
        for m in range(3)
        for paired in (False, True)
    ]
    assert (drawn is not None) == (max(sizes) > 1)
    if drawn is None:
        return
    anchors = drawn.anchor.tolist()
    assert len({int(batch.owner[a]) for a in anchors}) == len(anchors) >= 2
    assert len({int(batch.modality[a]) for a in anchors}) == 1
    assert {has_other[a] for a in anchors} == {drawn.source is not None}
    if drawn.source is not None:
        for a, s in zip(anchors, drawn.source.tolist(), strict=True):
            assert batch.frame[a] == batch.frame[s]
            assert batch.patient[a] == batch.patient[s]
            assert batch.modality[a] != batch.modality[s]


@pytest.mark.parametrize("people", [1, 2, 5])
def test_who_comes_twice_in_a_batch_is_not_her_own_negative(make_job: MakeJob, people: int) -> None:
    model, objective = model_for(make_job)
    job = make_job(objectives=[{"kind": KIND}, TEMPLATES], batch={"patients": 8})
    batch = CropLoader(memory_patients([["CT", "T1"]] * people), job, "alpha", CropPlan(job, model))[0]["aligned"]
    assert batch.patients == 8 > len(set(batch.identity.tolist())) == people
    outcome = objective(model.encoder, batch, seeded())
    assert outcome is None if people == 1 else outcome.samples == people


def test_every_group_is_drawn_in_proportion_to_its_patients_and_sources_by_patient() -> None:
    batch = batch_of([[0, 1, 2]] * 6 + [[1]] * 3)
    seen: Counter[tuple[int, bool]] = Counter()
    mixed = 0
    for seed in range(400):
        drawn = draw_compared(batch, seeded(seed))
        assert drawn is not None
        seen[int(batch.modality[drawn.anchor[0]]), drawn.source is not None] += 1
        mixed += drawn.source is not None and len(set(batch.modality[drawn.source].tolist())) > 1
    assert set(seen) == {(0, True), (1, True), (2, True), (1, False)}
    assert 30 < seen[1, False] < 90  # 3 of 21
    assert mixed > 200


# ------------------------------------------------------------------------------------------------------- the loss


def standardised(rows: list[Tensor]) -> list[Tensor]:
    mean = sum(rows) / len(rows)
    deviation = [math.sqrt(sum(float(row[c] - mean[c]) ** 2 for row in rows) / len(rows)) for c in range(len(mean))]
    floor = 0.1 * math.sqrt(sum(d**2 for d in deviation) / len(deviation))
    return [(row - mean) / torch.tensor([max(d, floor) for d in deviation]) for row in rows]


def pooled(patches: Tensor) -> Tensor:
    return torch.cat([patches.mean(0), (patches.var(0, unbiased=False) + 1e-6).sqrt()])


@torch.no_grad()
@pytest.mark.parametrize(("softness", "sets"), [(0.0, [[0, 1]] * 4), (0.4, [[0, 1]] * 4), (0.0, [[2]] * 3)])
def test_the_loss_equals_views_made_patch_by_patch(
    make_job: MakeJob, make_batch: MakeBatch, softness: float, sets: list[list[int]]
) -> None:
    model, objective = model_for(make_job, softness=softness, temperature=0.25)
    batch = make_batch(sets)
    batch = replace(batch, corner=torch.randint(0, 9, batch.corner.shape, generator=seeded(1)))
    outcome = objective(model.encoder, batch, seeded())
    assert outcome is not None
    generator = seeded()
    compared = draw_compared(batch, generator)
    assert compared is not None
    count = len(compared.anchor)
    masks = [draw_mask(count, GRID, 0.75, generator) for _ in range(2)]
    assert not torch.equal(masks[0][0], masks[1][0])
    views: list[list[Tensor]] = [[], []]
    for row, anchor in enumerate(compared.anchor.tolist()):
        one = slice(anchor, anchor + 1)
        shown = model.encoder.templates.crops(batch.modality[one], batch.corner[one], batch.box[one], (16, 16, 16))
        fills = [None if compared.source is None else batch.images[compared.source[row]][None], shown]
        for view, (visible, masked) in enumerate(masks):
            tokens = [token_at(model, batch.images[one], batch.modality[one], p) for p in visible[row].tolist()]
            if fills[view] is not None:
                source = batch.modality[one] if view else batch.modality[compared.source[row]][None]
                tokens += [token_at(model, fills[view], source, p, template=bool(view)) for p in masked[row].tolist()]
            places = [*visible[row].tolist(), *(masked[row].tolist() if fills[view] is not None else [])]
            centres = grid_positions((16, 16, 16), 4, objective.spacing_mm)[places]
            views[view].append(pooled(model.encoder(torch.stack(tokens)[None], None, centres[None]).patches[0]))
    z = [[objective.projector(row) for row in standardised(view)] for view in views]
    unit = [[row / row.norm() for row in view] for view in z]
    logits = [[float((unit[0][i] * unit[1][j]).sum()) / 0.25 for j in range(count)] for i in range(count)]
    targets = soft_targets(gower(batch.clinical, batch.observed, objective.clinical), softness, 0.1).tolist()
    expected = 0.0
    for table in (logits, [list(column) for column in zip(*logits, strict=True)]):
        for i in range(count):
            total = math.log(sum(math.exp(s) for s in table[i]))
            expected += sum(
                q * (math.log(q) - table[i][j] + total) / (2 * count) for j, q in enumerate(targets[i]) if q > 0
            )
    assert float(outcome.loss) == pytest.approx(expected, abs=1e-3)
    entropy = -sum(q * math.log(q) for row in targets for q in row if q > 0) / count
    assert outcome.scalars["chance"] == pytest.approx(math.log(count) - entropy, abs=1e-4)


def token_at(model: PretrainingModel, image: Tensor, modality: Tensor, patch: int, template: bool = False) -> Tensor:
    """The token of one patch, cut out by hand."""
    i, j, k = patch // 16, patch // 4 % 4, patch % 4
    box = image[0, 4 * i : 4 * i + 4, 4 * j : 4 * j + 4, 4 * k : 4 * k + 4].reshape(1, 1, -1)
    place = torch.tensor([[(4 * n + 2 - 8) * 3.0 for n in (i, j, k)]])
    embed = model.encoder.embed_template if template else model.encoder.embed
    return embed(box, modality, place)[0, 0]


@torch.no_grad()
def test_what_is_filled_over_does_not_reach_a_view(make_job: MakeJob, make_batch: MakeBatch) -> None:
    model, objective = model_for(make_job)
    batch = make_batch([[0, 1]] * 3)
    visible, masked = draw_mask(3, GRID, 0.75, seeded())
    visible[:], masked[:] = visible[:1].clone(), masked[:1].clone()
    disturbed = batch.images.clone().unflatten(1, (4, 4)).unflatten(3, (4, 4)).unflatten(5, (4, 4))
    for patch in masked[0].tolist():
        disturbed[::2, patch // 16, :, patch // 4 % 4, :, patch % 4] += 50
    other = replace(batch, images=disturbed.reshape(batch.images.shape))
    for compared in (
        Compared(torch.tensor([0, 2, 4]), torch.tensor([1, 3, 5])),
        Compared(torch.tensor([0, 2, 4]), None),
    ):
        for view in (objective.source_view, objective.template_view):
            same = [view(model.encoder, b, compared, visible, masked) for b in (batch, other)]
            assert torch.equal(*same)


@pytest.mark.parametrize("sets", [[[0, 1]], [[0], [1]], [[0, 1], [2]]])
def test_without_two_patients_alike_there_is_nothing_to_compare(
    make_job: MakeJob, make_batch: MakeBatch, sets: list[list[int]]
) -> None:
    model, objective = model_for(make_job)
    assert objective(model.encoder, make_batch(sets), seeded()) is None


# -------------------------------------------------------------------------------------------------- contributions


@pytest.mark.parametrize("sets", [[[0, 1]] * 3, [[2]] * 3, [[0, 1, 2]] * 2 + [[1]]])
def test_contributions_count_the_patients_with_a_gradient_path(
    make_job: MakeJob, make_batch: MakeBatch, monkeypatch: pytest.MonkeyPatch, sets: list[list[int]]
) -> None:
    model, objective = model_for(make_job)
    batch = make_batch(sets)
    compared = draw_compared(batch, seeded())
    assert compared is not None
    together = {name: getattr(ModalityContrastive, name) for name in ("source_view", "template_view")}
    expected: Counter[str] = Counter()
    for alone in range(len(compared.anchor)):
        for name, view in together.items():

            def one_by_one(
                self: Any,
                encoder: Any,
                batch: Batch,
                compared: Compared,
                visible: Tensor,
                masked: Tensor,
                view: Any = view,
                alone: int = alone,
            ) -> Tensor:
                rows = []
                for n in range(len(compared.anchor)):
                    own = slice(n, n + 1)
                    source = None if compared.source is None else compared.source[own]
                    row = view(self, encoder, batch, Compared(compared.anchor[own], source), visible[own], masked[own])
                    rows.append(row if n == alone else row.detach())
                return torch.cat(rows)

            monkeypatch.setattr(ModalityContrastive, name, one_by_one)
        objective(model.encoder, batch, seeded()).loss.backward()
        expected.update(name for name, p in model.named_parameters() if p.grad is not None)
        model.zero_grad(set_to_none=True)
    for name, view in together.items():
        monkeypatch.setattr(ModalityContrastive, name, view)
    outcome = objective(model.encoder, batch, seeded())
    assert outcome is not None
    outcome.loss.backward()
    owners = tensor_owners(model)
    found = {name: outcome.contribution(owners[name]) for name, p in model.named_parameters() if p.grad is not None}
    assert found == expected
    assert outcome.samples == len(compared.anchor)
    assert not any(name.endswith(".values") for name in found)


def test_in_a_summed_step_the_contrast_does_not_count_for_the_templates_themselves(make_job: MakeJob) -> None:
    job = make_job(objectives=[TEMPLATES, {"kind": KIND}], schedule="summed", precision="fp32")
    state = new_state(job, torch.device("cpu"))
    loader = CropLoader(memory_patients([["CT", "T1"]] * 4), job, "alpha", CropPlan(job, state.model))
    report = train_step(state, loader[0], job, "alpha")
    assert set(report.losses) == {KIND, "template_reconstruction"}
    assert set(report.scalars) == {f"chance/{KIND}", "template_error/template_reconstruction"}
    compared = report.contributions[f"objectives.{KIND}.log_scale"]
    assert compared == 4
    for part, expected in (("values", 8), ("token.vector", 12)):
        found = [report.contributions[f"encoder.templates.of.{modality}.{part}"] for modality in ("CT", "T1")]
        assert sum(found) == expected
    assert report.contributions["encoder.blocks.0.mlp.0.weight"] == 8 + 4


def test_templates_and_views_train_in_bf16_and_with_activation_checkpointing(make_job: MakeJob) -> None:
    job = make_job(objectives=[TEMPLATES, {"kind": KIND}], schedule="summed", precision="bf16")
    state = new_state(job, torch.device("cpu"))
    state.model.encoder.activation_checkpointing = True
    batches = CropLoader(memory_patients([["CT", "T1"]] * 4), job, "alpha", CropPlan(job, state.model))[0]
    report = train_step(state, batches, job, "alpha")
    values = state.model.encoder.templates.template("CT").values
    assert set(report.losses) == {KIND, "template_reconstruction"}
    assert report.contributions["encoder.templates.of.CT.values"] == 4
    assert values.grad.dtype == torch.float32
    assert values.detach().any()


def test_views_of_the_same_crop_become_alike(make_job: MakeJob) -> None:
    """Six patients and one draw of masks, learned by heart: the loss leaves its chance level."""
    job = make_job(objectives=[{"kind": KIND}, TEMPLATES], precision="fp32", batch={"patients": 6})
    state = new_state(job, torch.device("cpu"))
    batches = CropLoader(memory_patients([["CT", "T1"]] * 6), job, "alpha", CropPlan(job, state.model))[0]
    losses = []
    for _ in range(40):
        state.step = 0
        report = train_step(state, batches, job, "alpha")
        losses.append(report.losses[KIND] / report.scalars[f"chance/{KIND}"])
    assert losses[0] > 0.5
    assert losses[-1] < 0.3
