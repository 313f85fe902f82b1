"""The quality page as a file: complete, private, bounded, and made again only where something changed."""

import base64
import csv
import hashlib
import json
import os
import re
import shutil
import stat
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
import typer
from faulty_cohorts import HOSTILE, phantom, plant
from typer.testing import CliRunner

from cohort_files import ct, row, save, small_cohort, write_rows
from parametrium.cli import quality
from parametrium.cohort.manifest import Cohort, read_cohort
from parametrium.cohort.problem import Reason
from parametrium.cohort.registration.verdict import Verdict
from parametrium.config import VOCABULARY
from parametrium.errors import Code, CohortError
from parametrium.report.quality import content
from parametrium.report.quality.findings import KINDS, Findings
from parametrium.report.quality.measure import Measured
from parametrium.report.quality.page import check_cohort
from parametrium.report.quality.survey import RECORDS, VIEWER, Surveyed, survey
from parametrium.report.quality.suspicion import suspicions
from parametrium.report.quality.words import MEANING, REMEDY, VERDICTS, is_as_it_should_be, meaning, remedy, shown

PACKAGE = Path(content.__file__).parent


class Page(HTMLParser):
    """Elements, and the data for the script."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.inside = ""
        self.texts: dict[str, str] = {}
        self.feed(path.read_text(encoding="utf-8"))
        self.data = json.loads(next(text for text in self.texts.values() if text.startswith('{"keys"')))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.inside = f"{tag} {len(self.elements)}"

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""

    def handle_data(self, data: str) -> None:
        self.texts[self.inside] = self.texts.get(self.inside, "") + data

    def rows(self, table: str) -> list[list[str]]:
        rows: list[list[str]] = self.data["tables"][table]["rows"]
        return rows


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checked cohort with one fault of each kind."""
    folder = phantom(tmp_path_factory.mktemp("faulty") / "cohort")
    plant(folder)
    check_cohort(folder, jobs=2)
    return folder


def test_every_planted_fault_is_on_the_page(faulty: Path) -> None:
    found = check_cohort(faulty)
    page = Page(found.page)
    assert Counter(problem.reason for problem in found.problems) == {
        Reason.MISSING_FILE: 1,
        Reason.NOT_FINITE: 1,
        Reason.UNREADABLE: 1,
    }
    suspected = {(r[0], r[1], r[3]) for r in page.rows("suspicions")}
    name = KINDS["mislabelled"]
    assert {(name, "p000", "CT"), (name, "p000", "T2")} <= suspected
    assert {s for s in suspected if s[0] == name} == {(name, "p000", "CT"), (name, "p000", "T2")}
    assert ("duplicate", "p001", "T2") in suspected
    assert ("not aligned", "p006", "PET") in suspected
    assert ("outlier", "p007", "CT") in suspected
    assert not found.clean
    left = [(r[0], r[1], r[2], r[3]) for r in page.rows("left")]
    assert left[:3] == [
        ("this check", "p004", "CT", "missing file"),
        ("this check", "p003", "PET", "not finite"),
        ("this check", "p005", "CT", "unreadable"),
    ]
    assert page.rows("left")[3:] == [
        ["the import", "", "", "not dicom", "", "17"],  # what needs a look comes first
        ["the import", "p000", "", "localiser", "facts: image type", "3"],
    ]
    assert page.rows("registration")[1][-1] == "worse"
    assert len(page.rows("volumes")) == 21
    assert set(page.data["keys"].values()) == {path.stem for path in (faulty / "quality" / VIEWER).iterdir()}


