"""Networks: shapes, counts, initial distributions, and each kind of routing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import calmoe_jax as cm
from calmoe_jax import nn

X = jnp.asarray(np.random.RandomState(0).randn(6, 10), jnp.float32)


def moe(routing_kind="dense", **kwargs):
    rngs = nnx.Rngs(0)
    return nn.MoEClassifier(
        nn.MLP(10, (16, 12), rngs=rngs), 5, routing_kind=routing_kind, rngs=rngs, **kwargs
    )


@pytest.mark.parametrize(("stages", "count"), [(1, 149_824), (2, 675_392)])
def test_resnet_counts(stages, count):
    abstract = nnx.eval_shape(lambda: nn.ResNet18(3, stages=stages, rngs=nnx.Rngs(0)))
    assert sum(np.prod(p.shape) for p in jax.tree.leaves(nnx.state(abstract, nnx.Param))) == count


def test_the_documented_counts_of_deep_resnets():
    for stages, count in ((3, 2_775_104), (4, 11_168_832)):
        abstract = nnx.eval_shape(lambda s=stages: nn.ResNet18(3, stages=s, rngs=nnx.Rngs(0)))
        leaves = jax.tree.leaves(nnx.state(abstract, nnx.Param))
        assert sum(np.prod(p.shape) for p in leaves) == count
        assert abstract.num_features == 64 * 2 ** (stages - 1)


def test_counts_follow_the_formulas():
    rngs = nnx.Rngs(0)
    assert nn.count_parameters(nn.MLP(10, (16, 12), rngs=rngs)) == 11 * 16 + 17 * 12
    assert nn.count_parameters(nn.Router(12, 4, rngs=rngs)) == 13 * 128 + 129 * 4
    assert nn.count_parameters(nn.Experts(12, 5, 4, rngs=rngs)) == 4 * 13 * 5
    assert nn.count_parameters(nn.Experts(12, 5, 4, hidden=7, rngs=rngs)) == 4 * (13 * 7 + 8 * 5)
    single = nn.SingleClassifier(nn.MLP(10, (16, 12), rngs=rngs), 5, rngs=rngs)
    assert nn.count_parameters(single) == 11 * 16 + 17 * 12 + 13 * 5


@pytest.mark.exhaustive
def test_initial_weights_follow_their_laws():
    rngs = nnx.Rngs(3)
    experts = nn.Experts(400, 50, 4, hidden=300, rngs=rngs)
    for kernel, fan_in in zip(experts.kernels, (400, 300), strict=True):
        for expert in kernel[...]:
            assert abs(float(expert.std()) * fan_in**0.5 - 1) < 0.02
    assert float(jnp.abs(experts.kernels[0][0] - experts.kernels[0][1]).max()) > 0.01
    net = nn.ResNet18(3, stages=2, width=32, rngs=rngs)
    conv = net.blocks[1].conv1.kernel[...]
    assert abs(float(conv.std()) * (9 * 32 / 2) ** 0.5 - 1) < 0.05
    assert all(bool((b[...] == 0).all()) for b in experts.biases)


@pytest.mark.parametrize("kind", ["dense", "top_k", "hard", "hardened"])
def test_predictions_are_distributions(kind):
    model = moe(kind, k=2)
    for train in (True, False):
        prediction = model(X, train=train)
        np.testing.assert_allclose(jnp.exp(prediction.expert_log_probs).sum(-1), 1, rtol=1e-5)
        np.testing.assert_allclose(prediction.routing.combine_weights.sum(-1), 1, rtol=1e-5)
    chosen = (model(X).routing.combine_weights > 0).sum(-1)
    assert set(chosen.tolist()) == {{"dense": 4, "top_k": 2}.get(kind, 1)}


def test_kinds_of_routing_choose_from_the_same_gate():
    dense = moe("dense")
    gate = dense(X).gate_logits
    for kind, k in (("top_k", 1), ("top_k", 2), ("hard", 1), ("hardened", 1)):
        weights = moe(kind, k=k)(X).routing.combine_weights
        expected = cm.routing_weights(cm.top_k_routing(gate, k=k), num_experts=4)
        np.testing.assert_allclose(weights, expected, rtol=1e-6)
    np.testing.assert_allclose(
        moe("top_k", k=4)(X).routing.combine_weights, dense(X).routing.combine_weights, rtol=1e-5
    )
    trained = moe("hardened")(X, train=True).routing.combine_weights
    np.testing.assert_allclose(trained, dense(X).routing.combine_weights, rtol=1e-6)


@pytest.mark.exhaustive
@pytest.mark.parametrize(("kind", "learns"), [("dense", True), ("top_k", False), ("hard", True)])
def test_what_the_router_learns_with_one_expert_a_token(kind, learns):
    graph, params = nnx.split(moe(kind, k=1))

    def loss(params):
        prediction = nnx.merge(graph, params)(X, train=True)
        labels = jnp.arange(6) % 5
        return cm.mixture_losses(
            prediction.expert_log_probs, prediction.routing.combine_weights, labels
        ).loss.sum()

    gradient = nnx.to_pure_dict(jax.grad(loss)(params))
    size = max(float(jnp.abs(g).max()) for g in jax.tree.leaves(gradient["router"]))
    assert (size > 1e-4) == learns


@pytest.mark.exhaustive
@pytest.mark.parametrize("hidden", [0, 7])
@pytest.mark.parametrize(("kind", "k", "train"), [
    ("top_k", 1, True), ("top_k", 2, True), ("top_k", 4, False), ("hard", 1, False),
    ("hardened", 1, False),
])  # fmt: skip
def test_chosen_experts_alone_are_the_masked_dense_mixture(kind, k, train, hidden):
    graph, params = nnx.split(moe(kind, k=k, expert_hidden=hidden))

    def loss(params, sparse):
        prediction = nnx.merge(graph, params)(X, train=train, sparse=sparse)
        mixed = cm.mix_log_probs(prediction.expert_log_probs, prediction.routing.combine_weights)
        return -mixed[jnp.arange(6), jnp.arange(6) % 5].sum(), prediction

    values = jax.jit(jax.value_and_grad(loss, has_aux=True), static_argnums=1)
    (masked, dense), wanted = values(params, False)
    (got, prediction), gradient = values(params, True)
    assert prediction.expert_log_probs.shape == (6, k, 5)
    np.testing.assert_allclose(got, masked, rtol=1e-6)
    np.testing.assert_allclose(
        cm.routing_weights(prediction.routing, num_experts=4), dense.routing.combine_weights,
        rtol=1e-6,
    )  # fmt: skip
    if kind == "top_k":  # the gate's straight-through gradient is of training
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), gradient, wanted
        )


def test_all_experts_are_computed_where_all_are_needed():
    for kind, train in (("dense", True), ("hard", True), ("hardened", True), ("dense", False)):
        assert moe(kind)(X, train=train, sparse=True).expert_log_probs.shape == (6, 4, 5)


def test_experts_equal_a_loop():
    experts = nn.Experts(12, 5, 3, hidden=7, rngs=nnx.Rngs(1))
    features = jnp.asarray(np.random.RandomState(1).randn(4, 12), jnp.float32)
    out = experts(features)
    for e in range(3):
        inner = jnp.maximum(features @ experts.kernels[0][e] + experts.biases[0][e][None], 0)
        expected = inner @ experts.kernels[1][e] + experts.biases[1][e][None]
        np.testing.assert_allclose(out[:, e], expected, rtol=1e-5, atol=1e-6)


def test_a_single_classifier_is_a_mixture_of_one():
    rngs = nnx.Rngs(0)
    single = nn.SingleClassifier(nn.MLP(10, (16,), rngs=rngs), 3, rngs=rngs)
    prediction = single(X)
    assert prediction.expert_log_probs.shape == (6, 1, 3)
    assert (prediction.routing.combine_weights == 1).all()
    mixed = cm.mix_log_probs(prediction.expert_log_probs, prediction.routing.combine_weights)
    np.testing.assert_allclose(mixed, prediction.expert_log_probs[:, 0], rtol=1e-6)


def test_resnet_normalises_by_the_batch_in_training_only():
    net = nn.ResNet18(1, stages=2, width=4, rngs=nnx.Rngs(0))
    images = jnp.asarray(np.random.RandomState(2).rand(5, 9, 9, 1), jnp.float32)
    before = nnx.to_pure_dict(nnx.state(net, nnx.BatchStat))
    alone = net(images[:1])
    np.testing.assert_allclose(net(images)[:1], alone, rtol=1e-4, atol=1e-5)
    unchanged = nnx.to_pure_dict(nnx.state(net, nnx.BatchStat))
    assert all(
        bool((a == b).all())
        for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(unchanged), strict=True)
    )
    net(images, train=True)
    after = nnx.to_pure_dict(nnx.state(net, nnx.BatchStat))
    assert any(
        bool((a != b).any())
        for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
    )
    assert net(images).shape == (5, 8)


def test_half_precision_backbones_keep_a_float32_router():
    rngs = nnx.Rngs(0)
    backbone = nn.MLP(10, (16,), dtype=jnp.bfloat16, rngs=rngs)
    assert backbone(X).dtype == jnp.bfloat16
    prediction = nn.MoEClassifier(backbone, 3, rngs=rngs)(X)
    floats = *prediction[:2], prediction.routing.combine_weights
    assert {x.dtype for x in floats} == {jnp.dtype("float32")}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"routing_kind": "top_k", "k": 5}, r"k must be in \[1, num_experts=4\], got k=5"),
        ({"num_experts": 0}, "num_experts must be at least 1, got num_experts=0"),
        ({"router_hidden": 0}, "router_hidden"),
        ({"expert_hidden": -1}, "expert_hidden"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        moe(**arguments)
    with pytest.raises(ValueError, match="stages"):
        nn.ResNet18(3, stages=5, rngs=nnx.Rngs(0))
