"""Every experiment has the options that its docstring and the README show."""

import re
from importlib import import_module
from pathlib import Path

import pytest
from benchmarking import help_of

import experiments.trained

pytestmark = pytest.mark.exhaustive

README = Path(experiments.trained.__file__).with_name("README.md").read_text()
COMMANDS = (
    "choose_rule", "figures", "first_run", "hard_or_soft", "interval_coverage", "our_study",
    "our_study.ablation", "our_study.report", "paper", "repair_protocol", "repair_without_labels",
    "theorem_class", "theory",
)  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
@pytest.mark.parametrize("name", COMMANDS)
def test_options_are_those_of_the_docstring(name, monkeypatch, capsys):
    module = f"experiments.{name}"
    shown = help_of(module, monkeypatch, capsys)
    command = re.search(r"`(python -m [^`]*)`", import_module(module).__doc__)[1]
    assert f"{command} ".startswith(f"python -m {module} ")
    for option in re.findall(r"--[a-z-]+", command):
        assert f"{option} " in shown, option


def test_commands_of_the_readme_exist():
    used = set(re.findall(r"python -m experiments\.([\w.]*\w)", README))
    assert used <= set(COMMANDS)
    assert used >= {"repair_without_labels", "choose_rule", "theorem_class"}
