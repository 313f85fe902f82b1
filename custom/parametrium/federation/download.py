"""What a coordinator gets with the admin console's ``download_job``: the run's record, its final and its best model.

The run folder stays on the server, where the coordinator may have no account. A copy of what ``judge``,
``final_model`` and ``best_model`` read is therefore put into the job's FLARE workspace, which FLARE keeps with the job
and hands out to its submitter. Site folders are not part of it.
"""

import json
import logging
import shutil
from pathlib import Path

log = logging.getLogger(__name__)

FOLDER = "parametrium_run"
RECORD = ("job.yaml", "rounds.jsonl", "contributions.csv", "evaluation.jsonl", "manifest.json")


def offer_download(run: Path, workspace: Path) -> None:
    """Copies a finished run into a job's workspace; a full disk there does not undo the run.

    Args:
        run: the run folder, with its manifest.
        workspace: FLARE's folder of the job.
    """
    target = workspace / FOLDER
    try:
        target.mkdir(parents=True, exist_ok=True)
        for name in RECORD:
            if (run / name).exists():
                shutil.copyfile(run / name, target / name)
        manifest = json.loads((run / "manifest.json").read_text(encoding="utf-8"))
        for checkpoint in {manifest["checkpoint"], manifest["best_checkpoint"]} - {None}:
            shutil.copytree(run / "checkpoints" / checkpoint, target / "checkpoints" / checkpoint)
    except OSError as error:
        log.warning("the run cannot be offered for download (%s); it is in the server's run folder", error.strerror)


def downloaded_run(result: Path) -> Path:
    """The run folder inside what ``download_job`` brought."""
    return result / "workspace" / FOLDER
