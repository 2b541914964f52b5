"""HTML that is built from texts: escaped once."""

from calmoe_jax.drawing.elements import (
    Finding,
    Html,
    Row,
    element,
    escaped,
    figure,
    findings,
    joined,
    table,
)

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


def test_findings_begin_with_capitals_and_have_a_tone():
    text = findings([Finding("It is so.", "numbers & more", "better")])
    line = "<li class='better'><b>It is so.</b><span class='detail'>Numbers &amp; more</span></li>"
    assert text == f"<ul class='verdicts'>{line}</ul>"
