"""Measurements of kernels on a kind of device, on which `implementation=None` relies.

There is a JSON file for each kind of device, `SLUG.json` for `slug(device_kind)`, written by
`python -m benchmarks.gpu_check` and committed in `benchmarks/results`, whose README has the schema.
A wheel holds that folder as `calmoe_kernels/measured`.

A kernel wins a size class of an operation if every measurement of it there was correct and took
less time than XLA's form. A class without measurements is not won, even between two that are.
"""

import functools
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax

SCHEMA = 1


class Measurement(NamedTuple):
    """A kernel and XLA's form of its operation, on the same operands.

    Attributes:
        operation: a name of `selection.OPERATIONS`.
        implementation: implementation of the kernel.
        problem: description of the operands.
        size_class: size class of the operands, see `size_class`.
        correct: whether the results agree, within the tolerances of `kernels/README.md`.
        kernel_seconds: median time of a call of the kernel.
        xla_seconds: median time of a call of XLA's form.
    """

    operation: str
    implementation: str
    problem: str
    size_class: int
    correct: bool
    kernel_seconds: float
    xla_seconds: float

    @property
    def ratio(self) -> float:
        """The kernel's time over that of XLA's form; below 1 the kernel is faster."""
        return self.kernel_seconds / self.xla_seconds


class Measured(NamedTuple):
    """The measurements of a kind of device.

    Attributes:
        path: path of the file.
        entries: the measurements; none if there is a problem.
        problem: why there are none; empty if the file was read.
    """

    path: Path
    entries: tuple[Measurement, ...]
    problem: str


def size_class(*operands: Any) -> int:
    """The class of a call by the bytes of all its operands: `floor(log2 bytes)`, rounded to even.

    Class `c` holds the sizes from `2^c` (inclusive) to `2^(c + 2)` (exclusive) bytes.

    Args:
        *operands: pytrees of arrays.

    Returns:
        The class, at least 0; -1 for sizes that an export leaves open.

    Example:
        >>> size_class(jnp.zeros((1024, 4))), size_class(jnp.zeros((4096, 4))), size_class(None)
        (14, 16, 0)
    """
    kinds: list[Any] = [jax.typeof(leaf) for leaf in jax.tree.leaves(operands)]
    total = sum(kind.size * kind.dtype.itemsize for kind in kinds)
    return max(total.bit_length() - 1, 0) // 2 * 2 if isinstance(total, int) else -1


def slug(device_kind: str) -> str:
    """The name of a file from JAX's name of a kind of device.

    Example:
        >>> slug("NVIDIA H100 80GB HBM3")
        'nvidia_h100_80gb_hbm3'
    """
    return re.sub(r"[^a-z0-9]+", "_", device_kind.lower()).strip("_")


def folder() -> Path:
    """The folder of the files: in the installed package, or in the imported checkout."""
    here = Path(__file__).parent
    installed = here / "measured"
    return installed if installed.is_dir() else here.parents[1] / "benchmarks" / "results"


@functools.cache
def read(folder: Path, device_kind: str) -> Measured:
    """The measurements of a kind of device.

    Args:
        folder: the folder of the files.
        device_kind: JAX's name of the device.

    Returns:
        A `Measured`. If the file is missing, invalid or of another device there are no entries, and
        `problem` is the reason.
    """
    path = folder / f"{slug(device_kind)}.json"
    try:
        return Measured(path, parse(path.read_text(), device_kind), "")
    except FileNotFoundError:
        return Measured(path, (), f"there is no file {path.name} of this kind of device")
    except (OSError, ValueError) as error:
        return Measured(path, (), f"{path.name} is ignored: {error}")


def parse(text: str, device_kind: str) -> tuple[Measurement, ...]:
    """The entries of a file.

    Args:
        text: content of the file.
        device_kind: expected kind of device.

    Returns:
        Its entries.

    Raises:
        ValueError: if it is not JSON, of another schema or device, or an entry is invalid.
    """
    content = json.loads(text)
    if not isinstance(content, Mapping) or content.get("schema") != SCHEMA:
        raise ValueError(f"its schema must be {SCHEMA}")
    if content.get("device_kind") != device_kind:
        raise ValueError(f"it is of {content.get('device_kind')!r}, not of {device_kind!r}")
    entries = content.get("entries")
    if not isinstance(entries, list):
        raise ValueError("its entries must be a list")
    return tuple(_entry(number, entry) for number, entry in enumerate(entries))


def _entry(number: int, entry: Any) -> Measurement:
    if not isinstance(entry, Mapping) or not set(Measurement._fields) <= set(entry):
        raise ValueError(f"entry {number} must have the fields {', '.join(Measurement._fields)}")
    found = Measurement(**{name: entry[name] for name in Measurement._fields})
    names = found.operation, found.implementation, found.problem
    if not all(isinstance(name, str) for name in names) or type(found.correct) is not bool:
        raise ValueError(f"entry {number} must have names as strings, and correct true or false")
    if type(found.size_class) is not int or found.size_class < 0 or found.size_class % 2:
        raise ValueError(f"entry {number} must have an even size_class, got {found.size_class!r}")
    for seconds in (found.kernel_seconds, found.xla_seconds):
        if type(seconds) not in (int, float) or not (math.isfinite(seconds) and seconds > 0):
            raise ValueError(f"entry {number} must have positive, finite seconds, got {seconds!r}")
    return found


def won(
    entries: tuple[Measurement, ...], *, operation: str, implementation: str
) -> tuple[int, ...]:
    """The size classes of an operation in which a kernel was always correct and faster.

    Args:
        entries: measurements.
        operation: name of the operation.
        implementation: implementation of the kernel.

    Returns:
        Classes in order.
    """
    verdicts: dict[int, bool] = {}
    for entry in entries:
        if (entry.operation, entry.implementation) == (operation, implementation):
            holds = entry.correct and entry.ratio < 1
            verdicts[entry.size_class] = verdicts.get(entry.size_class, True) and holds
    return tuple(sorted(size for size, holds in verdicts.items() if holds))
