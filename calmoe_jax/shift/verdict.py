"""What to do about a shift of the routing configuration: keep, rebalance, or stop trusting."""

from typing import Literal, NamedTuple

from calmoe_jax._checks import check_non_negative, check_range

Decision = Literal["keep", "rebalance", "cannot_repair"]

# Of the held-out examples, the effective share below which weights speak for too few of them, and
# their number.
_LEAST_SHARE, _LEAST_NUMBER = 0.1, 50.0


class RepairVerdict(NamedTuple):
    """A decision, and why.

    Attributes:
        decision: `keep` the calibration as it is, `rebalance` it on the targets' configurations,
            or it `cannot_repair` from the labels that are here.
        reason: one sentence for people, with the figures.
    """

    decision: Decision
    reason: str


def repair_verdict(
    p_value: float,
    effective_share: float,
    num_held_out: int,
    *,
    hard: bool,
    feasible: bool = True,
    smallest_p_value: float = 0.0,
    level: float = 0.05,
) -> RepairVerdict:
    """Decides what held-out labels can do for targets without labels.

    Without a shift of the configuration there is nothing to rebalance. Under hard routing a shift
    of loads and confidences alone leaves calibrated experts calibrated. Else rebalance, unless the
    weights would rest on too few held-out examples (less than a tenth of them, or less than 50
    effective ones): then labels from the targets are needed. All of it presumes that labels follow
    from the configuration as they did, which no test without labels can see.

    Args:
        p_value: of `configuration_shift_test`.
        effective_share: `effective_sample_size / num_held_out` of `configuration_balance`.
        num_held_out: labelled held-out examples.
        hard: whether each example is routed to one expert, or there is only one.
        feasible: whether the balance was found (`feasible & converged`).
        smallest_p_value: that the test could have given (see `smallest_p_value`).
        level: of the test.

    Returns:
        A `RepairVerdict`. `cannot_repair` where the p-value or the share is NaN, or where a test of
        so few clusters could not have rejected.

    Raises:
        ValueError: if a number is out of range.

    Example:
        >>> repair_verdict(0.001, 0.4, 1000, hard=False).decision
        'rebalance'

    References:
        Wong et al., Toward Calibrated Mixture-of-Experts Under Distribution Shift, 2026.
    """
    check_range("level", level, 0, 1)
    check_non_negative("num_held_out", num_held_out)
    if not (p_value == p_value and effective_share == effective_share):
        return RepairVerdict("cannot_repair", "the statistics of the configuration are not numbers")
    check_range("p_value", p_value, 0, 1)
    number = effective_share * num_held_out
    if smallest_p_value > level:
        return RepairVerdict(
            "cannot_repair", "there are too few clusters to tell whether the configuration shifts"
        )
    if p_value > level:
        return RepairVerdict(
            "keep", f"no shift of the routing configuration is seen (p = {p_value:.3f})"
        )
    shifted = f"the routing configuration shifts (p = {p_value:.3f})"
    if hard:
        return RepairVerdict(
            "keep",
            f"{shifted}, but with one expert an example calibrated experts stay calibrated where "
            "loads and confidences alone move",
        )
    if not feasible:
        return RepairVerdict(
            "cannot_repair", f"{shifted} beyond what any weights of the held-out examples reach"
        )
    if effective_share < _LEAST_SHARE or number < _LEAST_NUMBER:
        return RepairVerdict(
            "cannot_repair",
            f"{shifted}, and only {number:.0f} of {num_held_out} held-out examples' worth of "
            "evidence is like the targets: label some of them",
        )
    return RepairVerdict(
        "rebalance",
        f"{shifted}, and {number:.0f} of {num_held_out} held-out examples' worth of evidence is "
        "like the targets",
    )
