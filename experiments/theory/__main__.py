"""Computes what `experiments.theory` shows, writes `results.json`, and draws a picture a letter."""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
from matplotlib.figure import Figure
from tqdm import tqdm

from calmoe_jax._environment import describe_environment
from calmoe_jax._files import to_json, write_whole
from calmoe_jax.drawing.style import STYLE, png
from experiments.theory import (
    demonstration,
    disagreement,
    hard_routing,
    impropriety,
    soft_routing,
    worst_shift,
)

SCHEMA = 1
RESULTS = "results.json"


class Part(NamedTuple):
    """A claim's numbers and their picture."""

    compute: Callable[[], dict[str, Any]]
    draw: Callable[[dict[str, Any]], Figure]


PARTS = {
    letter: Part(module.compute, module.draw)
    for letter, module in (
        ("a", hard_routing), ("b", soft_routing), ("c", disagreement), ("d", worst_shift),
        ("e", impropriety), ("f", demonstration),
    )
}  # fmt: skip


def read(folder: Path) -> dict[str, Any]:
    """The results in a folder, by letter; none if there is no file.

    Args:
        folder: where `results.json` may be.

    Raises:
        ValueError: if the file has another schema.
    """
    path = folder / RESULTS
    if not path.is_file():
        return {}
    content = json.loads(path.read_text())
    if content.get("schema") != SCHEMA:
        raise ValueError(f"{path} must be of schema {SCHEMA}, got {content.get('schema')}.")
    parts: dict[str, Any] = content["parts"]
    return parts


def main(words: Sequence[str] | None = None) -> None:
    """Computes the letters that are asked for; the others of the file stay as they are.

    Args:
        words: the command line, `sys.argv` by default.
    """
    parser = argparse.ArgumentParser(prog="python -m experiments.theory", description=__doc__)
    parser.add_argument("letters", nargs="*", metavar="LETTER", help="of a to f; all by default")
    folder = Path(__file__).parent
    parser.add_argument("--out", type=Path, default=folder, metavar="DIR", help="where to write")
    arguments = parser.parse_args(words)
    unknown = [x for x in arguments.letters if x not in PARTS]
    if unknown:
        parser.error(f"LETTER must be one of {', '.join(PARTS)}, got {unknown[0]}")
    letters = sorted(set(arguments.letters)) or list(PARTS)
    found = read(arguments.out)
    environment = describe_environment()
    made = {
        "python": environment["python"],
        "versions": {k: v for k, v in environment["versions"].items() if v is not None},
        "commit": environment["commit"],
    }
    pictures = {}
    with matplotlib.rc_context(STYLE):
        for letter in tqdm(letters, unit="part", disable=None):
            numbers = PARTS[letter].compute()
            found[letter] = {"made_with": made, "numbers": numbers}
            pictures[letter] = png(PARTS[letter].draw(numbers))
    # all is computed before anything is written
    text = to_json({"schema": SCHEMA, "parts": {k: found[k] for k in PARTS if k in found}})
    arguments.out.mkdir(parents=True, exist_ok=True)
    for letter, picture in pictures.items():
        write_whole(arguments.out / f"{letter}.png", picture)
    write_whole(arguments.out / RESULTS, text)
    print(f"{', '.join(letters)}: {arguments.out / RESULTS}, and a picture each")


if __name__ == "__main__":
    main()
