"""Laws that every objective keeps, including a user's; and the oracle of each."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import references
from dispatching import exhaustive
from jax.sharding import PartitionSpec as P
from objectives_table import CASES

import calmoe_jax as cm
from calmoe_jax import mixture
from calmoe_jax.training import Batch, Objective, objectives
from calmoe_jax.training.step import batch_loss

SIZE, EXPERTS, CLASSES = 24, 3, 4


@cache
def problem(seed=1):
    """Experts' probabilities, routing weights and labels of a batch, as NumPy arrays."""
    rng = np.random.RandomState(seed)
    probs = references.softmax(rng.randn(SIZE, EXPERTS, CLASSES) * 2)
    gate = rng.randn(SIZE, EXPERTS)
    return probs, gate, rng.randint(CLASSES, size=SIZE)


def given(rows=slice(None), where=None, seed=1):
    """The prediction of some rows, and the batch."""
    probs, gate, labels = problem(seed)
    prediction = mixture.predict(
        jnp.asarray(np.log(probs[rows]), jnp.float32), jnp.asarray(gate[rows], jnp.float32)
    )
    counted = None if where is None else jnp.asarray(where)
    return prediction, Batch(jnp.zeros((len(labels[rows]), 1)), jnp.asarray(labels[rows]), counted)


@partial(jax.jit, static_argnums=(0, 4))
def apply(objective, prediction, batch, state, axis_name=None):
    losses = cm.mixture_losses(
        prediction.expert_log_probs, prediction.routing.combine_weights, batch.labels
    )
    return losses.loss, *objective.loss(losses, prediction, batch, state, axis_name=axis_name)


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]


def evaluated(case, *args, **kwargs):
    return apply(case.objective, *given(*args, **kwargs), case.objective.init())


def test_shapes_and_weights(case):
    losses, loss, log_weights, state = evaluated(case)
    assert loss.shape == ()
    assert loss.dtype == log_weights.dtype == jnp.float32
    assert log_weights.shape == (SIZE,)
    np.testing.assert_allclose(jax.nn.logsumexp(log_weights), 0, atol=1e-5)
    before = case.objective.init()
    assert jax.tree.structure(state) == jax.tree.structure(before)
    assert all(
        a.shape == b.shape and a.dtype == b.dtype
        for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(before), strict=True)
    )
    if case.adversarial:
        assert losses.mean() - 1e-5 <= loss <= losses.max()
        np.testing.assert_allclose(loss, jnp.exp(log_weights) @ losses, rtol=1e-5)


@pytest.mark.exhaustive
def test_eager_is_jit(case):
    prediction, batch = given()
    state = case.objective.init()
    compiled = apply(case.objective, prediction, batch, state)
    with jax.disable_jit():
        eager = apply(case.objective, prediction, batch, state)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), compiled, eager
    )


def test_masked_examples_do_not_matter(case):
    """Padding at the end, so that positions are the same."""
    where = np.arange(SIZE) < 17
    _, loss, log_weights, state = evaluated(case, where=where)
    _, alone, alone_weights, alone_state = evaluated(case, slice(17))
    np.testing.assert_allclose(loss, alone, rtol=2e-5)
    np.testing.assert_allclose(log_weights[:17], alone_weights, rtol=1e-4, atol=2e-4)
    assert (log_weights[17:] == -jnp.inf).all()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), state, alone_state)


def test_the_order_of_examples_does_not_matter(case):
    if case.by_position:
        pytest.skip("its folds are by position")
    order = np.random.RandomState(0).permutation(SIZE)
    _, loss, log_weights, _ = evaluated(case)
    _, moved, moved_weights, _ = evaluated(case, order)
    np.testing.assert_allclose(moved, loss, rtol=1e-5)
    np.testing.assert_allclose(moved_weights, log_weights[order], rtol=1e-4, atol=2e-4)


