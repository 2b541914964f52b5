"""Training: gradients as claimed, seeds alike however mapped, bit-equal resumption."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import references
from small import all_experts, small_images, small_task

import calmoe_jax as cm
from calmoe_jax import training
from calmoe_jax.study.config import with_defaults
from calmoe_jax.study.networks import build_network
from calmoe_jax.training import loop, step
from calmoe_jax.training.step import Objective, TrainState, make_epoch

SEEDS = (7, 8)
MODEL = training.ModelConfig(width=8, depth=1, experts=3, router_hidden=8)
TRAIN = training.TrainConfig(epochs=3, warmup_epochs=1, batch_size=16, checkpoint_every=1)
OBJECTIVE = Objective(
    eta=2.0,
    regret_threshold=0.01,
    disagreement_threshold=0.01,
    filter_share=0.05,
    load_balancing=0.0,
    z_loss=0.0,
)


def train(tmp_path, method="robust", task=None, model=MODEL, config=TRAIN, **kwargs):
    tmp_path.mkdir(exist_ok=True)
    return training.train_recipe(
        training.METHODS[method].recipe,
        task or small_task(),
        model,
        config,
        SEEDS,
        checkpoints=training.Checkpoints(tmp_path / "checkpoints"),
        log=training.MetricsLog(tmp_path / "metrics.jsonl"),
        **kwargs,
    )


def equal(a, b):
    return all(
        bool((np.asarray(x) == np.asarray(y)).all())
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


@pytest.mark.parametrize("method", list(training.METHODS))
def test_the_loss_of_a_batch_equals_its_oracle(method):
    recipe = training.METHODS[method].recipe
    rng = np.random.RandomState(1)
    experts = 1 if recipe.single else 3
    probs = references.softmax(rng.randn(20, experts, 4) * 2)
    weights = references.softmax(rng.randn(20, experts))
    labels = rng.randint(4, size=20)
    prediction = step.Prediction(
        jnp.asarray(np.log(probs), jnp.float32),
        jnp.zeros((20, experts)),
        all_experts(jnp.asarray(weights, jnp.float32)),
    )
    mixed = -np.log(references.mix(probs, weights)[np.arange(20), labels])
    regret = mixed + np.log(probs[np.arange(20), :, labels]).max(axis=1)
    relevant = (regret > 0.01) | (references.disagreement(probs, weights) > 0.01)
    expected = {
        "erm": mixed.mean(),
        "robust": references.robust(mixed, 2.0)[0],
        "robust_filtered": references.robust_filtered(mixed, relevant, 2.0),
    }
    adversary = step.init_adversary(recipe, OBJECTIVE)
    log, adversary = step.batch_loss(recipe, OBJECTIVE, prediction, jnp.asarray(labels), adversary)
    if recipe.objective in expected:
        np.testing.assert_allclose(log.loss, expected[recipe.objective], rtol=1e-5)
    else:  # an adversary of its own: no milder than the mean, no worse than the worst
        assert mixed.mean() - 1e-5 <= log.loss <= mixed.max()
        assert 1 <= log.effective_sample_size <= 20.001
    np.testing.assert_allclose(log.nll, mixed.mean(), rtol=1e-5)
    if recipe.objective == "robust":
        w = references.robust(mixed, 2.0)[1]
        np.testing.assert_allclose(log.effective_sample_size, 1 / np.sum(w**2), rtol=1e-4)


def one_step(method, task):
    """Parameters before and after one step of plain gradient descent, and its gradient."""
    recipe = training.METHODS[method].recipe
    network = build_network(
        MODEL, single=recipe.single, input_shape=task.input_spec.shape, num_classes=3
    )
    optimizer = optax.sgd(1.0)
    size = len(task.train)
    epoch = make_epoch(network, recipe, OBJECTIVE, optimizer, batch_size=size)
    params, statistics = network.init(jax.random.key(0))
    state = TrainState(params, statistics, optimizer.init(params))
    arguments = jnp.int32(0), jnp.int32(0)
    inputs, labels = jnp.asarray(task.train.inputs), jnp.asarray(task.train.labels)
    after, _ = jax.jit(epoch)(state, *arguments, inputs, labels)
    gradient = jax.tree.map(lambda a, b: a - b, params, after.params)
    return network, params, gradient, (inputs, labels)


@pytest.mark.parametrize("method", ["vanilla", "robust", "robust_released", "fgr"])
def test_a_step_follows_the_objective_written_out(method):
    """The whole batch at once: the order of its rows does not matter."""
    network, params, gradient, (inputs, labels) = one_step(method, small_task())

    def losses(params):
        prediction, _ = network.apply(params, {}, inputs, train=True)
        probs = jnp.exp(prediction.expert_log_probs) * prediction.routing.combine_weights[..., None]
        mixed = probs.sum(axis=1)
        return -jnp.log(mixed[jnp.arange(len(labels)), labels]), mixed

    def main(params):
        loss = losses(params)[0]
        if method in ("vanilla", "fgr"):
            return loss.mean()
        w = jax.nn.softmax(2.0 * loss)
        return (loss * (jax.lax.stop_gradient(w) if method == "robust" else w)).sum()

    expected = jax.grad(main)(params)
    if method == "fgr":

        def calibration(params):
            mixed = losses(params)[1]
            return cm.calibration.soft_binned_error(mixed.max(-1), mixed.argmax(-1) == labels)

        expected = cm.fgr.rectify_gradient(expected, jax.grad(calibration)(params))
    for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-6)


@pytest.mark.parametrize("method", ["vanilla", "fgr_robust"])
def test_chosen_experts_alone_train_as_the_masked_dense_ones(method):
    model = dataclasses.replace(MODEL, routing="top_k", k=2)
    task, recipe = small_task(), training.METHODS[method].recipe
    network = build_network(model, single=False, input_shape=task.input_spec.shape, num_classes=3)
    widths = []

    def masked(*args, sparse, **kwargs):
        widths.append(sparse)
        return network.apply(*args, sparse=False, **kwargs)

    params, statistics = network.init(jax.random.key(0))
    optimizer = optax.adamw(1e-2)
    state = TrainState(params, statistics, optimizer.init(params))
    results = [
        jax.jit(make_epoch(each, recipe, OBJECTIVE, optimizer, batch_size=16))(
            state, jnp.int32(0), jnp.int32(0), task.train.inputs, task.train.labels
        )
        for each in (network, network._replace(apply=masked))
    ]
    assert all(widths)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        *((state.params, log.means) for state, log in results),
    )


def test_regret_is_against_all_experts():
    task, model = small_task(), dataclasses.replace(MODEL, routing="top_k", k=1)
    network = build_network(model, single=False, input_shape=task.input_spec.shape, num_classes=3)
    recipe, seen = training.METHODS["robust_filtered"].recipe, []

    def watched(*args, sparse, **kwargs):
        seen.append(sparse)
        return network.apply(*args, sparse=sparse, **kwargs)

    optimizer = optax.sgd(0.1)
    params, statistics = network.init(jax.random.key(0))
    state = TrainState(params, statistics, optimizer.init(params))
    watching = network._replace(apply=watched)
    epoch = make_epoch(watching, recipe, OBJECTIVE, optimizer, batch_size=16)
    jax.eval_shape(epoch, state, jnp.int32(0), jnp.int32(0), task.train.inputs, task.train.labels)
    assert seen
    assert not any(seen)


@pytest.mark.slow
def test_the_warm_up_is_vanilla_for_every_mixture(tmp_path):
    """The same seeds: bit-equal through the warm-up, apart from then on."""
    config = training.TrainConfig(epochs=2, warmup_epochs=1, batch_size=16)
    lines = {}
    for method in ("vanilla", "robust", "robust_filtered_released", "fgr_robust"):
        train(tmp_path / method, method, config=config)
        log = training.MetricsLog(tmp_path / method / "metrics.jsonl").read()
        lines[method] = [{k: v for k, v in line.items() if k != "method"} for line in log]
    reference = lines.pop("vanilla")
    for log in lines.values():
        assert log[:2] == reference[:2]
        assert all(a["loss"] != b["loss"] for a, b in zip(log[2:], reference[2:], strict=True))
    assert training.METHODS["single"].recipe.warm_up().single


def test_the_filter_touches_some_images_and_no_features():
    images = jnp.asarray(small_images().train.inputs)
    filtered = step.filter_some(images, jax.random.key(0), 0.05)
    changed = jnp.abs(filtered - images / 255).max(axis=(1, 2, 3)) > 1e-3
    assert changed.tolist() == [True] * 3 + [False] * 61
    assert int((step.filter_some(images[:5], jax.random.key(0), 0.0) != images[:5] / 255).sum()) > 0
    features = jnp.ones((4, 3))
    assert step.filter_some(features, jax.random.key(0), 0.5) is features


@pytest.mark.slow
@pytest.mark.parametrize("method", ["vanilla", "fgr_robust"])
def test_seeds_do_not_depend_on_how_they_are_mapped(method, tmp_path, monkeypatch):
    mapped = train(tmp_path / "map", method)
    monkeypatch.setattr(loop, "over_seeds", jax.vmap)
    loop._program.cache_clear()
    batched = train(tmp_path / "vmap", method)
    monkeypatch.undo()
    loop._program.cache_clear()
    for a, b in zip(jax.tree.leaves(mapped.state), jax.tree.leaves(batched.state), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-5)
    alone = training.train_recipe(
        training.METHODS[method].recipe,
        small_task(),
        MODEL,
        TRAIN,
        SEEDS[1:],
        checkpoints=training.Checkpoints(tmp_path / "one"),
        log=training.MetricsLog(tmp_path / "one.jsonl"),
    )
    for a, b in zip(jax.tree.leaves(mapped.state), jax.tree.leaves(alone.state), strict=True):
        np.testing.assert_allclose(a[1:], b, rtol=2e-3, atol=2e-5)


@pytest.mark.slow
def test_one_compilation_for_all_seeds_and_epochs(tmp_path, caplog):
    """One program for the objective and one for the warm-up, which is vanilla's own."""

    def compiled(method):
        caplog.clear()
        with jax.log_compiles(True), caplog.at_level("WARNING"):
            train(tmp_path / method, method)
        messages = [record.getMessage() for record in caplog.records]
        done = [m for m in messages if "Finished XLA compilation" in m]
        return len([m for m in done if "epoch_of_seeds" in m])

    loop._program.cache_clear()
    assert compiled("robust") == 2
    assert compiled("vanilla") == 0
    assert compiled("fgr") == 1


