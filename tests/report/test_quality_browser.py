"""The quality page in a real browser: it works from a disk, asks for nothing, and no name can do anything."""

import re
import shutil
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faulty_cohorts import HOSTILE, copy_flipped, phantom, plant_hostile_names
from headless_chromium import Tab, chromium, find_chromium
from matplotlib.image import imread

from parametrium.report.quality.page import check_cohort

READY = "document.getElementById('viewer').dataset.state === 'ready'"
FAILED = "document.getElementById('viewer').dataset.state === 'failed'"


@pytest.fixture(scope="module")
def cohorts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The pages of two checked cohorts: with faults, and with hostile names in every place."""
    find_chromium()
    folder = tmp_path_factory.mktemp("cohorts")
    good = phantom(folder / "faulty", patients=4, modalities=("CT", "T2"))
    shutil.copytree(good, folder / "hostile")
    copy_flipped(good / "p001/s0/T2.nii.gz", good / "p002/s0/T2.nii.gz")
    plant_hostile_names(folder / "hostile")
    return {name: check_cohort(folder / name, jobs=2).page for name in ("faulty", "hostile")}


@pytest.fixture
def tab(tmp_path: Path) -> Iterator[Tab]:
    with chromium(tmp_path / "profile") as opened:
        yield opened


def strangers(tab: Tab, page: Path) -> list[str]:
    """Addresses that are neither in the page's folder nor data of its own."""
    return [url for url in tab.requests if not url.startswith((page.parent.as_uri() + "/", "data:"))]


def grey(png: bytes) -> Any:
    return imread(BytesIO(png), format="png")[..., :3].mean(axis=2)


