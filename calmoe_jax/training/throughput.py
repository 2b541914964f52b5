"""How well a training uses its devices: model flops utilisation, where their peak is known."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from calmoe_jax.parallel.flops import count_flops
from calmoe_jax.parallel.topologies import HARDWARE
from calmoe_jax.training.batch import Batch
from calmoe_jax.training.state import init_state
from calmoe_jax.training.step import train_step
from calmoe_jax.training.trainer import Training

# The first words of a device's own name.
_KINDS = {
    "TPU v4": "v4", "TPU v5 lite": "v5e", "TPU v5e": "v5e", "TPU v5p": "v5p", "TPU v5": "v5p",
    "TPU v6 lite": "v6e", "TPU v6e": "v6e", "NVIDIA H100": "h100", "NVIDIA H200": "h100",
}  # fmt: skip


def peak_flops(device_kind: str) -> float | None:
    """Operations a second in bfloat16 that a device can do at most; `None` if not known.

    Args:
        device_kind: as `jax.Device.device_kind`.

    Example:
        >>> peak_flops("TPU v5 lite"), peak_flops("cpu")
        (197000000000000.0, None)
    """
    for words, name in _KINDS.items():
        if device_kind.startswith(words):
            return HARDWARE[name].flops
    return None


def flops_of_example(training: Training, inputs: PyTree, size: int) -> float:
    """Operations of a step's matrix products and convolutions, for each example of a batch.

    Args:
        training: the training.
        inputs: inputs of examples; only shapes are used.
        size: examples of a batch.
    """
    init = partial(init_state, training.network, training.objective, training.optimizer)
    labels: Any = jax.ShapeDtypeStruct((size,), jnp.int32)
    batch = Batch(
        jax.tree.map(lambda x: jax.ShapeDtypeStruct((size, *x.shape[1:]), x.dtype), inputs), labels
    )
    step = partial(
        train_step,
        network=training.network, objective=training.objective, optimizer=training.optimizer,
    )  # fmt: skip
    key = jax.eval_shape(lambda: jax.random.key(0))
    return count_flops(step, jax.eval_shape(init, key), batch, key) / size
