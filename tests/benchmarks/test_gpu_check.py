"""The check of a GPU machine: which tests and stages, and that each part ends in time."""

import os
import subprocess
import sys
from pathlib import Path

from benchmarks import gpu_check

ROOT = Path(__file__).parents[2]


def test_what_cannot_be_collected_is_skipped_and_named(tmp_path, monkeypatch):
    for name, text in {
        "helpers/helper.py": "import jax, absent_too\n",
        "moe/test_dispatch_plan.py": "import pytest, helper\nfrom absent import x\n",
        "routing/test_routing.py": "import hypothetical\nimport calmoe_jax\n",
        "any/test_marked.py": "import pytest\n\n@pytest.mark.gpu\ndef test(): ...\n",
    }.items():
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(gpu_check, "HELPERS", tmp_path / "helpers")
    chosen, skipped = gpu_check.choose_tests(tmp_path, stood_in=("hypothetical",))
    assert chosen == [
        f"{tmp_path.name}/routing/test_routing.py",
        f"{tmp_path.name}/any/test_marked.py",
    ]
    assert skipped == {
        "moe/test_dispatch_plan.py": "absent, absent_too not installed",
        "kernels/test_selection.py": "there is no such file",
        "kernels/test_layout.py": "there is no such file",
        "reweighting/test_dual.py": "there is no such file",
        "reweighting/test_balance.py": "there is no such file",
    }


def test_all_tests_of_kernels_are_found():
    chosen, skipped = gpu_check.choose_tests(ROOT / "tests", stood_in=())
    assert skipped == {}
    assert "tests/moe/test_matmul.py" in chosen
    assert len(chosen) > 12


def test_the_stages_of_a_gpu_check(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_check.shutil, "which", lambda name: f"/opt/{name}")
    monkeypatch.setattr(gpu_check.os, "cpu_count", lambda: 4)
    names, commands = {}, {}
    for backend in ("cpu", "gpu"):
        stages = gpu_check.plan_stages(backend, tmp_path, tests=["tests/test_a.py"], commit="abc")
        names[backend] = [[part.name for part in stage.parts] for stage in stages]
        commands[backend] = [stage.parts[0].command for stage in stages]
        assert stages[0].parts[1].variables["CALMOE_SHARD"] == "2/2"
    tests, timed = ["tests 1/2", "tests 2/2"], [["kernels"], ["dispatch"], ["moe_layer"], ["dual"]]
    assert names["gpu"] == [tests, ["sanitizer"], *timed, ["ragged_flags"]]
    assert names["cpu"] == [tests, ["agreement"], *timed]
    assert commands["gpu"][1][0] == "compute-sanitizer"
    assert "--problems" not in commands["gpu"][3]
    assert "--problems" in commands["cpu"][3]
    assert commands["cpu"][4][-2:] == ("--problems", "small")
    assert "--problems" not in commands["gpu"][4]
    assert "ragged_dot" in stages[-1].parts[0].variables["XLA_FLAGS"]


def test_a_part_streams_its_lines_and_is_ended_in_time(tmp_path, capsys):
    out = tmp_path / "a.json"
    code = f"print('hello'); open({str(out)!r}, 'w').write('[1]'); import time; time.sleep(60)"
    part = gpu_check.Part("sleeper", (sys.executable, "-c", code), out=out)
    done = gpu_check.execute(part, [], seconds=2)
    assert done["exit_code"] is None
    assert done["output"] == ["hello"]
    assert done["result"] == [1]
    assert done["seconds"] < 10
    assert "[sleeper] hello\n[sleeper] ended after 2 s\n" in capsys.readouterr().out
    failing_part = gpu_check.Part("exits", (sys.executable, "-c", "raise SystemExit(3)"))
    assert gpu_check.execute(failing_part, [], seconds=20)["exit_code"] == 3


def test_hypothesis_has_a_stand_in_that_skips(tmp_path):
    (tmp_path / "hypothesis").mkdir()
    (tmp_path / "hypothesis" / "__init__.py").write_text(gpu_check.HYPOTHESIS)
    (tmp_path / "hypothesis" / "strategies.py").write_text(gpu_check.HYPOTHESIS)
    (tmp_path / "test_law.py").write_text(
        "from hypothesis import given, settings\n"
        "from hypothesis import strategies as st\n"
        "import hypothesis.strategies\n"
        "import pytest\n"
        "@settings(max_examples=3, deadline=None)\n"
        "@given(st.integers(1, 3) | st.lists(st.booleans()).map(len))\n"
        "@pytest.mark.parametrize('k', [1, 2])\n"
        "def test_law(k, n): assert False\n"
        "def test_other(): pass\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)]
    alone = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=alone, capture_output=True, text=True)
    assert "1 passed, 2 skipped" in done.stdout, done.stdout
