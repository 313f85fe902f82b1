"""The trainer process: one site's trainer, driven by JSON lines on standard input and output.

    python -m parametrium.site.worker --job JOB.yaml --site SITE.yaml --run NAME --state FOLDER

    {"command": "open"}                                                      -> {"ok": true, "scalars": {...}}
    {"command": "train", "round": 3, "model": FILE, "update": FILE}          -> {"ok": true, "facts": {...}}
    {"command": "evaluate", "round": 3, "model": FILE, "final": false}       -> {"ok": true, "scalars": {...}}
    {"command": "close"}                                                     -> {"ok": true}
    on failure                                                               -> {"ok": false, "error": "PM402 ..."}

Tensors travel in safetensors files inside the site's own folder. A failed command ends the process at once with exit
code 3: nothing half-trained is kept alive. When the parent is gone (end of input) it ends, too, also amid a round.
"""

import argparse
import json
import os
import queue
import sys
import threading
import traceback
from io import RawIOBase
from pathlib import Path
from typing import Any, TextIO

from safetensors.torch import load_file, save_file

from parametrium.config import load_job, load_site
from parametrium.errors import public_text
from parametrium.site.trainer import SiteTrainer

FAILED = 3
ORPHANED = 4


def main() -> None:
    """Serves commands until ``close``."""
    parser = argparse.ArgumentParser(description="trainer process of one site")
    for option in ("--job", "--site", "--run", "--state"):
        parser.add_argument(option, required=True)
    arguments = parser.parse_args()
    answers = _claim_stdout()
    commands: queue.Queue[bytes] = queue.Queue()
    threading.Thread(target=_listen, args=(_claim_stdin(), commands), daemon=True).start()
    trainer: SiteTrainer | None = None
    while True:
        command = json.loads(commands.get())
        try:
            if trainer is None:
                job, site = load_job(Path(arguments.job)), load_site(Path(arguments.site))
                trainer = SiteTrainer(job, site, arguments.run, Path(arguments.state))
            answer = _serve(trainer, command)
        except BaseException as error:
            traceback.print_exc()
            _send(answers, {"ok": False, "error": public_text(error)})
            sys.stderr.flush()
            os._exit(FAILED)
        _send(answers, {"ok": True, **answer})
        if command["command"] == "close":
            return


def _serve(trainer: SiteTrainer, command: dict[str, Any]) -> dict[str, Any]:
    match command["command"]:
        case "open":
            return {"scalars": trainer.open()}
        case "train":
            update = trainer.train(command["round"], load_file(command["model"]))
            save_file({name: tensor.contiguous() for name, tensor in update.tensors.items()}, command["update"])
            facts = {
                "contributions": update.contributions,
                "steps": update.steps,
                "samples": update.samples,
                "scalars": update.scalars,
            }
            return {"facts": facts}
        case "evaluate":
            model = load_file(command["model"])
            return {"scalars": trainer.evaluate(command["round"], model, command["final"])}
        case "close":
            trainer.close()
            return {}
        case other:
            raise ValueError(f"unknown command {other!r}")


def _claim_stdout() -> TextIO:
    """The real standard output, for answers alone: whatever a library prints goes to the log instead."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return answers


def _claim_stdin() -> RawIOBase:
    """The real standard input, for commands alone, without a buffer.

    A buffer's lock would be held while the listener waits: whoever closes ``sys.stdin`` meanwhile, as every child of
    ``multiprocessing`` and the interpreter at its end do, would wait for it for ever.
    """
    commands = os.fdopen(os.dup(sys.stdin.fileno()), "rb", buffering=0)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, sys.stdin.fileno())
    os.close(nothing)
    return commands


def _listen(source: RawIOBase, commands: queue.Queue[bytes]) -> None:
    for line in source:
        commands.put(line)
    os._exit(ORPHANED)


def _send(answers: TextIO, answer: dict[str, Any]) -> None:
    answers.write(json.dumps(answer) + "\n")
    answers.flush()


if __name__ == "__main__":
    main()
