"""YAML of settings: what version 1.2 means by a word, and nothing that could mislead."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from parametrium.config import load_job, load_site
from parametrium.config.plain import read_plain, write_plain
from parametrium.errors import ConfigError

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("no", "no"),
        ("Yes", "Yes"),
        ("on", "on"),
        ("true", True),
        ("FALSE", False),
        ("010", 10),
        ("-3", -3),
        ("1:30", "1:30"),
        ("1_000", "1_000"),
        ("1e-3", 1e-3),
        ("1.", 1.0),
        ("-.5E+2", -50.0),
        (".inf", float("inf")),
        ("2024-01-01", "2024-01-01"),
        ("~", None),
        ("", None),
        ("'1'", "1"),
    ],
)
def test_a_word_is_what_yaml_1_2_says(text: str, meant: object) -> None:
    assert read_plain(f"a: {text}") == {"a": meant}
    assert type(read_plain(f"a: {text}")["a"]) is type(meant)  # type: ignore[index]


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(PLAIN)
def test_what_is_written_comes_back_from_both_versions(data: object) -> None:
    text = write_plain(data)
    assert read_plain(text) == data
    assert yaml.safe_load(text) == data


@pytest.mark.parametrize(
    "word", ["no", "1e3", "010", "1:30", "2024-01-01", "~", "", "true", ".inf", "1_000", "=", "<<"]
)
def test_a_word_that_either_version_misreads_is_quoted(word: str) -> None:
    for data in ({"a": word}, {word: ["x"]}):
        assert read_plain(write_plain(data)) == data == yaml.safe_load(write_plain(data))


def test_what_stands_in_two_places_is_written_twice() -> None:
    shared = {"x": [1, 2]}
    assert read_plain(write_plain({"a": shared, "b": shared})) == {"a": shared, "b": shared}


@pytest.mark.parametrize("file", sorted([*ROOT.glob("jobs/*.yaml"), *ROOT.glob("site_configs/*.yaml")]))
def test_the_files_of_the_project_mean_the_same_to_both_versions(file: Path) -> None:
    assert read_plain(file.read_text()) == yaml.safe_load(file.read_text())


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: 1\nb: 2\na: 3", "line 3 of the config: this key is given a second time"),
        ("a:\n  - {x: 1, x: 2}", "line 2 .* a second time"),
        ("a: 1\n2: b", "line 2 .* a key is a text; put it in quotes"),
        ("a: 1\n~: b", "a key is a text"),
        ("? [1, 2]\n: b", "a key is a text"),
        ("a: &x [1]\nb: *x", r"line 2 .* a reference \(\*name\) is not read"),
        ("a: &x [*x]", "a reference"),
        ("a: &x {b: 1}\nc:\n  <<: *x", "a reference"),
        ("[" * 5000, "nested too deep"),
        ("a: !!int abc", "not what its tag says"),
        ("a: !!bool foo", "not what its tag says"),
        ("a: " + "9" * 5000, "beyond all measure"),
    ],
)
def test_what_would_mislead_is_refused_with_its_line(text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=f"PM101 {says}|PM101 .*{says}"):
        read_plain(text)


@pytest.mark.parametrize("text", ["a: !!map [1]", "a: !!map b", "a: [", "!!python/object/apply:os.system ['true']"])
def test_what_is_no_yaml_of_ours_is_told_as_unreadable(tmp_path: Path, text: str) -> None:
    (tmp_path / "job.yaml").write_text(text)
    with pytest.raises(ConfigError, match="PM101 the config"):
        load_job(tmp_path / "job.yaml")


def test_a_setting_written_twice_does_not_undo_the_first(tmp_path: Path) -> None:
    """The template's example of defacing under its comment, and the template's own null below it."""
    text = (ROOT / "site_configs" / "template.yaml").read_text()
    file = tmp_path / "site.yaml"
    file.write_text('defacing: {command: [d, "{input}", "{output}"]}\n' + text)
    with pytest.raises(ConfigError, match=r"PM101 .* a second time") as caught:
        load_site(file)
    assert caught.value.site_detail == "defacing"


def test_words_of_hospitals_need_no_quotes(tmp_path: Path) -> None:
    job: dict[str, Any] = {"name": "x", "modalities": ["CT"], "objectives": [{"kind": "masked_reconstruction"}]}
    variable = "{kind: nominal, name: hpv, levels: [neg, pos], synonyms: {no: neg, yes: pos}, missing: [N/A]}"
    file = tmp_path / "job.yaml"
    file.write_text(f"{yaml.safe_dump(job)}optimiser: {{learning_rate: 1e-3}}\nclinical: [{variable}]\n")
    found = load_job(file)
    assert found.clinical[0].synonyms == {"no": "neg", "yes": "pos"}  # type: ignore[union-attr]
    assert found.clinical[0].missing == ("N/A",)
    assert found.optimiser.learning_rate == 0.001
