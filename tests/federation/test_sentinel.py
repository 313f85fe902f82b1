"""Assurance P1 in a provisioned federation, where the server's folders are its own; and the search itself."""

import base64
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from hospitals import environment, write_job, write_site

from sentinel import SENTINEL, leaks

REHEARSAL = Path(__file__).parent.parent.parent / "poc" / "run.py"


@pytest.mark.parametrize(
    "content",
    [
        f"a/{SENTINEL}/b".encode(),
        f"x{SENTINEL.upper()}".encode("utf-16"),
        base64.b64encode(f"/{SENTINEL}/b".encode()),
        base64.b64encode(f"ab{SENTINEL}".encode()),
        base64.b64encode(SENTINEL.encode()),
    ],
)
def test_the_search_finds_what_is_there(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "clean.txt").write_bytes(b"nothing")
    assert leaks(tmp_path) == []
    (tmp_path / "file.bin").write_bytes(b"before " + content + b" after")
    assert leaks(tmp_path) == ["file.bin"]


def test_the_search_looks_at_names_and_into_archives(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "data", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("log.txt", SENTINEL)
    (tmp_path / f"{SENTINEL}.txt").touch()
    assert leaks(tmp_path) == [f"{SENTINEL}.txt", "data/log.txt"]


@pytest.mark.multiprocess
def test_nothing_of_a_patient_reaches_a_provisioned_server(tmp_path: Path) -> None:
    sites = [write_site(tmp_path, "north", ["CT", "T1"]), write_site(tmp_path, "east", ["PET"])]
    job = write_job(tmp_path / "job.yaml")
    options = ["--job", job, "--site", sites[0], "--site", sites[1], "--keep", tmp_path / "kept"]
    env = environment(tmp_path / "recorded", {"east": {0: "raise", 1: "scalar_name"}})
    command = subprocess.run(
        [sys.executable, REHEARSAL, *options], env=env, capture_output=True, timeout=240, check=False
    )
    assert command.returncode == 0, command.stderr.decode()
    assert SENTINEL not in command.stdout.decode() + command.stderr.decode()

    trainer_logs = list(tmp_path.glob(f"{SENTINEL}-east/state/*/trainer.log"))
    assert any(SENTINEL in path.read_text() for path in trainer_logs), "the sentinel was not planted"
    kept = tmp_path / "kept"
    kits = kept / "kits" / "parametrium" / "prod_00"
    received = [kept / name for name in ("runs", "storage", "download", "jobs", "server.log", "homes/server")]
    assert leaks(*received, kits / "server", kits / "coordinator@parametrium.example") == []
    # FLARE's own logs at the sites are read by many, and an administrator can ask for them.
    assert leaks(kept / "north.log", kept / "east.log") == []
    assert [name for site in ("north", "east") for name in leaks(kits / site)] == ["local/parametrium_site.yaml"] * 2
