"""How the benchmark of dispatch shows its times: rows of a table, and a plot."""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.bounds import per_cent
from benchmarks.harness import ratio
from benchmarks.parts import COMPOSED, VARIANTS
from benchmarks.problems import Problem
from benchmarks.roofline import bytes_of

HEADER = (
    f"{'part':<17}{'variant':<8}{'time':>12}{'GB/s':>9}{'% of copy':>11}"
    f"{'fair / this':>13}{'limit':>8}"
)


def title(problem: Problem) -> str:
    """A problem in a line."""
    return (
        f"{problem.name}: {problem.tokens} tokens, {problem.experts} experts, k={problem.k}, "
        f"d={problem.d}, {problem.x_dtype}, logits {problem.logits_dtype}, {problem.scores}, "
        f"{problem.load}"
    )


def row(
    problem: Problem, part: str, name: str, times: Mapping[str, list[float]], bandwidth: float
) -> str:
    """A row of the table: the figures of one variant at one part."""
    seconds = median(times[name])
    share = per_cent(problem, part, seconds, bandwidth)
    text = f"{part:<17}{name:<8}{seconds * 1e6:9.1f} us{share * bandwidth / 1e11:9.1f}{share:11.1f}"
    if "fair" not in times:
        return text
    # what moving the bytes and nothing else would gain over the fair formulation
    limit = median(times["fair"]) * bandwidth / bytes_of(problem, part)
    return f"{text}{ratio(times, 'fair', name):13.2f}{limit:8.2f}"


def plot(path: Path, measurements: list[dict[str, Any]]) -> None:
    """Draws how many times longer each variant takes than a copy of the same bytes.

    Args:
        path: where; nothing is drawn where matplotlib is not installed.
        measurements: as in the benchmark's JSON.
    """
    if find_spec("matplotlib") is None:
        print(f"matplotlib is not installed: {path} was not drawn")
        return
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(12, 6), sharey=True, layout="constrained")
    for axis, part in zip(axes, COMPOSED, strict=True):
        rows = [m for m in measurements if m["part"] == part]
        for name, marker in zip(VARIANTS, "sD.ox", strict=True):
            mine = [m for m in rows if m["variant"] == name]
            if not mine:
                continue
            times = [100 / m["per_cent_of_copy"] for m in mine]
            problems = [m["problem"] for m in mine]
            axis.plot(times, problems, marker, label=name, alpha=0.7)
        title_ = "route + permute, forward" if part == COMPOSED[0] else "all, forward + backward"
        axis.set(title=title_, xlabel="time / time of a copy of its bytes")
        axis.set_xscale("log")
        axis.grid(alpha=0.3)
    axes[0].invert_yaxis()
    axes[1].legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)
