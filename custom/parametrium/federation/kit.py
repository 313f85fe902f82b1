"""What a party's FLARE kit needs in its ``local`` folder, beyond what provisioning wrote.

A kit comes from FLARE's provisioning (``poc/project.yml`` is an example) with defaults that suit a research cluster:
jobs may name 88 of FLARE's classes, leads may ship code, logs stream to the server. ``equip_site`` and
``equip_server`` replace them by what this package needs and nothing more.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from parametrium.config import load_site
from parametrium.config.plain import write_plain
from parametrium.federation.place import SERVER_FILE, SITE_FILE

PACKAGE = "parametrium."
"""The only prefix of classes that a job may name. FLARE's own list holds, among others, a component that streams a
site's log to the server; no job of ours needs any of them."""

NOBODY, ANYBODY, SUBMITTER = "none", "any", "n:submitter"


def equip_site(kit: Path, site: Path) -> None:
    """Writes a site's own files into its kit.

    Args:
        kit: the site's kit: the folder that holds ``startup`` and ``local``.
        site: the site config; its folders are written as absolute paths.
    """
    local = kit / "local"
    config = load_site(site)
    _write(local / "resources.json", json.dumps(site_resources(_provisioned(local)), indent=2))
    _write(local / "authorization.json", json.dumps(authorization(), indent=2))
    _write(local / SITE_FILE, write_plain(config.model_dump(mode="json")))


def equip_server(kit: Path, runs: Path, storage: Path, starts: Path | None = None) -> None:
    """Writes the server's own files into its kit.

    Args:
        kit: the server's kit: the folder that holds ``startup`` and ``local``.
        runs: where run folders are kept; a run's checkpoints must survive FLARE's workspace.
        storage: where FLARE keeps submitted jobs and their results.
        starts: where checkpoints lie that runs start from, each under its run's name; None: all runs start afresh.
    """
    local = kit / "local"
    _write(local / "resources.json", json.dumps(server_resources(_provisioned(local), storage.resolve()), indent=2))
    _write(local / "authorization.json", json.dumps(authorization(), indent=2))
    folders = {"runs": runs} if starts is None else {"runs": runs, "starts": starts}
    _write(local / SERVER_FILE, write_plain({key: str(folder.resolve()) for key, folder in folders.items()}))


def site_resources(existing: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """``local/resources.json``: jobs name our classes only, no log leaves.

    Top-level keys of this file are sent to the server at registration: nothing of the site may be put into it.

    Args:
        existing: the file that provisioning wrote; its components are kept, but for log streaming.
    """
    resources = dict(existing or {"format_version": 2})
    resources["class_list_enforcement_mode"] = "enforce"
    resources["class_allow_list"] = [PACKAGE]
    resources["allow_log_streaming"] = False
    components = resources.get("components", [])
    resources["components"] = [c for c in components if not _moves_logs(c)]
    return resources


def server_resources(existing: Mapping[str, Any], storage: Path) -> dict[str, Any]:
    """The server's ``local/resources.json``: as a site's, and nothing is kept in a folder that all users share.

    Args:
        existing: the file that provisioning wrote.
        storage: replaces FLARE's default below /tmp, for jobs and snapshots.
    """
    resources = site_resources(json.loads(json.dumps(existing)))
    resources["snapshot_persistor"]["args"]["storage"]["args"]["root_dir"] = str(storage / "snapshots")
    for component in resources["components"]:
        if component["id"] == "job_manager":
            component["args"]["uri_root"] = str(storage / "jobs")
    return resources


def authorization() -> dict[str, Any]:
    """``local/authorization.json``: the same for sites and server.

    Nobody may ship code and nobody may run shell commands on a party's kit, not even the project's administrator, to
    whom FLARE's default gives everything. The lead submits jobs, may stop her own and download their results.
    """
    nothing = dict.fromkeys(
        ("submit_job", "clone_job", "manage_job", "download_job", "operate", "shell_commands", "byoc"), NOBODY
    )
    nothing["server-predeployed-flwr"] = NOBODY
    lead = {"submit_job": ANYBODY, "manage_job": SUBMITTER, "download_job": SUBMITTER}
    return {
        "format_version": "1.0",
        "permissions": {
            "project_admin": {**nothing, "view": ANYBODY, "manage_job": ANYBODY, "operate": ANYBODY},
            "org_admin": {**nothing, "view": ANYBODY, "manage_job": "o:submitter", "operate": "o:site"},
            "lead": {**nothing, **lead, "view": ANYBODY},
            "member": {**nothing, "view": ANYBODY},
        },
    }


def _moves_logs(component: Mapping[str, Any]) -> bool:
    """Whether a component of ``resources.json`` sends or receives logs of running jobs."""
    name = str(component.get("path", "")).rsplit(".", 1)[-1]
    return name.endswith(("LogStreamer", "LogReceiver"))


def _provisioned(local: Path) -> dict[str, Any]:
    resources: dict[str, Any] = json.loads((local / "resources.json.default").read_text(encoding="utf-8"))
    return resources


def _write(path: Path, text: str) -> None:
    """Readable by the owner alone: a site config says where the scans are."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)
