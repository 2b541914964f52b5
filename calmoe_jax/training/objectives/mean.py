"""The mean loss: empirical risk minimisation."""

from jaxtyping import PyTree

from calmoe_jax import reweighting
from calmoe_jax._numerics import AxisName
from calmoe_jax.mixture import MixtureLosses, Prediction
from calmoe_jax.training.batch import Batch
from calmoe_jax.training.objective import Objective
from calmoe_jax.training.objectives._parts import Result, even_log_weights, no_state


def erm() -> Objective:
    """The mean loss.

    Returns:
        The objective. It returns the state that it is given, so that it can stand in for another
        objective while that one warms up.

    Example:
        >>> objective = erm()
    """

    def loss(
        losses: MixtureLosses,
        prediction: Prediction,
        batch: Batch,
        state: PyTree,
        *,
        axis_name: AxisName = None,
    ) -> Result:
        del prediction
        mean = reweighting.erm_loss(losses.loss, where=batch.where, axis_name=axis_name)
        return mean, even_log_weights(batch, axis_name), state

    return Objective(no_state, loss)
