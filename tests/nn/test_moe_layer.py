"""The Flax module of a sparse layer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from calmoe_jax.moe import ExpertParams, sparse_layer
from calmoe_jax.nn import MoELayer


def build(**options):
    return MoELayer(6, 4, 10, **{"k": 2, "rngs": nnx.Rngs(0)} | options)


def tokens(*shape):
    return jax.random.normal(jax.random.key(1), (*shape, 6))


@pytest.mark.parametrize("activation", ["relu", "swiglu"])
def test_it_is_the_function_of_its_parameters(activation):
    layer, x = build(activation=activation), tokens(3, 5)
    flat = x.reshape(15, 6)
    params = ExpertParams(layer.w_in[...], layer.w_out[...])
    want = sparse_layer(flat, flat @ layer.router.kernel[...], params, k=2, activation=activation)
    got = layer(x)
    np.testing.assert_allclose(got.output, want.output.reshape(3, 5, 6), rtol=1e-5, atol=1e-5)
    assert (got.routed.routing.expert_indices == want.routed.routing.expert_indices).all()


@pytest.mark.parametrize("options", [{"renormalize": False}, {"scores": "sigmoid"}])
def test_options_of_the_choice_arrive(options):
    layer, x = build(activation="relu", **options), tokens(20)
    params = ExpertParams(layer.w_in[...], layer.w_out[...])
    logits = x @ layer.router.kernel[...]
    call = {"k": 2, "activation": "relu"}
    want = sparse_layer(x, logits, params, **call, **options).output
    np.testing.assert_allclose(layer(x).output, want, rtol=1e-5, atol=1e-6)
    assert not np.allclose(want, sparse_layer(x, logits, params, **call).output, atol=1e-3)


def test_the_implementation_arrives():
    x = tokens(20)
    text = {name: str(jax.make_jaxpr(build(implementation=name))(x)) for name in ("xla", None)}
    assert text["xla"] == text[None]  # on a CPU
    with pytest.raises(NotImplementedError, match="pallas_tpu"):
        build(implementation="pallas_tpu")(x)


@pytest.mark.parametrize(("activation", "matrices"), [("gelu", 2), ("swiglu", 3)])
def test_number_of_parameters(activation, matrices):
    state = nnx.state(build(activation=activation), nnx.Param)
    assert sum(x.size for x in jax.tree.leaves(state)) == 6 * 4 + matrices * 4 * 6 * 10


def test_every_parameter_gets_a_gradient():
    layer, x = build(), tokens(40)
    graph, params = nnx.split(layer)

    def loss(params):
        return jnp.sum(nnx.merge(graph, params)(x).output ** 2)

    for gradient in jax.tree.leaves(jax.jit(jax.grad(loss))(params)):
        assert jnp.isfinite(gradient).all()
        assert jnp.any(gradient != 0)


def test_capacity_and_dtype():
    layer = build(capacity_factor=0.5, dtype=jnp.bfloat16)
    result = layer(tokens(32))
    assert result.output.dtype == jnp.bfloat16
    assert result.routed.plan.slot_indices.shape == (4 * 8,)
    assert result.routed.plan.num_dropped >= 32
    assert result.routed.routing.combine_weights.dtype == jnp.float32


@pytest.mark.parametrize(
    ("change", "words"),
    [({"k": 5}, "k=5"), ({"activation": "tanh"}, "activation='tanh'")],
    ids=["k", "activation"],
)
def test_bad_options(change, words):
    with pytest.raises(ValueError, match=words):
        build(**change)
