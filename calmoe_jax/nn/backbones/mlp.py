"""Fully connected layers."""

import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from calmoe_jax._checks import check_at_least


class MLP(nnx.Module):
    """Fully connected layers with ReLU after each; inputs are flattened.

    Parameters: `sum_l (n_{l-1} + 1) n_l`. Initialisation: LeCun normal weights, zero biases.
    """

    def __init__(
        self,
        in_features: int,
        hidden: Sequence[int] = (64, 64),
        *,
        dtype: jnp.dtype | type = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        """Builds the layers.

        Args:
            in_features: number of inputs of one example, flattened.
            hidden: width of each layer; the last one is the number of features.
            dtype: dtype of the computation; parameters are float32.
            rngs: source of the initial weights.
        """
        check_at_least("in_features", in_features, 1)
        check_at_least("the number of hidden layers", len(hidden), 1)
        sizes = (in_features, *hidden)
        self.layers = nnx.List(
            [nnx.Linear(n, m, dtype=dtype, rngs=rngs) for n, m in itertools.pairwise(sizes)]
        )
        self.num_features = sizes[-1]

    def __call__(
        self, x: Float[Array, "tokens ..."], *, train: bool = False
    ) -> Float[Array, "tokens features"]:
        """Features of a batch; `train` makes no difference here."""
        del train
        x = x.reshape(x.shape[0], -1)
        for layer in self.layers:
            x = jax.nn.relu(layer(x))
        return x
