"""What the main README says of our study."""

from calmoe_jax.study.records import SHIFT_MEAN
from calmoe_jax.study.report import Summary
from experiments.figures.words import bullet, fixed, supported
from experiments.our_study.comparing import Row, compare, mean_of

_PLAIN = ("dense", "vanilla", "temperature")
# A mean gap of the plain mixture under shift above which it is called over-confident.
_SURE = 0.05


def in_words(rows: list[Row], digits: Summary) -> str:
    """The main README's conclusions on objectives and on calibrated experts.

    Args:
        rows: of our study.
        digits: of the first run's second task.
    """
    return "\n".join((_objectives(rows, digits), _experts(rows)))


def _objectives(rows: list[Row], digits: Summary) -> str:
    change: dict[bool, dict[str, float]] = {True: {}, False: {}}
    at = {(r.task, r.method): r for r in rows if _as_trained(r)}
    for task in sorted({r.task for r in rows}):
        plain, robust = at[task, "vanilla"], at[task, "robust"]
        sure = mean_of(plain, "confidence_gap") > _SURE
        change[sure][task] = mean_of(robust, "ece") - mean_of(plain, "ece")
    helped, others = change[True].values(), change[False]
    supported("it helps on all of those tasks", max(helped) < 0)
    supported("it harms where the mixture is not over-confident", min(others.values()) > 0)
    line = digits.comparison("robust", "none", SHIFT_MEAN, "ece")
    supported(
        "on `digits` above it changes nothing", line is not None and line.low <= 0 <= line.high
    )
    after = compare(rows, lambda c: c[2] == "temperature" and c != _PLAIN, _PLAIN)
    supported("no objective or routing is better", not any(c.high < 0 for c in after))
    harmed = ", ".join(f"{fixed(x, sign=True)} on `{task}`" for task, x in others.items())
    return bullet(
        f"**The robust objectives lower confidence.** As trained, that helps on all {len(helped)} "
        f"tasks of [our study](experiments/our_study/README.md) whose plain mixture is "
        f"over-confident under shift (ECE of Robust MoE {fixed(max(helped), sign=True)} to "
        f"{fixed(min(helped), sign=True)}), changes nothing on `digits` above, and harms where the "
        f"mixture is not over-confident ({harmed}). After one temperature fitted in distribution "
        f"none of {len(after)} combinations of objective and routing is better than the plain "
        "dense mixture beyond the interval over tasks."
    )


def _experts(rows: list[Row]) -> str:
    (found,) = compare(rows, lambda c: c == ("dense", "vanilla", "per_expert"), _PLAIN)
    supported("they help on average", found.difference < 0)
    less_sure = [_mean_gap(rows, calibrator, "id") for calibrator in ("per_expert", "temperature")]
    supported("calibrated experts make a mixture less sure", less_sure[0] < less_sure[1])
    supported("they harm in distribution and somewhere", found.id_ece > 0 and found.worst[0] > 0)
    return bullet(
        "**Calibrated experts make a soft mixture less sure**, as theory says. Against one "
        f"temperature that is ECE {fixed(found.difference, sign=True)} "
        f"({fixed(found.low, sign=True)} to {fixed(found.high, sign=True)} over tasks) under "
        f"shift, where most of these mixtures are too sure, {fixed(found.worst[0], sign=True)} on "
        f"`{found.worst[1]}`, where they are not, and {fixed(found.id_ece, sign=True)} in "
        "distribution."
    )


def _mean_gap(rows: list[Row], calibrator: str, kind: str) -> float:
    """The plain dense mixture's confidence less its accuracy, mean over tasks."""
    wanted = ("dense", "vanilla", calibrator), kind
    gaps = [mean_of(r, "confidence_gap") for r in rows if (r.combination, r.kind) == wanted]
    return sum(gaps) / len(gaps)


def _as_trained(row: Row) -> bool:
    return (row.routing, row.calibrator, row.kind) == ("dense", "none", "shift")
