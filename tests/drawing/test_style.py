"""The style of series and names."""

import itertools

import pytest
from matplotlib.figure import Figure

from calmoe_jax.drawing.style import COLOURS, LINES, MARKERS, legend_below, literal, look, png


def test_the_first_ten_have_the_palette_in_order():
    for i in range(10):
        style = look(i)
        assert (style["color"], style["marker"], style["ls"]) == (
            COLOURS[i], MARKERS[i], LINES[i % 4]
        )  # fmt: skip


def test_a_hundred_series_differ():
    looks = [(look(i)["color"], look(i)["marker"]) for i in range(100)]
    assert len(set(looks)) == 100
    for a, b in itertools.pairwise(looks):
        assert a[0] != b[0]
        assert a[1] != b[1]


@pytest.mark.parametrize("name", ["_hidden", "a $ b", "$x^$", r"\frac{", "plain", "<b>"])
def test_names_are_drawn_as_they_are(name):
    figure = Figure()
    ax = figure.subplots()
    ax.plot([0, 1], label=literal(name))
    legend_below(figure, [ax])
    (text,) = figure.legends[0].get_texts()
    assert text.get_text().replace(r"\$", "$").strip() == name
    assert png(figure).startswith(b"\x89PNG")


def test_the_legend_is_that_of_the_panel_with_the_most_names():
    figure = Figure()
    left, right = figure.subplots(1, 2)
    left.plot([0, 1], label="a")
    right.plot([0, 1], label="a")
    right.plot([1, 0], label="b")
    legend_below(figure, [left, right])
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["a", "b"]
    empty = Figure()
    legend_below(empty, [empty.subplots()])
    assert empty.legends == []
