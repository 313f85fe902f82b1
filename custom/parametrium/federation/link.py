"""The executor's side of the trainer process: start it, ask it, end it."""

import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from parametrium.errors import Code, FederationError
from parametrium.training.update import Update

POLL_S = 0.1
PATIENCE_S = 10.0
"""How long a trainer may take to close before it is killed."""


class TrainerFailedError(FederationError):
    """The trainer reported an error; its text is public and carries its own code."""

    def __str__(self) -> str:
        return self.message


class TrainerLink:
    """One trainer process, kept over rounds.

    The command line comes from this package and the site's own files; no part of it comes from a job's content.

    Args:
        job: the job's YAML.
        site: the site's YAML.
        run: name of the run.
        folder: the site's folder for this run; the trainer's log is in it.
    """

    def __init__(self, job: Path, site: Path, run: str, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        options = ["--job", str(job), "--site", str(site), "--run", run, "--state", str(folder)]
        self._log: IO[bytes] = (folder / "trainer.log").open("ab")
        self.process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
            # -P: FLARE's working directory, which holds what jobs brought along, is no place to import from.
            [sys.executable, "-P", "-m", "parametrium.site.worker", *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")},
        )
        self._answers: queue.Queue[str] = queue.Queue()
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self.process.poll() is None

    def open(self, stopped: Callable[[], bool]) -> dict[str, float]:
        """Opens the cohort; returns the site's public counts."""
        return dict(self._ask({"command": "open"}, stopped)["scalars"])

    def train(self, site: str, number: int, model: dict[str, Tensor], stopped: Callable[[], bool]) -> Update:
        """Trains one round."""
        sent, received = self.folder / "model.safetensors", self.folder / "update.safetensors"
        save_file(model, sent)
        command = {"command": "train", "round": number, "model": str(sent), "update": str(received)}
        facts = self._ask(command, stopped)["facts"]
        return Update(site=site, round=number, tensors=load_file(received), **facts)

    def evaluate(
        self, number: int, model: dict[str, Tensor], final: bool, stopped: Callable[[], bool]
    ) -> dict[str, float]:
        """Measures the global model on held-out patients."""
        sent = self.folder / "model.safetensors"
        save_file(model, sent)
        command = {"command": "evaluate", "round": number, "model": str(sent), "final": final}
        return dict(self._ask(command, stopped)["scalars"])

    def close(self) -> None:
        """Ends the process: asks first, then kills it; always reaps it."""
        if self.alive:
            try:
                self._ask({"command": "close"}, lambda: False, PATIENCE_S)
                self.process.wait(PATIENCE_S)
            except (FederationError, subprocess.TimeoutExpired):
                self.process.kill()
        self.kill()

    def kill(self) -> None:
        """Ends the process now."""
        if self.alive:
            self.process.kill()
        self.process.wait()
        self._listener.join(PATIENCE_S)  # it reads what is closed next
        for stream in (self.process.stdin, self.process.stdout, self._log):
            if stream:
                stream.close()

    def _listen(self) -> None:
        if self.process.stdout:
            for line in self.process.stdout:
                self._answers.put(line)
        self._answers.put("")

    def _ask(
        self, command: dict[str, Any], stopped: Callable[[], bool], limit_s: float | None = None
    ) -> dict[str, Any]:
        deadline = None if limit_s is None else time.monotonic() + limit_s
        try:
            if self.process.stdin:
                self.process.stdin.write(json.dumps(command) + "\n")
                self.process.stdin.flush()
        except (BrokenPipeError, ValueError):
            raise self._gone() from None
        while True:
            try:
                line = self._answers.get(timeout=POLL_S)
                break
            except queue.Empty:
                if stopped() or (deadline and time.monotonic() > deadline):
                    self.process.kill()
                    raise FederationError(Code.TRAINER_FAILED, "the trainer was stopped") from None
        if not line:
            raise self._gone()
        answer: dict[str, Any] = json.loads(line)
        if not answer["ok"]:
            raise TrainerFailedError(Code.TRAINER_FAILED, answer["error"])
        return answer

    def _gone(self) -> FederationError:
        try:
            code = self.process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:  # it closed its answers but does not end
            self.process.kill()
            code = self.process.wait()
        how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
        return FederationError(Code.TRAINER_FAILED, f"the trainer {how}; the site's own log has the details")
