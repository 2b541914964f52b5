"""The sparse layer against experts that are all computed, in loops."""

import itertools
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from devices import shard_map
from dispatching import exhaustive, plan_dispatch

import calmoe_jax as cm
from calmoe_jax.moe import PLAN_NAME, ExpertParams, expert_mlp, sparse_layer
from calmoe_jax.moe.activations import function_of
from calmoe_kernels import selection

jitted = jax.jit(sparse_layer, static_argnames=("k", "activation", "capacity", "implementation"))


def problem(seed=0, tokens=23, experts=4, d=6, hidden=10, activation="gelu"):
    rng = np.random.RandomState(seed)
    columns = hidden * (2 if activation == "swiglu" else 1)
    shapes = (experts, d, columns), (experts, hidden, d), (experts, columns), (experts, d)
    params = ExpertParams(*(jnp.asarray(rng.randn(*shape), jnp.float32) for shape in shapes))
    x = jnp.asarray(rng.randn(tokens, d), jnp.float32)
    return x, jnp.asarray(rng.randn(tokens, experts), jnp.float32), params


def act(h, activation):
    if activation == "relu":
        return np.maximum(h, 0)
    if activation == "gelu":
        return np.array([0.5 * v * (1 + math.erf(v / math.sqrt(2))) for v in h])
    gate, value = np.split(h, 2)
    return gate / (1 + np.exp(-gate)) * value


def loop(x, logits, params, k, activation):
    w_in, w_out, b_in, b_out = (np.asarray(w, np.float64) for w in params)
    result = np.zeros(x.shape)
    for t, token in enumerate(np.asarray(x, np.float64)):
        row = np.asarray(logits[t], np.float64)
        best = np.argsort(-row, kind="stable")[:k]
        weights = np.exp(row[best]) / np.exp(row[best]).sum()
        for e, weight in zip(best, weights, strict=True):
            inner = act(token @ w_in[e] + b_in[e], activation)
            result[t] += weight * (inner @ w_out[e] + b_out[e])
    return result


SOME = [(1, "relu"), (2, "gelu"), (4, "swiglu")]
ALL = itertools.product((1, 2, 4), ("relu", "gelu", "swiglu"))


@pytest.mark.parametrize(
    ("k", "activation"), [*SOME, *exhaustive(*(each for each in ALL if each not in SOME))]
)
def test_layer_equals_a_loop(k, activation, implementation):
    x, logits, params = problem(activation=activation)
    out = jitted(x, logits, params, k=k, activation=activation, implementation=implementation)
    np.testing.assert_allclose(
        out.output, loop(x, logits, params, k, activation), rtol=1e-4, atol=1e-4
    )


@jax.jit
def dense(x, weights, params):
    inner = jnp.einsum("td,edh->teh", x, params.w_in) + params.b_in[None]
    hidden = jax.nn.gelu(inner, approximate=False)
    outputs = jnp.einsum("teh,ehd->ted", hidden, params.w_out) + params.b_out[None]
    return jnp.einsum("te,ted->td", weights, outputs)


def test_all_experts_are_the_dense_layer_with_its_gradients(implementation):
    x, logits, params = problem(1)

    def loss(layer, *args):
        return jnp.sum(jnp.sin(layer(*args)))

    def sparse(*args):
        return jitted(*args, k=4, implementation=implementation).output

    got = jax.jit(jax.grad(partial(loss, sparse), argnums=(0, 1, 2)))(x, logits, params)

    def every(x, logits, params):
        return dense(x, jax.nn.softmax(logits), params)

    want = jax.jit(jax.grad(partial(loss, every), argnums=(0, 1, 2)))(x, logits, params)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_enough_capacity_drops_nothing(implementation):
    x, logits, params = problem(2)
    call = partial(jitted, x, logits, params, k=2, implementation=implementation)
    roomy = call(capacity=len(x))
    np.testing.assert_allclose(roomy.output, call().output, rtol=1e-5, atol=1e-5)
    assert roomy.routed.plan.num_dropped == 0


def test_dropped_slots_count_as_zeros():
    x, logits, params = problem(3)
    out = jitted(x, logits, params, k=2, capacity=3)
    kept = jnp.where(out.routed.plan.dropped, 0, out.routed.routing.combine_weights)
    weights = cm.routing_weights(out.routed.routing._replace(combine_weights=kept), num_experts=4)
    want = dense(x, weights, params)
    assert out.routed.plan.num_dropped > 0
    np.testing.assert_allclose(out.output, want, rtol=1e-4, atol=1e-4)


def test_permuted_tokens_and_experts():
    x, logits, params = problem(4)
    y = jitted(x, logits, params, k=2).output
    tokens = np.random.RandomState(5).permutation(len(x))
    np.testing.assert_allclose(
        jitted(x[tokens], logits[tokens], params, k=2).output, y[tokens], rtol=1e-5, atol=1e-5
    )
    experts = np.array([2, 0, 3, 1])
    relabelled = jax.tree.map(lambda w: w[experts], params)
    np.testing.assert_allclose(
        jitted(x, logits[:, experts], relabelled, k=2).output, y, rtol=1e-5, atol=1e-5
    )


def test_an_unroutable_token_is_nan_and_alone():
    x, logits, params = problem(6)
    out = jitted(x, logits.at[5, 1].set(jnp.nan), params, k=2)
    assert jnp.isnan(out.output[5]).all()
    assert jnp.isfinite(jnp.delete(out.output, 5, axis=0)).all()
    assert out.routed.statistics.num_unroutable == 1


def test_no_tokens():
    x, logits, params = problem(7, tokens=0)
    assert jitted(x, logits, params, k=2).output.shape == (0, 6)


