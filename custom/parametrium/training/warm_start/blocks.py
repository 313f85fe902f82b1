"""Transformer blocks of another encoder, by its table of names, and what our blocks have beyond theirs.

C channels, N heads, D channels of a head.
"""

import torch
from torch import Tensor

from parametrium.config import JobConfig
from parametrium.model.encoder import Encoder
from parametrium.model.presets import architecture
from parametrium.training.warm_start.fitting import noise_volumes, score_scales
from parametrium.training.warm_start.formats import Alternatives, Piece
from parametrium.training.warm_start.ledger import Kind, Ledger
from parametrium.training.warm_start.recognise import Found

CALIBRATION = 2
"""Random volumes on which the sizes of query and key are measured."""


def take_blocks(ledger: Ledger, found: Found, job: JobConfig, scale: float) -> None:
    """The first blocks, as many as both have, and the last norm.

    Args:
        ledger: the job's model, with the source's first layer.
        found: the source.
        job: the job.
        scale: the factor between the source's residual stream and ours.

    Raises:
        TrainingError: PM401 when the MLPs' widths differ; PM403 when a block lacks a part.
    """
    depth = min(found.depth, architecture(job.model).depth)
    hidden = _pieces(found, found.format.block["mlp.0"], "weight", 0)
    if hidden:
        rows = len(found.tensors[f"{found.module(hidden[0], 0)}.weight"])
        ledger.require("mlp_width", rows, len(ledger.tensors["encoder.blocks.0.mlp.0.weight"]))
    for n in range(depth):
        for module, alternatives in found.format.block.items():
            required = module not in found.format.optional
            _module(ledger, found, f"encoder.blocks.{n}.{module}", alternatives, n, required=required)
        for branch in ("attention_scale", "mlp_scale"):
            _layer_scale(ledger, found, branch, n, scale)
    for module, alternatives in found.format.encoder.items():
        _module(ledger, found, f"encoder.{module}", alternatives, 0, required=True)
    _attention_norms(ledger, job, depth)


def _module(ledger: Ledger, found: Found, target: str, alternatives: Alternatives, n: int, *, required: bool) -> None:
    """Weight and bias of one module of ours, from the first alternative that is there."""
    for suffix in ("weight", "bias"):
        name = f"{target}.{suffix}"
        if name not in ledger.tensors:
            continue
        pieces = _pieces(found, alternatives, suffix, n)
        if pieces:
            value = torch.cat([_part(found, piece, suffix, n) for piece in pieces])
            parts = {piece.part.replace("_", " and ") for piece in pieces} - {"all"}
            how = f"rows of {' and '.join(sorted(parts))}" if parts else "as it is"
            ledger.put(name, value, "loaded", [found.full(f"{found.module(p, n)}.{suffix}") for p in pieces], how)
        elif suffix == "bias" and f"{target}.weight" in ledger.origins:
            ledger.put(name, torch.zeros_like(ledger.tensors[name]), "adapted", [], "the source has none: zero")
        elif required:
            raise found.lacks(target)


def _pieces(found: Found, alternatives: Alternatives, suffix: str, n: int) -> tuple[Piece, ...]:
    there = (a for a in alternatives if all(f"{found.module(piece, n)}.{suffix}" in found.tensors for piece in a))
    return next(there, ())


def _part(found: Found, piece: Piece, suffix: str, n: int) -> Tensor:
    tensor = found.tensors[f"{found.module(piece, n)}.{suffix}"]
    if piece.part == "all":
        return tensor
    third = len(tensor) // 3
    return tensor[:third] if piece.part == "query" else tensor[third:]


def _layer_scale(ledger: Ledger, found: Found, branch: str, n: int, scale: float) -> None:
    """The source's LayerScale, 1 where it has none, times the factor between the residual streams."""
    target = f"encoder.blocks.{n}.{branch}.gamma"
    pieces = _pieces(found, found.format.block.get(branch, ()), "gamma", n)
    if pieces:
        value, how = _part(found, pieces[0], "gamma", n), "the source's"
        names = [found.full(f"{found.module(pieces[0], n)}.gamma")]
    else:
        value, how, names = torch.ones_like(ledger.tensors[target]), "1, as the source has none", []
    kind: Kind = "loaded" if pieces and scale == 1 else "adapted"
    ledger.put(target, value * scale, kind, names, how if scale == 1 else f"{how}, times {scale:.3g}")


def _attention_norms(ledger: Ledger, job: JobConfig, depth: int) -> None:
    """Weights of query and key norm with which scores are nearest to the source's, where it has no such norms."""
    names = [[f"encoder.blocks.{n}.attention.{side}_norm.weight" for side in ("query", "key")] for n in range(depth)]
    if any(name in ledger.origins for pair in names for name in pair):
        return
    with torch.random.fork_rng(devices=[]):  # the fresh values are replaced
        encoder = Encoder(job.modalities, architecture(job.model)).eval()
    encoder.load_state_dict({name: ledger.tensors[f"encoder.{name}"] for name in encoder.state_dict()})
    volumes = noise_volumes(CALIBRATION, job.crop, job.seed)
    scales = score_scales(encoder, depth, volumes, job.preparation.spacing_mm)
    for pair, value in zip(names, scales, strict=True):
        how = f"{value:.3g}: the sizes of query and key, which the source does not norm, on random volumes"
        for name in pair:
            ledger.put(name, torch.full_like(ledger.tensors[name], value), "adapted", [], how)
