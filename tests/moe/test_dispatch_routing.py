"""Loops for the routing that `route` makes, for every implementation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import references
from dispatching import OPTIONS, awkward, close, exhaustive, layouts, normal, route, same_plan

import calmoe_jax as cm


def check_route(logits, bias=None, *, implementation, **options):
    routed = route(logits, bias, **options, implementation=implementation)
    options = OPTIONS | options
    capacity, block_size = options.pop("capacity"), options.pop("block_size")
    logits = np.asarray(logits, np.float64)
    rows = [references.route_row(row, bias, **options) for row in logits]
    shape = len(rows), options["k"]
    ids = np.reshape([ids for ids, _ in rows], shape)
    np.testing.assert_array_equal(routed.routing.expert_indices, ids)
    weights = np.reshape([weights for _, weights in rows], shape)
    close(routed.routing.combine_weights, weights, atol=0)
    sent = np.where(weights == 0, logits.shape[1], ids)  # slots of weight 0 are absent
    same_plan(routed.plan, references.plan(sent, logits.shape[1], capacity, block_size))
    mean, log_sums, unroutable = references.gate_statistics(logits, options["scores"])
    close(routed.statistics[:2], (mean, log_sums))
    assert routed.statistics.num_unroutable == unroutable
    assert routed.statistics.num_tokens == len(rows)
    dtypes = ["int32", "float32"] + ["int32"] * 5 + ["float32"] * 2 + ["int32"] * 2
    assert [x.dtype for x in jax.tree.leaves(routed)] == dtypes


@pytest.mark.parametrize(
    ("tokens", "experts", "k"),
    [
        *((0, 8, 2), (1, 3, 2), (17, 1, 1), (17, 8, 8), (17, 20, 17), (150, 384, 8)),
        *exhaustive((1, 384, 8), (17, 3, 1), (17, 60, 2), (17, 128, 8), (1000, 60, 2)),
    ],
)
def test_route_equals_loops(tokens, experts, k, implementation):
    check_route(awkward(tokens + experts, tokens, experts), k=k, implementation=implementation)


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("scores", "renormalize", "extra"),
    [
        *(("softmax", False, ""), ("sigmoid", False, "bias"), ("sigmoid", True, "groups")),
        *(("softmax", True, "bias groups"), ("sigmoid", True, "bias groups")),
        *exhaustive(
            ("sigmoid", False, ""), ("softmax", True, "bias"), ("softmax", False, "groups")
        ),
    ],
)
def test_options_equal_loops(scores, renormalize, extra, implementation):
    bias = normal(2, 12) / 4 if "bias" in extra else None
    groups = {"num_groups": 4, "groups_per_token": 2} if "groups" in extra else {}
    for unroutable in (True, False):
        check_route(
            awkward(1, 35, 12, unroutable=unroutable), bias, k=4, scores=scores,
            renormalize=renormalize, **groups, implementation=implementation,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("experts", "k", "groups"), [(256, 8, (8, 4)), (12, 3, (12, 4)), *exhaustive((8, 2, (2, 1)))]
)
def test_groups_of_other_sizes_equal_loops(experts, k, groups, implementation):
    check_route(
        awkward(3, 9, experts), normal(4, experts) / 4, k=k, scores="sigmoid",
        num_groups=groups[0], groups_per_token=groups[1], implementation=implementation,
    )  # fmt: skip


@layouts
def test_route_plans_as_loops_do(layout, implementation):
    check_route(awkward(5, 40, 8, unroutable=False), k=2, **layout, implementation=implementation)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, *exhaustive(jnp.float16)])
def test_coarse_logits_are_routed_in_float32(dtype, implementation):
    logits = awkward(6, 20, 60, unroutable=False).astype(dtype)  # rounded to ties
    options = {"k": 4, "scores": "sigmoid", "implementation": implementation}
    close(route(logits, **options), route(logits.astype(np.float32), **options), rtol=1e-6)
    check_route(logits, **options)


@pytest.mark.parametrize("scores", ["softmax", "sigmoid"])
def test_the_order_survives_scores_that_underflow(scores, implementation):
    logits = np.float32([[-200, -150, -1000, 50], [90, 130, 100, 120]])
    routed = route(logits, k=4, scores=scores, implementation=implementation)
    assert routed.routing.expert_indices.tolist() == [[3, 1, 0, 2], [1, 3, 2, 0]]


def test_ties_go_to_the_lower_index(implementation):
    logits = np.float32([[1, 2, 2, 1], [-0.0, 0.0, -0.0, 0.0], [0.0, -0.0, 0.0, -0.0]])
    routed = route(logits, k=3, implementation=implementation)
    assert routed.routing.expert_indices.tolist() == [[1, 2, 0], [0, 1, 2], [0, 1, 2]]


def test_unroutable_rows_get_the_first_experts_and_nan(implementation):
    inf, nan = np.inf, np.nan
    logits = np.float32(
        [[0, nan, 5, 1], [0, 1, inf, 2], [-inf] * 4, [nan] * 4, [inf, -inf, nan, 0], [0, 1, 2, 3]]
    )
    routed = route(logits, k=2, implementation=implementation)
    assert routed.routing.expert_indices.tolist() == [[0, 1]] * 5 + [[3, 2]]
    assert np.isnan(routed.routing.combine_weights).tolist() == [[True] * 2] * 5 + [[False] * 2]
    assert np.isnan(routed.statistics.logsumexp).tolist() == [True] * 5 + [False]
    assert np.isnan(routed.statistics.mean_gate_probs).all()
    assert routed.statistics.num_unroutable == 5


@pytest.mark.parametrize("experts", [384, *exhaustive(60)])
def test_one_bad_logit_anywhere_is_seen(experts, implementation):
    logits = normal(7, experts, experts)
    for bad in (np.nan, np.inf):
        np.fill_diagonal(logits, bad)
        routed = route(logits, k=2, implementation=implementation)
        assert (routed.routing.expert_indices == [0, 1]).all()
        assert np.isnan(routed.routing.combine_weights).all()
        assert routed.statistics.num_unroutable == experts


@pytest.mark.parametrize("renormalize", [True, False])
def test_surplus_slots_hold_the_lowest_others_with_weight_zero(renormalize, implementation):
    inf = np.inf
    logits = np.float32([[-inf, -inf, 0, -inf], [-inf, 1, -inf, 2]])
    ids, weights = route(
        logits, k=3, renormalize=renormalize, implementation=implementation
    ).routing
    assert ids.tolist() == [[2, 0, 1], [3, 1, 0]]
    assert (weights == 0).tolist() == [[False, True, True], [False, False, True]]


@pytest.mark.parametrize("scores", ["softmax", "sigmoid"])
def test_bias_moves_the_choice_and_never_the_weights(scores, implementation):
    logits, bias = normal(8, 17, 8), np.float32([0, 0, 0, 0, 0, 10, 0, 0])
    ids, weights = route(
        logits, bias, k=2, scores=scores, renormalize=False, implementation=implementation
    ).routing
    others = logits.copy()
    others[:, 5] = -np.inf
    assert (ids == np.stack([np.full(17, 5), others.argmax(axis=1)], axis=1)).all()
    softmax, sigmoid = references.softmax(logits), 1 / (1 + np.exp(-np.float64(logits)))
    unbiased = softmax if scores == "softmax" else sigmoid
    close(weights, np.take_along_axis(unbiased, ids, axis=1))


def test_bias_does_not_reach_masked_experts(implementation):
    bias = np.float32([100, 0, -100])
    routed = route(
        np.float32([[-np.inf, 0, 1]]), bias, k=2, scores="sigmoid", implementation=implementation
    )
    assert routed.routing.expert_indices.tolist() == [[1, 2]]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_bias_that_is_not_finite_routes_nothing(bad, implementation):
    bias = np.float32([0, 0, bad, 0])
    ids, weights = route(normal(9, 5, 4), bias, k=3, implementation=implementation).routing
    assert ids.tolist() == [[0, 1, 2]] * 5
    assert np.isnan(weights).all()


def test_only_the_best_groups_are_chosen_from(implementation):
    # sums of the two best: 1.0 + 0.9, then 1.5 + 0.2, though the best expert is of the second
    bias = np.float32([1.0, 0.9, -5.0, 0.2, 1.5, 0.1])
    routed = route(
        np.full((1, 6), -40, np.float32), bias, k=2, scores="sigmoid", num_groups=2,
        groups_per_token=1, implementation=implementation,
    )  # fmt: skip
    assert routed.routing.expert_indices.tolist() == [[0, 1]]


def test_groups_without_an_expert_come_last(implementation):
    inf = np.inf
    routed = route(
        np.float32([[-inf, -inf, -5, -inf, -inf, -inf]]), np.float32([9, 9, -9, 0, 0, 0]), k=2,
        num_groups=3, groups_per_token=1, implementation=implementation,
    )  # fmt: skip
    assert routed.routing.expert_indices.tolist() == [[2, 0]]
    assert routed.routing.combine_weights[0, 1] == 0


@pytest.mark.parametrize("scores", ["softmax", "sigmoid"])
def test_statistics_are_those_of_the_gate(scores, implementation):
    logits = awkward(10, 35, 12, unroutable=False)
    routed = route(logits, k=4, scores=scores, implementation=implementation)
    close(
        routed.statistics, jax.jit(lambda g: cm.routing.gate_statistics(g, scores=scores))(logits)
    )


def test_losses_by_the_formulas_of_the_statistics(implementation):
    logits = normal(12, 40, 8)
    routed = route(logits, k=2, implementation=implementation)
    load, statistics = routed.plan.load, routed.statistics

    @jax.jit
    def losses(logits):
        probs, routing = cm.gate_probabilities(logits), cm.top_k_routing(logits, k=2)
        return cm.load_balancing_loss(probs, routing), cm.router_z_loss(logits)

    balance = 8 * np.sum(statistics.mean_gate_probs * load) / np.sum(load)
    close((balance, np.mean(statistics.logsumexp**2)), losses(logits))