def test_training_learns_and_seeds_differ(tmp_path):
    config = training.TrainConfig(epochs=30, batch_size=16, learning_rate=1e-2)
    trained = train(tmp_path, "vanilla", config=config)
    lines = training.MetricsLog(tmp_path / "metrics.jsonl").read()
    assert len(lines) == 60
    first, last = lines[0], lines[-1]
    assert last["nll"] < 0.6 * first["nll"]
    assert last["step"] == 30 * 6
    assert lines[0]["loss"] != lines[1]["loss"]
    kernel = jax.tree.leaves(trained.state.params)[-1]
    assert not (kernel[0] == kernel[1]).all()


class Stop(Exception):
    pass


@pytest.mark.parametrize(("interrupt_after", "error"), [(1, KeyboardInterrupt), (3, Stop)])
def test_resumption_is_bit_equal(tmp_path, interrupt_after, error):
    """An interrupt saves the epoch it came in; a crash goes back to the last checkpoint."""
    config = training.TrainConfig(epochs=4, batch_size=16, checkpoint_every=2)
    whole = train(tmp_path / "whole", "robust_filtered", config=config)

    count = 0

    def stop(_):
        nonlocal count
        count += 1
        if count == interrupt_after:
            raise error

    with pytest.raises(error):
        train(tmp_path / "cut", "robust_filtered", config=config, on_epoch=stop)
    log = tmp_path / "cut" / "metrics.jsonl"
    log.write_text(log.read_text() + '{"method": "robust_filt')  # a line that a crash cut off
    resumed = train(tmp_path / "cut", "robust_filtered", config=config)
    assert equal(whole.state, resumed.state)
    assert equal(whole.importance, resumed.importance)
    assert (tmp_path / "whole" / "metrics.jsonl").read_text() == log.read_text()
    again = train(tmp_path / "cut", "robust_filtered", config=config, on_epoch=stop)
    assert equal(whole.state, again.state)
    assert equal(whole.importance, again.importance)


