"""A linear classifier that tells two samples apart, judged on rows that it was not fitted on."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from calmoe_jax._checks import check_where
from calmoe_jax._numerics import AxisName, all_rows, at_least_float32
from calmoe_jax.shift._logistic import ridge_logistic

# Of more columns than this the classifier sees their leading principal directions, as many, found
# from at most so many rows by so many rounds of subspace iteration.
_MOST_COORDINATES = 256
_MOST_ROWS = 4096
_ROUNDS = 3


class Pooled(NamedTuple):
    """Rows of two samples, the held-out ones first, on every device.

    Attributes:
        columns: their columns, standardised over the rows of both that count; 0 for the others.
        basis: directions that a classifier sees, if there are too many columns to see all.
        is_target: whether a row is a target.
        counts: whether it counts.
        even: whether it is in the first of two folds: every other one of its sample's that count.
    """

    columns: Float[Array, "rows columns"]
    basis: Float[Array, "columns directions"] | None
    is_target: Bool[Array, " rows"]
    counts: Bool[Array, " rows"]
    even: Bool[Array, " rows"]


def pool(
    held_out: Float[Array, "examples coordinates"],
    targets: Float[Array, "targets coordinates"],
    *,
    where: Bool[Array, " examples"] | None,
    target_where: Bool[Array, " targets"] | None,
    axis_name: AxisName,
) -> Pooled:
    """Puts two samples together, standardises their columns and divides them into folds.

    Args:
        held_out: rows of the one sample.
        targets: rows of the other.
        where: held-out rows that count; all by default.
        target_where: targets that count; all by default.
        axis_name: device axis that both samples are sharded over.
    """
    check_where("where", where, held_out.shape[:1])
    check_where("target_where", target_where, targets.shape[:1])
    held_out, targets = all_rows(held_out, axis_name), all_rows(targets, axis_name)
    rows = at_least_float32(jnp.concatenate([held_out, targets.astype(held_out.dtype)]))
    is_target = jnp.arange(len(rows)) >= len(held_out)
    masks = [
        jnp.ones(len(sample), bool) if mask is None else all_rows(mask, axis_name)
        for sample, mask in ((held_out, where), (targets, target_where))
    ]
    counts = jnp.concatenate(masks)
    even = jnp.concatenate([jnp.cumsum(mask) % 2 == 1 for mask in masks])
    rows = jnp.where(counts[:, None], rows, 0)
    total = jnp.maximum(jnp.sum(counts), 1).astype(rows.dtype)
    mean = jnp.sum(rows, axis=0) / total
    off = jnp.where(counts[:, None], rows - mean[None, :], 0)
    deviation = jnp.sqrt(jnp.sum(jnp.square(off), axis=0) / total)
    flat = deviation <= 1e-6 * jnp.maximum(jnp.abs(mean), 1e-30)
    off = jnp.where(flat[None, :], 0, off / jnp.where(flat, 1, deviation)[None, :])
    basis = _leading_directions(off) if off.shape[1] > _MOST_COORDINATES else None
    return Pooled(off, basis, is_target, counts, even)


def judgeable(pooled: Pooled) -> Bool[Array, ""]:
    """Whether each fold has a row of either sample that counts."""
    folds = jnp.stack([pooled.even, ~pooled.even])[:, None]
    samples = jnp.stack([pooled.is_target, ~pooled.is_target])[None]
    return jnp.all(jnp.any(folds & samples & pooled.counts[None, None], axis=-1))


def cross_fitted_log_odds(pooled: Pooled, penalty: float) -> Float[Array, " rows"]:
    """Log odds that each row is a target, by a classifier fitted on the other fold.

    Ridge logistic regression with both samples of equal weight, so that the odds estimate the ratio
    of the targets' density to the held-out examples'.

    Args:
        pooled: rows of both samples.
        penalty: `penalty / 2 |beta|^2` is added to the sum of the log losses of a fold; above 0.
    """
    columns, basis, is_target, counts, even = pooled

    def log_odds(fitted: Bool[Array, " rows"]) -> Float[Array, " rows"]:
        seen = columns
        if basis is not None:
            between = _difference_of_means(columns, is_target, counts & fitted)
            seen = columns @ _with_direction(basis, between)
        weight = _of_equal_weight(is_target, counts & fitted, seen.dtype)
        beta = ridge_logistic(seen, is_target.astype(seen.dtype), weight, penalty)
        return seen @ beta[:-1] + beta[-1]

    folds = jnp.stack([even, ~even])
    # one after the other where there are many columns: a batch would hold them twice
    first, second = jax.vmap(log_odds)(folds) if basis is None else jax.lax.map(log_odds, folds)
    return jnp.where(even, second, first)


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


def _of_equal_weight(
    is_target: Bool[Array, " n"], counts: Bool[Array, " n"], dtype: jnp.dtype
) -> Float[Array, " n"]:
    """Weights of the rows that count, under which both samples weigh half of all rows."""
    share = jnp.where(
        is_target, jnp.sum(counts & is_target), jnp.sum(counts & ~is_target)
    )  # examples of the row's own sample
    total, share = (x.astype(dtype) for x in (jnp.sum(counts), share))
    return jnp.where(counts, 0.5 * total / jnp.maximum(share, 1), 0)
