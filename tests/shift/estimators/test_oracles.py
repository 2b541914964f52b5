"""Estimators of accuracy against plain NumPy, and against solvers of other libraries."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from evidence import CLASSES, PEERS, draw
from scipy.optimize import linprog, minimize
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

import calmoe_jax as cm
from calmoe_jax.shift.estimators import ESTIMATORS, Evidence, conditional, conditional_drop

HELD_OUT, TARGETS = 90, 70


@functools.cache
def samples():
    held_out, labels = draw(HELD_OUT)
    targets, _ = draw(TARGETS, 1, sharpness=1.2, noise=0.8, offset=0.3)
    return held_out, labels, targets


@functools.cache
def arrays():
    """Probabilities, confidence, prediction, correctness of both samples, in float64."""
    held_out, labels, targets = samples()
    found = []
    for evidence in (held_out, targets):
        probs = np.exp(np.float64(evidence.log_probs))
        probs /= probs.sum(axis=1, keepdims=True)
        found.append((probs, probs.max(axis=1), probs.argmax(axis=1)))
    return found, np.asarray(labels), np.float64(found[0][2] == np.asarray(labels))


def estimate(name, **options):
    return jax.jit(functools.partial(ESTIMATORS[name], **options))(*samples())


def kappa_of(evidence, predicted):
    """Cohen's kappa of the model with each peer, averaged, by loops."""
    kappas = []
    for peer in np.asarray(evidence.peers):
        other = peer.argmax(axis=1)
        agree = np.mean(predicted == other)
        chance = sum(np.mean(predicted == c) * np.mean(other == c) for c in range(CLASSES))
        kappas.append((agree - chance) / (1 - chance))
    return np.mean(kappas)


def chance_of(predicted, labels):
    return sum(np.mean(predicted == c) * np.mean(labels == c) for c in range(CLASSES))


def by_seeds(growth=3.0):
    ((_, before, own), (_, after, other)), labels, _ = arrays()
    held_out, _, targets = samples()
    kappa = min(max(kappa_of(targets, other) / kappa_of(held_out, own), 0), 1)
    chance = chance_of(other, labels)
    anchor = max(before.mean(), after.mean())
    return chance + (anchor - chance) * kappa ** (1 + growth * (1 - kappa) ** 2)


def shares_by_loops(points, predicted, references, labels, k, same):
    found = []
    for i, point in enumerate(points):
        cosines = references @ point / np.linalg.norm(references, axis=1) / np.linalg.norm(point)
        if same:
            cosines[i] = -np.inf
        nearest = np.argsort(-cosines, kind="stable")[:k]
        found.append(np.mean(labels[nearest] == predicted[i]))
    return np.array(found)


def supports(k):
    ((_, _, own), (_, _, other)), labels, _ = arrays()
    references, points = (np.float64(e.coordinates) for e in (samples()[0], samples()[2]))
    return (
        shares_by_loops(references, own, references, labels, k, True),
        shares_by_loops(points, other, references, labels, k, False),
    )


def drop_by_scikit_learn(statistic, confidence, theirs, at, chance):
    """The ratio and its standard error."""
    model = IsotonicRegression(out_of_bounds="clip").fit(confidence, statistic)
    expected = model.predict(at)
    above = expected.mean() - chance
    ratio = (theirs.mean() - chance) / above
    residual = statistic - model.predict(confidence)
    variance = np.var(theirs - ratio * expected) / len(theirs)
    variance += ratio**2 * np.var(residual) / len(statistic)
    return ratio, math.sqrt(variance) / above


def test_average_threshold():
    ((_, own, _), (_, other, _)), _, correct = arrays()
    wrong = int(np.sum(1 - correct))
    level = np.sort(own)[wrong]
    found = estimate("average_threshold")
    np.testing.assert_allclose(found.accuracy, np.mean(other >= level), atol=1e-6)
    share = np.mean(other >= level)
    moved = np.var((own >= level) - correct) / HELD_OUT
    expected = math.sqrt(share * (1 - share) / TARGETS + moved)
    np.testing.assert_allclose(found.standard_error, expected, rtol=1e-4)


def test_difference_of_confidences():
    ((_, own, _), (_, other, _)), _, correct = arrays()
    for slope in (1.0, 1.5):
        found = estimate("difference_of_confidences", slope=slope)
        expected = correct.mean() - slope * (own.mean() - other.mean())
        np.testing.assert_allclose(found.accuracy, expected, atol=1e-6)
        variance = np.var(correct - slope * own) / HELD_OUT + slope**2 * np.var(other) / TARGETS
        np.testing.assert_allclose(found.standard_error, math.sqrt(variance), rtol=1e-4)


