"""A repair as it is deployed: a file of JSON, and what applies it."""

import json
import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from calmoe_jax import mixture
from calmoe_jax._errors import UserError
from calmoe_jax._numerics import at_least_float32
from calmoe_jax._signatures import checked
from calmoe_jax.calibration.calibrators import scale_log_probs

FORMAT, SCHEMA = "calmoe repair", 2
# Files of these are read: the first had no temperatures of experts.
_SCHEMAS = (1, SCHEMA)
KINDS = ("safe", "bold", "certified", "combined", "refit")


class RepairError(UserError):
    """A file of a repair cannot be used; the message says why."""


@partial(
    jax.tree_util.register_dataclass,
    data_fields=[
        "temperature", "held_out_temperature", "gap", "standard_error", "lower", "upper",
        "confidence_before", "confidence_after", "expert_temperatures",
    ],
    meta_fields=["kind", "level", "num_labels", "num_classes", "num_experts"],
)  # fmt: skip
@dataclass(frozen=True)
class DeployedRepair:
    """A temperature of the aggregate, with the certificate that it rests on.

    A pytree: its numbers are leaves, what is not an array is static.

    Attributes:
        temperature: of the aggregate; above 0.
        held_out_temperature: the one fitted on labelled held-out examples, which it is compared
            with.
        gap: estimated mean confidence minus accuracy on the targets, at the held-out temperature;
            by labels if there are some.
        standard_error: its standard error; NaN without labels.
        lower: lower bound of the gap, which holds at the level; NaN without labels.
        upper: upper bound; so does this.
        confidence_before: mean confidence on the targets at the held-out temperature.
        confidence_after: mean confidence at `temperature`.
        kind: the rule: `safe`, `bold`, `certified`, `combined` or `refit`.
        level: level of each bound.
        num_labels: number of labelled units that the bounds rest on.
        num_classes: number of classes.
        num_experts: number of experts; `None` if the logs had the aggregate alone.
        expert_temperatures: of each expert, before they are mixed; `None` if they stay as they are,
            as for every rule but `refit`.
    """

    temperature: Float[Array, "*batch"]
    held_out_temperature: Float[Array, "*batch"]
    gap: Float[Array, "*batch"]
    standard_error: Float[Array, "*batch"]
    lower: Float[Array, "*batch"]
    upper: Float[Array, "*batch"]
    confidence_before: Float[Array, "*batch"]
    confidence_after: Float[Array, "*batch"]
    kind: str
    level: float
    num_labels: int
    num_classes: int
    num_experts: int | None
    expert_temperatures: Float[Array, "*batch experts"] | None = None


def load_repair(path: str | Path) -> DeployedRepair:
    """Reads a repair that `calmoe repair` wrote.

    Args:
        path: the file.

    Returns:
        The repair, for `apply_repair`. What the file has no number for is NaN.

    Raises:
        RepairError: if the file cannot be read, is no repair, is of a later version of this
            package, or lacks what a repair needs.
    """
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RepairError(f"{path} cannot be read: {error}.") from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise RepairError(f"{path} is no repair: it lacks format={FORMAT!r}.")
    schema = found.get("schema")
    if schema not in _SCHEMAS:
        later = isinstance(schema, int) and schema > SCHEMA
        raise RepairError(
            f"{path}: schema must be at most {SCHEMA}, got {schema!r}"
            + (": it was written by a later version of calmoe_jax." if later else ".")
        )
    try:
        return _of_file(found)
    except (KeyError, TypeError, ValueError) as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
        raise RepairError(f"{path} is broken: {reason}.") from error


