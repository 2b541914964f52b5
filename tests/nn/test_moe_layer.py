"""The Flax module of a sparse layer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from calmoe_jax.moe import ExpertParams, sparse_layer
from calmoe_jax.nn import ExpertWeights, MoELayer, SelectionBias


def build(**options):
    return MoELayer(6, 4, 10, **{"k": 2, "rngs": nnx.Rngs(0)} | options)


def tokens(*shape):
    return jax.random.normal(jax.random.key(1), (*shape, 6))


@pytest.mark.parametrize("activation", ["relu", "swiglu"])
def test_it_is_the_function_of_its_parameters(activation):
    layer, x = build(activation=activation), tokens(3, 5)
    flat = x.reshape(15, 6)
    params = ExpertParams(layer.experts.w_in[...], layer.experts.w_out[...])
    want = sparse_layer(flat, flat @ layer.router.kernel[...], params, k=2, activation=activation)
    got = layer(x)
    np.testing.assert_allclose(got.output, want.output.reshape(3, 5, 6), rtol=1e-5, atol=1e-5)
    assert (got.routed.routing.expert_indices == want.routed.routing.expert_indices).all()


@pytest.mark.parametrize("options", [{"renormalize": False}, {"scores": "sigmoid"}])
def test_options_of_the_choice_arrive(options):
    layer, x = build(activation="relu", **options), tokens(20)
    params = ExpertParams(layer.experts.w_in[...], layer.experts.w_out[...])
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


@pytest.mark.exhaustive
def test_a_layer_of_one_expert_a_token_trains_its_router():
    layer, x = build(k=1), tokens(40)
    assert layer.renormalize is False
    assert build().renormalize is True
    graph, params = nnx.split(layer)
    gradient = jax.grad(lambda p: jnp.sum(nnx.merge(graph, p)(x).output ** 2))(params)
    assert jnp.any(gradient["router"]["kernel"][...] != 0)
    probs = jax.nn.softmax(x @ layer.router.kernel[...])
    weights = layer(x).routed.routing.combine_weights[:, 0]
    np.testing.assert_allclose(weights, probs.max(axis=1), rtol=1e-5)


def test_everything_together_is_the_function():
    options = {
        "k": 2, "scores": "sigmoid", "num_groups": 2, "groups_per_token": 1, "scaling_factor": 2.5,
    }  # fmt: skip
    layer = build(selection_bias=True, num_shared=3, use_bias=True, capacity_factor=1.0, **options)
    biases = nnx.state(layer, SelectionBias)
    assert [leaf.shape for leaf in jax.tree.leaves(biases)] == [(4,)]
    layer.selection_bias[...] = jnp.array([0.5, 0.0, -0.5, 0.0])
    for weights in (layer.experts, layer.shared):
        for b in (weights.b_in, weights.b_out):
            b[...] = jax.random.normal(jax.random.key(2), b.shape)
    x, where = tokens(3, 5), jnp.arange(15).reshape(3, 5) < 12
    want = sparse_layer(
        x.reshape(15, 6), x.reshape(15, 6) @ layer.router.kernel[...],
        *(ExpertParams(w.w_in[...], w.w_out[...], w.b_in[...], w.b_out[...])
          if isinstance(w, ExpertWeights) else w[...]
          for w in (layer.experts, layer.selection_bias, layer.shared)),
        where=where.reshape(-1), activation="swiglu", capacity=8, **options,
    )  # fmt: skip
    got = layer(x, where=where)
    np.testing.assert_allclose(got.output, want.output.reshape(3, 5, 6), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(got.routed.plan.load, want.routed.plan.load)


def test_the_bias_is_updated_and_no_parameter():
    layer, x = build(selection_bias=True), tokens(40)
    params = jax.tree.leaves_with_path(nnx.state(layer, nnx.Param))
    assert not any("selection_bias" in str(path) for path, _ in params)

    @nnx.jit
    def step(layer, x):
        load = layer(x).routed.plan.load
        layer.update_selection_bias(load, rate=0.5)
        return load

    load = step(layer, x)
    np.testing.assert_array_equal(layer.selection_bias[...], 0.5 * jnp.sign(load.mean() - load))
    with pytest.raises(ValueError, match="selection_bias must be True"):
        build().update_selection_bias(load, rate=0.5)


def test_an_activation_of_ones_own_that_splits_its_columns():
    def clamped(inner):
        gate, value = jnp.split(jnp.clip(inner, -1, 1), 2, axis=1)
        return gate * value

    layer = build(activation=clamped)
    assert layer.experts.w_in.shape == (4, 6, 20)
    assert build(activation=jnp.tanh).experts.w_in.shape == (4, 6, 10)
    params = ExpertParams(layer.experts.w_in[...], layer.experts.w_out[...])
    x = tokens(15)
    logits = x @ layer.router.kernel[...]
    want = sparse_layer(x, logits, params, k=2, activation=clamped).output
    np.testing.assert_allclose(nnx.jit(lambda m, x: m(x).output)(layer, x), want, atol=1e-5)


def test_dtypes_of_parameters_and_precision_of_the_router():
    layer = build(param_dtype=jnp.bfloat16, use_bias=True, num_shared=1)
    kinds = {str(path): leaf.dtype for path, leaf in jax.tree.leaves_with_path(nnx.state(layer))}
    assert all(
        kind == (jnp.float32 if "router" in path else jnp.bfloat16) for path, kind in kinds.items()
    )
    assert len(kinds) == 9
    x = tokens(8)
    assert "Precision.HIGHEST" in str(jax.make_jaxpr(lambda x: layer(x).output)(x))
    coarse = build(router_precision=None)
    assert "Precision.HIGHEST" not in str(jax.make_jaxpr(lambda x: coarse(x).output)(x))


@pytest.mark.exhaustive
def test_parameters_are_placed_by_the_names_of_their_axes():
    mesh = jax.make_mesh((2, 2), ("expert", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    options = {"use_bias": True, "num_shared": 2}
    with jax.set_mesh(mesh):
        layer = build(sharding={"experts": "expert", "hidden": "model"}, **options)
        y = nnx.jit(lambda m, x: m(x).output)(layer, tokens(16))
    specs = {
        "w_in": jax.P("expert", None, "model"), "w_out": jax.P("expert", "model", None),
        "b_in": jax.P("expert", "model"), "b_out": jax.P("expert", None),
    }  # fmt: skip
    for name, spec in specs.items():
        own, shared = (getattr(w, name) for w in (layer.experts, layer.shared))
        assert own.out_sharding == tuple(spec)
        assert own[...].sharding.is_equivalent_to(jax.NamedSharding(mesh, spec), own.ndim)
        assert shared.out_sharding == (None, *spec[1:])
    np.testing.assert_allclose(y, build(**options)(tokens(16)).output, rtol=1e-4, atol=1e-5)
    assert "out_sharding" not in build().experts.w_in.get_metadata()


@pytest.mark.exhaustive
def test_capacity_and_dtype():
    layer = build(capacity_factor=0.5, dtype=jnp.bfloat16)
    result = layer(tokens(32))
    assert result.output.dtype == jnp.bfloat16
    assert result.routed.plan.slot_indices.shape == (4 * 8,)
    assert result.routed.plan.num_dropped >= 32
    assert result.routed.routing.combine_weights.dtype == jnp.float32


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"k": 5}, "k=5"),
        ({"activation": "tanh"}, "activation='tanh'"),
        ({"activation": lambda h: h[:, :1]}, "activation must map"),
        ({"scores": "foo"}, "scores='foo'"),
        ({"capacity_factor": -1.0}, "capacity_factor=-1.0"),
        ({"num_groups": 3}, "num_groups=3"),
        ({"num_groups": 4}, "at most the 1 experts"),
        ({"scaling_factor": -1.0}, "scaling_factor=-1.0"),
        ({"num_shared": -1}, "num_shared=-1"),
        ({"implementation": "cuda"}, "implementation='cuda'"),
        ({"sharding": {"embed": "model"}}, "got sharding's axes='embed'"),
        ({"k": 1, "renormalize": True}, "renormalize must be False or None with k=1"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_bad_options(change, words):
    with pytest.raises(ValueError, match=words):
        build(**change)


def test_noise_is_added_to_the_logits():
    layer, x = build(), tokens(3, 5)
    noise = 5 * jax.random.normal(jax.random.key(2), (3, 5, 4))
    where = jnp.arange(15).reshape(3, 5) % 4 > 0
    got = layer(x, where=where, noise=noise)
    want = layer.with_gate_logits(x, layer.gate_logits(x) + noise, where=where)
    jax.tree.map(np.testing.assert_array_equal, got, want)
    chosen = (plain.routed.routing.expert_indices for plain in (got, layer(x, where=where)))
    assert not np.array_equal(*chosen)


def test_the_order_of_service_arrives():
    x = tokens(20)
    plans = [build(capacity_factor=0.5, prioritized=p)(x).routed.plan for p in (False, True)]
    assert plans[0].num_over_capacity == plans[1].num_over_capacity > 0
    assert (plans[0].dropped != plans[1].dropped).any()
