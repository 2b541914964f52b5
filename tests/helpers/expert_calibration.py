"""Problems of experts, and their calibration by loops over NumPy."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import references

from calmoe_jax.calibration.metrics.disagreement import disagreement_identity
from calmoe_jax.calibration.metrics.experts import (
    chosen_region,
    expert_calibration,
    mixture_calibration,
)


def mixed(probs, routing, labels, from_logits=False):
    return {
        "mixture": mixture_calibration(probs, routing, labels, from_logits=from_logits),
        "identity": disagreement_identity(probs, routing, labels, from_logits=from_logits),
    }


mixed_of = jax.jit(mixed, static_argnames="from_logits")


@functools.partial(jax.jit, static_argnames="num_bins")
def everything(probs, routing, labels, weights, where, num_bins=15):
    options = {"weights": weights, "where": where}
    binned = options | {"num_bins": num_bins}
    views = jnp.stack([routing, chosen_region(routing), (routing > 0).astype(routing.dtype)])
    # one program for the three: they compile in a third of the time
    errors = jax.vmap(lambda v: expert_calibration(probs, v, labels, **binned))(views)
    names = "view", "region", "active"
    return {name: jax.tree.map(lambda x, i=i: x[i], errors) for i, name in enumerate(names)} | {
        "mixture": mixture_calibration(probs, routing, labels, **binned),
        "identity": disagreement_identity(probs, routing, labels, **options),
    }


identity_of = jax.jit(disagreement_identity)


def results_of(probs, routing, labels, weights=None, where=None, **options):
    """With arrays for the defaults, so that one compilation serves most tests."""
    weights = jnp.ones(labels.shape, routing.dtype) if weights is None else weights
    where = jnp.ones(labels.shape, bool) if where is None else where
    return everything(probs, routing, labels, weights, where, **options)


def top_k_weights(logits, k):
    weights = np.zeros(logits.shape)
    for row, gate in zip(weights, logits, strict=True):
        row[np.argsort(-gate)[:k]] = references.softmax(np.sort(gate)[::-1][:k])
    return weights


def problem(seed=0, size=60, experts=3, classes=4, k=None):
    rng = np.random.RandomState(seed)
    probs = references.softmax(rng.randn(size, experts, classes) * 2)
    routing = top_k_weights(rng.randn(size, experts) * 2, k or experts)
    labels = rng.randint(classes, size=size)
    return jnp.asarray(probs, jnp.float32), jnp.asarray(routing, jnp.float32), jnp.asarray(labels)


def classwise(probs, labels, weights, num_bins):
    return np.mean(
        [
            references.calibration_error(column, labels == c, weights, num_bins)
            for c, column in enumerate(probs.T)
        ]
    )


def oracle_errors(probs, view, labels, weights, num_bins):
    """Each expert by itself, with the scalar metric in loops."""
    result = {name: [] for name in ("top_label", "classwise", "gap", "load", "effective_examples")}
    for k in range(view.shape[1]):
        w = view[:, k] * weights
        result["load"].append(w.sum() / weights.sum())
        if w.sum() == 0:
            result["effective_examples"].append(0)
            for name in ("top_label", "classwise", "gap"):
                result[name].append(math.nan)
            continue
        confidence, correct = references.top_label(probs[:, k], labels)
        result["top_label"].append(
            references.calibration_error(confidence, correct, w, num_bins=num_bins)
        )
        result["classwise"].append(classwise(probs[:, k], labels, w, num_bins))
        result["gap"].append(np.dot(w, confidence - correct) / w.sum())
        result["effective_examples"].append(w.sum() ** 2 / np.sum(w**2))
    return result


def oracle_identity(probs, routing, labels, weights):
    """Both sides and the views, example by example."""
    aggregate = references.mix(probs, routing)
    right = references.disagreement(probs, routing)
    left, view = np.zeros(len(labels)), np.zeros(routing.shape)
    for i, y in enumerate(labels):
        true = np.eye(probs.shape[2])[y]
        left[i] = aggregate[i] @ (true - aggregate[i])
        for k in range(routing.shape[1]):
            view[i, k] = routing[i, k] * (probs[i, k] @ (true - probs[i, k]))

    def mean_and_error(values):
        mean = np.average(values, weights=weights)
        share = weights / weights.sum()
        spread = np.sum(share**2 * (values - mean) ** 2)
        return mean, math.sqrt(spread / (1 - np.sum(share**2)))

    by_expert = [mean_and_error(column) for column in view.T]
    return {
        "aggregate": np.average(left, weights=weights),
        "disagreement": np.average(right, weights=weights),
        "difference": np.average(left - right, weights=weights),
        "standard_error": mean_and_error(left - right)[1],
        "view": [mean for mean, _ in by_expert],
        "view_error": [error for _, error in by_expert],
    }


def assert_same(found, expected, rtol=1e-5, atol=2e-6):
    for name, value in expected.items():
        np.testing.assert_allclose(getattr(found, name), value, rtol=rtol, atol=atol, err_msg=name)


def assert_trees_same(found, expected, rtol=1e-5, atol=2e-6):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=atol)


def disagreement_per_example(probs, routing, truth):
    """`sum_k r_k <f_k, truth - f_k>` of every example."""
    probs, routing = np.asarray(probs), np.asarray(routing)
    return np.einsum("nk,nkc,nkc->n", routing, probs, truth[:, None] - probs)
