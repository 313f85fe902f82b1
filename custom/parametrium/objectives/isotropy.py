"""Embeddings that lie like a standard Gaussian cloud: SIGReg (LeJEPA, Balestriero and LeCun 2025; METHODS 4.2).

A cloud is standard Gaussian when every projection of it onto a line is. Some random lines are drawn at each step, and
on each the Epps-Pulley test compares the characteristic function of the sample with that of the Gaussian. A cloud that
has collapsed to a point or to a plane fails on nearly every line, so that no teacher and no negatives are needed.

The characteristic function of a sample is made of sums over its members. Sums of several batches or sites add to those
of all together, exactly; every term lies in [-1, 1], whatever the embedding (METHODS 8.6).

N samples, Z channels, M directions, K knots.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from parametrium.data.loader import stable_number

UPPER = 3.0
"""Where the integral over the argument t ends; beyond, the weight e^(-t^2 / 2) leaves little."""

GAUSSIAN = 1.05
"""Mean of the statistic over samples of a standard Gaussian, for any N: 2 int_0^3 (1 - e^(-t^2)) e^(-t^2 / 2) dt."""


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
