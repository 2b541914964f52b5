"""Ensemble temperature scaling: a mixture of the scaled, original and uniform prediction."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from calmoe_jax._numerics import at_least_float32, example_weights, pick_label
from calmoe_jax._signatures import checked
from calmoe_jax.calibration.calibrators._examples import examples
from calmoe_jax.calibration.calibrators._masks import without_impossible
from calmoe_jax.calibration.calibrators.temperature import fit_temperature, scale_log_probs

_MAX_STEPS = 60


class EnsembleFit(NamedTuple):
    """A fitted ensemble temperature scaling with its certificate.

    Attributes:
        temperature: T > 0, as in temperature scaling alone.
        mixing: weights of `softmax(z / T)`, `softmax(z)` and the uniform distribution; they are at
            least 0 and sum to 1.
        residual: upper bound of the loss at `mixing` minus its minimum over all mixing weights,
            given T, in nats: the largest entry of `G - 1`, with `G_j` the mean of
            `q_j / (mixing . q)` at the true class.
        converged: whether T is converged and the residual is at most eps^(2/3) (2e-5 in float32).
        at_bound: whether no finite T is optimal, as in `TemperatureFit`.
        num_steps: Newton steps taken for the mixing weights.
        reach: distance from the largest logit of an example beyond which a class is impossible:
            750 times the typical margin of the examples, and 750 nats, or more.
    """

    temperature: Float[Array, "*batch"]
    mixing: Float[Array, "*batch 3"]
    residual: Float[Array, "*batch"]
    converged: Bool[Array, "*batch"]
    at_bound: Bool[Array, "*batch"]
    num_steps: Int[Array, "*batch"]
    reach: Float[Array, "*batch"]


@checked
def fit_ensemble_temperature(
    logits: Float[Array, "examples classes"],
    labels: Int[Array, " examples"],
    *,
    weights: Float[Array, " examples"] | None = None,
    where: Bool[Array, " examples"] | None = None,
) -> EnsembleFit:
    """Fits the temperature, then the mixing: `w_1 softmax(z / T) + w_2 softmax(z) + w_3 / C`.

    T is that of `fit_temperature`. Given T the log loss is convex in `w`, and its minimum on the
    simplex is found by Newton's method: the quadratic model of each step is minimised on the whole
    simplex. For gradients the fit is a constant.

    Args:
        logits: logits or log probabilities; `-inf`, or a finite number as low as a mask is (beyond
            `reach`), for impossible classes, which the uniform distribution excludes.
        labels: class of each example, in `[0, classes)`.
        weights: non-negative weight of each example; 1 by default.
        where: examples that count; all by default.

    Returns:
        An `EnsembleFit`. T is 1 and all weight is on the first part, unconverged, if there is
        nothing to fit: no weight, or one class; or if the search ends above the loss of the logits
        as they are. If T = 1 the first two parts are the same, and any
        split of the weight between them is optimal. If T is NaN the weights are NaN.

    Example:
        >>> logits = jnp.log(jnp.array([[0.9, 0.1]] * 4))
        >>> fit = fit_ensemble_temperature(logits, jnp.array([0, 0, 0, 1]))
        >>> apply_ensemble_temperature(fit, logits)[0].round(2)
        Array([0.75, 0.25], dtype=float32)

    References:
        Zhang, Kailkhura and Han, Mix-n-Match: Ensemble and Compositional Methods for Uncertainty
        Calibration in Deep Learning, 2020.
    """
    logits = jax.lax.stop_gradient(at_least_float32(logits))
    dtype = logits.dtype
    weight = jax.lax.stop_gradient(example_weights(labels.shape, weights, where, dtype))
    scaled = fit_temperature(logits, labels, weights=weight)
    given = examples(logits, labels, weight)
    shown = jnp.where((given.weight > 0)[:, None], without_impossible(logits, given.reach), 0)
    parts = jnp.stack([pick_label(x, given.labels) for x in _parts(shown, scaled.temperature)], -1)
    # only ratios matter: scaled so that the largest part of each example is 1
    parts = jnp.exp(parts - jnp.max(parts, axis=-1, keepdims=True))
    fitted = (jnp.sum(given.weight) > 0) & ~given.invalid & (logits.shape[1] > 1)
    enough = float(jnp.finfo(dtype).eps) ** (2 / 3)
    mixing, steps = _best_mixing(parts, given.weight, fitted, enough)
    residual = jnp.maximum(jnp.max(_gain(_ratios(parts, mixing), given.weight)), 0)
    # relative to the original prediction, the second part
    gain = jnp.log(jnp.sum(parts * mixing[None], axis=-1)) - jnp.log(parts[:, 1])
    gain = jnp.sum(jnp.where(given.weight > 0, given.weight * gain, 0))
    kept = fitted & ((residual <= enough) | (gain >= 0))
    mixing = jnp.where(kept, mixing, jnp.array([1, 0, 0], dtype))
    return EnsembleFit(
        temperature=jnp.where(kept | ~fitted, scaled.temperature, 1),
        mixing=jnp.where(given.invalid, jnp.nan, mixing),
        residual=jnp.where(given.invalid, jnp.nan, jnp.where(fitted, residual, 0)),
        converged=scaled.converged & (residual <= enough),
        at_bound=scaled.at_bound & kept,
        num_steps=steps,
        reach=given.reach,
    )


@checked
def apply_ensemble_temperature(
    fit: EnsembleFit, logits: Float[Array, "examples classes"]
) -> Float[Array, "examples classes"]:
    """Probabilities `w_1 softmax(z / T) + w_2 softmax(z) + w_3 / C`.

    Args:
        fit: a fitted ensemble temperature scaling.
        logits: logits or log probabilities, as in the fit; impossible classes as there.

    Returns:
        Probabilities, at least float32; the order of the classes is unchanged.

    Example:
        >>> fit = fit_ensemble_temperature(jnp.zeros((2, 2)), jnp.array([0, 1]))
        >>> apply_ensemble_temperature(fit, jnp.zeros((1, 2)))
        Array([[0.5, 0.5]], dtype=float32)
    """
    logits = without_impossible(at_least_float32(logits), fit.reach)
    parts = jnp.exp(jnp.stack(_parts(logits, fit.temperature)))
    return jnp.sum(fit.mixing[:, None, None] * parts, axis=0)


def _parts(
    logits: Float[Array, "examples classes"], temperature: Float[Array, ""]
) -> tuple[Float[Array, "examples classes"], ...]:
    """Log probabilities of the three parts."""
    flat = jnp.where(jnp.isneginf(logits) | jnp.isnan(logits), logits, 0)
    return (
        scale_log_probs(logits, temperature[None]),
        jax.nn.log_softmax(logits, axis=-1),
        jax.nn.log_softmax(flat, axis=-1),
    )


def _ratios(
    parts: Float[Array, "examples 3"], mixing: Float[Array, " 3"]
) -> Float[Array, "examples 3"]:
    """Relative excess of each part over the mixture."""
    mixed = jnp.sum(parts * mixing[None], axis=-1, keepdims=True)
    return (parts - mixed) / mixed


def _gain(
    ratio: Float[Array, "examples 3"], weight: Float[Array, " examples"]
) -> Float[Array, " 3"]:
    return jnp.sum(weight[:, None] * ratio, axis=0)


def _moments(
    ratio: Float[Array, "examples 3"], weight: Float[Array, " examples"]
) -> tuple[Float[Array, "3 3"], Float[Array, " 3"]]:
    """The Hessian and the gain of the log loss.

    Not a product of matrices, which CPUs sum in order, nor sums of narrow rows, which are slow.
    """
    parts = [ratio[:, i] for i in range(3)]
    shares = [weight * part for part in parts]
    products = {(i, j): jnp.sum(shares[i] * parts[j]) for i in range(3) for j in range(i, 3)}
    cells = [products[min(i, j), max(i, j)] for i in range(3) for j in range(3)]
    return jnp.stack(cells).reshape(3, 3), jnp.stack([jnp.sum(share) for share in shares])


def _best_mixing(
    parts: Float[Array, "examples 3"],
    weight: Float[Array, " examples"],
    fitted: Bool[Array, ""],
    enough: float,
) -> tuple[Float[Array, " 3"], Int[Array, ""]]:
    """The mixing weights with the smallest log loss, and the Newton steps taken.

    Args:
        parts: probability of the true class under each part, up to a factor of the example.
        weight: weight of each example; they sum to 1.
        fitted: whether there is something to fit.
        enough: largest entry of the gradient at which rounding may end the search.
    """
    dtype = parts.dtype
    epsilon = float(jnp.finfo(dtype).eps)

    def unfinished(state: tuple[Any, ...]) -> Bool[Array, ""]:
        _, _, done, steps = state
        return ~done & (steps < _MAX_STEPS)

    def step(state: tuple[Any, ...]) -> tuple[Any, ...]:
        mixing, before, _, steps = state
        ratio = _ratios(parts, mixing)
        hessian, slope = _moments(ratio, weight)
        way = _best_step(mixing, hessian, slope)
        share = _line_search(jnp.sum(ratio * way[None], axis=-1), weight)
        new = jnp.maximum(mixing + share * way, 0)
        gap = jnp.max(slope)
        # close enough, and rounding prevents further progress
        done = (gap <= 4 * epsilon) | ((gap <= enough) & (gap > 0.5 * before))
        return jnp.where(done, mixing, new / jnp.sum(new)), gap, done, steps + 1

    middle, endless = jnp.full(3, 1 / 3, dtype), jnp.full((), jnp.inf, dtype)
    begin = (middle, endless, ~fitted, jnp.zeros((), jnp.int32))
    mixing, _, _, steps = jax.lax.while_loop(unfinished, step, begin)
    return mixing, steps


def _best_step(
    mixing: Float[Array, " 3"], hessian: Float[Array, "3 3"], gain: Float[Array, " 3"]
) -> Float[Array, " 3"]:
    """The step `s` that minimises `s H s / 2 - gain s` on the simplex.

    The candidates are the interior minimum and the minima on the edges, all relative to the current
    point, so that small steps stay accurate.
    """
    corners = jnp.eye(3, dtype=gain.dtype)
    # a little more curvature, in case parts are equal or nearly so
    more = 1 + 4 * float(jnp.finfo(gain.dtype).eps)

    def along(begin: Float[Array, " 3"], way: Float[Array, " 3"]) -> Float[Array, " 3"]:
        bent = more * (way @ hessian @ way)
        share = (gain - hessian @ begin) @ way / jnp.where(bent > 0, bent, 1)
        here = mixing + begin
        room = jnp.where(way == 0, jnp.inf, -here / jnp.where(way == 0, 1, way))
        low = jnp.max(jnp.where(way > 0, room, -jnp.inf))
        high = jnp.min(jnp.where(way < 0, room, jnp.inf))
        return begin + jnp.clip(share, low, high) * way

    steps = []
    for i, j in ((0, 1), (1, 2), (2, 0)):
        way = corners[j] - corners[i]
        steps += [along(jnp.zeros_like(mixing), way), along(corners[i] - mixing, way)]
    values = [step @ hessian @ step / 2 - gain @ step for step in steps]
    best = jnp.stack(steps)[jnp.argmin(jnp.stack(values))]

    ways = corners[:2] - corners[2:]
    bent = ways @ hessian @ ways.T
    right = ways @ gain
    determinant = more**2 * bent[0, 0] * bent[1, 1] - bent[0, 1] * bent[1, 0]
    first = more * bent[1, 1] * right[0] - bent[0, 1] * right[1]
    second = more * bent[0, 0] * right[1] - bent[1, 0] * right[0]
    step = jnp.stack([first, second]) / jnp.where(determinant > 0, determinant, 1) @ ways
    within = (mixing + step >= 0).all() & (determinant > 0)
    return jnp.where(within, step, best)


def _line_search(
    change: Float[Array, " examples"], weight: Float[Array, " examples"]
) -> Float[Array, ""]:
    """Fraction `t` of a step for which `-sum_i w_i log(1 + t c_i)` is below 0 and not too steep."""

    def slope(share: Float[Array, ""]) -> Float[Array, ""]:
        return -jnp.sum(weight * change / (1 + share * change))

    falling = slope(jnp.zeros((), change.dtype))
    noise = 8 * jnp.finfo(change.dtype).eps * jnp.sum(weight * jnp.abs(change))

    def overshot(share: Float[Array, ""]) -> Bool[Array, ""]:
        loss = -jnp.sum(weight * jnp.log1p(share * change))
        sound = (slope(share) <= 0.5 * jnp.abs(falling) + noise) & (loss <= share * noise)
        return ~sound & (share > 1e-4)

    def shorten(share: Float[Array, ""]) -> Float[Array, ""]:
        return share / 2

    return jax.lax.while_loop(overshot, shorten, jnp.ones((), change.dtype))
