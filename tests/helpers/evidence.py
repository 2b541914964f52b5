"""Evidence for estimators of accuracy, drawn so that the model is calibrated."""

import jax
import jax.numpy as jnp
import numpy as np

from calmoe_jax.shift.estimators import Evidence

CLASSES, PEERS = 3, 2


def draw(size, seed=0, *, sharpness=2.0, noise=0.3, offset=0.0):
    """Evidence and labels, which are drawn from the model's own probabilities.

    Args:
        size: number of examples.
        seed: seed of the draw.
        sharpness: standard deviation of the logits; confidence grows with it.
        noise: standard deviation of the peers' logits about the model's.
        offset: added to the coordinates.
    """
    rng = np.random.RandomState(seed)
    logits = sharpness * rng.randn(size, CLASSES)
    peers = logits[None] + noise * rng.randn(PEERS, size, CLASSES)
    probs = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    labels = (rng.rand(size, 1) > np.cumsum(probs, axis=-1)).sum(axis=-1)
    coordinates = np.concatenate([logits, 0.3 * rng.randn(size, 2)], axis=-1) + offset
    evidence = Evidence(
        jnp.asarray(np.log(probs), jnp.float32),
        jax.nn.log_softmax(jnp.asarray(peers, jnp.float32)),
        jnp.asarray(coordinates, jnp.float32),
    )
    return evidence, jnp.asarray(np.minimum(labels, CLASSES - 1), jnp.int32)


def map_rows(function, evidence):
    """The evidence with a function applied to each array, with examples in front."""
    moved = evidence._replace(peers=jnp.moveaxis(evidence.peers, 0, 1))
    moved = jax.tree.map(function, moved)
    return moved._replace(peers=jnp.moveaxis(moved.peers, 1, 0))
