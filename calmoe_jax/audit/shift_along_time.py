"""A test for a shift of the configuration in every period, at a level that holds over all."""

from functools import partial
from typing import NamedTuple

import jax
import numpy as np

from calmoe_jax import mixture
from calmoe_jax._checks import check_at_least, check_range
from calmoe_jax.audit.evidence import spread
from calmoe_jax.audit.logs import Logs, log_arrays, take
from calmoe_jax.shift import configuration_shift_test

# Examples a side in the first test, in the second, and in one of very many relabellings.
_FIRST, _SECOND, _LEAST = 2000, 1000, 400
_FEW, _MANY = 199, 2**15
# Above this p-value of the first test there is no second.
_LOOK_AGAIN = 0.05
_MOST_PERMUTATIONS = 2**17 - 1


class Look(NamedTuple):
    """The test of one period.

    Attributes:
        p_value: of a shift from the held-out examples; `None` where it cannot be tested.
        level: the period's share of the level.
        shifted: whether the p-value is at most that.
    """

    p_value: float | None
    level: float
    shifted: bool


def spent_level(level: float, look: int, *, planned: int = 30) -> float:
    """The share of a level that a look may spend: `level K / ((K + k - 1) (K + k))`.

    The shares of infinitely many looks sum to the level, half of which is spent by the `K`-th; so
    with probability at least `1 - level` no look at data without shift raises an alarm, however
    looks depend on each other (Bonferroni).

    Args:
        level: level of all looks together, in (0, 1).
        look: number of the look, `k`, from 1.
        planned: number of looks by which half of the level is spent, `K`, at least 1.

    Example:
        >>> round(sum(spent_level(0.05, k) for k in range(1, 100_000)), 4)
        0.05
    """
    check_range("level", level, 0, 1)
    check_at_least("look", look, 1)
    check_at_least("planned", planned, 1)
    return level * planned / ((planned + look - 1) * (planned + look))


def look_for_shift(
    logs: Logs, held_out: np.ndarray, targets: np.ndarray, *, look: int, level: float
) -> Look:
    """Tests whether the configurations of a period differ from those of held-out examples.

    First with few relabellings; if the p-value is at most .05, once more with new ones, as many as
    the share of the level asks for, whose p-value is then the result. The result is a p-value too:
    to be below .05 it must be so in the second test. Of every cluster one example is in it, and at
    most 2000 on a side; 1000 in the second test, 400 where it needs more than 32,768 relabellings.

    Args:
        logs: checked logs.
        held_out: rows of the held-out examples.
        targets: rows of the period's targets.
        look: number of the period, from 1.
        level: level of all periods together.
    """
    share = spent_level(level, look)
    if logs.aggregate_only:
        return Look(None, share, False)
    p_value = _p_value(logs, held_out, targets, _FIRST, _FEW, key=0)
    if p_value is not None and p_value <= _LOOK_AGAIN:
        number = min(_MOST_PERMUTATIONS, _rounded(2 / share))
        most = _SECOND if number < _MANY else _LEAST
        p_value = _p_value(logs, held_out, targets, most, number, key=1)
    return Look(p_value, share, p_value is not None and p_value <= share)


def _rounded(number: float) -> int:
    """One less than the next power of two, so that looks share a program."""
    return (1 << int(np.ceil(np.log2(number)))) - 1


def _p_value(
    logs: Logs, held_out: np.ndarray, targets: np.ndarray, most: int, number: int, *, key: int
) -> float | None:
    own, other = (_independent(logs.clusters, rows, most) for rows in (held_out, targets))
    where = np.arange(most) < len(other)
    found = _test(
        jax.random.key(key), *log_arrays(take(logs, own)),
        *log_arrays(take(logs, np.pad(other, (0, most - len(other)), mode="edge"))), where,
        num_permutations=number,
    )  # fmt: skip
    value = float(found)
    return value if np.isfinite(value) else None


def _independent(clusters: np.ndarray, rows: np.ndarray, most: int) -> np.ndarray:
    """One example of each cluster, at random with a fixed key, evenly spread if there are more."""
    mixed = np.random.default_rng(0).permutation(rows)
    chosen = np.sort(mixed[np.unique(clusters[mixed], return_index=True)[1]])
    return chosen[spread(len(chosen), most)]


@partial(jax.jit, static_argnames="num_permutations")
def _test(
    key: jax.Array,
    own_log_probs: jax.Array,
    own_weights: jax.Array,
    log_probs: jax.Array,
    weights: jax.Array,
    where: jax.Array,
    *,
    num_permutations: int,
) -> jax.Array:
    return configuration_shift_test(
        key,
        mixture.configuration(own_log_probs, own_weights),
        mixture.configuration(log_probs, weights),
        target_where=where,
        num_permutations=num_permutations,
    ).p_value
