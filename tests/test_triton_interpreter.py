"""The Triton kernels pass the suite of dispatch, run by Triton's interpreter."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_the_suite_of_dispatch_holds_for_interpreted_kernels():
    pytest.importorskip("triton")
    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("this is the process that interprets")
    # the variable must be set before Triton is imported
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-k", "triton", "tests/test_dispatch.py"],
        cwd=Path(__file__).parents[1],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
    assert "passed" in done.stdout
