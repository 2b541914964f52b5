"""Is a temperature from rebalancing as good as one fitted with labels, where theory says so?

`python -m experiments.theorem_class --data-dir DIR [--tasks NAME ...] [--partitions N]
[--out FILE]`

Where the distribution of labels given the routing configuration S does not change and `log dQ/dP`
is linear in the balanced features, configuration balance finds the targets' own temperature. Here
that holds by construction, on real data: the in-distribution test examples of a task are divided at
random into labelled held-out examples and targets, and targets are weighted by `exp(s z)`, with `z`
a feature of S and `s` so large that their effective sample size is half of their number. The
rebalanced temperature, for which no label of a target is used, is compared with the oracle, which
is fitted on the targets' labels. The standard error of their difference is from a bootstrap of the
clusters on both sides, which repeats the balance too. All tilts of one partition give nearly the
same differences, so there are several partitions for each network.
"""

import itertools
from collections.abc import Iterable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import brentq
from tqdm import tqdm

from calmoe_jax import calibration, mixture, shift
from calmoe_jax.data import Task, resolve_task
from calmoe_jax.shift import repair
from calmoe_jax.study import RunConfig
from experiments.trained import experiment_parser, sample, train_vanilla, write_results

NUM_REPLICATES = 100
# Columns of `configuration_features`, and which way they move.
TILTS = {
    "less confident": (0, -1.0),
    "more disagreement": (5, 1.0),
    "unsure router": (6, 1.0),
    "first expert's load": (8, 1.0),
}


class Side(NamedTuple):
    """Examples as one seed sees them."""

    features: jax.Array
    log_probs: jax.Array
    labels: jax.Array
    clusters: jax.Array


class Comparison(NamedTuple):
    """Logarithms of temperatures, less that of the oracle, and their standard errors.

    Attributes:
        rebalanced: of the held-out examples under balancing weights.
        plain: of the held-out examples as they are.
        rebalanced_error: standard error of the first.
        plain_error: standard error of the second.
        effective_share: effective share of the held-out examples.
        found: whether the balance was exact and all temperatures have an optimum.
    """

    rebalanced: jax.Array
    plain: jax.Array
    rebalanced_error: jax.Array
    plain_error: jax.Array
    effective_share: jax.Array
    found: jax.Array


@partial(jax.jit, static_argnames="num_replicates")
def compare(
    key: jax.Array,
    held_out: Side,
    targets: Side,
    tilt: jax.Array,
    *,
    num_replicates: int,
) -> Comparison:
    """Compares the temperatures of one seed under one tilt.

    Args:
        key: random key.
        held_out: labelled held-out examples.
        targets: targets, whose labels are used by the oracle alone.
        tilt: logarithm of each target's weight.
        num_replicates: replicates of the bootstrap.
    """

    def differences(counts: jax.Array, target_counts: jax.Array) -> tuple[jax.Array, ...]:
        weights = target_counts[targets.clusters] * jnp.exp(tilt - jnp.max(tilt))
        ours = counts[held_out.clusters]
        solution = shift.configuration_balance(
            held_out.features, targets.features, weights=ours, target_weights=weights, ridge=0.0
        )
        fits = [
            calibration.calibrators.fit_temperature(side.log_probs, side.labels, weights=w)
            for side, w in (
                (held_out, jnp.exp(solution.log_weights)),
                (held_out, ours),
                (targets, weights),
            )
        ]
        rebalanced, plain, oracle = (jnp.log(fit.temperature) for fit in fits)
        found = solution.feasible & solution.converged
        for fit in fits:
            found &= fit.converged
        share = solution.effective_sample_size / len(held_out.labels)
        return rebalanced - oracle, plain - oracle, share, found

    sides = held_out, targets
    # clusters are numbered up to the number of examples; most numbers may have none
    numbers = [len(side.labels) for side in sides]
    exist = [
        jnp.zeros(n, bool).at[side.clusters].set(True)
        for n, side in zip(numbers, sides, strict=True)
    ]

    def replicate(keys: jax.Array) -> tuple[jax.Array, ...]:
        return differences(
            *(
                calibration.intervals.bootstrap_counts(k, n, where=e, num_replicates=1)[0]
                for k, n, e in zip(keys, numbers, exist, strict=True)
            )
        )

    rebalanced, plain, share, found = differences(*(jnp.ones(n) for n in numbers))
    keys = jax.random.split(key, (num_replicates, 2))
    drawn, drawn_plain, _, drawn_found = jax.lax.map(replicate, keys)
    spread = [jnp.std(x, where=drawn_found) for x in (drawn, drawn_plain)]
    return Comparison(rebalanced, plain, *spread, share, found)


