"""The laws that every calibrator keeps, whatever it fits; what is special to one is beside it.

A row of the table is a calibrator; all its problems have one shape, so that it compiles once.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import references
import scipy.special

from calmoe_jax.calibration import calibrators as c

SIZE, CLASSES, EXPERTS = 300, 3, 2


def logits_and_labels(seed=0):
    """Logits that are too sharp, of classes that are confused with one another."""
    rng = np.random.RandomState(seed)
    logits = rng.randn(SIZE, CLASSES) * 2
    truth = logits @ (0.6 * np.eye(CLASSES) + 0.2 * rng.randn(CLASSES, CLASSES))
    labels = np.argmax(truth + rng.gumbel(size=truth.shape) + rng.randn(CLASSES) / 2, axis=-1)
    return (1.5 * logits).astype(np.float32), labels


def probs_and_labels(seed=0):
    logits, labels = logits_and_labels(seed)
    return references.softmax(logits).astype(np.float32), labels


def experts_and_labels(seed=0):
    logits, labels = logits_and_labels(seed)
    noise = np.random.RandomState(seed).randn(SIZE, EXPERTS, CLASSES)
    scales = np.array([0.5, 2.0])[None, :, None]
    return (scales * logits[:, None] + noise).astype(np.float32), labels


def gate_experts_and_labels(seed=0):
    """A router that is too sure of which expert is right."""
    rng = np.random.RandomState(seed)
    gate, outputs = rng.randn(SIZE, EXPERTS) * 1.5, rng.randn(SIZE, EXPERTS, CLASSES) * 2
    chosen = np.argmax(gate + rng.gumbel(size=gate.shape), axis=-1)
    own = outputs[np.arange(SIZE), chosen]
    labels = np.argmax(own + rng.gumbel(size=own.shape), axis=-1)
    return (3 * gate).astype(np.float32), outputs.astype(np.float32), labels


def confidence_and_outcome(seed=0):
    """Confidences, and events that happen with confidence to a power."""
    rng = np.random.RandomState(seed)
    confidence = 0.02 + 0.96 * rng.rand(SIZE)
    outcome = rng.rand(SIZE) < confidence**1.7
    return confidence.astype(np.float32), outcome.astype(np.float32)


def score_and_outcome(seed=0):
    confidence, outcome = confidence_and_outcome(seed)
    return scipy.special.logit(confidence), outcome


def fit_experts(expert_logits, labels, *, weights, where):
    view = jnp.broadcast_to(weights[:, None], expert_logits.shape[:2])
    return c.fit_expert_temperatures(expert_logits, labels, routing_weights=view, where=where)


class Calibrator(NamedTuple):
    """A row of the table.

    Attributes:
        fit: from the arrays of a problem to a fit.
        apply: from a fit and the first array to probabilities.
        draw: a problem; its last array is what is to be predicted.
        free: fields whose values minimise the plain log loss.
        family: whether the identity is among the maps, so that no training loss may rise.
        host: whether it is fitted on the host.
        one_class: whether an optimum exists where all that is to be predicted is the same.
        all_right: whether one exists where every prediction is right.
        unit: whether only ratios of the weights matter.
        atol: how far rounding may move applied probabilities.
    """

    fit: Callable
    apply: Callable
    draw: Callable
    free: tuple[str, ...] = ()
    family: bool = True
    host: bool = False
    one_class: bool = False
    all_right: bool = False
    unit: bool = True
    atol: float = 1e-4


TABLE = {
    "temperature": Calibrator(
        c.fit_temperature, c.apply_temperature, logits_and_labels, ("temperature",),
        one_class=True, atol=2e-5,
    ),
    "vector": Calibrator(
        c.fit_vector_scaling, c.apply_vector_scaling, logits_and_labels, ("scale", "offset")
    ),
    "matrix": Calibrator(
        c.fit_matrix_scaling, c.apply_matrix_scaling, logits_and_labels, ("matrix", "offset")
    ),
    "dirichlet": Calibrator(
        c.fit_dirichlet, c.apply_dirichlet, logits_and_labels, ("matrix", "offset")
    ),
    "ensemble": Calibrator(
        c.fit_ensemble_temperature, c.apply_ensemble_temperature, logits_and_labels,
        one_class=True,
    ),
    "experts": Calibrator(
        fit_experts, c.apply_expert_temperatures, experts_and_labels, ("temperature",),
        one_class=True, atol=2e-5,
    ),
    "gate": Calibrator(
        c.fit_gate_temperature, c.apply_gate_temperature, gate_experts_and_labels,
        ("temperature",), one_class=True, all_right=True,
    ),
    "classwise isotonic": Calibrator(
        c.fit_classwise_isotonic, c.apply_classwise_isotonic, probs_and_labels,
        family=False, host=True, one_class=True, all_right=True,
    ),
    "platt": Calibrator(
        c.fit_platt, c.apply_platt, score_and_outcome,
        family=False, one_class=True, all_right=True, unit=False,
    ),
    "beta": Calibrator(
        c.fit_beta, c.apply_beta, confidence_and_outcome, ("low", "high", "offset")
    ),
    "histogram": Calibrator(
        c.fit_histogram_binning, c.apply_histogram_binning, confidence_and_outcome,
        family=False, one_class=True, all_right=True,
    ),
    "isotonic": Calibrator(
        c.fit_isotonic, c.apply_isotonic, confidence_and_outcome,
        family=False, host=True, one_class=True, all_right=True,
    ),
}  # fmt: skip
EVENTS = ("platt", "beta", "histogram", "isotonic")
KEEP_ORDER = ("temperature", "ensemble", "experts", "gate", *EVENTS)


def each(names, exhaustive=("matrix",)):
    """A parameter of a test; matrix scaling is what Dirichlet calibration is made of."""
    marks = {name: [pytest.mark.exhaustive] for name in exhaustive}
    return pytest.mark.parametrize(
        "name", [pytest.param(name, marks=marks.get(name, [])) for name in names]
    )


every = each(TABLE)
TRACED = [name for name, row in TABLE.items() if not row.host]


@functools.cache
def compiled(name):
    row = TABLE[name]
    return row.fit if row.host else jax.jit(row.fit), jax.jit(row.apply)


def fit_of(name, arrays, weights=None, where=None):
    """With arrays for the defaults: one compilation for each calibrator."""
    size = len(arrays[-1])
    weights = np.ones(size) if weights is None else weights
    where = np.ones(size, bool) if where is None else where
    return compiled(name)[0](
        *map(jnp.asarray, arrays), weights=jnp.asarray(weights, jnp.float32),
        where=jnp.asarray(where),
    )  # fmt: skip


def applied(name, fit, given):
    return np.asarray(compiled(name)[1](fit, jnp.asarray(given)), np.float64)


def identity(name, given):
    """What the map that changes nothing gives."""
    if name in ("beta", "isotonic", "classwise isotonic"):
        return np.asarray(given, np.float64)
    if name == "platt":
        return scipy.special.expit(np.asarray(given, np.float64))
    if name == "histogram":
        return (np.floor(np.asarray(given, np.float64) * 15) + 0.5) / 15
    return references.softmax(given)


def loss(name, probs, arrays):
    """The mean log loss of applied probabilities; of routing weights, of what they mix."""
    truth = arrays[-1]
    if name in EVENTS:
        return -np.mean(truth * np.log(probs) + (1 - truth) * np.log1p(-probs))
    if name == "gate":
        probs = np.sum(probs[..., None] * references.softmax(arrays[1]), axis=1)
    picked = probs[np.arange(SIZE), ..., truth] if probs.ndim == 2 else probs[
        np.arange(SIZE)[:, None], np.arange(EXPERTS)[None], truth[:, None]
    ]  # fmt: skip
    return -np.mean(np.log(picked))


def take(arrays, rows):
    return tuple(x[rows] for x in arrays)


def assert_flags_same(fit, other):
    for field in ("converged", "at_bound"):
        if field in fit._fields:
            np.testing.assert_array_equal(getattr(fit, field), getattr(other, field))


@each([name for name in TRACED if name != "histogram"])
def test_the_optimum_is_certified(name):
    row, arrays = TABLE[name], TABLE[name].draw()
    fit = fit_of(name, arrays)
    assert np.all(fit.converged)
    assert not np.any(getattr(fit, "at_bound", False))
    assert np.all(np.asarray(fit.residual) < 1e-4)
    assert np.all(np.asarray(fit.num_steps) > 0)
    least = loss(name, applied(name, fit, arrays[0]), arrays)
    for field in row.free:
        value = np.asarray(getattr(fit, field))
        first = (0,) * value.ndim
        for step in (-0.05, 0.05):
            moved = value.copy()
            moved[first] += step * max(1, abs(value[first]))
            other = fit._replace(**{field: jnp.asarray(moved)})
            assert loss(name, applied(name, other, arrays[0]), arrays) > least, field


@each([name for name, row in TABLE.items() if row.family])
def test_the_training_loss_does_not_rise(name):
    for seed in range(3):
        arrays = TABLE[name].draw(seed)
        before = loss(name, identity(name, arrays[0]), arrays)
        after = loss(name, applied(name, fit_of(name, arrays), arrays[0]), arrays)
        assert after <= before + 1e-6


@pytest.mark.parametrize("name", ["isotonic", "histogram"])
def test_the_squared_error_of_a_level_does_not_rise(name):
    """Isotonic maps hold the identity; bins at least that of their own means."""
    for seed in range(3):
        confidence, outcome = confidence_and_outcome(seed)
        if name == "histogram":
            confidence = identity(name, confidence).astype(np.float32)
        after = applied(name, fit_of(name, (confidence, outcome)), confidence)
        assert np.mean((after - outcome) ** 2) <= np.mean((confidence - outcome) ** 2) + 1e-7


@every
def test_weights_repeat_and_masks_leave_out(name):
    row, arrays = TABLE[name], TABLE[name].draw()
    times = np.random.RandomState(1).randint(3, size=SIZE)
    where = np.arange(SIZE) % 3 != 0
    rows = np.repeat(np.arange(SIZE), np.where(where, times, 0))
    assert 100 < len(rows) <= SIZE
    padded = np.pad(rows, (0, SIZE - len(rows)), constant_values=-1)  # always the same shape
    expected = fit_of(name, take(arrays, padded), where=padded >= 0)
    found = fit_of(name, arrays, times, where)
    assert_flags_same(found, expected)
    after = applied(name, expected, arrays[0])
    np.testing.assert_allclose(applied(name, found, arrays[0]), after, atol=row.atol)
    # what does not count may be anything
    for filler in (np.nan, np.inf, -np.inf, 1e30):
        strange = [np.where(where.reshape(-1, *[1] * (x.ndim - 1)), x, np.float32(filler))
                   for x in arrays[:-1]]  # fmt: skip
        truth = np.where(where, arrays[-1], filler if name in EVENTS else -1)
        masked = fit_of(name, (*strange, truth.astype(arrays[-1].dtype)), times, where)
        for ours, theirs in zip(masked, found, strict=True):
            np.testing.assert_array_equal(ours, theirs)
    if row.unit:
        small = fit_of(name, arrays, times * 1e-6, where)
        assert_flags_same(small, expected)
        np.testing.assert_allclose(applied(name, small, arrays[0]), after, atol=row.atol)


@every
def test_the_order_of_examples_does_not_matter(name):
    arrays = TABLE[name].draw()
    expected = fit_of(name, arrays)
    fit = fit_of(name, take(arrays, np.random.RandomState(0).permutation(SIZE)))
    assert_flags_same(fit, expected)
    np.testing.assert_allclose(
        applied(name, fit, arrays[0]), applied(name, expected, arrays[0]), atol=TABLE[name].atol
    )


@pytest.mark.exhaustive
@each(TRACED, set(TRACED) - {"temperature", "histogram"})  # a hundred programs each
def test_eager_equals_jitted(name):
    row, arrays = TABLE[name], TABLE[name].draw()
    given = tuple(map(jnp.asarray, arrays))
    fit = row.fit(*given, weights=jnp.ones(SIZE), where=jnp.ones(SIZE, bool))
    expected = fit_of(name, arrays)
    assert_flags_same(fit, expected)
    np.testing.assert_allclose(
        row.apply(fit, given[0]), applied(name, expected, arrays[0]), atol=row.atol
    )


@pytest.mark.exhaustive
@each(TRACED, ("matrix", "experts"))
def test_mapped_equals_a_loop(name):
    row = TABLE[name]
    many = [row.draw(seed) for seed in range(3)]
    if not (row.all_right or name in ("experts", "beta")):
        logits, _ = many[2]
        many[2] = logits, np.argmax(logits, axis=-1)  # one without an optimum
    stacked = [jnp.asarray(np.stack(x)) for x in zip(*many, strict=True)]

    def fit(*arrays):
        return row.fit(*arrays, weights=jnp.ones(SIZE), where=jnp.ones(SIZE, bool))

    mapped = jax.jit(jax.vmap(fit))(*stacked)
    for i, arrays in enumerate(many):
        one, alone = jax.tree.map(lambda x, i=i: x[i], mapped), fit_of(name, arrays)
        assert_flags_same(one, alone)
        # without an optimum rounding decides where on the flat loss the search ends
        atol = 0.01 if np.any(getattr(alone, "at_bound", False)) else row.atol
        np.testing.assert_allclose(
            applied(name, one, arrays[0]), applied(name, alone, arrays[0]), atol=atol
        )


def calibrated(name):
    """A problem whose predictions are true: every outcome, with its probability for a weight."""
    if name in EVENTS:
        confidence, _ = confidence_and_outcome()
        score = scipy.special.logit(confidence) if name == "platt" else confidence
        return (score, confidence), np.ones(SIZE)
    rows = np.repeat(np.arange(SIZE // CLASSES), CLASSES)
    arrays = take(TABLE[name].draw(), rows)
    if name == "experts":  # both the same
        arrays = np.repeat(arrays[0][:, :1], EXPERTS, axis=1), arrays[1]
    probs = identity(name, arrays[0])
    if name == "gate":
        probs = np.sum(probs[..., None] * references.softmax(arrays[1]), axis=1)
    elif name == "experts":
        probs = probs[:, 0]
    labels = np.tile(np.arange(CLASSES), SIZE // CLASSES)
    return (*arrays[:-1], labels), probs[np.arange(SIZE), labels]


@every
def test_what_is_calibrated_stays(name):
    arrays, weights = calibrated(name)
    after = applied(name, fit_of(name, arrays, weights), arrays[0])
    # Platt's targets are moved towards a half by 1 / (n + 2); the mean of a bin lies in it
    atol = {"platt": 0.02, "histogram": 1 / 15}.get(name, 1e-3)
    before = identity("isotonic" if name == "histogram" else name, arrays[0])
    np.testing.assert_allclose(after, before, atol=atol)


@every
def test_applying_gives_distributions(name):
    arrays = TABLE[name].draw()
    probs = applied(name, fit_of(name, arrays), arrays[0])
    assert ((probs >= 0) & (probs <= 1)).all()
    if name not in EVENTS:
        assert probs.shape == arrays[0].shape
        np.testing.assert_allclose(probs.sum(-1), 1, rtol=1e-5)
    if name in KEEP_ORDER:
        if name not in EVENTS:
            np.testing.assert_array_equal(np.argmax(probs, -1), np.argmax(arrays[0], -1))
        elif name != "histogram":  # of which neighbours may be out of order by chance
            assert (np.diff(probs[np.argsort(arrays[0])]) >= 0).all()


@every
@pytest.mark.parametrize("empty", [False, True])
def test_nothing_to_fit_is_the_identity(name, empty):
    arrays = TABLE[name].draw()
    shown = arrays[0]
    fits = (
        [fit_of(name, take(arrays, slice(0)))]
        if empty
        else [
            fit_of(name, arrays, np.zeros(SIZE)),
            fit_of(name, arrays, where=np.zeros(SIZE, bool)),
        ]
    )
    for fit in fits:
        np.testing.assert_allclose(applied(name, fit, shown), identity(name, shown), atol=1e-6)
        assert not np.any(getattr(fit, "converged", False))
        assert not np.any(getattr(fit, "at_bound", False))
        assert np.all(getattr(fit, "residual", 0) == 0)


@every
@pytest.mark.parametrize("case", ["one class", "all right"])
def test_where_no_optimum_need_exist(name, case):
    """Where none exists the fit says so; what it gives is finite, and right where it can be."""
    row = TABLE[name]
    arrays = row.draw()
    if case == "one class":
        truth, exists = 0 * arrays[-1], row.one_class
    elif name in EVENTS:
        threshold = 0 if name == "platt" else 0.5
        truth, exists = (arrays[0] > threshold).astype(np.float32), row.all_right
    elif name == "experts":  # of the first
        truth, exists = np.argmax(arrays[0][:, 0], axis=-1), row.all_right
    else:
        classes = arrays[1][:, 0] if name == "gate" else arrays[0]
        truth, exists = np.argmax(classes, axis=-1), row.all_right
    fit = fit_of(name, (*arrays[:-1], truth))
    assert np.isfinite(applied(name, fit, arrays[0])).all()
    if "at_bound" in fit._fields:
        assert (np.asarray(fit.converged) != np.asarray(fit.at_bound)).all()
        if not exists:
            assert np.ravel(fit.at_bound)[0]
    elif "converged" in fit._fields:
        assert fit.converged


BAD = {
    "logits": [("input", np.nan), ("input", np.inf), ("truth", CLASSES), ("truth", -1)],
    "probs": [("input", np.nan), ("input", 1.5), ("truth", CLASSES), ("truth", -1)],
    "confidence": [("input", np.nan), ("input", 1.5), ("input", -0.5), ("truth", np.nan),
                   ("truth", 2), ("truth", -1)],
    "score": [("input", np.nan), ("input", np.inf), ("truth", np.nan), ("truth", 2),
              ("truth", -1)],
}  # fmt: skip
KIND = {"platt": "score", "classwise isotonic": "probs"} | dict.fromkeys(
    ("beta", "histogram", "isotonic"), "confidence"
)


@every
def test_what_cannot_be_fitted_is_nan(name):
    arrays = TABLE[name].draw()
    arrays[-1][3] = 1
    for place, value in BAD[KIND.get(name, "logits")]:
        given = [x.copy() for x in arrays]
        if place == "truth":
            given[-1][3] = value
        else:
            given[0].reshape(SIZE, -1)[3] = value
        assert_no_fit(name, fit_of(name, given), arrays[0])
    negative = np.where(np.arange(SIZE) == 4, -0.5, 1.0)
    assert_no_fit(name, fit_of(name, arrays, negative), arrays[0])


@each([name for name, row in TABLE.items() if row.draw is logits_and_labels])
def test_a_true_class_that_is_impossible_is_nan(name):
    logits, labels = TABLE[name].draw()
    strange = logits.copy()
    strange[3, labels[3]] = -np.inf
    assert_no_fit(name, fit_of(name, (strange, labels)), logits)


def assert_no_fit(name, fit, given):
    assert np.isnan(applied(name, fit, given)).all()
    assert not np.any(getattr(fit, "converged", False))
    assert not np.any(getattr(fit, "at_bound", False))


@pytest.mark.parametrize("name", EVENTS)
def test_an_event_without_a_level_is_nan(name):
    fit = fit_of(name, TABLE[name].draw())
    strange = [np.nan] if name == "platt" else [np.nan, -0.1, 1.1]
    given = np.resize(np.array(strange, np.float32), SIZE)
    assert np.isnan(applied(name, fit, given)).all()


@pytest.mark.exhaustive
@every
@pytest.mark.parametrize(
    "dtype", [jnp.bfloat16, pytest.param(jnp.float16, marks=pytest.mark.exhaustive), jnp.float64]
)
def test_computed_in_at_least_float32(name, dtype):
    row = TABLE[name]
    wanted = jnp.promote_types(dtype, jnp.float32)
    with jax.enable_x64(dtype == jnp.float64):
        arrays = [
            jnp.asarray(x, dtype if np.issubdtype(x.dtype, np.floating) else None)
            for x in row.draw()
        ]
        options = {"weights": jnp.ones(SIZE, wanted), "where": jnp.ones(SIZE, bool)}
        if row.host:
            fit = row.fit(*arrays, **options)
        else:
            fit = jax.eval_shape(row.fit, *arrays, **options)
        probs = jax.eval_shape(row.apply, fit, arrays[0])
    for leaf in (probs, *jax.tree.leaves(fit)):
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            assert leaf.dtype == wanted