@pytest.mark.parametrize("growth", [3.0, 0.0])
def test_seed_agreement(growth):
    found = estimate("seed_agreement", growth=growth)
    np.testing.assert_allclose(found.accuracy, by_seeds(growth), atol=1e-5)


@pytest.mark.exhaustive
def test_the_error_of_seed_agreement_is_that_of_finite_differences():
    held_out, labels, targets = samples()
    ((_, before, own), (_, after, other)), labels, _ = arrays()

    def agreement(evidence, predicted):
        chosen = jnp.concatenate([predicted[None], jnp.argmax(evidence.peers, axis=-1)])
        found = cm.shift.chance_corrected_agreement(chosen, num_classes=CLASSES)
        return float(found.kappa[0]), float(found.standard_error[0])

    pairs = agreement(held_out, own), agreement(targets, other)
    chance = chance_of(other, labels)

    def rule(kappas, anchor):
        kappa = kappas[1] / kappas[0]
        return chance + (anchor - chance) * kappa ** (1 + 3 * (1 - kappa) ** 2)

    anchor, h = max(before.mean(), after.mean()), 1e-6
    sample = before if before.mean() > after.mean() else after
    kappas = np.array([pairs[0][0], pairs[1][0]])
    variance = (
        np.var(sample)
        / len(sample)
        * ((rule(kappas, anchor + h) - rule(kappas, anchor - h)) / (2 * h)) ** 2
    )
    for i in range(2):
        step = h * np.eye(2)[i]
        slope = (rule(kappas + step, anchor) - rule(kappas - step, anchor)) / (2 * h)
        variance += (slope * pairs[i][1]) ** 2
    found = estimate("seed_agreement")
    np.testing.assert_allclose(found.standard_error, math.sqrt(variance), rtol=1e-3)


