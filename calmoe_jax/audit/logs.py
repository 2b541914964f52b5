"""Logs of a deployed mixture of experts: read, check, select examples.

Logs hold the predictions of the router and the experts for each example, and its label where it is
known. Examples whose label is known are the held-out ones; the others (or those marked as targets)
are what the model meets now.
"""

from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from calmoe_jax.audit.checks import check_shapes, counted, predictions
from calmoe_jax.audit.columns import LogError as LogError
from calmoe_jax.audit.columns import read_columns


class Logs(NamedTuple):
    """Logs of a mixture of experts.

    Attributes:
        routing_weights: weight of each expert, `[n, experts]`; rows that count sum to one.
        expert_probs: each expert's class probabilities, `[n, experts, classes]`; uniform for
            experts of weight 0, which were not chosen, and for rows that do not count.
        labels: class of each example, -1 if unknown.
        targets: which examples come from deployment; those without label by default.
        clusters: cluster of each example; examples of one cluster are dependent. By default each
            example is its own cluster.
        where: which examples count; all by default.
    """

    routing_weights: np.ndarray
    expert_probs: np.ndarray
    labels: np.ndarray
    targets: np.ndarray
    clusters: np.ndarray
    where: np.ndarray | None = None


def read_logs(path: Path) -> Logs:
    """Reads and checks a file of logs.

    Where only the chosen experts were logged, the second axis holds slots, and `expert_indices`
    `[n, slots]` says whose each slot is, from 0; experts up to the largest index exist. Slots of
    weight 0 are empty. An expert that was not chosen has weight 0, and stands with the uniform
    distribution in all statistics, whether the file has its prediction or not: dense logs and the
    same as slots give the same results. What has weight 0 may hold anything, NaN included.

    Args:
        path: an npz file with arrays, or a parquet file (which needs pyarrow) with columns, of the
            names of `Logs`; `targets`, `clusters`, `where` and `expert_indices` may be missing. In
            a parquet file a row holds a list of weights, and a list of lists of probabilities; a
            missing label is null. `weights` of 0 or 1 for each example are a form of `where`; an
            example whose routing weights are all 0 does not count either.

    Raises:
        LogError: if the file cannot be read, lacks an array, or holds invalid values; the message
            names the array, and the example and the expert by their numbers from 0.
    """
    columns = read_columns(path)
    try:
        return _check(columns)
    except (ValueError, TypeError) as error:
        raise LogError(f"{path}: {error}") from error


def _check(columns: dict[str, np.ndarray]) -> Logs:
    check_shapes(columns)
    where = counted(columns)
    weights, probs = predictions(columns, where)
    labels = np.where(where, columns["labels"].astype(np.int64), -1)
    bad = (labels < -1) | (labels >= probs.shape[2])
    if bad.any():
        row = int(np.argmax(bad))
        raise ValueError(
            f"labels must be in [-1, {probs.shape[2] - 1}], got {labels[row]} at example {row}."
        )
    known = labels >= 0
    targets = columns.get("targets", ~known)
    if not (known & ~targets).any():
        raise ValueError("labels must be known for at least one non-target example, got none.")
    unknown = where & ~known & ~targets
    if unknown.any():
        raise ValueError(
            "labels must be known for every non-target example, got -1 at example "
            f"{int(np.argmax(unknown))}."
        )
    clusters = columns.get("clusters", np.arange(len(labels)))
    numbers = np.unique(clusters, return_inverse=True)[1]
    return Logs(weights, probs, labels, targets, numbers, where)


def take(logs: Logs, rows: np.ndarray) -> Logs:
    """Selects examples.

    Args:
        logs: checked logs.
        rows: a mask, or positions.
    """
    chosen = Logs(*(values[rows] for values in logs[:-1]))
    return chosen if logs.where is None else chosen._replace(where=logs.where[rows])


def held_out(logs: Logs) -> Logs:
    """The labelled examples that are not targets and count."""
    return take(logs, ~logs.targets if logs.where is None else logs.where & ~logs.targets)


def targets(logs: Logs) -> Logs:
    """The targets that count."""
    return take(logs, logs.targets if logs.where is None else logs.where & logs.targets)


def log_arrays(logs: Logs) -> tuple[jax.Array, jax.Array]:
    """The experts' log probabilities and the routing weights, on the device."""
    with np.errstate(divide="ignore"):
        log_probs = np.log(np.asarray(logs.expert_probs, np.float32))
    return jnp.asarray(log_probs), jnp.asarray(logs.routing_weights, jnp.float32)
