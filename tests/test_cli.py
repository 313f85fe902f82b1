"""The command line as people and machines meet it: help, mistakes, one JSON object, exit codes, and how it ends."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import typer
import yaml
from rich.console import Console

from cohort_files import ct, save, write_rows
from parametrium import demo as demonstration
from parametrium.cli import app, importing, main, printing
from parametrium.cli.problems import print_problems
from parametrium.cli.runs import last_error
from parametrium.cohort.problem import Problem, Reason
from parametrium.config import SeriesRule
from parametrium.demo import DemoResult
from parametrium.report import federation as report_page
from parametrium.report.tables import Table

PARAMETRIUM = str(Path(sys.executable).with_name("parametrium"))

JOB: dict[str, Any] = {
    "name": "tiny",
    "modalities": ["CT", "T2"],
    "preparation": {"spacing_mm": [8.0, 8.0, 8.0]},
    "crop": [16, 16, 16],
    "model": {"patch": 8, "width": 24, "depth": 1, "heads": 2, "decoder_width": 24, "decoder_depth": 1},
    "objectives": [{"kind": "masked_reconstruction"}],
    "batch": {"patients": 2},
    "rounds": 2,
    "local_steps": 2,
    "evaluation": {"crops": 1, "pictures": False},
}


@dataclass(frozen=True)
class Ended:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        assert self.out.count("\n") == 1, self.out
        return json.loads(self.out)


Type = Callable[..., Ended]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Type:
    """Types a command, in this process."""

    def type_(*words: str | Path) -> Ended:
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main([str(word) for word in words])
        code = caught.value.code
        assert isinstance(code, int)
        said = capsys.readouterr()
        return Ended(code, said.out, said.err)

    return type_


def write_job(path: Path, **changes: Any) -> Path:
    path.write_text(yaml.safe_dump({**JOB, **changes}), encoding="utf-8")
    return path


def write_site(path: Path, cohort: Path, **changes: Any) -> Path:
    site = {"site": "alpha", "cohort": str(cohort), "cache": "cache", "state": "state", "device": "cpu"}
    policy = {"minimum_patients": 1, "minimum_local_steps": 1}
    path.write_text(yaml.safe_dump({**site, "policy": policy, **changes}), encoding="utf-8")
    return path


# -------------------------------------------------------------------------------------------------------------- help


def commands(group: Any, *path: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    yield path, group
    for name, command in getattr(group, "commands", {}).items():
        yield from commands(command, *path, name)


COMMANDS = dict(commands(typer.main.get_command(app)))
LEAVES = [path for path, command in COMMANDS.items() if not hasattr(command, "commands")]


def parse(words: list[str]) -> tuple[str, ...]:
    """The command that these words name; fails where they are not what it takes."""
    path: tuple[str, ...] = ()
    command = COMMANDS[path]
    while hasattr(command, "commands"):
        context = command.make_context("parametrium", words)
        name, command, words = command.resolve_command(context, words)
        path = (*path, name)
    command.make_context(path[-1], words)
    return path


@pytest.mark.parametrize("path", LEAVES, ids=" ".join)
@pytest.mark.parametrize("columns", [60, 200])
def test_help_has_an_example_that_parses_and_every_option_in_full(
    run: Type, monkeypatch: pytest.MonkeyPatch, path: tuple[str, ...], columns: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    ended = run(*path, "--help")
    assert ended.code == 0
    examples = [line for line in ended.out.partition("Example:")[2].splitlines() if line.strip()]
    assert examples
    for line in examples:
        words = shlex.split(line.partition(" > ")[0])
        assert words[0] == "parametrium"
        assert parse(words[1:]) == path
    for parameter in COMMANDS[path].params:
        names = parameter.opts if parameter.param_type_name == "option" else [parameter.metavar]
        assert all(name in ended.out for name in names)
    assert "--json" in ended.out


@pytest.mark.parametrize("path", [path for path in COMMANDS if path not in LEAVES], ids=" ".join)
def test_the_help_of_a_group_lists_its_commands(run: Type, path: tuple[str, ...]) -> None:
    ended = run(*path, "--help")
    assert ended.code == 0
    assert all(f"  {name} " in ended.out for name in COMMANDS[path].commands)
    assert path or all(text in ended.out for text in ("Example:", "--debug", "Exit codes: 0 done"))


# ----------------------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    "line",
    [
        "",
        "nothing",
        "train",
        "train job.yaml",
        "train job.yaml site.yaml",
        "train job.yaml site.yaml --out",
        "train job.yaml site.yaml --out run --unknown",
        "cohort",
        "cohort phantom x --patients none",
        "cohort phantom x --patients 0",
        "cohort phantom x --incomplete 2",
        "simulate job.yaml --out run",
        "job export",
        "train job.yaml site.yaml --out pyproject.toml",  # a file
        "simulate job.yaml site.yaml --out pyproject.toml",
        "cohort import scans pyproject.toml",
        "job export job.yaml pyproject.toml",
    ],
)
def test_wrong_usage_ends_with_2_and_no_traceback(run: Type, monkeypatch: pytest.MonkeyPatch, line: str) -> None:
    monkeypatch.chdir(Path(__file__).parent.parent)
    ended = run(*line.split())
    assert ended.code == 2
    assert ("Usage: parametrium" in ended.out + ended.err) or ended.err.startswith("Error: ")
    assert "Traceback" not in ended.err


MISTAKES = {
    "train absent.yaml site.yaml --out run": (2, "PM101 the config file is not there"),
    "train job.yaml absent.yaml --out run": (2, "PM101"),
    "train unknown.yaml site.yaml --out run": (2, "PM102 job.round is not a known key; did you mean 'rounds'?"),
    "train job.yaml site.yaml --out run": (3, "PM201 the cohort table is not there; a cohort folder holds cohort.csv"),
    "train job.yaml site.yaml --out used": (5, "PM503"),
    "train job.yaml strict.yaml --out run": (6, "PM601"),
    "simulate job.yaml site.yaml site.yaml --out run": (5, "PM503"),
    "simulate job.yaml site.yaml --out used": (5, "PM503"),
    "simulate two.yaml site.yaml --out run": (2, "PM103 the job's minimum_sites is 2, got 1 site configs"),
    "report empty": (5, "PM503"),
    "report absent": (5, "PM503"),
    "schema none": (2, "PM103"),
    "cohort prepare site.yaml --job job.yaml": (3, "PM201"),
    "cohort import absent cohort": (3, "PM204 there is no such source; see whether its path is right"),
    "cohort import . cohort --rename DOSE": (2, "PM103 --rename must look like NAME=VALUE, got 'DOSE'"),
    "cohort import . cohort --rescale CT=1": (2, "PM103 --rescale must look like CT=SLOPE,INTERCEPT"),
    "cohort import . cohort --rescale CT=0,1": (2, "PM103"),
    "cohort import . cohort --rescale CT=nan,1": (2, "PM103"),
    "cohort phantom new --modalities CT,MR": (3, "PM204 phantom: cannot draw modality MR; allowed: CT CBCT T1"),
    "cohort phantom new --modalities ,": (3, "PM204 phantom: modalities must be named"),
    "cohort phantom used": (3, "PM204 phantom: the target folder must be absent or empty"),
    "job export unknown.yaml app": (2, "PM102"),
    "job export job.yaml foreign": (2, "PM103 the target holds something other than exported jobs"),
    "job export-all absent app": (2, "PM101"),
    "job export-all empty app": (2, "PM101"),
    "job export-all jobs foreign": (2, "PM103 the target holds something other than exported jobs"),
}


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which much is wrong."""
    write_job(tmp_path / "job.yaml")
    write_job(tmp_path / "unknown.yaml", round=3)
    write_job(tmp_path / "two.yaml", minimum_sites=2)
    write_site(tmp_path / "site.yaml", tmp_path / "nowhere")
    write_site(tmp_path / "strict.yaml", tmp_path / "nowhere", policy={"maximum_rounds": 1})
    for name in ("empty", "used", "jobs", "foreign/tiny"):
        (tmp_path / name).mkdir(parents=True)
    write_job(tmp_path / "jobs" / "job.yaml")
    (tmp_path / "used" / "manifest.json").write_text("{}")
    (tmp_path / "foreign" / "tiny" / "thesis.txt").write_text("years of work")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_is_one_sentence_with_a_code(run: Type, house: Path, line: str) -> None:
    code, sentence = MISTAKES[line]
    ended = run(*line.split())
    assert (ended.code, ended.out) == (code, ""), ended
    assert ended.err.startswith(f"error {sentence}")
    assert all(said.startswith("  here: ") for said in ended.err.splitlines()[1:])
    assert (house / "foreign" / "tiny" / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize("line", ["--debug report empty", "report --debug empty", "report empty --debug"])
def test_debug_shows_where(run: Type, house: Path, line: str) -> None:
    ended = run(*line.split())
    assert ended.code == 5
    assert ended.err.startswith("Traceback")
    assert "error PM503" in ended.err


def instead_of_a_report(monkeypatch: pytest.MonkeyPatch, deed: Callable[[], None]) -> None:
    def write_report(run: Path, with_sites: bool = False) -> Path:
        deed()
        return run

    monkeypatch.setattr(report_page, "write_report", write_report)


def fail() -> None:
    raise RuntimeError("disk of /secret is odd")


def test_the_unexpected_is_one_sentence_and_says_how_to_see_more(run: Type, monkeypatch: pytest.MonkeyPatch) -> None:
    instead_of_a_report(monkeypatch, fail)
    ended = run("report", "my run")
    assert (ended.code, ended.out) == (9, "")
    assert ended.err.splitlines() == [
        "error PM901 an unexpected error (RuntimeError)",
        "  here: disk of /secret is odd",
        "  details: parametrium --debug report 'my run'",
    ]
    ended = run(*shlex.split(ended.err.splitlines()[-1].partition("parametrium ")[2]))
    assert ended.code == 9
    assert "in fail" in ended.err
    assert "  details:" not in ended.err


# ------------------------------------------------------------------------------------------------------------ signals


def interrupt() -> None:
    raise KeyboardInterrupt


def test_an_interruption_is_silent(run: Type, monkeypatch: pytest.MonkeyPatch) -> None:
    instead_of_a_report(monkeypatch, interrupt)
    assert run("report", "x") == Ended(130, "", "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_lets_the_command_tidy_up_undisturbed(
    run: Type, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    tidied = []

    def be_ended() -> None:
        try:
            os.kill(os.getpid(), number)
            time.sleep(5)
        finally:
            for again in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                os.kill(os.getpid(), again)
            tidied.append(number)

    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    instead_of_a_report(monkeypatch, be_ended)
    assert run("report", "x") == Ended(128 + number, "", "")
    assert tidied == [number]
    assert handlers == [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]


def test_what_is_ignored_stays_ignored(run: Type, monkeypatch: pytest.MonkeyPatch) -> None:
    instead_of_a_report(monkeypatch, lambda: os.kill(os.getpid(), signal.SIGHUP))
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert run("report", "x").code == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def marked(mark: str) -> list[psutil.Process]:
    """All processes whose environment holds the mark, whoever their parent is by now."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("PARAMETRIUM_TEST_MARK") == mark:
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def wait_for_trainer(mark: str) -> list[psutil.Process]:
    """All processes of the simulation as soon as its last, the trainer, is there."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        family = marked(mark)
        if any("parametrium.site.worker" in member.cmdline() for member in family):
            return family
        time.sleep(0.2)
    raise AssertionError("the trainer was not started")


@pytest.mark.multiprocess
def test_after_sigterm_no_descendant_of_a_simulation_lives(tmp_path: Path) -> None:
    source = [{"patient": f"p{n}", "study": "s", "day": "0", "modality": "CT", "frame": "f"} for n in range(3)]
    rows = [row | {"path": str(save(tmp_path / f"{row['patient']}.nii.gz", ct()))} for row in source]
    write_rows(tmp_path / "cohort.csv", rows)
    job, site = write_job(tmp_path / "job.yaml", rounds=1000), write_site(tmp_path / "site.yaml", tmp_path)
    mark = uuid.uuid4().hex
    env = {**os.environ, "PARAMETRIUM_TEST_MARK": mark, "TMPDIR": str(tmp_path)}
    words = [PARAMETRIUM, "simulate", str(job), str(site), "--out", str(tmp_path / "run")]
    with subprocess.Popen(words, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        family = wait_for_trainer(mark)
        process.terminate()
        out, err = process.communicate(timeout=60)
    left = marked(mark)
    for member in left:  # a failure here must not slow down all that comes after
        member.kill()
    assert (process.returncode, out, err) == (128 + signal.SIGTERM, b"", b"")
    assert len(family) > 3  # the command, the simulator, its client, the trainer
    assert left == []
    assert list(tmp_path.glob("parametrium-*")) == []


# ----------------------------------------------------------------------------------------------------- what they print


def test_version_and_schema(run: Type) -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+\n", run("version").out)
    assert run("version", "--json").json == {"version": run("version").out.strip()}
    for kind in ("job", "site"):
        assert json.loads(run("schema", kind).out) == run("schema", kind, "--json").json
        assert "properties" in run("schema", kind, "--json").json


def write_source(folder: Path, subjects: int, absent: int) -> Path:
    """Subjects with a CT each, the first of them without the T1 that the table promises."""
    for n in range(subjects):
        save(folder / f"SUBJ_{n}" / "CT.nii.gz", ct(seed=n))
    wanted = [{"subject": f"SUBJ_{n}", "modalities": "CT;T1" if n < absent else "CT"} for n in range(subjects)]
    write_rows(folder / "subjects.csv", wanted)
    return folder


def test_an_import_tells_warnings_and_problems_by_pseudonym(run: Type, tmp_path: Path) -> None:
    source = write_source(tmp_path / "source", 24, 22)
    words = ("cohort", "import", source, tmp_path / "cohort", "--rescale", "PET=2,0")
    found = run(*words, "--json")
    assert (found.code, found.err) == (0, "")
    assert {key: found.json[key] for key in ("patients", "volumes", "masks")} == {
        "patients": 24,
        "volumes": {"CT": 24},
        "masks": 0,
    }
    assert found.json["warnings"] == ["--rescale PET: the source has no such modality"]
    assert len(found.json["problems"]) == 22
    first = found.json["problems"][0]
    assert re.fullmatch("p[0-9a-f]{12}", first.pop("patient"))
    assert first == {"modality": "T1", "reason": "missing_file"}

    shown = run(*words)
    assert (shown.code, shown.err) == (0, "")
    assert "warning: --rescale PET: the source has no such modality\n" in shown.out
    assert f"  {found.json['problems'][0]['patient']} T1: missing_file\n" in shown.out
    assert "  and 2 more; --json lists all\n" in shown.out
    assert shown.out.count(": missing_file\n") == 20
    assert "SUBJ" not in shown.out + found.out


def test_an_import_of_nothing_usable_ends_with_3(run: Type, tmp_path: Path) -> None:
    source = write_source(tmp_path / "source", 2, 0)
    ended = run("cohort", "import", source, tmp_path / "cohort", "--drop", "CT", "--json")
    assert (ended.code, ended.out) == (3, "")
    assert ended.err.startswith("error PM204 the source holds no volume to import")


def test_an_import_says_what_was_made_what_stays_and_what_comes_next(run: Type, tmp_path: Path) -> None:
    cohort = tmp_path / "my cohort"
    shown = run("cohort", "import", write_source(tmp_path / "source", 2, 1), cohort).out
    assert "missing_file: the table names a file that is not there. What to do: put the file back" in shown
    assert f"cohort: {cohort}\n" in shown
    assert Path(f"{cohort}.secret").is_file()
    assert f"keep at this site, out of the cohort: {cohort}.secret and {cohort}.secret.*" in shown
    following = shown.splitlines()[-1].removeprefix("next: parametrium ")
    assert parse(shlex.split(following)) == ("cohort", "check")


def test_what_is_left_out_on_purpose_is_not_told_one_by_one(capsys: pytest.CaptureFixture[str]) -> None:
    print_problems([Problem("p1", "CT", Reason.LOCALISER), Problem("p2", "MR", Reason.NO_MODALITY)])
    out = capsys.readouterr().out
    assert "p1" not in out
    assert "left out on purpose: localiser\n" in out
    assert "  p2 MR: no_modality\n" in out


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        ((), "PM204 the source holds no file"),
        (("a.zip", "b/c.TAR.GZ"), "PM204 the source holds nothing but archives (2); unpack them"),
        (("a/CT.nii.gz", "a/T1.nii", "x.txt"), "PM204 the source holds 2 volume files and nothing that says whose"),
        (("thesis.txt", "a.zip"), "PM204 the source is none of: BIDS"),
    ],
)
def test_a_source_that_nothing_recognises_is_told_what_helps(
    run: Type, tmp_path: Path, names: tuple[str, ...], sentence: str
) -> None:
    (tmp_path / "source").mkdir()
    for name in names:
        (tmp_path / "source" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "source" / name).write_text("not what it says")
    ended = run("cohort", "import", tmp_path / "source", tmp_path / "cohort")
    assert (ended.code, ended.out) == (3, "")
    assert ended.err.startswith(f"error {sentence}")
    assert str(tmp_path) not in ended.err.splitlines()[0]
    assert not (tmp_path / "cohort").exists()


@pytest.mark.parametrize("place", ["parametrium.cli.source.form_of", "parametrium.cli.importing._importer"])
def test_an_interrupted_import_says_how_to_go_on(
    run: Type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.setattr(place, lambda *_: interrupt())
    ended = run("cohort", "import", write_source(tmp_path / "source", 1, 0), tmp_path / "cohort", "--json")
    assert (ended.code, ended.out) == (130, "")
    assert ended.err.startswith("interrupted; ")


def test_a_modality_that_only_a_rule_knows_is_told() -> None:
    rules = (SeriesRule(match="a", modality="T22"), SeriesRule(match="b", modality="T2"))
    (told,) = importing.strange_names(rules)
    assert told.startswith("series_rules name T22, which is none of CT, ")
    assert list(importing.strange_names(rules[1:])) == []


def test_a_run_that_failed_quotes_its_sites_last_error(tmp_path: Path) -> None:
    log = tmp_path / "trainer.log"
    log.write_text("PM301 first\nTraceback\nparametrium.errors.PolicyError: PM601 too few patients\n")
    assert last_error(log) == ": PM601 too few patients"
    log.write_text("all is well\n")
    assert last_error(log) == ""


def test_an_exported_job_may_be_exported_again(run: Type, house: Path) -> None:
    assert run("job", "export", "job.yaml", "app", "--json").json == {"job": "app/tiny"}
    assert run("job", "export-all", "jobs", "app", "--json").json == {"jobs": ["app/tiny"]}
    assert run("job", "export-all", "jobs", "app") == Ended(0, "app/tiny\n", "")
    (house / "jobs" / "job.yaml").rename(house / "jobs" / "other.yaml")
    write_job(house / "jobs" / "other.yaml", name="other")
    assert run("job", "export-all", "jobs", "app").out == "app/other\n"
    assert [path.name for path in (house / "app").iterdir()] == ["other"]


def test_from_phantom_to_report(run: Type, tmp_path: Path) -> None:
    """The way of a researcher with one site, every answer as a machine reads it."""
    cohort, folder = tmp_path / "cohort", tmp_path / "run"
    phantom = ("cohort", "phantom", cohort, "--patients", "4", "--modalities", "CT, T2", "--jobs", "1", "--json")
    assert run(*phantom).json == {"cohort": str(cohort), "patients": 4}
    # The shipped jobs want two sites: alone, one is enough.
    job, site = write_job(tmp_path / "job.yaml", minimum_sites=2), write_site(tmp_path / "site.yaml", cohort)

    (cohort / "p000" / "s0" / "T2.nii.gz").unlink()
    prepared = run("cohort", "prepare", site, "--job", job, "--json")
    assert (prepared.code, prepared.err) == (0, "")
    problem = {"patient": "p000", "modality": "T2", "reason": "missing_file"}
    assert prepared.json == {"patients": 4, "volumes": {"CT": 4, "T2": 3}, "problems": [problem]}
    assert "  p000 T2: missing_file\n" in run("cohort", "prepare", site, "--job", job).out

    trained = run("train", job, site, "--out", folder, "--json")
    assert (trained.code, trained.err) == (0, "")
    assert trained.json == {"run": str(folder), "complete": True, "reasons": []}
    assert run("report", folder, "--json").json == {"report": str(folder / "report.html")}
    assert run("report", folder).out == f"{folder / 'report.html'}\n"
    assert "<html" in (folder / "report.html").read_text()

    again = run("train", job, site, "--out", folder)
    assert (again.code, again.out) == (5, "")


@pytest.mark.parametrize("problems", [(), ("round 0 had 1 of at least 2 contributions",)])
def test_the_demonstration_answers_people_and_machines(
    run: Type, monkeypatch: pytest.MonkeyPatch, problems: tuple[str, ...]
) -> None:
    def run_demo(folder: Path, job: Path, sites: Path, seed: int | None, say: Callable[[str], None]) -> DemoResult:
        say("drawing")
        table = Table("errors", ["modality", "model"], [["CT", "0.5"]])
        return DemoResult((table,), ("better in 1 of 1",), folder / "report.html", problems)

    monkeypatch.setattr(demonstration, "run_demo", run_demo)
    found = run("demo", "--out", "d", "--json")
    assert (found.code, found.err) == (len(problems), "drawing\n")
    assert found.json == {
        "report": "d/report.html",
        "summary": ["better in 1 of 1"],
        "tables": [{"title": "errors", "header": ["modality", "model"], "rows": [["CT", "0.5"]]}],
        "problems": list(problems),
    }
    shown = run("demo", "--out", "d")
    assert (shown.code, shown.err) == (len(problems), "".join(f"{problem}\n" for problem in problems))
    assert all(text in shown.out for text in ("drawing", "errors", "0.5", "better in 1 of 1", "report: d/report.html"))


def test_the_installed_command_is_the_same(tmp_path: Path) -> None:
    words = [PARAMETRIUM, "cohort", "phantom", str(tmp_path / "x"), "--modalities", "MR"]
    ended = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stdout) == (3, "")
    assert ended.stderr == "error PM204 phantom: cannot draw modality MR; allowed: CT CBCT T1 T2 ADC PET\n"


def test_progress_is_for_terminals(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for terminal in (False, True):
        monkeypatch.setattr(printing, "err", Console(stderr=True, force_terminal=terminal))
        with printing.progress("drawing") as update:
            update(3, 4)
        assert ("drawing" in capsys.readouterr().err) is terminal
        with printing.progress("nothing") as update:
            update(0, 0)
        assert "0/0" not in capsys.readouterr().err
