"""Dispatch under JAX's transformations, for every implementation."""

import functools
import re
from importlib.util import find_spec

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from devices import shard_map
from dispatching import close, combine, dispatch, exhaustive, normal, plan_of, route, same

import calmoe_jax as cm
from calmoe_jax.moe import PLAN_NAME, ROUTING_NAME

pytestmark = pytest.mark.exhaustive


def layer(x, logits, scale, *, implementation, k=2, capacity=None):
    """A layer of experts that multiply by their own scale and take a sine."""
    routed = cm.route(logits, k=k, capacity=capacity, implementation=implementation)
    rows = cm.dispatch(x, routed.plan, implementation=implementation)
    if capacity is None:
        ends = jnp.cumsum(routed.plan.group_sizes)
        expert = jnp.searchsorted(ends, jnp.arange(len(rows)), side="right")
    else:
        expert = jnp.arange(len(rows)) // capacity
    rows = jnp.sin(rows * scale[expert])
    y = cm.combine(rows, routed.plan, routed.routing.combine_weights, implementation=implementation)
    return y, routed.plan, routed.statistics


def training_loss(x, logits, scale, **options):
    y, plan, statistics = layer(x, logits, scale, **options)
    balance = jnp.vdot(statistics.mean_gate_probs, plan.load.astype(jnp.float32))
    return jnp.sum(y**2) + balance + jnp.sum(statistics.logsumexp**2)


def layer_inputs(*batch, tokens=8, experts=4):
    x, logits = normal(51, *batch, tokens, 3), normal(52, *batch, tokens, experts)
    return x, logits, normal(53, experts, 1)


@functools.cache
def one_layer(**options):
    return jax.jit(functools.partial(layer, **options))


@functools.cache
def one_gradient(**options):
    return jax.jit(jax.grad(functools.partial(training_loss, **options), (0, 1, 2)))


def each(f, x, logits, scale):
    results = [f(a, b, scale) for a, b in zip(x, logits, strict=True)]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *results)


@pytest.mark.slow
def test_jit_is_eager(implementation):
    x, logits, _ = (jnp.asarray(a) for a in layer_inputs())
    options = {"k": 2, "capacity": 3, "implementation": implementation}
    routed = cm.route(logits, **options)
    same(routed.plan, route(logits, **options).plan)
    rows = cm.dispatch(x, routed.plan, implementation=implementation)
    same(rows, dispatch(x, routed.plan, implementation=implementation))
    args = rows, routed.plan, routed.routing.combine_weights
    y = cm.combine(*args, implementation=implementation)
    close(y, combine(*args, implementation=implementation))


@pytest.mark.parametrize("capacity", [None, 3])
def test_vmap_is_a_loop(capacity, implementation):
    f = one_layer(implementation=implementation, capacity=capacity)
    inputs = layer_inputs(3)
    mapped, looped = jax.jit(jax.vmap(f, (0, 0, None)))(*inputs), each(f, *inputs)
    same(mapped[1], looped[1])
    close(mapped, looped)


def test_a_batch_keeps_capacities_apart(implementation):
    indices = np.zeros((2, 3, 1), np.int32)
    indices[1] = 1
    plans = jax.jit(
        jax.vmap(
            functools.partial(
                cm.plan_dispatch, num_experts=2, capacity=2, implementation=implementation
            )
        )
    )(indices)
    assert plans.positions[..., 0].tolist() == [[0, 1, 4], [2, 3, 4]]
    assert plans.group_sizes.tolist() == [[2, 0], [0, 2]]


def test_gradient_under_vmap_is_a_loop(implementation):
    f = one_gradient(implementation=implementation, capacity=3)
    inputs = layer_inputs(3)
    close(jax.jit(jax.vmap(f, (0, 0, None)))(*inputs), each(f, *inputs))


def test_scan_is_a_loop(implementation):
    f = one_layer(implementation=implementation, capacity=3)
    x, logits, scale = layer_inputs(3)
    scan = jax.jit(lambda *xs: jax.lax.scan(lambda carry, each: (carry, f(*each, scale)), 0, xs))
    close(scan(x, logits)[1], each(f, x, logits, scale))


