"""What a temperature rests on that was fitted on held-out examples like the targets."""

from typing import Literal

# Smallest effective share of the independent held-out units, and smallest effective number of them,
# for a balanced calibration.
_LEAST_SHARE, _LEAST_NUMBER = 0.1, 50.0


def balance_evidence(
    effective_share: float,
    num_held_out: int,
    *,
    hard: bool,
    feasible: bool = True,
    units: Literal["examples", "clusters"] = "examples",
) -> str:
    """What the calibrator `configuration_balanced` rests on, in words.

    It is fitted on held-out examples under the weights of `configuration_balance`. It holds if the
    distribution of labels given the configuration does not change, which no test without labels can
    check, and needs at least a tenth of the independent held-out units, and 50, to be left.

    Args:
        effective_share: effective number of the held-out units under those weights, over
            `num_held_out`. For independent examples that is
            `effective_sample_size / num_held_out`.
        num_held_out: number of independent labelled held-out units: of clusters where examples
            depend on each other, else of examples.
        hard: whether each example is routed to one expert, or there is only one.
        feasible: whether the balance was found (`feasible & converged`).
        units: what the units are called.

    Returns:
        A phrase with the numbers. It says so where too few are left, where there is nothing to
        balance, and where no weights were found (or they are NaN).

    Example:
        >>> balance_evidence(0.4, 1000, hard=False)
        '400 effective of 1000 held-out examples are like the targets (share 0.40)'
    """
    if not feasible or effective_share != effective_share:
        return f"no weights of held-out {units} match the targets: the temperature in distribution"
    number = effective_share * num_held_out
    words = (
        f"{number:.0f} effective of {num_held_out} held-out {units} are like the targets "
        f"(share {effective_share:.2f})"
    )
    if effective_share < _LEAST_SHARE or number < _LEAST_NUMBER:
        return f"{words}: too few to rest on"
    if hard:
        return (
            f"{words}; with one expert per example calibrated experts stay calibrated when only "
            "loads and confidences change"
        )
    return words
