"""Where each party finds what a job must not say."""

from pathlib import Path

import pytest
from hospitals import write_config

from parametrium.errors import ConfigError, FederationError
from parametrium.federation.place import (
    SERVER_FILE,
    SIMULATED_RUN,
    SIMULATED_START,
    SITE_FILE,
    run_place,
    site_place,
    start_place,
)


class Context:
    """What place.py asks of FLARE's context and workspace."""

    def __init__(self, local: Path, name: str) -> None:
        self.local = local
        self.name = name

    def get_prop(self, _: str) -> "Context":
        return self

    def get_identity_name(self) -> str:
        return self.name

    def get_site_config_dir(self) -> str:
        return str(self.local)


def test_a_site_keeps_its_config_in_its_kit_and_its_state_outside(tmp_path: Path) -> None:
    config = write_config(tmp_path, "north", tmp_path / "hospital").rename(tmp_path / SITE_FILE)
    assert site_place(Context(tmp_path, "north"), "run") == (config, tmp_path / "hospital" / "state" / "run")


def test_a_site_without_config_is_told_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(FederationError, match=f"PM505 the site's kit has no {SITE_FILE}") as caught:
        site_place(Context(tmp_path, "north"), "run")
    assert str(tmp_path) not in str(caught.value)


def test_a_site_does_not_run_with_another_sites_config(tmp_path: Path) -> None:
    write_config(tmp_path, "north", tmp_path / "hospital").rename(tmp_path / SITE_FILE)
    with pytest.raises(ConfigError, match=r"PM103 site\.site must be the name of this FLARE client, east, got 'north'"):
        site_place(Context(tmp_path, "east"), "run")


def test_a_server_keeps_runs_where_its_kit_says(tmp_path: Path) -> None:
    (tmp_path / SERVER_FILE).write_text("runs: /srv/runs")
    assert run_place(Context(tmp_path, "server"), "one") == Path("/srv/runs/one")


@pytest.mark.parametrize("text", [None, "", "run: x", "[1]", "runs: 3", "{"])
def test_a_server_without_a_place_for_runs_is_told_what_is_missing(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / SERVER_FILE).write_text(text)
    with pytest.raises(FederationError, match=f"PM505 the server's kit needs {SERVER_FILE}") as caught:
        run_place(Context(tmp_path, "server"), "one")
    assert str(tmp_path) not in str(caught.value)


def test_a_simulation_keeps_everything_in_its_run_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SIMULATED_RUN, str(tmp_path))
    folder = tmp_path / "sites" / "north"
    assert site_place(Context(tmp_path, "north"), "run") == (folder / "site.yaml", folder)
    assert run_place(Context(tmp_path, "server"), "run") == tmp_path


def test_a_run_starts_from_what_lies_under_its_name_and_otherwise_afresh(tmp_path: Path) -> None:
    server = Context(tmp_path, "server")
    (tmp_path / SERVER_FILE).write_text("runs: /srv/runs")
    assert start_place(server, "one") is None
    (tmp_path / SERVER_FILE).write_text(f"runs: /srv/runs\nstarts: {tmp_path / 'starts'}")
    assert start_place(server, "one") is None
    (tmp_path / "starts" / "one").mkdir(parents=True)
    assert start_place(server, "one") == tmp_path / "starts" / "one"
    assert start_place(server, "two") is None


def test_a_server_whose_place_for_starts_is_no_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / SERVER_FILE).write_text("runs: /srv/runs\nstarts: [1]")
    with pytest.raises(FederationError, match=r"PM505 .* under the key starts"):
        start_place(Context(tmp_path, "server"), "one")


def test_a_simulation_starts_from_what_its_command_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SIMULATED_RUN, str(tmp_path))
    monkeypatch.setenv(SIMULATED_START, "")
    assert start_place(Context(tmp_path, "server"), "one") is None
    monkeypatch.setenv(SIMULATED_START, str(tmp_path / "start"))
    assert start_place(Context(tmp_path, "server"), "one") == tmp_path / "start"
