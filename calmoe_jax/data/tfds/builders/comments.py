"""Comments on news with their toxicity: WILDS's table, and the release with identities."""

import csv
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.text import civil_comments

from calmoe_jax.data.errors import CorruptDataError
from calmoe_jax.data.sets.archives import Tree, named, tar_members, text_lines
from calmoe_jax.data.tfds.builders.domains import manual_download

IDENTITIES = (
    "male", "female", "LGBTQ", "christian", "muslim", "other_religions", "black", "white",
)  # fmt: skip
_TABLE = "all_data_with_identities.csv"
_SPLITS = {"train": "train", "val": "validation", "test": "test"}
_ARTICLE = "article_id"
_NUMBERS = ("toxicity", "identity_any", *IDENTITIES)
_ARCHIVE = "civil_comments_v1.2.zip"

csv.field_size_limit(2**24)


class WildsCivilComments(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """CivilComments as WILDS splits it (Koh et al. 2021); splits train, validation, test.

    Reads `all_data_with_identities.csv`, alone, in a folder or in WILDS's archive. `toxicity` and
    the identities are the shares of raters who saw them; `article_id` is what was commented on.
    """

    name = "wilds_civil_comments"
    VERSION = tfds.core.Version("1.1.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = f"civilcomments_v1.0.tar.gz, or {_TABLE}."

    def _info(self) -> Any:
        features = {
            "text": tfds.features.Text(),
            "article_id": tfds.features.Scalar(dtype=np.int64),
            "toxicity": tfds.features.Scalar(dtype=np.float32),
            "identity_any": tfds.features.Scalar(dtype=np.float32),
            "identities": tfds.features.Tensor(shape=(len(IDENTITIES),), dtype=np.float32),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(features),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        path = manual_download(self.name, Path(dl_manager.manual_dir))
        return {ours: self._generate_examples(path, name) for name, ours in _SPLITS.items()}

    def _generate_examples(self, path: Path, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        count = 0
        for where, row in _rows(path):
            if row["split"] not in _SPLITS:
                raise CorruptDataError(
                    f"{where}: split must be one of {', '.join(_SPLITS)}, got {row['split']!r}."
                )
            if row["split"] != split:
                continue
            if not row["comment_text"]:
                raise CorruptDataError(f"{where}: comment_text must not be empty.")
            shares = {name: _share(where, name, row[name]) for name in _NUMBERS}
            identities = np.array([shares[name] for name in IDENTITIES], np.float32)
            yield (
                count,
                {
                    "text": row["comment_text"],
                    "article_id": _number(where, _ARTICLE, row[_ARTICLE]),
                    "toxicity": shares["toxicity"],
                    "identity_any": shares["identity_any"],
                    "identities": identities,
                },
            )
            count += 1
        if not count:
            raise CorruptDataError(
                f"{path}: {_TABLE} must have comments of split {split}, got none."
            )


class CivilComments(civil_comments.CivilComments, skip_registration=True):
    """The release of tensorflow-datasets; reads `civil_comments_v1.2.zip`."""

    name = "civil_comments"
    MANUAL_DOWNLOAD_INSTRUCTIONS = _ARCHIVE

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        path = Path(dl_manager.manual_dir) / _ARCHIVE
        splits = {"train": "train", "validation": "test_public", "test": "test_private"}
        return {ours: self._generate_examples(path, split) for ours, split in splits.items()}

    def _generate_examples(self, path: Path, split: str) -> Iterator[tuple[str, dict[str, Any]]]:
        tree = Tree(path)
        if "civil_comments.csv" not in tree.names:
            raise CorruptDataError(f"{path} lacks the file civil_comments.csv.")
        with named(path), tree.open("civil_comments.csv") as raw:
            for row in csv.DictReader(text_lines(raw)):
                if row["split"] == split:
                    mode = self.builder_config.mode
                    example = civil_comments._parse_row_as_example(row, mode)
                    if example:
                        yield row["id"], example
        tree.close()


def _rows(path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Rows of the table, with the line that each ends on; its columns are checked."""
    with _table(path) as raw, named(path):
        reader = csv.DictReader(text_lines(raw))
        try:
            lacking = sorted(
                {"comment_text", "split", _ARTICLE, *_NUMBERS} - set(reader.fieldnames or ())
            )
            if lacking:
                raise CorruptDataError(f"{path}: {_TABLE} lacks the column {', '.join(lacking)}.")
            for row in reader:
                where = f"{path}: {_TABLE}, line {reader.line_num}"
                if None in row.values() or None in row:
                    raise CorruptDataError(f"{where}: a row must have a value for each column.")
                yield where, row
        except (csv.Error, UnicodeDecodeError) as error:
            raise CorruptDataError(f"{path}: {_TABLE} cannot be read: {error}.") from error


@contextmanager
def _table(path: Path) -> Iterator[io.BufferedIOBase]:
    """The table, which is the file itself, in a folder, or in a tar archive."""
    if path.is_dir():
        path = path / _TABLE
        if not path.is_file():
            raise CorruptDataError(f"{path.parent} lacks the file {_TABLE}.")
    if path.name == _TABLE:
        with path.open("rb") as file:
            yield file
        return
    for name, member in tar_members(path):
        if name.rsplit("/", 1)[-1] == _TABLE:
            yield member
            return
    raise CorruptDataError(f"{path} lacks the file {_TABLE}.")


def _share(where: str, name: str, value: str) -> float:
    try:
        share = float(value)
    except ValueError:
        share = float("nan")
    if not 0 <= share <= 1:
        raise CorruptDataError(f"{where}: {name} must be a share in [0, 1], got {value!r}.")
    return share


def _number(where: str, name: str, value: str) -> int:
    try:
        number = float(value)  # a table of floats is as good
    except ValueError:
        number = float("nan")
    if not (number.is_integer() and 0 <= number < 2**31):
        raise CorruptDataError(f"{where}: {name} must be a whole number, got {value!r}.")
    return int(number)
