"""The sparse layer with all of its options against loops over tokens and experts."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sparse_references
from devices import shard_map
from dispatching import close, exhaustive, host, normal

import calmoe_jax as cm
from calmoe_jax.moe import HIDDEN_NAME, ROWS_NAME, ExpertParams, shared_mlp, update_selection_bias

E, D, H = 6, 4, 5
STATICS = (
    "k", "activation", "scores", "renormalize", "num_groups", "groups_per_token", "scaling_factor",
    "capacity", "implementation",
)  # fmt: skip
jitted = host(jax.jit(cm.sparse_layer, static_argnames=STATICS))


def clamped(inner):
    """The activation of gpt-oss: gates and values alternate, both are clamped."""
    gate, value = jnp.minimum(inner[:, ::2], 7.0), jnp.clip(inner[:, 1::2], -7.0, 7.0)
    return gate * jax.nn.sigmoid(1.702 * gate) * (value + 1)


def clamped_row(columns):
    out = []
    for gate, value in zip(columns[::2], columns[1::2], strict=True):
        gate, value = min(gate, 7.0), min(max(value, -7.0), 7.0)
        out.append(gate / (1 + np.exp(-1.702 * gate)) * (value + 1))
    return np.array(out)


ACTS = {
    "relu": sparse_references.relu, "gelu": sparse_references.gelu,
    "swiglu": sparse_references.swiglu, clamped: clamped_row,
    jnp.tanh: np.tanh,
}  # fmt: skip


def params_of(seed, number, columns, biases=True):
    shapes = (number, D, columns), (number, H, D), (number, columns), (number, D)
    arrays = [normal(seed + i, *shape) for i, shape in enumerate(shapes)]
    return ExpertParams(*arrays[:2], *(arrays[2:] if biases else (None, None)))


def problem(seed, activation, *, tokens=19, shared=2, biases=True):
    columns = H * (2 if activation in ("swiglu", clamped) else 1)
    logits, x = normal(seed, tokens, E), normal(seed + 1, tokens, D)
    logits[::4, 1:] = -np.inf  # one expert left
    logits[1::4, :3] = -np.inf
    where = np.random.RandomState(seed).rand(tokens) < 0.7
    where[2] = False
    x[~where], logits[~where] = np.nan, np.nan
    return (
        (x, logits, params_of(seed + 2, E, columns, biases), normal(seed + 3, E) / 3,
         params_of(seed + 4, shared, columns, biases)),
        where,
    )  # fmt: skip


GROUPS = {"num_groups": 3, "groups_per_token": 2, "scores": "sigmoid"}


@pytest.mark.parametrize(
    ("activation", "options"),
    [
        ("swiglu", {"k": 3, "scaling_factor": 2.5} | GROUPS),
        (clamped, {"k": 2, "capacity": 4, "renormalize": False}),
        (jnp.tanh, {"k": 1, "renormalize": False, "capacity": 2, "scores": "sigmoid"}),
        *exhaustive(
            ("relu", {"k": 6}),
            ("gelu", {"k": 4, "capacity": 5, "scaling_factor": 0.3} | GROUPS),
        ),
    ],
)
def test_the_layer_is_a_loop(activation, options, implementation):
    (x, logits, params, bias, shared), where = problem(1, activation)
    found = jitted(
        x, logits, params, bias, shared, where=where, activation=activation,
        implementation=implementation, **options,
    )  # fmt: skip
    y, load, kept, (mean, log_sums, unroutable) = sparse_references.sparse_layer(
        x, logits, params, bias, shared, where, act=ACTS[activation], **options
    )
    close(found.output, y, rtol=1e-4, atol=1e-4)
    assert found.routed.plan.load.tolist() == load
    np.testing.assert_array_equal(found.routed.plan.dropped, ~kept)
    assert found.routed.plan.num_over_capacity == sum(load) - kept.sum()
    close(found.routed.statistics.mean_gate_probs, mean)
    close(found.routed.statistics.logsumexp[where], log_sums)
    assert found.routed.statistics.num_unroutable == unroutable == 0


def test_gradients_by_finite_differences():
    """To tokens, logits, both kinds of experts; none to the bias."""
    with jax.enable_x64(True):
        options = {"k": 2, "activation": clamped, "renormalize": False, "scaling_factor": 1.7}
        inputs, where = problem(2, clamped, tokens=5)
        inputs = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), inputs)
        where = jnp.asarray(where)

        def loss(direction):
            moved = jax.tree.map(lambda a, b: a + direction * b, inputs, step)
            return jnp.sum(jnp.sin(cm.sparse_layer(*moved, where=where, **options).output))

        step = jax.tree.map(lambda a: jnp.asarray(normal(3, *a.shape), jnp.float64), inputs)
        slope = jax.jit(loss)
        found = jax.jit(jax.grad(loss))(0.0)
        close(found, (slope(1e-6) - slope(-1e-6)) / 2e-6, rtol=1e-6)
        assert abs(found) > 0.1


def test_weights_in_the_result_include_the_factor():
    (x, logits, params, *_), where = problem(4, "relu")
    call = partial(jitted, x, logits, params, where=where, activation="relu", k=2)
    plain, scaled = call(), call(scaling_factor=3.0)
    close(scaled.routed.routing.combine_weights, 3 * plain.routed.routing.combine_weights)
    close(scaled.output, 3 * plain.output, rtol=1e-4, atol=1e-5)


def test_shared_experts_are_a_loop_and_are_added():
    (x, logits, params, _, shared), _ = problem(5, "swiglu", shared=3)
    x, logits = np.nan_to_num(x), np.nan_to_num(logits)
    found = jax.jit(partial(shared_mlp, activation="swiglu"))(x, shared)
    act = sparse_references.swiglu
    want = np.stack([sum(sparse_references.mlp(t, shared, e, act) for e in range(3)) for t in x])
    close(found, want, rtol=1e-4, atol=1e-4)
    call = partial(jitted, x, logits, params, activation="swiglu", k=2)
    close(call(shared=shared).output, call().output + found, rtol=1e-4, atol=1e-4)
    half = jax.tree.map(lambda a: jnp.asarray(a, jnp.bfloat16), (x, shared))
    coarse = shared_mlp(*half, activation="swiglu")
    assert coarse.dtype == jnp.bfloat16
    close(coarse, want, rtol=0.05, atol=0.5)


@pytest.mark.exhaustive
def test_names_for_checkpoints_are_found_and_save_the_products():
    (x, logits, params, *_), _ = problem(6, "gelu")

    def loss(x, params):
        return jnp.sum(cm.sparse_layer(x, jnp.asarray(logits), params, k=2).output ** 2)

    text = str(jax.make_jaxpr(loss)(x, params))
    assert text.count(f"name[name={ROWS_NAME}]") == text.count(f"name[name={HIDDEN_NAME}]") == 1

    def products(f):
        return str(jax.make_jaxpr(jax.grad(f, (0, 1)))(x, params)).count("calmoe_call[")

    names = jax.checkpoint_policies.save_only_these_names(ROWS_NAME, HIDDEN_NAME)
    saved = jax.checkpoint(loss, policy=names)
    assert products(loss) < products(saved) < products(jax.checkpoint(loss))
    call = [jax.jit(jax.grad(f, (0, 1))) for f in (loss, saved)]
    close(*(f(np.nan_to_num(x), params) for f in call), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("load", [[4, 4, 4], [0, 0, 0], [7, 1, 4], [5, 4, 4], [2**24 + 1, 0, 1]])
def test_the_bias_moves_by_the_sign_of_what_is_missing(load):
    bias = np.float32([0.5, -0.25, 0.0])
    signs = [(sum(load) > 3 * each) - (sum(load) < 3 * each) for each in load]
    found = update_selection_bias(jnp.asarray(bias), jnp.asarray(load), rate=0.125)
    np.testing.assert_array_equal(found, bias + 0.125 * np.float32(signs))


def test_the_bias_of_layers_and_of_devices(mesh):
    bias, load = normal(7, 2, 3), np.random.RandomState(8).randint(0, 9, (mesh.size, 2, 3))
    total = jnp.asarray(load.sum(0))
    each = [
        update_selection_bias(jnp.asarray(b), t, rate=0.1) for b, t in zip(bias, total, strict=True)
    ]
    close(update_selection_bias(jnp.asarray(bias), total, rate=0.1), np.stack(each))

    def of_device(load):
        return update_selection_bias(jnp.asarray(bias), load[0], rate=0.1, axis_name="d")

    mapped = shard_map(of_device, mesh=mesh, in_specs=jax.P("d"), out_specs=jax.P())
    close(jax.jit(mapped)(load), np.stack(each))


def test_the_bias_balances_a_router_that_is_not():
    logits = jnp.asarray(normal(9, 512, E) + np.linspace(2, -2, E, dtype=np.float32))

    def step(bias, _):
        load = cm.route(logits, bias, k=2, scores="sigmoid").plan.load
        return update_selection_bias(bias, load, rate=0.02), load

    loads = np.asarray(jax.jit(lambda b: jax.lax.scan(step, b, None, length=60))(jnp.zeros(E))[1])
    assert loads[0].max() > 1.8 * loads[0].mean()
    assert loads[-1].max() < 1.15 * loads[-1].mean()


@pytest.mark.parametrize(
    ("words", "change"),
    [
        ("activation must map", {"activation": lambda h: h[:, :3]}),
        ("must have 5 columns for tanh", {"activation": jnp.tanh}),
        ("scaling_factor must be positive", {"scaling_factor": 0.0}),
        ("w_in must have the axes .* d=4 as in x", {"shared": ExpertParams(
            jnp.zeros((1, 3, 10)), jnp.zeros((1, H, D)))}),
    ],
    ids=["shape", "width", "factor", "inputs"],
)  # fmt: skip
def test_bad_options(words, change, unchecked):
    (x, logits, params, *_), _ = problem(10, "swiglu")
    arguments = {"activation": "swiglu", "k": 2} | change
    with pytest.raises(ValueError, match=words):
        jax.eval_shape(lambda: cm.sparse_layer(x, logits, params, **arguments))


def test_shared_experts_of_another_dtype_are_refused():
    params = ExpertParams(jnp.zeros((1, D, H), jnp.float32), jnp.zeros((1, H, D), jnp.float32))
    with pytest.raises(TypeError, match="must have the dtype of x, bfloat16, got float32, float32"):
        shared_mlp(jnp.zeros((2, D), jnp.bfloat16), params)
