"""What an adversary may look at: signals of each example, and of its routing configuration."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from calmoe_jax._checks import check_at_least, check_positive
from calmoe_jax._numerics import at_least_float32, entropy
from calmoe_jax.reweighting._solver.linear import solve_semidefinite


def brier_signal(
    log_probs: Float[Array, "examples classes"], labels: Int[Array, " examples"]
) -> Float[Array, " examples"]:
    """Brier score of each example: `sum_c (F_c - 1{c = y})^2`, in [0, 2].

    Bounded, so that an adversary of a fixed `eta` does not fall for single examples.

    Args:
        log_probs: log probabilities of the aggregate.
        labels: class of each example, in `[0, classes)`.

    Returns:
        The scores, at least float32.

    Example:
        >>> brier_signal(jnp.log(jnp.array([[0.75, 0.25]])), jnp.array([0]))
        Array([0.125], dtype=float32)
    """
    probs = jnp.exp(at_least_float32(log_probs))
    return jnp.sum((probs - jax.nn.one_hot(labels, probs.shape[-1])) ** 2, axis=-1)


def excess_loss(
    losses: Float[Array, " examples"], log_probs: Float[Array, "examples classes"]
) -> Float[Array, " examples"]:
    """Loss beyond what the prediction itself expects: `L - H(F)`, in nats.

    Of mean 0 where the aggregate is calibrated in the canonical sense, however hard the examples.

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


def calibration_witness(
    confidence: Float[Array, " examples"],
    correct: Float[Array, " examples"] | Bool[Array, " examples"],
    *,
    bandwidth: float = 0.1,
    num_folds: int = 2,
) -> Float[Array, " examples"]:
    """Where the calibration is wrong, and which way: `z(c_i) (c_i - y_i)`, in [-1, 1].

    `z` is the sign of the mean of `c - y` near a confidence (Gaussian kernel), estimated on the
    other folds. For any `z` with values in [-1, 1] the weighted mean of the signal is a lower bound
    of the weighted top-label calibration error.

    Args:
        confidence: top-label confidence, in [0, 1].
        correct: whether the top label is right.
        bandwidth: of the kernel, above 0.
        num_folds: folds, by the examples' positions; at least 2.

    Returns:
        The signal, at least float32. Quadratic in the examples: for batches.

    Raises:
        ValueError: if the bandwidth is not above 0 or there are fewer than two folds.

    Example:
        >>> calibration_witness(jnp.full(4, 0.75), jnp.array([1.0, 1.0, 0.0, 0.0]))
        Array([-0.25, -0.25,  0.75,  0.75], dtype=float32)
    """
    check_positive("bandwidth", bandwidth)
    check_at_least("num_folds", num_folds, 2)
    confidence = at_least_float32(confidence)
    residual = confidence - correct.astype(confidence.dtype)
    fold = jnp.arange(len(confidence)) % num_folds
    apart = (confidence[:, None] - confidence[None]) / bandwidth
    kernel = jnp.where(fold[:, None] == fold[None], 0, jnp.exp(-0.5 * apart**2))
    return jnp.sign(kernel @ residual) * residual


def configuration_signal(
    losses: Float[Array, " examples"],
    features: Float[Array, "examples features"],
    *,
    ridge: float = 0.1,
    num_folds: int = 2,
    where: Bool[Array, " examples"] | None = None,
) -> Float[Array, " examples"]:
    """The loss as the routing configuration foretells it, which no single label can move.

    Ridge regression of the losses on the standardised features, each fold's from the other folds.
    Weights that depend on it alone keep every proper loss proper: with weights that depend on the
    label the best prediction is not the truth (of `exp(eta L)` it is `p ~ pi^(1 / (1 + eta))`).

    Args:
        losses: loss of each example.
        features: of the configuration, as from `configuration_features`.
        ridge: penalty on standardised coefficients, in units of an example's share; above 0.
        num_folds: folds, by the examples' positions; at least 2.
        where: examples that count; all by default.

    Returns:
        The foretold losses, at least float32, a constant for gradients; the mean loss where there
        is nothing to learn from.

    Raises:
        ValueError: if the ridge is not above 0, there are fewer than two folds, or the features are
            of other examples.

    Example:
        >>> features = jnp.arange(100.0)[:, None]
        >>> configuration_signal(features[:, 0], features, ridge=1e-4)[98:].round(1)
        Array([98., 99.], dtype=float32)
    """
    check_positive("ridge", ridge)
    check_at_least("num_folds", num_folds, 2)
    if len(features) != len(losses):
        raise ValueError(
            f"features must be of the {len(losses)} examples of losses, got "
            f"features.shape={features.shape}."
        )
    losses = jax.lax.stop_gradient(at_least_float32(losses))
    features = jax.lax.stop_gradient(at_least_float32(features))
    counted = jnp.ones(losses.shape, bool) if where is None else where
    losses, features = (
        jnp.where(counted, losses, 0),
        jnp.where(counted[:, None], features, 0),
    )
    fold = jnp.arange(len(losses)) % num_folds

    def foretell(number: jax.Array) -> Float[Array, " examples"]:
        share = (counted & (fold != number)).astype(losses.dtype)
        share /= jnp.maximum(share.sum(), 1)
        middle, mean = share @ features, share @ losses
        spread = jnp.sqrt(share @ (features - middle[None]) ** 2)
        flat = spread <= 1e-6 * (1 + jnp.abs(middle))
        standard = jnp.where(
            flat[None], 0, (features - middle[None]) / jnp.where(flat, 1, spread)[None]
        )
        weighted = standard * share[:, None]
        normal = weighted.T @ standard + ridge * jnp.eye(features.shape[1], dtype=losses.dtype)
        slopes = solve_semidefinite(
            normal, weighted.T @ (losses - mean), jnp.ones(features.shape[1], bool)
        )
        return mean + standard @ slopes

    every = jax.vmap(foretell)(jnp.arange(num_folds))
    return jnp.take_along_axis(every, fold[None], axis=0)[0]
