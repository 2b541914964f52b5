"""Atomic checkpoints of a training's seeds, with orbax."""

import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from calmoe_jax._errors import RunError
from calmoe_jax.training.state import TrainState

_KEPT = 2


class CheckpointError(RunError):
    """No checkpoint of a folder can be restored."""


class Checkpoints:
    """The checkpoints of one training in one folder, numbered by the epochs they have seen."""

    def __init__(self, folder: Path) -> None:
        """Opens the folder; it is created on the first save."""
        logging.getLogger("absl").setLevel(logging.WARNING)  # orbax logs every file at INFO
        self.folder = folder.absolute()

    def _manager(self) -> ocp.CheckpointManager:
        options = ocp.CheckpointManagerOptions(
            max_to_keep=_KEPT, create=True, enable_async_checkpointing=False
        )
        return ocp.CheckpointManager(self.folder, options=options)

    def latest(self) -> int | None:
        """Epochs seen by the latest complete checkpoint, if there is one."""
        if not self.folder.is_dir():
            return None
        with self._manager() as manager:
            step: int | None = manager.latest_step()
        return step

    def restore_latest(
        self, like: TrainState, say: Callable[[str], None]
    ) -> tuple[int, TrainState] | None:
        """The latest checkpoint that can be read, with the epochs it has seen; `None` if none can.

        Args:
            like: shapes and dtypes of the state.
            say: gets a line for each checkpoint that cannot be read.

        Raises:
            CheckpointError: if there are checkpoints, and none can be read.
        """
        if not self.folder.is_dir():
            return None
        with self._manager() as manager:
            steps = manager.all_steps()
        return newest_readable(steps, lambda step: self.restore(step, like), self.folder, say)

    def save(self, epochs_seen: int, state: TrainState) -> Path:
        """Writes a checkpoint, and deletes all but the two latest; returns its folder."""
        with self._manager() as manager:
            if epochs_seen not in manager.all_steps():
                leaves = {
                    name: np.asarray(leaf) for name, leaf in _named_leaves(_without_keys(state))
                }
                try:
                    manager.save(epochs_seen, args=ocp.args.StandardSave(leaves))
                except ValueError as error:  # tensorstore's error for a full disk
                    raise OSError(
                        f"no checkpoint can be written to {self.folder}: {error}"
                    ) from error
        return self.folder / str(epochs_seen)

    def restore(self, epochs_seen: int, like: TrainState) -> TrainState:
        """Reads a checkpoint into the structure of `like`, bit for bit as it was saved.

        Only shapes and dtypes of `like` are used: `jax.ShapeDtypeStruct` leaves will do.
        """
        named = _named_leaves(jax.eval_shape(_without_keys, like))
        target = {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for name, leaf in named}
        with self._manager() as manager:
            leaves = manager.restore(epochs_seen, args=ocp.args.StandardRestore(target))
        held = iter([jnp.asarray(leaves[name]) for name, _ in named])

        def fill(leaf: Any) -> jax.Array:
            values = next(held)
            if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
                return values
            key: jax.Array = jax.random.wrap_key_data(values)
            return key

        state: TrainState = jax.tree.map(fill, like)
        return state


def newest_readable(
    steps: Iterable[int], read: Callable[[int], Any], folder: Path, say: Callable[[str], None]
) -> tuple[int, Any] | None:
    """The newest of some checkpoints that can be read, with its number; `None` if there are none.

    Args:
        steps: numbers of the checkpoints.
        read: reads one.
        folder: where they are.
        say: gets a line for each that cannot be read.

    Raises:
        CheckpointError: if there are some, and none can be read.
    """
    newest_first, reason = sorted(steps, reverse=True), ""
    for step in newest_first:
        try:
            return step, read(step)
        except Exception as error:  # tensorstore and orbax raise many kinds for broken files
            reason = (str(error) or type(error).__name__).splitlines()[0]
            say(f"checkpoint {folder / str(step)} cannot be read: {reason}")
    if not newest_first:
        return None
    raise CheckpointError(
        f"none of the {len(newest_first)} checkpoints in {folder} can be restored: they are "
        f"broken, or of another model or task ({reason})."
    )


def _without_keys(state: TrainState) -> TrainState:
    """The state with random keys replaced by their data."""

    def plain(leaf: jax.Array) -> jax.Array:
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.key_data(leaf)
        return leaf

    result: TrainState = jax.tree.map(plain, state)
    return result


def _named_leaves(state: TrainState) -> list[tuple[str, Any]]:
    """Leaves with names from their paths, independent of the type of container."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return [(jax.tree_util.keystr(path, simple=True, separator="."), x) for path, x in leaves]
