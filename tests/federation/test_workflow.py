"""One round at the server: what idle sites are to the quorum, to the model and to the record."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from nvflare.apis.shareable import Shareable
from torch import Tensor

from parametrium.config import JobConfig
from parametrium.errors import FederationError
from parametrium.federation import workflow
from parametrium.federation.payload import update_message
from parametrium.model.modality import tensor_owners
from parametrium.objectives.registry import build_model, initial_tensors
from parametrium.training.run_folder import RunFolder, read_lines
from parametrium.training.update import Update

MakeJob = Callable[..., JobConfig]
NAME = "encoder.norm.bias"


def answer(site: str, model: dict[str, Tensor], *, idle: bool) -> Shareable:
    """A difference of one everywhere in one tensor, or nothing."""
    tensors = {} if idle else {NAME: torch.ones_like(model[NAME])}
    counts = dict.fromkeys(tensors, 4)
    return update_message(Update(site, 0, tensors, counts, counts, sum(counts.values()), {}))


class Federation:
    """A run at the point of its first round, of three sites of which two must answer."""

    def __init__(self, job: JobConfig, path: Path) -> None:
        self.folder = RunFolder(path, job)
        self.folder.create()
        self.owners, self.model = tensor_owners(build_model(job)), initial_tensors(job)
        clients = [SimpleNamespace(name=name) for name in ("a", "b", "c")]
        context = SimpleNamespace(get_engine=lambda: SimpleNamespace(get_clients=lambda: clients))
        self.run = workflow._Run(None, job, self.folder, None, context)  # type: ignore[arg-type]

    def round(self, **idle: bool) -> dict[str, Tensor]:
        """What the round makes of the model, where these sites answer; the others do not."""
        answers = {site: answer(site, self.model, idle=known) for site, known in idle.items()}
        self.run._ask = lambda *_: answers  # type: ignore[method-assign]
        return self.run._round(0, self.model, self.owners)

    def statuses(self) -> dict[str, str]:
        (record,) = read_lines(self.folder.path / "rounds.jsonl")
        return {site["site"]: site["status"] for site in record["sites"]}

    def saved(self) -> bool:
        return (self.folder.path / "checkpoints" / "round_0001").exists()


@pytest.fixture
def federation(make_job: MakeJob, tmp_path: Path) -> Federation:
    return Federation(make_job(minimum_sites=2), tmp_path / "run")


def test_an_idle_site_leaves_the_model_to_the_others(federation: Federation) -> None:
    after = federation.round(a=False, b=False, c=True)
    assert torch.equal(after[NAME], federation.model[NAME] + 1)
    assert federation.statuses() == {"a": "accepted", "b": "accepted", "c": "idle"}
    assert federation.saved()


def test_the_model_stays_where_fewer_trained_than_the_minimum_though_enough_answered(federation: Federation) -> None:
    """Else the others would be sent what one site alone has learned."""
    after = federation.round(a=False, b=True)
    assert all(torch.equal(after[name], tensor) for name, tensor in federation.model.items())
    assert federation.statuses() == {"a": "unused", "b": "idle", "c": "missing"}
    assert federation.saved()


def test_a_round_in_which_nobody_trained_stops_the_run_with_a_remedy(federation: Federation) -> None:
    with pytest.raises(FederationError, match=r"PM502 round 0: .* at any of the 2 sites that answered; .* fewer turns"):
        federation.round(a=True, b=True)
    assert federation.statuses() == {"a": "idle", "b": "idle", "c": "missing"}
    assert not federation.saved()


@pytest.mark.parametrize("idle", [True, False])
def test_too_few_answers_stop_the_run(federation: Federation, idle: bool) -> None:
    with pytest.raises(FederationError, match="PM502 only 1 sites gave an answer to round 0 that can be used"):
        federation.round(a=idle)
    assert federation.statuses()["a"] == ("idle" if idle else "unused")
    assert not federation.saved()
