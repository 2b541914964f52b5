"""Rows on rules without labels: their numbers are those of the results, by plain means."""

import copy

import numpy as np
import pytest

from experiments.figures import rules, words
from experiments.theorem_class import within_two_errors

pytestmark = pytest.mark.exhaustive

WITHOUT, CHOSEN, THEOREM = (words.read(p) for p in (rules.WITHOUT, rules.CHOSEN, rules.THEOREM))


def altered(found, *path, to):
    found = copy.deepcopy(found)
    inner = found
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = to
    return found


def shifted(task, rule):
    return WITHOUT["tasks"][task]["summary"][rule]["shifted"]


def test_modes_are_means_of_the_splits_of_the_tasks():
    said = rules.modes(WITHOUT)
    inside, ours, best = (
        np.mean([shifted(task, rule) for task in rules.KNOWN])
        for rule in ("temperature", "bold", "oracle")
    )
    assert f"bold {100 * (inside - ours) / (inside - best):.0f} %" in said
    for task in rules.KNOWN:
        assert words.fixed(shifted(task, "bold")) in said
    other = altered(WITHOUT, "tasks", "portal", "summary", "bold", "worst_harm", to=0.777)
    assert "+.777" in rules.modes(other)
    assert "+.777" not in said


def test_shifts_that_get_worse_are_named():
    splits = WITHOUT["tasks"][rules.UNSEEN]["splits"]
    name = next(x for x in splits if x != "ambiguous")
    plain = np.mean(splits[name]["temperature"])
    other = altered(
        WITHOUT, "tasks", rules.UNSEEN, "splits", name, "bold", to=[float(plain) + 0.0501]
    )
    assert f"{name} by .050" in rules.unseen(other)
    assert f"{name} by .050" not in rules.unseen(WITHOUT)


def test_hard_subsets_are_in_the_order_of_the_harm():
    other = altered(WITHOUT, "tasks", "portal", "summary", "bold", "hard_harm", to=0.9)
    assert "bold and safe: portal +.900, " in rules.hard_subsets(other)
    for task in WITHOUT["tasks"]:
        other = altered(other, "tasks", task, "summary", "bold", "hard_harm", to=0.01)
    with pytest.raises(ValueError, match="not so"):
        rules.hard_subsets(other)


def test_others_must_do_less():
    other = WITHOUT
    for task in rules.KNOWN:
        other = altered(other, "tasks", task, "summary", "neighbours", "shifted", to=0.0)
    with pytest.raises(ValueError, match="not so"):
        rules.others(other)


def test_constants_chosen_on_simulated_shifts():
    title = "chosen: no harm under any shift"
    other = altered(CHOSEN, "rules", title, "closed", to=0.123)
    assert "12 % of the gap" in rules.chosen(other)
    harmless = {task: ["none", 0.0] for task in CHOSEN["rules"]["shipped"]["simulated_harm"]}
    with pytest.raises(ValueError, match="not so"):
        rules.chosen(altered(CHOSEN, "rules", "shipped", "simulated_harm", to=harmless))


def test_lines_without_a_balance_or_an_error_do_not_count():
    line = {"found": True, "rebalanced": 0.3, "rebalanced_error": 0.2, "plain": 0.5,
            "plain_error": 0.2}  # fmt: skip
    lines = [line, line | {"found": False}, line | {"plain_error": None}, line | {"plain": -0.1}]
    assert within_two_errors(lines) == (2, 1, 2)
    assert within_two_errors([]) == (0, 0, 0)


def test_the_theorem_counts_all_tasks():
    near, plain, of = np.sum([within_two_errors(x) for x in THEOREM["tasks"].values()], axis=0)
    said = rules.theorem(THEOREM)
    assert f"rebalanced {near} of {of} (" in said
    assert f"plain temperature {plain} of {of};" in said
