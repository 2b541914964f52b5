"""A deployed model's logs: is its confidence true, do its configurations shift, what can be done.

Logs hold what the router and the experts said of each example, and its label where it is known.
Examples whose label is known are the held-out ones; the others (or those marked as targets) are
what the model meets now.
"""

import zipfile
import zlib
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from calmoe_jax import calibration, mixture
from calmoe_jax.calibration.intervals import Interval, ScoreIntervals
from calmoe_jax.shift import repair

_COLUMNS = ("routing_weights", "expert_probs", "labels", "targets", "clusters")
_PERMUTATIONS = 999
# Of the test, where examples are independent: as many a side as sorting takes no time for.
_MOST_EXAMPLES = 2000


class LogError(Exception):
    """A file of logs cannot be used; the message says why."""


class Logs(NamedTuple):
    """Logs of a mixture of experts.

    Attributes:
        routing_weights: weight of each expert, `[n, experts]`; rows sum to one.
        expert_probs: each expert's class probabilities, `[n, experts, classes]`.
        labels: class of each example, -1 where it is not known.
        targets: which examples the model meets now; those without label by default.
        clusters: examples of one cluster are dependent; each its own by default.
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
        LogError: where the file cannot be read, lacks something, or holds what it must not.
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
        path.open("rb").close()  # missing or forbidden is said so
        raise ValueError("it is no whole npz file")
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
        raise ValueError("routing_weights must be 1 where there is one expert.")
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
        raise ValueError("some example that is no target must have a label, got none.")
    if (~known & ~targets).any():
        raise ValueError("every example that is no target must have a label, got -1 among them.")
    if clusters.dtype.kind not in "iuSU":
        raise TypeError(f"clusters must be whole numbers or names, got {clusters.dtype}.")
    numbers = np.unique(clusters, return_inverse=True)[1]
    return Logs(weights, probs, labels, targets, numbers)


def audit(logs: Logs) -> dict[str, Any]:
    """Everything that the logs say, as plain values.

    Args:
        logs: checked logs.

    Returns:
        `held_out`: sizes, scores with 95 % intervals, calibration error of the aggregate and of
        every expert, the disagreement identity, the temperature. With targets also `shift` (the
        test, separability, balance, decision), `targets` (temperatures by rule), and, where the
        targets have labels, `targets_scored`.
    """
    held_out = _take(logs, ~logs.targets)
    result: dict[str, Any] = {"held_out": _describe(held_out)}
    if not logs.targets.any():
        return result
    targets = _take(logs, logs.targets)
    repaired = repair.fit_to_targets(
        _sample(held_out),
        held_out.labels,
        held_out.clusters,
        jnp.full(1, result["held_out"]["temperature"], jnp.float32),
        _sample(targets),
        targets.clusters,
        num_permutations=_PERMUTATIONS,
        most_examples=_MOST_EXAMPLES,
    )
    found = repair.describe(repaired, 0, len(held_out.labels))
    inside = result["held_out"]["temperature"]
    temperatures = {"temperature": inside, **found.pop("temperatures")}
    result["shift"] = {k: _plain(v) if isinstance(v, float) else v for k, v in found.items()}
    result["targets"] = {"n": len(targets.labels), "temperatures": temperatures}
    if (targets.labels >= 0).all():
        result["targets_scored"] = {"none": _scores(targets, 1.0)} | {
            name: _scores(targets, value) for name, value in temperatures.items()
        }
    return result


def _take(logs: Logs, rows: np.ndarray) -> Logs:
    return Logs(*(values[rows] for values in logs))


def log_arrays(logs: Logs) -> tuple[jax.Array, jax.Array]:
    """The experts' log probabilities and the routing weights, on the device."""
    with np.errstate(divide="ignore"):
        log_probs = np.log(logs.expert_probs.astype(np.float32))
    return jnp.asarray(log_probs), jnp.asarray(logs.routing_weights, jnp.float32)


def _sample(logs: Logs) -> repair.Sample:
    """As of one seed, with all experts in their order."""
    log_probs, weights = (x[None] for x in log_arrays(logs))
    experts = jnp.broadcast_to(jnp.arange(weights.shape[2]), weights.shape)
    return repair.dense_sample(log_probs, weights, experts, num_experts=weights.shape[2])


def _describe(logs: Logs) -> dict[str, Any]:
    log_probs, weights = log_arrays(logs)
    labels = jnp.asarray(logs.labels)
    probs = jnp.exp(log_probs)
    mixed = jax.jit(calibration.mixture_calibration)(probs, weights, labels)
    identity = jax.jit(calibration.disagreement_identity)(probs, weights, labels)
    fit = calibration.calibrators.fit_temperature(mixture.mix_log_probs(log_probs, weights), labels)
    return {
        "n": len(logs.labels),
        "experts": weights.shape[1],
        "classes": probs.shape[2],
        "clusters": len(np.unique(logs.clusters)),
        **_scores(logs, 1.0),
        "expert_ece": _plain(mixed.top_label.experts),
        "expert_mean_ece": _plain(mixed.top_label.expert_mean),
        "load": _plain(mixed.load),
        "router_confidence": _plain(mixed.router_confidence),
        "disagreement": {name: _plain(value) for name, value in identity._asdict().items()},
        "temperature": _plain(repair.usable_temperature(fit)),
        "temperature_converged": bool(fit.converged),
    }


