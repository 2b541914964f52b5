"""What the study says, in sentences that follow its figures; the unwelcome ones first."""

import contextlib
from collections.abc import Callable

from calmoe_jax.study.recommended import RECOMMENDED
from experiments.our_study.comparing import REFERENCE, Compared, Row, compare, on_hard

_ROBUST = ("robust", "robust_filtered", "fgr_robust")
_BEYOND = ("vector", "dirichlet", "classwise_isotonic")
_PLAIN = ("dense", "vanilla", "temperature")
# Its disputed images are a hard subset, and count as a shift where there is none.
_DISPUTED = "cifar10h"


_Combination = tuple[str, str, str]


class _Missing(LookupError):
    """A combination that some task lacks."""


def conclusions(rows: list[Row]) -> list[str]:
    """The sentences; what the study does not have is left out.

    Args:
        rows: of the study.
    """
    said = []
    for sentence in (
        _objectives_after_temperature,
        _recommended,
        _robust_as_trained,
        _experts_on_their_views,
        _hard_routing,
        _more_parameters,
        _repairs,
        _ensemble,
    ):
        with contextlib.suppress(_Missing):
            said.append(sentence(rows))
    return said


def _against(rows: list[Row], combination: _Combination, reference: _Combination) -> Compared:
    found = compare(rows, lambda c: c == combination, reference)
    if not found:
        raise _Missing(combination)
    return found[0]


def _words(c: Compared) -> str:
    """A difference with its interval."""
    return f"{c.difference:+.3f} ({c.low:+.3f} to {c.high:+.3f})"


def _clear(found: list[Compared]) -> tuple[list[Compared], list[Compared]]:
    """Those that are better, and those that are worse, by the whole interval."""
    return [c for c in found if c.high < 0], [c for c in found if c.low > 0]


def _named(found: list[Compared], name: Callable[[Compared], str]) -> str:
    return ", ".join(f"{name(c)} {_words(c)}" for c in found) or "none"


def _objectives_after_temperature(rows: list[Row]) -> str:
    found = compare(rows, lambda c: c[2] == "temperature" and c != _PLAIN, _PLAIN)
    if not found:
        raise _Missing(_PLAIN)
    better, worse = _clear(found)
    return (
        f"Once both have one temperature fitted in distribution, of {len(found)} combinations of "
        "objective and routing (a single network and a deep ensemble among them) these have a "
        "smaller ECE under shift than the plain dense mixture beyond their interval over tasks: "
        f"{_named(better, _training)}; and these a larger one: {_named(worse, _training)}. The "
        f"least: {_training(found[0])} {_words(found[0])}."
    )


def _training(c: Compared) -> str:
    """Objective and routing in words."""
    return f"{c.combination[1]} ({c.combination[0].replace('_', '-')})"


def _recommended(rows: list[Row]) -> str:
    recipe = RECOMMENDED.routing, RECOMMENDED.method, RECOMMENDED.calibrator
    found = compare(rows, lambda c: c[2] == recipe[2] and c != recipe, recipe)
    if not found:
        raise _Missing(recipe)
    better, worse = _clear(found)
    smaller = [c for c in found if c.difference < 0]
    return (
        f"What is recommended, {recipe[1]} with {recipe[0]} routing and {recipe[2]}, is one of "
        f"several that the study cannot tell apart: of {len(found)} other objectives and routings "
        f"with {recipe[2]}, {len(smaller)} have a smaller mean ECE under shift (the least "
        f"{_training(found[0])} {_words(found[0])}), beyond their interval {len(better)}, and "
        f"{len(worse)} a larger one beyond it. The simplest is taken."
    )


