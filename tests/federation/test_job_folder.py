"""A job folder: configuration without code, the same bytes every time, and committed as it is exported."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from parametrium.config import JobConfig, load_job
from parametrium.errors import ConfigError
from parametrium.federation.job_folder import export_all, export_job

MakeJob = Callable[..., JobConfig]
CHECKOUT = Path(__file__).parent.parent.parent


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def classes(data: Any) -> Iterator[str]:
    """Everything in FLARE's configuration that names a class."""
    if isinstance(data, dict):
        yield from (str(data[key]) for key in ("path", "class_path", "name", "class") if key in data)
        for value in data.values():
            yield from classes(value)
    elif isinstance(data, list):
        for value in data:
            yield from classes(value)


def test_a_job_folder_holds_four_files_and_no_code(tmp_path: Path, make_job: MakeJob) -> None:
    folder = export_job(make_job(), tmp_path)
    assert folder == tmp_path / "tiny"
    assert set(contents(folder)) == {
        "meta.json",
        "app/config/config_fed_server.json",
        "app/config/config_fed_client.json",
        "app/config/job.yaml",
    }


def test_a_job_names_two_classes_of_this_package_and_gives_them_no_argument(tmp_path: Path, make_job: MakeJob) -> None:
    config = export_job(make_job(), tmp_path) / "app" / "config"
    server, client = (json.loads((config / f"config_fed_{end}.json").read_text()) for end in ("server", "client"))
    assert list(classes([server, client])) == [
        "parametrium.federation.workflow.PretrainWorkflow",
        "parametrium.federation.executor.TrainerExecutor",
    ]
    assert server["workflows"][0]["args"] == client["executors"][0]["executor"]["args"] == {}
    for end in (server, client):
        assert end["components"] == end["task_data_filters"] == end["task_result_filters"] == []


def test_the_job_comes_back_from_the_folder(tmp_path: Path, make_job: MakeJob) -> None:
    job = make_job(minimum_sites=3)
    folder = export_job(job, tmp_path)
    assert load_job(folder / "app" / "config" / "job.yaml") == job
    assert json.loads((folder / "meta.json").read_text())["min_clients"] == 3


def test_an_export_has_the_same_bytes_every_time_and_replaces_the_last_one(tmp_path: Path, make_job: MakeJob) -> None:
    first = contents(export_job(make_job(), tmp_path / "one"))
    folder = export_job(make_job(rounds=9), tmp_path / "two")
    (folder / "app" / "custom").mkdir()
    (folder / "app" / "custom" / "code.py").touch()
    assert contents(export_job(make_job(), tmp_path / "two")) == first


def test_exporting_all_jobs_removes_what_has_no_job(tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    exported = export_all(CHECKOUT / "jobs", tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in exported}


@pytest.mark.parametrize("job", sorted((CHECKOUT / "jobs").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_job_is_valid_and_named_as_its_file(job: Path) -> None:
    try:
        assert load_job(job).name == job.stem
    except ConfigError as error:
        pytest.fail(str(error))


def test_the_committed_apps_are_the_exported_jobs(tmp_path: Path) -> None:
    export_all(CHECKOUT / "jobs", tmp_path)
    committed = contents(CHECKOUT / "app") if (CHECKOUT / "app").exists() else {}
    exported = contents(tmp_path)
    differing = sorted(name for name in committed | exported if committed.get(name) != exported.get(name))
    assert not differing, f"app/ is not what jobs/ exports to ({', '.join(differing)}): run `make app` and commit it"
