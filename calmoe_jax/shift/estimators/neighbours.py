"""The estimator from the labels of similar held-out examples."""

from jaxtyping import Array, Int

from calmoe_jax._numerics import AxisName, all_size, row_positions
from calmoe_jax._signatures import checked
from calmoe_jax.shift.estimators._observed import as_estimate, mean, observe, required
from calmoe_jax.shift.estimators.evidence import AccuracyEstimate, Evidence
from calmoe_jax.shift.neighbours import neighbour_accuracy, neighbour_support


@checked
def neighbours(
    held_out: Evidence,
    labels: Int[Array, " examples"],
    targets: Evidence,
    *,
    num_neighbours: int = 15,
    growth: float = 5.0,
    margin: float = 2.0,
    axis_name: AxisName = None,
) -> AccuracyEstimate:
    """Accuracy falls with the share of labelled neighbours that have the predicted class.

    See `neighbour_support` and `neighbour_accuracy`; held-out examples, each without itself, are
    what the targets are compared with. The anchor is the mean held-out confidence. The cost is
    `(examples + targets) * examples` cosines.

    Args:
        held_out: labelled examples, with coordinates.
        labels: their classes.
        targets: unlabelled examples, with coordinates.
        num_neighbours: neighbours of each example, at least 1; static.
        growth: growth of the exponent as support is lost, at least 0.
        margin: standard errors in favour of the targets, at least 0.
        axis_name: device axis that both samples are sharded over.

    Returns:
        An `AccuracyEstimate` without a standard error. NaN if support is no better than by chance
        on held-out examples, with fewer than two of them or no target, or for a NaN or a label out
        of range in an example that counts.

    Raises:
        ValueError: if coordinates are missing, a constant is out of range, or sizes do not match.

    Example:
        >>> log_probs = jnp.log(jnp.array([[0.9, 0.1], [0.1, 0.9]] * 4))
        >>> sample = Evidence(log_probs, coordinates=log_probs)
        >>> estimate = neighbours(sample, jnp.array([0, 1] * 4), sample, num_neighbours=3)
        >>> round(float(estimate.accuracy), 3)
        0.9

    References:
        The rule is ours; see `neighbour_accuracy`.
    """
    own, other = observe(held_out, labels, targets, axis_name)
    references, points = required("coordinates", held_out, targets)
    num_classes = own.probs.shape[1]
    position = row_positions(len(labels), axis_name)
    size = all_size(len(labels), axis_name)
    among_themselves = neighbour_support(
        references, own.predicted, references, labels, num_classes=num_classes,
        clusters=position, num_clusters=size, reference_clusters=position,
        where=own.counted, reference_where=own.counted, num_neighbours=num_neighbours,
        axis_name=axis_name,
    )  # fmt: skip
    of_targets = neighbour_support(
        points, other.predicted, references, labels, num_classes=num_classes,
        where=other.counted, reference_where=own.counted, num_neighbours=num_neighbours,
        axis_name=axis_name,
    )  # fmt: skip
    anchor = mean(own.confidence, own).value
    estimate = neighbour_accuracy(
        among_themselves, of_targets, anchor, growth=growth, margin=margin
    )
    return as_estimate(estimate, None, own, other)