def test_gradient_through_a_scan_of_layers(implementation):
    x, logits, scale = (jnp.asarray(a) for a in layer_inputs())

    def step(x, _):
        return layer(x, logits, scale, implementation=implementation)[0], None

    def after_two(steps):
        return jax.jit(jax.grad(lambda x: jnp.sum(steps(x) ** 2)))(x)

    scanned = after_two(lambda x: jax.lax.scan(step, x, None, length=2)[0])
    close(scanned, after_two(lambda x: step(step(x, None)[0], None)[0]))


def test_pmap_is_a_loop(mesh, implementation):
    f = one_layer(implementation=implementation, capacity=3)
    inputs = layer_inputs(mesh.size)
    close(jax.pmap(f, in_axes=(0, 0, None))(*inputs), each(f, *inputs))


def sharded(f, mesh, check_vma, in_specs=("d", "d", None)):
    """`f` of the first of each leading axis that is sharded; results are stacked again."""

    def of_device(*args):
        own = [a if spec is None else a[0] for a, spec in zip(args, in_specs, strict=True)]
        return jax.tree.map(lambda leaf: leaf[None], f(*own))

    specs = tuple(jax.P() if spec is None else jax.P(spec) for spec in in_specs)
    return shard_map(
        of_device, mesh=mesh, in_specs=specs, out_specs=jax.P("d"), check_vma=check_vma
    )


@pytest.mark.parametrize(
    ("check_vma", "capacity"), [(True, 3), (False, None), *exhaustive((True, None))]
)
def test_shard_map_is_a_loop(check_vma, capacity, mesh, implementation):
    f = one_layer(implementation=implementation, capacity=capacity)
    inputs = layer_inputs(mesh.size)
    close(jax.jit(sharded(f, mesh, check_vma))(*inputs), each(f, *inputs))


@pytest.mark.parametrize("check_vma", [True, False])
def test_gradients_through_shard_map_are_a_loop(check_vma, mesh, implementation):
    mapped = sharded(
        functools.partial(training_loss, implementation=implementation), mesh, check_vma
    )
    inputs = layer_inputs(mesh.size)
    found = jax.jit(jax.grad(lambda *args: jnp.sum(mapped(*args)), (0, 1, 2)))(*inputs)
    to_x, to_logits, to_scale = each(one_gradient(implementation=implementation), *inputs)
    close(found, (to_x, to_logits, to_scale.sum(axis=0)), atol=1e-5)


@pytest.mark.parametrize("check_vma", [True, *exhaustive(False)])
def test_many_slots_under_shard_map(check_vma, mesh, implementation):
    f = one_layer(implementation=implementation, k=17)
    inputs = layer_inputs(mesh.size, tokens=2, experts=20)
    close(jax.jit(sharded(f, mesh, check_vma))(*inputs), each(f, *inputs))


@functools.cache
def products(implementation):
    """A loss of x, experts, weights and a factor of the rows, and its gradient."""

    def loss(x, ids, weights, factor):
        plan = cm.plan_dispatch(ids, num_experts=3, implementation=implementation)
        rows = factor * cm.dispatch(x, plan, implementation=implementation)
        return jnp.sum(cm.combine(rows, plan, weights, implementation=implementation) ** 2)

    return loss, jax.jit(jax.grad(loss, (0, 2, 3)))


