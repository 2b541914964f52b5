"""Every calibrator with what the conformance suite must know of it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from calmoe_jax.calibration import calibrators as c

SIZE, CLASSES, EXPERTS = 120, 3, 2


class Case(NamedTuple):
    """A calibrator.

    Attributes:
        fit: `(inputs, target, *, weights, where) -> fit`.
        apply: `(fit, inputs) -> probabilities`.
        inputs: a dtype to inputs of `SIZE` examples.
        target: labels or outcomes.
        of_event: whether it maps confidences in one event; else class distributions.
        on_host: whether it runs on the host, outside `jit` and `vmap`.
        holds_identity: whether the family holds the map that changes nothing.
        weighted: whether its fit takes weights.
        counts: whether the size of the weights matters: Platt's targets are smoothed by counts.
    """

    fit: Callable[..., Any]
    apply: Callable[..., jax.Array]
    inputs: np.ndarray
    target: np.ndarray
    of_event: bool = False
    on_host: bool = False
    holds_identity: bool = True
    weighted: bool = True
    counts: bool = False


def _data() -> tuple[np.ndarray, ...]:
    """Logits that are too sure by half, their labels, and one event with its outcomes."""
    rng = np.random.RandomState(0)
    true = rng.randn(SIZE, CLASSES)
    probs = np.exp(true) / np.exp(true).sum(axis=1, keepdims=True)
    labels = np.array([rng.choice(CLASSES, p=p) for p in probs])
    confidence = 1 / (1 + np.exp(-2 * true[:, 0]))
    outcome = (rng.rand(SIZE) < 1 / (1 + np.exp(-true[:, 0]))).astype(np.float32)
    experts = 1.5 * true[:, None] + 0.3 * rng.randn(SIZE, EXPERTS, CLASSES)
    return 1.5 * true, labels, confidence, outcome, experts


LOGITS, LABELS, CONFIDENCE, OUTCOME, EXPERT_LOGITS = _data()
PROBS = np.exp(LOGITS) / np.exp(LOGITS).sum(axis=1, keepdims=True)


def _gate_fit(logits: jax.Array, labels: jax.Array, **options: Any) -> Any:
    """The router's temperature, whose gate logits are the first columns of the experts'."""
    return c.fit_gate_temperature(logits[:, 0, :EXPERTS], logits, labels, **options)


def _gate_apply(fit: Any, logits: jax.Array) -> jax.Array:
    return c.apply_gate_temperature(fit, logits[:, 0, :EXPERTS])


CASES = {
    "temperature": Case(c.fit_temperature, c.apply_temperature, LOGITS, LABELS),
    "vector_scaling": Case(c.fit_vector_scaling, c.apply_vector_scaling, LOGITS, LABELS),
    "matrix_scaling": Case(c.fit_matrix_scaling, c.apply_matrix_scaling, LOGITS, LABELS),
    "dirichlet": Case(c.fit_dirichlet, c.apply_dirichlet, LOGITS, LABELS),
    "ensemble_temperature": Case(
        c.fit_ensemble_temperature, c.apply_ensemble_temperature, LOGITS, LABELS
    ),
    "expert_temperatures": Case(
        c.fit_expert_temperatures, c.apply_expert_temperatures, EXPERT_LOGITS, LABELS,
        weighted=False,
    ),
    "gate_temperature": Case(_gate_fit, _gate_apply, EXPERT_LOGITS, LABELS),
    "classwise_isotonic": Case(
        c.fit_classwise_isotonic, c.apply_classwise_isotonic, PROBS, LABELS, on_host=True,
    ),
    "platt": Case(
        c.fit_platt, c.apply_platt, CONFIDENCE, OUTCOME, of_event=True, holds_identity=False,
        counts=True,
    ),
    "beta": Case(c.fit_beta, c.apply_beta, CONFIDENCE, OUTCOME, of_event=True),
    "histogram_binning": Case(
        c.fit_histogram_binning, c.apply_histogram_binning, CONFIDENCE, OUTCOME, of_event=True,
        holds_identity=False,
    ),
    "isotonic": Case(
        c.fit_isotonic, c.apply_isotonic, CONFIDENCE, OUTCOME, of_event=True, on_host=True
    ),
}  # fmt: skip


def log_loss(case: Case, probs: np.ndarray) -> float:
    """Mean log loss of what a calibrator gives for its own training examples."""
    if case.of_event:
        right = np.where(case.target > 0, probs, 1 - probs)
    else:
        right = probs[np.arange(len(probs)), ..., case.target] if probs.ndim == 2 else probs
    return float(-np.log(np.clip(right, 1e-30, 1)).mean())


def arrays(case: Case, dtype: Any = jnp.float32) -> tuple[jax.Array, jax.Array]:
    """Inputs in a dtype, and the target."""
    return jnp.asarray(case.inputs, dtype), jnp.asarray(case.target)
