"""Every public function under strict promotion of dtypes and with 64 bits."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import public_calls
import pytest

from calmoe_jax.moe import ExpertParams

CALLS = public_calls.calls()
TRACED = sorted(n for n, f in CALLS.items() if f.__name__ not in public_calls.ON_HOST)
# By name: the context, and the dtypes of floats and integers.
MODES = {
    "strict": (lambda: jax.numpy_dtype_promotion("strict"), jnp.float32, jnp.int32),
    "strict bfloat16": (lambda: jax.numpy_dtype_promotion("strict"), jnp.bfloat16, jnp.int32),
    "x64": (lambda: jax.enable_x64(True), jnp.float64, jnp.int64),
    "strict x64": (lambda: _both(), jnp.float64, jnp.int64),
    "float32 in x64": (lambda: jax.enable_x64(True), jnp.float32, jnp.int32),
}
BY_DEFAULT = ("strict bfloat16",)


@contextlib.contextmanager
def _both():
    with jax.numpy_dtype_promotion("strict"), jax.enable_x64(True):
        yield


def cast(arrays, floats, integers):
    """The arrays in other dtypes; states, fits and single numbers stay in at least float32."""

    def one(x):
        x = x if hasattr(x, "dtype") else np.asarray(x)
        if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            return x
        kinds = {"f": floats, "i": integers}
        return jnp.asarray(x, kinds.get(np.dtype(x.dtype).kind, x.dtype))

    def kept(value):
        if floats != jnp.bfloat16 or isinstance(value, list | ExpertParams):
            return False
        return isinstance(value, tuple) or np.ndim(value) == 0

    return {n: v if kept(v) else jax.tree.map(one, v) for n, v in arrays.items()}


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", TRACED)
@pytest.mark.parametrize(
    "mode",
    [m if m in BY_DEFAULT else pytest.param(m, marks=pytest.mark.exhaustive) for m in MODES],
)
def test_public_functions_are_traced(name, mode, unchecked):
    context, floats, integers = MODES[mode]
    arrays, statics = public_calls.call_of(CALLS[name])
    call = public_calls.bound(CALLS[name], statics)
    with context():
        found = jax.eval_shape(call, cast(arrays, floats, integers))
    for leaf in jax.tree.leaves(found):
        if mode == "float32 in x64" and jnp.issubdtype(leaf.dtype, jnp.floating):
            assert leaf.dtype == jnp.float32
