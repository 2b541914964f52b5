"""Logs of a deployed mixture of experts: read, check, select examples.

Logs hold the predictions of the router and the experts for each example, and its label where it is
known. Examples whose label is known are the held-out ones; the others (or those marked as targets)
are what the model meets now.
"""

import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from calmoe_jax import calibration
from calmoe_jax._errors import UserError

_COLUMNS = ("routing_weights", "expert_probs", "labels", "targets", "clusters")


class LogError(UserError):
    """A file of logs cannot be used; the message says why."""


class Logs(NamedTuple):
    """Logs of a mixture of experts.

    Attributes:
        routing_weights: weight of each expert, `[n, experts]`; rows sum to one.
        expert_probs: each expert's class probabilities, `[n, experts, classes]`.
        labels: class of each example, -1 if unknown.
        targets: which examples come from deployment; those without label by default.
        clusters: cluster of each example; examples of one cluster are dependent. By default each
            example is its own cluster.
    """

    routing_weights: np.ndarray
    expert_probs: np.ndarray
    labels: np.ndarray
    targets: np.ndarray
    clusters: np.ndarray


def read_logs(path: Path) -> Logs:
    """Reads and checks a file of logs.

    Args:
        path: an npz file with arrays, or a parquet file (which needs pyarrow) with columns, of the
            names of `Logs`; `targets` and `clusters` may be missing. In a parquet file a row holds
            a list of weights, and a list of lists of probabilities; a missing label is null.

    Raises:
        LogError: if the file cannot be read, lacks an array, or holds invalid values.
    """
    try:
        columns = _read_parquet(path) if path.suffix == ".parquet" else _read_npz(path)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise LogError(f"{path} cannot be read: {error}.") from error
    for name in _COLUMNS[:3]:
        if name not in columns:
            raise LogError(f"{path} lacks {name}; it has {', '.join(columns) or 'nothing'}.")
    try:
        return _check(columns)
    except (ValueError, TypeError) as error:
        raise LogError(f"{path}: {error}") from error


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    if not zipfile.is_zipfile(path):
        path.open("rb").close()  # a missing or unreadable file fails here
        raise ValueError("it is not a complete npz file")
    with np.load(path, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in _COLUMNS if name in arrays.files}


def _read_parquet(path: Path) -> dict[str, np.ndarray]:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise LogError(
            f"{path} needs pyarrow (pip install pyarrow), or give an npz file."
        ) from error
    table = parquet.read_table(path)
    columns = {}
    for name in _COLUMNS:
        if name in table.column_names:
            values = table.column(name).to_pylist()
            if name == "labels":
                # pandas writes whole numbers with gaps as floats
                values = [-1 if value is None or value != value else value for value in values]
                whole = [isinstance(value, float) and value.is_integer() for value in values]
                values = [int(v) if w else v for v, w in zip(values, whole, strict=True)]
            columns[name] = np.array(values)
    return columns


def _check(columns: dict[str, np.ndarray]) -> Logs:
    weights, probs, labels = (columns[name] for name in _COLUMNS[:3])
    if probs.ndim != 3 or 0 in probs.shape:
        raise ValueError(
            f"expert_probs must be [examples, experts, classes], got shape {probs.shape}."
        )
    for name, size in (("routing_weights", probs.shape[:2]), ("labels", probs.shape[:1])):
        if columns[name].shape != size:
            raise ValueError(f"{name} must be of shape {size}, got {columns[name].shape}.")
    if not np.issubdtype(labels.dtype, np.integer):
        raise TypeError(f"labels must be whole numbers, -1 where unknown, got {labels.dtype}.")
    calibration.check_predictions(probs.reshape(-1, probs.shape[2]))
    if probs.shape[1] > 1:
        calibration.check_predictions(weights)
    elif not np.allclose(weights, 1):
        raise ValueError("routing_weights must be 1 if there is one expert.")
    low, high = int(labels.min()), int(labels.max())
    if low < -1 or high >= probs.shape[2]:
        raise ValueError(f"labels must be in [-1, {probs.shape[2] - 1}], got {low} to {high}.")
    known = labels >= 0
    targets = columns.get("targets", ~known)
    clusters = columns.get("clusters", np.arange(len(labels)))
    for name, values in (("targets", targets), ("clusters", clusters)):
        if values.shape != labels.shape:
            raise ValueError(f"{name} must be of shape {labels.shape}, got {values.shape}.")
    if targets.dtype != np.bool_:
        raise TypeError(f"targets must be true or false, got {targets.dtype}.")
    if not (known & ~targets).any():
        raise ValueError("labels must be known for at least one non-target example, got none.")
    if (~known & ~targets).any():
        raise ValueError("labels must be known for every non-target example, got -1 among them.")
    if clusters.dtype.kind not in "iuSU":
        raise TypeError(f"clusters must be whole numbers or names, got {clusters.dtype}.")
    numbers = np.unique(clusters, return_inverse=True)[1]
    return Logs(weights, probs, labels, targets, numbers)


def take(logs: Logs, rows: np.ndarray) -> Logs:
    """Selects examples.

    Args:
        logs: checked logs.
        rows: a mask, or positions.
    """
    return Logs(*(values[rows] for values in logs))


def log_arrays(logs: Logs) -> tuple[jax.Array, jax.Array]:
    """The experts' log probabilities and the routing weights, on the device."""
    with np.errstate(divide="ignore"):
        log_probs = np.log(logs.expert_probs.astype(np.float32))
    return jnp.asarray(log_probs), jnp.asarray(logs.routing_weights, jnp.float32)
