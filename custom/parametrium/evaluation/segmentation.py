"""Segmentation by fine-tuning: the encoder with a light convolutional decoder, and a small CNN beside it.

Fine-tuned and never only frozen, because frozen features understate masked pretraining (METHODS 8.7 and 10). The CNN is
there because a pretrained transformer that does not beat a small network from scratch has shown nothing.

B crops, D H W voxels, C encoder channels, S structures.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import torch
from monai.inferers.utils import sliding_window_inference
from monai.losses.dice import DiceCELoss
from monai.networks.nets.unet import UNet
from numpy.typing import NDArray
from torch import Tensor, nn

from parametrium.config import JobConfig
from parametrium.data.cache import PreparedPatient
from parametrium.data.labels import label_map
from parametrium.data.lattice import cut
from parametrium.model.dense_decoder import WIDTH, DenseDecoder, convolution, spread
from parametrium.model.encoder import Encoder
from parametrium.model.patch_embed import padded
from parametrium.model.position import Spacing
from parametrium.objectives.registry import PretrainingModel, build_model
from parametrium.objectives.synthesis import CrossModalSynthesis
from parametrium.training.optim import Optimiser, block_matrices
from parametrium.training.step import autocast

Extent = tuple[int, int, int]

_ON_STRUCTURE = 2 / 3  # of the crops are centred on a structure, each structure as often; the others lie anywhere


class Labelled(NamedTuple):
    """One volume with its labels.

    Attributes:
        image: [D, H, W] float32 prepared intensities.
        labels: [D, H, W] uint8, 0 for none and n + 1 for structure n.
    """

    image: NDArray[np.float32]
    labels: NDArray[np.uint8]


@dataclass(frozen=True)
class FineTuning:
    """How a network is trained on labelled volumes.

    Attributes:
        crop: voxels, multiples of the patch.
        steps: optimiser steps.
        batch: crops of a step.
        rate: peak learning rate of all but the encoder and a decoder that is taken over.
        kept_decoder_rate: that of a decoder that is taken over; a tenth keeps tumours, and costs organs
            (docs/transfer.md).
        encoder_rate: factor of it for the encoder.
        matrix_rate: peak learning rate of Muon for the matrices of the blocks of an encoder that begins at random.
        kept_rate: the same where it is pretrained: at the other rate it forgets.
        decoder_first: share of the steps in which the encoder stays as it is (sawtooth, METHODS 4.1).
        weight_decay: of all parameters, norms and biases too.
        precision: bf16 autocasts the forward pass, in testing, too; auto: where the device has units for it. The
            convolutions at full resolution take half the time in bf16 also on a CPU with AVX-512 alone.
    """

    crop: Extent
    steps: int = 300
    batch: int = 4
    rate: float = 5e-3
    kept_decoder_rate: float = 5e-3
    encoder_rate: float = 0.2
    matrix_rate: float = 0.02
    kept_rate: float = 0.004
    decoder_first: float = 0.0
    weight_decay: float = 0.01
    precision: Literal["auto", "fp32", "bf16"] = "auto"


def labelled_volumes(
    patients: Sequence[PreparedPatient], modality: str, structures: Sequence[str], spacing_mm: Spacing
) -> list[Labelled]:
    """Of every patient the first volume of the modality, where all its structures are drawn."""
    found = []
    for patient in patients:
        volume = next((volume for volume in patient.volumes if volume.modality == modality), None)
        labels = None if volume is None else label_map(patient, volume, structures, spacing_mm)
        if volume is not None and labels is not None:
            found.append(Labelled(volume.read(volume.offset, volume.shape)[0], labels))
    return found


class Segmenter(nn.Module):
    """The encoder within the decoder that draws voxels, and a linear map of tokens that goes straight to the logits.

    Args:
        encoder: pretrained or fresh; trained along.
        modality: index of the modality in the encoder's list.
        spacing_mm: of the crops.
        structures: S.
        pretrained: whether the encoder knows something, which fine-tuning is to keep.

    Attributes:
        taken_over: other modules of which the same is true.

    Raises:
        ValueError: the patch is no power of two.
    """

    def __init__(
        self, encoder: Encoder, modality: int, spacing_mm: Spacing, structures: int, pretrained: bool = False
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.pretrained = pretrained
        self.modality = modality
        self.spacing_mm = spacing_mm
        self.stem = convolution(1, WIDTH, 3)
        self.decoder = DenseDecoder(encoder.shape)
        self.coarse = nn.Conv3d(self.decoder.channels, structures + 1, 1)
        self.head = nn.Conv3d(WIDTH, structures + 1, 1)
        self.taken_over: tuple[nn.Module, ...] = ()

    def forward(self, image: Tensor) -> Tensor:
        """[B, 1, D, H, W], any size -> logits [B, S + 1, D, H, W]."""
        volumes = padded(image[:, 0], self.encoder.shape.patch, patches=2)  # that the decoder needs
        modality = torch.full((len(volumes),), self.modality, device=volumes.device)
        known = self.decoder.known(self.encoder, volumes, modality, self.spacing_mm)
        d, h, w = volumes.shape[1:]
        features = self.decoder(self.stem(volumes[:, None]), known)
        logits: Tensor = self.head(features) + spread(self.coarse(known), (d, h, w))
        d, h, w = image.shape[2:]
        return logits[:, :, :d, :h, :w]


def segmenter_of(job: JobConfig, modality: str, structures: int, pretrained: PretrainingModel | None) -> Segmenter:
    """A segmenter of one of the job's modalities, fresh, or with what a pretrained model knows.

    That is its encoder and, where cross-modal synthesis trained one, its decoder.
    """
    encoder = build_model(job).encoder
    index, spacing_mm = job.modalities.index(modality), job.preparation.spacing_mm
    segmenter = Segmenter(encoder, index, spacing_mm, structures, pretrained is not None)
    if pretrained is None:
        return segmenter
    encoder.load_state_dict(pretrained.encoder.state_dict())
    synthesis = pretrained.find(CrossModalSynthesis)
    if synthesis is not None:
        segmenter.decoder.load_state_dict(synthesis.decoder.state_dict())
        segmenter.stem.load_state_dict(synthesis.stem.of[modality].state_dict())
        segmenter.taken_over = (segmenter.decoder, segmenter.stem)
    return segmenter


def small_cnn(structures: int) -> nn.Module:
    """A residual U-Net of about 1.2 M parameters (MONAI), from scratch."""
    network: nn.Module = UNet(3, 1, structures + 1, (16, 32, 64, 128), (2, 2, 2), num_res_units=2, norm="instance")
    return network


def fine_tune(network: nn.Module, samples: Sequence[Labelled], how: FineTuning, seed: int) -> list[float]:
    """Trains on random crops; the crops are a function of the seed alone, the same for every network.

    Returns:
        The loss of every step.
    """
    rng = np.random.default_rng(seed)
    encoder = list(network.encoder.parameters()) if isinstance(network, Segmenter) else []
    optimiser = _optimiser(network, how)
    criterion = DiceCELoss(include_background=False, to_onehot_y=True, softmax=True, batch=True)
    device = next(network.parameters()).device
    losses = []
    network.train()
    for step in range(how.steps):
        resting = step < how.decoder_first * how.steps
        for parameter in encoder:
            parameter.requires_grad_(not resting)
        for group in optimiser.param_groups:
            group["lr"] = group["peak"] * _rate(step, how)
        drawn = [labelled_crop(rng, samples[int(rng.integers(len(samples)))], how.crop) for _ in range(how.batch)]
        image = torch.from_numpy(np.stack([image for image, _ in drawn]))[:, None].to(device)
        labels = torch.from_numpy(np.stack([labels for _, labels in drawn]))[:, None].to(device)
        optimiser.zero_grad()
        with autocast(how.precision, device):
            logits = network(image)
        loss = criterion(logits.float(), labels)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        losses.append(float(loss.detach()))
    return losses


def _optimiser(network: nn.Module, how: FineTuning) -> Optimiser:
    """As pretraining's: Muon for the matrices of the encoder's blocks, AdamW for its other parameters and all else."""
    if not isinstance(network, Segmenter):
        return Optimiser([torch.optim.AdamW(_group(network.parameters(), how.rate), weight_decay=how.weight_decay)])
    matrices = block_matrices(network.encoder)
    apart = {id(matrix) for matrix in matrices}
    kept = [parameter for module in network.taken_over for parameter in module.parameters()]
    known = {id(parameter) for parameter in (*network.encoder.parameters(), *kept)}
    groups = [
        *_group((p for p in network.parameters() if id(p) not in known), how.rate),
        *_group(kept, how.kept_decoder_rate),
        *_group((p for p in network.encoder.parameters() if id(p) not in apart), how.rate * how.encoder_rate),
    ]
    peak = how.kept_rate if network.pretrained else how.matrix_rate
    adamw = torch.optim.AdamW(groups, weight_decay=how.weight_decay)
    return Optimiser([adamw, torch.optim.Muon(_group(matrices, peak), weight_decay=how.weight_decay)])


def _group(parameters: Iterable[Tensor], peak: float) -> list[dict[str, Any]]:
    return [{"params": list(parameters), "peak": peak}]


def _rate(step: int, how: FineTuning) -> float:
    """Warm-up over a twentieth, then cosine to 0; where the decoder comes first, once for it and once for all."""
    first = math.ceil(how.decoder_first * how.steps)
    begun, length = (0, first) if step < first else (first, how.steps - first)
    progress = (step - begun + 1) / max(length, 1)
    return min(progress * 20, 1.0) * (1 + math.cos(math.pi * progress)) / 2 if length > 1 else 1.0


def labelled_crop(
    rng: np.random.Generator, sample: Labelled, crop: Extent
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """A crop of image and labels, on a structure or anywhere, with zeros beyond the volume."""
    centre = rng.integers(sample.image.shape)
    present = [label for label in np.unique(sample.labels) if label]
    if present and rng.random() < _ON_STRUCTURE:
        places = np.argwhere(sample.labels == present[rng.integers(len(present))])
        centre = places[rng.integers(len(places))]
    size, extent = np.asarray(sample.image.shape), np.asarray(crop)
    low = np.clip(centre - extent // 2, np.minimum(0, size - extent), np.maximum(size - extent, 0))
    image, labels = (cut(values, (0, 0, 0), low.tolist(), crop) for values in (sample.image, sample.labels))
    return image, labels.astype(np.int64)


@torch.no_grad()
def dice_scores(
    network: nn.Module, samples: Sequence[Labelled], structures: Sequence[str], how: FineTuning
) -> dict[str, list[float]]:
    """Dice of each structure in each volume, by sliding windows as large as crops that overlap by a quarter.

    Returns:
        By structure, one number a volume in which it is drawn or found.
    """
    network.eval()
    scores: dict[str, list[float]] = {name: [] for name in structures}
    for sample in samples:
        found = window_logits(network, sample.image, how).argmax(0).numpy()
        for label, name in enumerate(structures, start=1):
            a, b = found == label, sample.labels == label
            if a.any() or b.any():
                scores[name].append(2 * float(np.logical_and(a, b).sum()) / float(a.sum() + b.sum()))
    return scores


def window_logits(network: nn.Module, image: NDArray[np.float32], how: FineTuning) -> Tensor:
    """What a network says of a whole volume [D, H, W]: logits [S + 1, D, H, W] on the CPU, its windows blended."""
    device = next((parameter.device for parameter in network.parameters()), torch.device("cpu"))
    volume = torch.from_numpy(image)[None, None].to(device)
    with autocast(how.precision, device):
        logits = sliding_window_inference(volume, how.crop, 4, network, overlap=0.25, mode="gaussian")
    return cast(Tensor, logits)[0].float().cpu()
