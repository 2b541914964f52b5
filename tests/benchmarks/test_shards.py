"""The plugin that shares tests among processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("shard", "seconds", "outcome"),
    [("1/1", "60", "5 passed"), ("2/2", "60", "2 passed, 3 deselected"), ("1/1", "0", "5 skipped")],
)
def test_tests_are_shared_and_end_in_time(tmp_path, shard, seconds, outcome):
    tests = "import pytest\n\n@pytest.mark.parametrize('n', range(5))\ndef test(n): ...\n"
    (tmp_path / "test_some.py").write_text(tests)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "benchmarks.shards", str(tmp_path)]
    own = {"CALMOE_SHARD": shard, "CALMOE_SECONDS": seconds, "PYTHONPATH": str(ROOT)}
    alone = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(
        command, cwd=tmp_path, env=os.environ | own | alone, capture_output=True, text=True
    )
    assert outcome in done.stdout, done.stdout + done.stderr
