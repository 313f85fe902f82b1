"""One block against the same written out by hand, and dropped branches: how often, whole rows, in training alone."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from parametrium.model.attention import Block, DropPath
from parametrium.model.encoder import Encoder
from parametrium.model.presets import PRESETS

SHAPE = replace(PRESETS["tiny"], patch=2, width=24, heads=2, depth=3, layer_scale=0.3)


def a_block() -> Block:
    """With norms and scales that are not what they are at first."""
    torch.manual_seed(0)
    block = Block(24, 2, SHAPE).double().eval()
    for name, parameter in block.named_parameters():
        if "norm" in name or "scale" in name:
            nn.init.normal_(parameter, 1.0, 0.3)
    return block


def normed(x: Tensor, norm: nn.Module) -> Tensor:
    """LayerNorm, from its definition."""
    weight, bias = dict(norm.named_parameters())["weight"], dict(norm.named_parameters())["bias"]
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, correction=0) + 1e-5).sqrt() * weight + bias


def by_hand(block: Block, x: Tensor) -> Tensor:
    """[L, C] one row, token by token and head by head: queries and keys of unit mean square (METHODS 8.2)."""
    p, own = dict(block.named_parameters()), normed(x, block.attention_norm)

    def linear(name: str, value: Tensor) -> Tensor:
        return value @ p[f"{name}.weight"].T + p[f"{name}.bias"]

    query, both = linear("attention.query", own), linear("attention.key_value", own)
    mixed = torch.zeros_like(x)
    for head in range(2):
        part = slice(12 * head, 12 * head + 12)
        key, value = both[:, :24][:, part], both[:, 24:][:, part]
        for i in range(len(x)):
            scores = []
            for j in range(len(x)):
                q, k = query[i, part], key[j]
                q = q / (q.square().mean() + 1e-6).sqrt() * p["attention.query_norm.weight"]
                k = k / (k.square().mean() + 1e-6).sqrt() * p["attention.key_norm.weight"]
                scores.append((q * k).sum() / 12**0.5)
            looks = torch.stack(scores).exp() / torch.stack(scores).exp().sum()
            mixed[i, part] = looks @ value
    x = x + p["attention_scale.gamma"] * linear("attention.project", mixed)
    hidden = linear("mlp.0", normed(x, block.mlp_norm))
    hidden = hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5))
    return x + p["mlp_scale.gamma"] * linear("mlp.2", hidden)


def test_a_block_is_what_is_written_out_by_hand() -> None:
    block, x = a_block(), torch.randn(2, 5, 24, dtype=torch.float64)
    found = block(x)
    for row in range(2):
        assert torch.allclose(found[row], by_hand(block, x[row]), atol=1e-12)


def test_longer_queries_and_keys_do_not_sharpen_attention() -> None:
    """QK-norm: what training does to their length cannot make attention look at one token alone."""
    block, x = a_block(), torch.randn(2, 5, 24, dtype=torch.float64)
    before = block.attention.weights(x)
    with torch.no_grad():
        block.attention.query.weight.mul_(50)
        block.attention.query.bias.mul_(50)
        block.attention.key_value.weight[:24].mul_(50)
        block.attention.key_value.bias[:24].mul_(50)
    assert torch.allclose(block.attention.weights(x), before, atol=1e-5)


def test_dropped_branches_are_whole_rows_as_often_as_said_and_keep_the_mean() -> None:
    torch.manual_seed(0)
    branch = torch.ones(4000, 3, 2)
    found = DropPath(0.25).train()(branch)
    assert torch.equal(found, found[:, :1, :1].expand_as(found))
    torch.testing.assert_close(found.unique(), torch.tensor([0.0, 4 / 3]))
    assert abs(float((found[:, 0, 0] == 0).double().mean()) - 0.25) < 0.02
    assert abs(float(found.mean()) - 1) < 0.03


def test_no_branch_is_dropped_outside_of_training() -> None:
    branch = torch.randn(50, 3, 2)
    assert torch.equal(DropPath(0.9).eval()(branch), branch)
    assert torch.equal(DropPath(0.0).train()(branch), branch)


def test_later_blocks_drop_more_branches_and_a_block_drops_both_of_its_own() -> None:
    encoder = Encoder(("CT",), replace(SHAPE, drop_path=0.5))
    rates = [module.probability for module in encoder.modules() if isinstance(module, DropPath)]
    assert rates == [0.0, 0.25, 0.5]
    block = a_block().train()
    block.drop_path.probability = 1 - 1e-6
    x = torch.randn(64, 5, 24, dtype=torch.float64)
    assert torch.equal(block(x), x), "without its branches a block is the identity"
