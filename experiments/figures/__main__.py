"""Writes the figures of both READMEs, and draws the pictures whose results have changed."""

import argparse
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from calmoe_jax._files import write_whole
from experiments.figures import pictures
from experiments.figures.rows import COMMITS, PASSAGES, PASSAGES_OF_TABLE, ROWS
from experiments.figures.words import ROOT

TABLE, MAIN = ROOT / "experiments" / "README.md", ROOT / "README.md"
COLUMNS = 5  # claim, command, number, commit, minutes
_KEY = re.compile(r"<!-- ([\w-]+) --> *$")
_BORDER = re.compile(r"(?<!\\)\|")
_PASSAGE = re.compile(r"^<!-- (?!end )([\w-]+) -->\n(.*?)^<!-- end -->$", re.MULTILINE | re.DOTALL)
Makers = Mapping[str, Callable[[], str]]


def _same_keys(found: list[str], known: Makers) -> None:
    if sorted(found) != sorted(known):
        raise ValueError(f"the text must have each key of {sorted(known)} once, got {found}.")


def with_rows(text: str, rows: Makers = ROWS, commits: Makers = COMMITS) -> str:
    """The text with the numbers and commits of its rows that have a key.

    Args:
        text: with a table of `COLUMNS` columns.
        rows: what makes a number, by key.
        commits: what makes a commit, for some of these keys.

    Returns:
        The text; rows without a key are left as they are.

    Raises:
        ValueError: if a key is unknown, missing or there twice, a row has not five columns, or a
            cell would be more than one.
    """
    lines, seen = text.split("\n"), []
    for i, line in enumerate(lines):
        cells = _BORDER.split(line)
        key = _KEY.search(cells[1]) if line.startswith("|") else None
        if key is None:
            continue
        seen.append(key[1])
        if len(cells) != COLUMNS + 2:
            raise ValueError(f"row {key[1]} must have {COLUMNS} cells, got {len(cells) - 2}.")
        if key[1] not in rows:
            continue  # named below
        for place, make in ((3, rows[key[1]]), (4, commits.get(key[1]))):
            if make is not None:
                cells[place] = f" {make()} "
                if _BORDER.search(cells[place]) or "\n" in cells[place]:
                    raise ValueError(f"a cell must be one line without |, got {cells[place]!r}.")
        lines[i] = "|".join(cells)
    _same_keys(seen, rows)
    return "\n".join(lines)


def with_passages(text: str, passages: Makers = PASSAGES) -> str:
    """The text with its passages.

    Args:
        text: with each passage between its key and the end, on lines of their own.
        passages: what makes the lines between, by key.

    Raises:
        ValueError: if a key is unknown, missing or there twice.
    """
    _same_keys([key for key, _ in _PASSAGE.findall(text)], passages)
    return _PASSAGE.sub(lambda x: f"<!-- {x[1]} -->\n{passages[x[1]]()}\n<!-- end -->", text)


def written() -> dict[Path, str]:
    """Both READMEs as the results would have them."""
    table = with_passages(with_rows(TABLE.read_text()), PASSAGES_OF_TABLE)
    return {TABLE: table, MAIN: with_passages(MAIN.read_text())}


def draw() -> list[str]:
    """Draws the pictures that are not of their results, and returns their paths."""
    stamps = pictures.kept()
    changed = pictures.stale(stamps)
    for path in changed:
        picture = pictures.PICTURES[path]
        content = picture.draw()
        write_whole(ROOT / path, content)
        stamps[path] = pictures.stamp(picture.source(), content)
    if changed:
        ordered = {path: stamps[path] for path in pictures.PICTURES}
        write_whole(pictures.STAMPS, json.dumps(ordered, indent=1) + "\n")
    return changed


def main() -> None:
    """Writes both files and the pictures, and says which have changed."""
    argparse.ArgumentParser(prog="python -m experiments.figures", description=__doc__).parse_args()
    for path, text in written().items():
        changed = text != path.read_text()
        if changed:
            write_whole(path, text)
        print(f"{path.relative_to(ROOT)}: {'written' if changed else 'as it was'}")
    for drawn in draw():
        print(f"{drawn}: drawn")


if __name__ == "__main__":
    main()
