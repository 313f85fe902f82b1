"""The demonstration, with the smallest job: every part of it, few patients."""

from pathlib import Path

import pytest

from parametrium import demo
from parametrium.errors import FederationError

ROOT = Path(__file__).parent.parent


@pytest.mark.multiprocess
def test_the_demonstration_draws_trains_and_reports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "PATIENTS", 15)
    said: list[str] = []
    folder = tmp_path / "demo"
    result = demo.run_demo(folder, ROOT / "jobs" / "smoke.yaml", ROOT / "site_configs", 3, said.append)
    assert result.problems == ()
    reconstruction, retrieval = result.tables
    assert {(row[0], row[1]) for row in reconstruction.rows} == {
        (name, modality) for name, modalities in demo.HOSPITALS.items() for modality in modalities
    }
    assert {row[0] for row in retrieval.rows} == {*demo.HOSPITALS, "all sites"}
    assert all(len(row) == len(table.header) for table in result.tables for row in table.rows)
    assert any("better than body mask in" in line for line in result.summary)
    assert "seed 3" in result.report.read_text(encoding="utf-8")
    assert len(said) == len(demo.HOSPITALS) + 1


def test_a_folder_with_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(FederationError, match="PM503"):
        demo.run_demo(tmp_path, ROOT / "jobs" / "smoke.yaml", ROOT / "site_configs", None, lambda text: None)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_an_earlier_demonstration_is_replaced(tmp_path: Path) -> None:
    (tmp_path / demo.MARKER).write_text("")
    (tmp_path / "run").mkdir()
    demo._make_room(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [demo.MARKER]
