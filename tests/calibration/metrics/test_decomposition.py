"""Decompositions of proper scores against loops, scikit-learn and the identities they promise."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import references
import sklearn.metrics

import calmoe_jax as cm
from calmoe_jax.calibration.metrics.binning import reliability_bins
from calmoe_jax.calibration.metrics.decomposition import (
    BrierDecomposition,
    brier_decomposition,
    corp_decomposition,
    murphy_decomposition,
)

PARTS = BrierDecomposition._fields

jitted = jax.jit(brier_decomposition, static_argnames="num_bins")


def problem(seed=0, size=70):
    rng = np.random.RandomState(seed)
    confidence = rng.rand(size)
    confidence[:20] = rng.randint(5, size=20) / 4
    weights = rng.randint(3, size=size).astype(np.float32)
    return confidence.astype(np.float32), rng.rand(size) < confidence**2, weights


def decomposition(confidence, outcome, weights=None, where=None, num_bins=7):
    """With arrays for the defaults, so that one compilation serves most tests."""
    weights = jnp.ones(len(confidence)) if weights is None else jnp.asarray(weights)
    where = jnp.ones(len(confidence), bool) if where is None else jnp.asarray(where)
    outcome = jnp.asarray(outcome, jnp.float32)
    return jitted(jnp.asarray(confidence), outcome, weights=weights, where=where, num_bins=num_bins)


def by_loops(confidence, outcome, weights, num_bins=7):
    p, y, w = (np.asarray(x, float) for x in (confidence, outcome, weights))
    total, base = w.sum(), np.dot(w, y) / w.sum()
    parts = dict.fromkeys(PARTS, 0.0)
    parts["score"] = np.dot(w, (p - y) ** 2) / total
    parts["uncertainty"] = base * (1 - base)
    for b in range(num_bins):
        low, high = b / num_bins, (b + 1) / num_bins
        rows = [
            i
            for i in range(len(p))
            if w[i] > 0 and (low <= p[i] < high or (b == num_bins - 1 and p[i] == 1))
        ]
        if not rows:
            continue
        share = w[rows].sum() / total
        mean_p, mean_y = np.average(p[rows], weights=w[rows]), np.average(y[rows], weights=w[rows])
        parts["reliability"] += share * (mean_p - mean_y) ** 2
        parts["resolution"] += share * (mean_y - base) ** 2
        for i in rows:
            parts["within_variance"] += w[i] / total * (p[i] - mean_p) ** 2
            parts["within_covariance"] += 2 * w[i] / total * (p[i] - mean_p) * (y[i] - mean_y)
    return parts


def total_of(parts):
    return (
        parts.reliability
        - parts.resolution
        + parts.uncertainty
        + parts.within_variance
        - parts.within_covariance
    )


@pytest.mark.parametrize("num_bins", [1, 7])
@pytest.mark.parametrize("seed", range(3))
def test_five_parts_equal_a_loop_and_add_up(seed, num_bins):
    confidence, outcome, weights = problem(seed)
    found = decomposition(confidence, outcome, weights, num_bins=num_bins)
    expected = by_loops(confidence, outcome, weights, num_bins)
    for name in PARTS:
        np.testing.assert_allclose(
            getattr(found, name), expected[name], rtol=1e-5, atol=1e-7, err_msg=name
        )
    np.testing.assert_allclose(total_of(found), found.score, rtol=1e-6)
    np.testing.assert_allclose(
        found.score,
        sklearn.metrics.brier_score_loss(outcome, confidence, sample_weight=weights),
        rtol=1e-6,
    )


def test_the_identity_holds_to_float32_on_many_confident_examples():
    rng = np.random.RandomState(0)
    confidence = (1 - 0.1 * rng.rand(200_000) ** 2).astype(np.float32)
    outcome = rng.rand(200_000) < 0.9
    found = decomposition(confidence, outcome)
    np.testing.assert_allclose(total_of(found), found.score, atol=1e-6)
    assert found.within_variance > 1e-4


def test_murphy_is_exact_for_the_forecast_of_bin_means():
    confidence, outcome, weights = problem()
    bins = reliability_bins(
        jnp.asarray(confidence),
        jnp.asarray(outcome),
        weights=jnp.asarray(weights),
        num_bins=7,
    )
    parts = murphy_decomposition(bins)
    which = np.minimum(np.floor(confidence.astype(float) * 7), 6).astype(int)
    means = np.asarray(bins.confidence / bins.weight)[which]
    score = np.average((means - outcome) ** 2, weights=weights)
    np.testing.assert_allclose(
        parts.reliability - parts.resolution + parts.uncertainty, score, rtol=1e-5
    )
    # and is not that of the forecast itself
    assert abs(score - np.average((confidence - outcome) ** 2, weights=weights)) > 3e-4
    batch = murphy_decomposition(jax.tree.map(lambda x: jnp.stack([x, 2 * x]), bins))
    for name, value in parts._asdict().items():
        np.testing.assert_allclose(getattr(batch, name), [value] * 2, rtol=1e-5, err_msg=name)


def test_extremes_of_skill():
    outcome = jnp.arange(8) % 4 == 0
    perfect = decomposition(outcome.astype(jnp.float32), outcome)
    np.testing.assert_allclose(perfect.resolution, perfect.uncertainty)
    assert perfect.score == perfect.reliability == 0
    base = decomposition(jnp.full(8, 0.25), outcome)
    assert base.reliability == base.resolution == 0
    np.testing.assert_allclose(base.score, 0.25 * 0.75)


def test_outcomes_may_be_probabilities():
    confidence, truth = problem()[0], np.random.RandomState(1).rand(70).astype(np.float32)
    both = np.tile(confidence, 2), np.repeat([1.0, 0.0], 70)
    expected = jitted(
        jnp.asarray(both[0]),
        jnp.asarray(both[1], jnp.float32),
        weights=jnp.asarray(np.concatenate([truth, 1 - truth])),
        num_bins=7,
    )
    found = decomposition(confidence, truth)
    for name in PARTS:
        np.testing.assert_allclose(
            getattr(found, name), getattr(expected, name), rtol=1e-5, atol=1e-7, err_msg=name
        )


def test_masks_leave_out_and_bad_rows_make_nan():
    confidence, outcome, weights = problem()
    keep = np.arange(70) % 3 != 0
    expected = by_loops(confidence[keep], outcome[keep], weights[keep])
    poisoned = np.where(keep, confidence, np.nan)
    for options in ({"where": keep}, {"weights": weights * keep}):
        found = decomposition(poisoned, outcome, **({"weights": weights} | options))
        for name in PARTS:
            np.testing.assert_allclose(getattr(found, name), expected[name], rtol=1e-5, atol=1e-7)
    for bad in (np.nan, -0.1, 1.1):
        values = confidence.copy()
        values[4] = bad
        assert all(jnp.isnan(part) for part in decomposition(values, outcome))
    assert all(jnp.isnan(part) for part in decomposition(confidence, outcome, 0 * weights))
    empty = decomposition(jnp.zeros(0), jnp.zeros(0))
    assert all(jnp.isnan(part) for part in empty)
    with pytest.raises(ValueError, match="num_bins must be at least 1, got num_bins=0"):
        brier_decomposition(jnp.ones(1), jnp.ones(1), num_bins=0)


def test_classes_add_up_to_the_multiclass_score():
    rng = np.random.RandomState(0)
    probs = references.softmax(2 * rng.randn(70, 3)).astype(np.float32)
    labels, weights = rng.randint(3, size=70), problem()[2]

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(1, 1, None))
    def classwise(column, of_class, weights):
        return brier_decomposition(column, of_class, weights=weights, num_bins=7)

    truth = jnp.asarray(labels)[:, None] == jnp.arange(3)[None]
    found = classwise(jnp.asarray(probs), truth, jnp.asarray(weights))
    score = cm.calibration.brier_score(
        jnp.asarray(probs), jnp.asarray(labels), weights=jnp.asarray(weights)
    )
    np.testing.assert_allclose(found.score.sum(), score, rtol=1e-5)
    np.testing.assert_allclose(total_of(found).sum(), score, rtol=1e-5)
    for c in range(3):
        expected = by_loops(probs[:, c], labels == c, weights)
        for name in PARTS:
            np.testing.assert_allclose(
                getattr(found, name)[c], expected[name], rtol=1e-4, atol=1e-6, err_msg=name
            )


def pool(confidence, outcome, weights):
    """Isotonic regression: each level's max over starts of the min over ends of the mean."""
    levels = np.unique(confidence)
    mass = np.array([weights[confidence == v].sum() for v in levels])
    hits = np.array([np.dot(weights, outcome * (confidence == v)) for v in levels])
    fitted = [
        max(
            min(hits[a : b + 1].sum() / mass[a : b + 1].sum() for b in range(k, len(levels)))
            for a in range(k + 1)
        )
        for k in range(len(levels))
    ]
    return np.array(fitted)[np.searchsorted(levels, confidence)]


