"""From a checkpoint of this package to the model of another job."""

import json
from collections.abc import Mapping
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from parametrium.config import VOCABULARY, JobConfig, PreparationConfig
from parametrium.data.recipe import recipe_for
from parametrium.training.warm_start.fitting import resize_kernel
from parametrium.training.warm_start.ledger import Ledger

EXTRAS = "encoder.extra_tokens"
EMBEDDINGS = (
    "encoder.patch_embed.of.{}.weight",
    "encoder.patch_embed.of.{}.bias",
    "encoder.modality_token.of.{}.vector",
)
"""The tensors with which a modality enters the encoder."""


def transfer_own(ledger: Ledger, source: Mapping[str, Tensor], job: JobConfig) -> None:
    """Takes what has the same name and shape; makes patch embeddings for other patches and further modalities.

    Raises:
        TrainingError: PM401 when the encoders' widths, heads or MLPs differ.
    """
    theirs, ours = _sizes(source), _sizes(ledger.tensors)
    for setting in (name for name in ours if name in theirs):
        ledger.require(setting, theirs[setting], ours[setting])
    for name, tensor in source.items():
        if name in ledger.tensors and ledger.tensors[name].shape == tensor.shape:
            ledger.put(name, tensor, "loaded", [name])
    if EXTRAS not in ledger.origins:
        put_extra_tokens(ledger, source[EXTRAS], [EXTRAS])
    known = [m for m in _modalities(source) if all(name.format(m) in source for name in EMBEDDINGS)]
    for modality in job.modalities:
        _embed(ledger, source, modality, known, job.model.patch)
    _compare_depth(ledger, source)


def other_rules(preparation: Mapping[str, Any], job: JobConfig) -> list[str]:
    """The job's modalities whose volumes a checkpoint saw by another intensity rule.

    Args:
        preparation: as the checkpoint's description has it.
        job: the job.
    """
    try:
        theirs = PreparationConfig.model_validate_json(json.dumps(preparation))
    except ValidationError:  # of a version with other rules
        return list(job.modalities)
    known = [modality for modality in job.modalities if modality in VOCABULARY or modality in theirs.intensity]
    return [m for m in known if recipe_for(theirs, m).rule != recipe_for(job.preparation, m).rule]


def _embed(ledger: Ledger, source: Mapping[str, Tensor], modality: str, known: list[str], patch: int) -> None:
    """The tensors of one modality that have no counterpart of their own shape."""
    parents = [modality] if modality in known else known
    for pattern in EMBEDDINGS:
        name = pattern.format(modality)
        if name in ledger.origins or not parents:
            continue
        names = [pattern.format(parent) for parent in parents]
        values = [source[n] for n in names]
        edge = round(values[0].shape[-1] ** (1 / 3))
        resized = name.endswith(".weight") and edge != patch
        if resized:
            values = [_resized(value, edge, patch) for value in values]
        how = "" if parents == [modality] else f"the mean over {', '.join(parents)}"
        how = ", ".join(filter(None, [how, f"patch {edge} to {patch}" if resized else ""]))
        ledger.put(name, torch.stack(values).mean(0), "resized" if resized else "adapted", names, how)


def _resized(weight: Tensor, edge: int, patch: int) -> Tensor:
    kernel = weight.reshape(len(weight), 1, edge, edge, edge)
    return resize_kernel(kernel, patch).flatten(1)


def put_extra_tokens(ledger: Ledger, rows: Tensor, sources: list[str]) -> None:
    """As many of the [R, C] extra tokens as the model has; those beyond stay fresh."""
    tokens = ledger.tensors[EXTRAS].clone()
    number = min(len(rows), len(tokens))
    tokens[:number] = rows[:number]
    ledger.put(EXTRAS, tokens, "adapted", sources, f"{number} of {len(tokens)} rows, the others are fresh")


def _sizes(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """What must be the same, by the name of its setting. Heads are in no shape but that of the norms of queries."""
    width, first = tensors[EXTRAS].shape[1], "encoder.blocks.0."
    sizes = {"width": width}
    if (norm := tensors.get(f"{first}attention.query_norm.weight")) is not None:
        sizes["heads"] = width // len(norm)
    if (hidden := tensors.get(f"{first}mlp.0.weight")) is not None:
        sizes["mlp_width"] = len(hidden)
    return sizes


def _modalities(source: Mapping[str, Tensor]) -> list[str]:
    before, after = EMBEDDINGS[0].split("{}")
    return [name[len(before) : -len(after)] for name in source if name.startswith(before) and name.endswith(after)]


def _compare_depth(ledger: Ledger, source: Mapping[str, Tensor]) -> None:
    """Which blocks are fresh; and that a block may look at windows here and at all tokens there."""
    theirs, ours = (sum(n.endswith(".attention_norm.weight") and n.startswith("encoder.blocks.") for n in names)
                    for names in (source, ledger.tensors))  # fmt: skip
    if theirs != ours:
        ledger.note(
            f"the source has {theirs} blocks, the job {ours}: the first {min(theirs, ours)} were taken; which of them "
            "look at windows follows the job's depth"
        )
