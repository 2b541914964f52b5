"""Laws, loops and the paper's counterexamples for the mixture."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import references

import calmoe_jax as cm

# one program for each shape, where single operations would be as many
configuration, mixture_losses, mix_log_probs = (
    jax.jit(f) for f in (cm.configuration, cm.mixture_losses, cm.mix_log_probs)
)


def problem(seed, tokens=12, experts=4, classes=5):
    rng = np.random.RandomState(seed)
    experts_probs = references.softmax(rng.randn(tokens, experts, classes) * 2)
    gate_logits = rng.randn(tokens, experts)
    labels = rng.randint(classes, size=tokens)
    return experts_probs, gate_logits, labels


def weights_of(kind, gate_logits):
    gate = jnp.asarray(gate_logits, jnp.float32)
    if kind == "dense":
        return cm.gate_probabilities(gate)
    k = {"hard": 1, "top_2": 2}[kind]
    return cm.routing_weights(cm.top_k_routing(gate, k=k), num_experts=gate.shape[-1])


@pytest.mark.parametrize("kind", ["dense", "top_2", "hard"])
def test_aggregate_equals_a_loop(kind):
    probs, gate, labels = problem(0)
    weights = weights_of(kind, gate)
    expected = references.mix(probs, np.asarray(weights, np.float64))
    log_experts = jnp.asarray(np.log(probs), jnp.float32)
    np.testing.assert_allclose(cm.mix(jnp.exp(log_experts), weights), expected, rtol=1e-5)
    np.testing.assert_allclose(jnp.exp(mix_log_probs(log_experts, weights)), expected, rtol=1e-5)
    stats = configuration(log_experts, weights)
    np.testing.assert_allclose(
        stats.disagreement,
        references.disagreement(probs, np.asarray(weights, np.float64)),
        atol=1e-6,
    )
    np.testing.assert_allclose(
        stats.routing_entropy, [references.entropy(w) for w in np.asarray(weights)], atol=1e-6
    )
    np.testing.assert_allclose(stats.entropy, [references.entropy(p) for p in expected], atol=1e-5)
    top = np.sort(expected, -1)
    np.testing.assert_allclose(stats.margin, top[:, -1] - top[:, -2], atol=1e-6)
    top = np.sort(np.asarray(weights), -1)
    np.testing.assert_allclose(stats.routing_margin, top[:, -1] - top[:, -2], atol=1e-6)
    losses = mixture_losses(log_experts, weights, jnp.asarray(labels))
    each = -np.log(probs[np.arange(12), :, labels])
    mixed = -np.log(expected[np.arange(12), labels])
    np.testing.assert_allclose(losses.loss, mixed, rtol=1e-5)
    np.testing.assert_allclose(losses.expert_losses, each, rtol=1e-5)
    np.testing.assert_allclose(losses.regret, np.maximum(mixed - each.min(1), 0), atol=1e-5)


def test_slots_equal_dense_weights():
    probs, gate, _ = problem(1)
    routing = cm.top_k_routing(jnp.asarray(gate, jnp.float32), k=2)
    log_experts = jnp.asarray(np.log(probs), jnp.float32)
    slots = jnp.take_along_axis(log_experts, routing.expert_indices[:, :, None], axis=1)
    dense = cm.routing_weights(routing, num_experts=4)
    np.testing.assert_allclose(
        mix_log_probs(slots, routing.combine_weights),
        mix_log_probs(log_experts, dense),
        atol=1e-6,
    )


def test_a_prediction_is_mixed_once_and_its_aggregate_can_be_given():
    probs, gate, labels = problem(5)
    log_experts, gate = jnp.asarray(np.log(probs), jnp.float32), jnp.asarray(gate, jnp.float32)
    dense = cm.mixture.predict(log_experts, gate)
    weights = cm.gate_probabilities(gate)
    np.testing.assert_array_equal(dense.log_probs, cm.mix_log_probs(log_experts, weights))
    np.testing.assert_array_equal(dense.routing.combine_weights, weights)
    for a, b in zip(dense.gate, cm.routing.gate_statistics(gate), strict=True):
        np.testing.assert_array_equal(a, b)
    chosen = cm.top_k_routing(gate, k=2)
    slots = jnp.take_along_axis(log_experts, chosen.expert_indices[:, :, None], axis=1)
    sparse = cm.mixture.predict(slots, gate, chosen, dense.gate)
    assert sparse.gate is dense.gate
    np.testing.assert_array_equal(sparse.log_probs, cm.mix_log_probs(slots, chosen.combine_weights))
    # what is given is taken, and nothing is mixed again
    given = jnp.asarray(labels)
    for function, more in ((configuration, ()), (mixture_losses, (given,))):
        plain = function(log_experts, weights, *more)
        for a, b in zip(plain, function(log_experts, weights, *more, dense.log_probs), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)
    losses = jax.make_jaxpr(cm.mixture_losses)(log_experts, weights, given, dense.log_probs)
    assert " exp " not in str(losses)
    with pytest.raises(ValueError, match=r"tokens and slots \(12, 4\) of expert_log_probs, got"):
        cm.mixture.predict(log_experts, gate, chosen)


def test_hard_routing_has_no_disagreement():
    probs, gate, _ = problem(2)
    stats = configuration(jnp.asarray(np.log(probs), jnp.float32), weights_of("hard", gate))
    assert (stats.disagreement == 0).all()
    assert (stats.routing_entropy == 0).all()
    assert (stats.routing_margin == 1).all()


def test_one_expert_one_class_no_example():
    log_experts = jnp.log(jnp.full((3, 1, 2), 0.5))
    stats = configuration(log_experts, jnp.ones((3, 1)))
    np.testing.assert_allclose(stats.log_probs, log_experts[:, 0], rtol=1e-6)
    assert (stats.routing_margin == 1).all()
    assert configuration(jnp.zeros((2, 3, 1)), jnp.full((2, 3), 1 / 3)).margin.shape == (2,)
    assert configuration(jnp.zeros((0, 3, 2)), jnp.zeros((0, 3))).confidence.shape == (0,)


def test_no_underflow_and_impossible_classes():
    log_experts = jnp.array([[[-1e4, 0.0, -jnp.inf], [-2e4, 0.0, -jnp.inf]]])
    weights = jnp.array([[0.5, 0.5]])
    mixed = mix_log_probs(log_experts, weights)
    np.testing.assert_allclose(mixed[0, :2], [-1e4 - np.log(2), 0], rtol=1e-6, atol=1e-7)
    assert mixed[0, 2] == -jnp.inf
    gradient = jax.grad(lambda f, w: mix_log_probs(f, w)[0, :2].sum(), argnums=(0, 1))
    assert all(bool(jnp.isfinite(g).all()) for g in gradient(log_experts, weights))
    # an impossible class of a chosen expert, possible for one that was not chosen
    one_hot = jnp.array([[1.0, 0.0]])
    experts = jnp.array([[[-jnp.inf, 0.0], [0.0, -jnp.inf]]])
    assert mix_log_probs(experts, one_hot)[0].tolist() == [-jnp.inf, 0]
    assert mixture_losses(experts, one_hot, jnp.array([0])).regret[0] == jnp.inf


def test_gradient_to_a_weight_of_zero_is_the_ratio():
    log_experts = jnp.log(jnp.array([[[0.2, 0.8], [0.6, 0.4]]]))
    gradient = jax.grad(lambda w: mix_log_probs(log_experts, w)[0, 0])(jnp.array([[1.0, 0.0]]))
    np.testing.assert_allclose(gradient, [[1.0, 3.0]], rtol=1e-5)
    far = jnp.array([[[-200.0, 0.0], [0.0, -200.0]]])
    gradient = jax.grad(lambda w: mix_log_probs(far, w)[0, 0])(jnp.array([[1.0, 0.0]]))
    np.testing.assert_allclose(gradient[0, 1], np.exp(80.0), rtol=1e-4)


@pytest.mark.parametrize("kind", ["dense", "top_2"])
def test_gradients_equal_finite_differences(kind):
    probs, gate, labels = problem(3, tokens=4)
    logits = np.log(probs)
    with jax.enable_x64(True):
        weights = np.asarray(weights_of(kind, gate), np.float64)

        @jax.jit
        def loss(z, w):
            return jnp.sum(
                cm.mixture_losses(
                    jax.nn.log_softmax(jnp.asarray(z)), jnp.asarray(w), jnp.asarray(labels)
                ).loss
            )

        gradients = jax.grad(loss, argnums=(0, 1))(jnp.asarray(logits), jnp.asarray(weights))
        by_logits = references.central_difference(lambda z: float(loss(z, weights)), logits)
        np.testing.assert_allclose(gradients[0], by_logits, rtol=1e-5, atol=1e-8)
        inside = weights > 0
        by_weights = references.central_difference(lambda w: float(loss(logits, w)), weights)
        np.testing.assert_allclose(gradients[1][inside], by_weights[inside], rtol=1e-5, atol=1e-8)


def test_nan_is_kept():
    log_experts = jnp.log(jnp.full((2, 2, 2), 0.5))
    mixed = mix_log_probs(log_experts, jnp.array([[jnp.nan, jnp.nan], [0.5, 0.5]]))
    assert jnp.isnan(mixed[0]).all()
    assert jnp.isfinite(mixed[1]).all()
    stats = configuration(log_experts, jnp.array([[jnp.nan, jnp.nan], [0.5, 0.5]]))
    for name, value in stats._asdict().items():
        if name != "expert_confidences":
            assert jnp.isnan(value[0]).all(), name
    losses = mixture_losses(log_experts, jnp.full((2, 2), 0.5), jnp.array([0, 2]))
    assert jnp.isnan(losses.loss).tolist() == [False, True]
    assert jnp.isnan(
        mixture_losses(log_experts, jnp.full((2, 2), 0.5), jnp.array([0, -1])).loss
    ).tolist() == [False, True]


def test_transforms_agree():
    probs, gate, _ = problem(4)
    args = jnp.asarray(np.log(probs), jnp.float32), weights_of("dense", gate)
    eager = cm.configuration(*args)
    for other in (jax.jit(cm.configuration)(*args), jax.vmap(cm.configuration)(*args)):
        for a, b in zip(eager, other, strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-6, atol=1e-7)


# The population examples of the paper's argument: rows are configurations with a probability
# mass, m = P(Y = 1 | configuration); two classes, column 1 is the event.


def population(configurations):
    """(mass, weights, expert probabilities of class 1, m) as arrays for the library."""
    mass, weights, experts, truth = (
        np.array(x, np.float64) for x in zip(*configurations, strict=True)
    )
    both = np.stack([1 - experts, experts], axis=-1)
    return (
        jnp.asarray(mass),
        jnp.asarray(weights),
        jnp.log(jnp.asarray(both)),
        jnp.asarray(truth),
    )


def class_1_error(configurations, num_bins=15):
    mass, weights, log_experts, truth = population(configurations)
    probability = jnp.exp(mix_log_probs(log_experts, weights))[:, 1]
    bins = cm.calibration.reliability_bins(probability, truth, weights=mass, num_bins=num_bins)
    return float(cm.calibration.calibration_error(bins))


def first_counterexample(v, hard):
    rows = []
    for u in (0, 1):
        p = 0.9 if u else 0.1
        for soft in (0, 1):
            weights = (0.6, 0.4) if soft and not hard else (1.0, 0.0)
            rows.append((0.5 * (v if soft else 1 - v), weights, (p, 0.5), p))
    return rows


@pytest.mark.exhaustive
@pytest.mark.parametrize("v", [0.0, 0.1, 0.5, 0.9])
def test_softening_the_router_breaks_calibration(v):
    """Calibrated experts throughout: classwise ECE is .16 P(soft), and 0 for hard routing."""
    with jax.enable_x64(True):
        soft, hard = first_counterexample(v, False), first_counterexample(v, True)
        assert abs(class_1_error(soft) - 0.16 * v) < 1e-12
        assert class_1_error(hard) < 1e-12
        mass, weights, log_experts, _ = population(soft)
        disagreement = configuration(log_experts, weights).disagreement / 2  # one column
        assert 2 * float(jnp.sum(mass * disagreement)) <= class_1_error(soft) + 1e-12
        assert abs(2 * float(jnp.sum(mass * disagreement)) - 0.0768 * v) < 1e-12


def second_counterexample(g):
    return [
        (g / 2, (0.75, 0.25), (0.9, 0.5), 0.9),
        (g / 2, (0.75, 0.25), (0.1, 0.5), 0.1),
        ((1 - g) / 2, (0.8, 0.2), (0.77, 0.92), 0.72),
        ((1 - g) / 2, (0.2, 0.8), (0.77, 0.92), 0.97),
    ]


@pytest.mark.parametrize(
    ("g", "at_level", "error"), [(4 / 9, 0.8, 0.0444444), (0.9, 0.882, 0.09), (0.1, 0.738, 0.072)]
)
def test_moving_configurations_breaks_a_calibrated_level(g, at_level, error):
    with jax.enable_x64(True):
        rows = second_counterexample(g)
        mass, weights, log_experts, truth = population(rows)
        probability = jnp.exp(mix_log_probs(log_experts, weights))[:, 1]
        np.testing.assert_allclose(probability, [0.8, 0.2, 0.8, 0.89], atol=1e-12)
        level = jnp.array([1.0, 0.0, 1.0, 0.0])
        found = jnp.sum(mass * truth * level) / jnp.sum(mass * level)
        assert abs(float(found) - at_level) < 1e-12
        # 7 bins: no level lies on an edge
        assert abs(class_1_error(rows, num_bins=7) - error) < 1e-6
        for k in range(2):  # both experts stay calibrated on their routing-weighted views
            view = jnp.exp(log_experts[:, k, 1])
            bins = cm.calibration.reliability_bins(
                view, truth, weights=mass * weights[:, k], num_bins=97
            )
            assert float(cm.calibration.calibration_error(bins)) < 1e-12


@pytest.mark.parametrize("seed", range(5))
def test_disagreement_identity(seed):
    """Experts calibrated on their views: E<F, e_Y - F> = E sum_k r_k |f_k - F|^2."""
    rng = np.random.RandomState(seed)
    groups, experts, classes, per_group = 3, 3, 4, 4
    with jax.enable_x64(True):
        # Each expert has `groups` levels; the level is the conditional label law on its view.
        level = rng.randint(groups, size=(groups * per_group, experts))
        weights = references.softmax(rng.randn(len(level), experts))
        mass = references.softmax(rng.randn(len(level)))
        truth = references.softmax(rng.randn(len(level), classes) * 2)
        probs = np.zeros((len(level), experts, classes))
        for k in range(experts):
            for v in range(groups):
                inside = level[:, k] == v
                if inside.any():
                    view = (mass * weights[:, k])[inside]
                    probs[inside, k] = (view[:, None] * truth[inside]).sum(0) / view.sum()
        stats = configuration(jnp.log(jnp.asarray(probs)), jnp.asarray(weights))
        aggregate = jnp.exp(stats.log_probs)
        left = jnp.sum(jnp.asarray(mass) * jnp.sum(aggregate * (truth - aggregate), axis=-1))
        right = jnp.sum(jnp.asarray(mass) * stats.disagreement)
        assert float(right) > 1e-3
        assert abs(float(left - right)) < 1e-12


@pytest.mark.parametrize("seed", range(5))
def test_hard_routing_stays_calibrated_when_configurations_are_reweighted(seed):
    """Calibrated experts on their regions: no reweighting by w(region, confidence) hurts."""
    rng = np.random.RandomState(seed)
    rows = [
        (m, np.eye(3)[k], np.full(3, p), p)
        for k in range(3)
        for p, m in zip(rng.rand(4), references.softmax(rng.randn(4) * 2), strict=True)
    ]
    with jax.enable_x64(True):
        assert class_1_error(rows) < 1e-12
        soft = [(m, (0.5, 0.25, 0.25), (p[0], 0.5, 0.5), t) for m, _, p, t in rows]
        assert class_1_error(soft) > 1e-3  # the same experts, mixed


@pytest.mark.parametrize("classes", [3, 100])
def test_nan_in_many_long_rows_is_not_lost(classes):
    probs = np.full((384, classes), 1 / classes, np.float32)
    probs[:, classes // 2] = np.nan
    log_probs, one = jnp.log(jnp.asarray(probs))[:, None], jnp.ones((384, 1))
    config = jax.jit(cm.configuration)(log_probs, one)
    assert jnp.isnan(config.confidence).all()
    assert jnp.isnan(config.expert_confidences).all()
    labels = jnp.zeros(384, jnp.int32)
    confidence, _ = jax.jit(cm.calibration.top_label)(jnp.asarray(probs), labels)
    assert jnp.isnan(confidence).all()


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_an_expert_of_weight_zero_may_be_broken(broken):
    """The aggregate, its statistics and all gradients are those without the expert."""
    probs, _, labels = problem(8, experts=3)
    others = jnp.asarray(np.log(probs), jnp.float32)
    experts = jnp.concatenate([others, jnp.full((12, 1, 5), broken)], axis=1)
    others = jnp.concatenate([others, jnp.full((12, 1, 5), -jnp.inf)], axis=1)
    weights = jnp.asarray(np.pad(references.softmax(probs[:, :, 0]), ((0, 0), (0, 1))), jnp.float32)
    labels = jnp.asarray(labels)

    @jax.jit
    def everything(experts, weights):
        def losses(experts, weights):
            stats = cm.configuration(experts, weights)
            mixed = cm.mixture_losses(experts, weights, labels)
            parts = stats.log_probs, stats.disagreement, stats.entropy, stats.margin, mixed.regret
            return sum(jnp.sum(jnp.sin(part)) for part in parts), (stats, mixed.loss, mixed.regret)

        return jax.value_and_grad(losses, argnums=(0, 1), has_aux=True)(experts, weights)

    found, expected = everything(experts, weights), everything(others, weights)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)
        assert np.isfinite(a).all()
    np.testing.assert_array_equal(
        cm.mix(jnp.exp(experts), weights), cm.mix(jnp.exp(others), weights)
    )
    predicted = cm.mixture.predict(experts, jnp.zeros((12, 4)), cm.Routing(
        jnp.tile(jnp.arange(4, dtype=jnp.int32), (12, 1)), weights))  # fmt: skip
    np.testing.assert_array_equal(predicted.log_probs, found[0][1][0].log_probs)
    counted = cm.mix(jnp.exp(experts), weights.at[0, -1].set(0.1))
    assert not jnp.isfinite(counted[0]).any()


def test_mixing_keeps_the_gradient_to_a_weight_of_zero():
    probs = jnp.array([[[0.2, 0.8], [0.6, 0.4], [jnp.nan, 0.5]]])
    weights = jnp.array([[1.0, 0.0, 0.0]])
    gradient = jax.grad(lambda w: cm.mix(probs, w)[0, 0])(weights)
    np.testing.assert_allclose(gradient, [[0.2, 0.6, 0.0]], rtol=1e-6)
    gradient = jax.grad(lambda w: cm.mix_log_probs(jnp.log(probs), w)[0, 0])(weights)
    np.testing.assert_allclose(gradient, [[1.0, 3.0, 0.0]], rtol=1e-5)
