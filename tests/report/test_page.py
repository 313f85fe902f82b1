"""The page: complete, offline, safe from what a name or a reason holds, and bounded."""

import base64
import time
from collections.abc import Callable
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread
from run_records import OBJECTIVES, write_run

from parametrium.config import JobConfig
from parametrium.errors import Code, FederationError
from parametrium.report import tables
from parametrium.report.embedding import save_points
from parametrium.report.federation import write_report

MakeJob = Callable[..., JobConfig]
TABLES = (
    tables.sites_table,
    tables.losses_table,
    tables.contributions_table,
    tables.faults_table,
    tables.owners_table,
    tables.reconstruction_table,
    tables.retrieval_table,
    tables.probe_table,
)
PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
HOSTILE = "<script>alert(1)</script>\"'><img src=//evil.example/x onerror=alert(2)>{{ 7*7 }}"


class Page(HTMLParser):
    """Elements, attributes and the text outside of the style sheet."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.cells: list[str] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"{tag} is closed out of order"

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data
        if self.open and self.open[-1] in ("td", "th"):
            self.cells[-1] += data

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def job(make_job: MakeJob, **changes: object) -> JobConfig:
    return make_job(**{"objectives": OBJECTIVES, "evaluation": {"probe": "age", "every": 2}, **changes})


def picture(run: Path, site: str, name: str = "masked_reconstruction.png", content: bytes = PNG) -> None:
    folder = run / "sites" / site / "pictures"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content)


def test_every_number_of_every_table_is_on_the_page(tmp_path: Path, make_job: MakeJob) -> None:
    write_run(tmp_path / "run", job(make_job), rejected={(1, "beta"): "x is not finite"})
    path = write_report(tmp_path / "run")
    assert path == tmp_path / "run" / "report.html"
    page = Page(path)
    for function in TABLES:
        table = function(tmp_path / "run")
        for row in table.rows:
            assert any(page.cells[n : n + len(row)] == row for n in range(len(page.cells))), row
        assert table.title in page.text
    assert "Complete: 2 of 2 rounds" in page.text
    assert "2 tensors, 11 parameters" in page.text
    for text in ("CT, T1, PET", "masked reconstruction (weight 1)", "2: alpha, beta", "0.5125"):
        assert text in page.text
    assert "What is missing" not in page.text
    assert page.open == []


def test_templates_that_were_not_passed_on_are_named_where_there_are_any(tmp_path: Path, make_job: MakeJob) -> None:
    write_run(tmp_path / "run", job(make_job), rounds=3, kept={0: ["T1", "CT"], 2: ["T1"]})
    text = Page(write_report(tmp_path / "run")).text
    assert "CT in 1 of 3 rounds; T1 in 2 of 3 rounds; fewer sites than 2 trained them" in text
    write_run(tmp_path / "other", job(make_job))
    assert "Templates not passed on" not in Page(write_report(tmp_path / "other")).text


def test_the_winner_is_marked_and_the_answers_are_counted(tmp_path: Path, make_job: MakeJob) -> None:
    write_run(tmp_path / "run", job(make_job))
    page = Page(write_report(tmp_path / "run"))
    assert sum("best" in (cell.get("class") or "").split() for cell in page.named("td")) > 8
    assert "2 of 4reconstruction" in page.text
    assert "2retrieval, R@1" in page.text


def test_monitors_have_a_table_and_a_chart_each_with_what_they_are_compared_with(
    tmp_path: Path, make_job: MakeJob
) -> None:
    write_run(tmp_path / "run", job(make_job))
    page = Page(write_report(tmp_path / "run"))
    row = ["alpha", "15", "0.281 \N{RIGHTWARDS ARROW} 0.0938", "0.312 \N{RIGHTWARDS ARROW} 0.312"]
    assert any(page.cells[n : n + 4] == row for n in range(len(page.cells)))
    assert any("2.5 \N{RIGHTWARDS ARROW} 7.5" in cell for cell in page.cells)  # RankMe
    drawn = [svg.get("aria-label") or "" for svg in page.named("svg")]
    for title in ("Attention outside the body", "Effective rank of the features", "Loss on held-out patients: masked"):
        assert sum(label.startswith(title) for label in drawn) == 1
    assert not any(label.startswith("Distance between a patient's modalities") for label in drawn)  # not measured
    assert "share of the patches outside the body" in page.text
    write_run(tmp_path / "ends", job(make_job, evaluation={}))
    page = Page(write_report(tmp_path / "ends"))
    assert any(page.cells[n : n + 3] == row[:3] for n in range(len(page.cells)))
    assert not any((svg.get("aria-label") or "").startswith("Attention") for svg in page.named("svg"))


def test_losses_have_a_chart_each_with_axes_legend_and_chance(tmp_path: Path, make_job: MakeJob) -> None:
    write_run(tmp_path / "run", job(make_job))
    page = Page(write_report(tmp_path / "run"))
    assert "Training loss: masked reconstruction" in page.text
    assert "chance level" in page.text
    assert "mean squared error" in page.text
    # two objectives in training and held out; two modalities and five monitors, measured before and after
    assert len([a for a in page.named("svg") if a.get("role") == "img"]) == 2 + 2 + 2 + 5
    dashed = [a for a in page.named("polyline") if a["class"] == "reference"]
    assert len(dashed) == 2 + 4 + 4 + 2  # chance; neighbour mean; training loss; patches outside the body


def test_the_page_is_offline(tmp_path: Path, make_job: MakeJob) -> None:
    write_run(tmp_path / "run", job(make_job))
    picture(tmp_path / "run", "alpha")
    for with_sites in (False, True):
        page = Page(write_report(tmp_path / "run", with_sites))
        names = {name for name, _ in page.elements}
        assert not names & {"script", "link", "iframe", "object", "embed", "base", "form", "a", "use", "image"}
        for _, attributes in page.elements:
            assert not any(name.startswith("on") for name in attributes)
            for name in ("href", "xlink:href", "src", "srcset", "action", "style", "background"):
                assert (attributes.get(name) or "data:").startswith("data:image/png;base64,") or name not in attributes
        text = (tmp_path / "run" / "report.html").read_text()
        assert "url(" not in text
        assert "@import" not in text
        assert "://" not in text


def test_the_policy_lets_nothing_in(tmp_path: Path, make_job: MakeJob) -> None:
    write_run(tmp_path / "run", job(make_job))
    picture(tmp_path / "run", "alpha")

    def policy(with_sites: bool) -> str:
        page = Page(write_report(tmp_path / "run", with_sites))
        place = next(n for n, (name, _) in enumerate(page.elements) if name == "style")
        metas = [a for name, a in page.elements[:place] if name == "meta"]
        return next(str(a["content"]) for a in metas if a.get("http-equiv") == "Content-Security-Policy")

    assert policy(False).startswith("default-src 'none'; style-src 'unsafe-inline';")
    assert "img-src" not in policy(False)
    assert "img-src data:;" in policy(True)
    assert "script-src" not in policy(True)


def test_hostile_text_is_text(tmp_path: Path, make_job: MakeJob) -> None:
    error = FederationError(Code.ROUND_FAILED, HOSTILE)
    write_run(tmp_path / "run", job(make_job), ["alpha", HOSTILE], rejected={(1, HOSTILE): HOSTILE}, error=error)
    picture(tmp_path / "run", "alpha", "<b onclick=x>.png")
    page = Page(write_report(tmp_path / "run", with_sites=True))
    assert not {"script", "b onclick=x"} & {name for name, _ in page.elements}
    assert all(str(a["src"]).startswith("data:") for a in page.named("img"))
    assert HOSTILE in page.cells
    assert f"PM502 {HOSTILE}" in page.text
    assert "49" not in "".join(cell for cell in page.cells if "evil" in cell)


def test_a_failed_run_says_why_and_what_is_missing(tmp_path: Path, make_job: MakeJob) -> None:
    error = FederationError(Code.ROUND_FAILED, "only 0 updates were accepted in round 1")
    rejected = {(0, "beta"): "the update has a norm of 99"}
    write_run(tmp_path / "run", job(make_job, rounds=5), rounds=1, rejected=rejected, error=error)
    page = Page(write_report(tmp_path / "run"))
    assert "Failed: 1 of 5 rounds" in page.text
    assert "PM502 only 0 updates were accepted in round 1" in page.text
    assert "4 of 5 rounds were not done" in page.text
    assert "alpha has no final evaluation; its last is after 1 of 5 rounds" in page.text
    assert "the update has a norm of 99" in page.text


def test_a_run_that_is_cut_off_in_a_line_has_a_page(tmp_path: Path, make_job: MakeJob) -> None:
    write_run(tmp_path / "run", job(make_job, rounds=3), rounds=2, finish=False)
    for name in ("rounds.jsonl", "evaluation.jsonl"):
        with (tmp_path / "run" / name).open("a") as file:
            file.write('{"round": 2, "sites": [{"si')
    page = Page(write_report(tmp_path / "run"))
    assert "Not finished: 2 of 3 rounds" in page.text
    assert "could not be read and are left out: 2" in page.text
    assert "alpha has no evaluation of a trained model" in page.text
    assert "No site reported retrieval" in page.text


@pytest.mark.parametrize("line", ['{"round": 1}', "[]", '{"round": "x", "sites": [{}], "scalars": {}, "seconds": 0}'])
def test_a_finished_run_with_a_damaged_record_is_not_complete(tmp_path: Path, make_job: MakeJob, line: str) -> None:
    write_run(tmp_path / "run", job(make_job))
    with (tmp_path / "run" / "rounds.jsonl").open("a") as file:
        file.write(line + "\n")
    page = Page(write_report(tmp_path / "run"))
    assert "Failed: 2 of 2 rounds" in page.text
    assert "could not be read and are left out: 1" in page.text


@pytest.mark.parametrize("kept", ["job.yaml", "manifest.json", "rounds.jsonl", "evaluation.jsonl"])
def test_one_file_is_enough_for_a_page(tmp_path: Path, make_job: MakeJob, kept: str) -> None:
    write_run(tmp_path / "run", job(make_job))
    for path in (tmp_path / "run").iterdir():
        if path.is_file() and path.name != kept:
            path.unlink()
    page = Page(write_report(tmp_path / "run"))
    assert "What is missing" in page.text
    assert "Complete" not in page.text


def test_a_run_before_its_first_round_has_a_page(tmp_path: Path, make_job: MakeJob) -> None:
    write_run(tmp_path / "run", job(make_job), rounds=0, finish=False)
    page = Page(write_report(tmp_path / "run"))
    assert "No round was finished" in page.text
    assert "Not finished: 0 of 2 rounds" in page.text


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FederationError, match="PM503"):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_a_long_run_of_many_sites_is_a_small_page(tmp_path: Path, make_job: MakeJob) -> None:
    sites = [f"hospital-{n:02d}" for n in range(50)]
    rejected = {(n, f"hospital-{n % 50:02d}"): "the norm of the update is too large" for n in range(0, 300, 3)}
    write_run(tmp_path / "run", job(make_job, rounds=300), sites, rejected=rejected)
    started = time.monotonic()
    path = write_report(tmp_path / "run")
    assert time.monotonic() - started < 20
    assert path.stat().st_size < 1_000_000
    page = Page(path)
    assert "median of 50 sites" in page.text
    assert "297" in page.cells
    assert "hospital-49" in page.cells


def test_without_the_sites_no_picture_is_on_the_page(tmp_path: Path, make_job: MakeJob) -> None:
    write_run(tmp_path / "run", job(make_job))
    picture(tmp_path / "run", "alpha")
    page = Page(write_report(tmp_path / "run"))
    assert not page.named("img")
    assert "own pictures" not in page.text
    assert "Numbers only" in page.text


def test_with_the_sites_their_pictures_are_on_the_page_and_it_says_that_they_stay(
    tmp_path: Path, make_job: MakeJob
) -> None:
    run = tmp_path / "run"
    write_run(run, job(make_job))
    picture(run, "beta")
    picture(run, "alpha", "own_idea.png")
    picture(run, "alpha", "fake.png", b"<svg onload=alert(1)>")
    (run / "sites" / "alpha" / "pictures" / "link.png").symlink_to(run / "sites" / "beta" / "pictures")
    path = write_report(run, with_sites=True)
    page = Page(path)
    sources = [str(a["src"]) for a in page.named("img")]
    assert len(sources) == 2
    assert all(base64.b64decode(source.partition(",")[2]) == PNG for source in sources)
    assert "these never travel" in page.text
    assert "It must not leave this machine" in page.text
    assert "Numbers only" not in page.text
    assert path.stat().st_mode & 0o077 == 0
    assert page.text.index("Site alpha") < page.text.index("own idea") < page.text.index("Site beta")


def test_features_of_two_sites_are_drawn_on_common_components(tmp_path: Path, make_job: MakeJob) -> None:
    run = tmp_path / "run"
    write_run(run, job(make_job))
    rng = np.random.default_rng(0)
    for site in ("alpha", "beta"):
        picture(run, site)
        features = {(p, m): rng.normal(size=6).astype(np.float32) for p in range(4) for m in ("CT", "T1")}
        save_points(run / "sites" / site / "pictures" / "embeddings.json", features, site)
    page = Page(write_report(run, with_sites=True))
    assert "Features by site and by patient" in page.text
    drawn = imread(BytesIO(base64.b64decode(str(page.named("img")[0]["src"]).partition(",")[2])))
    assert drawn.std() > 0.05
    assert "Can the features tell the site?" in page.text
    assert any(page.cells[n : n + 3] == ["CT", "2", "8"] for n in range(len(page.cells)))
    assert "Can the features" not in Page(write_report(run)).text
    (run / "sites" / "beta" / "pictures" / "embeddings.json").write_text("{")
    assert "Features by site" not in Page(write_report(run, with_sites=True)).text


def test_a_page_replaces_the_last_one_and_leaves_nothing_beside(tmp_path: Path, make_job: MakeJob) -> None:
    write_run(tmp_path / "run", job(make_job))
    first = write_report(tmp_path / "run").read_text()
    before = sorted(path.name for path in (tmp_path / "run").iterdir())
    assert write_report(tmp_path / "run").read_text() == first, "the page is a function of the run"
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == before
