"""Soft labels are averages over draws, ignored labels are masks, events are two classes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

import calmoe_jax as cm

calibration, calibrators = cm.calibration, cm.calibration.calibrators
pytestmark = pytest.mark.exhaustive

CLASSES, EXAMPLES, VOTES = 3, 40, 4


@pytest.fixture(scope="module")
def votes():
    """Logits, the votes of several people on each example, and their shares."""
    rng = np.random.RandomState(0)
    logits = rng.randn(EXAMPLES, CLASSES).astype(np.float32) * 2
    cast = np.stack(
        [[rng.choice(CLASSES, p=p) for _ in range(VOTES)] for p in _softmax(logits / 2)]
    )
    shares = (cast[:, :, None] == np.arange(CLASSES)).mean(axis=1)
    return logits, cast, shares.astype(np.float32)


def _softmax(logits):
    return np.exp(log_softmax(logits.astype(float), axis=1))


SCORES = [
    calibration.accuracy,
    calibration.negative_log_likelihood,
    calibration.brier_score,
    calibration.confidence_gap,
]


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("from_logits", [False, True])
def test_a_score_of_shares_is_the_mean_over_the_votes(votes, score, from_logits):
    logits, cast, shares = votes
    given = logits if from_logits else _softmax(logits)
    weights = np.linspace(0.5, 2, EXAMPLES)
    every = [
        score(given, cast[:, j], weights=weights, from_logits=from_logits) for j in range(VOTES)
    ]
    found = score(given, shares, weights=weights, from_logits=from_logits)
    np.testing.assert_allclose(found, np.mean(every), rtol=2e-6)


def test_bins_of_shares_are_the_means_over_the_votes(votes):
    logits, cast, shares = votes
    for bins_of in (calibration.top_label_bins, calibration.classwise_bins):
        every = [bins_of(logits, cast[:, j], from_logits=True).residual for j in range(VOTES)]
        found = bins_of(logits, shares, from_logits=True).residual
        np.testing.assert_allclose(found, np.mean(every, axis=0), atol=1e-5)
    bins = calibration.top_label_bins(logits, shares, from_logits=True)
    found = calibration.expected_calibration_error(logits, shares, from_logits=True)
    np.testing.assert_allclose(found, calibration.calibration_error(bins), rtol=1e-6)


@pytest.mark.parametrize("score", [*SCORES, calibration.expected_calibration_error])
def test_rows_with_a_single_one_are_classes(votes, score):
    logits, cast, _ = votes
    one_hot = np.eye(CLASSES, dtype=np.float32)[cast[:, 0]]
    np.testing.assert_allclose(
        score(logits, one_hot, from_logits=True),
        score(logits, cast[:, 0], from_logits=True),
        rtol=1e-6,
    )


def test_an_impossible_class_without_votes_does_not_matter():
    logits, shares = jnp.array([[0.0, 1.0, -jnp.inf]]), jnp.array([[0.5, 0.5, 0.0]])
    for given in (logits, jax.nn.softmax(logits)):
        found = calibration.negative_log_likelihood(given, shares, from_logits=given is logits)
        np.testing.assert_allclose(found, np.log1p(np.exp(-1)) + 0.5, rtol=1e-6)
    with_votes = jnp.array([[0.5, 0.25, 0.25]])
    assert calibration.negative_log_likelihood(logits, with_votes, from_logits=True) == jnp.inf


@pytest.mark.parametrize("row", [[0.5, 0.6, 0.0], [-0.5, 1.5, 0.0], [np.nan, 0.5, 0.5]])
def test_rows_that_are_no_distribution_give_nan(votes, row):
    logits, _, shares = votes
    bad, rest = jnp.asarray(shares).at[3].set(jnp.array(row)), np.arange(EXAMPLES) != 3
    for score in [*SCORES, calibration.expected_calibration_error]:
        assert jnp.isnan(score(logits, bad, from_logits=True))
        np.testing.assert_array_equal(
            score(logits, bad, where=rest, from_logits=True),
            score(logits, jnp.asarray(shares), where=rest, from_logits=True),
        )
    assert jnp.isnan(calibrators.fit_temperature(logits, bad).temperature)


def test_the_temperature_of_shares_is_that_of_all_votes(votes):
    logits, cast, shares = votes

    def loss(log_temperature):
        return -np.mean(np.sum(shares * log_softmax(logits / np.exp(log_temperature), axis=1), 1))

    fit = calibrators.fit_temperature(logits, shares)
    oracle = np.exp(
        minimize_scalar(loss, bounds=(-3, 3), method="bounded", options={"xatol": 1e-8}).x
    )
    np.testing.assert_allclose(fit.temperature, oracle, rtol=1e-4)
    assert fit.converged
    repeated = calibrators.fit_temperature(np.repeat(logits, VOTES, axis=0), cast.reshape(-1))
    np.testing.assert_allclose(fit.temperature, repeated.temperature, rtol=1e-5)
    experts = np.stack([logits, 2 * logits], axis=1)
    both = calibrators.fit_expert_temperatures(experts, shares).temperature
    np.testing.assert_allclose(both, [fit.temperature, 2 * fit.temperature], rtol=1e-5)


def test_the_derivative_of_a_temperature_of_shares(votes):
    logits, _, shares = votes
    weights = jnp.ones(EXAMPLES)

    def temperature(weights):
        return calibrators.fit_temperature(logits, shares, weights=weights).temperature

    way = jnp.asarray(np.random.RandomState(1).randn(EXAMPLES), jnp.float32)
    slope = jnp.vdot(jax.grad(temperature)(weights), way)
    step = 0.02
    found = (temperature(weights + step * way) - temperature(weights - step * way)) / (2 * step)
    np.testing.assert_allclose(slope, found, rtol=0.02)


@pytest.mark.parametrize("ignore", [-100, 0, 2])
def test_ignored_labels_are_masked(votes, ignore):
    logits, cast, _ = votes
    labels = cast[:, 0].copy()
    labels[::3] = ignore
    mask = np.arange(EXAMPLES) > 5
    for where in (None, mask):
        kept = (labels != ignore) & (True if where is None else where)
        for score in [*SCORES, calibration.expected_calibration_error]:
            np.testing.assert_array_equal(
                score(logits, labels, where=where, ignore_label=ignore, from_logits=True),
                score(logits, labels, where=kept, from_logits=True),
            )
        np.testing.assert_array_equal(
            calibrators.fit_temperature(
                logits, labels, where=where, ignore_label=ignore
            ).temperature,
            calibrators.fit_temperature(logits, labels, where=kept).temperature,
        )
    for bins_of in (calibration.top_label_bins, calibration.classwise_bins):
        np.testing.assert_array_equal(
            bins_of(logits, labels, ignore_label=ignore, from_logits=True).weight,
            bins_of(logits, labels, where=labels != ignore, from_logits=True).weight,
        )


def test_no_label_of_shares_is_ignored(votes):
    logits, _, shares = votes
    with pytest.raises(TypeError, match="ignore_label is for labels that are classes"):
        calibration.accuracy(logits, shares, ignore_label=-1, from_logits=True)


@pytest.fixture(scope="module")
def events():
    rng = np.random.RandomState(2)
    odds = rng.randn(50, 4).astype(np.float32) * 3
    return odds, rng.rand(50, 4) < 0.4


def test_an_event_is_a_class_of_two(events):
    odds, happened = events[0][:, 0], events[1][:, 0]
    probs = 1 / (1 + np.exp(-odds.astype(float)))
    two = calibration.two_classes(probs)
    np.testing.assert_allclose(two, np.stack([1 - probs, probs], 1), atol=1e-7)
    log_two = calibration.two_classes(odds, from_logits=True)
    loss = -np.mean(np.where(happened, np.log(probs), np.log1p(-probs)))
    for found in (
        calibration.binary_log_loss(probs, happened),
        calibration.binary_log_loss(odds, happened, from_logits=True),
        calibration.negative_log_likelihood(log_two, happened, from_logits=True),
    ):
        np.testing.assert_allclose(found, loss, rtol=2e-4)  # 1 - p is rounded
    brier = np.mean(np.square(probs - happened))
    np.testing.assert_allclose(calibration.binary_brier_score(probs, happened), brier, rtol=1e-5)
    np.testing.assert_allclose(calibration.brier_score(two, happened), 2 * brier, rtol=1e-5)


def test_scores_of_events_that_are_probable(events):
    odds, chance = events[0][:, 0], np.linspace(0, 1, 50)
    probs = 1 / (1 + np.exp(-odds.astype(float)))
    loss = -np.mean(chance * np.log(probs) + (1 - chance) * np.log1p(-probs))
    np.testing.assert_allclose(calibration.binary_log_loss(probs, chance), loss, rtol=2e-4)
    brier = np.mean(chance * (1 - probs) ** 2 + (1 - chance) * probs**2)
    np.testing.assert_allclose(calibration.binary_brier_score(probs, chance), brier, rtol=1e-5)


def test_certain_events():
    certain = jnp.array([0.0, 1.0])
    assert calibration.binary_log_loss(certain, certain) == 0
    assert calibration.binary_log_loss(certain, 1 - certain) == jnp.inf
    slope = jax.grad(lambda p: calibration.binary_log_loss(p, certain))(jnp.array([0.0, 0.5]))
    np.testing.assert_allclose(slope, [0.5, -1], atol=1e-6)  # (1 - y) / (1 - p) - y / p, halved
    for p in (jnp.array([jnp.nan, 0.5]), jnp.array([1.5, 0.5])):
        assert jnp.isnan(calibration.binary_log_loss(p, certain))
        assert jnp.isnan(calibration.binary_brier_score(p, certain))
        assert not jnp.isnan(calibration.binary_brier_score(p, certain, where=~(p != 0.5)))
    assert jnp.isnan(calibration.binary_log_loss(jnp.zeros(0), jnp.zeros(0)))


def test_several_events_are_binned_one_by_one(events):
    odds, happened = events
    probs = 1 / (1 + np.exp(-odds))
    where = np.arange(50) % 7 > 0
    found = calibration.multilabel_bins(probs, happened, where=where, num_bins=5)
    assert found.weight.shape == (4, 5)
    for j in range(4):
        for b in range(5):
            inside = where & (np.minimum(np.floor(probs[:, j] * 5), 4) == b)
            residual = np.sum((probs[:, j] - happened[:, j])[inside])
            np.testing.assert_allclose(found.residual[j, b], residual, atol=1e-5)
            assert found.weight[j, b] == inside.sum()
    assert calibration.calibration_error(found).shape == (4,)
