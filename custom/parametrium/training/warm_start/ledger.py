"""What became of every tensor of the source and of the model, kept while weights move from one to the other."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from torch import Tensor

from parametrium.errors import Code, TrainingError

Kind = Literal["loaded", "resized", "adapted"]


class Origin(NamedTuple):
    """Where a tensor of the model comes from.

    Attributes:
        kind: loaded: the source's numbers, whole or rows of them; resized: a patch embedding for patches of another
            size; adapted: computed, from the source or so that its parts keep their function.
        sources: names at the source; none where the source says something by not having the tensor.
        how: for people.
    """

    kind: Kind
    sources: tuple[str, ...]
    how: str


@dataclass(frozen=True)
class LoadReport:
    """Every tensor of the model is loaded, resized, adapted or missing; every one of the source is used or left.

    Attributes:
        source: what the source was recognised as.
        origins: by name in the model.
        missing: tensors of the model that keep their fresh values.
        left: tensors of the source that nothing was made of.
        notes: what differs between the source's function and ours.
    """

    source: str
    origins: Mapping[str, Origin]
    missing: tuple[str, ...]
    left: tuple[str, ...]
    notes: tuple[str, ...]

    def names(self, kind: Kind) -> list[str]:
        """The model's tensors of one kind."""
        return [name for name, origin in self.origins.items() if origin.kind == kind]

    def as_json(self) -> dict[str, Any]:
        """For a checkpoint's description and for machines."""
        origins = {
            kind: {
                name: {"from": list(self.origins[name].sources), "how": self.origins[name].how}
                for name in self.names(kind)
            }
            for kind in ("loaded", "resized", "adapted")
        }
        rest = {"missing": list(self.missing), "left": list(self.left), "notes": list(self.notes)}
        return {"source": self.source, **origins, **rest}


class Ledger:
    """The model's tensors as they are replaced, one by one.

    Args:
        fresh: the model's initial tensors.
        source: names of the source's tensors.
    """

    def __init__(self, fresh: Mapping[str, Tensor], source: Iterable[str]) -> None:
        self.tensors = dict(fresh)
        self.origins: dict[str, Origin] = {}
        self.notes: list[str] = []
        self._source = tuple(source)

    def put(self, name: str, value: Tensor, kind: Kind, sources: Sequence[str], how: str = "as it is") -> None:
        """Replaces one tensor.

        Raises:
            TrainingError: PM401 when the shape is another.
        """
        expected = self.tensors[name].shape
        if value.shape != expected:
            raise TrainingError(
                Code.MODEL_SHAPE,
                f"{name} is {list(expected)} in the job's model and {list(value.shape)} in the source; "
                "choose job.model so that they agree",
            )
        self.tensors[name] = value.to(self.tensors[name].dtype).clone().contiguous()
        self.origins[name] = Origin(kind, tuple(sources), how)

    def require(self, setting: str, source: int, ours: int) -> None:
        """Compares a size of the encoder that the job can set and that cannot be mapped.

        Raises:
            TrainingError: PM401 when the two differ.
        """
        if source != ours:
            raise TrainingError(
                Code.MODEL_SHAPE,
                f"the source's {setting} is {source}, the job's {ours}; it cannot be mapped: "
                f"set job.model.{setting} to {source}",
            )

    def note(self, text: str) -> None:
        """Adds a sentence to the report."""
        self.notes.append(text)

    def report(self, source: str) -> LoadReport:
        """What became of everything."""
        used = {name for origin in self.origins.values() for name in origin.sources}
        return LoadReport(
            source=source,
            origins={name: self.origins[name] for name in self.tensors if name in self.origins},
            missing=tuple(name for name in self.tensors if name not in self.origins),
            left=tuple(name for name in self._source if name not in used),
            notes=tuple(self.notes),
        )
