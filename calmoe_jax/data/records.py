"""Examples in files that need not fit in memory, read by random access (the `data` extra).

A folder holds shards in the format array_record, which have a record of fixed length for each
example, and `records.json`, which says what they hold.
"""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from jaxtyping import PyTree
from tqdm import tqdm

from calmoe_jax._checks import check_at_least
from calmoe_jax._files import to_json, write_whole
from calmoe_jax.data._schema import Form, form_from_json, form_of
from calmoe_jax.data.errors import CorruptDataError, DataError, MissingDataError

SCHEMA = 1
_INDEX = "records.json"
_FOLDER_MODE = 0o755


def write_records(
    folder: Path | str,
    examples: Iterable[dict[str, Any]],
    *,
    classes: tuple[str, ...],
    shards: int = 1,
    total: int | None = None,
    quiet: bool = False,
) -> None:
    """Writes examples to a new folder, which appears whole or not at all.

    Example `i` is record `i // shards` of shard `i % shards`: examples are read under the numbers
    in which they came. At no time is more than one in memory.

    Args:
        folder: the folder; there must be none yet.
        examples: dicts of `inputs` (a NumPy array, or dicts, lists and tuples of such: bools,
            integers and floats of the same shapes and dtypes in every example) and `label` (an
            integer in `[0, len(classes))`).
        classes: names of the classes, at least 2.
        shards: number of files, at least 1 and at most the number of examples.
        total: number of examples, for the progress bar; it need not be known.
        quiet: whether to show no progress bar.

    Raises:
        ValueError: for `shards` below 1.
        DataError: if the folder exists, there are fewer examples than shards, or an example is not
            of this kind; the message has its number. What `examples` raises goes through.
        MissingDataError: if array_record is not installed.

    Example:
        >>> from calmoe_jax.data.records import open_records, write_records
        >>> examples = ({"inputs": np.full(2, i, np.uint8), "label": i % 2} for i in range(5))
        >>> write_records("five", examples, classes=("even", "odd"), shards=2, quiet=True)
        >>> open_records("five")[3]
        {'inputs': array([3, 3], dtype=uint8), 'label': 1}
    """
    folder = Path(folder)
    check_at_least("shards", shards, 1)
    if len(classes) < 2:
        raise DataError(f"classes must name at least 2 classes, got {len(classes)}.")
    if folder.exists():
        raise DataError(f"folder must not exist yet, got {folder}.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        # without a terminal there is no bar
        hidden = True if quiet else None
        with tqdm(examples, total=total, unit="example", disable=hidden, leave=False) as bar:
            form, count = _write_shards(made, bar, len(classes), shards)
        index = {
            "schema": SCHEMA,
            "classes": list(classes),
            "examples": count,
            "inputs": form.to_json(),
            "shards": [_described(path) for path in _shard_paths(made, shards)],
        }
        write_whole(made / _INDEX, to_json(index))
        os.chmod(made, _FOLDER_MODE)
        os.rename(made, folder)
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise


class Records:
    """The examples of a folder, by number; made by `open_records`.

    Attributes:
        classes: names of the classes.
        input_spec: a `jax.ShapeDtypeStruct` for each array of an example's inputs.
    """

    def __init__(
        self, folder: Path, classes: tuple[str, ...], form: Form, paths: list[Path]
    ) -> None:
        """Opens the shards."""
        self.classes, self._folder, self._form = classes, folder, form
        try:
            self._source = _array_record("array_record_data_source").ArrayRecordDataSource(
                [str(path) for path in paths]
            )
        except RuntimeError as error:
            raise CorruptDataError(f"{folder}: a shard cannot be read: {error}.") from error
        count = len(self._source)
        sizes = [len(range(i, count, len(paths))) for i in range(len(paths))]
        self._starts = [sum(sizes[:i]) for i in range(len(paths))]

    @property
    def input_spec(self) -> PyTree:
        """Shapes and dtypes of an example's inputs."""
        return self._form.spec

    def __len__(self) -> int:
        """Number of examples."""
        return len(self._source)

    def __getitem__(self, number: int) -> dict[str, Any]:
        """An example: `{"inputs": ..., "label": ...}`, bit for bit what was written."""
        return self.__getitems__([number])[0]

    def __getitems__(self, numbers: Sequence[int]) -> list[dict[str, Any]]:
        """Several examples, read at once.

        Raises:
            IndexError: for a number outside `[0, len(self))`.
            CorruptDataError: for a record that cannot be read.
        """
        for number in numbers:
            if not 0 <= number < len(self):
                raise IndexError(f"number must be in [0, {len(self)}), got {number}.")
        shards = len(self._starts)
        keys = [self._starts[n % shards] + n // shards for n in map(int, numbers)]
        try:
            records = self._source.__getitems__(keys)
        except RuntimeError as error:
            raise CorruptDataError(
                f"{self._folder}: records cannot be read ({error}); open_records(..., verify=True) "
                f"finds the shard."
            ) from error
        for number, record in zip(numbers, records, strict=True):
            if len(record) != self._form.size:
                raise CorruptDataError(
                    f"{self._folder}: record {number} must have {self._form.size} bytes, got "
                    f"{len(record)}."
                )
        return [self._form.decode(record) for record in records]


def open_records(folder: Path | str, *, verify: bool = False) -> Records:
    """Opens what `write_records` wrote.

    Args:
        folder: the folder.
        verify: whether to read all files and compare their checksums; sizes always are.

    Returns:
        A source of random access: `len(source)`, and `source[i]`, which is
        `{"inputs": tree of read-only arrays, "label": int}`.

    Raises:
        MissingDataError: if the folder, its `records.json` or a shard is missing, or array_record
            is not installed.
        CorruptDataError: if a file is not what was written, or of another schema.

    Example:
        >>> from calmoe_jax.data.records import open_records, write_records
        >>> examples = [{"inputs": np.zeros(3, np.float32), "label": 0}] * 2
        >>> write_records("two", examples, classes=("a", "b"), quiet=True)
        >>> source = open_records("two", verify=True)
        >>> len(source), source.classes, source.input_spec
        (2, ('a', 'b'), ShapeDtypeStruct(shape=(3,), dtype=float32))
    """
    folder = Path(folder)
    path = folder / _INDEX
    if not path.is_file():
        raise MissingDataError(f"there is no file {path}: {folder} is no folder of records.")
    try:
        index = json.loads(path.read_text())
        schema = index["schema"]
    except (ValueError, TypeError, KeyError) as error:
        raise CorruptDataError(f"{path} is not a complete index of records: {error!r}.") from error
    if schema != SCHEMA:
        raise CorruptDataError(f"{path}: schema must be {SCHEMA}, got {schema!r:.40}.")
    try:
        shards = [(str(s["name"]), int(s["bytes"]), str(s["sha256"])) for s in index["shards"]]
        classes, count, inputs = tuple(index["classes"]), int(index["examples"]), index["inputs"]
    except (ValueError, TypeError, KeyError) as error:
        raise CorruptDataError(f"{path} is not a complete index of records: {error!r}.") from error
    for name, size, digest in shards:
        _check_shard(folder / name, size, digest if verify else None)
    form = form_from_json(inputs, f"{path}: inputs")
    source = Records(folder, classes, form, [folder / name for name, *_ in shards])
    if len(source) != count:
        raise CorruptDataError(f"{folder}: shards must hold {count} examples, got {len(source)}.")
    return source


def _write_shards(folder: Path, examples: Any, classes: int, shards: int) -> tuple[Form, int]:
    """Writes all examples; their form and number."""
    module = _array_record("array_record_module")
    form, count = None, 0
    with contextlib.ExitStack() as stack:
        writers = []
        for path in _shard_paths(folder, shards):
            writers.append(module.ArrayRecordWriter(str(path), "group_size:1"))
            stack.callback(writers[-1].close)
        for example in examples:
            inputs, label = _parts(example, classes, count)
            found = form_of(inputs, f"example {count}: inputs")
            form = form or found
            if found != form:
                raise DataError(
                    f"example {count}: inputs must have the shapes and dtypes of example 0, "
                    f"{form.to_json()}, got {found.to_json()}."
                )
            writers[count % shards].write(form.encode(inputs, label))
            count += 1
    if form is None or count < shards:
        raise DataError(f"examples must be at least shards={shards}, got {count}.")
    return form, count


def _parts(example: Any, classes: int, number: int) -> tuple[PyTree, int]:
    where = f"example {number}"
    if not isinstance(example, dict) or example.keys() != {"inputs", "label"}:
        raise DataError(f"{where} must be a dict of inputs and label, got {example!r:.60}.")
    try:
        label = example["label"].__index__()
    except (AttributeError, TypeError):
        label = -1
    if not 0 <= label < classes:
        raise DataError(
            f"{where}: label must be an integer in [0, {classes}), got {example['label']!r}."
        )
    return example["inputs"], label


def _shard_paths(folder: Path, shards: int) -> list[Path]:
    return [folder / f"{i:05d}-of-{shards:05d}.array_record" for i in range(shards)]


def _described(path: Path) -> dict[str, Any]:
    with path.open("rb+") as file:
        os.fsync(file.fileno())
    return {"name": path.name, "bytes": path.stat().st_size, "sha256": _digest(path)}


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_shard(path: Path, size: int, digest: str | None) -> None:
    if not path.is_file():
        raise MissingDataError(f"the shard {path} is missing.")
    if path.stat().st_size != size:
        raise CorruptDataError(
            f"the shard {path} is not complete: it must have {size} bytes, got "
            f"{path.stat().st_size}."
        )
    if digest is not None and _digest(path) != digest:
        raise CorruptDataError(f"the shard {path} has another checksum than when it was written.")


def _array_record(name: str) -> Any:
    """A module of array_record."""
    try:
        return __import__(f"array_record.python.{name}", fromlist=[name])
    except ModuleNotFoundError as error:
        raise MissingDataError(
            "the package array_record is needed for records: pip install 'calmoe_jax[data]'."
        ) from error
