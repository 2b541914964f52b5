"""Laws that every calibrator keeps."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from calibrators_table import CASES, CLASSES, EXPERTS, SIZE, arrays, log_loss


@pytest.fixture(params=CASES)
def name(request):
    return request.param


@cache
def fitter(name):
    """The fit, compiled where it can be: one program for all tests of the same options."""
    case = CASES[name]
    return case.fit if case.on_host else jax.jit(case.fit)


@cache
def fitted(name):
    return fitter(name)(*arrays(CASES[name]))


@cache
def applied(name):
    case = CASES[name]
    return np.asarray(case.apply(fitted(name), arrays(case)[0]))


def close(a, b, rtol=2e-3, atol=2e-4):
    np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=rtol, atol=atol)


def test_what_comes_out_are_probabilities(name):
    probs = applied(name)
    assert probs.dtype == np.float32
    assert ((probs >= 0) & (probs <= 1 + 1e-6)).all()
    if not CASES[name].of_event:
        close(probs.sum(axis=-1), 1, atol=1e-5)
        assert probs.shape[-1] == (EXPERTS if name == "gate_temperature" else CLASSES)


def test_a_fit_never_raises_its_own_training_loss(name):
    case = CASES[name]
    if not case.holds_identity or case.inputs.ndim == 3:
        pytest.skip("the family lacks the identity, or its loss is of a mixture")
    probs = case.inputs
    if not case.of_event and name != "classwise_isotonic":
        probs = np.exp(case.inputs) / np.exp(case.inputs).sum(axis=1, keepdims=True)
    if name == "classwise_isotonic":  # each class by itself, before they are renormalised
        pytest.skip("renormalisation comes after the fit")
    assert log_loss(case, applied(name)) <= log_loss(case, probs) + 1e-5


def test_there_is_a_certificate(name):
    fit = fitted(name)
    if hasattr(fit, "converged"):
        converged = np.asarray(fit.converged)
        assert (converged | np.asarray(getattr(fit, "at_bound", False))).all()
        assert (np.asarray(fit.residual)[converged] < 1e-2).all()
    else:
        assert CASES[name].on_host or name == "histogram_binning"


def test_compiled_fits_are_eager_ones(name):
    case = CASES[name]
    if case.on_host:
        pytest.skip("runs on the host")
    inputs, target = arrays(case)
    close(case.apply(case.fit(inputs, target), inputs), applied(name))


def test_a_batch_of_fits_is_a_loop_of_them(name):
    case = CASES[name]
    if case.on_host:
        pytest.skip("runs on the host")
    inputs, target = arrays(case)
    order = np.random.RandomState(1).permutation(SIZE)
    scaled = inputs if case.of_event else 2 * inputs
    many = jnp.stack([inputs, scaled[order]]), jnp.stack([target, target[order]])
    fits = jax.jit(jax.vmap(case.fit))(*many)
    probs = jax.vmap(case.apply)(fits, many[0])
    for i in range(2):
        alone = fitter(name)(many[0][i], many[1][i])
        close(probs[i], case.apply(alone, many[0][i]))


def test_the_order_of_examples_is_nothing(name):
    case = CASES[name]
    inputs, target = arrays(case)
    order = np.random.RandomState(0).permutation(SIZE)
    fit = fitter(name)(inputs[order], target[order])
    close(case.apply(fit, inputs), applied(name))


def test_masked_examples_might_not_be_there(name):
    """Whatever they hold."""
    case = CASES[name]
    inputs, target = arrays(case)
    where = np.arange(SIZE) % 3 != 0
    spoiled = jnp.where(jnp.asarray(where).reshape(-1, *[1] * (inputs.ndim - 1)), inputs, jnp.nan)
    masked = fitter(name)(spoiled, target, where=jnp.asarray(where))
    alone = fitter(name)(inputs[where], target[where])
    close(case.apply(masked, inputs), case.apply(alone, inputs))


def test_a_weight_of_two_is_an_example_twice(name):
    case = CASES[name]
    if not case.weighted:
        pytest.skip("takes routing weights instead")
    inputs, target = arrays(case)
    count = np.random.RandomState(2).randint(1, 3, SIZE)
    weighted = fitter(name)(inputs, target, weights=jnp.asarray(count, jnp.float32))
    rows = np.repeat(np.arange(SIZE), count)
    repeated = fitter(name)(inputs[rows], target[rows])
    close(case.apply(weighted, inputs), case.apply(repeated, inputs))


def test_only_the_ratio_of_weights_matters(name):
    case = CASES[name]
    if not case.weighted or case.counts:
        pytest.skip("takes routing weights instead, or smooths by counts")
    inputs, target = arrays(case)
    weights = jnp.asarray(np.random.RandomState(3).rand(SIZE), jnp.float32)
    one, other = (fitter(name)(inputs, target, weights=s * weights) for s in (1.0, 64.0))
    close(case.apply(one, inputs), case.apply(other, inputs))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_coarse_inputs_are_computed_in_float32(name, dtype):
    case = CASES[name]
    coarse, target = arrays(case, dtype)
    if name == "classwise_isotonic":
        pytest.skip("rounded rows do not sum to one")
    fine = coarse.astype(jnp.float32)
    found = case.apply(fitter(name)(coarse, target), coarse)
    assert found.dtype == jnp.float32
    close(found, case.apply(fitter(name)(fine, target), fine))
