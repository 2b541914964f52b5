"""Numbers of the rows on the paper's study, and on hard against soft routing."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments import paper as paper_study
from experiments.commits import short_commit
from experiments.figures import repair
from experiments.figures.words import ROOT, fixed, listed, made_with, read, supported
from experiments.hard_or_soft_page import WORDS
from experiments.hard_or_soft_summary import KEPT, LOST, difference, interval
from experiments.our_study.command import ROUTINGS
from experiments.our_study.comparing import compare, on_hard, read_rows
from experiments.our_study.runs import read_runs

CORRUPTIONS = "experiments/corruptions/results.json.gz"
PAPER = "experiments/paper_study/{}-quick.json"
_MOST_GB = 12
_SHOWN = ("vanilla", "robust", "robust_released", "robust_filtered", "robust_filtered_released")
_ROBUST = tuple(name.removesuffix("_released") for name in paper_study.RELEASED)
# What the rows say, by results: released forms whose error as trained is smaller than the plain
# mixture's beyond the interval; robust methods of which it is larger once both have a temperature;
# forms of `robust` of which it is smaller once both are repaired.
_CLEAR = {"cifar10h": ("robust_filtered_released",), "pacs_sketch": paper_study.RELEASED}
_WORSE = {"cifar10h": (), "pacs_sketch": ("fgr_robust", "fgr_robust_released")}
_REPAIRED = {"cifar10h": (), "pacs_sketch": ("robust_released",)}
_PARTS = ("moved", "changed", "remainder")


def hard_or_soft() -> str:
    """Errors under shift by routing, task by task, and the shares of shifts below 5 %."""
    found = read(CORRUPTIONS)["summary"]
    parts = []
    for task, rows in found.items():
        at = {(r["routing"], r["calibrator"]): r for r in rows}
        hard, dense = at["hard", "per_expert"], at["dense", "per_expert"]
        supported("the prediction does not hold", not (hard["ece"] < KEPT and dense["ece"] > LOST))
        pairs = [difference(rows, c, r) for c in WORDS for r in ROUTINGS if r != "hard"]
        supported("hard is nowhere better beyond the interval", all(p.high >= 0 for p in pairs))
        errors = "; ".join(
            f"{words} {listed(at[routing, name]['ece'] for routing in ROUTINGS)}"
            for name, words in WORDS.items()
        )
        kept = listed((at[r, "temperature"]["kept"] for r in ROUTINGS), 2)
        within = listed((at[r, "temperature"]["within_floor"] for r in ROUTINGS), 2)
        parts.append(
            f"{task} ({rows[0]['shifts']} shifts): {errors}; hard less dense with one temperature "
            f"{interval(difference(rows, 'temperature'))}; under .05 with one temperature "
            f"on a share of {kept}, within the noise floor (mean "
            f"{fixed(at['hard', 'temperature']['floor'])}) on {within}"
        )
    return f"mean ECE under shift of dense, top-2, hard routing. {'. '.join(parts)}"


def drift() -> str:
    """Parts of the change of hard routing's gap: configurations move, or P(right | S) changes."""
    found = read(CORRUPTIONS)["summary"]
    parts = []
    for task, rows in found.items():
        hard = next(r for r in rows if (r["routing"], r["calibrator"]) == ("hard", "per_expert"))
        supported("these shifts change P(right given S)", hard["changed"] > 5 * abs(hard["moved"]))
        parts.append(
            f"{task} {fixed(hard['gap_before'], sign=True)} to {fixed(hard['gap'], sign=True)}, "
            f"of the change {listed((hard[x] for x in _PARTS), sign=True)}"
        )
    return (
        "mean gap of hard routing with calibrated experts, in distribution and under shift; of the "
        "change because configurations move; because the gap given the configuration changes; in "
        f"configurations not seen before: {'; '.join(parts)}"
    )


def our_study() -> str:
    """What the study says of objectives, routing and repair; the rest is on its page."""
    rows = read_rows(ROOT / "experiments" / "our_study")
    tasks = len({row.task for row in rows})
    wanted = {
        "plain, as trained": ("dense", "vanilla", "none"),
        "with a temperature": ("dense", "vanilla", "temperature"),
        "robust with a temperature": ("dense", "robust", "temperature"),
        "hard-routed with a temperature": ("hard", "vanilla", "temperature"),
        "safe": ("dense", "vanilla", "safe"),
        "bold": ("dense", "vanilla", "bold"),
        "deep ensemble with a temperature": ("dense", "deep_ensemble", "temperature"),
    }
    found = {c.combination: c for c in compare(rows, lambda c: c in wanted.values())}
    plain = wanted["with a temperature"]
    after = compare(rows, lambda c: c[2] == "temperature" and c != plain, plain)
    supported("no objective and no routing is better", not any(c.high < 0 for c in after))
    (bold,) = compare(rows, lambda c: c == wanted["bold"], plain)
    supported("bold is better", bold.high < 0)
    hard = on_hard(rows, wanted["bold"], plain)
    supported("bold harms hard subsets", max(hard.values()) > 0.05)
    parts = [f"{words} {fixed(found[c].ece)}" for words, c in wanted.items()]
    harm = ", ".join(f"{t} {fixed(hard[t], sign=True)}" for t in sorted(hard, key=hard.get)[::-1])
    return (
        f"ECE under shift, mean over {tasks} tasks: {', '.join(parts)}; of {len(after)} objectives "
        f"and routings with a temperature the least {fixed(after[0].ece)} "
        f"({fixed(after[0].difference, sign=True)}, {fixed(after[0].low, sign=True)} to "
        f"{fixed(after[0].high, sign=True)}); bold on hard subsets: {harm}"
    )


