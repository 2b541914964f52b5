"""Bounds of dispatch on each device, and that what was not measured does not pass."""

import pytest

from benchmarks import bounds, parts
from benchmarks.problems import PROBLEMS
from benchmarks.roofline import bytes_of


def measured(problems, times, memory=1.0):
    """Rounds of every part, from seconds by variant (and part)."""
    seconds = {
        (problem.name, part): {
            name: [each[part] if isinstance(each, dict) else each] * 3
            for name, each in times.items()
        }
        for problem in problems
        for part in parts.PARTS
    }
    return bounds.Measured(seconds, {p.name: memory for p in problems}, 3e12)


def failing(found):
    return [figure.name for figure in found if not figure.holds]


def test_bounds_of_a_cpu():
    problems = [PROBLEMS["tiny"], PROBLEMS["v_moe"]]
    times = {"xla": 1.0, "None": 1.0, "fair": 1.1, "naive": 1.5}
    found = bounds.figures(problems, measured(problems, times), platform="cpu", device="cpu")
    assert failing(found) == []
    times["naive"] = 0.9
    found = bounds.figures(problems, measured(problems, times), platform="cpu", device="cpu")
    assert failing(found) == ["forward_backward: naive / xla, worst of 2 (tiny, v_moe)"]
    times["naive"] = 1.5
    found = bounds.figures(problems, measured(problems, times, 1.2), platform="cpu", device="cpu")
    assert failing(found) == ["memory of dispatch and combine / needed, worst of 2 (tiny, v_moe)"]


def on_h100(problems, times):
    found = bounds.figures(
        problems, measured(problems, times), platform="gpu", device="NVIDIA H100 80GB HBM3"
    )
    return {figure.name.split(",")[0]: figure for figure in found}


def test_bounds_of_an_h100():
    problem = PROBLEMS["route_128_k2"]
    moved = {part: bytes_of(problem, part) / 3e12 for part in parts.PARTS}
    ours = {part: seconds / 0.95 for part, seconds in moved.items()} | {"route": 31e-6}
    fair = {part: 2 * seconds for part, seconds in ours.items()}
    found = on_h100([problem], {"None": ours, "fair": fair})
    assert all(figure.holds for figure in found.values()), found
    assert found["route of route_128_k2"].value == pytest.approx(31)
    assert found["combine of route_128_k2"].value == pytest.approx(95)
    assert found["route_permute: fair / None"].value == pytest.approx(2)
    slow = on_h100([problem], {"None": ours | {"route": 33e-6, "combine": 1}, "fair": fair})
    assert failing(slow.values()) == [
        "route of route_128_k2",
        "combine of route_128_k2",
        "fair / None, any part, worst of 8 (combine of route_128_k2)",
    ]
    # within the noise of the rival, but not the speed that is promised from 8192 tokens on
    level = on_h100([problem], {"None": ours, "fair": {p: 0.98 * s for p, s in ours.items()}})
    assert [name.split(",")[0] for name in failing(level.values())] == [
        "route_permute: fair / None",
        "forward_backward: fair / None",
    ]
    tiny = PROBLEMS["tiny"]
    assert failing(on_h100([tiny], {"None": 1.0, "fair": 1.0}).values()) == []


def test_what_was_not_measured_fails_too():
    nothing = bounds.Measured({}, {}, 1.0)
    found = bounds.figures([PROBLEMS["tiny"]], nothing, platform="cpu", device="cpu")
    assert failing(found) == ["problems not fully measured (tiny)"]
