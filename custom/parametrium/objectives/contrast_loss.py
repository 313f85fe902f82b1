"""Three forms of soft contrast: what clinical similarity does to the patients that are no pair (METHODS 3.1 and 3.3).

Row i of a matrix is view a of patient i, column j view b of patient j; the diagonal holds the patients' own pairs. A
patient stands once in each, so nobody is her own negative, however many studies or scans she has.

P patients.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from parametrium.clinical.similarity import Similarity

STEEPEST = 100.0
"""Largest inverse temperature (METHODS 3.3)."""


def limited_scale(log_scale: Tensor) -> Tensor:
    """exp(log_scale), at most ``STEEPEST``; beyond it the gradient is still that of the limit.

    With a plain clamp it would be 0 there, and a scale that was once too large could never come back.
    """
    limited = log_scale + (log_scale.clamp(max=math.log(STEEPEST)) - log_scale).detach()
    return limited.exp()


def soft_targets(similarity: Similarity, softness: float, temperature: float) -> Tensor:
    """q_ij = (1 - a) [i = j] + a softmax_{j != i}(S~_ij / t); one-hot where nothing is known of patient i.

    A pair of which nothing is known in common gets no share of the soft part.

    Args:
        similarity: of the batch's patients.
        softness: a in [0, 1].
        temperature: t > 0.

    Returns:
        [P, P] rows that sum to 1.
    """
    own, known = _own(similarity), _known(similarity)
    scores = (similarity.gower / temperature).masked_fill(~known, -math.inf)
    share = torch.where(known.any(1, keepdim=True), scores, torch.zeros_like(scores)).softmax(1)
    has_soft = known.any(1, keepdim=True)
    one_hot = own.to(share.dtype)
    return torch.where(has_soft, (1 - softness) * one_hot + softness * share, one_hot)


def softmax_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean over both directions of KL(targets || softmax(logits)); zero where they agree.

    Args:
        logits: [P, P].
        targets: [P, P], rows sum to 1. The other direction compares columns with the same targets.
    """
    forward = F.kl_div(logits.log_softmax(1), targets, reduction="batchmean")
    backward = F.kl_div(logits.T.log_softmax(1), targets, reduction="batchmean")
    return (forward + backward) / 2


def softmax_contrast(
    logits: Tensor, similarity: Similarity, softness: float, temperature: float
) -> tuple[Tensor, Tensor]:
    """``softmax_loss`` to ``soft_targets``, and its chance level: that of scores which tell no patient from another."""
    targets = soft_targets(similarity, softness, temperature)
    return softmax_loss(logits, targets), softmax_loss(torch.zeros_like(logits), targets)


def pair_targets(similarity: Similarity, softness: float, power: float) -> Tensor:
    """q_ii = 1, q_ij = a S~_ij^g: each pair by itself; 0 where nothing is known of both in common.

    Args:
        similarity: of the batch's patients.
        softness: a in [0, 1].
        power: g > 0; above 1 only the most similar keep a target worth speaking of.

    Returns:
        [P, P] in [0, 1], symmetric.
    """
    soft = softness * similarity.gower.pow(power) * _known(similarity)
    return soft.masked_fill(_own(similarity), 1.0)


def sigmoid_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Sum over a patient's pairs of KL(Bernoulli(targets) || Bernoulli(sigmoid(logits))), mean over the patients.

    No softmax joins the pairs (SigLIP, Zhai et al. 2023), so the loss does not need many patients at once. With hard
    targets it is theirs.

    Args:
        logits: [P, P].
        targets: [P, P] in [0, 1].
    """
    negative_entropy = torch.xlogy(targets, targets) + torch.xlogy(1 - targets, 1 - targets)
    cross_entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    return (cross_entropy + negative_entropy).sum(1).mean()


def best_constant(targets: Tensor) -> Tensor:
    """The logits of the one probability for all pairs that has the smallest ``sigmoid_loss``: the targets' mean."""
    return targets.mean().logit(eps=1e-6).expand_as(targets)


def negative_weights(similarity: Similarity, softness: float) -> Tensor:
    """w_ii = 1, w_ij = 1 - a S~_ij; 1 where nothing is known of both in common.

    Args:
        similarity: of the batch's patients.
        softness: a in [0, 1].

    Returns:
        [P, P] in [0, 1], symmetric.
    """
    soft = softness * similarity.gower * _known(similarity)
    return 1 - soft.masked_fill(_own(similarity), 0.0)


def weighted_negatives_loss(logits: Tensor, weights: Tensor) -> Tensor:
    """Mean over both directions of -log(e^s_ii / sum_k w_ik e^s_ik).

    The weight multiplies e^s. Weighting the exponent instead, e^(s w), would push a patient harder that is alike and
    already far (s < 0), which is the opposite of what is wanted (METHODS 3.3).

    Args:
        logits: [P, P] scores s.
        weights: [P, P] in [0, 1], 1 on the diagonal, symmetric.
    """
    own = torch.arange(len(logits), device=logits.device)
    log_weights = weights.log()
    return (F.cross_entropy(logits + log_weights, own) + F.cross_entropy(logits.T + log_weights, own)) / 2


def _own(similarity: Similarity) -> Tensor:
    """[P, P] True on the diagonal."""
    return torch.eye(len(similarity.gower), dtype=torch.bool, device=similarity.gower.device)


def _known(similarity: Similarity) -> Tensor:
    """[P, P] True for two different patients of which something is known in common."""
    return (similarity.coverage > 0) & ~_own(similarity)
