"""What jax-triton makes of the kernels, for a GPU that is not here.

Needs jax-triton and a JAX CUDA plugin, of which `pip install --no-deps` is enough.
"""

import re
from functools import partial
from pathlib import Path

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

import calmoe_jax as cm
from calmoe_jax.moe import PLAN_NAME, ROUTING_NAME
from calmoe_kernels import measurements, selection
from calmoe_kernels.availability import Implementation

jax_triton = pytest.importorskip(
    "jax_triton", reason="needs jax-triton and a CUDA plugin", exc_type=ImportError
)

CALL = "triton_kernel_call"
LOGITS = jax.ShapeDtypeStruct((1024, 8), jnp.float32)
X = jax.ShapeDtypeStruct((1024, 256), jnp.bfloat16)
# choose, scan, place; scatter, gather; and the backwards of choose, scatter and gather
LAUNCHES = 8


@pytest.fixture(autouse=True)
def as_on_an_h100(monkeypatch):
    available = tuple(Implementation(name, True, "") for name in selection.NAMES)
    monkeypatch.setattr(selection, "implementations", lambda: available)
    call = partial(jax_triton.triton_call, compute_capability=90)
    monkeypatch.setattr(jax_triton, "triton_call", call)


def loss(logits, x):
    routed = cm.route(logits, k=2, capacity=300, implementation="triton")
    rows = cm.dispatch(x, routed.plan, implementation="triton")
    weights = routed.routing.combine_weights
    y = cm.combine(jnp.tanh(rows), routed.plan, weights, implementation="triton")
    return jnp.sum(y.astype(jnp.float32) ** 2) + jnp.sum(routed.statistics.logsumexp)


GRADIENT = jax.grad(loss, argnums=(0, 1))


def launches(function, *args, platform="cuda"):
    lowered = jax.jit(function).trace(*args).lower(lowering_platforms=(platform,))
    bodies = re.split(r"func\.func \w+ @", lowered.as_text())[1:]
    functions = {re.match(r"[\w.]+", body)[0]: body for body in bodies}

    def count(name):
        """Launches of a function, those of the functions that it calls included."""
        called = re.findall(r"call @([\w.]+)\(", functions[name])
        own = functions[name].count(f"@{CALL}")
        return own + sum(count(other) for other in called if other in functions)

    return count("main")


def test_the_gradient_of_a_layer_is_eight_launches():
    assert launches(GRADIENT, LOGITS, X) == LAUNCHES


def test_remat_that_saves_the_names_routes_once():
    def gradient(*names):
        policy = jax.checkpoint_policies.save_only_these_names(*names)
        return jax.value_and_grad(jax.checkpoint(loss, policy=policy), argnums=(0, 1))

    # the forward pass, twice or with the routing once, and three launches backward
    assert launches(gradient(), LOGITS, X) == 5 + 5 + 3
    assert launches(gradient(PLAN_NAME, ROUTING_NAME), LOGITS, X) == 5 + 2 + 3


def test_vmap_repeats_the_launches_in_a_loop():
    batch = [jax.ShapeDtypeStruct((3, *a.shape), a.dtype) for a in (LOGITS, X)]
    assert launches(jax.vmap(GRADIENT), *batch) == LAUNCHES


@pytest.mark.parametrize("check_vma", [True, False])
def test_shard_map(check_vma):
    mesh = Mesh(np.array(jax.devices()[:1]), ("d",))
    spec = PartitionSpec("d")
    sharded = jax.shard_map(GRADIENT, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=check_vma)
    assert launches(sharded, LOGITS, X) == LAUNCHES


def test_export_for_one_platform_names_its_safety_check():
    check = jax.export.DisabledSafetyCheck.custom_call(CALL)
    exported = jax.export.export(jax.jit(GRADIENT), platforms=["cuda"], disabled_checks=[check])(
        LOGITS, X
    )
    assert CALL in exported.mlir_module()


@pytest.fixture
def measured(monkeypatch):
    """Every operation was measured on this machine's GPU, and every kernel was the faster."""
    entries = [
        measurements.Measurement(operation, "triton", "any", size, True, 1.0, 2.0)
        for operation in selection.OPERATIONS
        for size in range(0, 40, 2)
    ]
    found = measurements.Measured(Path("h100.json"), tuple(entries), "")
    monkeypatch.setattr(measurements, "read", lambda folder, device_kind: found)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")


@pytest.mark.usefixtures("measured")
def test_none_leaves_the_choice_to_the_platform_of_the_program():
    def route(logits):
        return cm.route(logits, k=2)

    assert launches(route, LOGITS) == 3
    assert launches(route, LOGITS, platform="cpu") == 0


@pytest.mark.usefixtures("measured")
def test_a_grouped_product_of_coarse_numbers_for_any_platform():
    w = jax.ShapeDtypeStruct((8, 256, 64), jnp.bfloat16)
    sizes = jax.ShapeDtypeStruct((8,), jnp.int32)

    def value(x, w, sizes, implementation):
        y = cm.grouped_matmul(x, w, sizes, implementation=implementation)
        return jnp.sum(y.astype(jnp.float32))

    for implementation in ("triton", None):
        gradient = jax.grad(partial(value, implementation=implementation), argnums=(0, 1))
        assert launches(gradient, X, w, sizes) == 2
