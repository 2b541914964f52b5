"""Signals for an adversary, from each example and from its routing configuration."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from calmoe_jax._checks import check_at_least, check_positive
from calmoe_jax._numerics import AxisName, all_rows, at_least_float32, entropy, psum, row_positions
from calmoe_jax._signatures import checked
from calmoe_jax.reweighting._solver.regression import ends_of, predicted_last
from calmoe_jax.reweighting._solver.units import one_row


@checked
def brier_signal(
    log_probs: Float[Array, "examples classes"], labels: Int[Array, " examples"]
) -> Float[Array, " examples"]:
    """Brier score of each example: `sum_c (F_c - 1{c = y})^2`, in [0, 2].

    Bounded, so that an adversary of a fixed `eta` is not dominated by single examples.

    Args:
        log_probs: log probabilities of the aggregate.
        labels: class of each example, in `[0, classes)`.

    Returns:
        The scores, at least float32; NaN for a label outside `[0, classes)`.

    Example:
        >>> brier_signal(jnp.log(jnp.array([[0.75, 0.25]])), jnp.array([0]))
        Array([0.125], dtype=float32)
    """
    probs = jnp.exp(at_least_float32(log_probs))
    classes = probs.shape[-1]
    scores = jnp.sum((probs - jax.nn.one_hot(labels, classes, dtype=probs.dtype)) ** 2, axis=-1)
    return jnp.where((labels >= 0) & (labels < classes), scores, jnp.nan)


@checked
def excess_loss(
    losses: Float[Array, " examples"], log_probs: Float[Array, "examples classes"]
) -> Float[Array, " examples"]:
    """Loss beyond what the prediction itself expects: `L - H(F)`, in nats.

    Its mean is 0 if the aggregate is calibrated in the canonical sense, however hard the examples.

    Args:
        losses: log loss of each example.
        log_probs: log probabilities of the aggregate.

    Returns:
        The excess, at least float32.

    Example:
        >>> excess_loss(jnp.log(jnp.array([2.0])), jnp.log(jnp.array([[0.5, 0.5]])))
        Array([0.], dtype=float32)
    """
    return at_least_float32(losses) - entropy(jnp.exp(at_least_float32(log_probs)))


@checked
def calibration_witness(
    confidence: Float[Array, " examples"],
    correct: Float[Array, " examples"] | Bool[Array, " examples"],
    *,
    bandwidth: float = 0.1,
    num_folds: int = 2,
    where: Bool[Array, " examples"] | None = None,
    axis_name: AxisName = None,
) -> Float[Array, " examples"]:
    """Signed calibration error of each example: `z(c_i) (c_i - y_i)`, in [-1, 1].

    `z` is the sign of the mean of `c - y` near a confidence (Gaussian kernel), estimated on the
    other folds. For any `z` with values in [-1, 1] the weighted mean of the signal is a lower bound
    of the weighted top-label calibration error.

    Args:
        confidence: top-label confidence, in [0, 1].
        correct: whether the top label is right.
        bandwidth: bandwidth of the kernel, above 0.
        num_folds: folds, by the examples' positions; at least 2.
        where: examples that count; all by default.
        axis_name: device axis that the examples are sharded over: positions are those among the
            examples of all devices, and each device compares its own with all of them.

    Returns:
        The signal, at least float32; 0 for examples that do not count. The cost is quadratic in the
        number of examples: meant for batches.

    Raises:
        ValueError: if the bandwidth is not above 0, there are fewer than two folds, or `where` has
            another shape.

    Example:
        >>> calibration_witness(jnp.full(4, 0.75), jnp.array([1.0, 1.0, 0.0, 0.0]))
        Array([-0.25, -0.25,  0.75,  0.75], dtype=float32)
    """
    check_positive("bandwidth", bandwidth)
    check_at_least("num_folds", num_folds, 2)
    confidence = at_least_float32(confidence)
    residual = confidence - correct.astype(confidence.dtype)
    if where is not None:
        confidence, residual = (jnp.where(where, x, 0) for x in (confidence, residual))
    fold = row_positions(len(confidence), axis_name) % num_folds
    others, other_residual = all_rows(confidence, axis_name), all_rows(residual, axis_name)
    other_fold = jnp.arange(len(others)) % num_folds
    distance = (confidence[:, None] - others[None]) / bandwidth
    kernel = jnp.where(fold[:, None] == other_fold[None], 0, jnp.exp(-0.5 * distance**2))
    near = jnp.matmul(kernel, other_residual, precision=jax.lax.Precision.HIGHEST)
    return jnp.sign(near) * residual


@checked
def configuration_signal(
    losses: Float[Array, " examples"],
    features: Float[Array, "examples features"],
    *,
    ridge: float = 0.1,
    num_folds: int = 2,
    where: Bool[Array, " examples"] | None = None,
    axis_name: AxisName = None,
) -> Float[Array, " examples"]:
    """The loss predicted from the routing configuration, independent of the example's own label.

    Ridge regression of the losses on the standardised features, cross-fitted over folds.
    Weights that depend on it alone keep every proper loss proper: with weights that depend on the
    label the best prediction is not the truth (of `exp(eta L)` it is `p ~ pi^(1 / (1 + eta))`).

    Args:
        losses: loss of each example.
        features: features of the configuration, as from `configuration_features`.
        ridge: penalty on standardised coefficients, in units of an example's share; above 0.
        num_folds: folds, by the examples' positions; at least 2.
        where: examples that count; all by default.
        axis_name: device axis that the examples are sharded over: positions are those among the
            examples of all devices, so that the result is that of a single device.

    Returns:
        The predicted losses, at least float32, a constant for gradients; the mean loss if there are
        no other examples to learn from.

    Raises:
        ValueError: if `ridge` is not above 0, there are fewer than two folds, `features` and
            `losses` differ in examples, or `where` has another shape.

    Example:
        >>> features = jnp.arange(100.0)[:, None]
        >>> configuration_signal(features[:, 0], features, ridge=1e-4)[98:].round(1)
        Array([98., 99.], dtype=float32)
    """
    check_positive("ridge", ridge)
    check_at_least("num_folds", num_folds, 2)
    if len(features) != len(losses):
        raise ValueError(
            f"features must have the {len(losses)} examples of losses, got "
            f"features.shape={features.shape}."
        )
    losses = jax.lax.stop_gradient(at_least_float32(losses))
    features = jax.lax.stop_gradient(at_least_float32(features))
    counted = jnp.ones(losses.shape, bool) if where is None else where
    rows = jnp.concatenate([features, losses[:, None]], axis=1)
    if where is not None:
        one = one_row(jnp.where(where[:, None], rows, 0), where.astype(rows.dtype), axis_name)
        rows = jnp.where(where[:, None], rows, one[None])
    fold = row_positions(len(losses), axis_name) % num_folds
    ends = ends_of(rows, axis_name)

    def predict(number: jax.Array) -> Float[Array, " examples"]:
        others = counted & (fold != number)
        # without others to learn from, the mean loss of all
        alone = psum(jnp.sum(others), axis_name) == 0
        learnt = jnp.where(alone, counted, others)
        return predicted_last(rows, ends, learnt, ~alone, ridge=ridge, axis_name=axis_name)

    every = jax.lax.map(predict, jnp.arange(num_folds))
    return jnp.take_along_axis(every, fold[None], axis=0)[0]