SCORES = {
    "brier": lambda p, y: (p - y) ** 2,
    "log": lambda p, y: -np.log(np.where(y, p, 1 - p)),
}


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("seed", range(3))
def test_corp_equals_the_max_min_formula(seed, score):
    confidence, outcome, weights = problem(seed)
    confidence = np.clip(confidence, 0.01, 0.99)
    weights += 0.5
    found = corp_decomposition(
        jnp.asarray(confidence), jnp.asarray(outcome), weights=jnp.asarray(weights), score=score
    )

    def mean_score(p):
        return np.average(SCORES[score](p, outcome), weights=weights)

    recalibrated = mean_score(pool(confidence.astype(float), outcome, weights.astype(float)))
    base = mean_score(np.full(70, np.average(outcome, weights=weights)))
    plain = mean_score(confidence.astype(float))
    np.testing.assert_allclose(found.score, plain, rtol=1e-9)
    np.testing.assert_allclose(found.miscalibration, plain - recalibrated, rtol=1e-9)
    np.testing.assert_allclose(found.discrimination, base - recalibrated, rtol=1e-9)
    np.testing.assert_allclose(found.uncertainty, base, rtol=1e-9)
    assert found.miscalibration >= 0
    assert found.discrimination >= 0


@pytest.mark.parametrize("score", SCORES)
def test_corp_does_not_depend_on_the_order_or_on_how_examples_are_split(score):
    confidence, outcome, weights = problem()
    confidence = np.clip(confidence, 0.01, 0.99)
    expected = corp_decomposition(
        jnp.asarray(confidence), jnp.asarray(outcome), weights=jnp.asarray(weights), score=score
    )
    order = np.random.RandomState(0).permutation(70)
    rows = np.repeat(order, weights[order].astype(int))
    found = corp_decomposition(
        jnp.asarray(confidence[rows]), jnp.asarray(outcome[rows]), score=score
    )
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    # discrimination is that of the order of the forecasts alone
    bent = corp_decomposition(
        jnp.asarray(confidence[rows] ** 2), jnp.asarray(outcome[rows]), score=score
    )
    np.testing.assert_allclose(bent.discrimination, found.discrimination, rtol=1e-9)


