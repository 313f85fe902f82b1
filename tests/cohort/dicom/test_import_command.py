"""``parametrium cohort import`` for whatever a hospital has."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from dicom_files import volume, write_series

from cohort_files import ct, save, write_rows
from defacers import head, program
from parametrium.cli import main

TEMPLATE = Path(__file__).parent.parent.parent.parent / "site_configs" / "template.yaml"


class Shell:
    """Types commands, in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *words: str | Path, code: int = 0) -> str:
        with pytest.raises(SystemExit) as ended:
            main([str(word) for word in words])
        said = self._capsys.readouterr()
        assert ended.value.code == code, said
        return said.err if code else said.out

    def json(self, *words: str | Path) -> Any:
        return json.loads(self(*words, "--json"))


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(capsys)


def a_site(folder: Path, *rules: dict[str, Any]) -> Path:
    """A site config with these series_rules."""
    config = yaml.safe_load(TEMPLATE.read_text()) | {"series_rules": list(rules)}
    path = folder / "site.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def test_dicom_is_recognised_and_converted_by_the_sites_own_rules(tmp_path: Path, shell: Shell) -> None:
    write_series(tmp_path / "pacs", volume(), series="a", SeriesDescription="Planung")
    write_series(tmp_path / "pacs", volume(), series="b", modality="MR", SeriesDescription="Hausmarke")
    rule = {"match": "hausmarke", "modality": "T2", "scanner": "MR", "over_facts": True}
    site = a_site(tmp_path, rule)
    words = ("cohort", "import", tmp_path / "pacs", tmp_path / "cohort", "--site-config", site, "--no-register")
    answer = shell.json(*words)
    assert (answer["form"], answer["patients"], answer["volumes"]) == ("dicom", 1, {"CT": 1, "T2": 1})
    assert answer["registration"] == {}
    assert "series_rules[0]" in (tmp_path / "cohort" / "cohort.csv").read_text()
    text = shell(*words, "--drop", "T2")
    assert "modality_not_wanted" in text
    assert not list((tmp_path / "cohort" / "images").rglob("T2*"))


def test_the_sites_defacing_is_used_and_cannot_be_forgotten(tmp_path: Path, shell: Shell) -> None:
    write_series(tmp_path / "pacs", head()[::-1, ::-1], steps=np.eye(3) * 4.0, BodyPartExamined="HEAD")
    site = a_site(tmp_path)
    settings = yaml.safe_load(site.read_text())
    settings["defacing"] = json.loads(program(tmp_path, "zero").model_dump_json())
    site.write_text(yaml.safe_dump(settings))
    words = ("cohort", "import", tmp_path / "pacs", tmp_path / "cohort", "--no-register")
    assert shell.json(*words, "--site-config", site)["masks"] == 1
    assert "PM204" in shell(*words, code=3)
    settings["defacing"]["command"][1] = program(tmp_path, "fails").command[1]
    site.write_text(yaml.safe_dump(settings))
    assert "defacing_failed" in shell(*words, "--site-config", site, code=3)


def test_volumes_of_several_frames_are_registered_unless_told_otherwise(tmp_path: Path, shell: Shell) -> None:
    write_series(tmp_path / "pacs", volume(), series="a")
    write_series(tmp_path / "pacs", volume(), series="b", modality="MR", FrameOfReferenceUID="1.2")
    words = ("cohort", "import", tmp_path / "pacs", tmp_path / "cohort")
    assert shell.json(*words, "--no-register")["registration"] == {}
    assert not (tmp_path / "cohort" / "registration.csv").exists()
    first = shell.json(*words)["registration"]
    assert sum(first.values()) == 1
    tables = {path.name: path.read_bytes() for path in (tmp_path / "cohort").glob("*.csv")}
    assert "registration.csv" in tables
    again = shell.json(*words)["registration"]
    assert again["skipped"] == 1 or first.get("accepted")
    assert first.get("accepted") or shell.json(*words, "--register-again")["registration"] == first
    assert {path.name: path.read_bytes() for path in (tmp_path / "cohort").glob("*.csv")} == tables


def test_trying_again_and_not_at_all_contradict_each_other(tmp_path: Path, shell: Shell) -> None:
    said = shell("cohort", "import", tmp_path, tmp_path / "c", "--register-again", "--no-register", code=2)
    assert "PM103" in said


def test_other_forms_get_a_table_and_no_registration(tmp_path: Path, shell: Shell) -> None:
    save(tmp_path / "scans" / "A" / "CT.nii.gz", ct())
    write_rows(tmp_path / "scans" / "subjects.csv", [{"subject": "A"}])
    answer = shell.json("cohort", "import", tmp_path / "scans", tmp_path / "cohort")
    assert (answer["form"], answer["volumes"], answer["registration"]) == ("folders", {"CT": 1}, {})


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--rename", "DOSE=RTDOSE"], "PM103 --rename is for a source of form bids, nnunet, datalist, folders"),
        (["--fold", "0"], "PM103 --fold is for a source of form datalist; this one is dicom"),
        (["--as", "nifti"], "PM103 --as must be one of dicom, bids"),
        (["--drop", "DOSE"], "PM103 --drop must be one of CT, CBCT"),
    ],
)
def test_an_option_of_another_form_is_refused(tmp_path: Path, shell: Shell, words: list[str], told: str) -> None:
    write_series(tmp_path / "pacs", volume())
    assert told in shell("cohort", "import", tmp_path / "pacs", tmp_path / "cohort", *words, code=2)
    assert not (tmp_path / "cohort").exists()
