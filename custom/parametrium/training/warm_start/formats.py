"""How other programs name the parts of a vision transformer: tables, and no rule beside them.

A table's left side is a module of our encoder, its right side the alternatives at the source, the first that is there
counts. A source module stands for its ``weight`` and ``bias``. Several pieces in one alternative are put below each
other. ``{n}`` is the number of a block, ``{depth}`` the number of blocks.
"""

from collections.abc import Mapping
from typing import Literal, NamedTuple

Part = Literal["all", "query", "key_value"]


class Piece(NamedTuple):
    """A module at the source, or the rows of a joint query-key-value projection that are query or key and value."""

    module: str
    part: Part = "all"


Alternatives = tuple[tuple[Piece, ...], ...]


class Format(NamedTuple):
    """One program's names.

    Attributes:
        title: for the report.
        anchor: a tensor that only this format has, and every model in it.
        block: modules of a block.
        encoder: modules outside of blocks.
        kernel: the patch embedding's modules, any of them.
        positions: the position code's tensor, [1, L, C], which may begin with that of the class token.
        class_token: [1, 1, C].
        registers: [1, R, C], any of them.
        optional: modules of ours that a source may lack.
        extras_first: whether the position code of a grid that is no cube is taken to begin with those of class token
            and registers.
    """

    title: str
    anchor: str
    block: Mapping[str, Alternatives]
    encoder: Mapping[str, Alternatives]
    kernel: tuple[str, ...]
    positions: str
    class_token: str
    registers: tuple[str, ...] = ()
    optional: frozenset[str] = frozenset()
    extras_first: bool = False


def _one(*modules: str) -> Alternatives:
    return tuple((Piece(module),) for module in modules)


_JOINT_QUERY = (Piece("blocks.{n}.attn.qkv", "query"),)
_JOINT_KEY_VALUE = (Piece("blocks.{n}.attn.qkv", "key_value"),)

MONAI = Format(
    title="MONAI ViT",  # also ViTAutoEnc, UNETR (vit.) and MaskedAutoEncoderViT, whose last norm is a block
    anchor="blocks.0.attn.out_proj.weight",
    block={
        "attention_norm": _one("blocks.{n}.norm1"),
        "attention.query": (_JOINT_QUERY, (Piece("blocks.{n}.attn.to_q"),)),
        "attention.key_value": (_JOINT_KEY_VALUE, (Piece("blocks.{n}.attn.to_k"), Piece("blocks.{n}.attn.to_v"))),
        "attention.project": _one("blocks.{n}.attn.out_proj"),
        "mlp_norm": _one("blocks.{n}.norm2"),
        "mlp.0": _one("blocks.{n}.mlp.linear1"),
        "mlp.2": _one("blocks.{n}.mlp.linear2"),
    },
    encoder={"norm": _one("norm", "blocks.{depth}")},
    kernel=("patch_embedding.patch_embeddings", "patch_embedding.patch_embeddings.1"),
    positions="patch_embedding.position_embeddings",
    class_token="cls_token",  # noqa: S106 - a tensor's name
)

TIMM = Format(
    title="timm-like ViT",
    anchor="blocks.0.attn.proj.weight",
    block={
        "attention_norm": _one("blocks.{n}.norm1"),
        "attention.query": (_JOINT_QUERY,),
        "attention.key_value": (_JOINT_KEY_VALUE,),
        "attention.query_norm": _one("blocks.{n}.attn.q_norm"),
        "attention.key_norm": _one("blocks.{n}.attn.k_norm"),
        "attention.project": _one("blocks.{n}.attn.proj"),
        "attention_scale": _one("blocks.{n}.ls1"),
        "mlp_norm": _one("blocks.{n}.norm2"),
        "mlp.0": _one("blocks.{n}.mlp.fc1"),
        "mlp.2": _one("blocks.{n}.mlp.fc2"),
        "mlp_scale": _one("blocks.{n}.ls2"),
    },
    encoder={"norm": _one("norm")},
    kernel=("patch_embed.proj",),
    positions="pos_embed",
    class_token="cls_token",  # noqa: S106 - a tensor's name
    registers=("reg_token", "register_tokens"),
    optional=frozenset({"attention.query_norm", "attention.key_norm", "attention_scale", "mlp_scale"}),
    extras_first=True,
)

FORMATS = (MONAI, TIMM)

OWN_ANCHOR = "encoder.extra_tokens"
"""A tensor that every checkpoint of this package has."""
