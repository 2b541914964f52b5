"""What the main README shows of `calmoe run`, and the rows on its first task."""

import tempfile
import textwrap
from functools import cache
from pathlib import Path

from calmoe_jax._run_command import FIRST_TASKS
from calmoe_jax.study.records import SHIFT_MEAN, read_results
from calmoe_jax.study.report import Summary, in_words
from experiments.commits import short_commit
from experiments.figures.words import WIDTH, bullet, fixed, supported
from experiments.first_run import unpack

_PRINTED = 96
_ROBUST = ("robust", "robust_filtered", "fgr_robust")


@cache
def summary(name: str) -> Summary:
    """The kept results of a run.

    Args:
        name: of its task.
    """
    with tempfile.TemporaryDirectory() as folder:
        unpack(name, Path(folder))
        return Summary(read_results(Path(folder)))


def commit() -> str:
    """The commit that both runs were made at."""
    (one,) = {short_commit(summary(name).results.environment.commit) for name in FIRST_TASKS}
    return one


def printed() -> str:
    """What the command prints, long lines broken."""
    parts = []
    for name, title in FIRST_TASKS.items():
        said = f"{name}: {title}\n\n{in_words(summary(name))}\n\nReport: runs/{name}/report.html"
        parts += [_broken(line) for line in said.split("\n")] + [""]
    return "\n".join(["```", *parts[:-1], "```"])


def _broken(line: str) -> str:
    """A line of the printed text, broken where it is long; what follows is indented."""
    own = line[: len(line) - len(line.lstrip())]
    return textwrap.fill(line, _PRINTED, subsequent_indent=own or "  ", break_on_hyphens=False)


def _value(
    found: Summary, method: str, calibrator: str, kind: str = "shift", metric: str = "ece"
) -> float:
    spread = found.spread(method, calibrator, found.splits(kind), metric)
    if spread is None:
        raise ValueError(f"the results must have {metric} of {method}, {calibrator}, {kind}.")
    return spread.mean


def _no_difference(found: Summary, method: str) -> bool:
    """Whether the interval of the difference with a temperature has 0."""
    line = found.comparison(method, "temperature", SHIFT_MEAN, "ece")
    return line is not None and line.low <= 0 <= line.high


def objectives(found: Summary) -> str:
    """Row: errors as trained.

    Args:
        found: as from `summary`.
    """
    errors = (f"{name} {fixed(_value(found, name, 'none'))}" for name in ("vanilla", "fgr"))
    robust = (f"{name} {fixed(_value(found, name, 'none'))}" for name in _ROBUST)
    gaps = [_value(found, name, "none", metric="confidence_gap") for name in _ROBUST]
    supported("the robust objectives make it under-confident", max(gaps) < 0)
    return (
        f"shifted ECE, mean over {found.num_seeds} seeds and {len(found.splits('shift'))} shifts: "
        f"{', '.join([*errors, *robust])}"
    )


def one_temperature(found: Summary) -> str:
    """Row: errors with a temperature fitted in distribution.

    Args:
        found: as from `summary`.
    """
    errors = ", ".join(
        f"{name} {fixed(_value(found, name, 'temperature'))}" for name in ("vanilla", *_ROBUST)
    )
    said = "no paired 95 % interval leaves out 0"
    return (
        f"shifted ECE: {errors}; {supported(said, all(_no_difference(found, m) for m in _ROBUST))}"
    )


def calibrated_experts(found: Summary) -> str:
    """Row: errors with experts calibrated on their views.

    Args:
        found: as from `summary`.
    """
    with_them, without = (
        [_value(found, "vanilla", name, kind) for kind in ("id", "shift")]
        for name in ("per_expert", "none")
    )
    supported("they make it worse", all(x > y for x, y in zip(with_them, without, strict=True)))
    return (
        f"vanilla, per-expert temperatures: ECE {fixed(with_them[0])} in distribution "
        f"({fixed(without[0])} without), {fixed(with_them[1])} under shift ({fixed(without[1])})"
    )


def portal_in_words(found: Summary) -> str:
    """The main README's conclusions on the first task.

    Args:
        found: as from `summary`, of portal.
    """
    fall = _value(found, "vanilla", "none", "id", "accuracy") - _value(
        found, "vanilla", "none", metric="accuracy"
    )
    inside, shifted = (_value(found, "vanilla", "none", kind) for kind in ("id", "shift"))
    gaps = [-100 * _value(found, name, "none", metric="confidence_gap") for name in _ROBUST]
    experts = [_value(found, "vanilla", "per_expert", kind) for kind in ("id", "shift")]
    temperatures = [
        value
        for fit in found.results.fits
        if (fit.method, fit.calibrator) == ("mocae", "mocae")
        for value in (fit.temperature if isinstance(fit.temperature, tuple) else ())
    ]
    first = supported(
        "There is little to repair on this task.",
        shifted - _value(found, "vanilla", "temperature") < 0.01,
    )
    same = supported(
        "then no robust method differs from the plain mixture under shift",
        all(_no_difference(found, name) for name in _ROBUST),
    )
    far = supported("far worse", _value(found, "mocae", "none") > 5 * experts[1])
    return "\n".join(
        bullet(text)
        for text in (
            f"Accuracy falls by {100 * fall:.0f} points over the years, and the plain mixture's "
            f"confidence follows: its ECE grows from {fixed(inside)} to only {fixed(shifted)}. "
            f"{first}",
            "The robust objectives lower confidence, as propriety predicts of a tilted log loss. "
            "Where the plain mixture was calibrated, that makes it under-confident by "
            f"{min(gaps):.0f} to {max(gaps):.0f} points. One temperature, fitted on held-out data "
            f"of the training years, removes this, and {same}.",
            "Calibrated experts do not make a calibrated soft mixture. With every expert's "
            "temperature fitted on its own routing-weighted view (`per expert` in the report), "
            f"vanilla's ECE rises from {fixed(inside)} to {fixed(experts[0])} in distribution and "
            f"from {fixed(shifted)} to {fixed(experts[1])} under shift: where active experts "
            "disagree, the mixture of calibrated experts must be off. MoCaE, which fits every "
            f"expert on all held-out examples alike, does {far}: its experts are poor outside "
            "their region, and fits that are run to convergence (temperatures from "
            f"{min(temperatures):.1f} to {max(temperatures):.0f}) flatten them.",
        )
    )


def digits_in_words(found: Summary) -> str:
    """The main README's conclusion on the second task.

    Args:
        found: as from `summary`, of digits.
    """
    plain, scaled, safe = (
        _value(found, "vanilla", name) for name in ("none", "temperature", "safe")
    )
    gap = 100 * _value(found, "vanilla", "none", metric="confidence_gap")
    worse = supported("makes it worse", scaled > plain)
    sentence = (
        "On `digits`, corrupted at five severities, the plain mixture is over-confident by "
        f"{gap:.0f} points (ECE {fixed(plain)}). The temperature fitted on clean digits {worse} "
        f"({fixed(scaled)}); networks that differ in their seed disagree on corrupted digits, and "
        f"`safe` lowers the confidence by that, without a label: {fixed(safe)}."
    )
    return textwrap.fill(sentence, WIDTH, break_on_hyphens=False)


ROWS = {
    "portal-objectives": objectives,
    "portal-temperature": one_temperature,
    "portal-experts": calibrated_experts,
}
