"""What an estimator of accuracy sees, and what it returns."""

from collections.abc import Callable
from typing import NamedTuple

from jaxtyping import Array, Bool, Float


class Evidence(NamedTuple):
    """What one model shows on a sample of examples.

    Attributes:
        log_probs: the aggregate's log probabilities, at the temperature fitted in distribution.
            Logits do too: rows are normalised.
        peers: the same of models trained alike with other seeds, at their own temperatures.
        coordinates: the routing configuration, as from `configuration_coordinates`; of one model,
            or of several side by side.
        where: examples that count; all by default.
    """

    log_probs: Float[Array, "examples classes"]
    peers: Float[Array, "peers examples classes"] | None = None
    coordinates: Float[Array, "examples coordinates"] | None = None
    where: Bool[Array, " examples"] | None = None


class AccuracyEstimate(NamedTuple):
    """Estimated accuracy on unlabelled examples.

    Attributes:
        accuracy: the estimate, in [0, 1]; NaN where there is none.
        standard_error: its standard error, for independent examples and if what the estimator
            assumes is true; NaN where none is known. It says nothing of the error that a shift
            makes.
    """

    accuracy: Float[Array, "*batch"]
    standard_error: Float[Array, "*batch"]


# estimator(held_out, labels, targets, *, axis_name=None, **constants)
Estimator = Callable[..., AccuracyEstimate]
