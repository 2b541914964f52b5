"""Examples that are sharded over explicit mesh axes give what one device gives."""

import jax
import jax.numpy as jnp
import public_calls
import pytest
from dispatching import close, normal
from flax import nnx

import calmoe_jax as cm
from calmoe_jax.moe import ExpertParams, gather_slots, sparse_layer
from calmoe_jax.nn import MoELayer

# Those that sort, search, scatter, gather and scan; the others are tried by `--exhaustive`.
pytestmark = pytest.mark.exhaustive

BY_DEFAULT = (
    "expert_load", "route", "top_k_routing", "mixture.predict", "moe.load_balancing_loss",
    "calibration.expected_calibration_error", "calibration.smooth_calibration_error",
    "calibration.equal_mass_bins", "calibration.calibrators.fit_temperature",
    "reweighting.cvar", "reweighting.entropy_balance", "shift.neighbour_support",
)  # fmt: skip


@pytest.fixture(scope="module")
def explicit():
    """A mesh as `jax.make_mesh` makes it by default."""
    if len(jax.devices()) < 4:
        pytest.skip("needs four devices")
    return jax.make_mesh((4,), ("d",), devices=jax.devices()[:4])


def over(mesh, tree):
    """Arrays, those with a multiple of 8 rows sharded over the first axis."""

    def put(x):
        x = jnp.asarray(x)
        is_rows = x.ndim and x.shape[0] and x.shape[0] % 8 == 0
        return jax.device_put(x, jax.NamedSharding(mesh, jax.P("d") if is_rows else jax.P()))

    return jax.tree.map(put, tree)


def spec(x):
    """Names of the mesh axes that each axis is sharded over."""
    return tuple(jax.typeof(x).sharding.spec)


def public(name):
    by_default = name in BY_DEFAULT
    return pytest.param(name, marks=() if by_default else pytest.mark.exhaustive)


@pytest.mark.parametrize("name", [public(name) for name in public_calls.calls()])
def test_public_functions(name, explicit):
    function = public_calls.calls()[name]
    arrays, statics = public_calls.call_of(function)
    call = public_calls.bound(function, statics)
    if function.__name__ not in public_calls.ON_HOST:
        call = jax.jit(call)
    found, wanted = call(over(explicit, arrays)), call(arrays)
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        close(a, b, rtol=1e-3, atol=1e-4)  # solvers stop elsewhere


def test_nothing_is_left_out_by_default():
    assert set(BY_DEFAULT) <= set(public_calls.calls())


def layer_inputs():
    params = ExpertParams(normal(1, 4, 3, 5), normal(2, 4, 5, 3), normal(3, 4, 5), normal(4, 4, 3))
    return normal(5, 16, 3), normal(6, 16, 4), jax.tree.map(jnp.asarray, params)


def total(x, gate_logits, params):
    result = sparse_layer(x, gate_logits, params, k=2)
    loss = jnp.sum(jnp.sin(result.output)) + cm.moe.load_balancing_loss(result.routed)
    return loss, result


@pytest.mark.parametrize("context", [pytest.param(False, marks=pytest.mark.exhaustive), True])
def test_the_layer_and_its_derivatives(context, explicit):
    @jax.jit
    def every(*arrays):
        gradient = jax.grad(total, (0, 1, 2), has_aux=True)
        return gradient(*arrays), jax.jvp(lambda *a: gradient(*a)[0], arrays, arrays)[1]

    arrays = layer_inputs()
    wanted = every(*arrays)
    sharded = over(explicit, arrays)
    if context:
        with jax.set_mesh(explicit):
            found = every(*sharded)
    else:
        found = every(*sharded)
    close(found, wanted, rtol=1e-4, atol=1e-4)
    (to_x, to_logits, to_params), result = found[0]
    for rows in (to_x, to_logits, result.output, *result.routed.routing):
        assert spec(rows) == ("d", None)
    for whole in (*to_params, result.routed.plan.load, result.routed.plan.slot_indices):
        assert not any(spec(whole))


@pytest.mark.exhaustive
def test_without_jit(explicit):
    x, gate_logits, params = over(explicit, layer_inputs())
    with jax.set_mesh(explicit):
        found = jax.grad(total, has_aux=True)(x, gate_logits, params)
    close(found, jax.grad(total, has_aux=True)(*layer_inputs()), rtol=1e-4, atol=1e-4)


def test_rows_to_experts_and_back(explicit):
    x, gate_logits, _ = layer_inputs()

    @jax.jit
    def there_and_back(x, gate_logits):
        routed = cm.route(gate_logits, k=2)
        rows = jnp.tanh(cm.dispatch(x, routed.plan))
        combined = cm.combine(rows, routed.plan, routed.routing.combine_weights)
        return combined, gather_slots(rows, routed.plan)

    close(there_and_back(*over(explicit, (x, gate_logits))), there_and_back(x, gate_logits))


def test_tokens_over_two_axes():
    if len(jax.devices()) < 4:
        pytest.skip("needs four devices")
    mesh = jax.make_mesh((2, 2), ("host", "chip"), devices=jax.devices()[:4])
    sharding = jax.NamedSharding(mesh, jax.P(("host", "chip")))
    x, gate_logits, params = layer_inputs()
    args = (*(jax.device_put(a, sharding) for a in (x, gate_logits)), params)
    result = jax.jit(total)(*args)[1]
    close(result, jax.jit(total)(*layer_inputs())[1])
    assert spec(result.output) == (("host", "chip"), None)


def test_inside_shard_map_nothing_changes(explicit):
    x, gate_logits, params = layer_inputs()

    def of_device(x, gate_logits):
        return sparse_layer(x, gate_logits, params, k=2).output

    mapped = jax.shard_map(of_device, mesh=explicit, in_specs=jax.P("d"), out_specs=jax.P("d"))
    found = jax.jit(mapped)(*over(explicit, (x, gate_logits)))
    close(found, jax.jit(sparse_layer, static_argnames="k")(x, gate_logits, params, k=2).output)


def test_the_flax_module(explicit):
    layer = MoELayer(3, num_experts=4, hidden=5, k=2, rngs=nnx.Rngs(0))
    x = normal(5, 8, 2, 3)
    wanted = nnx.jit(lambda layer, x: layer(x).output)(layer, x)
    nnx.update(layer, over(explicit, nnx.state(layer)))
    with jax.set_mesh(explicit):
        found = nnx.jit(lambda layer, x: layer(x).output)(layer, over(explicit, x))
    close(found, wanted)