@pytest.mark.parametrize(
    ("check_vma", "shared"),
    [
        *((True, "x"), (True, "ids weights"), (False, "x weights")),
        *exhaustive((True, "ids"), (True, "weights")),
    ],
)
def test_gradients_where_devices_share_an_argument(check_vma, shared, mesh, implementation):
    n, names = mesh.size, ["x", "ids", "weights", "factor"]
    ids = np.random.RandomState(54).randint(0, 3, (n, 6, 2)).astype(np.int32)
    inputs = [normal(55, n, 6, 2), ids, normal(56, n, 6, 2), normal(57, n, 12, 2)]
    specs = [None if name in shared.split() else "d" for name in names]
    inputs = [a if spec else a[0] for a, spec in zip(inputs, specs, strict=True)]
    loss, gradient = products(implementation)
    mapped = sharded(loss, mesh, check_vma, specs)
    found = jax.jit(jax.grad(lambda *args: jnp.sum(mapped(*args)), (0, 2, 3)))(*inputs)
    alone = [
        gradient(*(a[i] if spec else a for a, spec in zip(inputs, specs, strict=True)))
        for i in range(n)
    ]
    for result, spec, *parts in zip(found, [specs[i] for i in (0, 2, 3)], *alone, strict=True):
        close(result, np.stack(parts) if spec else sum(np.asarray(part) for part in parts))


def test_route_of_shared_logits_with_a_bias_of_each_device(mesh, implementation):
    logits, bias = jnp.asarray(normal(58, 6, 4)), jnp.asarray(normal(59, mesh.size, 4))

    def weights(logits, bias):
        routed = cm.route(logits, bias, k=2, renormalize=False, implementation=implementation)
        return jnp.sum(routed.routing.combine_weights)

    mapped = sharded(weights, mesh, True, [None, "d"])
    found = jax.jit(jax.grad(lambda logits: jnp.sum(mapped(logits, bias))))(logits)
    alone = jax.jit(jax.grad(lambda logits: sum(weights(logits, b) for b in bias)))
    close(found, alone(logits))


@pytest.mark.parametrize("check_vma", [True, False])
def test_gradients_with_constant_weights_under_shard_map(check_vma, mesh, implementation):
    x, logits, _ = layer_inputs(mesh.size)

    def f(x, logits):
        plan = cm.route(logits, k=2, implementation=implementation).plan
        rows = cm.dispatch(x, plan, implementation=implementation)
        halves = jnp.full(plan.positions.shape, 0.5)
        return cm.combine(rows, plan, halves, implementation=implementation)

    mapped = sharded(f, mesh, check_vma, in_specs=("d", "d"))
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(mapped(x, logits) ** 2)))(x)
    close(gradient, 2 * x)  # half and half of the same


def test_shards_do_not_gather(mesh, implementation):
    if implementation != "xla":
        pytest.skip("the text of a program with kernels is not that of XLA's own operations")
    f = functools.partial(training_loss, implementation=implementation)
    *tokens, scale = layer_inputs(mesh.size)
    mapped = sharded(f, mesh, True)
    step = jax.jit(jax.grad(lambda *args: jnp.sum(mapped(*args)), (0, 1)))
    placed = [jax.device_put(a, jax.NamedSharding(mesh, jax.P("d"))) for a in tokens]
    text = step.lower(*placed, scale).compile().as_text()
    assert "sort" in text
    assert "all-gather" not in text
    assert "all-to-all" not in text


def tokens_over(mesh):
    spec = jax.NamedSharding(mesh, jax.P("d"))
    return [jax.device_put(a, spec) for a in layer_inputs(tokens=8 * mesh.size)[:2]]


def test_sharded_tokens_without_shard_map(mesh, implementation):
    def layer(x, logits):
        routed = cm.route(logits, k=2, implementation=implementation)
        rows = cm.dispatch(x, routed.plan, implementation=implementation)
        weights = routed.routing.combine_weights
        return cm.combine(rows, routed.plan, weights, implementation=implementation)

    x, logits = map(jnp.asarray, layer_inputs(tokens=8 * mesh.size)[:2])
    if implementation == "triton":
        with pytest.raises(jax.errors.JaxRuntimeError, match=r"inside jax\.shard_map"):
            jax.jit(layer)(*tokens_over(mesh))
        return
    compiled = jax.jit(layer).lower(*tokens_over(mesh)).compile()
    gathered = re.findall(r"= (\w+)\[.*? all-gather", compiled.as_text())
    assert set(gathered) <= {"s32", "u32"}  # indices, and neither tokens nor logits
    close(compiled(*tokens_over(mesh)), jax.jit(layer)(x, logits))


