"""Embeddings that lie like a standard Gaussian cloud: SIGReg (LeJEPA, Balestriero and LeCun 2025; METHODS 4.2).

A cloud is standard Gaussian when every projection of it onto a line is. Some random lines are drawn at each step, and
on each the Epps-Pulley test compares the characteristic function of the sample with that of the Gaussian. A cloud that
has collapsed to a point or to a plane fails on nearly every line, so that no teacher and no negatives are needed.

The characteristic function of a sample is made of sums over its members. Sums of several batches or sites add to those
of all together, exactly; every term lies in [-1, 1], whatever the embedding (METHODS 8.6).

As an objective of its own it makes the patients of each modality fill the space, whatever else is trained; in
``global_local.py`` it keeps views apart that are drawn together.

N samples, Z channels, M directions, K knots, B crops.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from parametrium.config import IsotropyConfig, JobConfig
from parametrium.data.batch import Batch, CropRequest
from parametrium.data.loader import stable_number
from parametrium.model.encoder import Encoder
from parametrium.model.presets import Architecture
from parametrium.objectives.objective import Objective, Outcome, count

UPPER = 3.0
"""Where the integral over the argument t ends; beyond, the weight e^(-t^2 / 2) leaves little."""

GAUSSIAN = 1.05
"""Mean of the statistic over samples of a standard Gaussian, for any N: 2 int_0^3 (1 - e^(-t^2)) e^(-t^2 / 2) dt."""

PROJECTION = 64
"""Channels Z of the projection."""

PATIENTS = 128
"""For batches of so many and more, lambda = .02 to .05 was found (METHODS 4.2). The statistic grows with the patients:
with 8 of them the same lambda would weigh a sixteenth, and the embedding would collapse within some twenty steps."""


@dataclass(frozen=True)
class Sums:
    """What a sample says of its characteristic function.

    Attributes:
        cosine: [..., M, K] sum over samples of cos(t p), p the sample's place along a direction, t a knot.
        sine: [..., M, K] sum of sin(t p).
        samples: how many samples there are.
    """

    cosine: Tensor
    sine: Tensor
    samples: float

    def __add__(self, other: "Sums") -> "Sums":
        """The sums of both samples together; directions and knots must be the same."""
        return Sums(self.cosine + other.cosine, self.sine + other.sine, self.samples + other.samples)


def draw_directions(seed: int, step: int, channels: int, number: int) -> Tensor:
    """[Z, M] unit vectors, float32 on the CPU: a function of the arguments alone, so that sites draw the same.

    Args:
        seed: of the job.
        step: global step.
        channels: Z.
        number: M.
    """
    generator = torch.Generator().manual_seed(stable_number(f"{seed}/{step}/directions"))
    return F.normalize(torch.randn(channels, number, generator=generator), dim=0)


def knots(number: int = 17) -> Tensor:
    """[K] arguments of the characteristic function, evenly over [0, 3]; by symmetry they stand for [-3, 3]."""
    return torch.linspace(0, UPPER, number)


def sums(z: Tensor, directions: Tensor, at: Tensor) -> Sums:
    """Sums of [..., N, Z] embeddings, not normalised, at knots [K] along directions [Z, M]; in float32 or better."""
    precision = torch.promote_types(z.dtype, torch.float32)
    with torch.autocast(z.device.type, enabled=False):
        places = z.to(precision) @ directions.to(z.device, precision)
    phase = places[..., None] * at.to(z.device, precision)
    return Sums(phase.cos().sum(-3), phase.sin().sum(-3), z.shape[-2])


def statistic(of: Sums, at: Tensor) -> Tensor:
    """Epps-Pulley: N int_{-3}^3 |phi(t) - e^(-t^2 / 2)|^2 e^(-t^2 / 2) dt, mean over the directions.

    About ``GAUSSIAN`` for a standard Gaussian sample, and .40 N for one that has collapsed to the origin. A small
    sample pulls the cloud together: on average the statistic is smallest at a standard deviation of .43 for 2 samples,
    .75 for 4, .94 for 16.

    Args:
        of: sums at the knots.
        at: [K] the knots, ascending.

    Returns:
        Scalar, at least 0.
    """
    knot = at.to(of.cosine)
    gaussian = torch.exp(-(knot**2) / 2)
    distance = (of.cosine / of.samples - gaussian).square() + (of.sine / of.samples).square()
    return 2 * of.samples * torch.trapezoid(distance * gaussian, knot).mean()


def point(samples: int, at: Tensor) -> Sums:
    """Sums of a sample that has collapsed to the origin: of all points, the one with the smallest statistic."""
    one = torch.ones(1, len(at))
    return Sums(samples * one, torch.zeros_like(one), samples)


def mix(batch: Sums, others: Sums, share: float) -> Sums:
    """Phi = share phi_batch + (1 - share) phi_others: the batch as a part of the whole federation's cloud.

    A site with one scanner then need not make a Gaussian cloud of its own patients alone. The gradient passes through
    the batch only (METHODS 8.6). Samples are as many as would estimate phi as well, so that ``statistic`` keeps its
    scale; with share = N_batch / (N_batch + N_others) the result is ``batch + others``.

    Args:
        batch: of this mini-batch.
        others: of the other sites, at the same directions and knots; they have at least one sample.
        share: the batch's share, in (0, 1].
    """
    weight, rest = share / batch.samples, (1 - share) / others.samples
    samples = 1 / (share * weight + (1 - share) * rest)
    cosine = weight * batch.cosine + rest * others.cosine.detach()
    sine = weight * batch.sine + rest * others.sine.detach()
    return Sums(samples * cosine, samples * sine, samples)


def projection(width: int) -> nn.Module:
    """The head whose output is to be isotropic: pooled tokens [..., width] -> [..., Z], not normalised."""
    return nn.Sequential(
        nn.LayerNorm(width),
        nn.Linear(width, width),
        nn.LayerNorm(width),
        nn.GELU(),
        nn.Linear(width, PROJECTION),
    )


class Isotropy(Objective):
    """The patients of a modality fill the space evenly; nothing says which of them are alike.

    Each modality is a cloud by itself: several crops of one patient are no independent sample.
    """

    kind = "isotropy"

    def __init__(self, config: IsotropyConfig, job: JobConfig, shape: Architecture) -> None:
        super().__init__()
        self.directions = config.directions
        self.seed = job.seed
        self.spacing_mm = job.preparation.spacing_mm
        self.projector = projection(2 * shape.width)

    def request(self, patients: int, volumes: int) -> CropRequest:
        """Any crops; those of a patient show the same place, so that one read serves several objectives."""
        return CropRequest("aligned", patients, volumes)

    def lines(self) -> Tensor:
        """[Z, M] directions of this step, the same at every site."""
        return draw_directions(self.seed, self.step, PROJECTION, self.directions)

    def forward(self, encoder: Encoder, batch: Batch, generator: torch.Generator) -> Outcome | None:
        """128 / N times the statistic of a modality's N crops, mean over crops; None where no modality has two.

        One crop of each patient counts, where it shows something of the body. ``chance`` is the loss of an
        embedding in which all patients are one point, ``isotropy`` the statistic itself (1.05 for Gaussian samples).
        """
        groups = list(self._groups(batch))
        if not groups:
            return None
        rows, at, lines = torch.cat(groups), knots(), self.lines()
        encoded = encoder.encode(batch.images[rows], batch.modality[rows], self.spacing_mm).pooled
        sizes = [len(group) for group in groups]
        clouds = self.projector(encoded).float().split(sizes)
        found = torch.stack([statistic(sums(cloud, lines, at), at) for cloud in clouds])
        worst = torch.stack([statistic(point(size, at), at) for size in sizes])
        # 128 / N of a cloud, times its N crops: every cloud weighs alike.
        scale = PATIENTS / len(rows)
        scalars = {"chance": scale * float(worst.sum()), "isotropy": float(found.detach().mean())}
        tally = count(batch.modality[rows], encoder.modalities)
        return Outcome(scale * found.sum(), len(rows), tally, scalars=scalars)

    def _groups(self, batch: Batch) -> Iterator[Tensor]:
        """Rows of a modality's crops, one of each patient, of which there are at least two."""
        shown, owner = batch.body.flatten(1).any(1), batch.owner
        for index in sorted(set(batch.modality.tolist())):
            rows = (shown & (batch.modality == index)).nonzero().squeeze(1)
            first = {int(owner[row]): row for row in reversed(rows)}
            if len(first) > 1:
                yield torch.stack(sorted(first.values()))
