"""How well a classifier distinguishes unlabelled target examples from held-out ones."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from calmoe_jax._checks import check_positive
from calmoe_jax._numerics import AxisName, all_rows, at_least_float32
from calmoe_jax._signatures import checked

_MAX_STEPS = 30
# Smaller weights are replaced by this one: their logarithm would dominate.
_LEAST_WEIGHT = 1e-6
# Of more columns than this the classifier sees their leading principal directions, as many, found
# from at most so many rows by so many rounds of subspace iteration.
_MOST_COORDINATES = 256
_MOST_ROWS = 4096
_ROUNDS = 3


@checked
def configuration_coordinates(
    expert_log_probs: Float[Array, "examples experts classes"],
    routing_weights: Float[Array, "examples experts"],
) -> Float[Array, "examples coordinates"]:
    """The routing configuration as coordinates: log weights and log probabilities, centred.

    Args:
        expert_log_probs: each expert's log probabilities, in nats.
        routing_weights: weight of each expert.

    Returns:
        `experts * classes + experts` columns. Each expert's log probabilities and the logarithms of
        the weights (of at least 1e-6) have mean 0 along their axis, as logits would.

    Example:
        >>> configuration_coordinates(jnp.zeros((5, 3, 2)), jnp.full((5, 3), 1 / 3)).shape
        (5, 9)
    """
    logs = at_least_float32(expert_log_probs)
    logs = jnp.maximum(logs, jnp.log(jnp.finfo(logs.dtype).tiny))
    logs = logs - jnp.mean(logs, axis=-1, keepdims=True)
    gates = jnp.log(jnp.maximum(at_least_float32(routing_weights), _LEAST_WEIGHT))
    gates = gates - jnp.mean(gates, axis=-1, keepdims=True)
    return jnp.concatenate([logs.reshape(len(logs), -1), gates], axis=-1)


@checked
def separability(
    held_out: Float[Array, "examples coordinates"],
    targets: Float[Array, "targets coordinates"],
    *,
    target_where: Bool[Array, " targets"] | None = None,
    penalty: float = 100.0,
    axis_name: AxisName = None,
) -> Float[Array, ""]:
    """How well a cross-fitted linear classifier separates two samples: `clip(2 AUC - 1, 0, 1)`.

    Ridge logistic regression on standardised columns, both samples of equal weight, fitted on the
    even rows of each and judged on the odd ones, and the other way round.

    Of more than 256 columns the classifier sees 256 leading principal directions of both samples
    together, and the difference of the means of the rows that it is fitted on. Rotations do not
    change a ridge regression, so that only what these directions leave out is lost; on 450 to 900
    columns that was .02 at most. The cost is then linear in rows and columns.

    Args:
        held_out: rows of the one sample.
        targets: rows of the other.
        target_where: targets that count; all by default.
        penalty: `penalty / 2 |beta|^2` is added to the sum of the log losses of a fold; above 0.
        axis_name: device axis that both samples are sharded over; each device works on all rows.

    Returns:
        0 if the samples cannot be separated or one has fewer than two rows, 1 if they can be
        separated perfectly, NaN if a number that counts is NaN. Dependent rows in both folds make
        it too large.

    Raises:
        ValueError: if the samples differ in columns, `penalty` is not above 0, or `target_where`
            has another shape than the targets.

    Example:
        >>> a, b = jnp.linspace(0, 1, 50)[:, None], jnp.linspace(2, 3, 50)[:, None]
        >>> separability(a, b), separability(a, a)
        (Array(1., dtype=float32), Array(0., dtype=float32))

    References:
        Ben-David et al., Analysis of Representations for Domain Adaptation, 2007.
    """
    check_positive("penalty", penalty)
    held_out, targets = all_rows(held_out, axis_name), all_rows(targets, axis_name)
    if target_where is not None:
        target_where = all_rows(target_where, axis_name)
    rows = jnp.concatenate([held_out, targets.astype(held_out.dtype)])
    rows = at_least_float32(rows)
    is_target = jnp.arange(len(rows)) >= len(held_out)
    counts = jnp.ones(len(rows), bool)
    if target_where is not None:
        counts = counts.at[len(held_out) :].set(target_where)
    even = jnp.concatenate([jnp.arange(len(held_out)), jnp.arange(len(targets))]) % 2 == 0
    rows = jnp.where(counts[:, None], rows, 0)
    total = jnp.maximum(jnp.sum(counts), 1).astype(rows.dtype)
    mean = jnp.sum(rows, axis=0) / total
    off = jnp.where(counts[:, None], rows - mean[None, :], 0)
    deviation = jnp.sqrt(jnp.sum(jnp.square(off), axis=0) / total)
    flat = deviation <= 1e-6 * jnp.maximum(jnp.abs(mean), 1e-30)
    off = jnp.where(flat[None, :], 0, off / jnp.where(flat, 1, deviation)[None, :])

    basis = None
    if off.shape[1] > _MOST_COORDINATES:
        basis = _leading_directions(off)

    def judge(fitted: Bool[Array, " rows"]) -> Float[Array, ""]:
        seen = counts & fitted
        columns = off
        if basis is not None:
            between = _difference_of_means(off, is_target, seen)
            columns = off @ _with_direction(basis, between)
        slopes = _ridge_logistic(columns, is_target, seen, penalty)
        return _area_under_curve(columns @ slopes, is_target, counts & ~fitted)

    fitted = jnp.stack([even, ~even])
    # one after the other where there are many columns: a batch would hold them twice
    area = jnp.mean(jax.vmap(judge)(fitted) if basis is None else jax.lax.map(judge, fitted))
    folds = fitted[:, None] & jnp.stack([is_target, ~is_target])[None]
    judged = jnp.all(jnp.any(folds & counts[None, None], axis=-1))
    return jnp.where(judged, jnp.clip(2 * area - 1, 0, 1), 0)


def _leading_directions(rows: Float[Array, "n d"]) -> Float[Array, "d _"]:
    """An orthonormal basis of the leading principal directions of centred rows."""
    some = rows[:: -(-len(rows) // _MOST_ROWS)]
    size = (rows.shape[1], _MOST_COORDINATES)
    basis = jax.random.normal(jax.random.key(0), size, rows.dtype)
    for _ in range(_ROUNDS):
        basis = jnp.linalg.qr(some.T @ (some @ basis))[0]
    return basis


def _difference_of_means(
    rows: Float[Array, "n d"], is_target: Bool[Array, " n"], counts: Bool[Array, " n"]
) -> Float[Array, " d"]:
    high, low = counts & is_target, counts & ~is_target
    signs = high / jnp.maximum(jnp.sum(high), 1) - low / jnp.maximum(jnp.sum(low), 1)
    return signs.astype(rows.dtype) @ rows


def _with_direction(
    basis: Float[Array, "d k"], direction: Float[Array, " d"]
) -> Float[Array, "d _"]:
    """The basis with one direction more, or a column of zeros if that adds nothing to it."""
    length = jnp.linalg.norm(direction)
    rest = direction
    for _ in range(2):  # the second time for what rounding left
        rest = rest - basis @ (basis.T @ rest)
    left = jnp.linalg.norm(rest)
    new = left > 1e-4 * length
    rest = jnp.where(new, rest / jnp.where(new, left, 1), 0)
    # NaN stays NaN
    rest = jnp.where(jnp.isnan(length), jnp.nan, rest)
    return jnp.concatenate([basis, rest[:, None]], axis=1)


class _Fit(NamedTuple):
    beta: Float[Array, " d"]
    step: Int[Array, ""]
    moved: Float[Array, ""]


def _ridge_logistic(
    rows: Float[Array, "n d"],
    is_target: Bool[Array, " n"],
    counts: Bool[Array, " n"],
    penalty: float,
) -> Float[Array, " d"]:
    """Slopes of a logistic regression with an intercept that is not penalised."""
    share = jnp.where(
        is_target, jnp.sum(counts & is_target), jnp.sum(counts & ~is_target)
    )  # examples of the row's own sample
    total, share = (x.astype(rows.dtype) for x in (jnp.sum(counts), share))
    weight = jnp.where(counts, 0.5 * total / jnp.maximum(share, 1), 0)
    design = jnp.concatenate([rows, jnp.ones((len(rows), 1), rows.dtype)], axis=1)
    ridge = jnp.full(design.shape[1], penalty, rows.dtype).at[-1].set(1e-3)
    label = is_target.astype(rows.dtype)

    def unfinished(fit: _Fit) -> Bool[Array, ""]:
        return (fit.step < _MAX_STEPS) & (fit.moved > 1e-4)

    def newton(fit: _Fit) -> _Fit:
        probs = jax.nn.sigmoid(design @ fit.beta)
        gradient = design.T @ (weight * (probs - label)) + ridge * fit.beta
        # at least the curvature at a probability of 0.1: a full step then never overshoots far
        curvature = weight * jnp.maximum(probs * (1 - probs), 0.09)
        hessian = (design * curvature[:, None]).T @ design + jnp.diag(ridge)
        step = jnp.linalg.solve(hessian, gradient)
        return _Fit(fit.beta - step, fit.step + 1, jnp.max(jnp.abs(step)))

    start = _Fit(
        jnp.zeros(design.shape[1], rows.dtype), jnp.asarray(0), jnp.asarray(jnp.inf, rows.dtype)
    )
    return jax.lax.while_loop(unfinished, newton, start).beta[:-1]


def _area_under_curve(
    scores: Float[Array, " n"], is_target: Bool[Array, " n"], counts: Bool[Array, " n"]
) -> Float[Array, ""]:
    """Probability that a target scores higher than a held-out example; ties count half."""
    low = counts & ~is_target
    high = counts & is_target
    ranked = jnp.sort(jnp.where(low, scores, jnp.inf))
    below = jnp.searchsorted(ranked, scores, side="left")
    up_to = jnp.searchsorted(ranked, scores, side="right")
    up_to = jnp.minimum(up_to, jnp.sum(low, dtype=up_to.dtype))
    wins = 0.5 * (below + up_to).astype(scores.dtype)
    pairs = jnp.sum(low).astype(scores.dtype) * jnp.sum(high).astype(scores.dtype)
    area = jnp.sum(jnp.where(high, wins, 0)) / jnp.where(pairs > 0, pairs, 1)
    unknown = jnp.any(jnp.isnan(scores) & counts)
    return jnp.where(unknown, jnp.nan, jnp.where(pairs > 0, area, 0.5))
