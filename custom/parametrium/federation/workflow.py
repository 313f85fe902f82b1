"""The server's end: rounds with checks, quorum and deadline; a durable checkpoint after each.

A site that fails, sends nonsense or is late is recorded by name and reason and left out of that round; the round goes
on. Fewer usable answers than the job's minimum stop the run loudly; where fewer sites found something to train on, the
model stays as it is for that round. What the run did is in the run folder, not in FLARE.
"""

import logging
import math
import time
from collections.abc import Mapping, Sequence

from nvflare.apis.client import Client
from nvflare.apis.controller_spec import ClientTask, Task
from nvflare.apis.fl_context import FLContext
from nvflare.apis.impl.controller import Controller
from nvflare.apis.shareable import Shareable
from nvflare.apis.signal import Signal
from torch import Tensor

from parametrium.config import JobConfig
from parametrium.errors import Code, FederationError, ParametriumError, public_text
from parametrium.federation.download import offer_download
from parametrium.federation.payload import EVALUATE, OPEN, TRAIN, read_scalars, read_update, task_message
from parametrium.federation.place import job_of, job_workspace, run_place, start_place
from parametrium.model.modality import Owner, tensor_owners
from parametrium.objectives.registry import build_model
from parametrium.privacy.egress import check_scalars
from parametrium.training.aggregation import aggregate, templates_of_few
from parametrium.training.round import evaluation_due
from parametrium.training.run_folder import (
    IDLE,
    IDLE_REMEDY,
    Contribution,
    RunFolder,
    Status,
    contribution_of,
    unused,
)
from parametrium.training.update import Update, check_update
from parametrium.training.warm_start.start import open_start

log = logging.getLogger(__name__)

Answers = dict[str, Shareable]


class PretrainWorkflow(Controller):  # type: ignore[misc]
    """Runs the job's rounds; a job gives it no argument."""

    def start_controller(self, fl_ctx: FLContext) -> None:
        """Nothing to prepare: everything is read when the run starts."""

    def stop_controller(self, fl_ctx: FLContext) -> None:
        """Nothing to end: the run folder is closed by ``control_flow``."""

    def process_result_of_unknown_task(
        self, client: Client, task_name: str, client_task_id: str, result: Shareable, fl_ctx: FLContext
    ) -> None:
        """An answer that came after its round was closed: dropped, never aggregated."""
        log.warning("late answer of %s to %s was dropped", client.name, task_name)

    def control_flow(self, abort_signal: Signal, fl_ctx: FLContext) -> None:
        """The whole run; ends with a manifest whatever happens."""
        run, failure = None, None
        try:
            job = job_of(fl_ctx)
            folder = RunFolder(run_place(fl_ctx, job.name), job)
            folder.create()
            run = _Run(self, job, folder, abort_signal, fl_ctx)
            run.execute()
        except Exception as error:
            failure = error
        if run is not None:
            run.folder.finish(run.rounds_done, run.sites, failure)
            offer_download(run.folder.path, job_workspace(fl_ctx))
        if failure is not None:
            log.error("the run failed: %s", public_text(failure))
            self.system_panic(public_text(failure), fl_ctx)