def saving(implementation):
    policy = jax.checkpoint_policies.save_only_these_names(PLAN_NAME, ROUTING_NAME)
    return jax.checkpoint(
        functools.partial(training_loss, implementation=implementation), policy=policy
    )


def test_checkpoint_gives_the_same_gradient(implementation):
    inputs = layer_inputs()
    saved = jax.jit(jax.grad(saving(implementation), (0, 1, 2)))
    close(saved(*inputs), one_gradient(implementation=implementation)(*inputs))


def test_checkpoint_finds_the_names(implementation):
    f = functools.partial(training_loss, implementation=implementation)
    text = str(jax.make_jaxpr(f)(*layer_inputs()))
    assert text.count(f"name[name={PLAN_NAME}]") == 5
    assert text.count(f"name[name={ROUTING_NAME}]") >= 2


def test_plan_dispatch_is_named(implementation):
    f = functools.partial(cm.plan_dispatch, num_experts=3, implementation=implementation)
    text = str(jax.make_jaxpr(f)(np.zeros((4, 2), np.int32)))
    assert text.count(f"name[name={PLAN_NAME}]") == 5


def test_with_the_names_saved_nothing_is_sorted_again(implementation):
    if implementation != "xla":
        pytest.skip("counts XLA's operations")

    def sorts(f, name="sort"):
        text = str(jax.make_jaxpr(jax.grad(f, (0, 1)))(*layer_inputs()))
        return len(re.findall(rf"\b{name}\[", text))

    f = functools.partial(training_loss, implementation=implementation)
    assert sorts(f) == sorts(saving(implementation)) == 1
    assert sorts(jax.checkpoint(f)) == 2
    assert sorts(f, "argmax") == sorts(saving(implementation), "argmax")


def test_a_layer_in_a_custom_gradient(implementation):
    f = functools.partial(training_loss, implementation=implementation)
    wrapped = jax.custom_vjp(f)
    wrapped.defvjp(lambda *a: jax.vjp(f, *a), lambda backward, cotangent: backward(cotangent))
    inputs = layer_inputs()
    found = jax.jit(jax.grad(wrapped, (0, 1, 2)))(*inputs)
    close(found, one_gradient(implementation=implementation)(*inputs))


def test_export(implementation):
    if implementation != "xla":
        pytest.skip("kernels are exported for their own device")
    f = one_layer(implementation=implementation, capacity=3)
    inputs = layer_inputs()
    # leaves, for a NamedTuple needs a registration to be serialised
    exported = jax.export.export(jax.jit(lambda *a: jax.tree.leaves(f(*a))), platforms=["cpu"])
    exported = exported(*inputs)
    if find_spec("flatbuffers"):
        exported = jax.export.deserialize(exported.serialize())
    close(exported.call(*inputs), jax.tree.leaves(f(*inputs)))


def test_two_runs_are_equal_to_the_bit(implementation):
    step, inputs = one_gradient(implementation=implementation), layer_inputs(tokens=64)
    same(step(*inputs), step(*inputs))


def test_memory_is_that_of_the_rows(implementation):
    if implementation != "xla" or jax.default_backend() != "cpu":
        pytest.skip("the figure is for XLA on CPU")
    tokens, k, d = 4096, 2, 256
    plan = plan_of(58, tokens, k, 8, implementation=implementation)

    def there_and_back(x, plan, weights, matrix):
        rows = cm.dispatch(x, plan, implementation=implementation)
        return cm.combine(rows @ matrix, plan, weights, implementation=implementation)

    inputs = normal(59, tokens, d), plan, normal(60, tokens, k), normal(61, d, d)
    memory = jax.jit(there_and_back).lower(*inputs).compile().memory_analysis()
    sizes = memory.argument_size_in_bytes, memory.output_size_in_bytes, memory.temp_size_in_bytes
    given, result = sum(leaf.nbytes for leaf in jax.tree.leaves(inputs)), 4 * d * tokens
    rows = 2 * k * result  # a product needs its operand and its result
    assert sum(sizes) <= 1.1 * (given + rows + result)
