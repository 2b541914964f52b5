"""What the study says, in sentences that follow its figures; the unwelcome ones first."""

import contextlib
from collections.abc import Callable

from experiments.our_study.comparing import REFERENCE, Compared, Row, compare

_ROBUST = ("robust", "robust_filtered", "fgr_robust")
_BEYOND = ("vector", "dirichlet", "classwise_isotonic")


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
    plain = ("dense", "vanilla", "temperature")
    found = compare(
        rows,
        lambda c: c[0] == "dense" and c[2] == "temperature" and c[1] not in ("vanilla", "mocae"),
        plain,
    )
    better, worse = _clear(found)
    name: Callable[[Compared], str] = lambda c: c.combination[1]  # noqa: E731
    return (
        f"Once both have one temperature fitted in distribution, of {len(found)} objectives and "
        f"ensembles with dense routing these have a smaller ECE under shift than the plain mixture "
        f"beyond their interval over tasks: {_named(better, name)}; and these a larger one: "
        f"{_named(worse, name)}."
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
    return (
        f"Calibrating experts on their views changes a dense mixture's ECE by {dense.id_ece:+.3f} "
        f"in distribution and {_words(dense)} under shift; a hard-routed one's by "
        f"{hard.id_ece:+.3f} and {_words(hard)}."
    )


def _hard_routing(rows: list[Row]) -> str:
    plain = _against(rows, ("hard", "vanilla", "none"), REFERENCE)
    calibrated = _against(
        rows, ("hard", "vanilla", "per_expert"), ("dense", "vanilla", "per_expert")
    )
    same = _against(rows, ("hard", "vanilla", "temperature"), ("dense", "vanilla", "temperature"))
    return (
        f"Hard against dense routing of the plain mixture, under shift: as trained {_words(plain)} "
        f"with accuracy {plain.accuracy:+.3f}; with calibrated experts {_words(calibrated)}; with "
        f"one temperature each {_words(same)}."
    )


def _more_parameters(rows: list[Row]) -> str:
    found = compare(
        rows,
        lambda c: c[:2] == ("dense", "vanilla") and c[2] in _BEYOND,
        ("dense", "vanilla", "temperature"),
    )
    return (
        "Calibrators with more parameters than a temperature, fitted on the same held-out "
        "examples, against it under shift: "
        f"{_named(found, lambda c: c.combination[2])}."
    )


def _repairs(rows: list[Row]) -> str:
    found = [
        _against(rows, ("dense", "vanilla", name), ("dense", "vanilla", "temperature"))
        for name in ("safe", "bold")
    ]
    parts = [
        f"{c.combination[2]} {_words(c)}, at worst {c.worst[0]:+.3f} ({c.worst[1]}), in "
        f"distribution {c.id_ece:+.3f}"
        for c in found
    ]
    return (
        "Repair without labels of the plain dense mixture, against the temperature fitted in "
        f"distribution: {'; '.join(parts)}."
    )


def _ensemble(rows: list[Row]) -> str:
    c = _against(rows, ("dense", "deep_ensemble", "none"), REFERENCE)
    after = _against(
        rows, ("dense", "deep_ensemble", "temperature"), ("dense", "vanilla", "temperature")
    )
    return (
        f"Four networks averaged (a deep ensemble) against the plain mixture: accuracy under shift "
        f"{c.accuracy:+.3f}, ECE {_words(c)} as trained, {_words(after)} with a temperature each."
    )
