"""Texts of patients as vectors: what is told, what is refused, and that nothing of a text is in an error."""

import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from parametrium.config import JobConfig, TextConfig
from parametrium.data import text
from parametrium.data.cache import PreparedPatient
from parametrium.data.text import LONGEST, texts_of, with_texts
from parametrium.errors import DataError

MODULE = "texts_of_a_test"


def patient(pseudonym: str, **clinical: str) -> PreparedPatient:
    return PreparedPatient(pseudonym, None, (), clinical, ())


@pytest.fixture
def install() -> Iterator[Callable[[Callable[[list[str]], Any]], TextConfig]]:
    """Installs a function as the site's encoder."""

    def as_package(encode: Callable[[list[str]], Any]) -> TextConfig:
        module = types.ModuleType(MODULE)
        module.encode = encode  # type: ignore[attr-defined]
        sys.modules[MODULE] = module
        return TextConfig(encoder=f"{MODULE}:encode", column="report")

    yield as_package
    sys.modules.pop(MODULE, None)


def lengths(texts: list[str]) -> np.ndarray:
    return np.array([[len(text), 1.0, 0.0] for text in texts])


def test_a_report_becomes_a_unit_vector_and_a_patient_without_one_gets_none(
    install: Callable[..., TextConfig],
) -> None:
    patients = [
        patient("p", report="four"),
        patient("q", age="50"),
        patient("r", report="  "),
        patient("s", report="x"),
    ]
    told = with_texts(patients, (), install(lengths), 3)
    assert [p.name for p in told] == ["p", "q", "r", "s"]
    assert [p.text is None for p in told] == [False, True, True, False]
    np.testing.assert_allclose(told[0].text, np.array([4, 1, 0]) / 17**0.5, rtol=1e-6)  # type: ignore[arg-type]


def test_a_cell_that_says_nothing_is_no_text(install: Callable[..., TextConfig]) -> None:
    cells = ("N/A", "unknown", " - ", "[not available]", "normal", "no sign of disease")
    told = with_texts([patient(str(n), report=cell) for n, cell in enumerate(cells)], (), install(lengths), 3)
    assert [p.text is None for p in told] == [True] * 4 + [False] * 2


def test_a_site_where_nobody_has_a_text_is_told_in_its_own_log(
    install: Callable[..., TextConfig], caplog: pytest.LogCaptureFixture
) -> None:
    config = install(lengths)
    assert [p.text for p in with_texts([patient("p", reprot="four"), patient("q")], (), config, 3)] == [None, None]
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "site.text.column" in caplog.text
    caplog.clear()
    with_texts([patient("p", report="four"), patient("q")], (), config, 3)
    with_texts([], (), config, 3)
    assert not caplog.records


def test_texts_are_cut_and_encoded_in_parts(install: Callable[..., TextConfig]) -> None:
    calls: list[int] = []

    def encode(texts: list[str]) -> np.ndarray:
        calls.append(len(texts))
        assert max(map(len, texts)) <= LONGEST
        return lengths(texts)

    with_texts([patient(str(n), report="y" * 10_000) for n in range(600)], (), install(encode), 3)
    assert sum(calls) == 600
    assert max(calls) <= 256


def test_a_row_is_told_in_words_without_what_the_schema_does_not_know(make_job: Callable[..., JobConfig]) -> None:
    variables = make_job().clinical
    rows = [patient("p", age="54", stage="II", name="Doe"), patient("p", age="540", stage="unknown"), patient("p")]
    assert texts_of(rows, variables, None) == ["age 54, stage II", "", ""]
    probed = [v.model_copy(update={"weight": 0.0}) if v.name == "age" else v for v in variables]
    assert texts_of(rows, probed, None) == ["stage II", "", ""]


def test_a_text_of_no_known_word_is_no_text(install: Callable[..., TextConfig]) -> None:
    (told,) = with_texts([patient("p", report="?")], (), install(lambda texts: np.zeros((len(texts), 3))), 3)
    assert told.text is None


@pytest.mark.parametrize(
    ("encode", "says"),
    [
        (lambda texts: np.ones((len(texts), 4)), "channels 3"),
        (lambda texts: np.ones((1, 3)), "for 2 texts"),
        (lambda texts: np.full((len(texts), 3), np.nan), "not finite"),
        (lambda texts: texts[0].absent, "failed"),
    ],
)
def test_an_encoder_that_gives_something_else_is_refused_without_a_word_of_the_text(
    encode: Callable[[list[str]], Any], says: str, install: Callable[..., TextConfig]
) -> None:
    patients = [patient("p", report="Jane Doe, tumour"), patient("q", report="Jane Roe")]
    with pytest.raises(DataError, match="PM304") as caught:
        with_texts(patients, (), install(encode), 3)
    assert says in str(caught.value)
    assert "Doe" not in f"{caught.value}{caught.value.site_detail}{caught.value.__cause__}"


def test_the_packaged_encoder_is_loaded_once_from_its_own_folder_and_never_from_the_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The package itself is a site's to install; this stands in for it and sees what it is asked for."""
    asked: list[dict[str, Any]] = []

    class WordLlama:
        @classmethod
        def load(cls, **how: Any) -> "WordLlama":
            asked.append(how)
            return cls()

        def embed(self, texts: list[str]) -> np.ndarray:
            return lengths(texts)

    package = types.ModuleType("wordllama")
    package.__file__ = str(tmp_path / "__init__.py")
    package.WordLlama = WordLlama  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wordllama", package)
    text._wordllama.cache_clear()
    try:
        site = TextConfig(encoder="parametrium.data.text:wordllama", column="report")
        told = [with_texts([patient("p", report=words)], (), site, 3)[0].text for words in ("four", "x")]
    finally:
        text._wordllama.cache_clear()
    assert all(vector is not None for vector in told)
    assert asked == [{"cache_dir": tmp_path, "disable_download": True}]


@pytest.mark.parametrize("name", ["no_such_package_anywhere:encode", "math:no_such_function", "math:pi"])
def test_an_encoder_that_is_not_there_is_named_to_the_site_alone(name: str) -> None:
    with pytest.raises(DataError, match="PM304") as caught:
        with_texts([patient("p", report="text")], (), TextConfig(encoder=name, column="report"), 3)
    assert name.split(":", maxsplit=1)[0] not in str(caught.value)
    assert name in str(caught.value.site_detail)