def test_checkpoints_restore_every_bit(tmp_path):
    checkpoints = training.Checkpoints(tmp_path / "c")
    assert checkpoints.latest() is None
    trained = train(tmp_path, "vanilla", task=small_images(), model=training.ModelConfig(
        backbone="resnet18", stages=1, width=4, experts=2, router_hidden=4
    ))  # fmt: skip
    state = trained.state
    for epochs in (1, 2, 3):
        checkpoints.save(epochs, state)
    assert checkpoints.latest() == 3
    assert equal(checkpoints.restore(3, jax.eval_shape(lambda: state)), state)
    assert sorted(p.name for p in (tmp_path / "c").iterdir() if p.name.isdigit()) == ["2", "3"]
    means = [leaf for leaf in jax.tree.leaves(state.statistics)]
    assert any(float(jnp.abs(m).max()) > 0 for m in means)


def test_a_non_finite_loss_stops_the_run_and_names_the_place(tmp_path):
    task = small_task()
    train(tmp_path, "vanilla", config=training.TrainConfig(epochs=1, batch_size=16))
    task.train.inputs[5] = np.float32(3e38)  # overflows in the network
    with pytest.raises(training.NonFiniteLossError) as error:
        train(tmp_path, "vanilla", task=task, config=training.TrainConfig(epochs=2, batch_size=16))
    message = str(error.value)
    assert "method vanilla, seed 7" in message
    assert f"the last good checkpoint is {tmp_path / 'checkpoints' / '1'}" in message
    steps = [int(word) for word in message.replace("(", " ").split() if word.isdigit()]
    assert any(7 <= s <= 12 for s in steps)  # the second epoch has steps 7 to 12
    assert training.Checkpoints(tmp_path / "checkpoints").latest() == 1


