"""Plans: the exchanges of a step are those that the design has, and files and words of plans."""

import json
import subprocess
import sys

import jax
import pytest
from dispatching import exhaustive

from calmoe_jax._errors import UserError
from calmoe_jax.cli import main
from calmoe_jax.study.plan_config import PlanConfig
from calmoe_jax.study.plan_picture import draw_plans
from calmoe_jax.study.planning import (
    describe,
    difference,
    from_file,
    plan_training,
    to_file,
)

SMALL = {"model": "tiny", "image": 8, "classes": 5, "experts": 4, "heads": 2, "batch": 32}


def planned(devices=4, **changes):
    if len(jax.devices()) < devices:
        pytest.skip(f"needs {devices} devices")
    return plan_training(PlanConfig(**SMALL | changes), f"cpu:{devices}")


@pytest.fixture(scope="module")
def plan():
    return planned()


def kinds(one):
    found = {}
    for each in one.plan.collectives:
        key = each.kind, each.axes
        found[key] = found.get(key, 0) + each.times
    return found


def test_the_exchanges_of_a_step(plan):
    """Tokens to experts and back, and their transposes, in one layer; sums for all else."""
    assert plan.plan.mesh == {"data": 1, "expert": 4}
    found = kinds(plan)
    assert found.pop(("all-to-all", ("expert",))) == 4
    assert {kind for kind, _ in found} == {"all-reduce"}  # nothing is gathered or resharded
    # gradients of what all devices share; all other sums are of a few numbers
    sums = [c for c in plan.plan.collectives if c.kind == "all-reduce"]
    wanted = 4 * (plan.parameters - 4 * (2 * 16 * 32 + 32 + 16))  # without the experts'
    assert wanted <= sums[0].num_bytes <= wanted + 64
    assert sums[0].times == 1
    assert all(c.num_bytes <= 64 for c in sums[1:])
    # the adversary's largest loss and partition; clipping and finiteness over shards of experts
    assert sum(c.times for c in sums[1:]) <= 5


@pytest.mark.exhaustive
def test_no_exchange_grows_with_examples_and_classes(plan):
    larger = planned(batch=64)
    sums = [
        [c.num_bytes for c in one.plan.collectives if c.kind == "all-reduce"]
        for one in (plan, larger)
    ]
    assert sorted(sums[0]) == sorted(sums[1])


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        *exhaustive(
            ({"exchange": "ring"}, {"all-gather", "reduce-scatter", "all-reduce"}),
            ({"experts": 0}, {"all-reduce"}),
            ({"objective": "balanced_robust"}, {"all-to-all", "all-reduce"}),
            ({"objective": "robust_filtered"}, {"all-to-all", "all-reduce"}),
            ({"objective": "fgr_robust"}, {"all-to-all", "all-reduce"}),
        )
    ],
)
def test_kinds_of_exchanges(changes, expected):
    assert {each.kind for each in planned(**changes).plan.collectives} == expected


def test_memory_adds_up(plan):
    memory = plan.plan.memory
    assert memory.total >= sum(memory.arguments.values()) + memory.temporary
    # a fourth of the experts, and all else
    assert memory.arguments["parameters"] == 4 * (plan.parameters - 3 * (2 * 16 * 32 + 32 + 16))
    assert memory.arguments["moments"] == 2 * memory.arguments["parameters"] + 4
    assert memory.arguments["batch"] == 8 * (8 * 8 * 3 + 4)


def test_a_file_of_plans_is_read_as_it_was(plan, tmp_path):
    (tmp_path / "plans.json").write_text(to_file([plan]))
    assert from_file(tmp_path / "plans.json") == [plan]
    for wrong in ("", "{}", json.dumps({"schema": 99, "plans": []})):
        (tmp_path / "wrong.json").write_text(wrong)
        with pytest.raises(UserError, match=r"wrong\.json is not a file of plans"):
            from_file(tmp_path / "wrong.json")


def test_words_and_picture(plan):
    text = describe(plan)
    assert "cpu:4: data 1 x expert 4; tiny" in text
    assert "all-to-all" in text
    same = difference(plan, plan)
    assert "+0.0 %" in same
    assert "times" not in same
    fewer = plan._replace(plan=plan.plan._replace(collectives=plan.plan.collectives[1:]))
    assert "1 -> 0 times" in difference(plan, fewer)
    assert draw_plans([plan.plan, plan.plan]).startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--topology v9:3", "--topology must be one of v4:..., v5e:..."),
        ("--topology cpu:4096", "needs 4096 devices"),
        ("--topology cpu:4 --expert-shards 3", "--expert-shards must divide the 4 devices"),
        ("--topology cpu:4 --batch 30", "--batch must have a multiple of 4 examples"),
        ("--topology cpu:4 --model C/16", "--model must be"),
        ("--topology cpu:4 --experts 6 --expert-shards 4", "a divisor of the 6 experts"),
        ("--batch 0", "--batch must be at least 1, got --batch=0"),
        ("--diff nowhere.json nowhere.json", "nowhere.json is not a file of plans"),
    ],
)
def test_wrong_usage_ends_with_2(arguments, message, capsys):
    if len(jax.devices()) < 4:
        pytest.skip("needs four devices")
    arguments = arguments.split()
    small = [x for n, v in SMALL.items() for x in (f"--{n}", str(v)) if f"--{n}" not in arguments]
    given = arguments if "--diff" in arguments else [*small, *arguments]
    assert main(["plan", *given]) == 2
    error = capsys.readouterr().err
    assert message in error, error
    assert len(error.splitlines()) == 1


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize("topology", ["v5e:2x4", "2*v5e:2x2"])
def test_plans_for_tpus(topology):
    pytest.importorskip("libtpu", reason="no TPU compiler: pip install libtpu, as jax[tpu] does")
    arguments = [x for n, v in SMALL.items() for x in (f"--{n}", str(v))]
    done = subprocess.run(
        [sys.executable, "-m", "calmoe_jax.cli", "plan", "--topology", topology, *arguments],
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert ": fits" in done.stdout
    assert "4 x all-to-all" in done.stdout
