"""The Triton kernels pass the tests of their operations, run by Triton's interpreter."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DISPATCH = sorted(str(path) for path in ROOT.glob("tests/moe/test_dispatch_*.py"))
# rows to experts and back, forward and backward
BY_DEFAULT = ["tests/moe/test_dispatch_rows.py"]
EVERY = [*DISPATCH, "tests/moe/test_matmul.py", "tests/moe/test_experts.py"]


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("suites", "options"),
    [
        (BY_DEFAULT, ("-k", "triton")),
        pytest.param(
            EVERY,
            ("-k", "triton", "--exhaustive"),
            marks=[pytest.mark.exhaustive, pytest.mark.long],
        ),
    ],
    ids=["some", "every"],
)
def test_the_suites_hold_for_interpreted_kernels(suites, options):
    pytest.importorskip("triton")
    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("this is the process that interprets")
    # the variable must be set before Triton is imported
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n0", *options, *suites],
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
    assert "passed" in done.stdout
