"""Types of arrays inside `shard_map`: along which axes they differ between devices."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax

Tree = TypeVar("Tree")


def varying_axes(*trees: Any) -> frozenset[str]:
    """The axes of an enclosing `shard_map` along which some leaf differs between devices.

    Args:
        *trees: pytrees of arrays.

    Returns:
        Names of axes; none outside `shard_map`, or where it does not check.
    """
    return frozenset[str]().union(*map(_axes_of, jax.tree.leaves(trees)))


def vary_along(tree: Tree, axes: frozenset[str]) -> Tree:
    """Marks every leaf as varying between devices along additional axes.

    The transpose of the mark is a sum over those axes, so a gradient to what devices share is
    summed; a `custom_vjp` rule has to be given arguments that are marked alike.

    Args:
        tree: pytree of arrays.
        axes: names of axes.

    Returns:
        The same tree.
    """
    mark: Callable[..., jax.Array] = jax.lax.pcast

    def marked(x: jax.Array) -> jax.Array:
        missing = tuple(sorted(axes - _axes_of(x)))
        return mark(x, missing, to="varying") if missing else x

    result: Tree = jax.tree.map(marked, tree)
    return result


def _axes_of(x: Any) -> frozenset[str]:
    kind: Any = jax.typeof(x)
    if hasattr(kind, "vma"):
        return frozenset(kind.vma)
    return frozenset(kind.manual_axis_type.varying)