@pytest.mark.exhaustive
def test_vmap_and_remat():
    x, logits, params = problem(8, tokens=12)
    names = jax.checkpoint_policies.save_only_these_names(PLAN_NAME)

    def loss(x, logits, params):
        return jnp.sum(jnp.sin(sparse_layer(x, logits, params, k=2).output))

    plain = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(x, logits, params)
    remat = jax.jit(jax.grad(jax.checkpoint(loss, policy=names), argnums=(0, 1, 2)))
    for a, b in zip(jax.tree.leaves(remat(x, logits, params)), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
    both = jax.jit(jax.vmap(lambda x, logits: sparse_layer(x, logits, params, k=2).output))(
        jnp.stack([x, 2 * x]), jnp.stack([logits, -logits])
    )
    np.testing.assert_allclose(
        both[1], jitted(2 * x, -logits, params, k=2).output, rtol=1e-4, atol=1e-4
    )


@pytest.mark.exhaustive  # its parts are compared one by one elsewhere
def test_jit_equals_eager():
    x, logits, params = problem(8)
    eager = sparse_layer(x, logits, params, k=2).output
    np.testing.assert_allclose(jitted(x, logits, params, k=2).output, eager, rtol=1e-5, atol=1e-5)


def test_biases_may_be_left_out():
    x, logits, params = problem(11)
    zeros = params._replace(b_in=jnp.zeros_like(params.b_in), b_out=jnp.zeros_like(params.b_out))
    without = params._replace(b_in=None, b_out=None)
    np.testing.assert_array_equal(
        jitted(x, logits, without, k=2).output, jitted(x, logits, zeros, k=2).output
    )


@pytest.mark.parametrize(
    ("words", "change"),
    [
        ("activation", {"activation": "tanh"}),
        ("must have 20 columns for swiglu", {"activation": "swiglu"}),
        ("gate_logits must .* tokens=23 as in x", {"gate_logits": jnp.zeros((3, 4))}),
        (r"params\.w_in must .* experts=5 as in gate_logits", {"gate_logits": jnp.zeros((23, 5))}),
        (
            r"params\.b_in must .* columns=10 as in params\.w_in",
            {"params": problem(9)[2]._replace(b_in=jnp.zeros((4, 1)))},
        ),
    ],
    ids=["name", "width", "tokens", "experts", "bias"],
)
def test_bad_input(words, change, unchecked):
    x, logits, params = problem(9)
    arguments = {"gate_logits": logits, "params": params, "k": 2} | change
    with pytest.raises(ValueError, match=words):
        jax.eval_shape(lambda: sparse_layer(x, **arguments))


def test_expert_mlp_of_rows_of_no_group_is_zero():
    _, _, params = problem(10)
    plan = plan_dispatch(np.int32([[1], [3]]), num_experts=4, block_size=8)
    rows = jnp.ones((plan.slot_indices.shape[0], 6), jnp.float32)
    y = jax.jit(partial(expert_mlp, block_size=8))(rows, plan, params)
    empty = plan.slot_indices == 2
    assert (y[empty] == 0).all()
    assert (y[~empty] != 0).all()


@pytest.mark.parametrize("capacity", [None, 16])
def test_xla_is_used_for_every_part(capacity, monkeypatch):
    x, logits, params = problem(12)
    ran = []
    run = selection.run

    def record(attempts, implementation, *args, operation):
        def named(name, attempt):
            def call(*args):
                ran.append((operation, name))
                return attempt(*args)

            return call

        recorded = {name: named(name, attempt) for name, attempt in attempts.items()}
        return run(recorded, implementation, *args, operation=operation)

    def loss(x, logits, params, implementation):
        out = sparse_layer(x, logits, params, k=2, capacity=capacity, implementation=implementation)
        return jnp.sum(out.output)

    def gradient(implementation):
        every = jax.grad(partial(loss, implementation=implementation), argnums=(0, 1, 2))
        return jax.jit(every).lower(x, logits, params)

    monkeypatch.setattr(selection, "run", record)
    text = gradient("xla").as_text()
    assert {name for _, name in ran} == {"xla"}
    assert {operation for operation, _ in ran} == {
        "route", "scatter_rows", "gather_rows", "combine_backward", "grouped_rows",
        "grouped_matrices",
    }  # fmt: skip
    if jax.default_backend() == "cpu":
        assert gradient(None).as_text() == text


@pytest.mark.parametrize("activation", ["gelu", *exhaustive("relu", "swiglu")])
def test_activations_have_gradients_under_shard_map(activation, mesh):
    function = function_of(activation)
    mapped = shard_map(function, mesh=mesh, in_specs=jax.P("d"), out_specs=jax.P("d"))
    inner = jnp.linspace(-6, 6, 6 * mesh.size).reshape(-1, 2)
    slopes = jax.jit(jax.grad(lambda x: jnp.sum(mapped(x))))
    alone = jax.jit(jax.grad(lambda x: jnp.sum(function(x))))
    np.testing.assert_allclose(slopes(inner), alone(inner), rtol=1e-6)


def test_the_slope_of_gelu():
    x = jnp.linspace(-9, 9, 37)[:, None]
    slopes = jax.jit(jax.grad(lambda x: jnp.sum(function_of("gelu")(x))))(x)
    wanted = [math.erfc(-v / math.sqrt(2)) / 2 + v * math.exp(-v * v / 2) / math.sqrt(2 * math.pi)
              for v in np.asarray(x[:, 0], np.float64)]  # fmt: skip
    np.testing.assert_allclose(slopes[:, 0], wanted, rtol=1e-5, atol=1e-15)
