"""`metrics.jsonl`: a line for every seed and epoch; survives interruption."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from calmoe_jax._files import to_json, write_whole


class MetricsLog:
    """A file of JSON lines, appended to while training and cut back when it resumes."""

    def __init__(self, path: Path) -> None:
        """Opens the log at a path; the first line creates the file."""
        self.path = path

    def read(self) -> list[dict[str, Any]]:
        """All complete lines; a last line cut off by a crash is left out."""
        if not self.path.is_file():
            return []
        lines = self.path.read_text().splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def write(self, lines: list[dict[str, Any]]) -> None:
        """Appends lines in one write."""
        with self.path.open("a") as file:
            file.write("".join(to_json(line, indent=None) for line in lines))
            file.flush()
            os.fsync(file.fileno())  # a checkpoint must not exist without its lines

    def forget_after(self, method: str, epochs: int, *, seed: int | None = None) -> None:
        """Drops the lines of a method, or of one seed of it, after the epoch to resume from."""
        kept = [
            line
            for line in self.read()
            if line["method"] != method
            or line["epoch"] <= epochs
            or seed not in (None, line["seed"])
        ]
        if self.path.is_file():
            write_whole(self.path, "".join(to_json(line, indent=None) for line in kept))

    def last_importance(self, method: str, seeds: tuple[int, ...]) -> np.ndarray:
        """The experts' share of the routing weights in the last epoch that each seed logged."""
        last = {
            line["seed"]: line["importance"] for line in self.read() if line["method"] == method
        }
        absent = [seed for seed in seeds if seed not in last]
        if absent:
            raise OSError(f"{self.path} lacks the lines of {method}, seed {absent[0]}.")
        return np.array([last[seed] for seed in seeds], np.float32)
