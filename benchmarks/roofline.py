"""Bytes that must move, and the bandwidth of a copy on this device.

The model counts every byte once to memory: a row that `k` slots copy is read once. Small
problems live in caches, so their per cent of the copy's bandwidth may exceed 100; on a CPU large
outputs are fresh pages, and a copy of one is slow.
"""

import jax
import jax.numpy as jnp

from benchmarks.problems import Problem

_INT = _FLOAT = 4


def bytes_of(problem: Problem, part: str) -> int:
    """Bytes that a part must move at least.

    Args:
        problem: sizes and dtypes.
        part: `route`, `permute`, `combine`, one of them with `_backward`, `route_permute` or
            `forward_backward`.

    Returns:
        Number of bytes read and written.

    Raises:
        KeyError: if the part is unknown.
    """
    x_size = jnp.dtype(problem.x_dtype).itemsize
    tokens = problem.tokens * problem.d * x_size
    rows = problem.rows * problem.d * x_size
    logits = problem.tokens * problem.experts * jnp.dtype(problem.logits_dtype).itemsize
    # the weights of a softmax over all experts depend on every logit, in the backward pass too
    reread = logits if problem.scores == "softmax" and not problem.renormalize else 0
    basic = {
        # logits in; expert, weight and position of each slot out; size and offset of each group
        "route": logits + problem.rows * (2 * _INT + _FLOAT) + problem.experts * 2 * _INT,
        # expert, weight and its cotangent in; a dense gradient out
        "route_backward": logits + reread + problem.rows * (_INT + 2 * _FLOAT),
        "permute": tokens + rows,
        "permute_backward": rows + tokens,
        "combine": rows + tokens,
        # cotangent of the tokens and the rows in, cotangent of the rows out
        "combine_backward": tokens + 2 * rows,
    }
    composed = {
        "route_permute": basic["route"] + basic["permute"],
        "forward_backward": sum(basic.values()),
    }
    return (basic | composed)[part]


def copied_array(platform: str) -> jax.Array:
    """An array far larger than any cache, for `copy`."""
    megabytes = 128 if platform == "cpu" else 1024
    return jnp.ones(megabytes * 2**18, jnp.float32)


def copy(array: jax.Array) -> jax.Array:
    """Reads and writes every element once; a change of sign, so that it is no alias."""
    return -array


def copied_bytes(array: jax.Array) -> int:
    """Bytes that `copy` moves."""
    return 2 * array.nbytes
