"""An encoder that was told the answers: the most that pretraining could give in as many steps.

Pretraining that does not help leaves two suspects, the representation and the way it is used. An encoder trained on the
masks of all the patients that pretraining sees without masks separates them: where fine-tuning from it helps no more,
no objective could have helped, and encoder, budget or fine-tuning are at fault.
"""

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from token_probe import crops_of, layers_of
from torch import Tensor, nn

from parametrium.config import JobConfig
from parametrium.evaluation.segmentation import Labelled
from parametrium.model.encoder import Encoder
from parametrium.objectives.registry import PretrainingModel, build_model
from parametrium.training.checkpoint import load_checkpoint, save_checkpoint
from parametrium.training.optim import build_optimiser, learning_rate, set_learning_rate
from parametrium.training.step import autocast


class Told(nn.Module):
    """The encoder with a linear map from its tokens to structures."""

    def __init__(self, encoder: Encoder, structures: int) -> None:
        super().__init__()
        self.encoder = encoder
        channels = 3 * encoder.shape.width
        self.scale = nn.BatchNorm1d(channels, affine=False)
        self.head = nn.Linear(channels, structures + 1)

    def loss(self, images: Tensor, shares: Tensor, modality: int, job: JobConfig) -> Tensor:
        """Cross-entropy to the shares [N, L, S] of the structures in each patch; the rest is background."""
        with autocast(job.precision, images.device):
            tokens = layers_of(self.encoder, images, modality, job).flatten(0, 1)
        said = self.head(self.scale(tokens.float())).log_softmax(-1)
        true = shares.flatten(0, 1)
        whole = torch.cat([1 - true.sum(-1, keepdim=True), true], dim=-1)
        return -(whole * said).sum(-1).mean()


def told(folder: Path, job: JobConfig, modality: int, samples: Sequence[Labelled], structures: int) -> PretrainingModel:
    """The job's model, its encoder trained on masks for as many steps of as many crops as pretraining has."""
    torch.manual_seed(job.seed)
    model = build_model(job)
    if not folder.exists():
        network = Told(model.encoder, structures)
        optimiser, rng = build_optimiser(network, job.optimiser), np.random.default_rng(job.seed)
        count, started = job.batch.patients * job.batch.volumes_per_patient, time.monotonic()
        for step in range(job.total_steps):
            set_learning_rate(optimiser, learning_rate(step, job.total_steps, job.optimiser))
            chosen = [samples[int(rng.integers(len(samples)))] for _ in range(count)]
            loss = network.loss(*crops_of(rng, chosen, job, 1, structures), modality, job)
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimiser.step()
            if step % 100 == 0:
                print(
                    f"  told, step {step}, {time.monotonic() - started:.0f} s: {float(loss.detach()):.3f}", flush=True
                )
        save_checkpoint(folder, dict(model.encoder.state_dict()), {"steps": job.total_steps})
    tensors, _ = load_checkpoint(folder)
    model.encoder.load_state_dict(tensors)
    return model.eval()
