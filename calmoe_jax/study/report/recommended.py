"""The recommended recipe on a task, in one line."""

from calmoe_jax.study.recommended import RECOMMENDED
from calmoe_jax.study.report.summary import Summary


def recommendation(summary: Summary) -> str | None:
    """What the recommended method and calibrator did on a run's shifts, beside doing nothing.

    Args:
        summary: summary of a run.

    Returns:
        `None` if the run lacks the method or a shifted split.
    """
    method, routing, calibrator = RECOMMENDED

    def mean(name: str, kind: str, metric: str = "ece") -> float | None:
        spread = summary.spread(method, name, summary.splits(kind), metric)
        return None if spread is None else spread.mean

    plain, repaired = mean("none", "shift"), mean(calibrator, "shift")
    if plain is None or repaired is None:
        return None
    routings = {record.routing for record in summary.results.records}
    said = f"Recommended: {method}, {calibrator} (no labels of the target)"
    if routings != {routing}:
        said = f"Recommended is {routing} routing; with this one, {method}, {calibrator}"
    inside = mean(calibrator, "id")
    home = "" if inside is None else f", in distribution {inside:.3f}"
    return f"{said}: ECE under shift {repaired:.3f} instead of {plain:.3f} as trained{home}."