def test_neighbours():
    ((_, before, own), (_, _, other)), labels, _ = arrays()
    among, of_targets = supports(15)
    chances = chance_of(own, labels), chance_of(other, labels)
    error = math.hypot(*(math.sqrt(np.var(x, ddof=1) / len(x)) for x in (among, of_targets)))
    ratio = (of_targets.mean() - chances[1] + 2 * error) / (among.mean() - chances[0])
    nu = min(max(ratio, 0), 1)
    expected = chances[1] + (before.mean() - chances[1]) * nu ** (1 + 5 * (1 - nu))
    np.testing.assert_allclose(estimate("neighbours").accuracy, expected, atol=1e-5)
    plain = estimate("neighbours", margin=0.0, growth=2.0).accuracy
    nu = min((of_targets.mean() - chances[1]) / (among.mean() - chances[0]), 1)
    expected = chances[1] + (before.mean() - chances[1]) * nu ** (1 + 2 * (1 - nu))
    np.testing.assert_allclose(plain, expected, atol=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_conditional_drop(seed):
    rng = np.random.RandomState(seed)
    own, other = np.round(rng.uniform(0.4, 1, 200), 2), rng.uniform(0.3, 1, 150)
    statistic, theirs = own * rng.rand(200), 0.8 * other * rng.rand(150)
    masks = rng.rand(200) < 0.8, rng.rand(150) < 0.8
    found = jax.jit(conditional_drop)(
        *(jnp.asarray(x, jnp.float32) for x in (statistic, own, theirs, other)), 0.1,
        where=jnp.asarray(masks[0]), target_where=jnp.asarray(masks[1]),
    )  # fmt: skip
    ratio, error = drop_by_scikit_learn(
        statistic[masks[0]], own[masks[0]], theirs[masks[1]], other[masks[1]], 0.1
    )
    np.testing.assert_allclose(found, (-math.log(ratio), ratio, error), rtol=1e-4)


def test_a_drop_that_leaves_nothing():
    confidence = jnp.linspace(0.5, 0.9, 20)
    lost = conditional_drop(confidence, confidence, jnp.full(20, 0.2), confidence, 0.25)
    assert lost.value == jnp.inf
    assert lost.ratio < 0
    assert jnp.isfinite(lost.standard_error)
    for given in (
        conditional_drop(confidence, confidence, confidence, confidence, 0.95),
        conditional_drop(confidence, confidence, 3 * confidence, confidence, 0.25),
        conditional_drop(confidence, confidence, confidence.at[2].set(jnp.nan), confidence, 0.25),
        conditional_drop(confidence.at[2].set(1.5), confidence, confidence, confidence, 0.25),
        conditional_drop(confidence, confidence, confidence[:0], confidence[:0], 0.25),
    ):
        assert jnp.isnan(given.value)


@pytest.mark.parametrize(
    "constants", [{}, {"strength": 9.0, "margin": 0.0, "tolerance": 0.0, "num_neighbours": 5}]
)
def test_confidence_conditional(constants):
    ((_, before, _), (_, after, other)), labels, _ = arrays()
    among, theirs = supports(constants.get("num_neighbours", 50))
    chance = chance_of(other, labels)
    ratio, error = drop_by_scikit_learn(among, before, theirs, after, chance)
    lost = -math.log(ratio + constants.get("margin", 0.5) * error)
    rho = math.exp(
        -constants.get("strength", 4.0) * max(lost - constants.get("tolerance", 0.05), 0)
    )
    expected = min(by_seeds(), chance + (after.mean() - chance) * rho)
    found = estimate("confidence_conditional", **constants)
    np.testing.assert_allclose(found.accuracy, expected, atol=2e-5)


@pytest.mark.exhaustive
@pytest.mark.parametrize("constants", [{"strength": 14.0, "margin": 0.0, "tolerance": 0.0}, {}])
def test_confidence_conditional_by_peers(constants):
    ((_, before, own), (_, after, other)), labels, _ = arrays()
    held_out, _, targets = samples()
    chance = chance_of(other, labels)
    margin = constants.get("margin", 1.0)

    def statistics(evidence, predicted):
        probs = np.exp(np.float64(evidence.peers))
        rows = np.arange(len(predicted))
        votes = [probs[q].argmax(axis=1) == predicted for q in range(PEERS)]
        return np.mean([p[rows, predicted] for p in probs], axis=0), np.mean(votes, axis=0)

    pairs = [*zip(statistics(held_out, own), statistics(targets, other), strict=True), supports(50)]
    drops = [drop_by_scikit_learn(a, before, b, after, chance) for a, b in pairs]
    peers, votes, near = (
        -math.log(r + m * e) for (r, e), m in zip(drops, (margin, 0, margin), strict=True)
    )
    separable = float(cm.shift.separability(held_out.coordinates, targets.coordinates))
    lost = min(peers - 0.5 * max(votes, 0), near)
    strength = 14.0 * min(1, 2 * (1 - separable))
    rho = math.exp(-strength * max(lost - constants.get("tolerance", 0.01), 0))
    expected = min(by_seeds(), chance + (after.mean() - chance) * rho)
    found = estimate("confidence_conditional_by_peers", **constants)
    np.testing.assert_allclose(found.accuracy, expected, atol=5e-5)


def transport_by_linear_program(probs, shares):
    n, classes = probs.shape
    rows = np.kron(np.eye(n), np.ones(classes))
    columns = np.kron(np.ones(n), np.eye(classes))
    solved = linprog(
        (1 - probs).ravel(), A_eq=np.concatenate([rows, columns]),
        b_eq=np.concatenate([np.full(n, 1 / n), shares]), method="highs",
    )  # fmt: skip
    return solved.fun


@pytest.mark.parametrize("seed", range(4))
def test_optimal_transport(seed):
    rng = np.random.RandomState(seed)
    classes, n = ((3, 40), (6, 150), (10, 30), (2, 101))[seed]
    log_probs = [np.log(rng.dirichlet(np.full(classes, 0.4) + 1e-2, size)) for size in (80, n)]
    log_probs = [np.maximum(x, -30).astype(np.float32) for x in log_probs]
    # of one of them there is no held-out example, where there are more than two
    labels = rng.choice(classes, size=80, p=rng.dirichlet(np.ones(classes)))
    labels[labels == 2] = 0
    found = jax.jit(ESTIMATORS["optimal_transport"])(
        Evidence(jnp.asarray(log_probs[0])),
        jnp.asarray(labels),
        Evidence(jnp.asarray(log_probs[1])),
    )
    own, other = (np.exp(np.float64(x)) for x in log_probs)
    own, other = (x / x.sum(axis=1, keepdims=True) for x in (own, other))
    cost = transport_by_linear_program(other, np.bincount(labels, minlength=classes) / 80)
    gap = own.max(axis=1).mean() - np.mean(own.argmax(axis=1) == labels)
    expected = min(max(1 - cost - gap, 0), 1)
    np.testing.assert_allclose(found.accuracy, expected, atol=2e-4)


@pytest.mark.exhaustive
def test_transport_of_shares_that_the_predictions_have_is_the_difference_of_confidences():
    held_out, _, targets = samples()
    labels = jnp.argmax(targets.log_probs, axis=-1)
    assert len(labels) == TARGETS
    given = held_out._replace(where=jnp.arange(HELD_OUT) < TARGETS)
    padded = jnp.pad(labels, (0, HELD_OUT - TARGETS))
    found = jax.jit(ESTIMATORS["optimal_transport"])(given, padded, targets)
    expected = ESTIMATORS["difference_of_confidences"](given, padded, targets)
    np.testing.assert_allclose(found.accuracy, expected.accuracy, atol=1e-4)


def test_nuclear_norm():
    ((own, _, _), (other, _, _)), _, correct = arrays()
    norms = [np.linalg.norm(x, "nuc") / math.sqrt(len(x) * CLASSES) for x in (own, other)]
    found = estimate("nuclear_norm")
    np.testing.assert_allclose(found.accuracy, correct.mean() * norms[1] / norms[0], atol=1e-5)
    held_out, labels, targets = samples()
    few = targets._replace(where=jnp.arange(TARGETS) < 2)
    norm = np.linalg.norm(other[:2], "nuc") / 2
    found = jax.jit(ESTIMATORS["nuclear_norm"])(held_out, labels, few)
    np.testing.assert_allclose(found.accuracy, min(correct.mean() * norm / norms[0], 1), atol=1e-5)


@pytest.mark.parametrize("p", [4.0, 1.5])
def test_mano(p):
    ((own, _, _), (other, _, _)), _, correct = arrays()
    norms = [sum(q**p for row in x for q in row) ** (1 / p) for x in (own, other)]
    sizes = [(x.size) ** (1 / p) for x in (own, other)]
    expected = correct.mean() * norms[1] / sizes[1] / (norms[0] / sizes[0])
    np.testing.assert_allclose(estimate("mano", p=p).accuracy, expected, atol=1e-5)


def test_density_ratio():
    held_out, _, targets = samples()
    ((_, before, _), (_, after, _)), _, correct = arrays()
    rows = np.concatenate([held_out.coordinates, targets.coordinates]).astype(np.float64)
    label = np.repeat([0, 1], [HELD_OUT, TARGETS])
    rows = (rows - rows.mean(axis=0)) / rows.std(axis=0)
    even = np.concatenate([np.arange(HELD_OUT), np.arange(TARGETS)]) % 2 == 0
    odds = np.zeros(len(rows))
    for fold in (even, ~even):
        weight = 0.5 * fold.sum() / np.bincount(label[fold])[label[fold]]
        model = LogisticRegression(C=0.2, tol=1e-10, max_iter=1000)
        model.fit(rows[fold], label[fold], sample_weight=weight)
        odds[~fold] = np.exp(model.decision_function(rows[~fold]))
    weight = np.minimum(odds[:HELD_OUT], 1.5)
    assert (weight == 1.5).any()
    weight *= weight.sum() / (weight**2).sum()
    scores = [np.log(c / (1 - c)) for c in (before, after)]
    happened, missed = weight @ correct, weight @ (1 - correct)
    aim = np.where(correct, (happened + 1) / (happened + 2), 1 / (missed + 2))

    def loss(beta):
        z = beta[0] * scores[0] + beta[1]
        return weight @ (np.logaddexp(0, z) - aim * z)

    slope, offset = minimize(loss, [1.0, 0.0], tol=1e-12).x
    expected = np.mean(1 / (1 + np.exp(-slope * scores[1] - offset)))
    found = estimate("density_ratio", penalty=5.0, most=1.5)
    np.testing.assert_allclose(found.accuracy, expected, atol=2e-4)


def test_separability():
    ((_, before, _), (_, after, _)), _, _ = arrays()
    held_out, _, targets = samples()
    separable = float(cm.shift.separability(held_out.coordinates, targets.coordinates))
    assert 0.02 < separable < 1
    error = math.sqrt(np.var(before) / HELD_OUT + np.var(after) / TARGETS)
    chance = 1 / CLASSES
    rho = min(1, (after.mean() + error - chance) / (before.mean() - chance))
    expected = chance + (after.mean() - chance) * rho ** (1.5 * separable**2)
    np.testing.assert_allclose(estimate("separability").accuracy, expected, atol=1e-5)


def test_disagreeing_critics():
    held_out, _, targets = samples()
    ((_, _, own), (_, _, other)), _, correct = arrays()
    rows = np.concatenate([held_out.coordinates, targets.coordinates]).astype(np.float64)
    rows = (rows - rows.mean(axis=0)) / rows.std(axis=0)
    rows = np.concatenate([rows, np.ones((len(rows), 1))], axis=1)
    predicted = np.concatenate([own, other])
    mask = np.eye(CLASSES)[predicted]
    first = np.arange(len(rows)) < HELD_OUT

    def loss(flat, emphasis):
        scores = rows @ flat.reshape(-1, CLASSES)
        picked = np.sum(mask * scores, axis=1)
        agree = np.log(np.exp(scores).sum(axis=1)) - picked
        excess = picked - np.sum((1 - mask) * scores, axis=1) / (CLASSES - 1)
        differ = np.logaddexp(0, excess)
        penalty = 0.05 / 2 * np.sum(flat**2)
        return agree[first].mean() + emphasis * differ[~first].mean() + penalty

    found = []
    for emphasis in (0.1, 0.3, 1.0, 3.0):
        start = np.zeros(rows.shape[1] * CLASSES)
        slopes = minimize(loss, start, (emphasis,), tol=1e-8).x.reshape(-1, CLASSES)
        agrees = (rows @ slopes).argmax(axis=1) == predicted
        found.append(agrees[first].mean() - agrees[~first].mean())
    assert max(found) > 0.05
    eps = math.sqrt((HELD_OUT + 4 * TARGETS) * math.log(20) / (2 * HELD_OUT * TARGETS))
    expected = max(correct.mean() - max(found) - eps, 0)
    assert expected > 0.1
    bound = estimate("disagreeing_critics", level=0.05, penalty=0.05).accuracy
    # an example or two may lie on the border
    np.testing.assert_allclose(bound, expected, atol=2.5 / TARGETS)


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("average_threshold", 0.9, 1.1),
        ("difference_of_confidences", 0.9, 1.1),
        ("optimal_transport", 0.85, 1.15),
        ("mano", 0.9, 1.1),
        # that of one pair stands for the mean over pairs
        ("seed_agreement", 0.9, 1.5),
    ],
)
def test_standard_errors_are_those_of_many_draws(name, low, high):
    """Targets are distributed as the held-out examples, but for their peers, who agree less."""
    size, draws = 300, 400
    held_out, labels = draw(size * draws, 7, sharpness=1.5, noise=0.4)
    targets, _ = draw(size * draws, 8, sharpness=1.5, noise=0.9)

    def split(evidence):
        return Evidence(
            evidence.log_probs.reshape(draws, size, CLASSES),
            jnp.moveaxis(evidence.peers.reshape(PEERS, draws, size, CLASSES), 1, 0),
        )

    found = jax.jit(jax.vmap(ESTIMATORS[name]))(
        split(held_out), labels.reshape(draws, size), split(targets)
    )
    ratio = jnp.mean(found.standard_error) / jnp.std(found.accuracy)
    assert low < ratio < high, ratio


