"""Decides how to handle a shift of the routing configuration: keep, rebalance, or no repair."""

from typing import Literal, NamedTuple

from calmoe_jax._checks import check_non_negative, check_range

Decision = Literal["keep", "rebalance", "cannot_repair"]

# Smallest effective share of the independent held-out units, and smallest effective number of them,
# for a rebalanced calibration.
_LEAST_SHARE, _LEAST_NUMBER = 0.1, 50.0


class RepairVerdict(NamedTuple):
    """A decision and its reason.

    Attributes:
        decision: `keep` the calibration, `rebalance` it on the targets' configurations, or
            `cannot_repair` it without labels of the targets.
        reason: the reason in one sentence, with the numbers.
    """

    decision: Decision
    reason: str


def repair_verdict(
    p_value: float,
    effective_share: float,
    num_held_out: int,
    *,
    hard: bool,
    units: Literal["examples", "clusters"] = "examples",
    feasible: bool = True,
    smallest_p_value: float = 0.0,
    level: float = 0.05,
) -> RepairVerdict:
    """Decides whether held-out labels can repair the calibration on unlabelled targets.

    Without a shift of the configuration there is nothing to rebalance. Under hard routing a shift
    of loads and confidences alone leaves calibrated experts calibrated. Otherwise rebalance, unless
    the weights would rest on too few independent held-out examples or clusters (less than a tenth
    of them, or fewer than 50 effective ones): then labels from the targets are needed. This assumes
    that the distribution of labels given the configuration does not change, which no test without
    labels can check.

    Args:
        p_value: p-value of `configuration_shift_test`.
        effective_share: effective number of the held-out units under the weights of
            `configuration_balance`, over `num_held_out`. For independent examples that is
            `effective_sample_size / num_held_out`.
        num_held_out: number of independent labelled held-out units: of clusters where examples
            depend on each other, else of examples.
        units: what the units are called in the reason.
        hard: whether each example is routed to one expert, or there is only one.
        feasible: whether the balance was found (`feasible & converged`).
        smallest_p_value: smallest p-value that the test can give (see `smallest_p_value`).
        level: level of the test.

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
            "cannot_repair", "there are too few clusters to test whether the configuration shifts"
        )
    if p_value > level:
        return RepairVerdict(
            "keep", f"no shift of the routing configuration is seen (p = {p_value:.3f})"
        )
    shifted = f"the routing configuration shifts (p = {p_value:.3f})"
    if hard:
        return RepairVerdict(
            "keep",
            f"{shifted}, but with one expert per example calibrated experts stay calibrated when "
            "only loads and confidences change",
        )
    if not feasible:
        return RepairVerdict(
            "cannot_repair",
            f"{shifted} further than any weights of held-out examples can reach",
        )
    if effective_share < _LEAST_SHARE or number < _LEAST_NUMBER:
        return RepairVerdict(
            "cannot_repair",
            f"{shifted}, and only {number:.0f} effective of {num_held_out} held-out {units} are "
            "like the targets: label some of them",
        )
    return RepairVerdict(
        "rebalance",
        f"{shifted}, and {number:.0f} effective of {num_held_out} held-out {units} are like the "
        "targets",
    )
