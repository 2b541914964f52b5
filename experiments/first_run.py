"""What `calmoe run` shows at first, kept: both tasks' results, and the picture of the main README.

`python -m experiments.first_run [--runs DIR] [--out DIR]`

Runs the command as a new user would, or goes on where it stopped; all of its data is in the
package. `python -m experiments.figures` writes what the main README shows of it from these files.
"""

import argparse
import gzip
import json
from pathlib import Path

from calmoe_jax import cli
from calmoe_jax._files import write_whole
from calmoe_jax._run_command import FIRST_TASKS
from experiments.trained import write_json

FOLDER = Path(__file__).parent / "first_results"
PICTURE = "reliability.png"


def keep(runs: Path, out: Path) -> None:
    """Keeps the results of both runs, compressed, and the diagram of the first.

    Args:
        runs: folder of both runs' folders.
        out: where to write.
    """
    found = {name: json.loads((runs / name / "results.json").read_text()) for name in FIRST_TASKS}
    picture = (runs / next(iter(FIRST_TASKS)) / "plots" / PICTURE).read_bytes()
    for name, content in found.items():
        write_json(out / f"{name}.json.gz", content)
    write_whole(out / PICTURE, picture)


def unpack(name: str, folder: Path, kept: Path = FOLDER) -> None:
    """Writes a kept `results.json` to a folder, as `calmoe report` reads it.

    Args:
        name: of the task.
        folder: where to write; it must be there.
        kept: folder of what was kept.
    """
    write_whole(folder / "results.json", gzip.decompress((kept / f"{name}.json.gz").read_bytes()))


def main() -> None:
    """Runs, and keeps."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the runs")
    parser.add_argument("--out", type=Path, default=FOLDER, help="where to keep the results")
    arguments = parser.parse_args()
    if code := cli.main(["run", "--out", str(arguments.runs)]):
        raise SystemExit(code)
    keep(arguments.runs, arguments.out)


if __name__ == "__main__":
    main()
