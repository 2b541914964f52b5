"""What a backbone returns: features, and what its sparse layers did."""

from typing import NamedTuple

import jax
from jaxtyping import Array, Float

from calmoe_jax._numerics import at_least_float32
from calmoe_jax.moe import LayerStatistics


class Features(NamedTuple):
    """Features of a batch, and the statistics of the sparse layers that made them.

    Attributes:
        values: features of each example.
        layers: sums of the sparse layers over their tokens; `None` without sparse layers.
    """

    values: Float[Array, "tokens features"]
    layers: LayerStatistics | None = None


def features_of(output: jax.Array | Features) -> Features:
    """What a backbone returned, as `Features` of at least float32; plain arrays have no layers.

    Args:
        output: features, or `Features`.

    Example:
        >>> features_of(jnp.ones((2, 3), jnp.bfloat16)).values.dtype
        dtype('float32')
    """
    features = output if isinstance(output, Features) else Features(output)
    return features._replace(values=at_least_float32(features.values))
