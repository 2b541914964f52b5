"""Calibration as a Flax NNX metric: wraps the state of `calmoe_jax.calibration`."""

from typing import Any

import jax
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from calmoe_jax.calibration.states import (
    CalibrationState,
    CalibrationSummary,
    init_state,
    merge_states,
    summarise,
    update_state,
)


class CalibrationMetric(nnx.Metric):
    """Accuracy, proper scores and calibration errors of a stream of batches.

    Example:
        >>> metric = CalibrationMetric(num_classes=2)
        >>> metric.update(probs=jnp.array([[0.25, 0.75]]), labels=jnp.array([1]))
        >>> metric.compute().expected_calibration_error
        Array(0.25, dtype=float32)
    """

    def __init__(self, *, num_classes: int, num_bins: int = 15, from_logits: bool = False) -> None:
        """Makes a metric without any batches.

        Args:
            num_classes: number of classes, at least 1.
            num_bins: number of equal-width bins, at least 1.
            from_logits: whether `update` gets logits or log probabilities.
        """
        self.from_logits = from_logits
        self.state = nnx.metrics.MetricState(init_state(num_classes=num_classes, num_bins=num_bins))

    def reset(self) -> None:
        """Clears all batches."""
        self.state.set_value(jax.tree.map(jax.numpy.zeros_like, self.state.get_value()))

    def update(  # type: ignore[override]  # names what it needs
        self,
        *,
        probs: Float[Array, "examples classes"],
        labels: Int[Array, " examples"],
        weights: Float[Array, " examples"] | None = None,
        where: Bool[Array, " examples"] | None = None,
        **_: Any,
    ) -> None:
        """Adds a batch, in place.

        Args:
            probs: class probabilities; with `from_logits=True`, logits or log probabilities.
            labels: class of each example.
            weights: non-negative weight of each example; 1 by default.
            where: examples that count; all by default.
            _: arguments of other metrics in an `nnx.MultiMetric`; ignored.
        """
        self.state.set_value(
            update_state(
                self.state.get_value(),
                probs,
                labels,
                weights=weights,
                where=where,
                from_logits=self.from_logits,
            )
        )

    def merge(self, other: "CalibrationMetric | CalibrationState") -> None:
        """Adds the batches of another metric, or of a state, in place."""
        state = other.state.get_value() if isinstance(other, CalibrationMetric) else other
        self.state.set_value(merge_states(self.state.get_value(), state))

    def compute(self) -> CalibrationSummary:
        """The metrics of all batches so far."""
        return summarise(self.state.get_value())
