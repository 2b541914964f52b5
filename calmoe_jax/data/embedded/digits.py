"""`digits`: scikit-learn's handwritten digits and their corruptions."""

from pathlib import Path

import numpy as np

from calmoe_jax.data._images import image_task
from calmoe_jax.data._order import hash_order
from calmoe_jax.data.task import Task

DIGITS_SOURCE = "scikit-learn's load_digits (UCI optical digits), CC BY 4.0; Alpaydin, Kaynak"


def load_digits(_: Path | None = None) -> Task:
    """scikit-learn's 1,797 handwritten digits, 8x8, and their corruptions.

    Rows are split at random, 60 % train, 15 % calibration, 25 % test. The data does not
    say which of the 13 writers wrote a digit, so the test split has the writers of training.
    """
    from sklearn.datasets import load_digits as sklearn_digits

    data = sklearn_digits()
    images = np.rint(data.images * (255 / 16)).astype(np.uint8)
    order = np.array(hash_order([str(i) for i in range(len(images))], seed=0))
    test, calibration, train = np.split(order, [len(order) // 4, len(order) * 2 // 5])
    rows = {"train": train, "calibration": calibration, "test": test}
    return image_task("digits", "0123456789", rows, images, data.target, DIGITS_SOURCE)
