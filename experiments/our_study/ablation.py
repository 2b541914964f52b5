"""Ablation of the adversary's strength, the warm-up, the number of experts, and k.

`python -m experiments.our_study.ablation [--tasks TASK ...] [--data-dir DIR] [--runs DIR]
[--out FILE] [--seeds N] [--epochs N] [--at-once N]`

One setting is changed at a time: eta and the warm-up of Robust with dense routing, the number of
experts of the plain mixture with dense and with hard routing, and k of top-k routing.
"""

import argparse
import dataclasses
from functools import partial
from typing import Any, NamedTuple

from calmoe_jax._signals import ending_on_signals
from experiments.our_study.at_once import add_option, run_at_once
from experiments.our_study.cells import Setting, cell
from experiments.our_study.command import settings, study_parser
from experiments.trained import write_results

TASKS = ("portal", "newsgroups")
SHOWN = ("none", "temperature", "safe")


class Change(NamedTuple):
    """One changed setting.

    Attributes:
        name: what is changed.
        value: to what; of the warm-up the share of all epochs.
        routing: routing kind.
        method: method that is trained.
    """

    name: str
    value: float
    routing: str
    method: str


CHANGES = (
    *(Change("eta", x, "dense", "robust") for x in (0.5, 1.0, 2.0, 4.0, 8.0)),
    *(Change("warm-up", x, "dense", "robust") for x in (0.0, 0.2, 0.4, 0.6, 0.8)),
    *(Change("experts", x, r, "vanilla") for r in ("dense", "hard") for x in (2, 4, 8, 16)),
    *(Change("k", x, "top_k", "vanilla") for x in (1, 2, 3, 4)),
)


def changed(setting: Setting, change: Change) -> Setting:
    """The setting with one change, in a folder of its own.

    Args:
        setting: of the task.
        change: what is changed.
    """
    model, train = setting.model, setting.train
    if change.name == "eta":
        train = dataclasses.replace(train, eta=change.value)
    elif change.name == "warm-up":
        train = dataclasses.replace(train, warmup_epochs=round(change.value * train.epochs))
    elif change.name == "experts":
        model = dataclasses.replace(model, experts=int(change.value))
    else:
        model = dataclasses.replace(model, k=int(change.value))
    folder = setting.folder / "ablation" / f"{change.name}-{change.value:g}"
    return setting._replace(model=model, train=train, folder=folder)


def row_of(change: Change, found: dict[str, Any]) -> dict[str, Any]:
    """Means over seeds of a cell: accuracy, and the error by calibrator.

    Args:
        change: what was changed.
        found: the cell.
    """
    at = {(r["calibrator"], r["kind"]): r for r in found["rows"]}

    def mean(calibrator: str, kind: str, metric: str) -> float:
        values = at[calibrator, kind][metric]
        return round(sum(values) / len(values), 4)

    return change._asdict() | {
        "accuracy": mean("none", "shift", "accuracy"),
        "id_accuracy": mean("none", "id", "accuracy"),
        "confidence_gap": mean("none", "shift", "confidence_gap"),
        "id_ece": mean("none", "id", "ece"),
        **{f"ece_{c}": mean(c, "shift", "ece") for c in SHOWN},
    }


def table(rows: list[dict[str, Any]]) -> str:
    """The rows of a task in Markdown.

    Args:
        rows: of one task.
    """
    lines = [
        "| changed | to | routing | method | accuracy, shift | gap, shift | ECE in distribution | "
        + " | ".join(f"shift, {c}" for c in SHOWN) + " |",
        "|---" * (7 + len(SHOWN)) + "|",
    ]  # fmt: skip
    for r in rows:
        errors = " | ".join(f"{r[f'ece_{c}']:.3f}" for c in SHOWN)
        lines.append(
            f"| {r['name']} | {r['value']:g} | {r['routing']} | {r['method']} | "
            f"{r['accuracy']:.3f} | {r['confidence_gap']:+.3f} | {r['id_ece']:.3f} | {errors} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Runs the changes, task by task, and prints and writes them."""
    parser = study_parser(__doc__, TASKS)
    add_option(parser)
    arguments = parser.parse_args()
    with ending_on_signals():
        _run(arguments)


def _run(arguments: argparse.Namespace) -> None:
    found: dict[str, Any] = {
        "epochs": arguments.epochs,
        "seeds": arguments.seeds,
        "tasks": {},
    }
    for setting in settings(arguments):
        name = setting.task.name
        number = arguments.at_once
        of_change = partial(cell, at_once=number)
        made = run_at_once(
            [partial(of_change, changed(setting, c), c.routing, c.method) for c in CHANGES],
            number, unit="setting", title=name,
        )  # fmt: skip
        found["tasks"][name] = [row_of(*one) for one in zip(CHANGES, made, strict=True)]
        print(f"\n{name}\n\n{table(found['tasks'][name])}")
    if arguments.out:
        write_results(arguments.out, **found)


if __name__ == "__main__":
    main()
