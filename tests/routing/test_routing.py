"""Laws and loops for routing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import references
from hypothesis import given, settings
from hypothesis import strategies as st

from calmoe_jax import routing as r


def logits_of(seed, tokens, experts, dtype=np.float32):
    return jnp.asarray(np.random.RandomState(seed).randn(tokens, experts) * 2, dtype)


@pytest.mark.parametrize("experts", [1, 2, 3, 8, 13])
@pytest.mark.parametrize("renormalize", [True, False])
def test_top_k_equals_a_loop(experts, renormalize):
    logits = logits_of(experts, 17, experts)
    logits = jnp.round(logits)  # ties
    for k in {1, min(2, experts), experts}:
        result = r.top_k_routing(logits, k=k, renormalize=renormalize)
        for t in range(17):
            order, weights = references.top_k_row(np.asarray(logits[t]), k, renormalize)
            assert result.expert_indices[t].tolist() == order
            np.testing.assert_allclose(result.combine_weights[t], weights, rtol=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31 - 1), st.integers(1, 9), st.data())
def test_laws(seed, experts, data):
    k = data.draw(st.integers(1, experts))
    logits = logits_of(seed, 5, experts)
    top_k = jax.jit(r.top_k_routing, static_argnames="k")
    result = top_k(logits, k=k)
    np.testing.assert_allclose(result.combine_weights.sum(-1), 1, rtol=1e-6)
    assert all(len(set(row)) == k for row in result.expert_indices.tolist())
    assert (jnp.diff(result.combine_weights, axis=-1) <= 0).all()
    shifted = top_k(logits + 3.0, k=k)
    np.testing.assert_allclose(shifted.combine_weights, result.combine_weights, rtol=1e-5)
    assert int(r.expert_load(result, num_experts=experts).sum()) == 5 * k


@pytest.mark.parametrize("k", [1, 3])
def test_no_tokens(k):
    empty = jnp.zeros((0, 3))
    result = r.top_k_routing(empty, k=k)
    assert result.expert_indices.shape == (0, k)
    assert r.load_balancing_loss(r.gate_probabilities(empty), result) == 0
    assert r.router_z_loss(empty) == 0
    assert r.expert_load(result, num_experts=3).tolist() == [0, 0, 0]


def test_dense_is_top_k_with_all_experts():
    logits = logits_of(0, 50, 7)
    dense = r.routing_weights(r.dense_routing(logits), num_experts=7)
    top = r.routing_weights(r.top_k_routing(logits, k=7), num_experts=7)
    np.testing.assert_allclose(dense, top, rtol=1e-6)
    np.testing.assert_allclose(dense, references.softmax(logits), rtol=1e-5)


def test_ties_and_signed_zeros_go_to_the_lower_index():
    logits = jnp.array([[1.0, 1.0, 1.0], [-0.0, 0.0, -0.0], [0.0, -0.0, 0.0]])
    assert r.top_k_routing(logits, k=2).expert_indices.tolist() == [[0, 1]] * 3
    assert r.hard_routing(logits).expert_indices.tolist() == [[0]] * 3


def test_masked_experts_get_exactly_zero():
    logits = jnp.array([[-jnp.inf, 0.0, -jnp.inf], [1.0, -jnp.inf, 1.0]])
    for k in (1, 2, 3):
        weights = r.routing_weights(r.top_k_routing(logits, k=k), num_experts=3)
        assert weights[0].tolist() == [0, 1, 0]
        assert weights[1, 1] == 0
        np.testing.assert_allclose(weights.sum(-1), 1)
    # a surplus slot of weight 0 is not load
    assert r.expert_load(r.top_k_routing(logits, k=3), num_experts=3).tolist() == [1, 1, 1]
    gradient = jax.grad(lambda g: r.gate_probabilities(g)[:, 1].sum())(logits)
    assert jnp.isfinite(gradient).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_unroutable_rows_are_valid_indices_and_nan_weights(bad):
    logits = jnp.array([[0.0, 2.0, 1.0], [bad, bad, bad]])
    if not np.isneginf(bad):
        logits = logits.at[1, 1:].set(5.0)
    result = r.top_k_routing(logits, k=2)
    assert result.expert_indices.tolist() == [[1, 2], [0, 1]]
    assert jnp.isfinite(result.combine_weights[0]).all()
    assert jnp.isnan(result.combine_weights[1]).all()
    for dense in (
        r.gate_probabilities(logits),
        r.straight_through_weights(logits),
        r.routing_weights(result, num_experts=3),
    ):
        assert jnp.isfinite(dense[0]).all()
        assert jnp.isnan(dense[1]).all()
    assert jnp.isnan(r.router_z_loss(logits))
    assert jnp.isfinite(r.router_z_loss(logits, where=jnp.array([True, False])))
    assert r.expert_load(result, num_experts=3).tolist() == [0, 1, 1]


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_computed_in_float32(dtype):
    logits = logits_of(1, 9, 4).astype(dtype)
    exact = r.top_k_routing(logits.astype(jnp.float32), k=2)
    result = r.top_k_routing(logits, k=2)
    assert result.combine_weights.dtype == jnp.float32
    assert (result.combine_weights == exact.combine_weights).all()
    assert (result.expert_indices == exact.expert_indices).all()


def test_what_k_1_teaches_the_router():
    logits, values = logits_of(2, 6, 4), logits_of(3, 6, 4)

    def through(weights_of):
        return jax.grad(lambda g: jnp.sum(weights_of(g) * values))(logits)

    def dense(routing):
        return r.routing_weights(routing, num_experts=4)

    assert (through(lambda g: dense(r.hard_routing(g))) == 0).all()  # a constant teaches nothing
    raw = through(lambda g: dense(r.top_k_routing(g, k=1, renormalize=False)))
    assert (jnp.abs(raw).max(-1) > 0).all()
    straight = through(r.straight_through_weights)
    soft = through(r.gate_probabilities)
    np.testing.assert_allclose(straight, soft, rtol=1e-6)
    # by hand: p_j (c_j - sum_k p_k c_k)
    p = references.softmax(logits)
    by_hand = p * (values - (p * values).sum(-1, keepdims=True))
    np.testing.assert_allclose(straight, by_hand, atol=1e-6)
    assert (r.straight_through_weights(logits) == dense(r.hard_routing(logits))).all()


@pytest.mark.exhaustive
@pytest.mark.parametrize(("experts", "k"), [(2, 1), (4, 1), (4, 2), (6, 3), (5, 5)])
def test_load_balancing_loss_is_one_at_perfect_balance(experts, k):
    # every cyclic shift once: each expert is chosen equally often, with equal mean probability
    row = np.where(np.arange(experts) < k, 3.0, 0.0)
    logits = jnp.asarray(np.stack([np.roll(row, s) for s in range(experts)]), jnp.float32)
    probs, routing = r.gate_probabilities(logits), r.top_k_routing(logits, k=k)
    np.testing.assert_allclose(r.load_balancing_loss(probs, routing), 1, rtol=1e-6)
    collapsed = jnp.asarray(np.tile(row * 20, (8, 1)), jnp.float32)
    loss = r.load_balancing_loss(r.gate_probabilities(collapsed), r.top_k_routing(collapsed, k=k))
    np.testing.assert_allclose(loss, experts / k, rtol=1e-5)


def test_losses_equal_loops_and_masks_equal_leaving_out():
    logits = logits_of(5, 40, 5)
    probs, routing = r.gate_probabilities(logits), r.top_k_routing(logits, k=2)
    np.testing.assert_allclose(
        r.load_balancing_loss(probs, routing),
        references.load_balancing_loss(np.asarray(probs, np.float64), routing.expert_indices),
        rtol=1e-6,
    )
    z = np.mean([np.log(np.exp(np.asarray(row, np.float64)).sum()) ** 2 for row in logits])
    np.testing.assert_allclose(r.router_z_loss(logits), z, rtol=1e-5)
    where = jnp.arange(40) % 3 == 0
    kept = jax.tree.map(lambda x: x[where], routing)
    np.testing.assert_allclose(
        r.load_balancing_loss(probs, routing, where=where),
        r.load_balancing_loss(probs[where], kept),
        rtol=1e-6,
    )
    np.testing.assert_allclose(
        r.router_z_loss(logits, where=where), r.router_z_loss(logits[where]), rtol=1e-6
    )
    np.testing.assert_allclose(
        r.expert_importance(probs, where=where), probs[where].sum(0), rtol=1e-6
    )


def test_gradients_equal_finite_differences():
    logits = np.asarray(logits_of(7, 6, 4), np.float64)
    with jax.enable_x64(True):
        indices = r.top_k_routing(jnp.asarray(logits), k=2)

        def balance(g):
            return r.load_balancing_loss(r.gate_probabilities(jnp.asarray(g)), indices)

        def z_loss(g):
            return r.router_z_loss(jnp.asarray(g))

        for f in (balance, z_loss):
            numeric = references.central_difference(lambda g, f=f: float(f(g)), logits)
            np.testing.assert_allclose(jax.grad(f)(jnp.asarray(logits)), numeric, atol=1e-8)


def test_transforms_agree():
    logits = logits_of(8, 12, 5).reshape(3, 4, 5)
    eager = r.top_k_routing(logits, k=2)
    jitted = jax.jit(lambda g: r.top_k_routing(g, k=2))(logits)
    mapped = jax.vmap(lambda g: r.top_k_routing(g, k=2))(logits)
    for other in (jitted, mapped):
        assert (other.expert_indices == eager.expert_indices).all()
        np.testing.assert_allclose(other.combine_weights, eager.combine_weights, rtol=1e-6)


def test_uneven_shards_give_the_loss_of_the_full_batch():
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    logits, where = logits_of(9, 16, 4), jnp.arange(16) < 9  # shards hold 4, 4, 1 and 0 tokens
    spec = jax.P("data")

    def losses(g, w, axis_name):
        probs, routing = r.gate_probabilities(g), r.top_k_routing(g, k=2)
        return (
            r.load_balancing_loss(probs, routing, where=w, axis_name=axis_name),
            r.router_z_loss(g, where=w, axis_name=axis_name),
            r.expert_load(routing, num_experts=4, where=w, axis_name=axis_name),
        )

    sharded = jax.jit(
        jax.shard_map(
            lambda g, w: losses(g, w, "data"), mesh=mesh, in_specs=(spec, spec), out_specs=jax.P()
        )
    )(logits, where)
    pmapped = jax.pmap(lambda g, w: losses(g, w, "data"), axis_name="data")(
        logits.reshape(4, 4, 4), where.reshape(4, 4)
    )
    for whole, one, other in zip(losses(logits, where, None), sharded, pmapped, strict=True):
        np.testing.assert_allclose(one, whole, rtol=1e-6)
        np.testing.assert_allclose(other[0], whole, rtol=1e-6)


@pytest.mark.parametrize("k", [0, 5, -1])
def test_k_out_of_range(k):
    with pytest.raises(ValueError, match=rf"k must be in \[1, num_experts=4\], got k={k}"):
        r.top_k_routing(jnp.zeros((2, 4)), k=k)


def test_other_bad_input():
    routing = r.hard_routing(jnp.zeros((2, 4)))
    with pytest.raises(ValueError, match=r"with tokens=.* as in gate_probs"):
        r.load_balancing_loss(jnp.ones((3, 4)), routing)
    with pytest.raises(ValueError, match="num_experts must be at least 1, got num_experts=0"):
        r.routing_weights(routing, num_experts=0)
    with pytest.raises(ValueError, match="num_experts"):
        r.gate_probabilities(jnp.zeros((2, 0)))
