"""Accuracy on unlabelled examples from the agreement of models with one training recipe."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from calmoe_jax._checks import check_at_least, check_non_negative
from calmoe_jax._numerics import AxisName, at_least_float32, psum
from calmoe_jax._signatures import checked

_HIGHEST = jax.lax.Precision.HIGHEST
# Standard errors in favour of the targets that the mode safe takes: an estimate that must not do
# harm where agreement is lost by chance alone. Of 1, 1.25, 1.5 and 2 the smallest with which no
# simulated shift of `experiments.repair_protocol` is harmed by more than .02 ECE.
SAFE_MARGIN = 1.25


class Agreement(NamedTuple):
    """How far models with one training recipe agree.

    Attributes:
        kappa: Cohen's kappa of each model with the others, averaged over them.
        standard_error: standard error of kappa for independent examples; that of one pair, since
            pairs share a model.
    """

    kappa: Float[Array, " models"]
    standard_error: Float[Array, " models"]


@checked
def chance_corrected_agreement(
    predicted: Int[Array, "models examples"],
    *,
    num_classes: int,
    where: Bool[Array, " examples"] | None = None,
    axis_name: AxisName = None,
) -> Agreement:
    """Cohen's kappa of each model with the others, averaged over them.

    `(a - e) / (1 - e)`, with `a` the share of examples on which two models predict the same class
    and `e = sum_c q_c q'_c` the share expected by chance from the class frequencies of their
    predictions. Kappa is 0 for models that all predict a single class.

    Args:
        predicted: class that each model predicts, in `[0, num_classes)`.
        num_classes: number of classes, at least 2.
        where: examples that count; all by default.
        axis_name: device axis that the examples are sharded over.

    Returns:
        An `Agreement`. Kappa is at most 1, and 0 if two models predict one and the same class for
        all examples; NaN with fewer than two models, if no example counts, or for a class outside
        `[0, num_classes)` in an example that counts.

    Raises:
        ValueError: if `num_classes` is less than 2 or shapes do not match.

    Example:
        >>> predicted = jnp.array([[0, 1, 1, 0], [0, 1, 0, 0]])
        >>> chance_corrected_agreement(predicted, num_classes=2).kappa
        Array([0.5, 0.5], dtype=float32)

    References:
        Cohen, A Coefficient of Agreement for Nominal Scales, 1960.
    """
    check_at_least("num_classes", num_classes, 2)
    num_models, num_examples = predicted.shape
    chosen = jax.nn.one_hot(predicted, num_classes, dtype=jnp.float32)
    inside = (predicted >= 0) & (predicted < num_classes)
    chosen = jnp.where(inside[:, :, None], chosen, jnp.nan)
    if where is not None:
        chosen = jnp.where(where[None, :, None], chosen, 0)
    held = jnp.asarray(num_examples) if where is None else jnp.sum(where)
    total = psum(held, axis_name).astype(chosen.dtype)
    shares = psum(jnp.sum(chosen, axis=1), axis_name) / total
    expected = jnp.matmul(shares, shares.T, precision=_HIGHEST)
    agreeing = psum(jnp.einsum("inc,jnc->ij", chosen, chosen, precision=_HIGHEST), axis_name)
    agreeing /= total
    certain = expected >= 1
    scale = jnp.where(certain, 1, 1 - expected)
    kappa = jnp.where(certain, 0, agreeing - expected) / scale
    variance = jnp.where(certain, 0, agreeing * (1 - agreeing) / total) / jnp.square(scale)
    others = 1 - jnp.eye(num_models, dtype=chosen.dtype)

    def over_others(values: Float[Array, "models models"]) -> Float[Array, " models"]:
        return jnp.sum(jnp.where(others > 0, values, 0), axis=1) / jnp.sum(others, axis=1)

    return Agreement(over_others(kappa), jnp.sqrt(jnp.maximum(over_others(variance), 0)))


@checked
def agreement_accuracy(
    held_out: Agreement,
    targets: Agreement,
    held_out_accuracy: Float[Array, " models"],
    chance: Float[Array, " models"] | float,
    *,
    target_confidence: Float[Array, " models"] | None = None,
    growth: float = 3.0,
    margin: float = SAFE_MARGIN,
) -> Float[Array, " models"]:
    """Estimated accuracy on unlabelled examples: its excess over chance falls with agreement.

    With `rho = (kappa_targets + margin e) / kappa_held_out`, clipped to [0, 1], and `e` the
    standard error of the difference: `chance + (anchor - chance) rho^(1 + growth (1 - rho)^2)`,
    where the anchor is the larger of the held-out accuracy and the mean confidence on the targets.
    To first order in the loss of agreement it is proportional; the exponent grows because the
    errors of such models coincide the more, the further examples are from the training data.

    Args:
        held_out: `chance_corrected_agreement` on labelled held-out examples.
        targets: the same on the unlabelled ones.
        held_out_accuracy: accuracy on the held-out examples, or mean confidence there after
            calibration, which varies less.
        chance: accuracy of a guess; 1 / classes where classes are equally frequent.
        target_confidence: mean confidence on the targets, after the same calibration. Where they
            are easier than the held-out examples, as after a change of the classes' shares, the
            estimate is then not held down to the accuracy of the harder ones. By default the
            anchor is the held-out accuracy.
        growth: growth of the exponent as agreement is lost, at least 0.
        margin: standard errors in favour of the targets, at least 0; by default those of the mode
            safe.

    Returns:
        The estimate, never above the anchor (where that exceeds chance): agreement does not show
        that a model became better. NaN where kappa or the anchor is NaN, or kappa is not above 0
        on held-out examples: the agreement of such models is no evidence.

    Raises:
        ValueError: if `growth` or `margin` is negative.

    Example:
        >>> sure = jnp.zeros(1)
        >>> half, whole = Agreement(jnp.full(1, 0.5), sure), Agreement(jnp.ones(1), sure)
        >>> round(float(agreement_accuracy(whole, half, jnp.full(1, 0.9), 0.1)[0]), 3)
        0.338

    References:
        Jiang et al., Assessing Generalization of SGD via Disagreement, 2022; Baek et al.,
        Agreement-on-the-Line, 2022. The chance correction and the exponent are ours: chosen by
        calibration error on `portal`, `newsgroups`, `sentiment` and `digits16`.
    """
    check_non_negative("growth", growth)
    check_non_negative("margin", margin)
    informative = held_out.kappa > 0
    error = jnp.hypot(held_out.standard_error, targets.standard_error)
    ratio = (targets.kappa + margin * error) / jnp.where(informative, held_out.kappa, 1)
    rho = jnp.where(informative, jnp.clip(ratio, 0, 1), jnp.nan)
    kept = jnp.power(rho, 1 + growth * jnp.square(1 - rho))
    anchor = at_least_float32(held_out_accuracy)
    if target_confidence is not None:
        # of the type of the other: promotion may be strict
        anchor = jnp.maximum(anchor, target_confidence.astype(anchor.dtype))
    chance = jnp.asarray(chance, anchor.dtype)
    return chance + (anchor - chance) * kept.astype(anchor.dtype)
