"""How a parameter lies in a file: the shape that it has there, and how it becomes ours."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

Shape = tuple[int, ...]


class Rule(NamedTuple):
    """The relation of a tensor to a parameter.

    Attributes:
        shape: the tensor's shape for a shape of ours.
        convert: the tensor as ours.
    """

    shape: Callable[[Shape], Shape]
    convert: Callable[[np.ndarray], np.ndarray]


SAME = Rule(lambda ours: ours, lambda x: x)
LINEAR = Rule(lambda ours: ours[::-1], np.transpose)
CONVOLUTION = Rule(  # (out, in, height, width) there, (height, width, in, out) here
    lambda ours: (ours[3], ours[2], ours[0], ours[1]), lambda x: x.transpose(2, 3, 1, 0)
)
WITH_BATCH = Rule(lambda ours: (1, *ours), lambda x: x[0])
WITH_BATCH_AND_TOKEN = Rule(lambda ours: (1, 1, *ours), lambda x: x[0, 0])


def patches(size: int, channels: int) -> Rule:
    """A convolution over patches there, a linear map of their numbers here."""
    return Rule(
        lambda ours: (ours[1], channels, size, size),
        lambda x: x.transpose(2, 3, 1, 0).reshape(-1, x.shape[0]),
    )


class Source(NamedTuple):
    """The tensors that a parameter is made of.

    Attributes:
        names: for each block of a stack of blocks (or for the one that there is) the tensors that
            are joined along our last axis.
        rule: how each of them lies in the file.
        stacked: whether the parameter has an axis of blocks in front.
    """

    names: Sequence[Sequence[str]]
    rule: Rule
    stacked: bool = False

    def shape(self, ours: Shape) -> Shape:
        """The shape that each tensor must have, for the parameter's shape."""
        of_block = ours[1:] if self.stacked else ours
        return self.rule.shape((*of_block[:-1], of_block[-1] // len(self.names[0])))

    def value(self, tensors: dict[str, np.ndarray]) -> np.ndarray:
        """The parameter, of tensors of the right shapes."""
        blocks = [
            np.concatenate([self.rule.convert(tensors[name]) for name in parts], axis=-1)
            for parts in self.names
        ]
        return np.stack(blocks) if self.stacked else blocks[0]


def one(name: str, rule: Rule = SAME) -> Source:
    """A parameter that is one tensor."""
    return Source([[name]], rule)


def of_blocks(depth: int, parts: Sequence[str], rule: Rule = SAME) -> Source:
    """A parameter of a stack of blocks; `{}` in the names is the block's number."""
    return Source([[part.format(i) for part in parts] for i in range(depth)], rule, stacked=True)