@pytest.mark.exhaustive
def test_the_drop_is_zero_within_its_error_where_only_confidence_changes():
    size, draws = 2000, 100

    def one(seed, sharpness):
        evidence, _ = draw(size * draws, seed, sharpness=sharpness)
        confidence = jnp.exp(evidence.log_probs).max(axis=-1)
        rng = np.random.RandomState(seed + 100)
        votes = rng.rand(size * draws, 3) < np.asarray(confidence)[:, None]
        return [
            jnp.asarray(x, jnp.float32).reshape(draws, size) for x in (votes.mean(1), confidence)
        ]

    found = jax.jit(jax.vmap(lambda *given: conditional_drop(*given, 0.3)))(
        *one(0, 2.0), *one(1, 1.4)
    )
    assert abs(jnp.mean(found.ratio) - 1) < 0.01, jnp.mean(found.ratio)
    covered = jnp.mean(jnp.abs(found.ratio - 1) < 2 * found.standard_error)
    assert covered > 0.85, covered


@pytest.mark.exhaustive
def test_the_bound_holds_where_the_true_labels_are_a_linear_critic():
    rng = np.random.RandomState(0)
    x = rng.randn(2000, 4)
    x[1000:, 0] += 2.0
    labels = (x[:, 0] + x[:, 1] > 0).astype(int)
    # right on held-out examples, and wrong for the targets that have moved
    scores = np.stack([0 * x[:, 0], 3 * (np.minimum(x[:, 0], 0.5) + x[:, 1])], axis=1)
    log_probs = jax.nn.log_softmax(jnp.asarray(scores, jnp.float32))
    coordinates = jnp.asarray(np.concatenate([x, scores[:, 1:]], axis=1), jnp.float32)
    samples = [
        Evidence(log_probs[part], coordinates=coordinates[part])
        for part in (slice(0, 1000), slice(1000, 2000))
    ]
    found = jax.jit(ESTIMATORS["disagreeing_critics"])(
        samples[0], jnp.asarray(labels[:1000]), samples[1]
    ).accuracy
    true = np.mean((scores[1000:, 1] > 0) == labels[1000:])
    assert found < true


