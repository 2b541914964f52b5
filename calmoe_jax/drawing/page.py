"""One self-contained HTML page, and the style that all pages share."""

from calmoe_jax.drawing.elements import Html, escaped

_CSS = """
:root { --ink: #1b1f24; --soft: #57606a; --line: #d8dee4; --back: #fff; --panel: #f6f8fa; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 75rem; padding: 1.5rem 1rem 4rem; color: var(--ink);
  background: var(--back); font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin: 0 0 .3rem; } h2 { font-size: 1.2rem; margin: 2.2rem 0 .6rem; }
p, figcaption, .soft { color: var(--soft); } p { max-width: 46rem; }
.verdicts { list-style: none; padding: 0; margin: 0; }
.verdicts li { border-left: .4rem solid var(--line); background: var(--panel);
  padding: .55rem .8rem; margin: .5rem 0; }
.verdicts .better { border-color: #009e73; } .verdicts .worse { border-color: #d55e00; }
.verdicts .mixed { border-color: #e69f00; } .verdicts .reference { border-color: #0072b2; }
.verdicts b { color: var(--ink); } .verdicts .detail { display: block; color: var(--soft);
  font-size: .9rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums;
  min-width: 100%; }
th, td { padding: .3rem .4rem; border-bottom: 1px solid var(--line); text-align: right; }
td { white-space: nowrap; } th { font-weight: 600; max-width: 8rem; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0;
  background: var(--back); }
thead th { border-bottom: 2px solid var(--line); vertical-align: bottom; }
td .std { color: var(--soft); font-size: .8rem; }
tr.marked td { background: var(--panel); }
.clear { font-weight: 700; }
figure { margin: 1rem 0; max-width: 68rem; }
img { max-width: 100%; min-width: 38rem; height: auto; }
details { margin: .6rem 0; } summary { cursor: pointer; font-weight: 600; }
.warning { border-left: .4rem solid #e69f00; padding-left: .8rem; }
code { font-size: .9em; }
"""


def whole_page(title: str, *contents: Html) -> str:
    """An HTML file that needs no other file.

    Args:
        title: title of the page, for the browser.
        *contents: the parts of the page, in order.
    """
    return (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>{escaped(title)}</title><style>{_CSS}</style></head><body>"
        + "".join(contents)
        + "</body></html>\n"
    )