def test_equal_losses_get_equal_weights(case):
    """All examples are equal."""
    _, loss, log_weights, _ = evaluated(case, np.zeros(SIZE, int))
    losses = evaluated(CASES["erm"], np.zeros(1, int))[0]
    np.testing.assert_allclose(loss, case.scale * losses[0], rtol=1e-5)
    np.testing.assert_allclose(jnp.exp(log_weights), 1 / SIZE, rtol=1e-4)


@pytest.mark.exhaustive
def test_the_gradient_is_finite_and_lowers_the_loss(case):
    probs, gate, labels = problem()
    batch = Batch(None, jnp.asarray(labels))

    @jax.jit
    def loss(logits):
        prediction = mixture.predict(jax.nn.log_softmax(logits), jnp.asarray(gate, jnp.float32))
        losses = cm.mixture_losses(
            prediction.expert_log_probs, prediction.routing.combine_weights, batch.labels
        )
        return case.objective.loss(losses, prediction, batch, case.objective.init())[0]

    logits = jnp.asarray(np.log(probs), jnp.float32)
    value, gradient = jax.value_and_grad(loss)(logits)
    assert jnp.isfinite(gradient).all()
    assert loss(logits - 0.01 * gradient / jnp.linalg.norm(gradient)) < value


@pytest.mark.parametrize("driver", ["shard_map", *exhaustive("pmap")])
def test_devices_give_what_one_gives(case, driver):
    count = min(4, len(jax.devices()))
    if count < 2:
        pytest.skip("one device")
    prediction, batch = given()
    state = case.objective.init()
    _, loss, log_weights, after = apply(case.objective, prediction, batch, state)
    rows = (prediction.expert_log_probs, prediction.gate_logits, batch.labels)

    def of_part(log_probs, gate_logits, labels):
        part = mixture.predict(log_probs, gate_logits), Batch(None, labels)
        return apply(case.objective, *part, state, "d")[1:]

    if driver == "shard_map":
        mesh = jax.sharding.Mesh(np.array(jax.devices()[:count]), ("d",))
        of_all = jax.shard_map(
            of_part, mesh=mesh, in_specs=(P("d"),) * 3, out_specs=(P(), P("d"), P()),
            check_vma=False,
        )  # fmt: skip
        found = jax.jit(of_all)(*rows)
    else:
        parts = [x.reshape(count, SIZE // count, *x.shape[1:]) for x in rows]
        loss_, weights_, state_ = jax.pmap(of_part, axis_name="d", devices=jax.devices()[:count])(
            *parts
        )
        found = loss_[0], weights_.reshape(-1), jax.tree.map(lambda x: x[0], state_)
    np.testing.assert_allclose(found[0], loss, rtol=1e-5)
    np.testing.assert_allclose(found[1], log_weights, rtol=1e-4, atol=2e-4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found[2], after)


def test_losses_equal_their_oracles():
    probs, gate, labels = problem()
    weights = references.softmax(gate)
    mixed = -np.log(references.mix(probs, weights)[np.arange(SIZE), labels])
    regret = mixed + np.log(probs[np.arange(SIZE), :, labels]).max(axis=1)
    relevant = (regret > 0.01) | (references.disagreement(probs, weights) > 0.01)
    expected = {
        "erm": mixed.mean(),
        "robust": references.robust(mixed, 2.0)[0],
        "robust_released": references.robust(mixed, 2.0)[0],
        "robust_filtered": references.robust_filtered(mixed, relevant, 2.0),
    }
    for name, value in expected.items():
        np.testing.assert_allclose(evaluated(CASES[name])[1], value, rtol=1e-5, err_msg=name)
    share = references.robust(mixed, 2.0)[1]
    np.testing.assert_allclose(jnp.exp(evaluated(CASES["robust"])[2]), share, rtol=1e-4)
    entropy = -(np.exp(evaluated(CASES["radius_robust"])[2]) @ evaluated(CASES["radius_robust"])[2])
    np.testing.assert_allclose(np.exp(entropy) / SIZE, 0.5, rtol=1e-3)


def test_the_log_of_a_batch():
    prediction, batch = given()
    log, _ = batch_loss(objectives.robust(eta=2.0), prediction, batch, ())
    probs, gate, labels = problem()
    mixed = references.mix(probs, references.softmax(gate))
    w = references.robust(-np.log(mixed[np.arange(SIZE), labels]), 2.0)[1]
    np.testing.assert_allclose(log.effective_sample_size, 1 / np.sum(w**2), rtol=1e-4)
    np.testing.assert_allclose(log.accuracy, (mixed.argmax(1) == labels).mean())
    np.testing.assert_allclose(log.nll, -np.log(mixed[np.arange(SIZE), labels]).mean(), rtol=1e-5)
    np.testing.assert_allclose(log.importance, references.softmax(gate).mean(axis=0), rtol=1e-5)


@pytest.mark.parametrize("where", [None, np.arange(SIZE) < 17])
def test_gate_losses_are_those_of_the_gate(where):
    prediction, batch = given(where=where)
    with_both = objectives.with_gate_losses(objectives.erm(), load_balancing=0.1, z_loss=0.01)
    plain, both = (
        batch_loss(o, prediction, batch, ())[0].loss for o in (objectives.erm(), with_both)
    )
    gate = prediction.gate_logits
    counted = None if where is None else jnp.asarray(where)
    balance = cm.load_balancing_loss(cm.gate_probabilities(gate), prediction.routing, where=counted)
    small = cm.router_z_loss(gate, where=counted)
    np.testing.assert_allclose(both - plain, 0.1 * balance + 0.01 * small, rtol=1e-4)
    assert objectives.with_gate_losses(objectives.erm()) is not None
    unchanged = objectives.erm()
    assert objectives.with_gate_losses(unchanged) is unchanged


def test_a_warm_up_returns_the_objective_state_unchanged():
    state = CASES["cross_batch_robust"].objective.init()
    assert apply(objectives.erm(), *given(), state)[3] == state


def test_only_the_filtered_objective_needs_every_expert():
    needing = [name for name, case in CASES.items() if case.objective.needs_all_experts]
    assert needing == ["robust_filtered"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: objectives.robust(eta=0.0), "eta must be positive"),
        (lambda: objectives.robust_filtered(eta=1.0, regret_threshold=-1.0), "regret_threshold"),
        (lambda: objectives.balanced_robust(eta=-1.0), "eta must be positive"),
        (lambda: objectives.configuration_robust(eta=-1.0), "eta must be positive"),
        (lambda: objectives.radius_robust(effective_fraction=0.0), "fraction"),
        (lambda: objectives.cross_batch_robust(eta=1.0, decay=1.0), "decay"),
        (lambda: objectives.rectified(objectives.erm(), filter_share=2.0), "filter_share"),
        (lambda: objectives.with_gate_losses(objectives.erm(), z_loss=-1.0), "z_loss"),
    ],
)
def test_numbers_out_of_range_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_the_filter_touches_some_images_and_no_features():
    images = jnp.asarray(np.random.RandomState(0).rand(64, 8, 8, 1), jnp.float32)
    filtered = objectives.filter_some(images, jax.random.key(0), 0.05)
    changed = jnp.abs(filtered - images).max(axis=(1, 2, 3)) > 1e-3
    assert changed.tolist() == [True] * 3 + [False] * 61
    assert int((objectives.filter_some(images[:5], jax.random.key(0), 0.0) != images[:5]).sum()) > 0
    for features in (jnp.ones((4, 3)), {"ids": jnp.ones((4, 3), jnp.int32)}):
        assert objectives.filter_some(features, jax.random.key(0), 0.5) is features


def test_an_objective_is_two_functions():
    mine = Objective(lambda: (), CASES["theirs"].objective.loss)
    assert mine.rectification is None
    assert not mine.needs_all_experts
