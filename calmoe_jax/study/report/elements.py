"""HTML of tables, figures and collapsible parts; text is escaped only in this module."""

import base64
import html
from collections.abc import Iterable
from typing import NamedTuple

from calmoe_jax.study.report.summary import Spread

# Metrics shown in per cent or percentage points.
_PERCENT = ("accuracy", "confidence_gap")


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


def scaled(metric: str) -> tuple[int, int]:
    """Scale factor and number of decimals of a metric in tables.

    Args:
        metric: name of a metric.
    """
    return (100, 1) if metric in _PERCENT else (1, 3)


def spread_cell(value: Spread | None, metric: str) -> str:
    """Mean and deviation of a metric; a dash if there is none.

    Args:
        value: over the seeds.
        metric: name of the metric.
    """
    if value is None:
        return "–"
    scale, digits = scaled(metric)
    mean = f"{scale * value.mean:.{digits}f}"
    if value.std is None:
        return mean
    return joined([mean, " ", element("span", f"± {scale * value.std:.{digits}f}", class_="std")])
