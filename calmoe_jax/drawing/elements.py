"""HTML of tables, figures and collapsible parts; text is escaped only in this module."""

import base64
import html
from collections.abc import Iterable
from typing import NamedTuple


class Html(str):
    """Text that is HTML already."""


class Row(NamedTuple):
    """A row of a table.

    Attributes:
        label: the first cell.
        cells: the other cells.
        marked: whether the row is highlighted.
    """

    label: str
    cells: list[str]
    marked: bool = False


class Finding(NamedTuple):
    """A sentence that a page begins with.

    Attributes:
        headline: the sentence.
        detail: the numbers behind it.
        tone: `better`, `worse`, `mixed`, `reference` or `same`: the colour of its edge.
    """

    headline: str
    detail: str
    tone: str


def escaped(text: str) -> Html:
    """HTML of a text; HTML stays as it is.

    Args:
        text: plain text, or `Html`.
    """
    return text if isinstance(text, Html) else Html(html.escape(text))


def element(tag: str, *contents: str, **attributes: str) -> Html:
    """An HTML element.

    Args:
        tag: its name.
        *contents: texts, which are escaped, and `Html`, which is not.
        **attributes: values, which are escaped; `class_` is `class`, an empty one is left out.
    """
    given = "".join(
        f" {name.rstrip('_')}='{escaped(value)}'" for name, value in attributes.items() if value
    )
    return Html(f"<{tag}{given}>{joined(contents)}</{tag}>")


def joined(contents: Iterable[str]) -> Html:
    """HTML of several texts, one after the other.

    Args:
        contents: texts, which are escaped, and `Html`, which is not.
    """
    return Html("".join(map(escaped, contents)))


def folded(summary: str, *contents: str, class_: str = "") -> Html:
    """A collapsible part of the page.

    Args:
        summary: its heading.
        *contents: texts and `Html`.
        class_: its CSS class.
    """
    return element("details", element("summary", summary), *contents, class_=class_)


def table(columns: Iterable[str], rows: Iterable[Row]) -> Html:
    """A table that scrolls horizontally if it is wide.

    Args:
        columns: titles of all columns but the first.
        rows: the rows, in order.
    """
    head = element("tr", *(element("th", column) for column in ("", *columns)))
    body = [
        element(
            "tr",
            *(element("td", cell) for cell in (row.label, *row.cells)),
            class_="marked" if row.marked else "",
        )
        for row in rows
    ]
    whole = element("table", element("thead", head), element("tbody", *body))
    return element("div", whole, class_="scroll")


def figure(content: bytes, caption: str) -> Html:
    """An embedded image with its caption.

    Args:
        content: a PNG file.
        caption: text of the caption.
    """
    source = f"data:image/png;base64,{base64.b64encode(content).decode()}"
    image = Html(f"<img alt='{escaped(caption)}' src='{source}'>")
    return element("figure", element("div", image, class_="scroll"), element("figcaption", caption))


def findings(items: Iterable[Finding]) -> Html:
    """A list of findings, each with the numbers behind it.

    Args:
        items: the findings, in order.
    """
    lines = [
        element(
            "li",
            element("b", item.headline),
            element("span", capitalised(item.detail), class_="detail"),
            class_=item.tone,
        )
        for item in items
    ]
    return element("ul", *lines, class_="verdicts")


def counted(number: int, noun: str) -> str:
    """A number with its noun, such as `2 seeds`.

    Args:
        number: how many.
        noun: its singular, whose plural ends in s.
    """
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def capitalised(text: str) -> str:
    """The text with a capital first letter.

    Args:
        text: plain text.
    """
    return text[:1].upper() + text[1:]
