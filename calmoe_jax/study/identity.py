"""What distinguishes a run from others: configuration, data and networks, as plain values."""

import hashlib
from typing import Any

import jax
import numpy as np

from calmoe_jax.data import TASKS, Task
from calmoe_jax.nn.network import Network
from calmoe_jax.study.config import RunConfig
from calmoe_jax.study.methods import Method


def describe_run(
    config: RunConfig,
    given: Task | str,
    task: Task,
    methods: tuple[Method, ...],
    network: Network | None,
) -> dict[str, Any]:
    """Everything that distinguishes a run from another one, as plain JSON values.

    Args:
        config: its configuration.
        given: the task as it was asked for.
        task: the task.
        methods: the methods, built.
        network: the network, if the user gave one.
    """
    plain = config.to_dict()
    if not (isinstance(given, str) and given in TASKS):
        plain["data"] = _fingerprint(task)
    own = {m.name: _name_of(m) for m in methods if not _name_of(m).startswith("calmoe_jax.")}
    if own:
        plain["objectives"] = own
    if network is not None:
        shapes = jax.eval_shape(network.init, jax.random.key(0))
        leaves = jax.tree_util.tree_leaves_with_path(shapes)
        text = "".join(f"{jax.tree_util.keystr(path)}{x.shape}{x.dtype}" for path, x in leaves)
        plain["model"] = {"given": hashlib.sha256(text.encode()).hexdigest()[:16]}
    return plain


def _name_of(method: Method) -> str:
    """Module and name of the function or class of a method's loss."""
    loss: Any = method.objective.loss
    kind = loss if hasattr(loss, "__qualname__") else type(loss)
    return f"{kind.__module__}.{kind.__qualname__}"


def _fingerprint(task: Task) -> str:
    """Hash of all inputs, labels and soft labels of a task."""
    digest = hashlib.sha256()
    for split in task.splits:
        digest.update(f"{split.name} {split.kind}".encode())
        votes = [] if split.soft_labels is None else [split.soft_labels]
        for x in (*jax.tree.leaves(split.inputs), split.labels, *votes):
            digest.update(f"{x.shape}{x.dtype}".encode() + np.ascontiguousarray(x).tobytes())
    return digest.hexdigest()[:16]