def _of_file(found: dict[str, Any]) -> DeployedRepair:
    gap, confidence = found["gap"], found["confidence"]
    if found["kind"] not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {found['kind']!r}")
    for name in ("temperature", "held_out_temperature"):
        value = found[name]
        if not (_is_number(value) and 0 < value < math.inf):
            raise ValueError(f"{name} must be a positive number, got {value!r}")
    if not (isinstance(found["classes"], int) and found["classes"] >= 2):
        raise ValueError(f"classes must be at least 2, got {found['classes']!r}")
    of_experts = found.get("expert_temperatures")
    if of_experts is not None:
        if not all(_is_number(x) and 0 < x < math.inf for x in of_experts):
            raise ValueError(f"expert_temperatures must be positive numbers, got {of_experts!r}")
        if len(of_experts) != found["experts"]:
            raise ValueError(
                f"expert_temperatures must be {found['experts']}, one an expert, got "
                f"{len(of_experts)}"
            )
    return DeployedRepair(
        temperature=_number(found["temperature"]),
        held_out_temperature=_number(found["held_out_temperature"]),
        gap=_number(gap["estimate"]),
        standard_error=_number(gap["standard_error"]),
        lower=_number(gap["lower"]),
        upper=_number(gap["upper"]),
        confidence_before=_number(confidence["before"]),
        confidence_after=_number(confidence["after"]),
        kind=found["kind"],
        level=float(found["level"]),
        num_labels=int(found["labels"]["used"]),
        num_classes=found["classes"],
        num_experts=found["experts"],
        expert_temperatures=None if of_experts is None else jnp.asarray(of_experts, jnp.float32),
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _number(value: Any) -> jax.Array:
    if value is not None and not _is_number(value):
        raise ValueError(f"numbers must be numbers or null, got {value!r}")
    return jnp.asarray(math.nan if value is None else value, jnp.float32)


@checked
def apply_repair(
    repair: DeployedRepair,
    log_probs: Float[Array, "*examples classes"],
    routing_weights: Float[Array, "*examples"] | None = None,
) -> Float[Array, "*batch classes"]:
    """Repaired log probabilities of the aggregate: `log_softmax(log F / T)`.

    `F` is the mixture of the experts; of a repair by `refit` it may be of experts that are scaled
    by their own temperatures first.

    Args:
        repair: as from `load_repair`.
        log_probs: log probabilities of the aggregate, `[..., classes]`; or, with routing weights,
            each expert's, `[..., experts, classes]`. `-inf` for probability 0.
        routing_weights: weight of each expert, `[..., experts]`; what an expert of weight 0
            predicts has no effect.

    Returns:
        The aggregate's log probabilities, `[..., classes]`, at least float32. The predicted class
        stays, unless experts have temperatures. NaN where a prediction that counts is.

    Raises:
        ValueError: if the classes or the experts are not as many as the repair was made for. Of
            slots, give all experts their place, or log probabilities of the aggregate. Or if
            experts have temperatures and there are no routing weights.

    Example:
        >>> numbers = dict.fromkeys(
        ...     ("gap", "standard_error", "lower", "upper", "confidence_before",
        ...      "confidence_after"), jnp.nan,
        ... )
        >>> repair = DeployedRepair(
        ...     temperature=jnp.array(2.0), held_out_temperature=jnp.array(1.0), **numbers,
        ...     kind="safe", level=0.9, num_labels=0, num_classes=2, num_experts=None,
        ... )
        >>> jnp.exp(apply_repair(repair, jnp.log(jnp.array([[0.9, 0.1]])))).round(4)
        Array([[0.75, 0.25]], dtype=float32)
    """
    if log_probs.shape[-1] != repair.num_classes:
        raise ValueError(
            f"log_probs must have the {repair.num_classes} classes that the repair was made for, "
            f"got shape {log_probs.shape}."
        )
    if routing_weights is not None:
        experts = routing_weights.shape[-1] if routing_weights.ndim else 0
        if repair.num_experts is not None and experts != repair.num_experts:
            raise ValueError(
                f"routing_weights must have the {repair.num_experts} experts that the repair was "
                f"made for, got shape {routing_weights.shape}."
            )
        if repair.expert_temperatures is not None:
            of_experts = at_least_float32(repair.expert_temperatures)
            log_probs = scale_log_probs(
                log_probs, of_experts.reshape((1,) * (log_probs.ndim - 2) + of_experts.shape)
            )
        log_probs = mixture.mix_log_probs(log_probs, routing_weights)
    elif repair.expert_temperatures is not None:
        raise ValueError(
            "routing_weights must be given, with each expert's log_probs: this repair scales "
            "experts before they are mixed."
        )
    temperature = at_least_float32(repair.temperature)
    return scale_log_probs(log_probs, jnp.broadcast_to(temperature, (1,) * (log_probs.ndim - 1)))
