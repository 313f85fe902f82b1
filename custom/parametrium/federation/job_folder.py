"""A FLARE job folder: JSON and the job's YAML, no code; it names two classes of the installed package, nothing else."""

import json
import shutil
from pathlib import Path
from typing import Any

from parametrium.config import JobConfig, load_job
from parametrium.config.plain import write_plain
from parametrium.federation.payload import TASKS
from parametrium.federation.place import JOB_FILE
from parametrium.model.presets import architecture

FORMAT = {"format_version": 2, "task_data_filters": [], "task_result_filters": [], "components": []}


def export_job(job: JobConfig, folder: Path) -> Path:
    """Writes ``folder/<job name>/`` for the admin console's submit_job, replacing an earlier export.

    Returns:
        The job folder.

    Raises:
        ConfigError: PM103 when there is no model of such sizes.
    """
    architecture(job.model)
    target = folder / job.name
    shutil.rmtree(target, ignore_errors=True)
    config = target / "app" / "config"
    config.mkdir(parents=True)
    meta = {
        "name": job.name,
        "resource_spec": {},
        "min_clients": job.minimum_sites,
        "deploy_map": {"app": ["@ALL"]},
    }
    server = {
        **FORMAT,
        # Sites ask for work five times a second: a round must not wait for FLARE's default of two seconds.
        "server": {"task_request_interval": 0.2},
        "workflows": [{"id": "pretrain", "path": "parametrium.federation.workflow.PretrainWorkflow", "args": {}}],
    }
    executor = {"path": "parametrium.federation.executor.TrainerExecutor", "args": {}}
    client = {**FORMAT, "executors": [{"tasks": list(TASKS), "executor": executor}]}
    _write_json(target / "meta.json", meta)
    _write_json(config / "config_fed_server.json", server)
    _write_json(config / "config_fed_client.json", client)
    text = write_plain(job.model_dump(mode="json"))
    (config / JOB_FILE).write_text(text, encoding="utf-8")
    return target


def export_all(jobs: Path, folder: Path) -> list[Path]:
    """Exports every job file of a folder; what is there of jobs that no longer exist is removed."""
    folder.mkdir(parents=True, exist_ok=True)
    exported = [export_job(load_job(path), folder) for path in sorted(jobs.glob("*.yaml"))]
    for stale in folder.iterdir():
        if stale.is_dir() and stale not in exported:
            shutil.rmtree(stale)
    return exported


def _write_json(path: Path, data: dict[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
