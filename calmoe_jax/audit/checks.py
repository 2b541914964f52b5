"""Checks the columns of logs: shapes, kinds, labels, times; errors name the example."""

import numpy as np

from calmoe_jax.audit.names import WIDE
from calmoe_jax.audit.predictions import Rescaled, as_distributions

# Predictions of models that were trained alike.
PEERS = ("peer_probs", "peer_logits")
_FLOATS = "floating-point numbers"
_KINDS = {
    **{name: ("f", _FLOATS) for name in WIDE},
    "labels": ("iu", "whole numbers, -1 where unknown"),
    "expert_indices": ("iu", "whole numbers"),
    "targets": ("b", "true or false"),
    "clusters": ("iuSU", "whole numbers or names"),
    "where": ("b", "true or false"),
    "weights": ("biuf", "0 or 1"),
    "drawn_probability": ("biuf", "numbers"),
}


def predictions_of(columns: dict[str, np.ndarray]) -> tuple[str, str | None]:
    """Names of the arrays with the predictions, and with the routing; `None` for the aggregate.

    Args:
        columns: as from `read_columns`.
    """
    for name in ("expert_probs", "expert_logits"):
        if name in columns:
            return name, "routing_weights" if "routing_weights" in columns else "routing_logits"
    return ("probs" if "probs" in columns else "logits"), None


def check_shapes(columns: dict[str, np.ndarray], name: str) -> None:
    """Raises an error for a column of a wrong shape or kind.

    Args:
        columns: as from `read_columns`.
        name: the array with the predictions.
    """
    probs = columns[name]
    of_experts = name.startswith("expert")
    axes = ("examples", "experts", "classes") if of_experts else ("examples", "classes")
    if probs.ndim != len(axes) or 0 in probs.shape or probs.shape[-1] < 2:
        raise ValueError(
            f"{name} must be [{', '.join(axes)}] with at least two classes, got shape "
            f"{probs.shape}."
        )
    for other, values in columns.items():
        shape = probs.shape[:1]
        if other in ("routing_weights", "routing_logits", "expert_indices"):
            if not of_experts:
                continue  # of experts that are not there
            shape = probs.shape[:2]
        elif other == "label_probs":
            shape = (len(probs), probs.shape[-1])
        elif other in PEERS:
            _check_peers(other, values, name, probs)
            continue
        if other not in (name, "probs", "logits") and values.shape != shape:
            raise ValueError(
                f"{other} must be of shape {shape}, as {name} is of shape {probs.shape}, got "
                f"{values.shape}."
            )
    for other, (allowed, words) in _KINDS.items():
        if other in columns and columns[other].dtype.kind not in allowed:
            raise TypeError(f"{other} must be {words}, got {columns[other].dtype}.")


def _check_peers(other: str, values: np.ndarray, name: str, probs: np.ndarray) -> None:
    expected = len(probs), probs.shape[-1]
    if values.ndim == 3 and values.shape[::2] == expected and values.shape[1] > 0:
        return
    raise ValueError(
        f"{other} must be [examples, peers, classes] with at least one peer, as {name} is of shape "
        f"{probs.shape}, got shape {values.shape}."
    )


def counted(columns: dict[str, np.ndarray], routing: str | None) -> np.ndarray:
    """Which examples count: not those masked by `where` or `weights`, nor those routed nowhere.

    Args:
        columns: of right shapes and kinds.
        routing: the array with the routing, if there is one.
    """
    where = np.ones(len(next(iter(columns.values()))), bool)
    if routing is not None:
        nothing = 0 if routing == "routing_weights" else -np.inf
        where = (columns[routing] != nothing).any(axis=1)
    if "where" in columns:
        where &= columns["where"]
    if "weights" in columns:
        weights = columns["weights"]
        bad = (weights != 0) & (weights != 1)
        if bad.any():
            row = int(np.argmax(bad))
            raise ValueError(
                f"weights must be 0 or 1 (an example counts or not), got {weights[row]} at example "
                f"{row}."
            )
        where &= weights != 0
    if not where.any():
        name = routing or "where"
        raise ValueError(f"{name} must have a row that counts, got none.")
    return where


def check_labels(labels: np.ndarray, where: np.ndarray, num_classes: int) -> np.ndarray:
    """Labels of the examples that count, -1 for the others.

    Args:
        labels: whole numbers.
        where: which examples count.
        num_classes: number of classes.
    """
    found = np.where(where, labels.astype(np.int64), -1)
    bad = (found < -1) | (found >= num_classes)
    if bad.any():
        row = int(np.argmax(bad))
        raise ValueError(
            f"labels must be in [-1, {num_classes - 1}], got {found[row]} at example {row}."
        )
    return found


def soft_labels(
    shares: np.ndarray, labels: np.ndarray | None, where: np.ndarray
) -> tuple[np.ndarray, np.ndarray, Rescaled]:
    """Soft labels, and a class for each.

    Args:
        shares: distribution over the classes of each example; all 0 or all NaN where unknown.
        labels: classes that the file has, -1 where unknown; `None` if it has none.
        where: which examples count.

    Returns:
        The distributions, 0 where unknown; the classes, by default drawn from them, with the same
        draw for the same file; and what was rescaled.

    Raises:
        ValueError: if a row is no distribution, or known where its class is not.
    """
    known = where & ~(np.isnan(shares).all(axis=1) | (shares == 0).all(axis=1))
    shares, rescaled = as_distributions(
        shares, known, name="label_probs", rule="probabilities that sum to 1 over the classes",
        axes=("class",),
    )  # fmt: skip
    shares = np.where(known[:, None], shares, 0)
    if labels is None:
        drawn = np.random.default_rng(0).random((len(shares), 1), np.float32)
        # rounding may leave the last sum below the draw
        classes = (drawn >= np.cumsum(shares, axis=1)[:, :-1]).sum(axis=1)
        # nor is a class drawn whose share is 0
        classes = np.where(
            np.take_along_axis(shares, classes[:, None], axis=1)[:, 0] > 0,
            classes,
            shares.argmax(axis=1),
        )
        return shares, np.where(known, classes, -1), rescaled
    differs = (labels >= 0) != known
    if differs.any():
        raise ValueError(
            "label_probs must be known where labels are, got one without the other at example "
            f"{int(np.argmax(differs))}."
        )
    return shares, labels, rescaled


def check_drawn(drawn: np.ndarray, labelled: np.ndarray) -> np.ndarray:
    """Inclusion probabilities of the labelled targets; NaN elsewhere.

    Args:
        drawn: the probability with which each target was chosen for labelling.
        labelled: which targets have labels.
    """
    drawn = np.asarray(drawn, np.float64)
    bad = labelled & ~((drawn > 0) & (drawn <= 1))
    if bad.any():
        row = int(np.argmax(bad))
        raise ValueError(
            "drawn_probability must be in (0, 1] for every target with a label, got "
            f"{drawn[row]:.6g} at example {row}."
        )
    return np.where(labelled, drawn, np.nan)
