"""The optimiser's moments over rounds, on disk, so that a round can be trained again from where it began.

    FOLDER/round_0007/      the moments after round 7; the newest and the one before it are kept

What an objective keeps at the site (a teacher, say) lies beside them and goes the same way.

A server that fell amid round N asks for round N again. The moments in memory, and the newest on disk, then hold round N
already: it must start from those of the round before.
"""

import re
from pathlib import Path

from torch import Tensor

from parametrium.training.checkpoint import checkpoint_names, load_checkpoint, remove_checkpoint, save_checkpoint
from parametrium.training.step import TrainState

_NAME = re.compile(r"round_(\d+)", re.ASCII)
_FRESH = -1  # no round is in the moments
_KEPT = "kept"


class Moments:
    """Brings the optimiser's moments to where a round begins, and keeps them after it.

    Args:
        folder: where they are kept.
        run: the run's name; moments of another run are none.
        state: the trainer's state, whose optimiser is changed in place.
    """

    def __init__(self, folder: Path, run: str, state: TrainState) -> None:
        self.folder = folder
        self.run = run
        self.state = state
        self._round: int | None = _FRESH

    def begin(self, number: int) -> None:
        """Moments of the newest round before ``number`` that this site trained; none when there was no such round.

        Nothing is read where the optimiser holds them already.

        Raises:
            TrainingError: PM403 when the saved moments are damaged.
        """
        wanted = max((saved for saved in self._saved() if saved < number), default=_FRESH)
        if wanted != self._round:
            self.state.optimiser.state.clear()
            kept: dict[str, dict[str, Tensor]] = {}
            if wanted != _FRESH:
                kept = self._load(wanted)
            for kind in self.state.model.objectives:
                self.state.model.objective(kind).keep(kept.get(kind, {}))
            self.state.last_round = wanted if wanted != _FRESH else None
        self._round = None  # amid a round they are of none

    def end(self, number: int) -> None:
        """Keeps the moments after round ``number``, and those it began with; later ones belong to an abandoned past."""
        tensors = {
            f"{slot}/{name}": value
            for name, parameter in self.state.model.named_parameters()
            for slot, value in self.state.optimiser.state.get(parameter, {}).items()
        }
        for kind in self.state.model.objectives:
            own = self.state.model.objective(kind).kept()
            tensors |= {f"{_KEPT}/{kind}/{name}": value for name, value in own.items()}
        save_checkpoint(self._path(number), tensors, {"run": self.run, "round": number})
        self._round = number
        kept = sorted(saved for saved in self._saved() if saved <= number)[-2:]
        for saved in self._saved() - set(kept):
            remove_checkpoint(self._path(saved))

    def _load(self, number: int) -> dict[str, dict[str, Tensor]]:
        """Puts the saved moments into the optimiser; gives what the objectives kept, by kind and name."""
        tensors, meta = load_checkpoint(self._path(number))
        kept: dict[str, dict[str, Tensor]] = {}
        if meta.get("run") != self.run:
            return kept
        named = dict(self.state.model.named_parameters())
        for key, value in tensors.items():
            slot, name = key.split("/", 1)
            if slot == _KEPT:
                kind, name = name.split("/", 1)
                kept.setdefault(kind, {})[name] = value.to(self.state.device)
            elif name in named:
                self.state.optimiser.state[named[name]][slot] = value.to(named[name].device)
        return kept

    def _saved(self) -> set[int]:
        names = checkpoint_names(self.folder)
        return {int(match.group(1)) for name in names if (match := _NAME.fullmatch(name))}

    def _path(self, number: int) -> Path:
        return self.folder / f"round_{number:04d}"
