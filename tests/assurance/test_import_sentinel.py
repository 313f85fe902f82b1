"""Nothing that identifies a patient leaves the archive, whatever is done with it and however it ends."""

import base64
import csv
import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import time
import warnings
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import nibabel
import psutil
import pytest
import yaml

from archive_of_sentinels import BIRTH, study_dates, uids, write_archive
from sentinel import SENTINEL, contents, leaks

PARAMETRIUM = str(Path(sys.executable).with_name("parametrium"))
JOB = Path(__file__).parent.parent.parent / "jobs" / "smoke.yaml"
PATIENCE_S = 240
UID = re.compile(rb"[0-9]+(?:\.[0-9]+){2,}")


@dataclass
class Site:
    """A hospital: its archive, and one folder for each thing that a command may write."""

    home: Path

    def __post_init__(self) -> None:
        for folder in ("said", "temporary"):
            (self.home / folder).mkdir(parents=True)

    @property
    def cohort(self) -> Path:
        return self.home / "cohort"

    @property
    def secret(self) -> Path:
        return self.home / "private" / "secret"

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "TMPDIR": str(self.home / "temporary"), "OMP_NUM_THREADS": "1"}

    def command(self, *words: str | Path, code: tuple[int, ...] = (0,)) -> str:
        """Types a command; what it says is kept among what is searched."""
        ended = subprocess.run(
            [PARAMETRIUM, "cohort", *map(str, words)],
            env=self.environment,
            capture_output=True,
            timeout=PATIENCE_S,
            check=False,
        )
        said = self.home / "said" / f"{len(list((self.home / 'said').iterdir()))}"
        said.write_bytes(ended.stdout + b"\n" + ended.stderr)
        assert ended.returncode in code, (ended.returncode, ended.stdout[-2000:], ended.stderr[-2000:])
        return ended.stdout.decode()

    def imported(self, source: Path, *words: str) -> str:
        return self.command("import", source, self.cohort, "--secret", self.secret, "--jobs", "2", *words)

    def config(self) -> Path:
        places = {name: str(self.home / name) for name in ("cohort", "cache", "state")}
        path = self.home / "site.yaml"
        path.write_text(yaml.safe_dump({"site": "north", **places, "device": "cpu"}))
        return path

    def public(self) -> list[Path]:
        """All that was written, less the private files beside the secret."""
        return [path for path in sorted(self.home.iterdir()) if path != self.secret.parent]

    def tables(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in self.cohort.glob("*.csv")}


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Path]]:
    folder = tmp_path_factory.mktemp("archive") / "pacs"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the values that do not belong where they are planted
        return folder, write_archive(folder)


@pytest.fixture(scope="module")
def site(archive: tuple[Path, list[Path]], tmp_path_factory: pytest.TempPathFactory) -> Site:
    """A site after import, check and preparation."""
    site = Site(tmp_path_factory.mktemp("site") / "home")
    site.imported(archive[0])
    site.command("check", site.cohort, "--job", JOB, "--jobs", "2", code=(0, 1))
    site.command("prepare", site.config(), "--job", JOB)
    return site


def rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))


def days(day: date) -> tuple[str, ...]:
    """A date as people and programs write it."""
    return tuple(day.strftime(form) for form in ("%Y%m%d", "%Y-%m-%d", "%d.%m.%Y", "%m/%d/%Y", "%d/%m/%Y", "%Y.%m.%d"))


# ------------------------------------------------------------------------------------------------------------- power


def test_the_search_finds_the_word_in_the_archive_and_in_the_private_files(
    archive: tuple[Path, list[Path]], site: Site
) -> None:
    found = set(leaks(archive[0]))
    assert {str(path.relative_to(archive[0])) for path in archive[1]} <= found
    private = leaks(site.secret.parent)
    assert {"secret.patients.csv", "secret.index.sqlite"} <= set(private)
    assert leaks(archive[1][0], words=days(min(study_dates(archive[1][:1]))))


def test_the_search_looks_into_a_page(tmp_path: Path) -> None:
    packed = base64.b64encode(b"." * 200 + SENTINEL.encode() + b"." * 200)
    (tmp_path / "page.js").write_bytes(b"load('" + packed + b"')")
    assert leaks(tmp_path)


