"""Calibrators of the aggregate beyond those of `calmoe run`, fitted on the calibration split.

Each is fitted for every seed on its own. The first kind returns class probabilities; the second
recalibrates the confidence in the predicted class alone, so it has no log loss.
"""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from calmoe_jax import calibration, mixture
from calmoe_jax.calibration import calibrators as fits

# Penalty of Dirichlet calibration (ODIR): of weights off the diagonal, and of intercepts.
_ODIR = 1e-2
# Least probability that is passed on to a calibrator of logits.
_FLOOR = 1e-12
# Routing weights below this have underflowed to 0; as logits they are as small as any.
_LEAST_WEIGHT = float(np.finfo(np.float32).tiny)


class _OfClasses(NamedTuple):
    """Fits on log probabilities and labels; applies to log probabilities."""

    fit: Callable[..., Any]
    apply: Callable[..., Float[Array, "examples classes"]]
    on_host: bool = False


class _OfConfidence(NamedTuple):
    """Fits on confidences and whether they were right; applies to confidences."""

    fit: Callable[..., Any]
    apply: Callable[..., Float[Array, " examples"]]
    on_host: bool = False


def _log_odds(confidence: Float[Array, " examples"]) -> Float[Array, " examples"]:
    return jax.scipy.special.logit(jnp.clip(confidence, 1e-6, 1 - 1e-6))


OF_CLASSES: dict[str, _OfClasses] = {
    "ensemble": _OfClasses(fits.fit_ensemble_temperature, fits.apply_ensemble_temperature),
    "vector": _OfClasses(fits.fit_vector_scaling, fits.apply_vector_scaling),
    # also matrix scaling: on log probabilities, with these penalties, the two are one
    "dirichlet": _OfClasses(
        partial(fits.fit_dirichlet, off_diagonal=_ODIR, intercept=_ODIR), fits.apply_dirichlet
    ),
    "classwise_isotonic": _OfClasses(
        lambda log_probs, labels: fits.fit_classwise_isotonic(jnp.exp(log_probs), labels),
        lambda fit, log_probs: fits.apply_classwise_isotonic(fit, jnp.exp(log_probs)),
        on_host=True,
    ),
}
OF_CONFIDENCE: dict[str, _OfConfidence] = {
    "platt": _OfConfidence(
        lambda confidence, right: fits.fit_platt(_log_odds(confidence), right),
        lambda fit, confidence: fits.apply_platt(fit, _log_odds(confidence)),
    ),
    "beta": _OfConfidence(fits.fit_beta, fits.apply_beta),
    "histogram": _OfConfidence(fits.fit_histogram_binning, fits.apply_histogram_binning),
    "isotonic": _OfConfidence(fits.fit_isotonic, fits.apply_isotonic, on_host=True),
}
GATE = "gate"
FURTHER = (*OF_CLASSES, GATE, *OF_CONFIDENCE)


@jax.jit
def aggregate(
    expert_log_probs: Float[Array, "seeds examples slots classes"],
    weights: Float[Array, "seeds examples slots"],
) -> Float[Array, "seeds examples classes"]:
    """Log probabilities of the mixture, of at least a floor."""
    mixed = jax.vmap(mixture.mix_log_probs)(expert_log_probs, weights)
    return jnp.maximum(mixed, jnp.log(_FLOOR))


@jax.jit
def _of_classes(
    log_probs: Float[Array, "seeds examples classes"],
    labels: Int[Array, " examples"],
    where: Bool[Array, " examples"],
) -> dict[str, Float[Array, " seeds"]]:
    def one(log_probs: Float[Array, "examples classes"]) -> dict[str, Float[Array, ""]]:
        probs = jax.nn.softmax(log_probs)
        confidence, right = calibration.top_label(probs, labels)
        return {
            "accuracy": calibration.accuracy(probs, labels, where=where),
            "nll": calibration.negative_log_likelihood(
                log_probs, labels, where=where, from_logits=True
            ),
            "brier": calibration.brier_score(probs, labels, where=where),
            **_of_confidence_of_one(confidence, right, where),
        }

    return jax.vmap(one)(log_probs)


def _of_confidence_of_one(
    confidence: Float[Array, " examples"],
    right: Bool[Array, " examples"],
    where: Bool[Array, " examples"],
) -> dict[str, Float[Array, ""]]:
    right = right.astype(confidence.dtype)
    bins = calibration.reliability_bins(confidence, right, where=where)
    smooth = calibration.smooth_calibration_error(confidence, right, where=where)
    gap = jnp.sum(jnp.where(where, confidence - right, 0)) / jnp.sum(where)
    return {
        "ece": calibration.calibration_error(bins),
        "smooth_ece": smooth.value,
        "confidence_gap": gap,
    }


@jax.jit
def _of_confidence(
    confidence: Float[Array, "seeds examples"],
    right: Bool[Array, "seeds examples"],
    where: Bool[Array, " examples"],
) -> dict[str, Float[Array, " seeds"]]:
    return jax.vmap(lambda c, r: _of_confidence_of_one(c, r, where))(confidence, right)