def test_the_page_carries_its_own_policy_and_asks_for_nothing(faulty: Path) -> None:
    page = Page(check_cohort(faulty).page)
    policy = next(a["content"] or "" for tag, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    for element, directive in (("style", "style-src"), ("script", "script-src")):
        text = [v for k, v in page.texts.items() if k.startswith(element + " ")][-1]
        digest = re.search(rf"{directive} '(sha256-[^']+)'", policy)
        assert digest
        assert digest[1] == _digest(text)
    for _, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on") or name == "style"]
        assert all((attributes.get(name) or "#").startswith(("#", "data:image/png")) for name in ("src", "href"))


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def test_only_the_owner_can_read_it(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        found = check_cohort(small_cohort(tmp_path / "c"))
    finally:
        os.umask(before)
    folder = found.page.parent
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    for path in folder.rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


def test_file_names_and_records_hold_no_name(tmp_path: Path) -> None:
    folder = small_cohort(tmp_path / "c")
    rows = [row("SENTINEL", "v0.nii.gz", study="SENTINEL", frame="SENTINEL"), row("b", "v1.nii.gz")]
    write_rows(folder / "cohort.csv", rows)
    page = check_cohort(folder).page
    assert "SENTINEL" in page.read_text(encoding="utf-8")
    for path in page.parent.rglob("*"):
        assert "SENTINEL" not in str(path.relative_to(page.parent))
        if path.is_file() and path != page:
            assert b"SENTINEL" not in path.read_bytes()


def test_a_second_check_measures_only_what_changed_and_forgets_what_is_gone(tmp_path: Path) -> None:
    folder = small_cohort(tmp_path / "c", patients=4)
    page = check_cohort(folder).page
    first = {path.name: path.stat().st_mtime_ns for path in (page.parent / RECORDS).iterdir()}
    text = page.read_bytes()
    assert check_cohort(folder).page.read_bytes() == text
    assert {path.name: path.stat().st_mtime_ns for path in (page.parent / RECORDS).iterdir()} == first
    save(folder / "v2.nii.gz", ct(seed=99))
    rows = [row(f"p{i}", f"v{i}.nii.gz") for i in range(3)]
    write_rows(folder / "cohort.csv", rows)
    (page.parent / VIEWER / ".x.123.partial").write_bytes(b"cut off")
    check_cohort(folder)
    second = {path.name: path.stat().st_mtime_ns for path in (page.parent / RECORDS).iterdir()}
    assert len(second) == 3
    assert len(second.items() & first.items()) == 2
    assert len(list((page.parent / VIEWER).iterdir())) == 3


def test_the_number_of_processes_changes_nothing(tmp_path: Path) -> None:
    folder = small_cohort(tmp_path / "c", patients=3)
    one = check_cohort(folder, out=tmp_path / "one").page.parent
    two = check_cohort(folder, out=tmp_path / "two", jobs=2).page.parent
    assert {p.name: p.read_bytes() for p in one.rglob("*.js*")} == {p.name: p.read_bytes() for p in two.rglob("*.js*")}
    assert (one / "index.html").read_bytes() == (two / "index.html").read_bytes()


def test_a_damaged_record_is_made_again(tmp_path: Path) -> None:
    folder = small_cohort(tmp_path / "c")
    page = check_cohort(folder).page
    good = page.read_bytes()
    records = sorted((page.parent / RECORDS).iterdir())
    records[0].write_text("{", encoding="utf-8")
    records[1].write_text('{"shape": 3}', encoding="utf-8")
    (page.parent / VIEWER / f"{records[2].stem}.js").unlink()
    assert check_cohort(folder).page.read_bytes() == good


def test_one_odd_file_never_stops_the_page(tmp_path: Path) -> None:
    folder = small_cohort(tmp_path / "c")
    (folder / "rubbish.nii.gz").write_bytes(b"\x1f\x8b\x08\0rubbish")
    save(folder / "zero.nii.gz", ct() * 0)
    save(folder / "thin.nii.gz", ct((30, 30, 9))[:, :, 4:6])
    with (folder / "cohort.csv").open("a", encoding="utf-8") as stream:
        for name in ("rubbish", "zero", "thin"):
            stream.write(f"{name},s1,0,CT,{name}.nii.gz,f1\n")
    found = check_cohort(folder)
    reasons = {problem.patient: problem.reason for problem in found.problems}
    assert reasons["rubbish"] is Reason.UNREADABLE
    assert reasons["zero"] is Reason.ALL_ZERO
    assert found.volumes["CT"] == 4


def test_a_cohort_without_a_volume_that_can_be_measured_has_a_page(tmp_path: Path) -> None:
    save(tmp_path / "c" / "zero.nii.gz", ct() * 0)
    write_rows(tmp_path / "c" / "cohort.csv", [row("p", "zero.nii.gz")])
    found = check_cohort(tmp_path / "c")
    assert found.patients == 0
    assert "1 left out" in found.page.read_text(encoding="utf-8")


def test_a_cohort_without_a_usable_header_is_an_error(tmp_path: Path) -> None:
    write_rows(tmp_path / "cohort.csv", [row("p", "absent.nii.gz")])
    with pytest.raises(CohortError) as error:
        check_cohort(tmp_path)
    assert error.value.code is Code.COHORT_EMPTY


def test_thousands_of_volumes_make_a_page_of_bounded_size(tmp_path: Path) -> None:
    folder = small_cohort(tmp_path / "c", patients=1)
    one = survey(read_cohort(folder, VOCABULARY).volumes, tmp_path / "page")[0]
    assert isinstance(one.found, Measured)
    many = [
        Surveyed(replace(one.volume, patient=f"p{n // 2}"), one.key, replace(one.found, content=f"{n}"))
        for n in range(6000)
    ]
    found = Findings(Cohort((), ()), many, [], suspicions(many), [])
    made = content.page_content(found, tmp_path / "page" / VIEWER)
    assert len(made["montages"]) == content.SAMPLE
    assert len(made["data"]["tables"]["volumes"]["rows"]) == 6000
    assert len(json.dumps(made["data"])) < 300 * 6000
    shutil.rmtree(folder)


def test_registered_pairs_and_patients_are_counted_for_each_objective(tmp_path: Path) -> None:
    from parametrium.report.quality.use import ONE_SCAN, REGISTERED, TWO_MODALITIES, objectives_table

    one = survey(read_cohort(small_cohort(tmp_path / "c", 1), VOCABULARY).volumes, tmp_path / "page")[0]

    def volume(patient: str, modality: str, frame: str) -> Surveyed:
        return replace(one, volume=replace(one.volume, patient=patient, modality=modality, frame=frame))

    rows = [volume("a", "CT", "f"), volume("a", "T2", "f"), volume("a", "T2", "f"), volume("a", "PET", "g")]
    rows += [volume("b", "CT", "f"), volume("b", "PET", "g"), replace(volume("b", "T2", "f"), found=Reason.ALL_ZERO)]
    table = {(r[0], r[1]): (r[2], r[3]) for r in objectives_table(rows).rows}
    assert table == {
        (ONE_SCAN, "CT"): ("2", "2 volumes"),
        (ONE_SCAN, "PET"): ("2", "2 volumes"),
        (ONE_SCAN, "T2"): ("1", "2 volumes"),
        (REGISTERED, "CT and T2"): ("1", "2 registered pairs"),
        (TWO_MODALITIES, "CT and PET"): ("2", "2 patients with both"),
    }


def test_volumes_of_one_study_and_modality_are_told_apart(tmp_path: Path) -> None:
    one = survey(read_cohort(small_cohort(tmp_path / "c", 1), VOCABULARY).volumes, tmp_path / "page")[0]
    later = replace(one, volume=replace(one.volume, study="later"))
    found = Findings(Cohort((), ()), [one, later, one], [], [], [])
    assert [found.named(n)["modality"] for n in range(3)] == ["CT (1)", "CT", "CT (2)"]


def test_a_first_page_says_what_is_missing_and_how_to_add_it(tmp_path: Path) -> None:
    folder = small_cohort(tmp_path / "north")
    problems = [
        {"patient": "", "modality": "", "reason": reason, "count": "5"} for reason in ("localiser", "not_dicom")
    ]
    write_rows(folder / "problems.csv", problems)
    text = check_cohort(folder).page.read_text(encoding="utf-8")
    assert "<bdi>north</bdi>" in text
    assert "no job: check with --job" in text
    assert "10 files, 5 of them worth a look" in text
    assert "put clinical.csv beside cohort.csv" in text
    write_rows(folder / "clinical.csv", [{"patient": f"p{n}", "age": "50"} for n in range(3)])
    assert "put clinical.csv beside" not in check_cohort(folder).page.read_text(encoding="utf-8")


def test_the_registration_is_told_in_sentences_and_short_numbers(tmp_path: Path) -> None:
    folder = small_cohort(tmp_path / "c", patients=1)
    told = {"patient": "p0", "path": "/secret/p0", "verdict": "large_turn", "metric_before": "1.04271", "halves_mm": ""}
    write_rows(folder / "registration.csv", [told])
    rows = Page(check_cohort(folder).page).rows("registration")
    assert rows == [["p0", "refused: turned by more than a patient turns", "1.043", ""]]


def test_a_moved_volume_is_shown_where_registration_put_it(tmp_path: Path) -> None:
    folder = small_cohort(tmp_path / "c", patients=1)
    volume = read_cohort(folder, VOCABULARY).volumes[0]
    moved = replace(volume, moved=(1.0, 0.0, 0.0, 30.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0))
    still, there = survey([volume, moved], tmp_path / "page")
    assert isinstance(still.found, Measured)
    assert isinstance(there.found, Measured)
    assert still.key != there.key
    assert still.found.content == there.found.content
    assert still.found.grid != there.found.grid


def test_every_reason_and_verdict_has_a_meaning_and_a_remedy() -> None:
    assert set(MEANING) == set(REMEDY) == set(Reason)
    assert set(VERDICTS) == {verdict.value for verdict in Verdict}
    assert remedy("no such reason") == ""
    assert not is_as_it_should_be("no such reason")
    assert meaning("no such reason") == ""


@pytest.mark.parametrize("text", HOSTILE)
def test_a_shown_text_is_one_short_line_without_hidden_marks(text: str) -> None:
    made = shown(text)
    assert made.isprintable()
    assert len(made) < 480
    assert shown("plain \N{LATIN SMALL LETTER E WITH ACUTE}") == "plain \N{LATIN SMALL LETTER E WITH ACUTE}"


def test_the_viewer_is_the_one_that_its_readme_names() -> None:
    readme = (PACKAGE / "vendor" / "README.md").read_text(encoding="utf-8")
    found = re.search(r"SHA-256\s+([0-9a-f]{64})\s+niivue\.umd\.js", readme)
    assert found
    assert hashlib.sha256((PACKAGE / "vendor" / "niivue.umd.js").read_bytes()).hexdigest() == found[1]
    assert "BSD 2-Clause" in (PACKAGE / "vendor" / "LICENSE").read_text(encoding="utf-8")


@pytest.fixture
def command() -> typer.Typer:
    app = typer.Typer()
    quality.register(app)
    app.command("other")(lambda: None)  # with one command alone typer has no names of commands
    return app


def test_the_exit_code_says_whether_anything_was_found(tmp_path: Path, command: typer.Typer) -> None:
    good = CliRunner().invoke(command, ["check", str(small_cohort(tmp_path / "good")), "--jobs", "1", "--json"])
    assert good.exit_code == 0, good.output
    told = json.loads(good.stdout)
    assert (told["patients"], told["volumes"], told["left_out"], told["suspected"]) == (3, {"CT": 3}, {}, {})
    assert Path(told["page"]).is_file()
    bad = small_cohort(tmp_path / "bad")
    (bad / "v0.nii.gz").unlink()
    ended = CliRunner().invoke(command, ["check", str(bad), "--jobs", "1", "--out", str(tmp_path / "page")])
    assert ended.exit_code == 1
    assert "left out: missing_file" in ended.stdout
    assert "missing_file: the table names a file that is not there. What to do: put the file back" in ended.stdout
    assert "exit code 1: look at the page" in ended.stdout
    assert (tmp_path / "page" / "index.html").is_file()


def test_a_job_decides_modalities_and_clinical_schema(tmp_path: Path, command: typer.Typer) -> None:
    folder = small_cohort(tmp_path / "c")
    write_rows(folder / "clinical.csv", [{"patient": f"p{n}", "age": text} for n, text in enumerate(("50", "old", ""))])
    job = Path(__file__).parent.parent.parent / "jobs" / "pretrain.yaml"
    ended = CliRunner().invoke(command, ["check", str(folder), "--jobs", "1", "--json", "--job", str(job)])
    told = json.loads(ended.stdout)
    assert told["clinical_values_outside_schema"] == 1
    assert ended.exit_code == 1
    assert '<td class="n">1 (33 %)</td>' in Path(told["page"]).read_text(encoding="utf-8")


def test_the_table_of_volumes_is_that_of_the_cohort(faulty: Path) -> None:
    with (faulty / "cohort.csv").open(newline="", encoding="utf-8") as stream:
        listed = {(r["patient"], r["modality"]) for r in csv.DictReader(stream)}
    rows = Page(faulty / "quality" / "index.html").rows("volumes")
    assert {(r[0], r[3]) for r in rows} == listed - {("p003", "PET"), ("p004", "CT"), ("p005", "CT")}
