"""HTML that is built from texts: escaped once."""

from calmoe_jax.study.report.elements import (
    Html,
    Row,
    element,
    escaped,
    figure,
    joined,
    spread_cell,
    table,
)
from calmoe_jax.study.report.summary import Spread

NASTY = "<b a=\"1\" c='2'>&"


def test_texts_are_escaped_once():
    once = escaped(NASTY)
    assert not set("<>\"'") & set(once)
    assert escaped(once) == once
    assert joined([NASTY, once]) == once + once
    assert element("p", NASTY, title=NASTY) == f"<p title='{once}'>{once}</p>"


def test_attributes():
    assert element("p", class_="x") == "<p class='x'></p>"
    assert element("p", class_="") == "<p></p>"


def test_a_table_has_every_cell():
    text = table(["a", NASTY], [Row("r", [NASTY, Html("<i>x</i>")], True), Row("s", ["", "y"])])
    assert text.count("<td>") == 6
    assert text.count("<th>") == 3
    assert text.count("class='marked'") == 1
    assert "<i>x</i>" in text
    assert NASTY not in text


def test_a_figure_is_inside_the_page():
    text = figure(b"\x00\x01", NASTY)
    assert "src='data:image/png;base64,AAE='" in text
    assert NASTY not in text


def test_cells():
    assert spread_cell(None, "ece") == "–"
    assert spread_cell(Spread(0.12345, None), "ece") == "0.123"
    assert spread_cell(Spread(0.12345, None), "accuracy") == "12.3"
    cell = spread_cell(Spread(0.5, 0.25), "nll")
    assert cell == "0.500 <span class='std'>± 0.250</span>"
