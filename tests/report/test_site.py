"""A site's own page: its pictures with how to read them, what was left out and measured; for its owner alone."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imsave

from memory_volumes import memory_patients
from parametrium.cohort.problem import Problem, Reason
from parametrium.config import JobConfig
from parametrium.report.pictures import ABOUT
from parametrium.report.site import write_site_page

MakeJob = Callable[..., JobConfig]


@pytest.fixture
def page(make_job: MakeJob, tmp_path: Path) -> Path:
    """With every picture that there is, and one of an objective that somebody added."""
    (tmp_path / "pictures").mkdir()
    for name in (*ABOUT, "rotation_prediction"):
        imsave(tmp_path / "pictures" / f"{name}.png", np.zeros((4, 4)))
    training, held_out = memory_patients([["CT", "T1"]] * 3), memory_patients([["CT"]] * 2)
    problems = [Problem("a-pseudonym", "PET<script>", Reason.UNREADABLE)] * 2
    scalars = {"evaluation/loss/masked_reconstruction": 0.51234}
    return write_site_page(tmp_path, make_job(), "alpha", 2, training, held_out, problems, scalars)


def test_every_picture_is_on_the_page_with_how_to_read_it(page: Path) -> None:
    text = page.read_text()
    assert text.count("<img ") == len(ABOUT) + 1
    places = [text.index(f"<figcaption>{title}</figcaption>") for title, _ in ABOUT.values()]
    assert places == sorted(places)
    assert text.index("<figcaption>rotation prediction</figcaption>") > places[-1]
    assert ABOUT["embeddings"][1][:40] in text


def test_it_tells_what_was_left_out_and_what_was_measured(page: Path) -> None:
    text = page.read_text()
    assert "3 trained on, 2 held out" in text
    assert '<td>CT</td><td class="n">3</td><td class="n">2</td>' in text
    assert '<td>PET&lt;script&gt;</td><td>unreadable</td><td class="n">2</td>' in text
    assert '<td>evaluation/loss/masked_reconstruction</td><td class="n">0.5123</td>' in text
    assert "must not leave the site" in text
    assert "a-pseudonym" not in text


def test_it_is_readable_by_its_owner_alone_and_written_at_once(page: Path) -> None:
    assert page.stat().st_mode & 0o077 == 0
    assert not list(page.parent.glob(".*"))


WRITE = """
from pathlib import Path
from types import SimpleNamespace
from parametrium.report.html import render, write_at_once
none = SimpleNamespace(title="t", header=[], rows=[], numeric=(), best=(), note="")
page = {"name": "n", "facts": [], "volumes": none, "problems": none, "measured": none, "pictures": [], "footer": "f"}
write_at_once(Path("page.html"), render("site.html", page=page).encode(), private=True)
"""


def test_a_page_is_utf_8_whatever_the_machine_writes_by_default(tmp_path: Path) -> None:
    ascii_only = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    subprocess.run([sys.executable, "-c", WRITE], cwd=tmp_path, env=ascii_only, check=True, timeout=120)
    assert "Parametrium · a site's own page" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_without_pictures_and_patients_it_says_so(make_job: MakeJob, tmp_path: Path) -> None:
    text = write_site_page(tmp_path, make_job(), "alpha", 2, [], [], [], {}).read_text()
    for told in ("There are none", "Nothing was left out", "No patient was held out"):
        assert told in text
