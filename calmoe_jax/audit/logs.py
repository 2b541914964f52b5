"""Logs of a deployed mixture of experts: read, check, select examples.

Logs hold the predictions of the router and the experts for each example, and its label where it is
known. Examples whose label is known are the held-out ones; the others (or those marked as targets)
are what the model meets now.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from calmoe_jax.audit.checks import (
    PEERS,
    check_drawn,
    check_labels,
    check_shapes,
    counted,
    predictions_of,
    soft_labels,
)
from calmoe_jax.audit.columns import LogError as LogError
from calmoe_jax.audit.columns import read_columns
from calmoe_jax.audit.joining import Part, joined
from calmoe_jax.audit.predictions import as_distributions, predictions
from calmoe_jax.audit.text import as_times


class Logs(NamedTuple):
    """Logs of a mixture of experts.

    Attributes:
        routing_weights: weight of each expert, `[n, experts]`; rows that count sum to one.
        expert_probs: each expert's class probabilities, `[n, experts, classes]`; uniform for
            experts of weight 0, which were not chosen, and for rows that do not count.
        labels: class of each example, -1 if unknown; drawn from `label_probs` if the logs have
            these alone.
        targets: which examples come from deployment; those without label by default.
        clusters: cluster of each example; examples of one cluster are dependent. By default each
            example is its own cluster.
        where: which examples count; all by default.
        label_probs: soft labels, `[n, classes]`: the distribution of each example's label, 0 where
            it is unknown; `None` if the labels are classes.
        time: when each example was seen: numbers, or dates in UTC (`datetime64[us]`); `None` if
            unknown.
        drawn_probability: probability with which each labelled target was chosen for labelling, NaN
            elsewhere; `None` if unknown.
        peer_probs: class probabilities of the aggregates of models that were trained alike with
            other seeds, `[n, peers, classes]`; uniform for rows that do not count; `None` if
            unknown.
        aggregate_only: whether routing and experts are not known: the aggregate then stands as the
            one expert.
        notes: what was changed in reading, in sentences.
        files: name and number of examples of each file that was read, in order.
    """

    routing_weights: np.ndarray
    expert_probs: np.ndarray
    labels: np.ndarray
    targets: np.ndarray
    clusters: np.ndarray
    where: np.ndarray | None = None
    label_probs: np.ndarray | None = None
    time: np.ndarray | None = None
    drawn_probability: np.ndarray | None = None
    peer_probs: np.ndarray | None = None
    aggregate_only: bool = False
    notes: tuple[str, ...] = ()
    files: tuple[tuple[str, int], ...] = ()


_OF_EXAMPLES = Logs._fields[: Logs._fields.index("aggregate_only")]


def read_logs(
    paths: str | Path | Sequence[str | Path], *, columns: Mapping[str, str] | None = None
) -> Logs:
    """Reads and checks files of logs.

    A file has arrays, or columns, of these names; those in brackets may be missing:

        expert_probs    [n, experts, classes] or expert_logits; a column each: expert_0_prob_1
        routing_weights [n, experts] or routing_logits; weight_0
        (expert_indices) [n, slots]; index_0
        labels          [n], -1 where unknown; label. Or label_probs [n, classes]; label_prob_1
        (targets), (clusters), (where) [n]; target, cluster
        (time)          [n]: dates in ISO form, timestamps, or numbers
        (drawn_probability) [n]: with which a labelled target was chosen for labelling, in (0, 1]
        (peer_probs)    [n, peers, classes] or peer_logits: the same model trained with other
                        seeds, its aggregate; peer_0_prob_1. What repairs without labels rest on

    In place of experts and routing it may have the aggregate alone: `probs` `[n, classes]` or
    `logits` (`prob_1`, `logit_1`). Logits are brought to probabilities by a softmax over classes,
    or over experts (slots).

    Where only the chosen experts were logged, the second axis holds slots, and `expert_indices`
    `[n, slots]` says whose each slot is, from 0; experts up to the largest index exist. Slots of
    weight 0 are empty. An expert that was not chosen has weight 0, and stands with the uniform
    distribution in all statistics, whether the file has its prediction or not: dense logs and the
    same as slots give the same results. What has weight 0 may hold anything, NaN included.

    Rows of probabilities whose sum is off 1 by no more than 0.001 are rescaled; `notes` says how
    many, and the largest distance.

    Args:
        paths: one or several files, in npz, parquet (which needs pyarrow) or CSV form, or folders
            of parts as `LogWriter` writes them; several are joined in order, and must have the same
            arrays. In a parquet file a row may hold a list of weights, and a list of lists of
            probabilities; a missing label is null, in a CSV file an empty cell. `weights` of 0 or 1
            for each example are a form of `where`; an example whose routing weights are all 0 does
            not count either.
        columns: the file's names for some of ours; `{}` in both stands for a number, as in
            `{"prob_{}": "p{}", "labels": "y"}`.

    Raises:
        LogError: if a file cannot be read, lacks an array, or holds invalid values; the message
            names the file, the array, and the example and the expert by their numbers from 0.
    """
    files = _files([paths] if isinstance(paths, str | Path) else paths)
    parts = [_read_part(path, columns or {}) for path in files]
    names = [str(path) for path in files]
    sizes = [len(part.labels) for part in parts]
    try:
        return _whole(joined(names, parts))._replace(files=tuple(zip(names, sizes, strict=True)))
    except ValueError as error:
        first = str(files[0])
        name = first if len(files) == 1 else f"{first} and {len(files) - 1} more"
        raise LogError(f"{name}: {error}") from error


def as_logs(columns: Mapping[str, Any]) -> Logs:
    """Checks arrays as `read_logs` checks those of a file.

    Args:
        columns: arrays by the names that `read_logs` knows; they are not changed.

    Raises:
        ValueError: if one is missing, or holds invalid values.
        TypeError: if one is of a wrong kind.
    """
    arrays = {name: np.asarray(values).view() for name, values in columns.items()}
    for values in arrays.values():
        values.flags.writeable = False
    return _whole(joined(["the arrays"], [_part(arrays)]))


def _files(paths: Sequence[str | Path]) -> list[Path]:
    """The files; those of a folder in their order."""
    if not paths:
        raise LogError("paths must name at least one file, got none.")
    files: list[Path] = []
    for path in map(Path, paths):
        if not path.is_dir():
            files.append(path)
            continue
        parts = sorted(p for p in path.glob("part-*") if p.suffix in (".npz", ".parquet"))
        if not parts:
            raise LogError(f"{path} cannot be read: it is a folder without parts of logs.")
        files += parts
    return files


def _read_part(path: Path, columns: Mapping[str, str]) -> Part:
    arrays = read_columns(path, columns)
    try:
        return _part(arrays)
    except (ValueError, TypeError) as error:
        raise LogError(f"{path}: {error}") from error


def _part(columns: dict[str, np.ndarray]) -> Part:
    """Checks the columns of one file."""
    name, routing = predictions_of(columns)
    check_shapes(columns, name)
    where = counted(columns, routing)
    experts, num_classes = columns[name], columns[name].shape[-1]
    weights, indices = np.ones((len(where), 1), np.float32), None
    if routing is None:
        experts = experts[:, None]
    else:
        weights, indices = columns[routing], columns.get("expert_indices")
    found = predictions(
        weights, experts, indices, where, name=name, routing=routing or "routing_weights"
    )
    rescaled = dict(found.rescaled)
    labels, soft = columns.get("labels"), None
    if labels is not None:
        labels = check_labels(labels, where, num_classes)
    if "label_probs" in columns:
        soft, labels, rescaled["label_probs"] = soft_labels(columns["label_probs"], labels, where)
    assert labels is not None  # one of the two is there
    peers = None
    for peer_name in PEERS:
        if peer_name in columns:
            peers, rescaled[peer_name] = as_distributions(
                columns[peer_name], np.broadcast_to(where[:, None], columns[peer_name].shape[:2]),
                name=peer_name, rule="probabilities that sum to 1 over the classes",
                axes=("peer", "class"), from_logits=peer_name == "peer_logits",
            )  # fmt: skip
    targets = columns.get("targets", labels < 0)
    time, drawn = columns.get("time"), columns.get("drawn_probability")
    return Part(
        columns=tuple(sorted(columns)),
        routing_weights=found.routing_weights,
        expert_probs=found.expert_probs,
        labels=labels,
        targets=targets,
        clusters=columns.get("clusters"),
        where=where,
        label_probs=soft,
        time=None if time is None else as_times(time),
        drawn_probability=None if drawn is None else check_drawn(drawn, targets & (labels >= 0)),
        peer_probs=peers,
        aggregate_only=routing is None,
        slots=indices is not None,
        rescaled=rescaled,
    )


def _whole(part: Part) -> Logs:
    """Checks what concerns all files together."""
    known = part.labels >= 0
    if not (known & ~part.targets).any():
        raise ValueError("labels must be known for at least one non-target example, got none.")
    unknown = part.where & ~known & ~part.targets
    if unknown.any():
        raise ValueError(
            "labels must be known for every non-target example, got -1 at example "
            f"{int(np.argmax(unknown))}."
        )
    size = len(part.labels)
    numbers = np.arange(size)
    if part.clusters is not None:
        numbers = np.unique(part.clusters, return_inverse=True)[1]
    notes = [
        f"{found.rows:,} rows of {name} did not sum to 1 and were rescaled; the largest distance "
        f"was {found.largest:.1e}"
        for name, found in part.rescaled.items()
        if found.rows
    ]
    if part.label_probs is not None and "labels" not in part.columns:
        notes.append("classes were drawn once from label_probs for what needs a class")
    return Logs(
        part.routing_weights, part.expert_probs, part.labels, part.targets, numbers, part.where,
        part.label_probs, part.time, part.drawn_probability, part.peer_probs, part.aggregate_only,
        tuple(notes),
    )  # fmt: skip


def take(logs: Logs, rows: np.ndarray) -> Logs:
    """Selects examples.

    Args:
        logs: checked logs.
        rows: a mask, or positions.
    """
    held = {name: getattr(logs, name) for name in _OF_EXAMPLES}
    chosen: dict[str, Any] = {k: None if x is None else x[rows] for k, x in held.items()}
    return logs._replace(**chosen)


def held_out(logs: Logs) -> Logs:
    """The labelled examples that are not targets and count."""
    return take(logs, ~logs.targets if logs.where is None else logs.where & ~logs.targets)


def targets(logs: Logs) -> Logs:
    """The targets that count."""
    return take(logs, logs.targets if logs.where is None else logs.where & logs.targets)


def log_arrays(logs: Logs) -> tuple[jax.Array, jax.Array]:
    """The experts' log probabilities and the routing weights, on the device."""
    return log_of(logs.expert_probs), jnp.asarray(logs.routing_weights, jnp.float32)


def log_of(probs: np.ndarray) -> jax.Array:
    """Log probabilities on the device, -inf of 0."""
    with np.errstate(divide="ignore"):
        return jnp.asarray(np.log(np.asarray(probs, np.float32)))
