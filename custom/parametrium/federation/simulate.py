"""A federation on one machine in FLARE's simulator, every site in its own process, under a watchdog.

The simulator can hang, and can report success after a failure. It is therefore ended when the run has its manifest
and a moment of grace, or when time is up; and what it returns is not looked at: ``judge`` reads the run folder.
"""

import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from parametrium.config import JobConfig, load_site
from parametrium.config.plain import write_plain
from parametrium.errors import Code, FederationError
from parametrium.federation.job_folder import export_job
from parametrium.federation.kit import site_resources
from parametrium.federation.place import SIMULATED_RUN, SIMULATED_START
from parametrium.federation.processes import Family
from parametrium.training.run_folder import RunFolder
from parametrium.training.warm_start.start import open_start

log = logging.getLogger(__name__)

GRACE_S = 30.0
"""How long the simulator may take to end after the run has its manifest."""

POLL_S = 0.2


def simulate(job: JobConfig, sites: list[Path], out: Path, timeout_s: float, start: Path | None = None) -> Path:
    """Runs the job; the run folder tells how it went.

    Args:
        job: what is learned.
        sites: site configs; their names are the FLARE clients' names.
        out: the run folder; must not hold a run.
        timeout_s: after so many seconds the simulator and everything it started is ended.
        start: a checkpoint that fits the job; None: the job's own initial values.

    Returns:
        The run folder.

    Raises:
        ConfigError: a site config is wrong.
        FederationError: PM503 when two sites have one name or the folder holds a run already.
        TrainingError: PM403 when the start does not fit the job.
    """
    out = out.resolve()
    RunFolder(out, job).require_new()
    digest = open_start(job, start).digest  # said here and at once, and not by a server that is hard to hear
    names = _place_sites(sites, out)
    with tempfile.TemporaryDirectory(prefix="parametrium-") as temporary:
        workspace = Path(temporary) / "workspace"
        (workspace / "local").mkdir(parents=True)
        (workspace / "local" / "resources.json").write_text(json.dumps(site_resources()), encoding="utf-8")
        exported = export_job(job, Path(temporary))
        command = [sys.executable, "-m", "nvflare.private.fed.app.simulator.simulator", str(exported)]
        command += ["-w", str(workspace), "-c", ",".join(names), "-t", str(len(names))]
        environment = {**os.environ, SIMULATED_RUN: str(out), "HOME": temporary, "NVFLARE_SECURE_LOGGING": "true"}
        environment[SIMULATED_START] = "" if start is None else str(start.resolve())
        with (out / "simulator.log").open("wb") as file:
            process = subprocess.Popen(  # noqa: S603 - our own interpreter, FLARE's module
                command, stdout=file, stderr=subprocess.STDOUT, env=environment, cwd=temporary, start_new_session=True
            )
            _watch(process, out / "manifest.json", timeout_s)
    if not (out / "manifest.json").exists():
        error = FederationError(Code.FLARE_FAILED, "the simulator ended without finishing the run")
        folder = RunFolder(out, job)
        folder.start = digest
        if not (out / "job.yaml").exists():  # the server never came to its first step
            folder.create()
        folder.finish_abandoned(names, error)
    return out


def _place_sites(files: list[Path], out: Path) -> list[str]:
    """Copies each site's config to RUN/sites/<site>/site.yaml, where the simulated site finds it."""
    names: list[str] = []
    for file in files:
        site = load_site(file)
        if site.site in names:
            raise FederationError(Code.RUN_INVALID, f"two site configs are named {site.site}; names must differ")
        names.append(site.site)
        place = out / "sites" / site.site
        place.mkdir(parents=True, exist_ok=True, mode=0o700)
        (place / "site.yaml").write_text(write_plain(site.model_dump(mode="json")), encoding="utf-8")
    return names


def _watch(process: subprocess.Popen[bytes], manifest: Path, timeout_s: float) -> None:
    """Waits for the simulator to end; ends it and all that it started when it does not."""
    started = time.monotonic()
    deadline = started + timeout_s
    family = Family()
    family.adopt(process.pid)
    try:
        while process.poll() is None and time.monotonic() < deadline:
            family.look()
            if manifest.exists():
                deadline = min(deadline, manifest.stat().st_mtime - time.time() + time.monotonic() + GRACE_S)
            time.sleep(POLL_S)
        if process.poll() is None:
            log.warning("the simulator did not end by itself after %.0f s", time.monotonic() - started)
    finally:  # also when the user interrupts: the simulator has its own session and would go on
        family.end()
        process.wait()
