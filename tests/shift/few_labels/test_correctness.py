"""The guess at correctness against scikit-learn, and what it does with missing parts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

import calmoe_jax as cm

few = cm.shift.few_labels
Evidence = cm.shift.estimators.Evidence


def draw(size, seed=0, classes=3, peers=2):
    rng = np.random.RandomState(seed)
    logits = 2 * rng.randn(size, classes)
    labels = np.array([rng.choice(classes, p=np.exp(x) / np.exp(x).sum()) for x in logits / 1.5])
    others = logits[None] + rng.randn(peers, size, classes)
    points = logits + 0.5 * rng.randn(size, classes)
    return Evidence(*(x.astype(np.float32) for x in (logits, others, points))), labels


def columns(evidence, reference, labels, own, neighbours):
    """The features, example after example."""
    rows = []
    softmax = jax.nn.softmax(evidence.log_probs)
    of_peers = np.asarray(jax.nn.softmax(evidence.peers))
    unit = evidence.coordinates / np.linalg.norm(evidence.coordinates, axis=1, keepdims=True)
    towards = reference / np.linalg.norm(reference, axis=1, keepdims=True)
    for i, probs in enumerate(np.asarray(softmax)):
        best = int(np.argmax(probs))
        cosines = towards @ unit[i]
        if own:
            cosines[i] = -np.inf
        near = np.argsort(-cosines, kind="stable")[:neighbours]
        share = np.mean(labels[near] == best)
        smooth = (share * neighbours + 0.5) / (neighbours + 1)
        given = np.mean(of_peers[:, i, best])
        votes = np.mean(np.argmax(of_peers[:, i], axis=1) == best)
        odds = [np.log(np.clip(p, 1e-4, 1 - 1e-4)) for p in (probs[best], given, smooth)]
        others = [np.log(1 - np.clip(p, 1e-4, 1 - 1e-4)) for p in (probs[best], given, smooth)]
        rows.append([odds[0] - others[0], odds[1] - others[1], votes, odds[2] - others[2]])
    return np.array(rows)


def test_is_a_ridge_regression_on_held_out_correctness():
    held_out, labels = draw(150)
    targets, _ = draw(60, seed=1)
    inside = columns(held_out, held_out.coordinates, labels, True, 10)
    outside = columns(targets, held_out.coordinates, labels, False, 10)
    mean, scale = inside.mean(axis=0), inside.std(axis=0)
    right = np.argmax(held_out.log_probs, axis=1) == labels
    fit = LogisticRegression(C=1 / 2.0, tol=1e-8, max_iter=1000).fit((inside - mean) / scale, right)
    expected = fit.predict_proba((outside - mean) / scale)[:, 1]
    found = few.correctness_model(
        held_out, labels, targets, least=0.0, num_neighbours=10, penalty=2.0
    )
    np.testing.assert_allclose(found, expected, atol=3e-3)
    floored = few.correctness_model(
        held_out, labels, targets, least=0.6, num_neighbours=10, penalty=2.0
    )
    np.testing.assert_allclose(floored, np.maximum(found, 0.6), atol=1e-6)


@pytest.mark.parametrize("parts", [(), ("peers",), ("coordinates",)])
def test_parts_may_be_missing(parts):
    held_out, labels = draw(80)
    targets, _ = draw(40, seed=1)
    missing = {name: None for name in ("peers", "coordinates") if name not in parts}
    found = few.correctness_model(held_out._replace(**missing), labels, targets)
    both = few.correctness_model(held_out._replace(**missing), labels, targets._replace(**missing))
    np.testing.assert_array_equal(found, both)
    assert jnp.all((found >= 0.5) & (found <= 1))


def test_masks_leave_out_and_nan_is_kept():
    held_out, labels = draw(90)
    targets, _ = draw(40, seed=1)
    where = np.arange(90) % 3 != 0
    lost = [np.where(where[:, None], held_out.log_probs, np.nan).astype(np.float32)]
    lost += [held_out.peers, held_out.coordinates]
    masked = few.correctness_model(
        Evidence(*lost, where=where), np.where(where, labels, -1), targets
    )
    alone = Evidence(
        held_out.log_probs[where], held_out.peers[:, where], held_out.coordinates[where]
    )
    np.testing.assert_allclose(
        masked, few.correctness_model(alone, labels[where], targets), atol=1e-4
    )
    rows = np.array(targets.log_probs)
    rows[7] = np.nan
    found = few.correctness_model(held_out, labels, targets._replace(log_probs=rows))
    assert np.flatnonzero(np.isnan(found)).tolist() == [7]
    labels[5] = 9
    assert jnp.isnan(few.correctness_model(held_out, labels, targets)).all()
