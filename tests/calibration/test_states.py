"""A stream in any pieces, any order and on any devices gives the values of all its data."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from devices import shard_map

import calmoe_jax as cm
from calmoe_jax.calibration.states import (
    CalibrationSummary,
    init_state,
    merge_states,
    psum_state,
    summarise,
    update_state,
)

SIZE, CLASSES, BINS = 240, 4, 8
update_jitted = jax.jit(update_state, static_argnames="from_logits")
merge = jax.jit(merge_states)
psum_of_three = jax.jit(jax.vmap(lambda s, _: psum_state(s, "d"), axis_name="d", in_axes=(None, 0)))
compute = jax.jit(summarise)
empty = functools.partial(init_state, num_classes=CLASSES, num_bins=BINS)


def problem(seed=0):
    rng = np.random.RandomState(seed)
    probs = rng.dirichlet(np.full(CLASSES, 0.5), size=SIZE).astype(np.float32)
    probs[:40] = rng.multinomial(16, np.full(CLASSES, 0.25), size=40) / 16
    labels = np.array([rng.choice(CLASSES, p=p / p.sum()) for p in probs.astype(np.float64)])
    return jnp.asarray(probs), jnp.asarray(labels), jnp.asarray(rng.rand(SIZE), jnp.float32)


def every_function(probs, labels, **options):
    """Every field by the function that it comes from."""
    bins = cm.calibration.top_label_bins(probs, labels, num_bins=BINS, **options)
    by_class = cm.calibration.classwise_bins(probs, labels, num_bins=BINS, **options)
    by_bins = {
        "expected_calibration_error": cm.calibration.expected_calibration_error(
            probs, labels, num_bins=BINS, **options
        ),
        "root_mean_square_calibration_error": cm.calibration.calibration_error(bins, norm="l2"),
        "maximum_calibration_error": cm.calibration.calibration_error(bins, norm="max"),
        "debiased_calibration_error": cm.calibration.debiased_calibration_error(bins),
        "debiased_squared_calibration_error": (
            cm.calibration.debiased_squared_calibration_error(bins)
        ),
        "classwise_calibration_errors": cm.calibration.calibration_error(by_class),
    }
    scores = {
        name: getattr(cm.calibration, name)(probs, labels, **options)
        for name in ("accuracy", "negative_log_likelihood", "brier_score", "confidence_gap")
    }
    return CalibrationSummary(**by_bins, **scores, weight=bins.weight.sum(), bins=bins)


at_once_jitted = jax.jit(every_function, static_argnames="from_logits")


def filled(function, *before):
    """With arrays for the defaults and rows that do not count: one compilation for all sizes."""

    def call(probs, labels, weights=None, where=None, **options):
        size = labels.shape[0]
        missing = SIZE - size
        weights = jnp.ones(size) if weights is None else weights
        where = jnp.ones(size, bool) if where is None else where
        return function(
            *before,
            jnp.concatenate([probs, jnp.zeros((missing, CLASSES))]),
            jnp.pad(labels, (0, missing)),
            weights=jnp.pad(weights, (0, missing)),
            where=jnp.pad(where, (0, missing)),
            **options,
        )

    return call


at_once = filled(at_once_jitted)


def update(state, *batch, **options):
    return filled(update_jitted, state)(*batch, **options)


def assert_same(found, expected, rtol=2e-6, atol=1e-6):
    for name, ours, theirs in zip(found._fields, found, expected, strict=True):
        for x, y in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
            np.testing.assert_allclose(x, y, rtol=rtol, atol=atol, err_msg=name)


def stream(pieces, probs, labels, **options):
    state = empty()
    for rows in pieces:
        extra = {k: v[rows] for k, v in options.items()}
        state = update(state, probs[rows], labels[rows], **extra)
    return state


def test_one_batch_is_the_functions_of_the_fields_names():
    probs, labels, weights = problem()
    where = jnp.arange(SIZE) % 5 != 0
    for options in ({}, {"weights": weights, "where": where}):  # one program
        state = update(empty(), probs, labels, **options)
        assert_same(compute(state), at_once(probs, labels, **options))
    logits = jnp.log(probs + 1e-3)
    state = update(empty(), logits, labels, from_logits=True)
    assert_same(compute(state), at_once(logits, labels, from_logits=True))


def test_any_split_in_any_order_is_the_whole():
    probs, labels, weights = problem()
    expected = at_once(probs, labels, weights=weights)
    rng = np.random.RandomState(0)
    for pieces in (4, 10, SIZE):
        parts = rng.permutation(SIZE).reshape(pieces, -1)
        assert_same(compute(stream(parts, probs, labels, weights=weights)), expected)
        states = [stream([rows], probs, labels, weights=weights) for rows in parts[:4]]
        if pieces == 4:
            left = functools.reduce(merge, states, empty())
            right = functools.reduce(merge, states[::-1])
            pairs = merge(merge(states[2], states[0]), merge(states[1], states[3]))
            for state in (left, right, pairs):
                assert_same(compute(state), expected)


def test_nothing_changes_nothing():
    probs, labels, _ = problem()
    state = update(empty(), probs, labels)
    for same in (
        merge(state, empty()),
        merge(empty(), state),
        update(state, probs, labels, where=jnp.zeros(SIZE, bool)),
        update_jitted(state, probs[:0], labels[:0]),
    ):
        for x, y in zip(jax.tree.leaves(same), jax.tree.leaves(state), strict=True):
            np.testing.assert_array_equal(x, y)


def test_an_empty_state_is_nan():
    found = compute(empty())
    assert found.weight == 0
    assert all(jnp.isnan(x).all() for x in found[:-2])


def test_scan_is_a_stream():
    probs, labels, _ = problem()
    state, _ = jax.lax.scan(
        lambda s, batch: (update_state(s, *batch), None),
        empty(),
        (probs.reshape(6, 40, CLASSES), labels.reshape(6, 40)),
    )
    assert_same(compute(state), at_once(probs, labels))


def test_devices_are_one(mesh):
    probs, labels, weights = problem()
    devices = mesh.size

    def shard(probs, labels, weights):
        state = update_state(empty(), probs, labels, weights=weights)
        return psum_state(state, "d")

    expected = at_once(probs, labels, weights=weights)
    whole = jax.jit(shard_map(shard, mesh=mesh, in_specs=jax.P("d"), out_specs=jax.P()))(
        probs, labels, weights
    )
    assert_same(compute(whole), expected)
    split = [x.reshape(devices, -1, *x.shape[1:]) for x in (probs, labels, weights)]
    found = compute(jax.pmap(shard, axis_name="d")(*split))
    for i in range(devices):
        assert_same(jax.tree.map(lambda x, i=i: x[i], found), expected)


def test_without_an_axis_the_state_is_returned():
    state = empty()
    assert psum_state(state, None) is state


def values_to_state(values):
    """A state whose log loss is each value, for its sums alone."""
    state = empty()
    return state._replace(high=state.high._replace(log_loss=values))


@pytest.mark.parametrize("scale", [1.0, 1e-20, 1e20])
def test_sums_over_devices_lose_nothing(scale):
    rng = np.random.RandomState(0)
    values = (rng.randn(1000) * scale * 10.0 ** rng.randint(-6, 7, size=1000)).astype(np.float32)
    values[500:] = -values[:500] * np.float32(1 + 2.0**-12)
    summed = jax.jit(jax.vmap(lambda v: psum_state(values_to_state(v), "d"), axis_name="d"))(
        jnp.asarray(values)
    )
    high, low = (np.float64(part.log_loss[0]) for part in summed)
    exact = np.sum(values.astype(np.float64))
    np.testing.assert_allclose(high + low, exact, rtol=1e-7)


def test_many_equal_small_additions_are_not_lost():
    """A plain float32 sum of 2e5 times 0.1 is off by 1e-4 of it or more."""
    count = 200_000
    one = values_to_state(jnp.float32(0.1))

    @jax.jit
    def many(state):
        return jax.lax.fori_loop(0, count, lambda _, s: merge_states(s, one), state)

    summed = many(empty())
    found = np.float64(summed.high.log_loss) + np.float64(summed.low.log_loss)
    np.testing.assert_allclose(found, count * np.float64(np.float32(0.1)), rtol=1e-9)


def test_a_certain_mistake_is_infinite_and_stays_so():
    probs, labels, _ = problem()
    wrong = jnp.zeros((SIZE, CLASSES)).at[:, 0].set(1.0)
    state = update(empty(), wrong, jnp.ones(SIZE, jnp.int32))
    state = update(state, probs, labels)
    assert compute(state).negative_log_likelihood == jnp.inf
    assert compute(merge(merge(empty(), state), state)).negative_log_likelihood == jnp.inf
    summed = psum_of_three(state, jnp.arange(3))
    found = compute(summed)
    assert (found.negative_log_likelihood == jnp.inf).all()
    assert jnp.isfinite(found.brier_score).all()


@pytest.mark.parametrize("bad", ["row", "label"])
def test_what_cannot_be_scored_makes_nan_for_good(bad):
    probs, labels, _ = problem()
    where = jnp.arange(SIZE) != 7
    if bad == "row":
        strange, classes = probs.at[7].set(1.0), labels
    else:
        strange, classes = probs, labels.at[7].set(CLASSES)
    assert_same(
        compute(update(empty(), strange, classes, where=where)),
        at_once(probs, labels, where=where),
    )
    state = update(update(empty(), strange, classes), probs, labels)
    for name, value in compute(state)._asdict().items():
        assert all(jnp.isnan(x).all() for x in jax.tree.leaves(value)), name
    summed = psum_of_three(state, jnp.arange(3))
    assert all(jnp.isnan(x).all() for x in jax.tree.leaves(compute(summed)))


def test_coarse_inputs_do_not_change_the_dtype_of_the_state():
    probs, labels, _ = problem()
    state = jax.eval_shape(update_state, empty(), probs.astype(jnp.bfloat16), labels)
    assert {x.dtype for x in jax.tree.leaves(state)} == {jnp.dtype("float32")}
    with jax.enable_x64(True):
        fine = jax.eval_shape(update_state, empty(dtype=jnp.float64), probs, labels)
        assert {x.dtype for x in jax.tree.leaves(fine)} == {jnp.dtype("float64")}
    assert {x.dtype for x in jax.tree.leaves(empty(dtype=jnp.bfloat16))} == {jnp.dtype("float32")}


@pytest.mark.parametrize("name", ["num_classes", "num_bins"])
def test_too_few(name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got {name}=0"):
        init_state(**{"num_classes": 2, name: 0})


def test_another_number_of_classes(unchecked):
    with pytest.raises(ValueError, match="probs must have num_classes=4 along axis 1"):
        update_state(empty(), jnp.full((1, 2), 0.5), jnp.zeros(1, jnp.int32))
