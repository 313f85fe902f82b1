"""Finds the vision transformer in a state dict of another program."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from parametrium.errors import Code, TrainingError
from parametrium.training.warm_start.formats import FORMATS, Format, Piece


@dataclass(frozen=True)
class Found:
    """A model inside a state dict.

    Attributes:
        format: its table of names.
        prefix: what stands before its names.
        tensors: its tensors, without the prefix.
        depth: its blocks.
    """

    format: Format
    prefix: str
    tensors: Mapping[str, Tensor]
    depth: int

    def full(self, name: str) -> str:
        """A name as the source's file has it."""
        return self.prefix + name

    def module(self, piece: Piece, block: int) -> str:
        """The piece's module, of one block where it belongs to blocks."""
        return piece.module.format(n=block, depth=self.depth)

    def lacks(self, what: str) -> TrainingError:
        """The error that says that a part of the encoder is not there."""
        return TrainingError(
            Code.CHECKPOINT_INVALID, f"the source was recognised as {self.format.title}, but has nothing for {what}"
        )


def recognise(source: Mapping[str, Tensor], prefix: str | None = None) -> Found:
    """Finds the one vision transformer in a state dict.

    Args:
        source: the state dict.
        prefix: what stands before the model's names; None: found by looking.

    Raises:
        TrainingError: PM403 when there is none, or more than one.
    """
    places = [
        (format_, name.removesuffix(format_.anchor))
        for format_ in FORMATS
        for name in source
        if name.endswith(format_.anchor) and name.removesuffix(format_.anchor)[-1:] in ("", ".")
    ]
    if prefix is not None:
        places = [(format_, found) for format_, found in places if found == prefix]
    if len(places) != 1:
        raise TrainingError(
            Code.CHECKPOINT_INVALID,
            f"{len(places)} vision transformers were found in the source; it must hold one "
            f"({', '.join(format_.title for format_ in FORMATS)}), or the prefix of one must be named",
            site_detail=f"prefixes: {[found for _, found in places]}",
        )
    format_, found = places[0]
    tensors = {name.removeprefix(found): t for name, t in source.items() if name.startswith(found)}
    return Found(format_, found, tensors, _depth(format_, tensors))


def _depth(format_: Format, tensors: Mapping[str, Tensor]) -> int:
    """Blocks of which any part is there: one that lacks another is damaged, and no end of the encoder."""
    modules = [piece.module for rows in format_.block.values() for pieces in rows for piece in pieces]
    depth = 0
    while any(f"{module.format(n=depth)}.weight" in tensors for module in modules):
        depth += 1
    return depth
