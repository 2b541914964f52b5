"""Every benchmark starts with few packages, and has the options that its docstring shows."""

import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from benchmarking import help_of

ROOT = Path(__file__).parents[2]
MODULES = sorted(f"benchmarks.{p.stem}" for p in (ROOT / "benchmarks").glob("[!_]*.py"))
COMMANDS = [
    f"benchmarks.{name}"
    for name in (
        "calibration",
        "dispatch",
        "dual",
        "foundation",
        "gpu_check",
        "kernels",
        "moe_layer",
        "scaling",
    )
]
# of the library's packages, those that a GPU machine may lack
ABSENT = ("matplotlib", "orbax", "sklearn", "tqdm", "tyro")


def test_all_import_without_the_packages_that_only_some_use():
    code = (
        f"import sys\nfor name in {ABSENT}: sys.modules[name] = None\n"
        f"import importlib\nfor name in {MODULES}: importlib.import_module(name)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
@pytest.mark.parametrize("module", COMMANDS)
def test_options_are_those_of_the_docstring(module, monkeypatch, capsys):
    shown = help_of(module, monkeypatch, capsys)
    command = re.search(r"`(python -m [^`]*)`", import_module(module).__doc__)[1]
    assert command.startswith(f"python -m {module} ")
    for option in re.findall(r"--[a-z-]+", command):
        assert f"{option} " in shown or f"{option}]" in shown, option
