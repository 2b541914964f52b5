"""Cells of the tables of a report: means and deviations over the seeds."""

from calmoe_jax.drawing.elements import element, joined
from calmoe_jax.study.report.summary import Spread

# Metrics shown in per cent or percentage points.
_PERCENT = ("accuracy", "confidence_gap")


def scaled(metric: str) -> tuple[int, int]:
    """Scale factor and number of decimals of a metric in tables.

    Args:
        metric: name of a metric.
    """
    return (100, 1) if metric in _PERCENT else (1, 3)


def spread_cell(value: Spread | None, metric: str) -> str:
    """Mean and deviation of a metric; a dash if there is none.

    Args:
        value: over the seeds.
        metric: name of the metric.
    """
    if value is None:
        return "–"
    scale, digits = scaled(metric)
    mean = f"{scale * value.mean:.{digits}f}"
    if value.std is None:
        return mean
    return joined([mean, " ", element("span", f"± {scale * value.std:.{digits}f}", class_="std")])
