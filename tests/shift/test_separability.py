"""How far samples can be told apart, and what that says of a drop of confidence."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

import calmoe_jax as cm

pytestmark = pytest.mark.exhaustive


separate = jax.jit(cm.shift.separability)


def test_separability_strengthens_a_drop_of_confidence():
    def aim(told, target=0.6, error=0.0):
        values = [jnp.asarray(x) for x in (0.9, target, error, told)]
        return cm.shift.separability_confidence(*values, num_classes=10)

    np.testing.assert_allclose(aim(0.0), 0.6, rtol=1e-6)
    assert aim(0.9) < aim(0.5) < aim(0.2)
    np.testing.assert_allclose(aim(1.0), 0.1 + 0.5 * (0.5 / 0.8) ** 1.5, rtol=1e-5)
    np.testing.assert_allclose(aim(0.5), 0.1 + 0.5 * (0.5 / 0.8) ** 0.375, rtol=1e-5)
    np.testing.assert_allclose(aim(1.0, error=0.3), 0.6, rtol=1e-6)
    np.testing.assert_allclose(aim(1.0, target=0.95), 0.95, rtol=1e-6)
    values = [jnp.asarray(x) for x in (jnp.nan, 0.7, 0.0, 1.0)]
    assert jnp.isnan(cm.shift.separability_confidence(*values, num_classes=10))


def oracle_separability(a, b):
    rows = np.concatenate([a, b]).astype(np.float64)
    label = np.repeat([0, 1], [len(a), len(b)])
    rows = (rows - rows.mean(axis=0)) / rows.std(axis=0)
    even = np.concatenate([np.arange(len(a)), np.arange(len(b))]) % 2 == 0
    areas = []
    for fold in (even, ~even):
        share = np.bincount(label[fold])[label[fold]]
        weight = 0.5 * fold.sum() / share
        model = LogisticRegression(C=0.01, tol=1e-8, max_iter=1000)
        model.fit(rows[fold], label[fold], sample_weight=weight)
        areas.append(roc_auc_score(label[~fold], model.decision_function(rows[~fold])))
    return np.clip(2 * np.mean(areas) - 1, 0, 1)


@pytest.mark.parametrize("shift", [0.0, 0.3, 1.0])
def test_separability_equals_a_general_solver(shift):
    rng = np.random.RandomState(5)
    a = rng.randn(301, 6).astype(np.float32)
    b = (rng.randn(200, 6) * np.linspace(0.5, 2, 6) + shift).astype(np.float32)
    found = separate(jnp.asarray(a), jnp.asarray(b))
    np.testing.assert_allclose(found, oracle_separability(a, b), atol=3e-3)


def test_coordinates_are_centred_logarithms():
    rng = np.random.RandomState(0)
    logs = np.log(rng.dirichlet(np.ones(3), (5, 2)))
    weights = np.array([[0.25, 0.75]] * 4 + [[0.0, 1.0]])  # taken for at least 1e-6
    gates = np.log(np.maximum(weights, 1e-6))
    expected = [(x - x.mean(axis=-1, keepdims=True)).reshape(5, -1) for x in (logs, gates)]
    found = cm.shift.configuration_coordinates(
        *(jnp.asarray(x, jnp.float32) for x in (logs, weights))
    )
    np.testing.assert_allclose(found, np.concatenate(expected, axis=1), atol=1e-5)


def test_accuracy_falls_by_the_slope():
    values = [jnp.asarray(x) for x in (0.9, 0.8, 0.7)]
    found = cm.shift.difference_of_confidences(*values, slope=2.0)
    np.testing.assert_allclose(found, 0.7, rtol=1e-6)


def test_separability_of_masked_samples_is_that_of_what_counts():
    rng = np.random.RandomState(0)
    a, b = (jnp.asarray(rng.randn(n, 3) + d, jnp.float32) for n, d in ((90, 0.0), (70, 0.5)))
    own, other = jnp.asarray(rng.rand(90) < 0.6), jnp.asarray(rng.rand(70) < 0.7)
    spoiled = jnp.where(own[:, None], a, jnp.nan), jnp.where(other[:, None], b, jnp.nan)
    found = separate(*spoiled, where=own, target_where=other)
    np.testing.assert_allclose(found, separate(a[own], b[other]), atol=1e-4)
    assert 0.1 < found < 0.9


def test_separability_of_scores_that_tie():
    rng = np.random.RandomState(5)
    a, b = (rng.binomial(2, p, size=(n, 1)).astype(np.float32) for p, n in ((0.4, 301), (0.6, 60)))
    found = separate(jnp.asarray(a), jnp.asarray(b))
    np.testing.assert_allclose(found, oracle_separability(a, b), atol=1e-4)
    assert separate(jnp.ones((40, 2)), jnp.ones((30, 2))) == 0


def test_separability_is_of_samples_of_any_sizes():
    rng = np.random.RandomState(5)
    a = rng.randn(901, 3).astype(np.float32)
    b = (rng.randn(41, 3) @ np.diag([3, 0.3, 1]) + [0.5, 0.3, 0]).astype(np.float32)
    found = separate(jnp.asarray(a), jnp.asarray(b))
    np.testing.assert_allclose(found, oracle_separability(a, b), atol=3e-3)


def wide(size, *, of_all=0.0, of_last=0.0):
    """Two samples with 600 correlated columns, of which all shift, or the last one."""
    rng = np.random.RandomState(3)
    common = rng.randn(12, 600)
    a, b = (
        (rng.randn(n, 12) + shift) @ common + rng.randn(n, 600)
        for n, shift in ((size, 0.0), (size - 50, of_all))
    )
    b[:, -1] += of_last
    return [jnp.asarray(x, jnp.float32) for x in (a, b)]


# nothing is lost where rows are fewer than the directions; the leading ones hold little of the last
# column alone: its shift is seen by the difference of the means
@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("size", "shift", "tolerance"),
    [
        (150, {"of_all": 0.3}, 3e-3),
        (900, {"of_last": 2.0}, 0.01),
        pytest.param(900, {"of_all": 0.2}, 0.01, marks=pytest.mark.exhaustive),
    ],
)
def test_separability_on_many_columns_is_near_the_exact_one(size, shift, tolerance):
    a, b = wide(size, **shift)
    exact = oracle_separability(np.asarray(a), np.asarray(b))
    assert 0.1 < exact < 0.9
    np.testing.assert_allclose(separate(a, b), exact, atol=tolerance)


def test_separability_on_many_columns_ignores_masked_rows_and_reports_nan():
    a, b = wide(150, of_all=0.3)
    where = jnp.arange(len(b)) < 60
    found = separate(a, jnp.where(where[:, None], b, jnp.nan), target_where=where)
    np.testing.assert_allclose(found, separate(a, b[:60]), atol=1e-5)
    assert jnp.isnan(separate(a.at[7, 5].set(jnp.nan), b))


def test_separability_ignores_scale_masked_rows_and_constant_columns():
    rng = np.random.RandomState(6)
    a = rng.randn(120, 3).astype(np.float32)
    b = rng.randn(80, 3).astype(np.float32) + 0.7
    plain = separate(jnp.asarray(a), jnp.asarray(b))
    scaled = separate(jnp.asarray(a * [1e-3, 1, 1e3] + 5), jnp.asarray(b * [1e-3, 1, 1e3] + 5))
    np.testing.assert_allclose(plain, scaled, atol=3e-3)
    padded = jnp.concatenate([jnp.asarray(b), jnp.full((50, 3), jnp.nan)])
    masked = separate(jnp.asarray(a), padded, target_where=jnp.arange(130) < 80)
    np.testing.assert_allclose(plain, masked, atol=1e-5)
    constant = [jnp.concatenate([jnp.asarray(x), jnp.full((len(x), 1), 7.0)], 1) for x in (a, b)]
    np.testing.assert_allclose(plain, separate(*constant), atol=1e-5)
    assert jnp.isnan(separate(jnp.asarray(a), padded))
    for some in (0, 1):
        few = separate(jnp.asarray(a), padded, target_where=jnp.arange(130) < some)
        assert few == 0
    assert separate(jnp.asarray(a[:1]), jnp.asarray(b + 9)) == 0
