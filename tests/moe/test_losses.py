"""Losses from the results of `route`: equal to those of the gate's logits, and their constants."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from devices import shard_map
from dispatching import close, exhaustive, normal

import calmoe_jax as cm

LOSSES = [cm.moe.load_balancing_loss, cm.moe.router_z_loss]


@partial(jax.jit, static_argnames=("k", "capacity"))
def from_routed(logits, k=2, capacity=None):
    """Both losses of a routing, and their gradients to the logits."""

    def losses(logits):
        routed = cm.route(logits, k=k, capacity=capacity)
        return jnp.stack([loss(routed) for loss in LOSSES])

    return losses(logits), jax.jacrev(losses)(logits)


@partial(jax.jit, static_argnames="k")
def from_logits(logits, k=2):
    """The same from the gate's logits, by `calmoe_jax.routing`."""

    def losses(logits):
        routing = cm.top_k_routing(logits, k=k)
        balance = cm.routing.load_balancing_loss(cm.gate_probabilities(logits), routing)
        return jnp.stack([balance, cm.routing.router_z_loss(logits)])

    return losses(logits), jax.jacrev(losses)(logits)


@pytest.mark.parametrize("k", [1, 3, *exhaustive(2, 6)])
def test_losses_and_gradients_are_those_of_the_logits(k):
    logits = 2 * normal(0, 40, 6)
    logits[3, 2] = -np.inf
    logits[5, 1:] = -np.inf  # slots of weight 0 for k > 1
    close(from_routed(logits, k=k), from_logits(logits, k=k))


def test_gradients_are_of_the_gate_and_not_zero():
    _, gradients = from_routed(normal(1, 40, 6))
    assert (np.abs(gradients).max(axis=(1, 2)) > 1e-4).all()


@pytest.mark.parametrize("k", [1, 2])
def test_balance_is_one_where_all_is_balanced_and_up_to_e_over_k(k):
    balanced = 5 * np.eye(4, dtype=np.float32) + 4 * np.roll(np.eye(4, dtype=np.float32), 1, 1)
    close(from_routed(balanced, k=k)[0][0], 1.0)
    collapsed = np.tile(np.float32([30] * k + [0] * (4 - k)), (8, 1))
    close(from_routed(collapsed, k=k)[0][0], 4 / k)


def test_logs_of_probabilities_have_no_z_loss():
    probs = np.random.RandomState(2).dirichlet(np.ones(5), 20)
    close(from_routed(np.log(probs).astype(np.float32))[0][1], 0.0)


def test_dropped_slots_count_as_load():
    logits = np.tile(np.float32([3, 1, 0]), (10, 1))
    close(from_routed(logits, k=1, capacity=2), from_routed(logits, k=1))
    close(from_routed(logits, k=1, capacity=2), from_logits(logits, k=1))


def test_slots_of_weight_zero_do_not_count():
    logits = np.float32([[0, -np.inf], [0, -np.inf], [0, 0]])
    routed = cm.route(jnp.asarray(logits), k=2)
    mean, share = np.float64([2.5, 0.5]) / 3, np.float64([3, 1]) / 4
    close(cm.moe.load_balancing_loss(routed), 2 * np.sum(mean * share))


def test_no_tokens_and_tokens_that_cannot_be_routed():
    assert from_routed(np.zeros((0, 4), np.float32))[0].tolist() == [0, 0]
    assert np.isnan(from_routed(np.float32([[0, np.nan], [1, 2]]), k=1)[0]).all()


def test_shards_of_uneven_load_give_the_loss_of_the_full_batch(mesh):
    logits = 2 * normal(3, 8 * mesh.size, 6)
    logits[: len(logits) // 2, 0] += 3

    def losses(logits, axis_name=None):
        routed = cm.route(logits, k=2)
        return jnp.stack([loss(routed, axis_name=axis_name) for loss in LOSSES])

    spec = jax.P("d")
    sharded = shard_map(partial(losses, axis_name="d"), mesh=mesh, in_specs=spec, out_specs=jax.P())

    def with_gradient(function):
        return jax.jit(lambda logits: (function(logits), jax.jacrev(function)(logits)))

    close(with_gradient(sharded)(logits), with_gradient(losses)(logits))
    mapped = jax.pmap(partial(losses, axis_name="d"), axis_name="d")
    parts = mapped(logits.reshape(mesh.size, 8, 6))
    close(parts, np.tile(losses(jnp.asarray(logits)), (mesh.size, 1)))
