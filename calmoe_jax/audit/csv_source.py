"""CSV files of logs: columns of numbers, and columns of text, in one pass."""

import csv
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import numpy as np

_ROWS = 2**14
_DELIMITERS = ",;\t"


class CsvFile:
    """A CSV file with a line of names; the delimiter is a comma, a semicolon or a tab."""

    def __init__(self, path: Path) -> None:
        """Reads the names.

        Args:
            path: the file, in UTF-8.

        Raises:
            OSError, ValueError: if it cannot be read, or has no line of names.
        """
        self._path = path
        with self._open() as file:
            header = file.readline()
        if not header.strip():
            raise ValueError("it has no line of names")
        self._delimiter = max(_DELIMITERS, key=header.count)
        self.names = [name.strip() for name in self._cells(header)]
        twice = [name for name in self.names if self.names.count(name) > 1]
        if twice:
            raise ValueError(f"it has two columns {twice[0]}")

    def read(self, numbers: list[str], texts: list[str]) -> Iterator[tuple[str, np.ndarray]]:
        """Reads columns, in the order given, the numbers first.

        An empty cell is NaN, or the text `nan`.

        Args:
            numbers: names of columns of numbers, read as float32.
            texts: names of columns of text.

        Raises:
            ValueError: for a row of another number of cells, and what is no number.
        """
        wanted = [*numbers, *texts]
        kinds = [np.dtype(np.float32)] * len(numbers) + [np.dtype(object)] * len(texts)
        row = np.dtype([(f"column {i}", kind) for i, kind in enumerate(kinds)])
        blocks = list(self._blocks(row, [self.names.index(name) for name in wanted]))
        for i, name in enumerate(wanted):
            field = f"column {i}"
            parts = [block[field] for block in blocks]
            values = np.concatenate(parts) if parts else np.empty(0, kinds[i])
            yield name, values if i < len(numbers) else values.astype(str)

    def _blocks(self, row: np.dtype, places: list[int]) -> Iterator[np.ndarray]:
        with self._open() as file:
            file.readline()
            lines, done = self._lines(file), 0
            while True:
                try:
                    with warnings.catch_warnings():
                        warnings.simplefilter("ignore")  # no lines are left
                        block = np.loadtxt(
                            lines, row, delimiter=self._delimiter, usecols=places, comments=None,
                            max_rows=_ROWS, quotechar='"', ndmin=1,
                        )  # fmt: skip
                except ValueError as error:
                    raise ValueError(self._words(str(error), done)) from error
                if not len(block):
                    return
                done += len(block)
                yield block

    def _lines(self, file: TextIO) -> Iterator[str]:
        """Lines with as many cells as there are names, and `nan` in the empty ones."""
        mark = self._delimiter
        both = mark + mark
        for number, line in enumerate(file, start=2):
            line = line.rstrip("\r\n")
            if not line.strip():
                continue
            quoted = '"' in line
            cells = len(self._cells(line)) if quoted else line.count(mark) + 1
            if cells != len(self.names):
                raise ValueError(f"line {number} has {cells} cells, not {len(self.names)}")
            if quoted and both in line:
                yield mark.join(f'"{cell}"' if cell else "nan" for cell in self._cells(line))
                continue
            while both in line:
                line = line.replace(both, f"{mark}nan{mark}")
            line = f"nan{line}" if line.startswith(mark) else line
            yield f"{line}nan" if line.endswith(mark) else line

    def _words(self, error: str, done: int) -> str:
        """What `loadtxt` says of a cell, with the name of its column and the example's number."""
        found = re.search(r"could not convert string (.*) to \S+ at row (\d+), column (\d+)", error)
        if found is None:
            return error
        name, row = self.names[int(found[3]) - 1], done + int(found[2])
        return f"{name} must be a number, got {found[1]} at example {row}"

    def _cells(self, line: str) -> list[str]:
        return next(csv.reader([line], delimiter=self._delimiter))

    def _open(self) -> TextIO:
        return self._path.open(encoding="utf-8-sig", newline="")