def _fit(kind: _OfClasses | _OfConfidence, values: Array, truth: Array) -> Any:
    """A fit for each seed; `truth` has an axis of seeds where it depends on predictions."""
    axis = 0 if truth.ndim == values.ndim else None
    if kind.on_host:
        truths = truth if axis == 0 else [truth] * len(values)
        return [kind.fit(x, t) for x, t in zip(values, truths, strict=True)]
    return _mapped(kind.fit, (0, axis))(values, truth)


@lru_cache
def _mapped(call: Callable[..., Any], axes: tuple[int | None, ...]) -> Callable[..., Any]:
    """Compiled over seeds; the same object for the same arguments, so that it is compiled once."""
    return jax.jit(jax.vmap(call, in_axes=axes))


class Fitted(NamedTuple):
    """What the further calibrators found on the calibration split, by name."""

    fits: dict[str, Any]

    def score(
        self,
        log_probs: Float[Array, "seeds examples classes"],
        expert_log_probs: Float[Array, "seeds examples slots classes"],
        weights: Float[Array, "seeds examples slots"],
        labels: Int[Array, " examples"],
        where: Bool[Array, " examples"],
    ) -> dict[str, dict[str, np.ndarray]]:
        """Metrics of every seed on a split, by calibrator; the examples not in `where` are padding.

        Args:
            log_probs: of the mixture.
            expert_log_probs: of its experts.
            weights: of the routing.
            labels: of the examples.
            where: which examples there are.
        """
        found = {}
        for name, fit in self.fits.items():
            if name == GATE:
                changed = _mapped(_through_gate, (0, 0, 0))(fit, weights, expert_log_probs)
                found[name] = _of_classes(changed, labels, where)
            elif name in OF_CLASSES:
                probs = _apply(OF_CLASSES[name], fit, log_probs)
                found[name] = _of_classes(jnp.log(jnp.maximum(probs, _FLOOR)), labels, where)
            else:
                confidence, right = _top(log_probs, labels)
                changed = _apply(OF_CONFIDENCE[name], fit, confidence)
                found[name] = _of_confidence(changed, right, where)
        return {name: {k: np.asarray(v) for k, v in x.items()} for name, x in found.items()}


@jax.jit
def _top(
    log_probs: Float[Array, "seeds examples classes"], labels: Int[Array, " examples"]
) -> tuple[Float[Array, "seeds examples"], Bool[Array, "seeds examples"]]:
    return jax.vmap(lambda x: calibration.top_label(jax.nn.softmax(x), labels))(log_probs)


def _apply(kind: _OfClasses | _OfConfidence, fit: Any, values: Array) -> Array:
    if not kind.on_host:
        return _mapped(kind.apply, (0, 0))(fit, values)
    return jnp.stack([kind.apply(f, x) for f, x in zip(fit, values, strict=True)])


def _fit_gate(
    weights: Float[Array, "examples experts"],
    expert_log_probs: Float[Array, "examples experts classes"],
    labels: Int[Array, " examples"],
) -> Any:
    return fits.fit_gate_temperature(_gate_logits(weights), expert_log_probs, labels)


def _through_gate(
    fit: Any,
    weights: Float[Array, "examples experts"],
    expert_log_probs: Float[Array, "examples experts classes"],
) -> Float[Array, "examples classes"]:
    softened = fits.apply_gate_temperature(fit, _gate_logits(weights))
    return mixture.mix_log_probs(expert_log_probs, softened)


def _gate_logits(weights: Float[Array, "examples experts"]) -> Float[Array, "examples experts"]:
    return jnp.log(jnp.maximum(weights, _LEAST_WEIGHT))


def fit_further(
    log_probs: Float[Array, "seeds examples classes"],
    expert_log_probs: Float[Array, "seeds examples slots classes"],
    weights: Float[Array, "seeds examples slots"],
    labels: Int[Array, " examples"],
    *,
    dense: bool = True,
) -> Fitted:
    """Fits every further calibrator; that of the gate where routing is dense, of several experts.

    Args:
        log_probs: of the mixture on the calibration split.
        expert_log_probs: of its experts.
        weights: of the routing.
        labels: of the calibration split.
        dense: whether all experts take part; a weight of 0 has then underflowed.
    """
    found: dict[str, Any] = {}
    for name, of_classes in OF_CLASSES.items():
        found[name] = _fit(of_classes, log_probs, labels)
    if weights.shape[-1] > 1 and dense:
        found[GATE] = _mapped(_fit_gate, (0, 0, None))(weights, expert_log_probs, labels)
    confidence, right = _top(log_probs, labels)
    for name, of_confidence in OF_CONFIDENCE.items():
        found[name] = _fit(of_confidence, confidence, right.astype(jnp.float32))
    return Fitted(found)
