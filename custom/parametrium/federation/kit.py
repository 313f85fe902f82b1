"""What a party's FLARE kit needs in its ``local`` folder, beyond what provisioning wrote."""

from typing import Any

from nvflare.app_common.default_component_policy import DEFAULT_CLASS_ALLOW_LIST

PACKAGE = "parametrium."
"""The one entry a site adds to FLARE's list of classes that a job may name."""


def site_resources(existing: dict[str, Any] | None = None) -> dict[str, Any]:
    """``local/resources.json``: FLARE's own classes and ours may be named by jobs; no log leaves.

    Top-level keys of this file are sent to the server at registration: nothing of the site may be put into it.

    Args:
        existing: the file that provisioning wrote; its components are kept, but for log streaming.
    """
    resources = dict(existing or {"format_version": 2})
    allowed = list(resources.get("class_allow_list", DEFAULT_CLASS_ALLOW_LIST))
    resources["class_allow_list"] = [*(name for name in allowed if name != PACKAGE), PACKAGE]
    resources["allow_log_streaming"] = False
    components = resources.get("components", [])
    resources["components"] = [c for c in components if "streamer" not in str(c.get("id", "")).lower()]
    return resources
