"""The site's end: a FLARE executor that keeps the trainer process over the rounds of a job.

It is locked to this site: a job names this class and gives it no argument.
"""

import logging
from collections.abc import Callable

from nvflare.apis.event_type import EventType
from nvflare.apis.executor import Executor
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.apis.signal import Signal

from parametrium.errors import Code, FederationError, public_text
from parametrium.federation.link import TrainerLink
from parametrium.federation.payload import (
    EVALUATE,
    OPEN,
    TRAIN,
    error_message,
    read_task,
    scalars_message,
    update_message,
)
from parametrium.federation.place import job_file, job_of, site_place
from parametrium.privacy.egress import check_scalars

log = logging.getLogger(__name__)


class TrainerExecutor(Executor):  # type: ignore[misc]
    """Answers the server's tasks with what the trainer process gives; an error becomes an answer, never a crash."""

    def __init__(self) -> None:
        super().__init__()
        self._link: TrainerLink | None = None
        self._facts: dict[str, float] = {}

    def execute(self, task_name: str, shareable: Shareable, fl_ctx: FLContext, abort_signal: Signal) -> Shareable:
        """One task. Everything that leaves passes ``check_scalars``; every error text is public."""
        try:
            return self._answer(task_name, shareable, fl_ctx, lambda: bool(abort_signal.triggered))
        except Exception as error:
            self._end(at_once=True)
            # FLARE's log of this process stays at the site, but it is read by many: public text there, too.
            log.warning("task %s failed: %s", task_name, public_text(error))
            return error_message(error)

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Ends the trainer with the job."""
        if event_type == EventType.END_RUN:
            self._end(at_once=False)
        elif event_type == EventType.ABORT_TASK:
            self._end(at_once=True)

    def _answer(self, task: str, message: Shareable, fl_ctx: FLContext, stopped: Callable[[], bool]) -> Shareable:
        number, final, model = read_task(message)
        job = job_of(fl_ctx)
        link = self._open(fl_ctx, job.name, stopped)
        if task == OPEN:
            return scalars_message(check_scalars(job, self._facts))
        if task == TRAIN:
            update = link.train(fl_ctx.get_identity_name(), number, model, stopped)
            check_scalars(job, update.scalars)
            return update_message(update)
        if task == EVALUATE:
            return scalars_message(check_scalars(job, link.evaluate(number, model, final, stopped)))
        raise FederationError(Code.FLARE_FAILED, "the server asked for a task that this site does not know")

    def _open(self, fl_ctx: FLContext, run: str, stopped: Callable[[], bool]) -> TrainerLink:
        """The running trainer; a new one when there is none or the last one failed."""
        if self._link is None or not self._link.alive:
            self._end(at_once=True)
            file, folder = site_place(fl_ctx, run)
            self._link = TrainerLink(job_file(fl_ctx), file, run, folder)
            self._facts = self._link.open(stopped)
        return self._link

    def _end(self, at_once: bool) -> None:
        link, self._link = self._link, None
        if link is not None:
            (link.kill if at_once else link.close)()
