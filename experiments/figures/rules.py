"""Numbers of the rows on rules without labels: what they do on real shifts, and their constants."""

from typing import Any

import numpy as np

from experiments.figures.words import fixed, listed, supported
from experiments.theorem_class import within_two_errors

WITHOUT = "experiments/repair/without_labels.json.gz"
CHOSEN = "experiments/repair/choose_rule.json"
THEOREM = "experiments/repair/theorem_class.json.gz"
# The tasks that the constants of `bold` were chosen on, and one that came later.
KNOWN, UNSEEN = ("portal", "newsgroups", "sentiment", "digits16"), "fashion_c"
_OTHERS = {
    "neighbours": "neighbours alone",
    "average_threshold": "average threshold",
    "difference_of_confidences": "difference of confidences",
    "separability": "separability (PAD2)",
    "configuration_balanced": "configuration balance",
}
_SHOWN = ("temperature", "safe", "bold", "oracle")
Found = dict[str, Any]


def _mean(tasks: Found, rule: str, names: tuple[str, ...] = KNOWN) -> float:
    return float(np.mean([tasks[name]["summary"][rule]["shifted"] for name in names]))


def _closed(tasks: Found, rule: str, names: tuple[str, ...] = KNOWN) -> str:
    inside, ours, best = (_mean(tasks, x, names) for x in ("temperature", rule, "oracle"))
    return f"{100 * (inside - ours) / (inside - best):.0f} %"


def _harm(tasks: Found, rule: str, names: tuple[str, ...] = KNOWN) -> str:
    """The greatest harm of a split that is no hard subset."""
    worst = max(tasks[name]["summary"][rule]["worst_harm"] for name in names)
    return fixed(worst, sign=True)


def modes(found: Found) -> str:
    """Row: the two modes on the tasks whose shifts the constants of one were chosen on.

    Args:
        found: of `experiments.repair_without_labels`.
    """
    tasks = found["tasks"]
    parts = [f"{name} {listed(_mean(tasks, x, (name,)) for x in _SHOWN)}" for name in KNOWN]
    return (
        "shifted ECE of the temperature in distribution, of safe, of bold, of the best "
        f"temperature: {'; '.join(parts)}. Mean {listed(_mean(tasks, x) for x in _SHOWN)}: safe "
        f"closes {_closed(tasks, 'safe')} of the gap, bold {_closed(tasks, 'bold')}; greatest harm "
        f"of a split that is no hard subset {_harm(tasks, 'safe')} and {_harm(tasks, 'bold')}"
    )


def unseen(found: Found) -> str:
    """Row: the same on a task that they were not chosen on.

    Args:
        found: of `experiments.repair_without_labels`.
    """
    tasks, one = found["tasks"], (UNSEEN,)
    worse = {}
    for name, rules in tasks[UNSEEN]["splits"].items():
        harm = float(np.mean(rules["bold"]) - np.mean(rules["temperature"]))
        if harm > 0.01 and name != "ambiguous":
            worse[name] = harm
    parts = ", ".join(f"{name} by {fixed(harm)}" for name, harm in worse.items())
    return (
        "temperature, safe, bold, best: "
        f"{listed(_mean(tasks, x, one) for x in _SHOWN)}: safe closes "
        f"{_closed(tasks, 'safe', one)}, bold {_closed(tasks, 'bold', one)}; of bold more than .01 "
        f"worse: {parts or 'no shift'}; of safe at most {_harm(tasks, 'safe', one)}"
    )


def hard_subsets(found: Found) -> str:
    """Row: what the modes do to hard subsets.

    Args:
        found: of `experiments.repair_without_labels`.
    """
    tasks = found["tasks"]
    harms = {
        name: (of["summary"]["bold"]["hard_harm"], of["summary"]["safe"]["hard_harm"])
        for name, of in tasks.items()
        if of["summary"]["bold"]["hard_harm"] is not None
    }
    supported("bold harms hard subsets", max(bold for bold, _ in harms.values()) > 0.05)
    parts = "; ".join(
        f"{name} {listed(of, sign=True)}"
        for name, of in sorted(harms.items(), key=lambda x: -x[1][0])
    )
    return f"hard subsets, bold and safe: {parts}"


def others(found: Found) -> str:
    """Row: the other rules.

    Args:
        found: of `experiments.repair_without_labels`.
    """
    tasks = found["tasks"]
    parts = ", ".join(
        f"{words} {fixed(_mean(tasks, rule))} ({_closed(tasks, rule)} of the gap, greatest harm of "
        f"a split {_harm(tasks, rule)})"
        for rule, words in _OTHERS.items()
    )
    best = min(_mean(tasks, rule) for rule in _OTHERS)
    supported("do less", best > _mean(tasks, "bold"))
    return f"mean of the four tasks: {parts}"


def chosen(found: Found) -> str:
    """Row: constants chosen on simulated shifts.

    Args:
        found: of `experiments.choose_rule`.
    """
    rules = found["rules"]
    parts = []
    for title, words in (
        ("chosen: no harm without a shift", "least error of those harmless without a shift"),
        ("chosen: no harm under any shift", "of those harmless (.01) under every simulated shift"),
    ):
        rule = rules[title]
        constants = rule["constants"]
        split, harm = max(rule["greatest_harm"].values(), key=lambda x: x[1])
        parts.append(
            f"{words}: {constants['num_neighbours']} neighbours, growth {constants['growth']:g}, "
            f"margin {constants['margin']:g}, of seeds {constants['seeds_growth']:g} and "
            f"{constants['seeds_margin']:g}: {100 * rule['closed']:.0f} % of the gap, greatest "
            f"harm of a real split {fixed(harm, sign=True)} ({split})"
        )
    shipped = rules["shipped"]
    task, (split, harm) = max(shipped["simulated_harm"].items(), key=lambda x: x[1][1])
    supported("the shipped ones are ruled out", harm > 0.01)
    errors = [rules[title]["simulated"] for title in rules]
    return (
        f"{'; '.join(parts)}; error on the simulated shifts {listed(errors)}, the last of the "
        f"shipped ones ({100 * shipped['closed']:.0f} % of the gap here), with harm of up to "
        f"{fixed(harm)} ({task}, {split})"
    )


def theorem(found: Found) -> str:
    """Row: rebalancing where theory says that it finds the targets' temperature.

    Args:
        found: of `experiments.theorem_class`.
    """
    counts = {name: within_two_errors(lines) for name, lines in found["tasks"].items()}
    near, plain, of = (sum(x) for x in zip(*counts.values(), strict=True))
    drawn = sum(map(len, found["tasks"].values()))
    supported("rebalancing finds it more often", near > plain)
    by_task = ", ".join(f"{name} {x[0]} of {x[2]}" for name, x in counts.items())
    return (
        f"within two standard errors of the oracle: rebalanced {near} of {of} ({by_task}), the "
        f"plain temperature {plain} of {of}; {drawn - of} of {drawn} found no exact balance or no "
        "optimum"
    )
