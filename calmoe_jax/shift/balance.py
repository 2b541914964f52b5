"""Weights that match held-out examples to unlabelled targets, by their configurations."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from calmoe_jax._numerics import AxisName, at_least_float32, example_weights, psum
from calmoe_jax._signatures import checked
from calmoe_jax.reweighting import BalanceSolution, entropy_balance


@checked
def configuration_balance(
    held_out: Float[Array, "examples features"],
    targets: Float[Array, "targets features"],
    *,
    weights: Float[Array, " examples"] | None = None,
    where: Bool[Array, " examples"] | None = None,
    target_weights: Float[Array, " targets"] | None = None,
    target_where: Bool[Array, " targets"] | None = None,
    ridge: float | Float[Array, ""] = 0.3,
    axis_name: AxisName = None,
) -> BalanceSolution:
    """Weights of held-out examples under which their mean features are those of the targets.

    `min_w KL(w || q) + |miss|^2 / (2 ridge)`, with the miss in standard deviations of the held-out
    features. Give the weights to any calibrator (`weights=jnp.exp(solution.log_weights)`): it is
    then fitted for the targets, if their labels depend on the routing configuration as on the
    held-out examples, and the logarithm of the density ratio is linear in the features.

    Args:
        held_out: features of labelled held-out examples, as from `configuration_features`.
        targets: features of the unlabelled targets.
        weights: base weights of the held-out examples; uniform by default.
        where: held-out examples that count; all by default.
        target_weights: non-negative weight of each target; 1 by default.
        target_where: targets that count; all by default.
        ridge: regularisation of the balance; 0 for exact balance. 0.3 kept most of the effective
            sample size on the tasks of this package.
        axis_name: device axis that the examples and the targets are sharded over.

    Returns:
        A `BalanceSolution`. `effective_sample_size` is the evidence that is left: of the order of
        a tenth of the examples or less, targets are where hardly anything was held out. With no
        target that counts the log weights are NaN.

    Raises:
        ValueError: if the numbers of features differ, `ridge` is negative, or a mask has another
            shape than its examples.

    Example:
        >>> held_out, targets = jnp.array([[0.0], [1.0], [1.0], [0.0]]), jnp.array([[0.75]])
        >>> solution = configuration_balance(held_out, targets, ridge=0.0)
        >>> [round(w, 3) for w in jnp.exp(solution.log_weights).tolist()]
        [0.125, 0.375, 0.375, 0.125]

    References:
        Hainmueller, Entropy Balancing for Causal Effects, 2012. Balancing the configuration rests
        on Wong et al., Toward Calibrated Mixture-of-Experts Under Distribution Shift, 2026.
    """
    features = at_least_float32(held_out)
    counted = example_weights(targets.shape[:1], target_weights, target_where, features.dtype)
    own = example_weights(held_out.shape[:1], weights, where, features.dtype)

    def mean_of(rows: Float[Array, "n features"], weight: Float[Array, " n"]) -> Array:
        rows = jnp.where(weight[:, None] == 0, 0, rows)
        share = weight / psum(jnp.sum(weight), axis_name)
        return psum(jnp.sum(rows * share[:, None], axis=0), axis_name)

    # relative to a value near the held-out ones, means far from 0 keep their digits
    pivot = mean_of(features, own)
    pivot = jnp.where(jnp.isfinite(pivot), pivot, 0)
    features = features - pivot[None]
    moments = mean_of(targets.astype(features.dtype) - pivot[None], counted)
    return entropy_balance(
        jnp.zeros(len(features), features.dtype),
        features,
        moments,
        eta=1.0,
        weights=weights,
        where=where,
        ridge=ridge,
        axis_name=axis_name,
    )
