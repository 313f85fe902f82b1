"""Tables as hospitals have them."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parametrium.cohort.table import read_table, write_table
from parametrium.errors import CohortError

CELL = st.text(st.characters(codec="utf-8", exclude_categories=("C",)), max_size=12).map(str.strip)


def _read(path: Path, text: str, encoding: str = "utf-8") -> list[dict[str, str]]:
    path.write_text(text, encoding=encoding, newline="")
    return [dict(row) for row in read_table(path, what="the table", required=("a",)).rows]


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("a,b\n1,2\n", "utf-8"),
        ("a,b\n1,2\n", "utf-8-sig"),
        ("a;b\r\n1;2\r\n", "utf-8-sig"),
        ("a\tb\n1\t2", "utf-8"),
        (" A , B \n 1 , 2 \n", "utf-8"),
        ("a,b,,\n1,2,,\n\n,,\n", "utf-8"),
        ('"a","b"\n"1","2"\n', "utf-8"),
    ],
)
def test_dialects_of_one_table(tmp_path: Path, text: str, encoding: str) -> None:
    assert _read(tmp_path / "t.csv", text, encoding) == [{"a": "1", "b": "2"}]


def test_a_quoted_line_break_stays_in_its_cell(tmp_path: Path) -> None:
    assert _read(tmp_path / "t.csv", 'a,b\n"one\ntwo",2\n') == [{"a": "one\ntwo", "b": "2"}]


def test_ragged_lines_are_reported_and_good_ones_kept(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("a,b\n1\n1,2,3\n1,2\n")
    table = read_table(path, what="the table", required=("a",))
    assert len(table.rows) == 1
    assert [dict(row) for row in table.ragged] == [{"a": "1"}, {"a": "1", "b": "2"}]


@pytest.mark.parametrize("content", [b"b,c\n1,2\n", b"a,a\n1,2\n", b"\xff\xfea\x00", b"", b'a,b\n"1,2\n'])
def test_an_unreadable_table_stops_without_telling_its_path(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "SENTINEL.csv"
    path.write_bytes(content)
    with pytest.raises(CohortError, match="PM201") as caught:
        read_table(path, what="the table", required=("a",))
    assert "SENTINEL" not in str(caught.value)
    assert "SENTINEL" in caught.value.site_detail


def test_an_absent_table_stops(tmp_path: Path) -> None:
    with pytest.raises(CohortError, match="PM201"):
        read_table(tmp_path / "t.csv", what="the table", required=())


@given(rows=st.lists(st.tuples(CELL.filter(bool), CELL), max_size=5))
def test_what_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]]) -> None:
    path = tmp_path_factory.mktemp("t") / "t.csv"
    written = [{"a": a, "b": b} for a, b in rows]
    write_table(path, ("a", "b"), written)
    assert [dict(row) for row in read_table(path, what="the table", required=("a", "b")).rows] == written


def test_a_write_that_fails_keeps_the_old_table(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    write_table(path, ("a",), [{"a": "1"}])
    with pytest.raises(ValueError, match="fields"):
        write_table(path, ("a",), [{"a": "2"}, {"other": "3"}])
    assert path.read_text() == "a\n1\n"
    assert list(tmp_path.iterdir()) == [path]