class _Run:
    """One run from its first to its last round."""

    def __init__(
        self, workflow: Controller, job: JobConfig, folder: RunFolder, abort_signal: Signal, fl_ctx: FLContext
    ) -> None:
        self.workflow, self.job, self.folder = workflow, job, folder
        self.abort_signal, self.fl_ctx = abort_signal, fl_ctx
        self.sites: list[str] = sorted(client.name for client in fl_ctx.get_engine().get_clients())
        self.absent: dict[str, str] = {}
        self.rounds_done = 0

    def execute(self) -> None:
        """Opens the sites, then trains, checks, aggregates and saves, round by round."""
        owners = tensor_owners(build_model(self.job))
        model, self.folder.start = open_start(self.job, start_place(self.fl_ctx, self.job.name))
        self.folder.save_model(0, model)
        self._open()
        self._evaluate(0, model, final=False)
        for number in range(self.job.rounds):
            model = self._round(number, model, owners)
            self.rounds_done = number + 1
            if evaluation_due(self.job, self.rounds_done):
                self._evaluate(self.rounds_done, model, final=self.rounds_done == self.job.rounds)
                if (verdict := self.folder.verdict()).stopped_by:
                    log.info("the run ends after %d rounds: %s", self.rounds_done, verdict.reason)
                    break
        best = self.folder.verdict().best_round
        if best is not None and not best == self.rounds_done == self.job.rounds:
            self._evaluate(best, self.folder.model(best), final=True)

    def _open(self) -> None:
        answers = self._ask(OPEN, task_message(0), self.sites)
        for site in self.sites:
            try:
                scalars = check_scalars(self.job, read_scalars(answers.get(site), site))
                self.folder.add_evaluation(0, site, scalars)
            except ParametriumError as error:
                self.absent[site] = error.message
                log.warning("%s cannot take part: %s", site, error)
        self._require(len(self.sites) - len(self.absent), "sites could open their cohort")

    def _round(self, number: int, model: Mapping[str, Tensor], owners: Mapping[str, Owner]) -> dict[str, Tensor]:
        started, minimum = time.monotonic(), self.job.minimum_sites
        answers = self._ask(TRAIN, task_message(number, model), [s for s in self.sites if s not in self.absent])
        answered, contributions = self._received(number, answers, model, owners)
        updates = [update for update in answered if not update.idle]
        templates: list[str] = []
        if len(updates) >= minimum:
            model, templates = self._next(number, model, updates, owners)
        else:
            contributions = [unused(contribution) for contribution in contributions]
            log.warning("round %d: %d of at least %d sites trained; the model stays", number, len(updates), minimum)
        going_on = len(answered) >= minimum and len(updates) > 0
        if going_on:
            self.folder.save_model(number + 1, model)
        scalars = {update.site: update.scalars for update in answered}
        self.folder.add_round(number, contributions, scalars, time.monotonic() - started, templates)
        self._require(len(answered), f"sites gave an answer to round {number} that can be used")
        if not going_on:
            reason = f"round {number}: {IDLE}, at any of the {len(answered)} sites that answered; {IDLE_REMEDY}"
            raise FederationError(Code.ROUND_FAILED, reason)
        log.info("round %d of %d: %d of %d sites", number + 1, self.job.rounds, len(updates), len(self.sites))
        return dict(model)

    def _received(
        self, number: int, answers: Answers, model: Mapping[str, Tensor], owners: Mapping[str, Owner]
    ) -> tuple[list[Update], list[Contribution]]:
        """The updates that pass every check, idle ones, too, and the record of every site."""
        found: list[Update] = []
        contributions = [Contribution(site, "missing", reason) for site, reason in self.absent.items()]
        for site in sorted(self.sites):
            if site in self.absent:
                continue
            try:
                update = self._checked(answers.get(site), site, number, model)
                found.append(update)
                contributions.append(contribution_of(update, owners))
            except ParametriumError as error:
                status: Status = "rejected" if site in answers else "missing"
                contributions.append(Contribution(site, status, error.message))
                log.warning("round %d: %s", number, error)
        return found, contributions

    def _next(
        self, number: int, model: Mapping[str, Tensor], updates: Sequence[Update], owners: Mapping[str, Owner]
    ) -> tuple[Mapping[str, Tensor], list[str]]:
        """The next model, and the modalities whose templates stay as they are."""
        rule = self.job.aggregation
        kept = templates_of_few(updates, owners, rule.minimum_template_sites)
        templates = sorted({str(owners[name].modality) for name in kept})
        for modality in templates:
            text = "round %d: fewer than minimum_template_sites (%d) trained the template of %s; it stays as it is"
            log.warning(text, number, rule.minimum_template_sites, modality)
        rate = rule.server_learning_rate
        return aggregate(model, updates, rule=rule.rule, server_learning_rate=rate, keep=kept), templates

    def _checked(self, answer: Shareable | None, site: str, number: int, model: Mapping[str, Tensor]) -> Update:
        update = read_update(answer, site)
        check_scalars(self.job, update.scalars)
        check_update(update, model, round_number=number, max_norm=self.job.aggregation.max_update_norm)
        return update

    def _evaluate(self, rounds: int, model: Mapping[str, Tensor], final: bool) -> None:
        """Asks the sites to measure the global model after so many rounds."""
        present = [site for site in self.sites if site not in self.absent]
        answers = self._ask(EVALUATE, task_message(rounds, model, final), present)
        for site in present:
            try:
                scalars = check_scalars(self.job, read_scalars(answers.get(site), site))
                self.folder.add_evaluation(rounds, site, scalars)
            except ParametriumError as error:
                log.warning("evaluation after %d rounds: %s", rounds, error)

    def _ask(self, name: str, message: Shareable, sites: Sequence[str]) -> Answers:
        """Sends a task to sites and collects what comes before the deadline, by site."""
        answers: Answers = {}

        def receive(client_task: ClientTask, fl_ctx: FLContext) -> None:
            answers[client_task.client.name] = client_task.result
            client_task.result = None

        task = Task(name, message, timeout=math.ceil(self.job.round_timeout_s), result_received_cb=receive)
        self.workflow.broadcast_and_wait(
            task, self.fl_ctx, list(sites), min_responses=len(sites), abort_signal=self.abort_signal
        )
        if self.abort_signal.triggered:
            raise FederationError(Code.FLARE_FAILED, "the job was aborted")
        return dict(answers)

    def _require(self, count: int, what: str) -> None:
        if count < self.job.minimum_sites:
            raise FederationError(Code.ROUND_FAILED, f"only {count} {what}; minimum_sites is {self.job.minimum_sites}")