def test_a_confidence_below_chance_is_not_raised():
    classes = jnp.asarray(np.repeat([0, 1, 2], [60, 25, 15]))
    sure = jnp.log(jnp.eye(CLASSES)[classes] * 0.7 + 0.1)
    held_out = Evidence(sure, sure[None], jnp.eye(CLASSES)[classes])
    # all of the most frequent class, some of them where the labels are of another
    unsure = jnp.log(jnp.tile(jnp.array([[0.4, 0.3, 0.3]]), (60, 1)))
    targets = Evidence(unsure, unsure[None], jnp.eye(CLASSES)[jnp.arange(60) // 42])
    found = jax.jit(functools.partial(ESTIMATORS["confidence_conditional"], num_neighbours=10))(
        held_out, classes, targets
    )
    np.testing.assert_allclose(found.accuracy, 0.4, atol=1e-6)


def test_drops_of_peers_and_neighbours_count_by_separability(monkeypatch):
    """Peers who choose the same classes and are less sure of them, and other neighbours."""
    held_out, labels, targets = samples()
    ((_, before, own), (_, after, other)), classes, _ = arrays()
    peers = jax.nn.log_softmax(jnp.stack([0.3 * targets.log_probs] * PEERS))
    rng = np.random.RandomState(3)
    elsewhere = targets.coordinates + jnp.asarray(2 * rng.randn(TARGETS, 5), jnp.float32)
    targets = targets._replace(peers=peers, coordinates=elsewhere)
    chance = chance_of(other, classes)

    def of_peers(evidence, predicted):
        probs = np.exp(np.float64(evidence.peers)).mean(axis=0)
        return probs[np.arange(len(predicted)), predicted]

    points = np.float64(held_out.coordinates), np.float64(elsewhere)
    pairs = (
        (of_peers(held_out, own), of_peers(targets, other)),
        (
            shares_by_loops(points[0], own, points[0], classes, 50, True),
            shares_by_loops(points[1], other, points[0], classes, 50, False),
        ),
    )
    # votes do not fall
    lost = min(-math.log(drop_by_scikit_learn(a, before, b, after, chance)[0]) for a, b in pairs)
    assert lost > 0.05

    def exponent(separable, **options):
        monkeypatch.setattr(conditional, "separability", lambda *_, **__: jnp.float32(separable))
        call = functools.partial(
            ESTIMATORS["confidence_conditional_by_peers"], margin=0.0, tolerance=0.0, **options
        )
        found = float(jax.jit(call)(held_out, labels, targets).accuracy)
        return -math.log((found - chance) / (after.mean() - chance))

    np.testing.assert_allclose(exponent(0.1, strength=3.0), 3 * lost, rtol=1e-3)
    np.testing.assert_allclose(exponent(0.8, strength=5.0), 5 * 0.4 * lost, rtol=1e-3)
    ratio, error = drop_by_scikit_learn(pairs[1][0], before, pairs[1][1], after, chance)
    exponent_of_support = 4 * max(-math.log(ratio + 0.5 * error) - 0.05, 0)
    expected = chance + (after.mean() - chance) * math.exp(-exponent_of_support)
    assert expected < after.mean() - 0.01
    found = jax.jit(ESTIMATORS["confidence_conditional"])(held_out, labels, targets)
    np.testing.assert_allclose(found.accuracy, expected, atol=1e-4)