def tilt_to_share(values: np.ndarray, share: float) -> np.ndarray:
    """`s` times the values, with `s > 0` such that `exp` of it has that effective share.

    Args:
        values: a feature of each target.
        share: effective share, in (0, 1), above the share of the largest value.
    """
    centred = np.float64(values) - np.max(values)

    def above(log_strength: float) -> float:
        weights = np.exp(np.exp(log_strength) * centred)
        return float(weights.sum() ** 2 / (weights**2).sum() / len(weights)) - share

    return np.exp(brentq(above, -20, 20)) * centred


def measure(
    task: Task,
    outputs: repair.Sample,
    labels: np.ndarray,
    clusters: np.ndarray,
    *,
    partitions: int = 1,
    share: float = 0.5,
    num_replicates: int,
) -> list[dict[str, Any]]:
    """One line for each seed, partition and tilt, of predictions for in-distribution examples."""
    lines = []
    names = np.unique(clusters)
    seeds = range(outputs.routing_weights.shape[0])
    for seed, partition in itertools.product(seeds, range(partitions)):
        rng = np.random.default_rng([seed, partition])
        ours = np.isin(clusters, rng.permutation(names)[: len(names) // 2])
        config = mixture.configuration(*(x[seed] for x in outputs))
        features = mixture.configuration_features(config)
        held_out, targets = (
            Side(
                features[rows],
                config.log_probs[rows],
                jnp.asarray(labels[rows], jnp.int32),
                jnp.asarray(np.unique(clusters[rows], return_inverse=True)[1], jnp.int32),
            )
            for rows in (ours, ~ours)
        )
        for name, (column, sign) in tqdm(
            TILTS.items(), unit="tilt", disable=None, desc=f"{task.name}, seed {seed}, {partition}"
        ):
            tilt = tilt_to_share(sign * np.asarray(targets.features[:, column]), share)
            found = compare(
                jax.random.key(seed), held_out, targets, jnp.asarray(tilt, jnp.float32),
                num_replicates=num_replicates,
            )  # fmt: skip
            values = {k: float(v) if np.isfinite(v) else None for k, v in found._asdict().items()}
            line = {"seed": seed, "partition": partition, "tilt": name}
            lines.append({**line, **values, "found": bool(found.found)})
    return lines


def known(lines: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The lines with a balance and an error, which is missing where no replicate found a balance.

    Args:
        lines: as from `measure`.
    """
    return [x for x in lines if x["found"] and None not in x.values()]


def within_two_errors(lines: list[dict[str, Any]]) -> tuple[int, int, int]:
    """How often each temperature is within two standard errors of the oracle's.

    Args:
        lines: as from `measure`.

    Returns:
        The rebalanced ones, the plain ones, and of how many: those with a balance and an error.
    """
    some = known(lines)
    rebalanced, plain = (
        sum(abs(x[rule]) <= 2 * x[f"{rule}_error"] for x in some)
        for rule in ("rebalanced", "plain")
    )
    return rebalanced, plain, len(some)


def main() -> None:
    """Measures, prints a table, and writes everything."""
    parser = experiment_parser(__doc__)
    parser.add_argument("--share", type=float, default=0.5, help="effective share of the targets")
    parser.add_argument("--partitions", type=int, default=4, help="random ones, for each network")
    arguments = parser.parse_args()
    everything: dict[str, Any] = {}
    title = "within two standard errors of the oracle"
    print(
        f"{'task, tilt':<36}{'rebalanced':>12}{'plain':>8}  of   |log T - log T_oracle|, and error"
    )
    counts = np.zeros(3, int)
    for name in arguments.tasks:
        task = resolve_task(name, arguments.data_dir)
        trained = train_vanilla(task, RunConfig(), arguments.runs / task.name)
        split = task.evaluation[0]  # the one in distribution
        outputs = sample(trained, split.inputs)
        lines = measure(
            task, outputs, split.labels, split.clusters, partitions=arguments.partitions,
            share=arguments.share, num_replicates=NUM_REPLICATES,
        )  # fmt: skip
        everything[task.name] = lines
        for tilt in TILTS:
            some = known(x for x in lines if x["tilt"] == tilt)
            near = within_two_errors(some)
            counts += near
            sizes = "".join(
                f"{np.mean([abs(x[r]) for x in some]):8.3f}" if some else f"{'-':>8}"
                for r in ("rebalanced", "plain", "rebalanced_error")
            )
            print(f"{task.name + ', ' + tilt:<36}{near[0]:12}{near[1]:8}{near[2]:4}{sizes}")
    print(f"{title}: rebalanced {counts[0]}, plain {counts[1]}, of {counts[2]}")
    if arguments.out:
        write_results(arguments.out, tasks=everything)


if __name__ == "__main__":
    main()