def _scores(logs: Logs, temperature: float) -> dict[str, Any]:
    """Scores of the aggregate at a temperature, with intervals."""
    numbers = np.unique(logs.clusters, return_inverse=True)[1]
    count = int(numbers.max()) + 1
    scores, ece, plain = _score(
        *log_arrays(logs),
        jnp.asarray(logs.labels, jnp.int32),
        jnp.full(1, temperature, jnp.float32),
        jnp.asarray(numbers, jnp.int32),
        None if count == len(numbers) else count,
    )
    named = {name: _interval(value) for name, value in scores._asdict().items()}
    return {**named, "ece": _plain(plain), "debiased_ece": _interval(ece)}


@partial(jax.jit, static_argnums=5)
def _score(
    expert_log_probs: jax.Array,
    routing_weights: jax.Array,
    labels: jax.Array,
    temperature: jax.Array,
    clusters: jax.Array,
    num_clusters: int | None,
) -> tuple[ScoreIntervals, Interval, jax.Array]:
    """Intervals; examples are independent where there is no number of clusters."""
    mixed = mixture.mix_log_probs(expert_log_probs, routing_weights)
    log_probs = calibration.calibrators.scale_log_probs(mixed, temperature)
    key = jax.random.key(0)
    plain = calibration.expected_calibration_error(log_probs, labels, from_logits=True)
    if num_clusters is None:
        scores = calibration.intervals.scores(key, log_probs, labels, from_logits=True)
        bins = calibration.top_label_bins(log_probs, labels, from_logits=True)
        return scores, calibration.intervals.calibration_error(key, bins), plain
    scores = calibration.intervals.scores(
        key, log_probs, labels, from_logits=True, clusters=clusters, num_clusters=num_clusters
    )
    confidence, correct = calibration.top_label(log_probs, labels, from_logits=True)
    bins = calibration.intervals.cluster_bins(
        confidence, correct, clusters, num_clusters=num_clusters
    )
    return scores, calibration.intervals.clustered_calibration_error(key, bins), plain


def _interval(value: Any) -> dict[str, float | None]:
    return {name: _plain(x) for name, x in value._asdict().items()}


def _plain(value: Any) -> Any:
    """Numbers as JSON has them: what is not finite is nothing."""
    array = np.asarray(value, np.float64)
    if array.ndim:
        return [_plain(x) for x in array]
    return float(array) if np.isfinite(array) else None


def describe_audit(found: dict[str, Any]) -> str:
    """The audit in words, for a terminal.

    Args:
        found: as from `audit`.
    """
    held_out = found["held_out"]
    lines = [
        f"Held out: {held_out['n']:,} labelled examples, {held_out['experts']} experts, "
        f"{held_out['classes']} classes.",
        _score_words(held_out),
    ]
    experts = ", ".join(
        "no load" if ece is None else f"{ece:.3f} (load {_number(load, '.2f')})"
        for ece, load in zip(held_out["expert_ece"], held_out["load"], strict=True)
    )
    parts = ("aggregate", "disagreement", "difference", "standard_error")
    identity = {name: _number(held_out["disagreement"][name], "+.4f") for name in parts}
    lines += [
        f"  experts' ECE on their views: {experts}",
        f"  disagreement {identity['disagreement'].lstrip('+')}; the aggregate is off by "
        f"{identity['aggregate']}, of which the experts' own errors {identity['difference']} "
        f"(standard error {identity['standard_error'].lstrip('+')})",
        f"  temperature {_number(held_out['temperature'], '.3f')}"
        + ("" if held_out["temperature_converged"] else " (no finite optimum)"),
    ]
    if "shift" not in found:
        return "\n".join([*lines, "No targets: nothing to compare with."])
    shifted, targets = found["shift"], found["targets"]
    temperatures = ", ".join(
        f"{name.replace('_', ' ')} {value:.3f}" for name, value in targets["temperatures"].items()
    )
    p_values = ("p_value", "load", "confidence", "disagreement")
    overall, load, confidence, disagreement = (_number(shifted[x], ".3f") for x in p_values)
    lines += [
        f"Targets: {targets['n']:,} examples.",
        f"  shift of the configuration: p = {overall} (load {load}, confidence {confidence}, "
        f"disagreement {disagreement}); separability {_number(shifted['separability'], '.2f')}; "
        f"effective share of the held-out examples {_number(shifted['effective_share'], '.2f')}",
        f"  temperatures: {temperatures}",
    ]
    for name, scores in found.get("targets_scored", {}).items():
        lines.append(f"  with {name.replace('_', ' ')}:\n  {_score_words(scores)}")
    decision = shifted["decision"].replace("_", " ")
    return "\n".join([*lines, f"Verdict: {decision}: {shifted['reason']}."])


def _number(value: float | None, form: str) -> str:
    return "unknown" if value is None else format(value, form)


def _score_words(scores: dict[str, Any]) -> str:
    def words(name: str, sign: str = "") -> str:
        form = f"{sign}.3f"
        value, low, high = (_number(scores[name][x], form) for x in ("value", "low", "high"))
        return value if "unknown" in (low, high) else f"{value} ({low} to {high})"

    infinite = scores["negative_log_likelihood"]["value"] is None
    parts = [
        f"accuracy {words('accuracy')}",
        f"ECE {_number(scores['ece'], '.3f')}, without its bias {words('debiased_ece')}",
        f"confidence minus accuracy {words('confidence_gap', '+')}",
        f"NLL {'infinite' if infinite else words('negative_log_likelihood')}",
    ]
    return "  " + "; ".join(parts)
