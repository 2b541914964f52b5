"""Kernel calibration errors over pairs of examples, without bins, and a test of calibration."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from calmoe_jax._checks import check_at_least, check_positive
from calmoe_jax._numerics import at_least_float32, example_weights, in_unit
from calmoe_jax._signatures import checked
from calmoe_jax.calibration._inputs import event, probabilities
from calmoe_jax.calibration._sums import add_pairs

# Number of examples along each side of a tile of pairs.
_BLOCK = 256

# A sum and its rounding error.
_Pair = tuple[jax.Array, jax.Array]


class KernelTest(NamedTuple):
    """A kernel test of calibration.

    Attributes:
        statistic: the unbiased squared kernel calibration error.
        p_value: probability of a statistic this large if the forecast were calibrated.
    """

    statistic: Float[Array, ""]
    p_value: Float[Array, ""]


@checked
def maximum_mean_calibration_error(
    confidence: Float[Array, " examples"],
    outcome: Float[Array, " examples"] | Bool[Array, " examples"],
    *,
    bandwidth: float | Float[Array, ""] = 0.4,
    weights: Float[Array, " examples"] | None = None,
    where: Bool[Array, " examples"] | None = None,
) -> Float[Array, ""]:
    """Differentiable calibration error by a Laplacian kernel (MMCE).

    `sqrt(sum_ij w_i w_j r_i r_j exp(-|p_i - p_j| / b)) / sum_i w_i` with `r_i = p_i - y_i`: the
    largest mean of `r f(p)` over functions f in the unit ball of the kernel's RKHS. All pairs
    count, including an example with itself, so it is biased upward. The kernel decays along sorted
    confidences, so one sort and one scan give the sum over all pairs in memory O(n). Condition:
    that of the event (top-label for the confidence in the predicted class and its being right).

    Args:
        confidence: predicted probability of the event, in [0, 1].
        outcome: whether the event happened, or its probability.
        bandwidth: `b`, the distance over which the kernel falls by e, above 0.
        weights: non-negative weight of each example; 1 by default.
        where: examples that count; all by default.

    Returns:
        The error, in [0, 1]; NaN where nothing counts, or a confidence or outcome that counts is
        outside [0, 1]. Its gradient is finite everywhere, and zero where the error is 0. Between
        equal confidences the kernel has a kink; the gradient is then one-sided.

    Raises:
        ValueError: if `bandwidth` is not above 0.

    Example:
        >>> maximum_mean_calibration_error(jnp.array([0.75, 0.75]), jnp.array([1.0, 0.0]))
        Array(0.25, dtype=float32)

    References:
        Kumar, Sarawagi and Jain, Trainable Calibration Measures for Neural Networks from Kernel
        Mean Embeddings, 2018.
    """
    check_positive("bandwidth", bandwidth)
    confidence, outcome = event(confidence, outcome)
    weight = in_unit(example_weights(confidence.shape, weights, where, confidence.dtype))
    level = jnp.where(weight == 0, 0, confidence)
    residual = jnp.where(weight == 0, 0, confidence - outcome) * weight
    order = jnp.argsort(level)
    level, residual = level[order], residual[order]
    decay = jnp.exp((_shift(level, level[:1]) - level) / bandwidth)
    # the contribution of the examples below: s_i = d_i (s_{i-1} + r_{i-1})
    _, below = jax.lax.associative_scan(_chain, (decay, decay * _shift(residual)))
    square = jnp.sum(residual * (residual + 2 * below)) / jnp.square(jnp.sum(weight))
    zero = square <= 0  # so that NaN is not
    return jnp.where(zero, 0, jnp.sqrt(jnp.where(zero, 1, square)))


def _shift(
    values: Float[Array, " examples"], first: Float[Array, " first"] | None = None
) -> Float[Array, " examples"]:
    """The value of the previous row; `first`, or 0, for the first row."""
    first = jnp.zeros_like(values[:1]) if first is None else first
    return jnp.concatenate([first, values[:-1]])


def _chain(
    earlier: tuple[Float[Array, " pairs"], Float[Array, " pairs"]],
    later: tuple[Float[Array, " pairs"], Float[Array, " pairs"]],
) -> tuple[Float[Array, " pairs"], Float[Array, " pairs"]]:
    """Composition of the affine maps `s -> d s + c`, as pairs `(d, c)`."""
    return earlier[0] * later[0], later[0] * earlier[1] + later[1]


@checked
def squared_kernel_calibration_error(
    probs: Float[Array, "examples classes"],
    labels: Int[Array, " examples"],
    *,
    bandwidth: float | Float[Array, ""] = 0.4,
    weights: Float[Array, " examples"] | None = None,
    where: Bool[Array, " examples"] | None = None,
    from_logits: bool = False,
) -> Float[Array, ""]:
    """Squared kernel calibration error, unbiased and canonical (SKCE).

    `sum_{i != j} w_i w_j h_ij / sum_{i != j} w_i w_j` with
    `h_ij = exp(-|p_i - p_j|^2 / (2 b^2)) <e_{y_i} - p_i, e_{y_j} - p_j>`: every pair of different
    examples once. Pairs are cut into tiles of 256 by 256: time O(n^2 classes), memory O(n
    classes). Condition: canonical: `P(Y = . | F = p) = p`. For the top-label condition give
    `jnp.stack([1 - confidence, confidence], axis=-1)` and whether the prediction was right as
    labels 0 and 1.

    Args:
        probs: class probabilities (or logits, with `from_logits`).
        labels: class of each example, in `[0, classes)`.
        bandwidth: `b`, standard deviation of the Gaussian kernel on the simplex, above 0.
        weights: non-negative weight of each example; 1 by default.
        where: examples that count; all by default.
        from_logits: whether `probs` holds logits or log probabilities.

    Returns:
        The estimate. Its mean is 0 for a calibrated forecast, so it may be below 0. NaN where
        fewer than two examples count, a label that counts is outside the classes, or a row that
        counts is no distribution. Differentiable in `probs`, at the same order of memory.

    Raises:
        ValueError: if `bandwidth` is not above 0.
        TypeError: if the labels are not integers.

    Example:
        >>> probs = jnp.array([[0.5, 0.5]] * 4)
        >>> squared_kernel_calibration_error(probs, jnp.array([0, 0, 0, 0]))
        Array(0.5, dtype=float32)

    References:
        Widmann, Lindsten and Zachariah, Calibration Tests in Multi-class Classification: A
        Unifying Framework, 2019.
    """
    check_positive("bandwidth", bandwidth)
    probs, weight = _counted(probs, labels, weights, where, from_logits)
    return _unbiased(probs, labels[None, :], weight, bandwidth)[0]


@checked
def kernel_test(
    key: jax.Array,
    probs: Float[Array, "examples classes"],
    labels: Int[Array, " examples"],
    *,
    bandwidth: float | Float[Array, ""] = 0.4,
    num_replicates: int = 199,
    weights: Float[Array, " examples"] | None = None,
    where: Bool[Array, " examples"] | None = None,
    from_logits: bool = False,
) -> KernelTest:
    """Tests whether a forecast is calibrated, by the squared kernel calibration error.

    The hypothesis: the examples are independent, and each label is drawn from its own forecast.
    So labels are repeatedly drawn from the forecasts, and the p-value is
    `(1 + #{T_b >= T}) / (1 + replicates)` with `T` the observed statistic and `T_b` that of a
    draw. Under the hypothesis the observed labels are one more draw, so the test holds its level
    at any number of examples; no asymptotics of a degenerate statistic are needed. Condition:
    canonical, or top-label as in `squared_kernel_calibration_error`. The kernel of each tile is
    computed once for all draws.

    Args:
        key: random key.
        probs: class probabilities (or logits, with `from_logits`).
        labels: class of each example, in `[0, classes)`.
        bandwidth: standard deviation of the Gaussian kernel, above 0; not to be chosen by the
            labels.
        num_replicates: number of draws, at least 1; with 199 the level 0.05 is held exactly.
        weights: non-negative weight of each example, not chosen by its label; 1 by default.
        where: examples that count; all by default.
        from_logits: whether `probs` holds logits or log probabilities.

    Returns:
        Statistic and p-value, both NaN where the statistic is.

    Raises:
        ValueError: if `bandwidth` is not above 0 or `num_replicates` is less than 1.
        TypeError: if the labels are not integers.

    Example:
        >>> probs = jnp.array([[0.9, 0.1]] * 40)
        >>> right = jnp.arange(40) % 2
        >>> kernel_test(jax.random.key(0), probs, right).p_value
        Array(0.005, dtype=float32)

    References:
        Widmann, Lindsten and Zachariah, Calibration Tests in Multi-class Classification: A
        Unifying Framework, 2019; Bröcker and Smith, Increasing the Reliability of Reliability
        Diagrams, 2007 (labels drawn from the forecasts); Davison and Hinkley, Bootstrap Methods
        and their Application, 1997, section 4.2 (the p-value).
    """
    check_positive("bandwidth", bandwidth)
    check_at_least("num_replicates", num_replicates, 1)
    probs, weight = _counted(probs, labels, weights, where, from_logits)
    shape = (num_replicates, probs.shape[0])
    cumulative = jnp.cumsum(probs, axis=-1)
    drawn = jax.random.uniform(key, shape, probs.dtype) * cumulative[:, -1][None, :]
    below = jax.vmap(lambda row: jnp.sum(row[:, None] >= cumulative[:, :-1], axis=-1))(drawn)
    every = jnp.concatenate([labels[None, :], below.astype(labels.dtype)])
    statistics = _unbiased(probs, every, weight, bandwidth)
    observed = statistics[0]
    p_value = (1 + jnp.sum(statistics[1:] >= observed)) / (1 + num_replicates)
    p_value = jnp.where(jnp.isnan(observed), jnp.nan, p_value).astype(observed.dtype)
    return KernelTest(observed, p_value)


def _counted(
    probs: Float[Array, "examples classes"],
    labels: Int[Array, " examples"],
    weights: Float[Array, " examples"] | None,
    where: Bool[Array, " examples"] | None,
    from_logits: bool,
) -> tuple[Float[Array, "examples classes"], Float[Array, " examples"]]:
    """Probabilities, NaN in invalid rows and 0 in rows that do not count; and weights."""
    weight = example_weights(labels.shape, weights, where, at_least_float32(probs).dtype)
    counted = (weight != 0)[:, None]
    # before the softmax too: its gradient at NaN is NaN, even of a row that does not count
    probs = probabilities(jnp.where(counted, probs, 0), from_logits=from_logits)
    known = (labels >= 0) & (labels < probs.shape[-1])
    probs = jnp.where(known[:, None], probs, jnp.nan)
    return jnp.where(counted, probs, 0), weight


def _unbiased(
    probs: Float[Array, "examples classes"],
    labels: Int[Array, "replicates examples"],
    weight: Float[Array, " examples"],
    bandwidth: float | Float[Array, ""],
) -> Float[Array, " replicates"]:
    """The unbiased squared kernel calibration error under each replicate's labels."""
    examples, classes = probs.shape
    side = max(1, min(_BLOCK, examples))
    blocks = max(1, -(-examples // side))
    spare = blocks * side - examples
    probs = jnp.pad(probs, ((0, spare), (0, 0))).reshape(blocks, side, classes)
    shares = jnp.pad(in_unit(weight), (0, spare)).reshape(blocks, side)
    labels = jnp.pad(labels, ((0, 0), (0, spare))).reshape(-1, blocks, side)
    replicates = labels.shape[0]

    def residuals(block: Int[Array, ""]) -> Float[Array, "side replicates classes"]:
        true = jax.nn.one_hot(labels[:, block].T, classes, dtype=probs.dtype)
        return (true - probs[block][:, None, :]) * shares[block][:, None, None]

    def tile(
        totals: tuple[_Pair, _Pair], pair: Int[Array, "2"]
    ) -> tuple[tuple[_Pair, _Pair], None]:
        row, column = pair
        kernel = _gaussian(probs[row], probs[column], bandwidth)
        # a pair of blocks also counts for its transpose, and no example is paired with itself
        twice = jnp.where(row == column, 1 - jnp.eye(side, dtype=kernel.dtype), 2)
        smoothed = jnp.einsum(
            "ij,jrc->irc", kernel * twice, residuals(column), precision=jax.lax.Precision.HIGHEST
        )
        held = jnp.sum(shares[row][:, None] * twice * shares[column][None, :])
        added = jnp.sum(smoothed * residuals(row), axis=(0, 2)), held
        summed, weighed = (
            add_pairs(old, (new, jnp.zeros_like(new)))
            for old, new in zip(totals, added, strict=True)
        )
        return (summed, weighed), None

    pairs = jnp.asarray(np.stack(np.triu_indices(blocks), axis=-1), jnp.int32)
    # recomputed in the backward pass, which would otherwise keep every tile
    empty, zero = jnp.zeros(replicates, probs.dtype), jnp.zeros((), probs.dtype)
    start = (empty, empty), (zero, zero)  # with rounding errors: there are thousands of tiles
    # the weight of all pairs is summed too: (sum w)^2 - sum w^2 would cancel where one is large
    (total, held), _ = jax.lax.scan(jax.checkpoint(tile), start, pairs)
    return (total[0] + total[1]) / (held[0] + held[1])


def _gaussian(
    left: Float[Array, "side classes"],
    right: Float[Array, "side classes"],
    bandwidth: float | Float[Array, ""],
) -> Float[Array, "side side"]:
    product = jnp.matmul(left, right.T, precision=jax.lax.Precision.HIGHEST)
    norms = jnp.sum(jnp.square(left), axis=-1)[:, None] + jnp.sum(jnp.square(right), axis=-1)[None]
    return jnp.exp((product - norms / 2) / bandwidth**2)
