"""FGR on any objective: a frequency filter and a rectified gradient."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from calmoe_jax import calibration, fgr
from calmoe_jax._checks import check_range
from calmoe_jax._numerics import AxisName
from calmoe_jax.mixture import Prediction
from calmoe_jax.training.batch import Batch
from calmoe_jax.training.objective import Objective, Rectification

# Qualities that FGR draws from: Zhang et al., Frequency-aware Gradient Rectification, 2025.
_FILTER_QUALITIES = (15.0, 18.0, 25.0)


def rectified(objective: Objective, *, filter_share: float = 0.05) -> Objective:
    """FGR on any objective: a frequency filter, and no gradient step against calibration.

    The objective is taken on a batch some images of which are filtered, and its gradient loses
    the part that opposes the gradient of the soft-binned calibration error of the batch as it is.

    Args:
        objective: any objective.
        filter_share: share of a batch's images that are filtered, in [0, 1]; at least one is.
            Inputs that are no images stay as they are.

    Returns:
        The objective with its rectification.

    Raises:
        ValueError: if the share is outside [0, 1].

    Example:
        >>> objective = rectified(erm(), filter_share=0.05)

    References:
        Zhang et al., Frequency-aware Gradient Rectification, arXiv 2508.19830, 2025.
    """
    check_range("filter_share", filter_share, 0, 1)

    def perturb(inputs: PyTree, key: jax.Array) -> PyTree:
        return filter_some(inputs, key, filter_share)

    return objective._replace(rectification=Rectification(perturb, soft_calibration_error))


def soft_calibration_error(
    prediction: Prediction, batch: Batch, *, axis_name: AxisName = None
) -> Float[Array, ""]:
    """FGR's calibration loss: the soft-binned top-label error of the aggregate.

    Args:
        prediction: of the batch.
        batch: the batch.
        axis_name: device axis that the examples are spread over.
    """
    confidence, correct = calibration.top_label(jnp.exp(prediction.log_probs), batch.labels)
    return calibration.soft_binned_error(
        confidence, correct, where=batch.where, axis_name=axis_name
    )


def filter_some(inputs: PyTree, key: jax.Array, share: float) -> PyTree:
    """FGR's filter on the first images of a batch (it is in random order); features stay.

    Args:
        inputs: of a batch, as floats.
        key: for the qualities.
        share: share of the images, in [0, 1]; at least one is filtered.
    """
    if not isinstance(inputs, jax.Array) or inputs.ndim != 4:
        return inputs
    count = max(1, int(share * len(inputs)))
    quality = jax.random.choice(key, jnp.array(_FILTER_QUALITIES), (count,))
    return inputs.at[:count].set(fgr.dct_filter(inputs[:count], quality))
