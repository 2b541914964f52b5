"""What the calibration error of calibrated predictions would be, on as many examples.

The binned error of few examples is above 0 even where predictions are calibrated: of 1,000 examples
spread over 15 bins it is .03 to .04 on average, so that whether it is under .05 is largely chance.
Here the labels are drawn anew from the confidences themselves, which makes these calibrated, and
the same error is computed: a parametric bootstrap of the hypothesis that nothing is wrong.

Why not `calibration.debiased_calibration_error`: it is an l1 error too and takes most of the noise
off, but where predictions are calibrated it keeps about half of a standard error in each bin, and
does not say how much of what is left is chance. The floor's quantile answers the very question,
whether an error is one that calibrated predictions have as well. It is no estimate of the true
error: beyond the floor the noise adds less than the floor.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from calmoe_jax.calibration.metrics.binning import equal_width_index

NUM_DRAWS, NUM_BINS, LEVEL = 200, 15, 0.95


class Floor(NamedTuple):
    """The error of calibrated predictions.

    Attributes:
        mean: over draws of the labels.
        high: its 95th percentile.
    """

    mean: float
    high: float


def noise_floor(confidence: np.ndarray, *, num_draws: int = NUM_DRAWS) -> Floor:
    """The top-label error, in 15 bins of equal width, if every confidence were the chance.

    Args:
        confidence: of the predicted classes, at least one.
        num_draws: of the labels; the same draws in every call.
    """
    told = np.sort(np.float32(confidence))
    index = np.asarray(equal_width_index(jnp.asarray(told), NUM_BINS))
    starts = np.flatnonzero(np.diff(index, prepend=-1))
    chances = np.random.default_rng(0).random((num_draws, len(told)), dtype=np.float32)
    right = np.add.reduceat(chances < told, starts, axis=1, dtype=np.int64)
    expected = np.add.reduceat(np.float64(told), starts)
    errors = np.abs(expected - right).sum(axis=1) / len(told)
    return Floor(float(errors.mean()), float(np.quantile(errors, LEVEL)))
