"""A picture of plans: the memory of a device and what it sends, one bar each."""

from collections.abc import Sequence
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from calmoe_jax.drawing.style import COLOURS, STYLE, literal, png
from calmoe_jax.parallel.plan import Plan

_UNITS = {"GB": 1e9, "MB": 1e6, "kB": 1e3}


def draw_plans(plans: Sequence[Plan]) -> bytes:
    """Draws plans side by side.

    Args:
        plans: at least one plan.

    Returns:
        A PNG file: on the left the memory of a device by what is in it, with a line at what it has;
        on the right what it sends in a step, by operation and axis.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(11, 2.2 + 0.7 * len(plans)), layout="constrained")
        left, right = figure.subplots(1, 2)
        names = [literal(_name(plan)) for plan in plans]
        unit = _bars(left, names, [_memory(plan) for plan in plans])
        for row, plan in enumerate(plans):
            if plan.available:
                has = plan.available / _UNITS[unit]
                left.plot([has, has], [row - 0.4, row + 0.4], color="black", lw=2)
        left.set_title(f"memory of a device ({unit}); black: what it has", fontsize=10)
        unit = _bars(right, names, [_sent(plan) for plan in plans])
        right.set_title(f"sent by a device in a step ({unit}), at least", fontsize=10)
        right.set_yticklabels([])
        for axes in (left, right):
            axes.legend(
                loc="upper left", bbox_to_anchor=(0, -0.12), ncols=2, frameon=False, fontsize=9
            )
        return png(figure)


def _name(plan: Plan) -> str:
    mesh = " x ".join(str(size) for size in plan.mesh.values())
    return f"{plan.topology}\n{mesh}, batch {plan.num_examples}"


def _memory(plan: Plan) -> dict[str, Any]:
    if plan.memory is None:
        return {"more than there is": plan.needed}
    return {
        **plan.memory.arguments,
        "temporary": plan.memory.temporary,
        "program": plan.memory.code,
    }


def _sent(plan: Plan) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for each in plan.collectives:
        name = f"{each.kind} over {', '.join(each.axes)}"
        found[name] = found.get(name, 0) + each.bytes_sent
    return found


def _bars(axes: Any, names: list[str], parts: list[dict[str, Any]]) -> str:
    """Stacked bars, and their unit; parts of less than a hundredth of the longest are one."""
    longest = max(sum(each.values()) for each in parts) or 1
    unit = next((name for name, size in _UNITS.items() if longest >= size), "kB")
    kept: dict[str, None] = {}
    for each in parts:
        kept |= dict.fromkeys(n for n, value in each.items() if value >= longest / 100)
    labels = [*kept, "other"]
    starts: list[Any] = [0.0] * len(parts)
    for i, label in enumerate(labels):
        values = [
            sum(v for n, v in each.items() if n not in kept)
            if label == "other"
            else each.get(label, 0)
            for each in parts
        ]
        if not any(values):
            continue
        widths = [value / _UNITS[unit] for value in values]
        axes.barh(
            names, widths, left=starts, color=COLOURS[(i + 1) % len(COLOURS)], label=literal(label),
            height=0.6,
        )  # fmt: skip
        starts = [a + b for a, b in zip(starts, widths, strict=True)]
    axes.invert_yaxis()
    return unit