def our_study_commit() -> str:
    """The commits that the cells of each task were computed at, with the tasks if they differ."""
    tasks: dict[str, list[str]] = {}
    for run in read_runs(ROOT / "experiments" / "our_study"):
        commits = ", ".join(short_commit(commit) for commit in run.commits)
        tasks.setdefault(commits, []).append(run.task)
    if len(tasks) == 1:
        return next(iter(tasks))
    return ", ".join(f"{commit} ({', '.join(names)})" for commit, names in tasks.items())


def paper(name: str) -> str:
    """The published error and ours of some methods, on the subset that was published."""
    found = read(PAPER.format(name))
    target = paper_study.target_of(found)
    at = {(r["method"], r["calibrator"]): r for r in found["rows"] if r["split"] == target}
    published = paper_study.PUBLISHED[found["dataset"]]
    parts = []
    for method in _SHOWN:
        errors = [_mean(at[method, c], "ece") for c in ("none", "temperature", "safe")]
        gap = _mean(at[method, "none"], "confidence_gap")
        known = f"published {fixed(published[method])}, " if method in published else ""
        parts.append(
            f"{method} {listed(errors)} ({known}gap {fixed(gap, sign=True)}, accuracy "
            f"{fixed(_mean(at[method, 'none'], 'accuracy'))})"
        )
    ends = {
        (c["method"], c["calibrator"]): (c["low"], c["high"])
        for c in found["intervals"]
        if c["split"] == target
    }
    _bears_out(name, ends)
    inside = next(n for n, x in found["splits"].items() if x["kind"] == "id")
    errors = {
        r["method"]: _mean(r, "ece")
        for r in found["rows"]
        if (r["split"], r["calibrator"]) == (inside, "none")
    }
    supported(
        "in distribution they are far less calibrated",
        all(errors[m] > 3 * errors["vanilla"] for m in (*_ROBUST, *paper_study.RELEASED)),
    )
    size = found["size"]
    return (
        f"{found['dataset']}, `{target}` ({found['splits'][target]['n']:,} examples), "
        f"{size['images']:,} training images, width {size['width']}, {size['epochs']} epochs, "
        f"{size['seeds']} seeds; ECE as trained, with a temperature, repaired (safe): "
        f"{'; '.join(parts)}; both repaired, robust less vanilla "
        f"{' to '.join(fixed(x, sign=True) for x in ends['robust', 'safe'])}, robust_released "
        f"{' to '.join(fixed(x, sign=True) for x in ends['robust_released', 'safe'])}"
    )


def _bears_out(name: str, ends: dict[tuple[str, str], tuple[float, float]]) -> None:
    """Raises where the row's words on the objectives are not what the intervals show."""
    every = (*_ROBUST, *paper_study.RELEASED)

    def smaller(calibrator: str, methods: Sequence[str]) -> tuple[str, ...]:
        return tuple(m for m in methods if ends[m, calibrator][1] < 0)

    larger = tuple(m for m in every if ends[m, "temperature"][0] > 0)
    for said, found, expected in (
        ("these cut the error as trained", smaller("none", every), (*_ROBUST, *_CLEAR[name])),
        ("with a temperature these are better", smaller("temperature", every), ()),
        ("with a temperature these are worse", larger, _WORSE[name]),
        (
            "once repaired these are better",
            smaller("safe", ("robust", "robust_released")),
            _REPAIRED[name],
        ),
    ):
        supported(f"{said}: {', '.join(expected) or 'none'}", found == expected)


def _mean(row: dict[str, Any], metric: str) -> float:
    return float(np.mean(row[metric]))


def memory() -> str:
    """The most memory that each study held, of those whose results say so."""
    files = {
        "our study": [run.peak_gb for run in read_runs(ROOT / "experiments" / "our_study")],
        **{
            name: [made_with(path).get("peak_gb")]
            for name, path in (
                ("hard or soft", CORRUPTIONS),
                ("repair on features of images", repair.IMAGES),
                ("repair end to end", repair.END_TO_END),
                ("the paper's study, cifar10h", PAPER.format("cifar10h")),
                ("the paper's study, pacs", PAPER.format("pacs_sketch")),
            )
        },
    }
    most = {name: max(said) for name, peaks in files.items() if (said := [x for x in peaks if x])}
    supported("every study keeps below the limit", max(most.values()) < _MOST_GB)
    return (
        f"Most memory of a process, where its results say so (limit {_MOST_GB} GB): "
        f"{', '.join(f'{name} {peak:.1f} GB' for name, peak in most.items())}."
    )
