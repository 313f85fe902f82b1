"""Contrast of scans with texts: against a dumber implementation, what counts, and that it learns."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from parametrium.config import JobConfig
from parametrium.data.batch import Batch
from parametrium.objectives.contrastive import standardise_views
from parametrium.objectives.registry import build_model
from parametrium.objectives.text import TextContrastive
from parametrium.training.step import new_state, train_step

CHANNELS = 8


@pytest.fixture
def job(make_job: Callable[..., JobConfig]) -> JobConfig:
    text = {"kind": "text_contrastive", "channels": CHANNELS, "crops": 1, "mask_ratio": 0.0}
    return make_job(objectives=[{"kind": "masked_reconstruction", "start": 0.0}, text], local_steps=60, rounds=1)


def batch_of(make_batch: Callable[..., Batch], patients: int, without: tuple[int, ...] = ()) -> Batch:
    batch = make_batch([[n % 3, (n + 1) % 3] for n in range(patients)], aligned=False)
    text = torch.randn(patients, CHANNELS, generator=torch.Generator().manual_seed(1))
    text = text / text.norm(dim=1, keepdim=True)
    text[list(without)] = 0
    return replace(batch, text=text)


def objective_of(job: JobConfig) -> tuple[torch.nn.Module, TextContrastive]:
    model = build_model(job)
    found = model.find(TextContrastive)
    assert found is not None
    return model.encoder, found


def test_the_loss_equals_one_written_out_in_loops(job: JobConfig, make_batch: Callable[..., Batch]) -> None:
    encoder, objective = objective_of(job)
    objective.config = objective.config.model_copy(update={"softness": 0.0})
    batch = batch_of(make_batch, 4)
    outcome = objective(encoder, batch, torch.Generator().manual_seed(0))
    assert outcome is not None
    with torch.no_grad():
        pooled = encoder.encode(batch.images, batch.modality, objective.spacing_mm).pooled  # type: ignore[operator]
        assert batch.text is not None
        texts = objective.text_projector(batch.text - batch.text.mean(0)).double().numpy()
        losses = []
        for view in (0, 1):
            seen = objective.projector(standardise_views(pooled[view::2])).double().numpy()
            scores = np.zeros((4, 4))
            for i in range(4):
                for j in range(4):
                    cosine = seen[i] @ texts[j] / np.linalg.norm(seen[i]) / np.linalg.norm(texts[j])
                    scores[i, j] = cosine * np.exp(objective.log_scale.item())
            for table in (scores, scores.T):
                losses.append(np.mean([np.log(np.exp(row).sum()) - row[i] for i, row in enumerate(table)]))
    assert outcome.loss.item() == pytest.approx(np.mean(losses), rel=1e-5)
    assert outcome.scalars["chance"] == pytest.approx(np.log(4), rel=1e-6)


def test_patients_without_a_text_are_neither_compared_nor_counted(
    job: JobConfig, make_batch: Callable[..., Batch]
) -> None:
    encoder, objective = objective_of(job)
    batch = batch_of(make_batch, 5, without=(1, 3))
    outcome = objective(encoder, batch, torch.Generator().manual_seed(0))
    assert outcome is not None
    assert outcome.samples == 6
    same = objective(
        encoder, batch.of(torch.tensor([True, False, True, False, True])), torch.Generator().manual_seed(0)
    )
    assert same is not None
    assert torch.equal(outcome.loss, same.loss)


def test_a_site_without_texts_skips_it(job: JobConfig, make_batch: Callable[..., Batch]) -> None:
    encoder, objective = objective_of(job)
    assert objective(encoder, batch_of(make_batch, 3, without=(0, 2)), torch.Generator()) is None
    assert objective(encoder, replace(batch_of(make_batch, 3), text=None), torch.Generator()) is None


def test_a_step_moves_the_projector_only_where_there_are_texts(
    job: JobConfig, make_batch: Callable[..., Batch]
) -> None:
    for has in (True, False):
        state = new_state(job, torch.device("cpu"))
        state.step = 1
        batch = batch_of(make_batch, 4)
        report = train_step(state, {"contrast": batch if has else replace(batch, text=None)}, job, "north")
        moved = {name for name in report.contributions if "text_projector" in name}
        assert moved == (
            {f"objectives.text_contrastive.text_projector.{p}" for p in ("weight", "bias")} if has else set()
        )


def test_scans_learn_to_find_their_text(job: JobConfig, make_batch: Callable[..., Batch]) -> None:
    state = new_state(job, torch.device("cpu"))
    batch = batch_of(make_batch, 4)
    losses = []
    for step in range(1, 60, 2):
        state.step = step  # the other turn is reconstruction's
        losses.append(train_step(state, {"contrast": batch}, job, "north").losses["text_contrastive"])
    assert losses[-1] < 0.5 * losses[0]
