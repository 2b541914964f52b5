"""What to do for unlabelled targets: keep the confidences, lower them, or label some targets."""

from typing import Literal, NamedTuple

from calmoe_jax._checks import check_at_least, check_range
from calmoe_jax.shift.few_labels.draws import labels_needed

Decision = Literal["keep", "lower_confidence", "label_some"]

# A smaller change of the mean confidence is none: quoted in whole per cents it is lost.
_LEAST_CHANGE = 0.005
# The gap that labels shall be enough for where none as large is estimated.
_LEAST_GAP = 0.1
# Share of the gap that they shall show.
_SHOWN = 0.5


class RepairVerdict(NamedTuple):
    """A decision and its reason.

    Attributes:
        decision: `keep` the temperature fitted in distribution; `lower_confidence` as the mode
            `safe` does; or `label_some` of the targets, since without labels nothing is shown.
        reason: the reason in a sentence, with the numbers.
        labels: how many targets to label, drawn at random; 0 for `keep`.
    """

    decision: Decision
    reason: str
    labels: int


def repair_verdict(
    p_value: float,
    confidence: float,
    safe: float,
    bold: float,
    num_targets: int,
    *,
    peers: bool,
    units: Literal["targets", "clusters of targets"] = "targets",
    smallest_p_value: float = 0.0,
    level: float = 0.05,
) -> RepairVerdict:
    """Decides what to do about the confidence on unlabelled targets.

    What `safe` does is done: if it lowers the mean confidence by .005 or more, the decision is to
    lower it. If it does not, and the configuration shifts or that could not be tested, some targets
    are to be labelled, since agreement of seeds is no proof that they are right. Otherwise nothing
    is to be done. Labels show what no rule without them can know (see `shift.repair.MODES`); their
    number is `labels_needed` to show half of the gap that `bold` estimates, or of a gap of .1 if
    that is larger.

    Args:
        p_value: p-value of `configuration_shift_test`.
        confidence: mean confidence on the targets with the temperature fitted in distribution.
        safe: the same with the temperature of `safe`.
        bold: the same with the temperature of `bold`.
        num_targets: number of independent targets, or clusters of them: no more are to be labelled.
        peers: whether there are models of other seeds, without which `safe` lowers nothing.
        units: what the targets that are labelled are called.
        smallest_p_value: smallest p-value that the test can give (see `smallest_p_value`).
        level: level of the test.

    Returns:
        A `RepairVerdict`; `label_some` where a number is NaN. A test of so few clusters that it
        could not have rejected says nothing of a shift.

    Raises:
        ValueError: if a number is out of range.

    Example:
        >>> repair_verdict(0.001, 0.9, 0.8, 0.7, 5000, peers=True).decision
        'lower_confidence'
        >>> repair_verdict(0.001, 0.9, 0.9, 0.9, 100, peers=True)[::2]
        ('label_some', 100)

    References:
        Wong et al., Toward Calibrated Mixture-of-Experts Under Distribution Shift, 2026, for the
        shift of the configuration; the decision is ours.
    """
    check_range("level", level, 0, 1)
    check_at_least("num_targets", num_targets, 0)
    for name, value in (("p_value", p_value), ("confidence", confidence), ("safe", safe),
                        ("bold", bold)):  # fmt: skip
        if value == value:
            check_range(name, value, 0, 1)
    tested, shown = _tested(p_value, smallest_p_value, level)
    if not (confidence == confidence and safe == safe and bold == bold):
        labels, words = _labels(_LEAST_GAP, num_targets, units)
        return RepairVerdict(
            "label_some", f"{tested}; the confidences are not numbers; {words}", labels
        )
    lowers = confidence - safe >= _LEAST_CHANGE
    said = [tested, _safe_words(confidence, safe, lowers, peers)]
    if safe - bold >= _LEAST_CHANGE:
        said.append(f"bold would lower it to {bold:.3f}")
    if not lowers and shown is False:
        return RepairVerdict("keep", "; ".join(said), 0)
    labels, words = _labels(max(confidence - bold, _LEAST_GAP), num_targets, units)
    said.append(words)
    return RepairVerdict("lower_confidence" if lowers else "label_some", "; ".join(said), labels)


def _tested(p_value: float, smallest: float, level: float) -> tuple[str, bool | None]:
    """What the test shows in words, and whether a shift; `None` if it shows nothing."""
    if p_value != p_value:
        return "the test for a shift of the routing configuration gives no number", None
    if smallest > level:
        few = "there are too few clusters to test whether the routing configuration shifts"
        return few, None
    if p_value <= level:
        return f"the routing configuration shifts (p = {p_value:.3f})", True
    return f"no shift of the routing configuration is seen (p = {p_value:.3f})", False


def _safe_words(confidence: float, safe: float, lowers: bool, peers: bool) -> str:
    if lowers:
        return f"safe lowers the mean confidence from {confidence:.3f} to {safe:.3f}"
    why = "" if peers else ", since there is no model of another seed to agree with"
    return f"safe leaves the mean confidence at {safe:.3f}{why}"


def _labels(gap: float, num_targets: int, units: str) -> tuple[int, str]:
    needed = labels_needed(gap, share=_SHOWN)
    which = f"{needed} {units} drawn at random"
    if needed >= num_targets:
        needed, which = num_targets, f"all {num_targets} {units}"
    return needed, f"to show half of a gap of {gap:.2f}, label {which}"
