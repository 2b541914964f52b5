"""The rectified gradient of FGR: no step that is known to hurt calibration."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from calmoe_jax._numerics import at_least_float32, safe_divide


def _inner(a: PyTree, b: PyTree) -> Float[Array, ""]:
    products = jax.tree.map(lambda x, y: jnp.sum(at_least_float32(x) * at_least_float32(y)), a, b)
    return jax.tree.reduce(jnp.add, products, jnp.float32(0))


def _largest(x: Float[Array, "..."]) -> Float[Array, ""]:
    return jnp.max(jnp.abs(at_least_float32(x)), initial=0)


def rectify_gradient(main: PyTree, calibration: PyTree) -> PyTree:
    """Removes from a gradient the part that opposes the calibration gradient.

    `g - min(<g, c>, 0) / |c|^2 c`: where `<g, c> < 0` the result is the projection of `g` on the
    plane orthogonal to `c`; elsewhere it is `g`.

    Args:
        main: gradient of the training loss `g`: any pytree of float arrays.
        calibration: gradient of a calibration loss `c`, of the same structure and shapes.

    Returns:
        The rectified gradient, with the dtypes of `main`. A zero calibration gradient changes
        nothing. NaN or infinity in either tree never gives a result that is all finite.

    Raises:
        ValueError: if the trees differ in structure or in a leaf's shape.

    Example:
        >>> rectify_gradient({"w": jnp.array([1.0, -1.0])}, {"w": jnp.array([0.0, 2.0])})
        {'w': Array([1., 0.], dtype=float32)}

    References:
        Zhang et al., Frequency-aware Gradient Rectification, arXiv 2508.19830, 2025.
    """
    structures = [str(jax.tree.structure(tree)) for tree in (main, calibration)]
    if structures[0] != structures[1]:
        raise ValueError(
            "calibration must have the structure of main, got "
            f"calibration={structures[1]} and main={structures[0]}."
        )
    for g, c in zip(jax.tree.leaves(main), jax.tree.leaves(calibration), strict=True):
        if g.shape != c.shape:
            raise ValueError(
                f"calibration must have the shapes of main, got {c.shape} where main has {g.shape}."
            )
    # in units of its largest entry, the calibration gradient's square cannot under- or overflow
    largest = jax.tree.reduce(
        jnp.maximum, jax.tree.map(_largest, calibration), jnp.zeros((), jnp.float32)
    )
    unit = jax.tree.map(
        lambda c: at_least_float32(c) / jnp.where(largest == 0, 1, largest), calibration
    )
    conflict = jnp.minimum(_inner(main, unit), 0)
    coefficient = safe_divide(conflict, _inner(unit, unit))
    return jax.tree.map(lambda g, c: (g - coefficient * c).astype(g.dtype), main, unit)
