"""Public functions under strict promotion of dtypes and with 64 bits: traced, not run."""

import jax
import jax.numpy as jnp
import numpy as np
import public_calls
import pytest

import calmoe_jax as cm

# Whether JAX has 64 bits, how it promotes, and the dtype of the arrays.
MODES = {
    "strict": (False, "strict", jnp.float32),
    "strict bfloat16": (False, "strict", jnp.bfloat16),
    "64 bits": (True, "standard", jnp.float64),
    "64 bits, strict": (True, "strict", jnp.float64),
    "64 bits, strict float32": (True, "strict", jnp.float32),
}
BY_DEFAULT = ("strict bfloat16",)


def cast(arrays, dtype):
    """Arrays of floats in a dtype; in bfloat16, what was fitted and plain numbers are float32."""

    def one(x, dtype):
        x = jnp.asarray(x)
        return x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x

    def argument(value):
        fitted = hasattr(value, "_fields") and not hasattr(value, "w_in")
        whole = dtype == jnp.bfloat16 and (fitted or isinstance(value, list) or np.ndim(value) == 0)
        return jax.tree.map(lambda x: one(x, jnp.float32 if whole else dtype), value)

    # an `ExpertParams` has no number of axes
    return {
        name: jax.tree.map(lambda x: one(x, dtype), value)
        if hasattr(value, "w_in")
        else argument(value)
        for name, value in arrays.items()
    }


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
@pytest.mark.parametrize(
    "mode",
    [pytest.param(m, marks=() if m in BY_DEFAULT else pytest.mark.exhaustive) for m in MODES],
)
def test_public_functions(mode, every_call):
    wide, promotion, dtype = MODES[mode]
    failed = {}
    with jax.enable_x64(wide), jax.numpy_dtype_promotion(promotion):
        for name, (function, arrays, statics) in every_call.items():
            call = public_calls.bound(function, statics)
            try:
                given = cast(arrays, dtype)
                jax.eval_shape(call, given)
                gradient(call, given)
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
