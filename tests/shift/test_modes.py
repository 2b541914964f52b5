"""The words on the modes of repair: complete, and the same wherever they stand."""

import inspect
from pathlib import Path

import pytest

from calmoe_jax import _audit_command
from calmoe_jax.audit.findings import Limits
from calmoe_jax.shift import repair

README = Path(__file__).parents[2] / "README.md"


def test_modes_are_the_first_calibrators():
    assert tuple(repair.MODES) == repair.CALIBRATORS[:2] == (repair.DEFAULT_MODE, "bold")
    assert [mode.name for mode in repair.MODES.values()] == list(repair.MODES)
    with pytest.raises(TypeError):
        repair.MODES["mine"] = repair.MODES["safe"]


def test_the_default_is_one_mode_everywhere():
    assert Limits().repair == repair.DEFAULT_MODE
    assert _audit_command.Audit.repair == repair.DEFAULT_MODE


@pytest.mark.parametrize("name", repair.MODES)
def test_each_mode_says_everything_in_sentences(name):
    mode = repair.MODES[name]
    for words in mode[1:]:
        assert words[0].isupper()
        assert words.endswith(".")
        assert "{" not in words
    assert "not identified" in mode.cannot_know
    assert "greatest harm" in mode.measured


@pytest.mark.parametrize("name", repair.MODES)
def test_the_readme_says_the_same(name):
    text = " ".join(README.read_text().split())
    assert repair.MODES[name].rests_on in text
    assert repair.MODES[name].measured in text
    for sentence in repair.MODES[name].cannot_know.split(". "):
        assert sentence.removesuffix(".") in text


def test_docstrings_refer_to_the_words():
    for documented in (repair, repair.fit_to_targets):
        assert "`MODES`" in inspect.getdoc(documented)
