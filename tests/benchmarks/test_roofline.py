"""Bytes that must move: the floors from first principles, and the sums of their parts."""

import pytest

from benchmarks import parts
from benchmarks.problems import PROBLEMS, Problem
from benchmarks.roofline import bytes_of


def microseconds(part, tokens, d, experts, k, **dtypes):
    """At 3 TB/s, as the tables of floors are."""
    return bytes_of(Problem("of the table", tokens, d, experts, k, **dtypes), part) / 3e6


def test_byte_models_are_those_of_the_floors_from_first_principles():
    # forward routing: kernels.md, section 5, first table (bf16 / f32 logits)
    assert microseconds("route", 8192, 1, 8, 1, logits_dtype="bfloat16") == pytest.approx(
        0.08, abs=5e-3
    )
    assert microseconds("route", 32768, 1, 256, 8) == pytest.approx(12.2, abs=0.05)
    assert microseconds("route", 131072, 1, 384, 8) == pytest.approx(71.3, abs=0.05)
    # permute and combine: its second table
    for part, floor in {
        "permute": 201,
        "combine": 201,
        "permute_backward": 201,
        "combine_backward": 380,
    }.items():
        assert microseconds(part, 8192, 4096, 64, 8) == pytest.approx(floor, abs=0.7)
    assert microseconds("combine_backward", 131072, 7168, 8, 2) == pytest.approx(3133, rel=1e-3)


def test_composed_parts_move_what_their_parts_move():
    problem = PROBLEMS["switch_base"]
    both = bytes_of(problem, "route") + bytes_of(problem, "permute")
    assert bytes_of(problem, "route_permute") == both
    single = [part for part in parts.PARTS if part not in parts.COMPOSED]
    assert bytes_of(problem, "forward_backward") == sum(bytes_of(problem, p) for p in single)
