"""Classifiers: a backbone with a routed mixture of expert heads, or with one head."""

import itertools
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PyTree

from calmoe_jax import routing
from calmoe_jax._checks import check_at_least, check_choice
from calmoe_jax.mixture import Prediction, predict
from calmoe_jax.moe import (
    DispatchPlan,
    dispatch,
    expert_linear,
    gather_slots,
    preferred_block_size,
    route,
)
from calmoe_jax.nn.features import Features, features_of
from calmoe_jax.routing.kinds import ROUTING_KINDS, RoutingKind


@runtime_checkable
class Backbone(Protocol):
    """The interface of a backbone that classifiers use."""

    num_features: int

    def __call__(
        self, x: PyTree, *, train: bool = False
    ) -> Float[Array, "tokens features"] | Features:
        """Features of a batch, alone or with the statistics of its sparse layers."""
        ...


class Router(nnx.Module):
    """Features to gate logits: Linear, ReLU, Linear, in float32.

    Parameters: `(d + 1) h + (h + 1) K`. Initialisation: LeCun normal weights, zero biases.
    """

    def __init__(
        self, num_features: int, num_experts: int, *, hidden: int = 128, rngs: nnx.Rngs
    ) -> None:
        """Builds the two layers, the first one `hidden` wide."""
        check_at_least("router_hidden", hidden, 1)
        self.inner = nnx.Linear(num_features, hidden, rngs=rngs)
        self.outer = nnx.Linear(hidden, num_experts, rngs=rngs)

    def __call__(self, features: Float[Array, "tokens d"]) -> Float[Array, "tokens experts"]:
        """Gate logits of a batch."""
        return self.outer(jax.nn.relu(self.inner(features)))


class Experts(nnx.Module):
    """Expert heads, stacked along the first axis of every parameter, in float32.

    Linear experts (`hidden=0`) have `K (d + 1) C` parameters, experts with a hidden ReLU layer
    `K ((d + 1) h + (h + 1) C)`. Initialisation: LeCun normal weights, independent for each expert;
    zero biases.
    """

    def __init__(
        self,
        num_features: int,
        num_classes: int,
        num_experts: int,
        *,
        hidden: int = 0,
        rngs: nnx.Rngs,
    ) -> None:
        """Builds linear experts (`hidden=0`), or experts with a hidden layer."""
        check_at_least("expert_hidden", hidden, 0)
        initial = nnx.initializers.lecun_normal(batch_axis=(0,))
        sizes = (num_features, num_classes) if hidden == 0 else (num_features, hidden, num_classes)
        self.kernels = nnx.List(
            [
                nnx.Param(initial(rngs.params(), (num_experts, n, m), jnp.float32))
                for n, m in itertools.pairwise(sizes)
            ]
        )
        self.biases = nnx.List([nnx.Param(jnp.zeros((num_experts, m))) for m in sizes[1:]])

    def __call__(
        self, features: Float[Array, "tokens d"]
    ) -> Float[Array, "tokens experts classes"]:
        """Logits of every expert for every token."""
        x = jnp.einsum("td,edf->tef", features, self.kernels[0][...]) + self.biases[0][...][None]
        for kernel, bias in zip(self.kernels[1:], self.biases[1:], strict=True):
            x = jnp.einsum("ted,edf->tef", jax.nn.relu(x), kernel[...]) + bias[...][None]
        return x

    def of_chosen(
        self, features: Float[Array, "tokens d"], plan: DispatchPlan, *, block_size: int | None
    ) -> Float[Array, "tokens k classes"]:
        """Logits of the chosen experts only.

        Args:
            features: features of each token.
            plan: a dropless plan of the choice.
            block_size: block size of the plan.
        """
        rows = dispatch(features, plan)
        for layer, (kernel, bias) in enumerate(zip(self.kernels, self.biases, strict=True)):
            rows = jax.nn.relu(rows) if layer else rows
            rows = expert_linear(rows, plan, kernel[...], bias[...], block_size=block_size)
        return gather_slots(rows, plan)


