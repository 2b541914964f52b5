"""The networks and the optimiser of a configuration."""

import math
from functools import lru_cache

import jax
import numpy as np
import optax
from flax import nnx
from jaxtyping import PyTree

from calmoe_jax.nn import (
    MLP,
    VIT_SIZES,
    MoEClassifier,
    Network,
    ResNet18,
    SingleClassifier,
    ViT,
    from_nnx,
)
from calmoe_jax.nn.classifiers import Backbone
from calmoe_jax.study.config import ModelConfig, TrainConfig


def build_network(
    config: ModelConfig, inputs: PyTree, *, single: bool, num_classes: int
) -> Network:
    """Builds the classifier of a configuration for a task's inputs.

    Args:
        config: the classifier's configuration.
        inputs: examples; only their shape is used.
        single: one classifier instead of a mixture; the backbone starts from the same weights.
        num_classes: number of classes.

    Returns:
        A `Network`; the same object for the same shapes, so that compiled programs are shared.

    Raises:
        ValueError: if the backbone is for images and the inputs are not, or of a size that its
            patches do not divide, or the inputs are not one array.
    """
    if not isinstance(inputs, np.ndarray | jax.Array):
        raise ValueError(
            "network must be given for inputs that are not one array, got a "
            f"{type(inputs).__name__}."
        )
    return _build(config, single, inputs.shape[1:], num_classes)


@lru_cache(maxsize=16)
def _build(
    config: ModelConfig, single: bool, input_shape: tuple[int, ...], num_classes: int
) -> Network:
    if config.backbone != "mlp" and len(input_shape) != 3:
        raise ValueError(
            "backbone must be mlp for inputs that are not images, got "
            f"backbone={config.backbone!r} and inputs of shape {input_shape}."
        )
    patch = VIT_SIZES[config.vit_size].patch_size
    if config.backbone == "vit" and any(size % patch for size in input_shape[:2]):
        raise ValueError(
            "vit_size must have patches that divide the images of shape "
            f"{input_shape}, got vit_size={config.vit_size!r}, with patches of {patch} x {patch}."
        )

    def make(rngs: nnx.Rngs) -> MoEClassifier | SingleClassifier:
        backbone: Backbone
        if config.backbone == "mlp":
            hidden = (config.width,) * config.depth
            backbone = MLP(math.prod(input_shape), hidden, rngs=rngs)
        elif config.backbone == "resnet18":
            backbone = ResNet18(
                input_shape[-1], stages=config.stages, width=config.width, rngs=rngs
            )
        else:
            backbone = ViT.of_size(config.vit_size, input_shape, rngs=rngs)
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

    return from_nnx(make)


@lru_cache(maxsize=16)
def build_optimizer(train: TrainConfig, num_examples: int) -> optax.GradientTransformation:
    """AdamW with a cosine schedule; clips gradients and skips those not finite if configured.

    Args:
        train: with its defaults filled in.
        num_examples: number of training examples.
    """
    steps = num_examples // min(train.batch_size, num_examples) * train.epochs
    schedule = optax.cosine_decay_schedule(train.learning_rate, steps)
    adamw = optax.adamw(schedule, weight_decay=train.weight_decay)
    if train.clip_norm:
        adamw = optax.chain(optax.clip_by_global_norm(train.clip_norm), adamw)
    if train.skip_non_finite:
        return optax.apply_if_finite(adamw, train.skip_non_finite)
    return adamw
