"""The unit of training: inputs of any kind, their labels, and which examples count."""

from typing import NamedTuple

from jaxtyping import Array, Bool, Int, PyTree


class Batch(NamedTuple):
    """A batch of labelled examples.

    Attributes:
        inputs: input of the network: an array or a pytree of arrays (token ids with their
            mask, say), each with the examples along its first axis.
        labels: class of each example, in `[0, classes)`.
        where: examples that count, the others are padding; `None` if all count.
    """

    inputs: PyTree
    labels: Int[Array, " examples"]
    where: Bool[Array, " examples"] | None = None
