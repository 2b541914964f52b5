"""Checkpoints of a state that is spread over devices and processes, written while training goes on.

A checkpoint can be restored onto another mesh: leaves are read as the new state wants them.
"""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from jaxtyping import PyTree

from calmoe_jax.training.checkpoints import newest_readable

_KEPT = 2


class ShardedCheckpoints:
    """The checkpoints of one training, numbered by steps; all processes call every method."""

    def __init__(self, folder: Path) -> None:
        """Opens the folder; it is made if need be."""
        logging.getLogger("absl").setLevel(logging.ERROR)  # orbax logs every file at INFO
        self.folder = folder.absolute()
        options = ocp.CheckpointManagerOptions(
            max_to_keep=_KEPT, create=True, enable_async_checkpointing=True
        )
        self._manager = ocp.CheckpointManager(self.folder, options=options)

    def save(self, step: int, state: PyTree) -> None:
        """Begins to write a checkpoint; the state may be donated at once."""
        if step not in self._manager.all_steps():
            plain = _plain(state)
            if jax.default_backend() == "cpu":  # where what is written may share its memory
                plain = jax.tree.map(jnp.copy, plain)
            self._manager.save(step, args=ocp.args.StandardSave(plain))

    def restore(self, like: PyTree, say: Callable[[str], None]) -> tuple[int, PyTree] | None:
        """The latest checkpoint that can be read, with its step; `None` if there is none.

        Args:
            like: shapes, dtypes and shardings of the state.
            say: gets a line for each checkpoint that cannot be read.

        Raises:
            CheckpointError: if there are checkpoints, and none can be read.
        """
        shapes = jax.tree.map(_plain_shape, like)

        def read(step: int) -> PyTree:
            found = self._manager.restore(step, args=ocp.args.StandardRestore(shapes))
            return jax.tree.map(_filled, like, found)

        return newest_readable(self._manager.all_steps(), read, self.folder, say)

    def wait(self) -> None:
        """Waits until all checkpoints are written."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, and frees what writing needs."""
        self._manager.close()


def _is_key(leaf: Any) -> bool:
    return bool(jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key))


def _plain(state: PyTree) -> PyTree:
    """The state with random keys replaced by their data."""
    return jax.tree.map(lambda x: jax.random.key_data(x) if _is_key(x) else x, state)


def _plain_shape(leaf: Any) -> Any:
    if not _is_key(leaf):
        return leaf
    data = jax.eval_shape(jax.random.key_data, jax.ShapeDtypeStruct(leaf.shape, leaf.dtype))
    return jax.ShapeDtypeStruct(data.shape, data.dtype, sharding=leaf.sharding)


def _filled(leaf: Any, values: Any) -> Any:
    return jax.random.wrap_key_data(values) if _is_key(leaf) else values
