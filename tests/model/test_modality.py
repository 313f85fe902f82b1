"""Parts of a modality: rows meet their own module, and every tensor knows its owner."""

from collections.abc import Callable

import torch
from torch import nn

from parametrium.config import JobConfig
from parametrium.model.modality import ByModality, Owner, tensor_owners
from parametrium.objectives.registry import build_model


def test_each_row_meets_the_module_of_its_modality() -> None:
    parts = ByModality("embed", ["CT", "T1", "PET"], [nn.Linear(4, 2) for _ in range(3)])
    x, modality = torch.randn(6, 5, 4), torch.tensor([2, 0, 2, 1, 0, 2])
    together = parts(x, modality)
    for row in range(6):
        alone = parts.of[parts.modalities[modality[row]]](x[row])
        assert torch.allclose(together[row], alone, atol=1e-6)


def test_an_absent_modality_gets_no_gradient() -> None:
    parts = ByModality("embed", ["CT", "T1"], [nn.Linear(4, 2) for _ in range(2)])
    parts(torch.randn(3, 4), torch.zeros(3, dtype=torch.long)).sum().backward()
    assert parts.of["CT"].weight.grad is not None
    assert parts.of["T1"].weight.grad is None


def test_owners_follow_the_structure(make_job: Callable[..., JobConfig]) -> None:
    job = make_job(objectives=[{"kind": "masked_reconstruction"}, {"kind": "soft_contrastive"}])
    owners = tensor_owners(build_model(job))
    assert owners["encoder.patch_embed.of.CT.weight"] == Owner("embed", "CT")
    assert owners["objectives.masked_reconstruction.decoder.to_voxels.of.PET.bias"] == Owner("decode", "PET")
    assert owners["encoder.blocks.0.mlp.0.weight"] == Owner("shared", None)
    private = [owner for owner in owners.values() if owner.modality]
    assert {owner.modality for owner in private} == {"CT", "T1", "PET"}
    assert owners.keys() == {name for name, _ in build_model(job).named_parameters()}
