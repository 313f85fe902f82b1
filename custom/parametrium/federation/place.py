"""Where a server and a site find what a job must not say: run folders and site configs.

In a provisioned federation each party has its own file in its kit's ``local`` folder. In a simulation all parties share
one machine and one kit; ``simulate`` tells them by environment variables, which no job can set.
"""

import os
from pathlib import Path
from typing import Any

import yaml
from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.workspace import Workspace

from parametrium.config import JobConfig, load_job, load_site
from parametrium.errors import Code, ConfigError, FederationError

SIMULATED_RUN = "PARAMETRIUM_SIMULATED_RUN"
"""Set by ``simulate``: the run folder."""

SIMULATED_START = "PARAMETRIUM_SIMULATED_START"
"""Set by ``simulate`` where the run starts from a checkpoint: its folder."""

SITE_FILE = "parametrium_site.yaml"
"""A site's config in ``<kit>/local``."""

SERVER_FILE = "parametrium_server.yaml"
"""The server's ``{runs: FOLDER, starts: FOLDER}`` in ``<kit>/local``; without starts, every run starts afresh."""

JOB_FILE = "job.yaml"
"""The job, beside FLARE's own files in a job folder's ``app/config``."""


def job_of(fl_ctx: FLContext) -> JobConfig:
    """The job of a running FLARE job, and its file."""
    return load_job(job_file(fl_ctx))


def job_file(fl_ctx: FLContext) -> Path:
    """Where the job's YAML lies at this party."""
    return Path(_workspace(fl_ctx).get_app_config_dir(fl_ctx.get_job_id())) / JOB_FILE


def job_workspace(fl_ctx: FLContext) -> Path:
    """FLARE's own folder of a running job at this party; FLARE may remove it at any time after the job."""
    return Path(_workspace(fl_ctx).get_run_dir(fl_ctx.get_job_id()))


def site_place(fl_ctx: FLContext, run: str) -> tuple[Path, Path]:
    """A site's config file and its folder for this run.

    Raises:
        FederationError: PM505 when the site has no config.
        ConfigError: PM103 when the config is another site's.
    """
    name = fl_ctx.get_identity_name()
    simulated = os.environ.get(SIMULATED_RUN)
    if simulated:
        folder = Path(simulated) / "sites" / name
        return folder / "site.yaml", folder
    file = Path(_workspace(fl_ctx).get_site_config_dir()) / SITE_FILE
    if not file.is_file():
        raise FederationError(
            Code.FLARE_FAILED,
            f"the site's kit has no {SITE_FILE} in its local folder; federation/kit.py writes it (equip_site)",
        )
    site = load_site(file)
    if site.site != name:
        raise ConfigError(
            Code.CONFIG_INVALID_VALUE, f"site.site must be the name of this FLARE client, {name}, got {site.site!r}"
        )
    return file, Path(site.state) / run


def run_place(fl_ctx: FLContext, run: str) -> Path:
    """The server's folder of a run.

    Raises:
        FederationError: PM505 when the server's kit does not say where runs are kept.
    """
    simulated = os.environ.get(SIMULATED_RUN)
    if simulated:
        return Path(simulated)
    return _server_folder(fl_ctx, "runs") / run


def start_place(fl_ctx: FLContext, run: str) -> Path | None:
    """The checkpoint that a run starts from; None where it starts afresh.

    A job is the same everywhere and holds no path: the server keeps starts in one folder, each under the run's name.

    Raises:
        FederationError: PM505 when the server's kit cannot be read.
    """
    if SIMULATED_RUN in os.environ:
        simulated = os.environ.get(SIMULATED_START)
        return Path(simulated) if simulated else None
    if "starts" not in _server_settings(fl_ctx):
        return None
    place = _server_folder(fl_ctx, "starts") / run
    return place if place.exists() else None


def _server_folder(fl_ctx: FLContext, key: str) -> Path:
    folder = _server_settings(fl_ctx).get(key)
    if not isinstance(folder, str):
        raise _without_settings(key)
    return Path(folder)


def _server_settings(fl_ctx: FLContext) -> dict[str, Any]:
    file = Path(_workspace(fl_ctx).get_site_config_dir()) / SERVER_FILE
    try:
        settings: Any = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise _without_settings("runs") from error
    if not isinstance(settings, dict):
        raise _without_settings("runs")
    return settings


def _without_settings(key: str) -> FederationError:
    return FederationError(
        Code.FLARE_FAILED,
        f"the server's kit needs {SERVER_FILE} in its local folder with a folder under the key {key}; "
        "federation/kit.py writes it (equip_server)",
    )


def _workspace(fl_ctx: FLContext) -> Workspace:
    return fl_ctx.get_prop(FLContextKey.WORKSPACE_OBJECT) or fl_ctx.get_engine().get_workspace()