# ------------------------------------------------------------------------------------------------- an undisturbed run


def test_nothing_that_identifies_is_in_what_the_commands_wrote(archive: tuple[Path, list[Path]], site: Site) -> None:
    assert len(rows(site.cohort / "cohort.csv")) == 4
    assert rows(site.cohort / "masks.csv")
    assert (site.cohort / "quality" / "index.html").exists()
    assert list((site.home / "cache").rglob("*"))
    assert leaks(*site.public()) == []
    own = {uid.encode() for uid in uids(archive[1])}
    assert own & set(UID.findall(archive[1][0].read_bytes()))
    for place in site.public():
        for name, content in contents(place):
            assert not own & set(UID.findall(name.encode() + b" " + content)), name


def test_no_date_is_in_what_the_commands_wrote(archive: tuple[Path, list[Path]], site: Site) -> None:
    words = {word.encode() for day in study_dates(archive[1]) for word in days(day)}
    words |= {word.encode() for word in days(date.fromisoformat(BIRTH))}
    texts = (".csv", ".json", ".js", ".html", ".yaml", "")
    for place in site.public():
        for name, content in contents(place):
            if Path(name).suffix in texts and name != "quality/niivue.js":
                assert not [word for word in words if word in content], name


def test_all_is_for_its_owner_only(site: Site) -> None:
    for folder in (site.cohort, site.home / "cache"):
        for path in (folder, *folder.rglob("*")):
            assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600), path.name
    for path in site.secret.parent.iterdir():
        assert path.stat().st_mode & 0o777 == 0o600, path.name


def test_images_tell_neither_name_nor_time(site: Site) -> None:
    images = list(site.cohort.rglob("*.nii.gz"))
    assert len(images) > 4
    for path in images:
        _, flags, stamp = struct.unpack("<HxBI", path.read_bytes()[:8])
        assert (flags, stamp) == (0, 0)
        header = nibabel.load(path).header
        for field in ("descrip", "aux_file", "intent_name", "db_name"):
            assert not bytes(header[field].tobytes()).strip(b"\0"), field
        assert not header.extensions


def test_who_comes_again_keeps_her_pseudonym(archive: tuple[Path, list[Path]], site: Site) -> None:
    before = site.tables()
    answer = json.loads(site.imported(archive[0], "--json"))
    assert answer["patients"] == 2
    assert site.tables() == before
    assert leaks(*site.public()) == []


# --------------------------------------------------------------------------------------------------- a disturbed run


def test_nothing_that_identifies_is_told_of_damaged_files_and_killed_runs(
    archive: tuple[Path, list[Path]], site: Site, tmp_path: Path
) -> None:
    source = tmp_path / "pacs"
    shutil.copytree(archive[0], source)
    files = [source / path.relative_to(archive[0]) for path in archive[1]]
    for n, path in enumerate(files[:40:4]):
        content = bytearray(path.read_bytes())
        content[200 + 37 * n] ^= 0xFF
        path.write_bytes(content[: len(content) // 2] if n % 2 else content)
    broken = Site(tmp_path / "home")
    broken.secret.parent.mkdir()
    shutil.copy(site.secret, broken.secret)
    command = [PARAMETRIUM, "cohort", "import", source, broken.cohort, "--secret", broken.secret, "--jobs", "2"]
    with (broken.home / "said" / "killed").open("wb") as said:
        process = subprocess.Popen(list(map(str, command)), env=broken.environment, stdout=said, stderr=said)
        while not list(broken.cohort.glob("images/*/*/*.nii.gz")) and process.poll() is None:
            time.sleep(0.005)
        family = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGKILL)
        assert process.wait(PATIENCE_S) == -signal.SIGKILL
    psutil.wait_procs(family, timeout=PATIENCE_S)
    assert leaks(*broken.public()) == []
    answer = json.loads(broken.imported(source, "--json", "--no-register"))
    assert answer["problems"]
    assert answer["patients"] == 2
    assert {path.name for path in (broken.cohort / "images").iterdir()} == {
        path.name for path in (site.cohort / "images").iterdir()
    }
    broken.command("check", source, code=(3,))  # no cohort at all
    assert leaks(*broken.public()) == []
