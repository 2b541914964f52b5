"""Small numerical helpers that define the edge cases (empty, masked, zero) in one place."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

AxisName = str | Sequence[str] | None


def at_least_float32(x: Shaped[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Promotes integers and coarser floats to float32, and leaves float64 as it is."""
    return x.astype(wide_dtype(x.dtype))


def wide_dtype(*dtypes: jnp.dtype) -> jnp.dtype:
    """float64 if one of the dtypes is, otherwise float32; `jnp.promote_types` may be strict."""
    return jnp.dtype(jnp.float64 if jnp.float64 in dtypes else jnp.float32)


def psum(x: Shaped[Array, "..."], axis_name: AxisName) -> Shaped[Array, "..."]:
    """Sum over a named device axis; the identity where `axis_name` is `None`."""
    return x if axis_name is None else jax.lax.psum(x, axis_name)


def pmax(x: Shaped[Array, "..."], axis_name: AxisName) -> Shaped[Array, "..."]:
    """Maximum over a named device axis; the identity where `axis_name` is `None`."""
    return x if axis_name is None else jax.lax.pmax(x, axis_name)


def pmin(x: Shaped[Array, "..."], axis_name: AxisName) -> Shaped[Array, "..."]:
    """Minimum over a named device axis; the identity where `axis_name` is `None`."""
    return x if axis_name is None else jax.lax.pmin(x, axis_name)


def all_rows(x: Shaped[Array, "rows ..."], axis_name: AxisName) -> Shaped[Array, "_ ..."]:
    """Gathers the rows of all devices, in order, on each; the identity if `axis_name` is `None`.

    For statistics of ranks or pairs of examples, which are not sums over examples.
    """
    if axis_name is None:
        return x
    return jax.lax.all_gather(x, axis_name, tiled=True, to="invarying")


def row_positions(size: int, axis_name: AxisName) -> Int[Array, " size"]:
    """Position of each row among the rows of all devices, with `size` rows on each."""
    positions = jnp.arange(size)
    return positions if axis_name is None else positions + size * jax.lax.axis_index(axis_name)


def all_size(size: int, axis_name: AxisName) -> int:
    """Number of rows on all devices, with `size` rows on each."""
    return size if axis_name is None else size * int(jax.lax.axis_size(axis_name))


def safe_divide(
    numerator: Float[Array, "*shape"], denominator: Float[Array, "*shape"]
) -> Float[Array, "*shape"]:
    """`numerator / denominator`, and 0 with zero gradient where the denominator is 0."""
    empty = denominator == 0
    return jnp.where(empty, 0, numerator) / jnp.where(empty, 1, denominator)


def log_or_neginf(values: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The logarithm of numbers that are not negative; `-inf`, with zero gradient, at 0."""
    positive = values != 0
    return jnp.where(positive, jnp.log(jnp.where(positive, values, 1)), -jnp.inf)


def two_sum(
    a: Float[Array, "*shape"], b: Float[Array, "*shape"]
) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"]]:
    """`a + b` and its rounding error; their sum is exact (of finite numbers)."""
    total = a + b
    rounded = total - a
    return total, (a - (total - rounded)) + (b - rounded)


@jax.custom_jvp
def normal_cdf(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Distribution function of the standard normal, accurate in its left tail.

    Its derivative is written out because JAX 0.12 cannot trace that of `erf` and `erfc` under
    `shard_map` ("Primitive polynomial requires varying manual axes to match").
    """
    return 0.5 * jax.lax.erfc(-x * math.sqrt(0.5))


@normal_cdf.defjvp
def _normal_cdf_derivative(
    primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    (x,) = primals
    # in bfloat16 the square's rounding would be 1 % of the result
    density = jnp.exp(-0.5 * jnp.square(at_least_float32(x))) / math.sqrt(2 * math.pi)
    return normal_cdf(x), tangents[0] * density.astype(x.dtype)


def entropy(probs: Float[Array, "*shape categories"]) -> Float[Array, "*shape"]:
    """Shannon entropy in nats along the last axis; `0 log 0 = 0`, with zero gradient there."""
    positive = probs > 0
    logs = jnp.log(jnp.where(positive, probs, 1))
    terms = jnp.where(positive | jnp.isnan(probs), probs, 0) * logs
    return -jnp.sum(terms, axis=-1)


def largest_or_nan(values: Float[Array, "*shape categories"]) -> Float[Array, "*shape"]:
    """Largest value along the last axis; NaN if any value is NaN.

    `jnp.max` promises the same, but XLA's CPU compiler loses NaN in maxima of long rows (60 or
    more numbers in 384 rows, jax 0.10.2 and 0.12): a row of NaN gives -inf.
    """
    return jnp.where(jnp.isnan(values).any(axis=-1), jnp.nan, jnp.max(values, axis=-1))


def top_two_margin(values: Float[Array, "*shape categories"]) -> Float[Array, "*shape"]:
    """Largest minus second largest value along the last axis; the value itself if it is alone."""
    if values.shape[-1] == 1:
        return values[..., 0]
    top = jax.lax.top_k(values, 2)[0]
    return top[..., 0] - top[..., 1]


def pick_label(
    values: Float[Array, "*shape classes"], labels: Int[Array, "*shape"]
) -> Float[Array, "*shape"]:
    """`values[..., labels]`; NaN where a label is outside `[0, classes)`."""
    picked = jnp.take_along_axis(
        values, labels[..., None], axis=-1, mode="fill", fill_value=jnp.nan
    )[..., 0]
    return jnp.where(labels < 0, jnp.nan, picked)


def example_weights(
    shape: tuple[int, ...],
    weights: Float[Array, "*shape"] | None,
    where: Bool[Array, "*shape"] | None,
    dtype: jnp.dtype,
) -> Float[Array, "*shape"]:
    """Weights of examples after masking: `weights` (default 1), and 0 outside `where`.

    A negative one that counts is NaN, and so makes NaN of what is made of it.
    """
    if weights is None:
        result = jnp.ones(shape, dtype)
    else:
        result = jnp.where(weights < 0, jnp.nan, weights).astype(dtype)
    return result if where is None else jnp.where(where, result, 0)


def in_unit(weights: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The weights in units of a power of 2 near the largest, so that their squares are numbers.

    Exact; for results that depend on ratios of weights only.
    """
    exponent = jnp.frexp(jnp.max(weights, initial=0))[1]
    return jnp.ldexp(weights, -exponent)


def weighted_sum(
    values: Float[Array, "*shape"], weights: Float[Array, "*shape"]
) -> Float[Array, ""]:
    """Sum of `weights * values`; values of weight 0 do not count, even if they are NaN."""
    return jnp.sum(jnp.where(weights == 0, 0, values) * weights)
