"""What a kit permits, asked of FLARE's own judges."""

import json
import stat
from pathlib import Path
from typing import Any

import pytest
import yaml
from hospitals import write_config
from nvflare.apis.fl_exception import UnsafeComponentError
from nvflare.app_common.widgets.component_path_authorizer import ComponentPathAuthorizer
from nvflare.fuel.sec.authz import AuthzContext, Person
from nvflare.security.security import FLAuthorizer

from parametrium.federation.kit import authorization, equip_server, equip_site, site_resources
from parametrium.federation.place import SERVER_FILE, SITE_FILE

STREAMER = {"id": "site_log_streamer", "path": "nvflare.app_common.logging.site_log_streamer.SiteLogStreamer"}
RECEIVER = {"id": "log_receiver", "path": "nvflare.app_common.logging.job_log_receiver.JobLogReceiver"}
LAUNCHER = {"id": "process_launcher", "path": "nvflare.app_common.job_launcher.client_process_launcher.X"}
MANAGER = {"id": "job_manager", "path": "x.Y", "args": {"uri_root": "/tmp/nvflare/jobs-storage"}}


class Workspace:
    """The one method that FLARE's judge asks for."""

    def __init__(self, resources: Path) -> None:
        self.resources = resources

    def get_resources_file_path(self) -> str:
        return str(self.resources)


def provisioned(kit: Path, **resources: Any) -> Path:
    (kit / "local").mkdir(parents=True)
    text = json.dumps({"format_version": 2, "class_allow_list": ["nvflare."], **resources})
    (kit / "local" / "resources.json.default").write_text(text)
    return kit


@pytest.mark.parametrize(
    ("path", "permitted"),
    [
        ("parametrium.federation.workflow.PretrainWorkflow", True),
        ("parametrium.federation.executor.TrainerExecutor", True),
        ("os.system", False),
        ("subprocess.Popen", False),
        ("parametriumx.anything", False),
        ("nvflare.app_common.executors.client_api_executor.ClientAPIExecutor", False),
        ("nvflare.app_common.logging.job_log_streamer.JobLogStreamer", False),
        ("nvflare.app_common.widgets.convert_to_fed_event.ConvertToFedEvent", False),
    ],
)
def test_a_job_may_name_classes_of_this_package_only(tmp_path: Path, path: str, permitted: bool) -> None:
    """Assurance S2. The last two would carry logs and metrics past the egress guard; FLARE's default permits them."""
    file = tmp_path / "resources.json"
    file.write_text(json.dumps(site_resources()))
    judge = ComponentPathAuthorizer()
    if permitted:
        judge.authorize_component_config({"path": path}, workspace=Workspace(file))
    else:
        with pytest.raises(UnsafeComponentError):
            judge.authorize_component_config({"path": path}, workspace=Workspace(file))


@pytest.mark.parametrize("role", ["project_admin", "org_admin", "lead", "member"])
@pytest.mark.parametrize("right", ["byoc", "cat", "ls", "grep", "tail", "head", "server-predeployed-flwr"])
def test_nobody_may_bring_code_or_look_into_a_kit(role: str, right: str) -> None:
    assert not authorised(role, right)


@pytest.mark.parametrize(
    ("role", "right", "granted"),
    [
        ("lead", "submit_job", True),
        ("lead", "download_job", True),
        ("lead", "abort_job", True),
        ("lead", "check_status", True),
        ("lead", "shutdown", False),
        ("lead", "report_env", False),
        ("member", "submit_job", False),
        ("org_admin", "submit_job", False),
        ("project_admin", "submit_job", False),
        ("project_admin", "shutdown", True),
        ("project_admin", "download_job", False),
        ("stranger", "check_status", False),
    ],
)
def test_who_may_do_what(role: str, right: str, granted: bool) -> None:
    assert authorised(role, right) is granted


def authorised(role: str, right: str) -> bool:
    person = Person("someone@example.org", "coordination", role)
    granted, _ = FLAuthorizer("hospital", authorization()).authorize(AuthzContext(right, person, person))
    return bool(granted)


def test_a_sites_kit_gets_its_three_files_for_its_owner_alone(tmp_path: Path) -> None:
    kit = provisioned(tmp_path / "kit", components=[LAUNCHER, STREAMER], allow_log_streaming=True)
    equip_site(kit, write_config(tmp_path, "north", Path("hospital")))
    files = [kit / "local" / name for name in ("resources.json", "authorization.json", SITE_FILE)]
    assert [stat.S_IMODE(path.stat().st_mode) for path in files] == [0o600] * 3
    resources = json.loads(files[0].read_text())
    assert resources["class_allow_list"] == ["parametrium."]
    assert resources["allow_log_streaming"] is False
    assert resources["components"] == [LAUNCHER]
    site = yaml.safe_load(files[2].read_text())
    assert site["cohort"] == str(tmp_path.resolve() / "hospital" / "scans"), "it is absolute: the kit lies elsewhere"


def test_what_flare_sends_of_a_kit_at_registration_tells_nothing_of_the_site(tmp_path: Path) -> None:
    """FLARE sends the unknown top-level keys of resources.json to the server."""
    kit = provisioned(tmp_path / "kit", components=[])
    equip_site(kit, write_config(tmp_path, "north", tmp_path / "hospital"))
    resources = json.loads((kit / "local" / "resources.json").read_text())
    known = {"format_version", "class_list_enforcement_mode", "class_allow_list", "allow_log_streaming", "components"}
    assert set(resources) == known
    assert str(tmp_path) not in json.dumps(resources)


def test_a_servers_kit_keeps_nothing_in_a_shared_folder(tmp_path: Path) -> None:
    storage = {"storage": {"args": {"root_dir": "/tmp/nvflare/snapshot-storage"}}}
    kit = provisioned(tmp_path / "kit", components=[RECEIVER, MANAGER], snapshot_persistor={"args": storage})
    equip_server(kit, tmp_path / "runs", tmp_path / "storage")
    text = (kit / "local" / "resources.json").read_text()
    assert "/tmp/nvflare" not in text
    assert [component["id"] for component in json.loads(text)["components"]] == ["job_manager"]
    assert yaml.safe_load((kit / "local" / SERVER_FILE).read_text()) == {"runs": str(tmp_path.resolve() / "runs")}
