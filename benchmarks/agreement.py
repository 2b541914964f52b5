"""Whether variants agree with the naive formulation in float32, before anything is timed.

Integers must be equal, and so must dispatched rows, which are copies. Sums may differ: by one
rounding of their dtype, and `1e-5` of the largest number for the order of summation. For the
gradient to the logits that number is of the gradient to the weights: where weights are near 0 or 1
the former is a small difference of the latter.
"""

from collections.abc import Mapping, Sequence
from functools import partial

import jax
import jax.numpy as jnp

from benchmarks.clocks import compile_all
from benchmarks.parts import forward_backward
from benchmarks.problems import Inputs, Problem, make_inputs
from benchmarks.rivals import NAIVE, Variant

EXACT = ("expert_indices", "positions", "slot_indices", "group_sizes", "rows")


@partial(jax.jit, static_argnums=(3, 4))
def _worst(
    ours: jax.Array, theirs: jax.Array, scaled: jax.Array, exact: bool, slack: int
) -> jax.Array:
    """Largest difference in units of what is allowed: at most 1 is agreement, NaN never is."""
    if exact:
        return jnp.max(jnp.where(ours == theirs.astype(ours.dtype), 0, jnp.inf), initial=0)
    difference = jnp.abs(ours.astype(jnp.float32) - theirs)
    size = jnp.abs(theirs)
    scale = jnp.max(jnp.abs(scaled), initial=0)
    rounding = jnp.finfo(ours.dtype).eps if ours.dtype != jnp.float32 else 1e-5
    if slack == 1:
        allowed = rounding * size + 1e-5 * scale
    else:  # terms that cancel were rounded before
        allowed = slack * rounding * scale
    times = difference / jnp.maximum(allowed, 1e-30)
    # XLA's CPU compiler may lose NaN in a maximum
    return jnp.max(jnp.where(jnp.isnan(times), jnp.inf, times), initial=0)


def disagreements(
    problem: Problem, variants: Sequence[Variant], seed: int = 0
) -> dict[str, list[str]]:
    """Compares variants with the naive formulation.

    Args:
        problem: sizes.
        variants: what to compare.
        seed: seed of the arrays.

    Returns:
        For each variant what differs, and by how many times what is allowed; empty where it
        agrees.

    Raises:
        NotImplementedError: if a variant declines.
    """
    inputs = make_inputs(problem, seed)
    sources = [(jax.jit(partial(reference, problem)), (inputs,))]
    for variant in variants:
        sources.append((jax.jit(partial(forward_backward, variant, problem)), (inputs,)))
    first, *others = compile_all(sources)
    expected = first(inputs)
    return {
        variant.name: differences(program(inputs), expected, slack=variant.slack)
        for variant, program in zip(variants, others, strict=True)
    }


def reference(problem: Problem, inputs: Inputs) -> dict[str, jax.Array]:
    """The naive formulation in float32."""
    wide = (None if x is None else x.astype(jnp.float32) for x in inputs)
    return forward_backward(NAIVE, problem, Inputs(*wide))


def differences(
    got: Mapping[str, jax.Array], expected: Mapping[str, jax.Array], *, slack: int = 1
) -> list[str]:
    """What differs by more than the tolerance, and by how many times.

    Args:
        got: what a variant computes, as `forward_backward` names it.
        expected: the same of the naive formulation in float32.
        slack: the variant's.

    Returns:
        A line for each array that differs.
    """
    found = []
    for name, array in got.items():
        if array.shape != expected[name].shape:
            found.append(f"{name} has shape {array.shape}")
            continue
        exact = name in EXACT
        scaled = expected["d_weights" if name == "d_logits" else name]
        worst = float(_worst(array, expected[name], scaled, exact, slack))
        if not worst <= 1:
            found.append(f"{name} differs" + ("" if exact else f", {worst:.3g} x the tolerance"))
    return found
