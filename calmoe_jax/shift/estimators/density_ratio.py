"""The estimator from a model of correctness on held-out examples weighted like the targets."""

import jax.numpy as jnp
from jaxtyping import Array, Int

from calmoe_jax._checks import check_positive
from calmoe_jax._numerics import AxisName, all_rows
from calmoe_jax._signatures import checked
from calmoe_jax.calibration.calibrators import apply_platt, fit_platt
from calmoe_jax.shift._discriminator import cross_fitted_log_odds, judgeable, pool
from calmoe_jax.shift.estimators._observed import as_estimate, mean, observe, required
from calmoe_jax.shift.estimators._statistics import log_odds
from calmoe_jax.shift.estimators.evidence import AccuracyEstimate, Evidence


@checked
def density_ratio(
    held_out: Evidence,
    labels: Int[Array, " examples"],
    targets: Evidence,
    *,
    penalty: float = 100.0,
    most: float = 100.0,
    axis_name: AxisName = None,
) -> AccuracyEstimate:
    """Mean over the targets of a model of correctness, fitted to held-out examples like them.

    A held-out example's weight is the targets' density over that of the held-out examples: the odds
    of a ridge logistic regression on the coordinates, fitted on the other half of both samples. The
    model is Platt scaling of the log odds of the confidence under these weights, in units of the
    effective sample size. The cost is that of the regressions, see `cm.shift.separability`.

    Args:
        held_out: labelled examples, with coordinates.
        labels: their classes.
        targets: unlabelled examples, with coordinates.
        penalty: `penalty / 2 |beta|^2` is added to the sum of the log losses; above 0.
        most: largest ratio of densities, above 0; larger ones count as this.
        axis_name: device axis that both samples are sharded over; each device works on all rows.

    Returns:
        An `AccuracyEstimate` without a standard error. Right if correctness depends on the
        coordinates as it does on held-out examples, and these cover the targets; where the two can
        be told apart nearly always, it rests on a few held-out examples. NaN with fewer than two
        examples in a sample, or for a NaN or a label out of range in one that counts. Another order
        of the examples makes other halves, and moves it a little.

    Raises:
        ValueError: if coordinates are missing, a constant is not above 0, or sizes do not match.

    Example:
        >>> log_probs = jnp.log(jnp.array([[0.8, 0.2], [0.2, 0.8]] * 10))
        >>> sample = Evidence(log_probs, coordinates=log_probs)
        >>> labels = jnp.array([0, 1, 0, 1, 1] * 4)
        >>> round(float(density_ratio(sample, labels, sample).accuracy), 2)
        0.5

    References:
        Bialek et al., Estimating Model Performance Under Covariate Shift Without Labels, 2024, of
        which this is a form of our own; Sugiyama et al., Density Ratio Estimation in Machine
        Learning, 2012.
    """
    check_positive("penalty", penalty)
    check_positive("most", most)
    own, other = observe(held_out, labels, targets, axis_name)
    pooled = pool(
        *required("coordinates", held_out, targets), where=own.counted,
        target_where=other.counted, axis_name=axis_name,
    )  # fmt: skip
    edge = float(jnp.finfo(own.confidence.dtype).eps)
    counted, correct, score = (
        all_rows(x, axis_name) for x in (own.counted, own.correct, log_odds(own.confidence, edge))
    )
    odds = jnp.exp(cross_fitted_log_odds(pooled, penalty)[: len(counted)])
    weight = jnp.where(counted, jnp.minimum(odds.astype(score.dtype), most), 0)
    # in units of examples: those that as few equal weights would stand for
    weight = weight * jnp.sum(weight) / jnp.sum(jnp.square(weight))
    fit = fit_platt(score, correct, weights=weight)
    estimate = mean(apply_platt(fit, log_odds(other.confidence, edge)), other).value
    return as_estimate(jnp.where(judgeable(pooled), estimate, jnp.nan), None, own, other)