class MoEClassifier(nnx.Module):
    """A backbone, a router, and a mixture of expert heads; mixes probabilities, not logits."""

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        *,
        num_experts: int = 4,
        routing_kind: RoutingKind = "dense",
        k: int = 1,
        router_hidden: int = 128,
        expert_hidden: int = 0,
        rngs: nnx.Rngs,
    ) -> None:
        """Builds router and experts on a backbone.

        Args:
            backbone: inputs to features.
            num_classes: number of classes, at least 2.
            num_experts: number of experts K.
            routing_kind: `dense` (softmax over all experts), `top_k` (the k best, renormalised),
                `hard` (the best one; the router learns straight-through) or `hardened` (trained
                dense, hard when `train=False`).
            k: experts per token, in `[1, K]`; used by `top_k` only.
            router_hidden: width of the router's hidden layer.
            expert_hidden: width of the experts' hidden layer; 0 for linear experts.
            rngs: source of the initial weights.
        """
        check_at_least("num_classes", num_classes, 2)
        check_at_least("num_experts", num_experts, 1)
        check_choice("routing", routing_kind, ROUTING_KINDS)
        if routing_kind == "top_k" and not 1 <= k <= num_experts:
            raise ValueError(f"k must be in [1, num_experts={num_experts}], got k={k}.")
        self.backbone = backbone
        self.router = Router(backbone.num_features, num_experts, hidden=router_hidden, rngs=rngs)
        self.experts = Experts(
            backbone.num_features, num_classes, num_experts, hidden=expert_hidden, rngs=rngs
        )
        self.routing_kind = routing_kind
        self.k = k

    def __call__(self, x: PyTree, *, train: bool = False, sparse: bool = False) -> Prediction:
        """Predicts a batch: experts' probabilities, and the weights to mix them with.

        Args:
            x: a batch of inputs, in any form that the backbone takes.
            train: whether batch statistics are used and updated, and `hardened` routes densely.
            sparse: whether to compute only the chosen experts. The aggregate and its gradients are
                the same; the slots are then the chosen experts instead of all. It has no effect
                where all experts are needed: for dense routing, and for training with hard
                routing, whose router learns from the other experts' predictions too.
        """
        features, layers = features_of(self.backbone(x, train=train))
        return self._predict(features, train, sparse)._replace(layers=layers)

    def _predict(self, features: Float[Array, "tokens d"], train: bool, sparse: bool) -> Prediction:
        gate_logits = self.router(features)
        hard = self.routing_kind in ("hard", "hardened") and not train
        if sparse and (hard or self.routing_kind == "top_k"):
            block_size = preferred_block_size()
            routed = route(gate_logits, k=1 if hard else self.k, block_size=block_size)
            logits = self.experts.of_chosen(features, routed.plan, block_size=block_size)
            log_probs = jax.nn.log_softmax(logits, axis=-1)
            return predict(log_probs, gate_logits, routed.routing, routed.statistics)
        log_probs = jax.nn.log_softmax(self.experts(features), axis=-1)
        return predict(log_probs, gate_logits, _all_experts(self._weights(gate_logits, train)))

    def _weights(
        self, gate_logits: Float[Array, "tokens experts"], train: bool
    ) -> Float[Array, "tokens experts"]:
        if self.routing_kind == "dense" or (self.routing_kind == "hardened" and train):
            return routing.gate_probabilities(gate_logits)
        if self.routing_kind == "top_k":
            chosen = routing.top_k_routing(gate_logits, k=self.k)
            return routing.routing_weights(chosen, num_experts=gate_logits.shape[-1])
        return routing.straight_through_weights(gate_logits)


class SingleClassifier(nnx.Module):
    """A backbone with one linear head: a mixture of one expert.

    The head has `(d + 1) C` parameters. Initialisation: LeCun normal weights, zero biases.
    """

    def __init__(self, backbone: Backbone, num_classes: int, *, rngs: nnx.Rngs) -> None:
        """Builds the head on a backbone."""
        check_at_least("num_classes", num_classes, 2)
        self.backbone = backbone
        self.head = nnx.Linear(backbone.num_features, num_classes, rngs=rngs)

    def __call__(self, x: PyTree, *, train: bool = False, sparse: bool = False) -> Prediction:
        """Predicts a batch, with one expert of weight 1, whether `sparse` or not."""
        del sparse
        features, layers = features_of(self.backbone(x, train=train))
        log_probs = jax.nn.log_softmax(self.head(features), axis=-1)[:, None, :]
        shape = log_probs.shape[:2]
        prediction = predict(log_probs, jnp.zeros(shape), _all_experts(jnp.ones(shape)))
        return prediction._replace(layers=layers)


def _all_experts(weights: Float[Array, "tokens experts"]) -> routing.Routing:
    """Weights of all experts as a routing with a slot for each."""
    experts = jnp.arange(weights.shape[-1], dtype=jnp.int32)[None]
    return routing.Routing(jnp.broadcast_to(experts, weights.shape), weights)


def count_parameters(module: nnx.Module) -> int:
    """Number of trainable parameters of a module, without batch statistics."""
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(module, nnx.Param)))