@pytest.mark.parametrize("score", SCORES)
def test_corp_outcomes_may_be_probabilities(score):
    confidence = np.clip(problem()[0], 0.01, 0.99)
    truth = np.random.RandomState(1).rand(70).astype(np.float32)
    expected = corp_decomposition(
        jnp.asarray(np.tile(confidence, 2)),
        jnp.asarray(np.repeat([1.0, 0.0], 70), jnp.float32),
        weights=jnp.asarray(np.concatenate([truth, 1 - truth])),
        score=score,
    )
    found = corp_decomposition(jnp.asarray(confidence), jnp.asarray(truth), score=score)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_corp_at_its_extremes():
    outcome = jnp.arange(8) % 4 == 0
    for score in SCORES:
        perfect = corp_decomposition(outcome.astype(jnp.float32), outcome, score=score)
        assert perfect.score == perfect.miscalibration == 0
        assert perfect.discrimination == perfect.uncertainty > 0
        base = corp_decomposition(jnp.full(8, 0.25), outcome, score=score)
        np.testing.assert_allclose(base.miscalibration, 0, atol=1e-12)
        np.testing.assert_allclose(base.discrimination, 0, atol=1e-12)
    wrong = corp_decomposition(1 - outcome.astype(jnp.float32), outcome, score="log")
    assert wrong.score == wrong.miscalibration == np.inf
    assert np.isfinite(wrong.discrimination)
    assert np.isfinite(wrong.uncertainty)


def test_corp_masks_leave_out_and_bad_rows_make_nan():
    confidence, outcome, _ = problem()
    keep = jnp.arange(70) % 3 != 0
    expected = corp_decomposition(jnp.asarray(confidence)[keep], jnp.asarray(outcome)[keep])
    poisoned = jnp.where(keep, jnp.asarray(confidence), jnp.nan)
    for options in ({"where": keep}, {"weights": keep.astype(jnp.float32)}):
        found = corp_decomposition(poisoned, jnp.asarray(outcome), **options)
        np.testing.assert_allclose(found, expected, rtol=1e-9)
    for nothing in (
        corp_decomposition(poisoned, jnp.asarray(outcome)),
        corp_decomposition(poisoned, jnp.asarray(outcome), where=jnp.zeros(70, bool)),
        corp_decomposition(jnp.zeros(0), jnp.zeros(0)),
    ):
        assert np.isnan(nothing).all()
    one = corp_decomposition(jnp.full(1, 0.25), jnp.ones(1))
    np.testing.assert_allclose(one, (0.5625, 0.5625, 0, 0))


def test_corp_refuses_other_scores(unchecked):
    with pytest.raises(ValueError, match="score must be one of brier, log, got score='crps'"):
        corp_decomposition(jnp.ones(1), jnp.ones(1), score="crps")
