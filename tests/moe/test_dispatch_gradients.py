"""Gradients of dispatch against one-hot products and differences, for every implementation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import references
from dispatching import (
    LAYOUTS,
    awkward,
    close,
    exhaustive,
    expected_results,
    gradients,
    host,
    layouts,
    normal,
    plan_of,
)
from jax.test_util import check_grads

import calmoe_jax as cm
from calmoe_kernels.xla import permute


@pytest.mark.parametrize(
    ("tokens", "k", "layout"),
    [
        *((0, 2, {}), (0, 2, {"capacity": 3})),
        *((9, 2, layout) for layout in LAYOUTS),
        *((5, 17, {}), (5, 17, {"capacity": 3})),
    ],
)
def test_gradients_equal_those_of_a_product_with_a_one_hot(tokens, k, layout, implementation):
    plan = plan_of(35, tokens, k, 4, **layout, implementation=implementation)
    x, rows, weights = (
        normal(36, tokens, 3), normal(37, len(plan.slot_indices), 3), normal(38, tokens, k),
    )  # fmt: skip
    found = gradients(rows, x, x, rows, weights, plan, implementation=implementation)
    close(found, expected_results(plan, x, rows, weights)[1:])


@pytest.mark.parametrize("form", [permute._dots_of_rows, permute._dots_of_slots])
@layouts
def test_gradients_to_weights_in_the_form_of_each_platform(form, layout):
    plan = plan_of(35, 9, 2, 4, implementation="xla", **layout)
    x, rows = normal(36, 9, 3), normal(37, len(plan.slot_indices), 3)
    found = jax.jit(form)(x, rows, plan.positions, plan.slot_indices)
    close(found, expected_results(plan, x, rows, np.ones((9, 2)))[3])


def test_gradients_equal_finite_differences(implementation):
    plan = plan_of(39, 5, 2, 3, capacity=3, implementation=implementation)

    @jax.jit
    def there_and_back(x, weights):
        rows = jnp.sin(cm.dispatch(x, plan, implementation=implementation))
        return cm.combine(rows, plan, weights, implementation=implementation)

    check_grads(
        there_and_back, (jnp.asarray(normal(40, 5, 2)), jnp.asarray(normal(41, 5, 2))), 1, ["rev"],
        atol=1e-2, rtol=1e-2, eps=1e-2,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("scores", "renormalize", "extra"),
    [
        *(("softmax", True, ""), ("softmax", False, ""), ("sigmoid", False, "")),
        ("sigmoid", True, "bias groups"),
        *exhaustive(("sigmoid", True, ""), ("softmax", True, "bias")),
    ],
)
def test_gradients_to_logits_equal_differences(scores, renormalize, extra, implementation):
    logits, bias = normal(42, 5, 6), jnp.asarray(normal(43, 6) / 4) if "bias" in extra else None
    logits[2, 1] = logits[4, 1:] = -np.inf
    logits[3] = 0.0  # a gate that starts with zeros must learn
    groups = {"num_groups": 2} if "groups" in extra else {}
    towards = normal(44, 5, 3), normal(45, 6), normal(46, 5)

    def ours(logits):
        routed = cm.route(
            logits, bias, k=3, scores=scores, renormalize=renormalize, **groups,
            implementation=implementation,
        )  # fmt: skip
        result = (routed.routing.combine_weights, *routed.statistics[:2])
        return sum(jnp.vdot(a, b) for a, b in zip(result, towards, strict=True)), routed.routing

    gradient, (ids, _) = host(jax.jit(jax.grad(ours, has_aux=True)))(logits)

    def by_definition(logits):
        s = np.exp(logits) / (1 if scores == "softmax" else 1 + np.exp(logits))
        mean = np.mean(s / s.sum(1, keepdims=True), axis=0)
        if scores == "softmax":
            s = s / s.sum(1, keepdims=True)
        chosen = np.take_along_axis(s, ids, axis=1)
        weights = chosen / chosen.sum(1, keepdims=True) if renormalize else chosen
        result = weights, mean, np.log(np.exp(logits).sum(1))
        return sum(np.vdot(a, b) for a, b in zip(result, towards, strict=True))

    close(gradient, references.central_difference(by_definition, logits), atol=2e-6)


@pytest.mark.parametrize(
    ("scores", "dtype"), [("softmax", jnp.float32), ("sigmoid", jnp.float32), ("softmax", "bf16")]
)
def test_gradients_are_finite_and_zero_where_nothing_is_routed(dtype, scores, implementation):
    dtype = jnp.bfloat16 if dtype == "bf16" else dtype
    logits = awkward(47, 17, 6).astype(dtype)

    def loss(logits):
        routed = cm.route(logits, k=2, scores=scores, implementation=implementation)
        weights, log_sums = routed.routing.combine_weights, routed.statistics.logsumexp
        total = jnp.where(jnp.isnan(weights), 0, weights * weights[:, ::-1] ** 2).sum()
        return total + jnp.where(jnp.isnan(log_sums), 0, log_sums).sum()

    gradient = np.asarray(jax.jit(jax.grad(loss))(logits))
    assert gradient.dtype == dtype
    assert np.isfinite(np.float32(gradient)).all()
    assert (gradient[np.isneginf(logits)] == 0).all()
    assert (gradient[(np.isnan(logits) | np.isposinf(logits)).any(axis=1)] == 0).all()
    assert (gradient[0] != 0).any()


def test_the_mean_of_a_batch_with_an_unroutable_token_has_no_bad_gradient(implementation):
    logits = np.float32([[0, 1, 2], [np.nan, 0, 0], [3, 1, -np.inf]])

    def loss(logits):
        mean = cm.route(logits, k=1, implementation=implementation).statistics.mean_gate_probs
        return jnp.sum(jnp.where(jnp.isnan(mean), 0.0, mean))

    assert (jax.jit(jax.grad(loss))(logits) == 0).all()


def test_no_gradient_reaches_the_bias(implementation):
    def loss(logits, bias):
        routed = cm.route(logits, bias, k=2, renormalize=False, implementation=implementation)
        return routed.routing.combine_weights.sum() + routed.statistics.logsumexp.sum()

    to_logits, to_bias = jax.jit(jax.grad(loss, (0, 1)))(normal(48, 5, 4), normal(49, 4))
    assert not np.any(to_bias)
    assert np.any(to_logits)


def test_with_one_renormalised_expert_nothing_reaches_the_router(implementation):
    def loss(logits):
        weights = cm.route(logits, k=1, implementation=implementation).routing.combine_weights
        return jnp.sum(weights * jnp.arange(5.0)[:, None])

    assert not np.any(jax.jit(jax.grad(loss))(normal(50, 5, 4)))
