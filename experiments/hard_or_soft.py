"""Does hard routing keep calibration under corruptions where soft routing loses it?

`python -m experiments.hard_or_soft [--tasks TASK ...] [--data-dir DIR] [--runs DIR] [--out DIR]
[--render] [--seeds N] [--epochs N]`

A prediction made outside the paper: hard-routed mixtures keep ECE under 5 % on CIFAR-10-C where
soft-routed ones degrade past 15 %. Here the plain mixture of each task is trained with dense, top-2
and hard routing (those of `experiments.our_study`, whose trainings are used if they are there), and
scored on every corruption and severity as trained, with a temperature, and with every expert's
temperature fitted on its view. cifar10c is this machine's size: features of a small frozen ResNet
(see `experiments.features`). Beside each error stands what it would be of calibrated predictions on
as many examples (see `experiments.noise_floor`), and how far the shift changes P(right | S), which
is what theory lets hard routing withstand or not (see `experiments.drift`).
"""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from calmoe_jax import calibration, mixture
from calmoe_jax._files import write_whole
from calmoe_jax.calibration.calibrators import (
    fit_expert_temperatures,
    fit_temperature,
    scale_log_probs,
)
from calmoe_jax.data import Split
from calmoe_jax.shift.repair import usable_temperature
from calmoe_jax.study.evaluation import Outputs, predict
from experiments.drift import Seen, measure_drift
from experiments.hard_or_soft_page import draw, page, table
from experiments.hard_or_soft_summary import CALIBRATORS, DIGITS, summarise, verdict
from experiments.noise_floor import noise_floor
from experiments.our_study.cells import Setting, trained_mixture
from experiments.our_study.command import ROUTINGS, read, settings, study_parser
from experiments.trained import write_results

TASKS = ("cifar10c", "digits16", "fashion_c")
FOLDER, RESULTS = Path(__file__).parent / "corruptions", "results.json.gz"


class _Fits(NamedTuple):
    """Temperatures of each seed, of the aggregate and of the experts, by calibrator."""

    aggregate: dict[str, jax.Array]
    experts: dict[str, jax.Array]


def main() -> None:
    """Trains, scores, prints and draws."""
    parser = study_parser(__doc__, TASKS)
    parser.add_argument("--render", action="store_true", help="page and picture of old results")
    arguments = parser.parse_args()
    if arguments.render:
        render(arguments.out or FOLDER)
        return
    found: dict[str, Any] = {"epochs": arguments.epochs, "tasks": {}}
    for setting in settings(arguments):
        found["tasks"][setting.task.name] = rows_of(setting)
    found["summary"] = {name: summarise(rows) for name, rows in found["tasks"].items()}
    found["verdict"] = verdict(found["summary"])
    print(table(found["summary"]))
    print("\n" + "\n".join(found["verdict"]))
    if arguments.out:
        write_results(arguments.out / RESULTS, **found)
        render(arguments.out)


def render(folder: Path) -> None:
    """Writes page and picture of the results in a folder.

    Args:
        folder: with `results.json.gz`.
    """
    found = read(folder / RESULTS)
    write_whole(folder / "README.md", page(found))
    write_whole(folder / "severity.png", draw(found))


def rows_of(setting: Setting) -> list[dict[str, Any]]:
    """A row for each routing, calibrator and split: errors, floors and drifts of every seed.

    Args:
        setting: of the task.
    """
    rows = []
    for routing in (bar := tqdm(ROUTINGS, unit="routing", disable=None)):
        bar.set_description(f"{setting.task.name}, {routing}")
        trained = trained_mixture(setting, routing, "vanilla")
        held_out = predict(trained, setting.task.calibration.inputs)
        labels = setting.task.calibration.labels
        fits = _fit(held_out, jnp.asarray(labels))
        seen = {c: _seen(held_out, fits, c, labels) for c in CALIBRATORS}
        for split in setting.task.evaluation:
            if split.kind == "hard":
                continue
            outputs = predict(trained, split.inputs)
            for calibrator in CALIBRATORS:
                rows.append(
                    _row(split, routing, calibrator, seen[calibrator],
                         _seen(outputs, fits, calibrator, split.labels))
                )  # fmt: skip
    return rows


def _row(
    split: Split, routing: str, calibrator: str, held_out: list[Seen], targets: list[Seen]
) -> dict[str, Any]:
    drifts = [measure_drift(p, q) for p, q in zip(held_out, targets, strict=True)]
    bins = [calibration.reliability_bins(x.confidence, x.correct) for x in targets]
    floors = [noise_floor(x.confidence) for x in targets]

    def rounded(values: Any) -> list[float]:
        return np.round([float(x) for x in values], DIGITS).tolist()

    return {
        "routing": routing,
        "calibrator": calibrator,
        "split": split.name,
        "kind": split.kind,
        "series": split.series,
        "severity": split.position,
        "ece": rounded(calibration.calibration_error(b) for b in bins),
        "floor": rounded(x.mean for x in floors),
        "floor_high": rounded(x.high for x in floors),
        "accuracy": rounded(x.correct.mean() for x in targets),
        "gap_before": rounded(d.gap_before for d in drifts),
        "gap": rounded(d.gap_after for d in drifts),
        **{
            name: rounded(getattr(d, name) for d in drifts)
            for name in ("moved", "changed", "remainder", "size", "unseen")
        },
    }


@jax.jit
def _fit(outputs: Outputs, labels: jax.Array) -> _Fits:
    experts, weights, _ = outputs
    log_probs = jax.vmap(mixture.mix_log_probs)(experts, weights)
    of_aggregate = jax.vmap(lambda x: fit_temperature(x, labels))(log_probs)
    of_experts = jax.vmap(lambda x, r: fit_expert_temperatures(x, labels, routing_weights=r))(
        experts, weights
    )
    one, ones = jnp.ones(len(experts)), jnp.ones(experts.shape[:1] + experts.shape[2:3])
    inside, views = usable_temperature(of_aggregate), usable_temperature(of_experts)
    return _Fits(
        {"none": one, "temperature": inside, "per_expert": one},
        {"none": ones, "temperature": ones, "per_expert": views},
    )


@jax.jit
def _top(outputs: Outputs, aggregate: jax.Array, experts: jax.Array) -> tuple[jax.Array, ...]:
    def one(log_probs: Any, weights: Any, aggregate: Any, experts: Any) -> tuple[jax.Array, ...]:
        scaled = scale_log_probs(log_probs, experts[None])
        mixed = scale_log_probs(mixture.mix_log_probs(scaled, weights), aggregate[None])
        probs = jnp.exp(mixed)
        return jnp.argmax(weights, axis=-1), jnp.argmax(probs, axis=-1), jnp.max(probs, axis=-1)

    return jax.vmap(one)(outputs.expert_log_probs, outputs.routing_weights, aggregate, experts)


def _seen(outputs: Outputs, fits: _Fits, calibrator: str, labels: np.ndarray) -> list[Seen]:
    """The examples as every seed sees them."""
    found = _top(outputs, fits.aggregate[calibrator], fits.experts[calibrator])
    by_seed = zip(*(np.asarray(x) for x in found), strict=True)
    return [Seen(e, p, np.minimum(c, 1), p == labels) for e, p, c in by_seed]


if __name__ == "__main__":
    main()