@pytest.mark.slow
@pytest.mark.parametrize("routing", ["top_k", "hard"])
def test_load_balancing_spreads_the_load(tmp_path, routing):
    model = training.ModelConfig(width=8, depth=1, experts=4, router_hidden=8, routing=routing)

    def largest_share(coefficient):
        config = training.TrainConfig(
            epochs=10, batch_size=16, learning_rate=1e-2, load_balancing=coefficient
        )
        folder = tmp_path / str(coefficient)
        return train(folder, "vanilla", model=model, config=config).importance.max(axis=1).mean()

    assert largest_share(1.0) < largest_share(0.0) - 0.05


def test_dead_experts_are_named():
    trained = training.TrainedSeeds(
        None, None, np.array([[0.5, 0.49, 0.01], [1 / 3, 1 / 3, 1 / 3]])
    )
    assert trained.dead_experts() == [[2], []]


def test_defaults_that_depend_on_the_routing():
    dense = with_defaults(training.ModelConfig(), training.TrainConfig())
    hard = with_defaults(training.ModelConfig(routing="hard"), training.TrainConfig())
    assert (dense.warmup_epochs, dense.load_balancing, dense.z_loss, dense.clip_norm) == (
        20,
        0,
        0,
        0,
    )
    assert (hard.load_balancing, hard.z_loss, hard.clip_norm) == (0.1, 0.001, 1.0)
    chosen = with_defaults(
        training.ModelConfig(routing="hard"),
        training.TrainConfig(load_balancing=0.0, warmup_epochs=0, clip_norm=0.0),
    )
    assert (chosen.load_balancing, chosen.warmup_epochs, chosen.clip_norm) == (0, 0, 0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: training.TrainConfig(eta=0.0), "eta must be positive and finite, got eta=0.0"),
        (lambda: training.TrainConfig(eta=-1.0), "eta must be positive"),
        (lambda: training.TrainConfig(epochs=0), "epochs must be at least 1, got epochs=0"),
        (lambda: training.TrainConfig(batch_size=0), "batch_size"),
        (lambda: training.TrainConfig(warmup_epochs=51), r"warmup_epochs must be in \[0, 50\]"),
        (lambda: training.TrainConfig(learning_rate=float("nan")), "learning_rate"),
        (lambda: training.TrainConfig(filter_share=1.5), "filter_share"),
        (lambda: training.TrainConfig(load_balancing=-0.1), "load_balancing"),
        (lambda: training.ModelConfig(routing="top_k", k=5), r"k must be in \[1, experts=4\]"),
        (lambda: training.ModelConfig(experts=0), "experts must be at least 1, got experts=0"),
        (lambda: training.ModelConfig(stages=5), "stages"),
        (lambda: training.RunConfig(seeds=0), "seeds must be at least 1, got seeds=0"),
        (lambda: training.RunConfig(methods=()), "number of methods"),
        (lambda: training.RunConfig(methods=("robst",)), r"got 'robst'\. Did you mean robust\?"),
        (lambda: training.RunConfig(methods=("fgr", "fgr")), "once each"),
        (lambda: training.RunConfig(first_seed=-1), "first_seed"),
    ],
)
def test_bad_configurations(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_resnet_wants_images():
    with pytest.raises(ValueError, match="backbone must be mlp for inputs that are not images"):
        build_network(
            training.ModelConfig(backbone="resnet18"), single=False, input_shape=(4,), num_classes=3
        )


def test_methods_share_trainings():
    recipes = training.recipes_of(("mocae", "single", "vanilla"))
    assert [r.name for r in recipes] == ["vanilla", "single"]
    assert len(training.recipes_of(training.PAPER_METHODS)) == 6
