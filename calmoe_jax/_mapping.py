"""One program for many seeds: a function mapped over leading axes, by the faster way here."""

from collections.abc import Callable
from typing import Any

import jax


def over_seeds(function: Callable[..., Any]) -> Callable[..., Any]:
    """Maps a function over the leading axis of all its arguments, by the faster way here.

    On a CPU one seed after the other (`lax.map`): batches of small matrix products are slow
    there. Elsewhere all at once (`vmap`). Both are one compiled program.
    """
    if jax.default_backend() == "cpu":
        return lambda *args: jax.lax.map(lambda one: function(*one), args)
    return jax.vmap(function)
