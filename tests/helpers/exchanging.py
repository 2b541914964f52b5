"""Layers whose experts are spread over devices, and the same layer on one device."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from devices import shard_map
from dispatching import normal

from calmoe_jax._numerics import at_least_float32
from calmoe_jax.moe import ExpertParams, expert_parallel_layer, sparse_layer

TOKENS, E, D, H = 24, 8, 4, 3
MESHES = {
    "2": ((2,), ("expert",)),
    "4": ((4,), ("expert",)),
    "2x2": ((2, 2), ("data", "expert")),
    "8": ((8,), ("expert",)),
    "2x4": ((2, 4), ("data", "expert")),
}


def mesh_of(name, kind="Auto"):
    shape, axes = MESHES[name]
    needed = int(np.prod(shape))
    if len(jax.devices()) < needed:
        pytest.skip(f"needs {needed} devices")
    devices = np.array(jax.devices()[:needed]).reshape(shape)
    types = (getattr(jax.sharding.AxisType, kind),) * len(axes)
    return jax.sharding.Mesh(devices, axes, axis_types=types)


def problem(kind, dtype=np.float32):
    """Tokens, gate logits, experts, bias, shared experts and which tokens count."""
    x, logits = normal(1, TOKENS, D), normal(2, TOKENS, E)
    where = np.ones(TOKENS, bool)
    rng = np.random.RandomState(3)
    match kind:
        case "skewed":  # all tokens to one expert
            logits[:, 5] += 50
        case "dead":  # devices without work
            logits[:, [0, 1, 2, 3, 6]] = -np.inf
        case "masked":  # tokens with fewer experts than slots
            logits[(rng.rand(TOKENS, E) < 0.6) & (np.arange(E) != 4)] = -np.inf
            logits[::5] = np.where(np.arange(E) == 3, 0, -np.inf)
        case "padded":  # a device without tokens
            where = rng.rand(TOKENS) < 0.7
            where[: TOKENS // 4] = False
            x[~where], logits[~where] = np.nan, np.nan
        case "broken":
            x[3, 1], logits[10, 2], logits[17] = np.nan, np.nan, -np.inf
    params, shared = experts(4, E), experts(8, 2)
    arrays = x, logits, params, normal(12, E) / 3, shared
    return jax.tree.map(lambda a: jnp.asarray(a, dtype), arrays), jnp.asarray(where)


def experts(seed, number):
    shapes = (number, D, H), (number, H, D), (number, H), (number, D)
    return ExpertParams(*(normal(seed + i, *shape) / 2 for i, shape in enumerate(shapes)))


def loss_of(output):
    return jnp.sum(jnp.sin(at_least_float32(output)))


def with_gradients(layer):
    """Compiled: outputs and sums of a layer, and a loss's gradients to its arrays."""

    def loss(arrays, where):
        results = layer(arrays, where)
        return loss_of(results[0]), results

    def call(arrays, where):
        gradients, results = jax.grad(loss, has_aux=True)(arrays, where)
        return results, gradients

    return jax.jit(call)


def over(mesh, *, check_vma=True, **options):
    """The layer under `shard_map`, a function of arrays and `where`.

    It gives outputs, and the sums of loads, drops and logsumexp over all devices.
    """
    axes = mesh.axis_names
    rows, own = jax.P(axes), jax.P("expert")
    options = {"axis_name": "expert"} | options
    if options["axis_name"] != "expert":
        own = rows

    def of_device(x, logits, params, bias, shared, where):
        result = expert_parallel_layer(x, logits, params, bias, shared, where=where, **options)
        log_sums = jnp.sum(result.routed.statistics.logsumexp)
        sums = result.routed.plan.load, result.num_dropped, log_sums
        return result.output, *jax.lax.psum(sums, axes)

    mapped = shard_map(
        of_device, mesh=mesh, in_specs=(rows, rows, own, jax.P(), jax.P(), rows),
        out_specs=(rows, jax.P(), jax.P(), jax.P()), check_vma=check_vma,
    )  # fmt: skip
    return lambda arrays, where: mapped(*arrays, where)


def alone(*, parts=1, **options):
    """The layer on one device, on parts of the tokens one after the other."""

    def layer(arrays, where):
        x, logits, *rest = arrays

        def of_part(x, logits, where):
            result = sparse_layer(x, logits, *rest, where=where, **options)
            plan, statistics = result.routed[1:]
            log_sums = jnp.sum(statistics.logsumexp)
            return result.output, plan.load, plan.num_over_capacity, log_sums

        split = (a.reshape(parts, -1, *a.shape[1:]) for a in (x, logits, where))
        output, *sums = jax.vmap(of_part)(*split)
        return output.reshape(TOKENS, D), *(each.sum(axis=0) for each in sums)

    return layer


@functools.cache
def reference(**options):
    return with_gradients(alone(**options))


def agree(found, wanted, tolerance=1e-5):
    """Results and gradients, tensor by tensor, and those to experts expert by expert."""
    (output, load, dropped, log_sums), gradients = found
    (wanted_output, wanted_load, wanted_dropped, wanted_log_sums), wanted_gradients = wanted
    np.testing.assert_array_equal(load, wanted_load)
    assert dropped == wanted_dropped
    near(output, wanted_output, tolerance, "output")
    near(log_sums, wanted_log_sums, tolerance, "logsumexp")
    names = "x", "gate_logits", "params", "selection_bias", "shared"
    for name, each, other in zip(names, gradients, wanted_gradients, strict=True):
        if name not in ("params", "shared"):
            near(each, other, tolerance, name)
            continue
        for field, many, others in zip(each._fields, each, other, strict=True):
            for e, (one, another) in enumerate(zip(many, others, strict=True)):
                near(one, another, tolerance, f"{name}.{field}[{e}]")


def near(found, wanted, tolerance, name):
    """Within a tolerance of the largest number of the tensor."""
    found, wanted = np.asarray(found, np.float64), np.asarray(wanted, np.float64)
    finite = np.abs(wanted[np.isfinite(wanted)])
    largest = max(finite.max(initial=0), 1e-3)
    np.testing.assert_allclose(
        found, wanted, rtol=tolerance, atol=tolerance * largest, err_msg=name
    )


def ragged_all_to_all(operand, output, offsets, sizes, offsets_there, received, *, axis_name):
    """`lax.ragged_all_to_all` for backends without: gathers everything, takes what is sent here."""
    device = jax.lax.axis_index(axis_name)
    sent = [jax.lax.all_gather(a, axis_name)[:, device] for a in (offsets, sizes, offsets_there)]
    del received
    rows, operands = jnp.arange(operand.shape[0]), jax.lax.all_gather(operand, axis_name)
    for source, (first, size, there) in enumerate(zip(*sent, strict=True)):
        inside = (rows >= first) & (rows < first + size)
        at = jnp.where(inside, rows - first + there, output.shape[0])
        output = output.at[at].set(operands[source], mode="drop")
    return output