def _robust_as_trained(rows: list[Row]) -> str:
    found = compare(rows, lambda c: c[0] == "dense" and c[2] == "none" and c[1] in _ROBUST)
    if not found:
        raise _Missing(_ROBUST)
    parts = [
        f"{c.combination[1]} {_words(c)}, accuracy {c.accuracy:+.3f}, in distribution "
        f"{c.id_ece:+.3f}, at worst {c.worst[0]:+.3f} ({c.worst[1]})"
        for c in found
    ]
    return (
        "As trained, the paper's objectives change the ECE under shift of the plain mixture by: "
        f"{'; '.join(parts)}."
    )


def _experts_on_their_views(rows: list[Row]) -> str:
    dense = _against(rows, ("dense", "vanilla", "per_expert"), ("dense", "vanilla", "none"))
    hard = _against(rows, ("hard", "vanilla", "per_expert"), ("hard", "vanilla", "none"))
    over = _against(rows, ("dense", "vanilla", "per_expert"), _PLAIN)
    return (
        f"Calibrating experts on their views changes a dense mixture's ECE by {dense.id_ece:+.3f} "
        f"in distribution and {_words(dense)} under shift; a hard-routed one's by "
        f"{hard.id_ece:+.3f} and {_words(hard)}. Against one temperature, that is {_words(over)} "
        f"under shift for the dense one, {over.id_ece:+.3f} in distribution, at worst "
        f"{over.worst[0]:+.3f} under shift ({over.worst[1]}): a soft mixture of calibrated experts "
        "is under-confident, which harms where it was calibrated and helps where it was too sure."
    )


def _hard_routing(rows: list[Row]) -> str:
    plain = _against(rows, ("hard", "vanilla", "none"), REFERENCE)
    calibrated = _against(
        rows, ("hard", "vanilla", "per_expert"), ("dense", "vanilla", "per_expert")
    )
    same = _against(rows, ("hard", "vanilla", "temperature"), _PLAIN)
    return (
        f"Hard against dense routing of the plain mixture, under shift: as trained {_words(plain)} "
        f"with accuracy {plain.accuracy:+.3f}; with calibrated experts {_words(calibrated)}; with "
        f"one temperature each {_words(same)}."
    )


def _more_parameters(rows: list[Row]) -> str:
    found = compare(
        rows,
        lambda c: c[:2] == ("dense", "vanilla") and c[2] in _BEYOND,
        _PLAIN,
    )
    return (
        "Calibrators with more parameters than a temperature, fitted on the same held-out "
        "examples, against it under shift: "
        f"{_named(found, lambda c: c.combination[2])}."
    )


def _repairs(rows: list[Row]) -> str:
    parts = []
    for name in ("safe", "bold"):
        combination = "dense", "vanilla", name
        c = _against(rows, combination, _PLAIN)
        said = (
            f"{name} {_words(c)}, at worst {c.worst[0]:+.3f} ({c.worst[1]}), in distribution "
            f"{c.id_ece:+.3f}"
        )
        others = [r for r in rows if r.task != _DISPUTED]
        if 2 < len({r.task for r in others}) < len({r.task for r in rows}):
            said += f", without {_DISPUTED} {_words(_against(others, combination, _PLAIN))}"
        hard = on_hard(rows, combination, _PLAIN)
        if hard:
            worst = sorted(hard, key=hard.__getitem__, reverse=True)
            said += f"; on hard subsets {', '.join(f'{t} {hard[t]:+.3f}' for t in worst)}"
        parts.append(said)
    return (
        "Repair without labels of the plain dense mixture, against the temperature fitted in "
        "distribution, and on examples that are hard but not shifted, which look like a shift: "
        f"{'. '.join(parts)}."
    )


def _ensemble(rows: list[Row]) -> str:
    c = _against(rows, ("dense", "deep_ensemble", "none"), REFERENCE)
    after = _against(rows, ("dense", "deep_ensemble", "temperature"), _PLAIN)
    return (
        f"Four networks averaged (a deep ensemble) against the plain mixture: accuracy under shift "
        f"{c.accuracy:+.3f}, ECE {_words(c)} as trained, {_words(after)} with a temperature each."
    )
