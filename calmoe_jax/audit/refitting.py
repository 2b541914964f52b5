"""Calibrators fitted anew to labelled targets of logs, for a file that deploys them."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from calmoe_jax import shift
from calmoe_jax.audit.answers import Drawn
from calmoe_jax.audit.evidence import HeldOut, in_blocks, spread
from calmoe_jax.audit.logs import Logs, log_arrays, take
from calmoe_jax.audit.scoring import plain
from calmoe_jax.shift.few_labels._draw_values import steps_of
from calmoe_jax.shift.repair import REFITS, Sample
from calmoe_jax.shift.repair.refit import mixed_at, refit_to_draws

# Loss of the Brier score that the labels must exclude.
TOLERANCE = 0.01
# Of more held-out examples or targets so many are balanced, evenly spread.
_MOST_BALANCED = 20_000


class Deployed(NamedTuple):
    """What is deployed: experts at their temperatures are mixed, the aggregate is at another.

    Attributes:
        temperature: of the aggregate.
        expert_temperatures: of the experts; `None` if they stay as they are.
        confidence: mean confidence on the targets then.
        refit: what the labels showed of the refits; `None` if nothing was fitted anew.
    """

    temperature: float
    expert_temperatures: list[float] | None
    confidence: float
    refit: dict[str, Any] | None = None


def refit(
    logs: Logs,
    known: HeldOut,
    rows: np.ndarray,
    drawn: Drawn,
    chances: np.ndarray | None,
    *,
    level: float,
) -> Deployed:
    """Fits calibrators to half of the labels, and takes one that the other half confirms.

    Args:
        logs: checked logs.
        known: the held-out examples.
        rows: rows of the targets in the logs.
        drawn: their labels, in the order of their draws.
        chances: chance of each target to be drawn; `None` if they are equal.
        level: probability that what is deployed is not worse than the held-out temperature by more
            than `TOLERANCE`.
    """
    own = known.rows[spread(len(known.rows), _MOST_BALANCED)]
    others = rows[spread(len(rows), _MOST_BALANCED)]
    found = _refit(
        Sample(*log_arrays(take(logs, own))),
        jnp.asarray(logs.labels[own], jnp.int32),
        Sample(*log_arrays(take(logs, others))),
        Sample(*log_arrays(take(logs, rows[drawn.units]))),
        jnp.asarray(drawn.labels[drawn.units], jnp.int32),
        jnp.asarray(drawn.units, jnp.int32),
        jnp.ones(len(rows)) if chances is None else jnp.asarray(chances, jnp.float32),
        jnp.float32(known.temperature),
        level=level,
    )
    after = in_blocks(logs, rows, _confidence, found.expert_temperatures, found.temperature)
    of_experts = np.asarray(found.expert_temperatures, np.float64)
    temperature, chosen = float(found.temperature), int(found.chosen)
    if logs.aggregate_only:  # it stands as the one expert
        temperature *= float(of_experts[0])
        of_experts = np.ones(1)
    return Deployed(
        temperature,
        of_experts.tolist() if (of_experts != 1).any() else None,
        float(jnp.mean(after)),
        {
            "chosen": REFITS[chosen] if chosen >= 0 else None,
            "tolerance": TOLERANCE,
            "improvement": dict(zip(REFITS, plain(found.improvement), strict=True)),
            "lower": dict(zip(REFITS, plain(found.lower), strict=True)),
        },
    )


@partial(jax.jit, static_argnames="level")
def _refit(
    held_out: Sample, labels: jax.Array, targets: Sample, theirs: Sample, given: jax.Array,
    drawn: jax.Array, chances: jax.Array, temperature: jax.Array, *, level: float,
) -> shift.repair.Refit:  # fmt: skip
    steps = steps_of(jnp.ones(chances.shape, bool), chances, drawn)
    return refit_to_draws(
        held_out, labels, targets, theirs, given, steps, temperature=temperature,
        tolerance=TOLERANCE, level=level,
    )  # fmt: skip


def _confidence(
    log_probs: jax.Array, weights: jax.Array, of_experts: jax.Array, temperature: jax.Array
) -> jax.Array:
    mixed = mixed_at(Sample(log_probs, weights), of_experts, temperature)
    return jnp.exp(mixed.max(axis=-1))


def words_of_refit(found: dict[str, Any], level: float) -> list[str]:
    """What the labels showed, in sentences.

    Args:
        found: as in `Deployed.refit`.
        level: as for `refit`.
    """
    names = [name.replace("_", " ") for name in REFITS]
    shown = "; ".join(
        f"{title} {_signed(found['improvement'][name])} (at least {_signed(found['lower'][name])})"
        for title, name in zip(names, REFITS, strict=True)
    )
    chosen = found["chosen"]
    deployed = (
        f"Deployed is {chosen.replace('_', ' ')}."
        if chosen
        else "None is shown to be as good: the held-out temperature stays."
    )
    return [
        f"Improvement of the Brier score on the labels that were not fitted to: {shown}.",
        f"{deployed} With probability {level:g} it is worse than the held-out temperature by at "
        f"most {found['tolerance']:g}.",
    ]


def _signed(value: float | None) -> str:
    return "unknown" if value is None else f"{value:+.4f}"
