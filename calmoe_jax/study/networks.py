"""A classifier as pure functions of its parameters, built from a configuration."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PyTree, Shaped

from calmoe_jax.nn import (
    MLP,
    Backbone,
    MoEClassifier,
    Prediction,
    ResNet18,
    SingleClassifier,
)
from calmoe_jax.study.config import ModelConfig


class Network(NamedTuple):
    """A classifier as a pair of pure functions.

    Attributes:
        init: a key to `(parameters, statistics)`, nested dictionaries of arrays.
        apply: `(parameters, statistics, inputs, *, train, sparse=False)` to
            `(prediction, statistics)`; see `MoEClassifier`.
        num_experts: number of experts; 1 for a single classifier.
    """

    init: Callable[[jax.Array], tuple[PyTree, PyTree]]
    apply: Callable[..., tuple[Prediction, PyTree]]
    num_experts: int


def build_network(
    config: ModelConfig, *, single: bool, input_shape: tuple[int, ...], num_classes: int
) -> Network:
    """Builds the classifier of a configuration for inputs of a shape.

    Args:
        config: the classifier's configuration.
        single: one classifier instead of a mixture; the backbone starts from the same weights.
        input_shape: shape of one example.
        num_classes: number of classes.

    Returns:
        A `Network`.

    Raises:
        ValueError: where a ResNet is asked for inputs that are not images.
    """
    if config.backbone == "resnet18" and len(input_shape) != 3:
        raise ValueError(
            "backbone must be mlp for inputs that are not images, got "
            f"backbone={config.backbone!r} and inputs of shape {input_shape}."
        )

    def module(rngs: nnx.Rngs) -> MoEClassifier | SingleClassifier:
        backbone: Backbone
        if config.backbone == "mlp":
            hidden = (config.width,) * config.depth
            backbone = MLP(math.prod(input_shape), hidden, rngs=rngs)
        else:
            backbone = ResNet18(
                input_shape[-1], stages=config.stages, width=config.width, rngs=rngs
            )
        if single:
            return SingleClassifier(backbone, num_classes, rngs=rngs)
        return MoEClassifier(
            backbone,
            num_classes,
            num_experts=config.experts,
            routing_kind=config.routing,
            k=config.k,
            router_hidden=config.router_hidden,
            expert_hidden=config.expert_hidden,
            rngs=rngs,
        )

    abstract = nnx.eval_shape(lambda: module(nnx.Rngs(0)))
    graph, *templates = nnx.split(abstract, nnx.Param, nnx.BatchStat)

    def init(key: jax.Array) -> tuple[PyTree, PyTree]:
        _, *states = nnx.split(module(nnx.Rngs(params=key)), nnx.Param, nnx.BatchStat)
        params, statistics = (nnx.to_pure_dict(state) for state in states)
        return params, statistics

    def apply(
        params: PyTree,
        statistics: PyTree,
        inputs: jax.Array,
        *,
        train: bool,
        sparse: bool = False,
    ) -> tuple[Prediction, PyTree]:
        states = [_filled(t, v) for t, v in zip(templates, (params, statistics), strict=True)]
        model = nnx.merge(graph, *states)
        prediction = model(as_float(inputs), train=train, sparse=sparse)
        return prediction, nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))

    return Network(init, apply, 1 if single else config.experts)


def as_float(inputs: Shaped[Array, "tokens ..."]) -> Float[Array, "tokens ..."]:
    """Bytes of images to [0, 1]; features as they are."""
    return inputs.astype(jnp.float32) / 255 if inputs.dtype == jnp.uint8 else inputs


def _filled(template: PyTree, values: PyTree) -> PyTree:
    """A copy of an NNX state, with the values of a nested dictionary."""
    state = jax.tree.map(lambda leaf: leaf, template)
    nnx.replace_by_pure_dict(state, values)
    return state
