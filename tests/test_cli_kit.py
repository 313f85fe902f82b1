"""Kits are equipped by a command, and only kits."""

import json
from pathlib import Path

import pytest
import yaml

from parametrium.cli import main

TEMPLATE = Path(__file__).parent.parent / "site_configs" / "template.yaml"


PROVISIONED = {
    "format_version": 2,
    "snapshot_persistor": {"args": {"storage": {"args": {"root_dir": "shared"}}}},
    "components": [{"id": "job_manager", "path": "nvflare.JobManager", "args": {"uri_root": "shared"}}],
}


def kit_at(folder: Path) -> Path:
    (folder / "local").mkdir(parents=True)
    (folder / "local" / "resources.json.default").write_text(json.dumps(PROVISIONED))
    return folder


def test_a_sites_kit_gets_its_config_and_names_only_our_classes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kit = kit_at(tmp_path / "kit")
    with pytest.raises(SystemExit) as ended:
        main(["kit", "site", str(kit), str(TEMPLATE), "--json"])
    assert ended.value.code == 0
    assert json.loads(capsys.readouterr().out) == {"kit": str(kit)}
    assert yaml.safe_load((kit / "local" / "parametrium_site.yaml").read_text())["site"] == "template"
    assert json.loads((kit / "local" / "resources.json").read_text())["class_allow_list"] == ["parametrium."]


def test_the_servers_kit_learns_where_runs_are_kept(tmp_path: Path) -> None:
    kit = kit_at(tmp_path / "kit")
    with pytest.raises(SystemExit) as ended:
        main(["kit", "server", str(kit), "--runs", str(tmp_path / "runs"), "--storage", str(tmp_path / "storage")])
    assert ended.value.code == 0
    assert yaml.safe_load((kit / "local" / "parametrium_server.yaml").read_text()) == {"runs": str(tmp_path / "runs")}
    assert "shared" not in (kit / "local" / "resources.json").read_text()


def test_the_servers_kit_learns_where_starts_lie(tmp_path: Path) -> None:
    kit = kit_at(tmp_path / "kit")
    words = ["--runs", str(tmp_path / "runs"), "--storage", str(tmp_path / "s"), "--starts", str(tmp_path / "starts")]
    with pytest.raises(SystemExit) as ended:
        main(["kit", "server", str(kit), *words])
    assert ended.value.code == 0
    settings = yaml.safe_load((kit / "local" / "parametrium_server.yaml").read_text())
    assert settings == {"runs": str(tmp_path / "runs"), "starts": str(tmp_path / "starts")}


def test_a_folder_that_is_no_kit_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["kit", "site", str(tmp_path), str(TEMPLATE)])
    assert ended.value.code == 2
    assert "PM103" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
