"""Public functions under strict promotion of dtypes and with 64 bits: traced, not run."""

import jax
import jax.numpy as jnp
import numpy as np
import public_calls
import pytest

import calmoe_jax as cm
from calmoe_jax.moe import ExpertParams

# Whether JAX has 64 bits, how it promotes, and the dtypes of the arrays' floats and integers.
MODES = {
    "strict": (False, "strict", jnp.float32, jnp.int32),
    "strict bfloat16": (False, "strict", jnp.bfloat16, jnp.int32),
    "64 bits": (True, "standard", jnp.float64, jnp.int64),
    "64 bits, strict": (True, "strict", jnp.float64, jnp.int64),
    "64 bits, strict float32": (True, "strict", jnp.float32, jnp.int32),
}


def cast(arrays, floats, integers):
    """Arrays in other dtypes; in bfloat16, what was fitted and plain numbers are float32."""

    def one(x, floats):
        x = jnp.asarray(x)
        if jnp.issubdtype(x.dtype, jnp.floating):
            return x.astype(floats)
        return x.astype(integers) if jnp.issubdtype(x.dtype, jnp.integer) else x

    def argument(value):
        fitted = isinstance(value, tuple | list) and not isinstance(value, ExpertParams)
        wide = fitted or (not isinstance(value, tuple) and np.ndim(value) == 0)
        dtype = jnp.float32 if wide and floats == jnp.bfloat16 else floats
        return jax.tree.map(lambda x: one(x, dtype), value)

    return {name: argument(value) for name, value in arrays.items()}


def gradient(call, arrays):
    """The gradient of the sum of a call's floats to all its arrays of floats."""
    floats = [x for x in jax.tree.leaves(arrays) if jnp.issubdtype(x.dtype, jnp.floating)]

    def loss(floats):
        rest = iter(floats)
        given = jax.tree.map(
            lambda x: next(rest) if jnp.issubdtype(x.dtype, jnp.floating) else x, arrays
        )
        results = jax.tree.leaves(call(given))
        return sum(
            (jnp.sum(x.astype(float)) for x in results if jnp.issubdtype(x.dtype, jnp.floating)),
            jnp.zeros((), float),
        )

    try:
        jax.eval_shape(jax.grad(loss), floats)
    except ValueError as error:
        if "Reverse-mode differentiation does not work for lax.while_loop" not in str(error):
            raise


@pytest.fixture(scope="module")
def every_call():
    """Made before any mode is set."""
    return {
        name: (function, *public_calls.call_of(function))
        for name, function in public_calls.calls().items()
        if function.__name__ not in public_calls.ON_HOST
    }


@pytest.mark.exhaustive
@pytest.mark.parametrize("mode", MODES)
def test_public_functions(mode, every_call):
    wide, promotion, floats, integers = MODES[mode]
    failed = {}
    with jax.enable_x64(wide), jax.numpy_dtype_promotion(promotion):
        for name, (function, arrays, statics) in every_call.items():
            call = public_calls.bound(function, statics)
            try:
                given = cast(arrays, floats, integers)
                jax.eval_shape(call, given)
                gradient(call, given)
                if mode == "64 bits, strict float32":
                    found = jax.tree.leaves(jax.eval_shape(call, given))
                    assert jnp.float64 not in [x.dtype for x in found], "promoted to 64 bits"
            except Exception as error:
                failed[name] = f"{type(error).__name__}: {str(error)[:200]}"
    assert not failed


@pytest.mark.exhaustive
@pytest.mark.parametrize("promotion", ["standard", "strict"])
def test_many_slots_with_64_bits(promotion):
    with jax.enable_x64(True), jax.numpy_dtype_promotion(promotion):
        logits = jnp.asarray(np.random.RandomState(0).randn(5, 20))
        for dtype in (jnp.float32, jnp.float64, jnp.bfloat16):
            routed = cm.route(logits.astype(dtype), k=17)
            x = jnp.ones((5, 3), dtype)
            weights = routed.routing.combine_weights
            both = cm.combine(cm.dispatch(x, routed.plan), routed.plan, weights)
            np.testing.assert_allclose(np.float64(both), 1, rtol=1e-2)
            assert both.dtype == dtype