def test_a_click_on_a_row_shows_the_volume_in_three_planes(cohorts: dict[str, Path], tab: Tab) -> None:
    page = cohorts["faulty"]
    tab.open(page.as_uri())
    tab.click("[data-table=volumes] tbody tr:nth-child(4) td:nth-child(3)")
    tab.wait(READY)
    title = tab.value("document.getElementById('viewer-title').textContent")
    assert title == "p001 \N{MIDDLE DOT} s0 \N{MIDDLE DOT} T2"
    assert "A coarse copy, in voxels of" in tab.value("document.getElementById('viewer-note').textContent")
    before = grey(tab.picture("#viewer-canvas"))
    assert before.std() > 0.1
    assert len(np.unique(np.round(before, 2))) > 40
    height, width = (n // 2 for n in before.shape)
    quarters = [before[:height, :width], before[:height, width:], before[height:, :width]]
    assert all(quarter.std() > 0.05 for quarter in quarters)
    tab.click("#viewer-body")
    tab.wait("document.getElementById('viewer-body').checked")
    coloured = imread(BytesIO(tab.picture("#viewer-canvas")), format="png")
    assert (coloured[..., 0] - coloured[..., 2] > 0.1).mean() > 0.1
    tab.key("Escape")
    tab.wait("!document.getElementById('viewer').open")
    assert tab.complaints == []
    assert strangers(tab, page) == []
    names = {Path(url).name for url in tab.requests if url.startswith("file:")}
    assert len(names) == 3  # the page, the viewer, one volume
    assert {"index.html", "niivue.js"} < names


def test_one_volume_after_another_and_a_montage_open_too(cohorts: dict[str, Path], tab: Tab) -> None:
    tab.open(cohorts["faulty"].as_uri())
    seen = []
    for selector in (".gallery button", "[data-table=suspicions] tbody button", "[data-table=overlaps] tbody tr"):
        tab.click(selector)
        tab.wait(READY)
        seen.append(grey(tab.picture("#viewer-canvas")))
        tab.click("#viewer-close")
        tab.wait("!document.getElementById('viewer').open")
    assert all(picture.std() > 0.05 for picture in seen)
    assert np.abs(seen[0] - seen[2]).mean() > 0.01
    assert tab.complaints == []


def test_the_viewer_tells_the_window_with_its_unit(cohorts: dict[str, Path], tab: Tab) -> None:
    tab.open(cohorts["faulty"].as_uri())
    note = "document.getElementById('viewer-note').textContent"
    for row, end in ((1, r" HU$"), (2, r"\d $")):  # CT, then T2, whose scale is the scanner's own
        tab.click(f"[data-table=volumes] tbody tr:nth-child({row})")
        tab.wait(READY)
        assert re.search(r"Black to white: -?[\d.]+ to [\d.]+" + end, tab.value(note)), tab.value(note)
        tab.click("#viewer-close")
    assert tab.complaints == []


def test_long_tables_are_paged_searched_and_sorted(cohorts: dict[str, Path], tab: Tab) -> None:
    tab.open(cohorts["hostile"].as_uri())
    table = "[data-table=registration]"
    rows = f"document.querySelectorAll('{table} tbody tr').length"
    assert tab.value(rows) == 25
    assert "1 to 25 of 60" in tab.value(f"document.querySelector('{table} .bar').textContent")
    tab.click(f"{table} .bar button:nth-of-type(2)")
    tab.click(f"{table} .bar button:nth-of-type(2)")
    assert tab.value(rows) == 10
    tab.value(
        "(i => { i.value = '10,000 characters'; i.dispatchEvent(new Event('input')); })"
        f"(document.querySelector('{table} input'))"
    )
    texts = tab.value(f"[...document.querySelectorAll('{table} tbody tr')].map(r => r.textContent)")
    assert len(texts) == 25
    assert all("10,000 characters" in text for text in texts)
    tab.open(cohorts["faulty"].as_uri())
    column = "[...document.querySelectorAll('[data-table=overlaps] tbody tr')].map(r => r.lastChild.textContent)"
    tab.click("[data-table=overlaps] th:last-child button")
    numbers = [float(text) for text in tab.value(column) if text[0].isdigit()]
    assert numbers == sorted(numbers)


def test_hostile_names_are_text_and_nothing_else(cohorts: dict[str, Path], tab: Tab) -> None:
    page = cohorts["hostile"]
    tab.open(page.as_uri())
    shown = tab.value("document.body.innerText")
    for text in (
        "<script>alert(1)</script>",
        "onerror=alert(2)>",
        "{{7*7}}${7*7}",
        "\\u202egpj.exe\\u2066",
        "a\\u000ab",
    ):
        assert text in shown
    assert not set("\u202e\u2066\x1b") & set(shown)
    assert HOSTILE[9] not in shown  # ten thousand letters are cut
    elements = tab.value("[...document.querySelectorAll('*')].map(e => e.tagName)")
    assert elements.count("SCRIPT") == 2
    assert elements.count("IMG") == tab.value("document.querySelectorAll('.gallery img').length") + 1
    attributes = tab.value("[...document.querySelectorAll('*')].flatMap(e => e.getAttributeNames())")
    assert not [name for name in attributes if name.startswith("on")]
    for n in (1, 3, 6):
        tab.click(f"[data-table=volumes] tbody tr:nth-child({n})")
        tab.wait(READY)
        tab.click("#viewer-close")
    assert tab.value("document.getElementById('viewer-title').textContent").count("\N{MIDDLE DOT}") == 2
    assert tab.complaints == []
    assert strangers(tab, page) == []


def test_a_volume_that_is_not_there_any_more_is_told(cohorts: dict[str, Path], tab: Tab, tmp_path: Path) -> None:
    shutil.copytree(cohorts["faulty"].parent, tmp_path / "copy", ignore=shutil.ignore_patterns("volumes"))
    tab.open((tmp_path / "copy" / "index.html").as_uri())
    tab.click(".gallery button")
    tab.wait(FAILED)
    assert "not beside this page" in tab.value("document.getElementById('viewer-text').textContent")


def test_injected_script_would_not_run(cohorts: dict[str, Path], tab: Tab, tmp_path: Path) -> None:
    """The policy is a second wall: even markup that did get onto the page is dead."""
    page = tmp_path / "page.html"
    text = cohorts["faulty"].read_text(encoding="utf-8")
    page.write_text(
        text.replace(
            "<footer>",
            "<script>window.hit = 1</script><img src=x onerror='window.hit = 2'>"
            "<script src='http://127.0.0.1:9/x.js'></script><footer>",
        ),
        encoding="utf-8",
    )
    tab.open(page.as_uri())
    assert tab.value("window.hit === undefined")
    assert not [url for url in tab.requests if url.startswith("http")]
    assert len(tab.complaints) >= 3
