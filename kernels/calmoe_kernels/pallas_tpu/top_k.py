"""Top-k of each row on TPU, in Pallas, without a sort. It has not run on a TPU yet.

Tokens are along the lanes of a register and experts along its rows, so that the largest entry of
every token is a running maximum of whole registers, with a final reduction of eight candidates per
lane. There are `k` such rounds; each removes the entry that the previous one took. The routers of
tokamax and sglang-jax for TPU use this layout and these rounds too.

The keys are integers in the order of the floats: the lower 31 bits of negative ones are flipped, as
in radix sorts. That order is total, and no number maps to its smallest integer: a removed entry is
below `-inf`, and rows of `-inf` need no mask.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Float32, Int32

# A register of 32-bit numbers.
_SUBLANES, _LANES = 8, 128
# Below the key of every number.
_STRUCK = np.int32(-(2**31))
# Largest number of lanes of a block, and rows of an unrolled loop: from the compiler's schedules
# for v5e.
_MOST_LANES, _UNROLLED_ROWS = 512, 512
# Memory budget, out of the 16 MiB that a kernel may use by default on most generations.
_VMEM_BYTES = 14 * 2**20


def top_k(
    values: Float[Array, "tokens experts"], k: int, *, interpret: bool = False
) -> tuple[Float32[Array, "tokens k"], Int32[Array, "tokens k"]]:
    """Finds the `k` largest values of each row, largest first, as `jax.lax.top_k` does.

    There is no derivative. With sharded values, call it inside `shard_map`.

    Args:
        values: float32. The kernel reads them transposed; if XLA computes them in the same program,
            it writes them in that layout.
        k: number of values, in `[1, experts]`; the time grows with it.
        interpret: whether to emulate the kernel, for tests on other platforms.

    Returns:
        The values and their indices. Ties go to the lower index, also among `-inf`; -0 is below 0.
        The place of NaN is unspecified, but all indices are valid.

    Raises:
        ValueError: if `k` is out of range.
        NotImplementedError: if the values are not float32, or a block of tokens does not fit into
            the fast memory: if `3 experts + 4 k`, each rounded up to eights, is above 28672.

    Example:
        >>> top_k(jnp.array([[0.0, 2.0, 1.0, 2.0]]), 2, interpret=True)[1]
        Array([[1, 3]], dtype=int32)
    """
    tokens, experts = values.shape
    if not 1 <= k <= experts:
        raise ValueError(f"k must be in [1, experts={experts}], got k={k}.")
    if values.dtype != jnp.float32:
        raise NotImplementedError(f"pallas_tpu: top-k of {values.dtype}, not float32.")
    rows = pl.cdiv(experts, _SUBLANES) * _SUBLANES
    lanes = _block_lanes(rows, k)
    if tokens == 0:
        return values[:, :k], values[:, :k].astype(jnp.int32)
    # padded to whole registers; the padding is never chosen, or is cut off
    columns = pl.cdiv(tokens, _LANES) * _LANES
    padded = jnp.pad(values.T, ((0, rows - experts), (0, columns - tokens)))
    lanes = min(lanes, columns)
    varying = jax.typeof(values).manual_axis_type

    def block(of: int) -> pl.BlockSpec:
        return pl.BlockSpec((of, lanes), lambda i: (0, i))

    with jax.enable_x64(False):  # Mosaic has no 64-bit counters
        top, indices = pl.pallas_call(
            partial(_kernel, experts=experts),
            grid=(pl.cdiv(columns, lanes),),
            in_specs=[block(rows)],
            out_specs=[block(k), block(k)],
            out_shape=[
                jax.ShapeDtypeStruct((k, columns), dtype, manual_axis_type=varying)
                for dtype in (jnp.float32, jnp.int32)
            ],
            scratch_shapes=[pltpu.VMEM((rows, lanes), jnp.int32)],
            compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel",)),
            interpret=interpret,
            name="calmoe_top_k",
        )(padded)
    return top[:, :tokens].T, indices[:, :tokens].T


def _block_lanes(rows: int, k: int) -> int:
    """Lanes of a block: inputs and outputs are double-buffered."""
    per_lane = 4 * (2 * rows + rows + 2 * 2 * pl.cdiv(k, _SUBLANES) * _SUBLANES)
    lanes = _VMEM_BYTES // per_lane // _LANES * _LANES
    if lanes == 0:
        raise NotImplementedError(
            f"pallas_tpu: top-k of {rows} experts with k={k} needs more than the fast memory."
        )
    return min(lanes, _MOST_LANES)


def _in_order(bits: jax.Array) -> jax.Array:
    """The bits of floats to integers of the same order, and back."""
    return jnp.where(bits < 0, bits ^ np.int32(2**31 - 1), bits)


def _kernel(
    values_ref: Any, top_ref: Any, indices_ref: Any, keys_ref: Any, *, experts: int
) -> None:
    """A block of tokens: `[rows, lanes]` to two of `[k, lanes]`; `keys_ref` is scratch."""
    rows, lanes = keys_ref.shape
    sublane = jax.lax.broadcasted_iota(jnp.int32, (_SUBLANES, lanes), 0)

    def over_rows(body: Callable[[Any, jax.Array, Any], Any], initial: Any) -> Any:
        """Calls `body(slice, row numbers, carry)` for one register after the other."""

        def step(i: jax.Array, carry: Any) -> Any:
            first = pl.multiple_of(i * np.int32(_SUBLANES), _SUBLANES)
            return body(pl.ds(first, _SUBLANES), first + sublane, carry)

        steps = rows // _SUBLANES
        return jax.lax.fori_loop(
            0, steps, step, initial, unroll=min(steps, _UNROLLED_ROWS // _SUBLANES)
        )

    def fill(at: Any, row: jax.Array, _: None) -> None:
        keys = _in_order(jax.lax.bitcast_convert_type(values_ref[at, :], jnp.int32))
        if rows > experts:
            keys = jnp.where(row < experts, keys, _STRUCK)
        keys_ref[at, :] = keys

    def take(j: jax.Array, last: jax.Array) -> jax.Array:
        def larger(at: Any, row: jax.Array, best: tuple[jax.Array, jax.Array]) -> Any:
            keys = jnp.where(row == last, _STRUCK, keys_ref[at, :])
            keys_ref[at, :] = keys
            better = keys > best[0]  # strict, so that the first of equals stays
            return jnp.where(better, keys, best[0]), jnp.where(better, row, best[1])

        keys, row = over_rows(larger, (jnp.full_like(sublane, _STRUCK), jnp.zeros_like(sublane)))
        key = jnp.max(keys, axis=0, keepdims=True)
        index = jnp.min(jnp.where(keys == key, row, experts), axis=0, keepdims=True)
        top_ref[pl.ds(j, 1), :] = jax.lax.bitcast_convert_type(_in_order(key), jnp.float32)
        indices_ref[pl.ds(j, 1), :] = index
        return index

    over_rows(fill, None)
    jax.lax.fori_loop(0, top_ref.shape[0], take, jnp.full((1, lanes), -1, jnp.int32))
