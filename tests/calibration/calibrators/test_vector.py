"""Vector, matrix and Dirichlet scaling against scikit-learn and scipy, and where no optimum is."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import references
import scipy.optimize
import scipy.special
from sklearn.linear_model import LogisticRegression

from calmoe_jax.calibration.calibrators import dirichlet, vector

KINDS = {
    "vector": (vector.fit_vector_scaling, vector.apply_vector_scaling),
    "matrix": (dirichlet.fit_matrix_scaling, dirichlet.apply_matrix_scaling),
    "dirichlet": (dirichlet.fit_dirichlet, dirichlet.apply_dirichlet),
}
COMPILED = {name: jax.jit(fit) for name, (fit, _) in KINDS.items()}
# matrix scaling is what Dirichlet calibration is made of
every_kind = pytest.mark.parametrize("kind", ["vector", "dirichlet"])


def fit_of(kind, logits, labels, weights=None, where=None, **penalties):
    """One compilation for all that have a shape and dtype."""
    size = len(labels)
    weights = jnp.ones(size) if weights is None else jnp.asarray(weights, jnp.float32)
    where = jnp.ones(size, bool) if where is None else jnp.asarray(where)
    if kind != "vector":
        penalties = {
            name: jnp.asarray(penalties.get(name, 0), jnp.float32)
            for name in ("off_diagonal", "intercept")
        }
    return COMPILED[kind](
        jnp.asarray(logits), jnp.asarray(labels), weights=weights, where=where, **penalties
    )


def problem(seed=0, size=300, classes=3, scale=1.0):
    """Logits whose classes are confused with one another, `scale` times too sharp."""
    rng = np.random.RandomState(seed)
    logits = rng.randn(size, classes) * 2
    truth = logits @ (0.6 * np.eye(classes) + 0.2 * rng.randn(classes, classes))
    labels = np.argmax(truth + rng.gumbel(size=(size, classes)) + rng.randn(classes) / 2, axis=-1)
    return (logits * scale).astype(np.float32), labels


def probabilities(kind, fit, logits):
    return np.asarray(KINDS[kind][1](fit, jnp.asarray(logits)), np.float64)


def loss(probs, labels, weights=None):
    return np.average(-np.log(probs[np.arange(len(labels)), labels]), weights=weights)


def optimum(objective, size):
    """The minimum of a smooth convex function of `size` parameters, in float64."""
    found = scipy.optimize.minimize(
        objective, np.zeros(size), method="BFGS", options={"gtol": 1e-9, "maxiter": 2000}
    )
    return found.x, found.fun


def vector_loss(x, logits, labels):
    scores = logits.astype(np.float64) * x[: len(x) // 2] + x[len(x) // 2 :]
    return loss(references.softmax(scores), labels)


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("scale", "dtype", "atol"),
    [
        (1.0, np.float32, 1e-3),
        (8.0, np.float32, 1e-3),
        (0.01, np.float64, 1e-5),
        # log probabilities near log 1/3 keep five digits of their differences, and two of how
        # their sum varies, which is a direction of its own: the loss hardly depends on it
        (0.01, np.float32, 5e-3),
    ],
)
def test_dirichlet_equals_unregularised_logistic_regression(scale, dtype, atol):
    for seed in range(3):
        logits, labels = problem(seed, scale=scale)
        with jax.enable_x64(dtype == np.float64):
            fit = fit_of("dirichlet", jnp.asarray(logits, dtype), jnp.asarray(labels))
            ours = probabilities("dirichlet", fit, jnp.asarray(logits, dtype))
        assert fit.converged
        assert not fit.at_bound
        assert fit.num_steps < 15
        columns = scipy.special.log_softmax(logits.astype(np.float64), axis=-1) / scale
        theirs = LogisticRegression(C=np.inf, tol=1e-8, max_iter=1000, solver="newton-cholesky")
        expected = theirs.fit(columns, labels).predict_proba(columns)
        np.testing.assert_allclose(loss(ours, labels), loss(expected, labels), atol=1e-5)
        np.testing.assert_allclose(ours, expected, atol=atol)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_vector_scaling_equals_scipy(dtype):
    with jax.enable_x64(dtype == np.float64):
        for seed in range(3):
            logits, labels = problem(seed)
            fit = fit_of("vector", jnp.asarray(logits, dtype), jnp.asarray(labels))
            assert fit.scale.dtype == dtype
            assert fit.converged
            objective = functools.partial(vector_loss, logits=logits, labels=labels)
            x, least = optimum(objective, 6)
            ours = np.concatenate([fit.scale, fit.offset]).astype(np.float64)
            np.testing.assert_allclose(objective(ours), least, atol=1e-7)
            atol = 1e-3 if dtype == np.float32 else 1e-5
            np.testing.assert_allclose(fit.scale, x[:3], atol=atol)
            np.testing.assert_allclose(fit.offset, x[3:] - x[3:].mean(), atol=atol)


@pytest.mark.parametrize(("off_diagonal", "intercept"), [(0.01, 0.1), (1.0, 0.0), (0.0, 0.3)])
def test_the_penalty_is_on_the_off_diagonal_and_the_intercept(off_diagonal, intercept):
    logits, labels = problem()

    def objective(x):
        matrix, offset = x[:9].reshape(3, 3), x[9:]
        off = matrix - np.diag(np.diag(matrix))
        penalty = off_diagonal * np.sum(off**2) + intercept * np.sum(offset**2)
        scores = logits[:60].astype(np.float64) @ matrix.T + offset
        return loss(references.softmax(scores), labels[:60]) + penalty

    penalties = {"off_diagonal": off_diagonal, "intercept": intercept}
    fit = fit_of("matrix", logits, labels, where=jnp.arange(300) < 60, **penalties)
    assert fit.converged
    _, least = optimum(objective, 12)
    ours = np.concatenate([np.ravel(fit.matrix), fit.offset]).astype(np.float64)
    np.testing.assert_allclose(objective(ours), least, atol=1e-7)


def test_a_heavy_penalty_leaves_a_diagonal_matrix():
    logits, labels = problem()
    fit = fit_of("matrix", logits, labels, off_diagonal=1e4, intercept=1e4)
    assert fit.converged
    np.testing.assert_allclose(fit.matrix - jnp.diag(jnp.diag(fit.matrix)), 0, atol=1e-3)
    np.testing.assert_allclose(fit.offset, 0, atol=1e-3)


@every_kind
@pytest.mark.parametrize("factor", [8.0, 0.01, 1e-9, 1e9])
def test_scaling_the_logits_changes_nothing(kind, factor):
    logits, labels = problem()
    given = scipy.special.log_softmax(logits, axis=-1) if kind == "dirichlet" else logits
    fit = fit_of(kind, jnp.asarray(given), jnp.asarray(labels))
    if kind == "dirichlet":  # of log probabilities: a matrix scaling, which may be scaled
        scaled = fit_of("matrix", jnp.asarray(given * factor), jnp.asarray(labels))
        after = probabilities("matrix", scaled, given * factor)
    else:
        scaled = fit_of(kind, jnp.asarray(given * factor), jnp.asarray(labels))
        after = probabilities(kind, scaled, given * factor)
    assert fit.converged
    assert scaled.converged
    np.testing.assert_allclose(after, probabilities(kind, fit, given), atol=1e-4)


@every_kind
def test_a_class_without_examples_has_no_optimum(kind):
    logits, labels = problem()
    fit = fit_of(kind, jnp.asarray(logits), jnp.asarray(np.minimum(labels, 1)))
    assert fit.at_bound
    assert not fit.converged
    assert probabilities(kind, fit, logits)[:, 2].max() < 1e-2
    only = fit_of(kind, jnp.asarray(logits), 0 * labels)
    assert only.at_bound
    assert probabilities(kind, only, logits)[:, 0].min() > 0.99


def test_one_class_is_the_identity():
    logits, labels = problem()
    fit = fit_of("dirichlet", logits[:, :1], 0 * labels)
    assert not fit.converged
    assert not fit.at_bound
    assert fit.residual == 0
    assert (probabilities("dirichlet", fit, logits[:, :1]) == 1).all()


@every_kind
def test_constant_logits_give_the_class_frequencies(kind):
    labels = np.repeat([0, 1, 1, 2, 2, 2], 50)
    fit = fit_of(kind, np.full((300, 3), 5.0, np.float32), labels)
    assert fit.converged
    probs = probabilities(kind, fit, np.full((1, 3), 5.0, np.float32))
    np.testing.assert_allclose(probs, [[1 / 6, 1 / 3, 1 / 2]], atol=1e-5)


def test_impossible_classes_stay_so():
    kind = "dirichlet"
    logits, labels = problem()
    more = np.concatenate([logits, np.full((300, 1), -np.inf, np.float32)], axis=1)
    fit = fit_of(kind, jnp.asarray(more), jnp.asarray(labels))
    without = fit_of(kind, jnp.asarray(logits), jnp.asarray(labels))
    assert fit.converged
    probs = probabilities(kind, fit, more)
    assert (probs[:, 3] == 0).all()
    np.testing.assert_allclose(probs[:, :3], probabilities(kind, without, logits), atol=1e-4)


def test_many_classes_are_no_matter_of_memory():
    logits, labels = problem(size=3000, classes=40)
    fit = fit_of("dirichlet", jnp.asarray(logits), jnp.asarray(labels))
    assert fit.converged
    assert fit.residual < 1e-6


@pytest.mark.parametrize("name", ["off_diagonal", "intercept"])
def test_a_negative_penalty_is_an_error(name):
    logits, labels = map(jnp.asarray, problem())
    with pytest.raises(ValueError, match=f"{name}=-1"):
        dirichlet.fit_dirichlet(logits, labels, **{name: -1.0})
