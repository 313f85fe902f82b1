"""Charts: every value at its place, gaps left open, bounded whatever comes."""

import math

import pytest

from parametrium.report.chart import BOTTOM, HEIGHT, LEFT, MOST_POINTS, RIGHT, TOP, WIDTH, Chart, Line, line_chart


def chart(values: dict[str, dict[int, float]], **settings: object) -> Chart:
    made = line_chart("title", "round", "loss", values, **settings)  # type: ignore[arg-type]
    assert made is not None
    return made


def places(line: Line) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for piece in line.pieces for x, y in (p.split(",") for p in piece.split())]


def test_values_are_where_the_axes_say() -> None:
    made = chart({"a": {0: 1.0, 1: 3.0, 2: 2.0}})
    x, y = {text: at for at, text in made.x_ticks}, {float(text): at for at, text in made.y_ticks}
    assert list(x) == ["0", "1", "2"]
    points = places(made.lines[0])
    assert [p[0] for p in points] == [x["0"], x["1"], x["2"]]
    assert [p[1] for p in points] == [y[1.0], y[3.0], y[2.0]]
    assert y[1.0] > y[3.0], "pictures count from the top"
    assert points == made.lines[0].dots


def test_a_missing_round_is_a_gap_and_a_late_last_evaluation_is_not() -> None:
    assert len(chart({"a": {0: 1, 1: 2, 3: 1, 4: 2}}).lines[0].pieces) == 2
    assert len(chart({"a": {0: 1, 10: 2, 20: 1, 23: 2}}, step=10).lines[0].pieces) == 1


def test_a_site_keeps_its_colour_and_marker_where_others_are_absent() -> None:
    made = chart({"a": {}, "b": {0: 1.0, 1: 2.0}, "c": {0: 2.0, 1: 1.0}})
    other = chart({"a": {0: 1.0}, "b": {0: 1.0, 1: 2.0}, "c": {0: 2.0, 1: 1.0}})
    assert [line.name for line in made.lines] == ["b", "c"]
    assert [(line.colour, line.marker) for line in made.lines] == [(n.colour, n.marker) for n in other.lines[1:]]
    assert len({line.colour for line in other.lines}) == len({line.marker for line in other.lines}) == 3


def test_a_reference_is_dashed_in_the_colour_of_its_site() -> None:
    made = chart(
        {"a": {0: 1.0, 1: 2.0}, "b": {0: 2.0, 1: 2.0}}, references={"b": {0: 3.0, 1: 3.0}}, reference="chance level"
    )
    assert [(line.name, line.dashed) for line in made.lines] == [("b", True), ("a", False), ("b", False)]
    assert made.lines[0].colour == made.lines[2].colour
    assert made.reference == "chance level"
    assert chart({"a": {0: 1.0}}, references={"a": {}}, reference="chance level").reference == ""


def test_many_sites_become_a_median_in_a_band() -> None:
    values = {f"s{n}": {r: float(n) for r in range(5)} for n in range(9)}
    made = chart(values, references=values, reference="chance")
    assert [line.name for line in made.lines] == ["", "median of 9 sites"] or len(made.lines) == 2
    y = {float(text): at for at, text in made.y_ticks}
    assert {p[1] for p in places(made.lines[-1])} == {y[4.0]}
    heights = {float(point.split(",")[1]) for point in made.bands[0].split()}
    assert heights == {y[0.0], y[8.0]}


@pytest.mark.parametrize("sites", [1, 8, 500])
def test_a_chart_is_bounded(sites: int) -> None:
    made = chart({f"s{n}": {r: math.sin(r + n) for r in range(3000)} for n in range(sites)})
    assert sum(len(line.pieces[0].split()) for line in made.lines) <= 8 * (MOST_POINTS + 1)
    assert all(len(line.dots) <= 13 for line in made.lines)
    assert places(made.lines[0])[-1][0] == WIDTH - RIGHT
    for line in made.lines:
        for x, y in places(line):
            assert LEFT <= x <= WIDTH - RIGHT
            assert TOP <= y <= HEIGHT - BOTTOM


def test_values_that_are_no_numbers_are_left_out() -> None:
    made = chart({"a": {0: math.nan, 1: 1.0, 2: math.inf, 3: 2.0}, "b": {0: math.nan}})
    assert [line.name for line in made.lines] == ["a"]
    assert len(made.lines[0].dots) == 2
    assert line_chart("t", "x", "y", {"a": {0: math.nan}}) is None
    assert line_chart("t", "x", "y", {}) is None


@pytest.mark.parametrize("value", [0.0, 1.0, -3.5, 1e-9, 1e12])
def test_one_value_has_a_chart(value: float) -> None:
    made = chart({"a": {7: value}})
    assert len(made.lines[0].dots) == 1
    assert any(text == "7" for _, text in made.x_ticks)
    assert all(math.isfinite(at) for at, _ in made.y_ticks)
    assert all(len(text) < 14 for _, text in made.y_ticks)
