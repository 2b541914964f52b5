"""Ambiguous test examples: those whose nearest training examples disagree on the label."""

import numpy as np

from calmoe_jax.data.task import Split


def neighbour_agreement(
    train_inputs: np.ndarray, train_labels: np.ndarray, inputs: np.ndarray, *, neighbours: int = 25
) -> np.ndarray:
    """How much the nearest training examples agree on a label.

    For every row: the share of the most frequent label among the training rows that are at most
    as far (Euclidean) as the `neighbours`-th nearest one. Ties with it all count, so the order of
    the rows does not matter. Inputs must be integers: distances are then exact,
    and the result is the same on every platform.
    """
    train = train_inputs.reshape(len(train_inputs), -1).astype(np.float64)
    others = inputs.reshape(len(inputs), -1).astype(np.float64)
    one_hot = np.eye(int(train_labels.max()) + 1)[train_labels]
    nearest = min(neighbours, len(train)) - 1
    train_squares = np.sum(train**2, axis=1)
    shares = []
    for rows in np.array_split(others, max(1, len(others) // 500)):
        squares = np.sum(rows**2, axis=1)[:, None] - 2 * rows @ train.T + train_squares
        radius = np.partition(squares, nearest, axis=1)[:, nearest]
        votes = (squares <= radius[:, None]).astype(np.float64) @ one_hot
        shares.append(votes.max(axis=1) / votes.sum(axis=1))
    return np.concatenate(shares)


def ambiguous_subset(
    train: Split, test: Split, keys: tuple[np.ndarray, np.ndarray], *, below: float = 0.7
) -> Split:
    """The hard subset: test examples whose nearest training examples disagree on the label.

    The analogue, for data with one label per example, of the annotators' disagreement that defines
    CIFAR-10H's hard subset (largest share below 0.7).

    Args:
        train: the training split.
        test: the in-distribution test split.
        keys: integer features of the examples of both, to measure distances by.
        below: the share of the most frequent label under which an example is ambiguous.
    """
    agreement = neighbour_agreement(keys[0], train.labels, keys[1])
    return test.take(
        agreement < below,
        "ambiguous",
        "hard",
        f"test examples whose 25 nearest training examples agree to less than {below:.0%}",
    )
