"""The experiment on repairs without labels: a small run, and what it says of harm."""

import numpy as np
import pytest
from experimenting import run_small, tiny_task
from small import small_task

from experiments import repair_without_labels

pytestmark = pytest.mark.exhaustive


@pytest.mark.exhaustive
@pytest.mark.slow
def test_a_small_run(tmp_path, monkeypatch, capsys):
    found = run_small(repair_without_labels, tmp_path, monkeypatch)["tasks"]["portal"]
    rules = repair_without_labels.RULES
    assert set(found["splits"]) == {split.name for split in tiny_task().evaluation}
    for errors in found["splits"].values():
        assert set(errors) == set(rules)
        assert all(len(of_seeds) == 2 for of_seeds in errors.values())
    np.testing.assert_allclose(
        found["summary"]["safe"]["shifted"],
        np.mean(found["splits"]["late"]["safe"]),
    )
    printed = capsys.readouterr().out
    assert all(printed.count(f"\n{rule:<28}") == 2 for rule in rules)


def test_harm_is_above_the_temperature_and_hard_subsets_are_separate():
    errors = {"test": 0.01, "early": 0.1, "late": 0.3, "ambiguous": 0.4}
    measured = {
        split: {rule: [error, error] for rule in repair_without_labels.RULES}
        for split, error in errors.items()
    }
    measured["late"]["safe"] = [0.35, 0.45]
    measured["ambiguous"]["safe"] = [0.9, 0.9]
    found = repair_without_labels.summarise(small_task(), measured)["safe"]
    assert found == {
        "shifted": pytest.approx(0.25),
        "in_distribution": pytest.approx(0.01),
        "worst_split": "late",
        "worst_harm": pytest.approx(0.1),
        "hard_harm": pytest.approx(0.5),
    }
